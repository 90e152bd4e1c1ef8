"""The prototype bank against plain loops, its seeding, its edge cases and its health."""

import pytest
import torch
from clus_pro_fixtures import preset
from test_transport import plain_plan
from torch.nn import functional as F

from methods.clus_pro.prototypes import RING, Prototypes, effective_count, health, mean_cosine
from methods.parts.transport import structured_plan

A, O, K, B, D = 4, 3, 3, 24, 16
ATTR = torch.tensor([0, 1, 2, 0, 1, 0, 1, 2] * 3)  # attribute 3 has no image
OBJ = torch.tensor([0, 1, 1, 1, 0, 1, 0, 0] * 3)  # object 2 has none


def make_bank(name, seed=0, **changes):
    """A bank with random prototypes of length 0.5 where the preset lets them be of any length."""
    bank = Prototypes(A, O, D, preset(name, num_prototypes=K, **changes)).double()
    rows = F.normalize(torch.randn(A + O, K, D, generator=torch.Generator().manual_seed(seed)), dim=-1).double()
    bank.bank.copy_(rows if bank.config.proto_normalise else rows / 2)
    return bank


def make_features(seed=1, images=B):
    return torch.randn(2, images, D, generator=torch.Generator().manual_seed(seed)).relu().double()


def plain_step(bank, features, attr, obj, noise):
    """A released step, one primitive after the other."""
    labels = torch.zeros(2, len(attr), dtype=torch.long)
    before, after = bank.bank.clone(), bank.bank.clone()
    for side, classes, start in ((0, attr, 0), (1, obj, A)):
        g = features[side]
        for k in range(A if side == 0 else O):
            q = F.normalize(g, dim=1) @ before[start + k].T
            plan, _ = plain_plan(-q, q, g @ g.T)
            for n in torch.nonzero(classes == k)[:, 0].tolist():
                labels[side, n] = plan[n].argmax()
            chosen = (plan + noise[start + k]).argmax(1)
            for j in range(K):
                mine = g[(classes == k) & (chosen == j)]
                if len(mine):
                    after[start + k, j] = 0.99 * before[start + k, j] + 0.01 * F.normalize(mine.sum(0), dim=0)
    return labels, after


def test_released_steps_equal_the_plain_loop():
    bank, plain = make_bank("released"), make_bank("released")
    for step in range(5):
        features = make_features(step) * 3
        noise = -torch.empty(A + O, B, K).double().exponential_(generator=torch.Generator().manual_seed(step)).log()
        own = torch.arange(B)
        bank.gumbel = lambda plan, n=noise, own=own: torch.cat([n[ATTR, own], n[A + OBJ, own]])
        labels = bank.step(features, ATTR, OBJ)
        expected, after = plain_step(plain, features, ATTR, OBJ, noise)
        plain.bank.copy_(after)
        assert torch.equal(labels, expected)
        assert (bank.bank - plain.bank).abs().max() < 1e-12


def test_default_step_equals_the_plain_formula():
    """Given the plan: argmax, mean of unit features, moving average, unit length; primitives without images stay."""
    bank = make_bank("default")
    features, before = make_features(), bank.bank.clone()
    problems = bank.problems(bank.ids(ATTR, OBJ), ATTR)
    plans = bank.plans(features.flatten(0, 1), problems)
    labels = bank.step(features, ATTR, OBJ)
    for side, classes, start in ((0, ATTR, 0), (1, OBJ, A)):
        unit = F.normalize(features[side], dim=1)
        for k in range(A if side == 0 else O):
            members = torch.nonzero(classes == k)[:, 0]
            if not len(members):
                assert torch.equal(bank.bank[start + k], before[start + k])
                continue
            plan = plans[problems.primitives.tolist().index(start + k)][: len(members)]
            assert torch.equal(labels[side, members], plan.argmax(1))
            for j in range(K):
                mine = unit[members[plan.argmax(1) == j]]
                new = F.normalize(0.99 * before[start + k, j] + 0.01 * mine.mean(0), dim=0) if len(mine) else before[start + k, j]
                torch.testing.assert_close(bank.bank[start + k, j], new)


def test_class_problems_hold_the_class_and_cost_what_the_text_says():
    bank, features = make_bank("default"), make_features().flatten(0, 1)
    problems = bank.problems(bank.ids(ATTR, OBJ), ATTR)
    assert problems.primitives.tolist() == [0, 1, 2, A, A + 1]
    for i, members in enumerate([ATTR == 0, ATTR == 1, ATTR == 2, OBJ == 0, OBJ == 1]):
        rows = problems.rows[i][problems.mask[i] & ~problems.filler[i]]
        assert rows.tolist() == (members.nonzero()[:, 0] + (B if i > 2 else 0)).tolist()
    plan = bank.plans(features, problems)
    rows = (ATTR == 1).nonzero()[:, 0]
    unit = F.normalize(features[rows], dim=1)
    logp = (unit @ bank.bank[1].T / bank.config.pcl_tau).log_softmax(1)
    expected = structured_plan(-logp[None], logp.exp()[None], unit @ unit.T, eps=0.1, weight=1.0).plan[0]
    assert (plan[1][: len(rows)] - expected).abs().max() < 1e-10 / len(rows)


