"""The batched solvers against a plain loop written from the definition, the public program's plans, and invariances."""

import json
import math

import pytest
import torch

from methods.parts.transport import _line_search, entropic_plan, structured_plan

CASES = ("zero", "young", "long", "longest", "two_rows", "overflow", "overflow_young", "search_2")
EPS, WEIGHT = 0.1, 2.0


def plain_search(value_at, start, slope):
    """Scalar backtracking by interpolation, one case after the other."""

    def enough(a, f):
        return f <= start + 1e-4 * a * slope

    a0, f0 = 0.99, value_at(0.99)
    if enough(a0, f0):
        return a0, f0
    a1 = -slope * a0**2 / (2 * (f0 - start - slope * a0))
    f1 = value_at(a1)
    if enough(a1, f1):
        return a1, f1
    while a1 > 1e-18:
        r0, r1 = f0 - start - slope * a0, f1 - start - slope * a1
        scale = a0**2 * a1**2 * (a1 - a0)
        third, second = (a0**2 * r1 - a1**2 * r0) / scale, (a1**3 * r0 - a0**3 * r1) / scale
        a2 = (-second + math.sqrt(abs(second**2 - 3 * third * slope))) / (3 * third)
        f2 = value_at(a2)
        if enough(a2, f2):
            return a2, f2
        if a1 - a2 > a1 / 2 or 1 - a2 / a1 < 0.96:
            a2 = a1 / 2
        a0, a1, f0, f1 = a1, a2, f1, f2
    return 0.0, start


def plain_plan(cost, prior, structure, eps=EPS, weight=WEIGHT):
    """Conditional gradient of one problem, with 100 scaling iterations inside; plan and number of steps."""
    cost, prior = cost.double(), prior.double()
    structure = structure.double().clone().fill_diagonal_(0)
    B, K = cost.shape

    def objective(plan):
        total = 0.0
        moved = prior * plan
        total -= weight * float((structure * (moved @ moved.T)).sum())
        return total + float((cost * plan).sum()) + eps * float((plan * plan.log()).sum())

    plan = torch.full((B, K), 1 / (B * K), dtype=torch.float64)
    value, steps = objective(plan), 0
    for _ in range(10):
        linear = cost - 2 * weight * (structure @ (prior * plan)) * prior
        kernel, v = (-linear / eps).exp(), torch.ones(K, dtype=torch.float64)
        for _ in range(100):
            u = (1 / (B * (kernel @ v))).clamp(max=1)
            v = 1 / (K * (kernel.T @ u))
        inner = u[:, None] * kernel * v
        if not inner.isfinite().all():
            break
        direction = inner - plan
        slope = float((direction * (linear + eps * (1 + plan.log()))).sum())
        step, new = plain_search(lambda a, plan=plan, way=direction: objective(plan + a * way), value, slope)
        step = min(max(step, 0.0), 1.0)
        plan = plan + (float(torch.tensor(0.99)) if step == 0.99 else step) * direction
        steps, change = steps + 1, abs(new - value)
        value = new
        if change < 1e-6 or change < 1e-6 * abs(value):
            break
    return plan, steps


def problem(B=20, K=5, D=16, seed=0, scale=1.0):
    """Cost, prior, structure of features with some order in them."""
    make = torch.Generator().manual_seed(seed)
    g = torch.nn.functional.normalize(torch.randn(B, D, generator=make), dim=1)
    q = g @ torch.nn.functional.normalize(torch.randn(K, D, generator=make), dim=1).T * scale
    return -q, q, g @ g.T


@pytest.mark.parametrize("case", CASES)
def test_kernel_solver_reproduces_the_public_plans(case, reference, shared):
    arrays = reference("transport_reference")
    about = json.loads((shared / "fixtures/transport_reference.json").read_text())
    g, q, plan = (arrays[f"{case}/{k}"] for k in ("g", "similarity", "plan"))
    got = structured_plan(-q[None], q[None], g @ g.T, EPS, WEIGHT, solver="kernel")
    # The float32 product behind S depends on the machine in its last bits; they are what is left here.
    assert (got.plan[0] - plan).abs().max() < 1e-6 / len(g)
    assert int(got.steps) == about["cases"][case]["outer_steps"]
    assert torch.equal(got.plan[0].argmax(1), plan.argmax(1))


@pytest.mark.parametrize("case", sorted(set(CASES) - {"overflow"}))
def test_log_solver_finds_the_same_plans(case, reference):
    arrays = reference("transport_reference")
    g, q, plan = (arrays[f"{case}/{k}"] for k in ("g", "similarity", "plan"))
    got = structured_plan(-q[None], q[None], g @ g.T, EPS, WEIGHT)
    assert (got.plan[0] - plan).abs().max() < 1e-6 / len(g)


def test_overflow_stops_the_kernel_solver_only(reference):
    arrays = reference("transport_reference")
    g, q = arrays["overflow/g"], arrays["overflow/similarity"]
    kernel = structured_plan(-q[None], q[None], g @ g.T, EPS, WEIGHT, solver="kernel")
    assert torch.equal(kernel.plan, torch.full_like(kernel.plan, 1 / kernel.plan.numel()))
    assert int(kernel.plan[0].argmax(1).max()) == 0
    plan = structured_plan(-q[None], q[None], g @ g.T, EPS, WEIGHT).plan
    assert plan.isfinite().all()
    assert (plan >= 0).all()
    assert (plan.sum(1) - 0.2).abs().max() < 1e-12
    assert plan[0].argmax(1).unique().numel() > 1


