"""Structured transport as one GPU kernel: each problem of a batch is solved to its end by a program of its own.

The arithmetic is that of :mod:`methods.parts.transport` with the solver ``log``, in float64. Triton comes with torch's CUDA builds;
without it the plain form runs. Letters as there: C problems, B samples, K prototypes, and n, k for these two padded to powers of 2.
"""

# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOW = tl.constexpr(-1e30)  # a logarithm of zero that can be subtracted from itself


@triton.jit
def _over_samples(z):
    """log of the sum of exponentials over samples [n, k] -> [k]."""
    top = tl.max(z, 0)
    return top + tl.log(tl.sum(tl.exp(z - top[None, :]), 0))


@triton.jit
def _over_prototypes(z):
    """log of the sum of exponentials over prototypes [n, k] -> [n]."""
    top = tl.max(z, 1)
    return top + tl.log(tl.sum(tl.exp(z - top[:, None]), 1))


@triton.jit
def _pull(plan, prior, structure, weight, ks, k: tl.constexpr):
    """Half the gradient of the structure term, [n, k]."""
    moved = prior * plan
    out = moved * 0.0
    for i in tl.static_range(k):
        column = tl.sum(tl.where(ks[None, :] == i, moved, 0.0), 1)
        out += tl.where(ks[None, :] == i, tl.sum(structure * column[None, :], 1)[:, None], 0.0)
    return weight * out * prior


@triton.jit
def _entropy(plan):
    """The sum of L log L."""
    return tl.sum(tl.sum(tl.where(plan > 0, plan * tl.log(tl.where(plan > 0, plan, 1.0)), 0.0), 1), 0)


@triton.jit
def _total(x):
    return tl.sum(tl.sum(x, 1), 0)


@triton.jit
def _solve(matrix, right, ks, k: tl.constexpr):
    """Solution [k] of a positive definite system by elimination."""
    for i in tl.static_range(k):
        row = tl.sum(tl.where(ks[:, None] == i, matrix, 0.0), 0)
        column = tl.sum(tl.where(ks[None, :] == i, matrix, 0.0), 1)
        pivot = tl.sum(tl.where(ks == i, row, 0.0), 0)
        factor = tl.where(ks == i, 0.0, column / pivot)
        value = tl.sum(tl.where(ks == i, right, 0.0), 0)
        matrix -= factor[:, None] * row[None, :]
        right -= factor * value
    return right / tl.sum(tl.where(ks[:, None] == ks[None, :], matrix, 0.0), 1)


@triton.jit
def _distance(log_column, log_due, real):
    """The largest relative error of what prototypes take."""
    return tl.max(tl.where(real, tl.abs(tl.exp(log_column - log_due) - 1.0), 0.0), 0)


@triton.jit
def _log_plan(linear, v, mass, log_mass, eps, count, ks, k: tl.constexpr, newton: tl.constexpr):
    """Entropic plan [n, k] and potentials [k]."""
    real = ks < count
    due = tl.where(real, 1.0 / count.to(tl.float64), 0.0)
    log_due = -tl.log(count.to(tl.float64))
    kernel = tl.where(real[None, :], -linear / eps, LOW)
    row = _over_prototypes(kernel + v[None, :])
    log_share = kernel + v[None, :] - row[:, None]
    log_column = _over_samples(log_mass[:, None] + log_share)
    far = _distance(log_column, log_due, real)
    i = 0
    while (i < newton) & (far > 1e-12):
        share = tl.where(real[None, :], tl.exp(log_share), 0.0)
        column = tl.where(real, tl.exp(log_column), 0.0)
        same = ks[:, None] == ks[None, :]
        both = real[:, None] & real[None, :]
        products = tl.sum((share * mass[:, None])[:, :, None] * share[:, None, :], 0)
        diagonal = tl.where(real, column + 1e-12, 1.0)
        hessian = tl.where(same, diagonal[:, None], 0.0) + tl.where(both, 1.0 / count.to(tl.float64) - products, 0.0)
        step = _solve(hessian, due - column, ks, k)
        longest = tl.max(tl.abs(step), 0)
        step = step * tl.where(longest > 5.0, 5.0 / longest, 1.0)
        va = v + step
        vb = tl.where(real, v - log_column + log_due, 0.0)
        row_a = _over_prototypes(kernel + va[None, :])
        row_b = _over_prototypes(kernel + vb[None, :])
        dual_a = tl.sum(mass * row_a, 0) - tl.sum(due * va, 0)
        dual_b = tl.sum(mass * row_b, 0) - tl.sum(due * vb, 0)
        v = tl.where(dual_a <= dual_b, va, vb)
        row = tl.where(dual_a <= dual_b, row_a, row_b)
        log_share = kernel + v[None, :] - row[:, None]
        log_column = _over_samples(log_mass[:, None] + log_share)
        far = _distance(log_column, log_due, real)
        i += 1
    plan = tl.exp(log_mass[:, None] + log_share - (log_column - log_due)[None, :])
    return tl.where(real[None, :] & (mass > 0)[:, None], plan, 0.0), v


@triton.jit
def _value(a, plan, way, linear_0, pull_way, entropy_weight):
    """The objective at plan + a way; ``linear_0`` is the cost less the pull of the plan."""
    at = plan + a * way
    return _total((linear_0 - a * pull_way) * at) + entropy_weight * _entropy(at)