@pytest.mark.parametrize("name", ["default", "paper", "released"])
@pytest.mark.parametrize("method", ["csot", "sinkhorn", "cosine"])
def test_order_of_images_does_not_matter(name, method):
    one, two = (make_bank(name, assign_method=method, ema_assign="argmax") for _ in range(2))
    features, order = make_features(), torch.randperm(B, generator=torch.Generator().manual_seed(3))
    labels = one.step(features, ATTR, OBJ)
    assert torch.equal(labels[:, order], two.step(features[:, order], ATTR[order], OBJ[order]))
    assert (one.bank - two.bank).abs().max() < 1e-12


def test_cosine_takes_the_nearest_prototype():
    bank, features = make_bank("default", assign_method="cosine"), make_features()
    nearest = torch.stack(
        [torch.einsum("bd,bkd->bk", features[i], bank.bank[ids]).argmax(1) for i, ids in enumerate((ATTR, A + OBJ))]
    )
    assert torch.equal(bank.step(features, ATTR, OBJ), nearest)


@pytest.mark.parametrize("method", ["csot", "sinkhorn"])
def test_a_few_samples_go_to_their_nearest_prototypes(method):
    """Equal shares of K prototypes mean nothing for one sample: fillers take the rest."""
    bank = make_bank("default", assign_method=method)
    features = torch.stack([bank.bank[0, 2] + 0.1, bank.bank[A, 1] - 0.1])[:, None]
    assert bank.step(features, torch.tensor([0]), torch.tensor([0]))[:, 0].tolist() == [2, 1]
    pair = torch.stack([bank.bank[1, [0, 2]], bank.bank[A + 1, [2, 0]]])
    assert bank.step(pair, torch.tensor([1, 1]), torch.tensor([1, 1])).tolist() == [[0, 2], [2, 0]]


def test_all_zero_prototypes_give_label_zero_when_released():
    bank = make_bank("released")
    bank.bank.zero_()
    assert bank.step(make_features(), ATTR, OBJ).eq(0).all()
    assert bank.bank[[3, A + 2]].eq(0).all()
    lengths = bank.bank.norm(dim=-1)
    assert torch.allclose(lengths[lengths > 0], torch.tensor(0.01).double())


def test_a_primitive_met_without_a_first_pass_starts_from_its_batch():
    bank = make_bank("default")
    bank.bank.zero_()
    labels = bank.step(make_features(), ATTR, OBJ)
    assert torch.equal(bank.in_use(), torch.tensor([True, True, True, False, True, True, False]))
    assert torch.allclose(bank.bank[bank.in_use()].norm(dim=-1), torch.ones(5, K).double())
    assert labels.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("init", ["first_samples", "kmeans"])
def test_seeding(init):
    bank = make_bank("default", proto_init=init)
    features, ids = make_features(images=60).flatten(0, 1), torch.arange(120) % (A + O - 1)
    ids[ids == 2] = 1  # none of 2, none of 6
    ids[0], ids[7] = 2, 2  # then two of 2, fewer than K
    bank.seed(features, ids)
    assert bool(bank.seeded)
    assert bank.bank[A + O - 1].eq(0).all()
    used = bank.bank[bank.in_use()]
    assert torch.allclose(used.norm(dim=-1), torch.ones(A + O - 1, K).double())
    assert ((used @ used.mT).triu(1) < 0.9999).all()  # no two alike, not even the copies
    few = F.normalize(features[[0, 7]], dim=1)
    torch.testing.assert_close(bank.bank[2, :2], few)
    assert float(bank.bank[2, 2] @ few[0]) > 0.95
    again = make_bank("default", seed=5, proto_init=init)
    again.seed(features, ids)
    assert torch.equal(bank.bank, again.bank)
    if init == "first_samples":
        torch.testing.assert_close(bank.bank[0], F.normalize(features[ids == 0][:K], dim=1))


def test_kmeans_seeds_find_planted_modes():
    modes = F.normalize(torch.randn(K, D, generator=torch.Generator().manual_seed(7)), dim=1).double()
    noise = 0.05 * torch.randn(300, D, generator=torch.Generator().manual_seed(8)).double()
    bank = make_bank("default")
    bank.seed(modes[torch.arange(300) % K] + noise, torch.zeros(300, dtype=torch.long))
    assert ((bank.bank[0] @ modes.T).max(0).values > 0.99).all()


