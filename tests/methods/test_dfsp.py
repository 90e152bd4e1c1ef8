"""DFSP against plain arithmetic: its texts, its guide, its images, its losses; and what it keeps in other label spaces."""

import numpy as np
import pytest
import torch
from plain_layers import plain_block, shaken
from torch.nn import functional as F

from czsl.compositions import CompositionSpace
from czsl.errors import UsageError
from methods.features import Targets

NO_DROPOUT = {"attr_dropout": 0.0, "fusion_dropout": 0.0}


@pytest.fixture
def make(small_space, small_clip):
    def made(space=small_space, **settings):
        return shaken("dfsp", space, small_clip, settings)

    return made


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


# -- plain arithmetic --------------------------------------------------------------------------------------------------
def plain_tokens(method, pair, padding):
    """The tokens [T, W] of one prompt after the last block, by the text tower's own modules."""
    text, words, A = method.clip.text, method.prompts.table, method.space.num_attributes
    rows = [method.prompts.start, *method.prompts.context["pair"], words[pair[0]], words[A + pair[1]], method.prompts.end]
    if padding:
        rows.append(text.token_embedding.weight[0])
    x = torch.stack(rows)
    x = (x + text.positional_embedding[: len(x)])[None]
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
    for block in text.blocks:
        y = block.ln_1(x)
        x = x + block.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        x = x + block.mlp(block.ln_2(x))
    return x[0]


def plain_guide(method, padding):
    space, train = method.space, method.space.train_pairs.tolist()
    tokens = [plain_tokens(method, pair, padding) for pair in train]
    means = []
    for side, count in ((0, space.num_attributes), (1, space.num_objects)):
        for i in range(count):
            own = [t for t, pair in zip(tokens, train, strict=True) if pair[side] == i]
            means.append(torch.stack(own).mean(0) if own else torch.zeros_like(tokens[0]))
    wide = [method.widen(mean) for mean in means]
    L = method.mixing.shape[2]
    guide = [method.mixing_bias[place].expand(wide[0].shape[1]).clone() for place in range(L)]
    for i, of_name in enumerate(wide):
        for t, token in enumerate(of_name):
            for place in range(L):
                guide[place] += method.mixing[i, t, place] * token
    return torch.stack(guide)


def plain_text(method, pair, padding, share):
    tokens = plain_tokens(method, pair, padding)
    text, fused = method.clip.text, tokens
    for block in method.text_blocks:
        fused = plain_block(block, fused)[0]
    own, fused = ((text.ln_final(x[6]) @ text.text_projection) for x in (tokens, fused))
    return F.normalize(share * own + (1 - share) * fused, dim=0), F.normalize(own, dim=0)


def plain_image(method, image, guide, share):
    visual = method.clip.visual
    x = visual.embed(method.clip.normalise(image[None]))
    for i in range(len(visual.blocks)):
        x = visual.block(i, x, None)
    fused = plain_block(method.cross, x[0], guide)[0]
    for block in method.image_blocks:
        fused = plain_block(block, fused)[0]
    own, fused = visual.project(x[0, 0]), visual.project(fused[0])
    return F.normalize(share * own + (1 - share) * fused, dim=0), F.normalize(own, dim=0)


# -- tests -------------------------------------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize(("padding", "layers", "share"), [("none", 1, 0.8), ("reference", 2, 0.3)])
def test_scores_are_those_of_plain_arithmetic(make, images, padding, layers, share):
    method = make(padding=padding, fusion_layers=layers, residual=share)
    padded, pairs = padding == "reference", method.space.open_pairs.tolist()
    guide = plain_guide(method, padded)
    torch.testing.assert_close(method.guidance(), guide, atol=1e-5, rtol=1e-4)
    texts = torch.stack([plain_text(method, pair, padded, share)[0] for pair in pairs])
    pictures = torch.stack([plain_image(method, image, guide, share)[0] for image in images])
    want = method.clip.logit_scale * pictures @ texts.T
    torch.testing.assert_close(method.score_images(images, torch.tensor(pairs)), want, atol=1e-3, rtol=1e-4)