@triton.jit
def _structured(cost_p, prior_p, structure_p, mask_p, numbers_p, plan_p, steps_p, samples, count,
                n: tl.constexpr, k: tl.constexpr, outer: tl.constexpr, newton: tl.constexpr, backtracks: tl.constexpr):  # fmt: skip
    c = tl.program_id(0).to(tl.int64)
    ns, ks = tl.arange(0, n), tl.arange(0, k)
    eps, weight = tl.load(numbers_p), tl.load(numbers_p + 1)
    inside = (ns < samples)[:, None] & (ks < count)[None, :]
    places = c * samples * count + ns[:, None] * count + ks[None, :]
    cost = tl.load(cost_p + places, mask=inside, other=0.0)
    prior = tl.load(prior_p + places, mask=inside, other=0.0)
    square = (ns < samples)[:, None] & (ns < samples)[None, :] & (ns[:, None] != ns[None, :])
    structure = tl.load(structure_p + c * samples * samples + ns[:, None] * samples + ns[None, :], mask=square, other=0.0)
    carries = tl.load(mask_p + c * samples + ns, mask=ns < samples, other=0).to(tl.float64)
    mass = carries / tl.sum(carries, 0)
    log_mass = tl.where(mass > 0, tl.log(tl.where(mass > 0, mass, 1.0)), LOW)
    plan = tl.where(inside, mass[:, None] / count.to(tl.float64), 0.0)
    v = tl.sum(cost * 0.0, 0)
    pull = _pull(plan, prior, structure, weight, ks, k)
    value = _total((cost - pull) * plan) + eps * _entropy(plan)
    steps = 0
    active = 1
    turn = 0
    while (turn < outer) & (active > 0):
        linear = cost - 2.0 * pull
        found, v = _log_plan(linear, v, mass, log_mass, eps, count, ks, k, newton)
        wrong = tl.sum(tl.sum(tl.where(tl.abs(found) < 1e300, 0, 1), 1), 0)
        active = tl.where(wrong > 0, 0, active)
        if active > 0:
            way = found - plan
            slope = _total(way * (linear + eps * (1.0 + tl.log(tl.where(plan > 0, plan, 1.0)))))
            pull_way = _pull(way, prior, structure, weight, ks, k)
            linear_0 = cost - pull
            # Backtracking by interpolation.
            a0 = slope * 0.0 + 0.99
            f0 = _value(a0, plan, way, linear_0, pull_way, eps)
            done = f0 <= value + 1e-4 * a0 * slope
            step = tl.where(done, a0, 0.0)
            new = tl.where(done, f0, value)
            a1 = -slope * a0 * a0 / (2.0 * (f0 - value - slope * a0))
            f1 = _value(a1, plan, way, linear_0, pull_way, eps)
            now = (done == 0) & (f1 <= value + 1e-4 * a1 * slope)
            step = tl.where(now, a1, step)
            new = tl.where(now, f1, new)
            done = done | now
            tries = 0
            while (tries < backtracks) & (done == 0) & (a1 > 0):
                r0 = f0 - value - slope * a0
                r1 = f1 - value - slope * a1
                scale = a0 * a0 * a1 * a1 * (a1 - a0)
                third = (a0 * a0 * r1 - a1 * a1 * r0) / scale
                second = (a1 * a1 * a1 * r0 - a0 * a0 * a0 * r1) / scale
                a2 = (-second + tl.sqrt(tl.abs(second * second - 3.0 * third * slope))) / (3.0 * third)
                f2 = _value(a2, plan, way, linear_0, pull_way, eps)
                now = f2 <= value + 1e-4 * a2 * slope
                step = tl.where(now, a2, step)
                new = tl.where(now, f2, new)
                done = done | now
                half = (a1 - a2 > a1 / 2.0) | (1.0 - a2 / a1 < 0.96)
                a0, f0, f1 = a1, f1, f2
                a1 = tl.where(half, a1 / 2.0, a2)
                tries += 1
            step = tl.minimum(tl.maximum(step, 0.0), 1.0)
            plan += step * way
            pull = _pull(plan, prior, structure, weight, ks, k)
            steps += 1
            change = tl.abs(new - value)
            value = new
            active = tl.where((change >= 1e-6) & (change >= 1e-6 * tl.abs(value)), 1, 0)
        turn += 1
    tl.store(plan_p + places, plan, mask=inside)
    tl.store(steps_p + c, steps)


def solve(
    cost_CBK: Tensor, prior_CBK: Tensor, structure_CBB: Tensor, numbers_2: Tensor, mask_CB: Tensor
) -> tuple[Tensor, Tensor]:
    """Plans float64 [C, B, K] and numbers of steps int64 [C], by one kernel.

    The arguments are those of `structured_plan`, contiguous: float64, ``numbers_2`` eps and weight, ``mask_CB`` int8; at most
    KERNEL_SAMPLES samples.
    """
    C, B, K = cost_CBK.shape
    plan, steps = torch.empty_like(cost_CBK), torch.empty(C, dtype=torch.long, device=cost_CBK.device)
    n, k = max(2, triton.next_power_of_2(B)), max(2, triton.next_power_of_2(K))
    _structured[(C,)](cost_CBK, prior_CBK, structure_CBB, mask_CB, numbers_2, plan, steps, B, K,
                      n=n, k=k, outer=10, newton=100, backtracks=60, num_warps=4)  # fmt: skip
    return plan, steps