@pytest.mark.parametrize("seed", range(5))
def test_kernel_solver_equals_the_plain_loop(seed):
    cost, prior, structure = problem(B=12 + 7 * seed, seed=seed, scale=1 + seed)
    plan, steps = plain_plan(cost, prior, structure)
    got = structured_plan(cost[None], prior[None], structure, EPS, WEIGHT, solver="kernel")
    assert int(got.steps) == steps
    assert (got.plan[0] - plan).abs().max() < 1e-12


@pytest.mark.parametrize("solver", ["log", "kernel"])
def test_problems_of_a_batch_do_not_touch_each_other(solver):
    problems = [problem(seed=s, scale=0.3 * 4**s) for s in range(5)]
    cost, prior, structure = (torch.stack(x) for x in zip(*problems, strict=True))
    together = structured_plan(cost, prior, structure, EPS, WEIGHT, solver=solver)
    assert together.steps.unique().numel() > 1  # they do stop at different times
    for i in range(5):
        alone = structured_plan(cost[i : i + 1], prior[i : i + 1], structure[i], EPS, WEIGHT, solver=solver)
        assert (together.plan[i] - alone.plan[0]).abs().max() < 1e-10 / 20
        assert int(together.steps[i]) == int(alone.steps)


@pytest.mark.parametrize("solver", ["log", "kernel"])
def test_masked_rows_are_as_if_they_were_not_there(solver):
    cost, prior, structure = problem()
    real = torch.tensor([[True] * 13 + [False] * 7])
    padded = structured_plan(cost[None], prior[None], structure, EPS, WEIGHT, real, solver).plan[0]
    short = structured_plan(cost[None, :13], prior[None, :13], structure[:13, :13], EPS, WEIGHT, solver=solver).plan[0]
    assert (padded[:13] - short).abs().max() < 1e-13
    assert (padded[13:] == 0).all()


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 1e4])
@pytest.mark.parametrize("B", [1, 2, 5, 40])
def test_marginals(B, scale):
    cost, prior, structure = problem(B=B, scale=scale)
    plan = structured_plan(cost[None], prior[None], structure, EPS, 1.0).plan[0]
    assert plan.isfinite().all()
    assert (plan.sum(0) - 0.2).abs().max() < 1e-12
    if scale <= 10:
        assert (plan.sum(1) * B - 1).abs().max() < 1e-9


def test_order_of_samples_and_prototypes_does_not_matter():
    cost, prior, structure = problem(scale=3.0)
    plan = structured_plan(cost[None], prior[None], structure, EPS, WEIGHT).plan[0]
    rows, columns = torch.randperm(20, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 0, 4, 1, 2])
    turned = structured_plan(
        cost[rows][:, columns][None], prior[rows][:, columns][None], structure[rows][:, rows], EPS, WEIGHT
    ).plan[0]
    assert (turned - plan[rows][:, columns]).abs().max() < 1e-12


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_entropic_plan_equals_long_scaling(scale):
    cost = problem(scale=scale)[0].double()
    kernel, v = (-cost / EPS).exp(), torch.ones(5, dtype=torch.float64)
    for _ in range(20000):
        u = 1 / (20 * (kernel @ v))
        v = 1 / (5 * (kernel.T @ u))
    assert (entropic_plan(cost[None], EPS)[0] - u[:, None] * kernel * v).abs().max() < 1e-12


def test_structure_pulls_like_samples_together():
    """Two groups of equal samples without any preference but one hint each end at different prototypes."""
    structure = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4))
    similarity = torch.full((8, 2), 0.5)
    similarity[0] = torch.tensor([0.6, 0.4])
    similarity[4] = torch.tensor([0.4, 0.6])
    plan = structured_plan(-similarity[None], similarity[None], structure, EPS, 20.0).plan[0]
    assert plan.argmax(1).tolist() == [0] * 4 + [1] * 4
    free = entropic_plan(-similarity[None], EPS)[0]
    assert (free[1] - free[1].flip(0)).abs().max() < 1e-12


def test_line_search_equals_the_scalar_one_also_in_its_cubic_part():
    functions = [
        (lambda a: -a + 0.1 * a**2, -1.0),  # 0.99 accepted
        (lambda a: -a + 4 * a**2, -1.0),  # the parabola's minimum accepted
        (lambda a: -a + 300 * a**4, -1.0),  # cubic steps
        (lambda a: -a + 5e4 * a**9, -1.0),
        (lambda a: a + a**2, 1.0),  # not a descent direction
    ]

    def batched(a_C):
        return torch.stack([torch.as_tensor(f(a), dtype=torch.float64) for (f, _), a in zip(functions, a_C, strict=True)])

    step, value = _line_search(batched, torch.zeros(5, dtype=torch.float64), torch.tensor([s for _, s in functions]).double())
    for i, (f, slope) in enumerate(functions):
        expected = plain_search(lambda a, f=f: float(f(a)), 0.0, slope)
        assert float(step[i]) == pytest.approx(min(max(expected[0], 0.0), 1.0), rel=1e-9), i
        assert float(value[i]) == pytest.approx(expected[1], rel=1e-9), i
    assert 0 < float(step[2]) < 0.4
    assert float(step[4]) == 0