def test_assignments_keep_to_planted_modes_over_many_steps():
    """The default preset must not let prototypes drift together, as the released assignment does."""
    make = torch.Generator().manual_seed(0)
    modes = F.normalize(torch.randn(A + O, K, D, generator=make).relu(), dim=-1).double()
    figures = {}
    for name in ("default", "released"):
        bank, draw = make_bank(name, momentum=0.9), torch.Generator().manual_seed(1)
        bank.bank.copy_(modes)
        torch.manual_seed(2)
        for _ in range(60):
            attr, obj = torch.randint(A, (B,), generator=draw), torch.randint(O, (B,), generator=draw)
            which = torch.randint(K, (2, B), generator=draw)
            features = modes[torch.stack([attr, A + obj]), which] + 0.1 * torch.randn(2, B, D, generator=draw).double()
            bank.step(features, attr, obj)
        figures[name] = float(effective_count(bank.bank).mean())
    ceiling = float(effective_count(modes).mean())
    assert figures["default"] > 0.8 * ceiling
    assert figures["released"] < 0.6 * ceiling


def test_the_old_bug_moves_objects_by_attribute_features():
    right, wrong = make_bank("released"), make_bank("released", object_branch_bug=True)
    for bank in (right, wrong):
        bank.gumbel = lambda plan: F.one_hot(torch.zeros(len(plan), dtype=torch.long), K) * 1e3
    features, before = make_features(), wrong.bank.clone()
    attr, obj = torch.tensor([0, 1, 3, 3] * 6), torch.tensor([2, 2, 2, 1] * 6)
    assert torch.equal(right.step(features, attr, obj), wrong.step(features, attr, obj))
    assert torch.equal(right.bank[:A], wrong.bank[:A])
    moved = (wrong.bank != before).any(-1).any(-1)[A:]
    assert moved.tolist() == [True, True, False]  # attribute indices 0 and 1, not objects 1 and 2; index 3 is past the objects
    target = F.normalize(features[0][attr == 1].sum(0), dim=0)
    torch.testing.assert_close(wrong.bank[A + 1, 0], 0.99 * before[A + 1, 0] + 0.01 * target)


def test_rings_keep_the_last_features_in_order():
    bank = make_bank("released")
    features = make_features(images=RING + 2)
    same = torch.zeros(RING + 2, dtype=torch.long)
    bank.remember(features, same, same, torch.stack([same, same + 1]))
    assert torch.equal(bank.ring[0, 0, :2], features[0, RING:])
    assert torch.equal(bank.ring[0, 0, 2:], features[0, 2:RING])
    assert torch.equal(bank.ring[A, 1, 1], features[1, RING + 1])
    assert bank.ring_place[0, 0] == bank.ring_place[A, 1] == 2
    assert int(bank.ring_place.sum()) == 4


def test_health_figures():
    orthogonal = torch.eye(8)[None, :5]
    assert float(effective_count(orthogonal)) == pytest.approx(5)
    assert float(mean_cosine(orthogonal)) == pytest.approx(0)

    def at_cosine(c):
        return torch.linalg.cholesky((1 - c) * torch.eye(5).double() + c)[None]

    assert float(effective_count(at_cosine(0.32))) == pytest.approx(4.2, abs=0.05)
    assert float(effective_count(at_cosine(0.99))) == pytest.approx(1.06, abs=0.01)
    assert float(mean_cosine(at_cosine(0.32))) == pytest.approx(0.32)
    assert float(effective_count(torch.zeros(1, 5, 8))) == pytest.approx(1)


def test_health_sees_collapse_and_idle_prototypes():
    make = torch.Generator().manual_seed(0)
    modes = F.normalize(torch.randn(2, K, D, generator=make), dim=-1)
    ids = torch.arange(240) % 2
    features = modes[ids, torch.arange(240) // 2 % K] + 0.05 * torch.randn(240, D, generator=make)
    good = health(modes, features, ids)
    assert good["ratio"] == pytest.approx(1, abs=0.02)
    assert good["idle"] == 0
    assert good["primitives"] == 2
    bad = health(modes.mean(1, keepdim=True) + 0.01 * modes, features, ids)
    assert bad["ratio"] < 0.6
    assert bad["cosine"] > 0.98
    idle = modes.clone()
    idle[:, 2] = -idle[:, 2]
    assert health(idle, features, ids)["idle"] == pytest.approx(1 / 3)
    assert health(modes, features[:10], ids[:10]) == {"primitives": 0.0}