def test_the_loss_is_four_cross_entropies(make, images):
    method = make(**NO_DROPOUT).train()
    method.comm.batch = len(images)
    train, place = torch.from_numpy(method.space.train_pairs.copy()), torch.tensor([0, 2, 5])
    batch = {"images": images, "attr": train[place, 0], "obj": train[place, 1], "pair": place}
    terms = method.training_step(batch)
    with torch.no_grad():
        guide = plain_guide(method, False)
        texts = [torch.stack(side) for side in zip(*(plain_text(method, p, False, 0.8) for p in train.tolist()), strict=True)]
        sides = [torch.stack(side) for side in zip(*(plain_image(method, x, guide, 0.8) for x in images), strict=True)]
        logits, plain = (method.clip.logit_scale * i @ t.T for i, t in zip(sides, texts, strict=True))
        wanted = {"pair": F.cross_entropy(logits, place), "prompt": 0.1 * F.cross_entropy(plain, place)}
        for name, side, labels in (("attr", 0, batch["attr"]), ("obj", 1, batch["obj"])):
            there = sorted(set(train[:, side].tolist()))
            means = torch.stack([plain[:, train[:, side] == i].mean(1) for i in there], dim=1)
            wanted[name] = 0.01 * F.cross_entropy(means, torch.tensor([there.index(i) for i in labels.tolist()]))
    for name, want in wanted.items():
        torch.testing.assert_close(terms[name].detach(), want, atol=1e-4, rtol=1e-3)
    torch.stack(list(terms.values())).sum().backward()
    assert {n for n, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum()} == set()


def test_the_guide_is_kept_while_nothing_is_trained(make, images, monkeypatch):
    method, pairs = make(**NO_DROPOUT), torch.from_numpy(make().space.closed_pairs)
    before = method.score_images(images, pairs)
    counted = []
    of = method._guide_of
    monkeypatch.setattr(method, "_guide_of", lambda tokens: counted.append(1) or of(tokens))
    method.score_images(images, pairs)
    assert not counted
    method.train()
    with torch.no_grad():
        method.mixing.mul_(-3)
    method.eval()
    after = method.score_images(images, pairs)
    assert counted
    assert not torch.allclose(after, before, atol=1e-3)
    other = make(**NO_DROPOUT)
    other.score_images(images, pairs)
    other.load_state_dict(method.state_dict())
    torch.testing.assert_close(other.score_images(images, pairs), after)


@torch.no_grad()
def test_images_keep_their_features_in_another_label_space(make, images):
    method = make()
    none = np.zeros((0, 2), np.int64)
    other = method.for_space(CompositionSpace(("dry", "shiny"), ("cat",), none, none, none))
    before, after = (m.encode_images({"images": images}).pair for m in (method, other))
    torch.testing.assert_close(after, before)
    again = other.to("cpu").for_space(method.space)
    torch.testing.assert_close(again.encode_images({"images": images}).pair, before)
    assert "guide" not in "".join(method.state_dict())


def test_a_name_without_training_pairs_gives_no_nan(make, small_space, images):
    train = small_space.train_pairs[small_space.train_pairs[:, 0] != 1]
    space = CompositionSpace(small_space.attributes, small_space.objects, train, small_space.val_pairs, small_space.test_pairs)
    method = make(space).train()
    pairs, place = torch.from_numpy(train.copy()), torch.arange(3)
    terms = method.training_step({"images": images, "attr": pairs[place, 0], "obj": pairs[place, 1], "pair": place})
    soft = Targets(*(F.one_hot(x, n).float() for x, n in ((pairs[place, 0], 6), (pairs[place, 1], 5), (place, len(pairs)))))
    text, encoded = method.encode_compositions(pairs), method.embed_images(method.image_features({"images": images}))
    terms |= {f"{k}_soft": v for k, v in method.losses(encoded, text, soft).items()}
    assert all(torch.isfinite(v) for v in terms.values())
    assert torch.isfinite(method.eval().score_images(images, torch.from_numpy(space.open_pairs))).all()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"fusion_layers": 0}, "1 or more"),
        ({"residual": 1.5}, "share between 0 and 1"),
        ({"prompt_loss_weight": -1}, "0 or more"),
        ({"fusion_dropout": 2}, "between 0 and 1"),
        ({"padding": "zeros"}, "none, reference"),
    ],
)
def test_bad_settings_are_refused(make, settings, what):
    with pytest.raises(UsageError, match=what):
        make(**settings)
