"""Optimal transport of samples to prototypes: many small problems solved as one batch, in float64.

Letters: C problems (one per primitive), B samples of a problem (padded, see ``mask``), K prototypes.

A plan L [B, K] holds the mass that each sample sends to each prototype. Every sample has mass 1/n (n samples), every prototype
receives 1/K. With cost M, prior P and structure S (the similarity of samples) the plan minimises

    <M, L> + eps * sum(L log L) - weight * sum_ij S_ij <(P * L)_i, (P * L)_j>

(structure-aware transport: Chang, Shi, Wang: CSOT, NeurIPS 2023; ClusPro, ICLR 2025, eq. 7-8). Without the last term it is
entropic transport. The structured problem is solved by generalised conditional gradient: linearise, solve the entropic problem,
step along the difference after a line search.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_OUTER_STEPS = 10
STOP_CHANGE = 1e-6
KERNEL_ITERATIONS = 100
KERNEL_SAMPLES = 32  # of a problem that is solved in one kernel: with more it takes minutes to compile
NEWTON_STEPS, MAX_STEP, TOLERANCE = 100, 5.0, 1e-12
FIRST_STEP, ARMIJO, MAX_BACKTRACKS = 0.99, 1e-4, 60
SAME_PLAN = 1e-7  # largest difference between two ways to a plan, as a share of a sample's mass

log = logging.getLogger(__name__)


@dataclass
class Transport:
    """Solution: ``plan`` [C, B, K] float64 and the number of conditional gradient steps of each problem, ``steps`` int64 [C]."""

    plan: Tensor
    steps: Tensor


def entropic_plan(cost_CBK: Tensor, eps: float, mask_CB: Tensor | None = None, columns_CK: Tensor | None = None) -> Tensor:
    """Entropic plans [C, B, K] in the log domain: finite for any finite cost.

    Parameters
    ----------
    cost_CBK : float tensor
    eps : float
        Weight of the entropy.
    mask_CB : bool tensor, optional
        True for rows that are samples; the others get no mass. All by default.
    columns_CK : float tensor, optional
        Mass that each prototype receives: positive, of sum 1. All equal by default.

    Returns
    -------
    float64 tensor [C, B, K]
        Columns sum to 1/K (or ``columns_CK``) to the last digits, rows to 1/n up to convergence (1e-12 unless the cost is thousands
        of times eps).
    """
    start_CK = torch.zeros(len(cost_CBK), cost_CBK.shape[2], dtype=torch.float64, device=cost_CBK.device)
    return _log_plan(cost_CBK.double(), eps, _row_mass(cost_CBK, mask_CB), start_CK, columns_CK)[0]


def _row_mass(cost_CBK: Tensor, mask_CB: Tensor | None) -> Tensor:
    mask_CB = cost_CBK.new_ones(cost_CBK.shape[:2], dtype=torch.bool) if mask_CB is None else mask_CB
    return mask_CB.double() / mask_CB.sum(1, keepdim=True)


def _log_plan(
    cost_CBK: Tensor, eps: float, mass_CB: Tensor, v_CK: Tensor, columns_CK: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Plan [C, B, K] and the potentials of the prototypes [C, K], from initial potentials.

    The dual over these K potentials, convex and smooth, is minimised by Newton steps of bounded length; if one gains less than
    a Sinkhorn step, the Sinkhorn step is used. Plain scaling needs hundreds of iterations at the costs of a trained model.
    """
    K = cost_CBK.shape[2]
    kernel, log_mass = -cost_CBK / eps, mass_CB.log()[:, :, None]
    due_CK = torch.full_like(v_CK, 1 / K) if columns_CK is None else columns_CK.double()
    ridge_KK = 1 / K + 1e-12 * torch.eye(
        K, dtype=torch.float64, device=kernel.device
    )  # a common shift of potentials changes nothing

    row_CB = torch.logsumexp(kernel + v_CK[:, None], 2)
    for i in range(NEWTON_STEPS + 1):
        log_share = kernel + v_CK[:, None] - row_CB[:, :, None]
        log_column = torch.logsumexp(log_mass + log_share, 1)
        share, column_CK = log_share.exp(), log_column.exp()
        moving_C = (column_CK / due_CK - 1).abs().amax(1) > TOLERANCE
        if i == NEWTON_STEPS or not moving_C.any():
            break
        hessian = torch.diag_embed(column_CK) - (share * mass_CB[:, :, None]).mT @ share + ridge_KK
        step_CK = torch.linalg.solve_ex(hessian, due_CK - column_CK)[0]
        step_CK = step_CK * (MAX_STEP / step_CK.abs().amax(1, keepdim=True)).clamp(max=1.0)
        trial_2CK = torch.stack([v_CK + step_CK, v_CK - log_column + due_CK.log()])
        trial_2CB = torch.logsumexp(kernel + trial_2CK[:, :, None], 3)
        dual_2C = (mass_CB * trial_2CB).sum(2) - (due_CK * trial_2CK).sum(2)
        better = (dual_2C[0] <= dual_2C[1])[:, None]
        # A finished problem keeps its values, so that it does not depend on the others in the batch.
        v_CK = torch.where(moving_C[:, None], torch.where(better, trial_2CK[0], trial_2CK[1]), v_CK)
        row_CB = torch.where(moving_C[:, None], torch.where(better, trial_2CB[0], trial_2CB[1]), row_CB)
    return (log_mass + log_share - (log_column - due_CK.log())[:, None]).exp(), v_CK


def _kernel_plan(cost_CBK: Tensor, eps: float, mass_CB: Tensor) -> Tensor:
    """Solve the problem as ClusPro's public program does: scaling of exp(-cost / eps), rows *at most* 1/n; overflows to NaN or infinity."""
    row_CB1 = mass_CB[:, :, None]
    kernel_CBK = (-cost_CBK / eps).exp()
    v_CK1 = kernel_CBK.new_ones(len(kernel_CBK), kernel_CBK.shape[2], 1)
    for _ in range(KERNEL_ITERATIONS):
        u_CB1 = (row_CB1 / (kernel_CBK @ v_CK1)).clamp(max=1.0)
        v_CK1 = 1 / (kernel_CBK.shape[2] * (kernel_CBK.mT @ u_CB1))
    return u_CB1 * kernel_CBK * v_CK1.mT


def structured_plan(
    cost_CBK: Tensor,
    prior_CBK: Tensor,
    structure_CBB: Tensor,
    eps: float,
    weight: float,
    mask_CB: Tensor | None = None,
    solver: str = "log",
) -> Transport:
    """Plans of the structured problem, [C, B, K].

    Parameters
    ----------
    cost_CBK, prior_CBK : float tensor
        M and P of the module's docstring.
    structure_CBB : float tensor [C, B, B] or [B, B]
        S, symmetric; its diagonal is ignored.
    eps, weight : float
    mask_CB : bool tensor, optional
        True for rows that are samples. All by default.
    solver : {"log", "kernel"}
        ``kernel`` reproduces the public program of ClusPro: no log domain, 100 scaling iterations, a problem stops at its current
        plan if the kernel overflows, and an accepted first step of 0.99 moves the plan by float32(0.99).

    Returns
    -------
    Transport
        Each problem stops separately; a problem's plan does not depend on the others in the batch.

    Notes
    -----
    On a GPU with Triton, problems of few samples with the solver ``log`` are solved by one kernel, without synchronising with the host. Its
    first plans in a process are compared with those of the plain form, which also replaces the kernel if it fails.
    """
    if solver == "log" and cost_CBK.is_cuda and (found := kernel.solve(cost_CBK, prior_CBK, structure_CBB, eps, weight, mask_CB)):
        return found
    return plain_plan(cost_CBK, prior_CBK, structure_CBB, eps, weight, mask_CB, solver)


class Kernel:
    """The solver in one kernel. After a failure, or a plan that differs from the plain form's, it is disabled for the whole process.

    Attributes
    ----------
    state : {"unknown", "good", "given up"}
    """

    def __init__(self) -> None:
        self.state = "unknown"

    def solve(
        self, cost_CBK: Tensor, prior_CBK: Tensor, structure_CBB: Tensor, eps: float, weight: float, mask_CB: Tensor | None
    ) -> Transport | None:
        """Return the kernel's solution, or None if the plain form has to be used."""
        module = None if self.state == "given up" else _kernel_module()
        if module is None or cost_CBK.shape[1] > KERNEL_SAMPLES or not len(cost_CBK):
            return None
        mask_CB = torch.ones_like(cost_CBK[:, :, 0], dtype=torch.bool) if mask_CB is None else mask_CB
        try:
            found = Transport(*module.solve(*kernel_arguments(cost_CBK, prior_CBK, structure_CBB, eps, weight, mask_CB)))
        except Exception as error:  # e.g. of a compiler; it must not end a training
            self._give_up(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return None
        if self.state == "unknown":
            plain = plain_plan(cost_CBK, prior_CBK, structure_CBB, eps, weight, mask_CB)
            far = float(((found.plan - plain.plan) * mask_CB.sum(1)[:, None, None]).abs().max())
            if not far <= SAME_PLAN:  # NaN is not
                self._give_up(f"its plans differ by {far:g} of a sample's mass")
                return plain
            self.state = "good"
        return found

    def _give_up(self, why: str) -> None:
        self.state = "given up"
        log.warning("transport in one kernel is not used: %s; the plain form gives the same plans, more slowly", why)


def kernel_arguments(
    cost_CBK: Tensor, prior_CBK: Tensor, structure_CBB: Tensor, eps: float, weight: float, mask_CB: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the arguments of `structured_plan` as the kernel reads them: contiguous; float64, but the mask int8."""
    C, B, _ = cost_CBK.shape
    numbers_2 = torch.full((2,), eps, dtype=torch.float64, device=cost_CBK.device)
    numbers_2[1].fill_(weight)
    structure = structure_CBB.double().expand(C, B, B).contiguous()
    return (
        cost_CBK.double().contiguous(),
        prior_CBK.double().contiguous(),
        structure,
        numbers_2,
        mask_CB.to(torch.int8).contiguous(),
    )


kernel = Kernel()


@functools.cache
def _kernel_module() -> Any:
    """Return the module of the kernel, or None if Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    from methods.parts import transport_kernel

    return transport_kernel


def plain_plan(
    cost_CBK: Tensor,
    prior_CBK: Tensor,
    structure_CBB: Tensor,
    eps: float,
    weight: float,
    mask_CB: Tensor | None = None,
    solver: str = "log",
) -> Transport:
    """Solve the same problem with tensor operations on the whole batch, on any device."""
    cost, prior, structure = cost_CBK.double(), prior_CBK.double(), structure_CBB.double()
    structure = structure - torch.diag_embed(structure.diagonal(dim1=-2, dim2=-1))
    mass_CB = _row_mass(cost, mask_CB)

    def pull(plan: Tensor) -> Tensor:  # half the gradient of the structure term
        return weight * (structure @ (prior * plan)) * prior

    def objective(plan: Tensor) -> Tensor:
        return ((cost - pull(plan)) * plan + eps * torch.special.xlogy(plan, plan)).sum((1, 2))

    C, B, K = cost.shape
    plan, potentials_CK = mass_CB[:, :, None].expand(C, B, K) / K, cost.new_zeros(C, K)
    value_C, steps_C = objective(plan), torch.zeros(C, dtype=torch.long, device=cost.device)
    active_C = torch.ones_like(steps_C, dtype=torch.bool)
    for _ in range(MAX_OUTER_STEPS):
        linear = cost - 2 * pull(plan)
        if solver == "kernel":
            found = _kernel_plan(linear, eps, mass_CB)
        else:
            found, potentials_CK = _log_plan(linear, eps, mass_CB, potentials_CK)
        active_C = active_C & found.isfinite().all(2).all(1)
        if not active_C.any():
            break
        direction = torch.where(active_C[:, None, None], found - plan, 0.0)
        slope_C = (direction * (linear + eps * (1 + torch.where(plan > 0, plan, 1.0).log()))).sum((1, 2))
        step_C, new_C = _line_search(lambda a: objective(plan + a[:, None, None] * direction), value_C, slope_C)  # noqa: B023
        if solver == "kernel":
            step_C = torch.where(step_C == FIRST_STEP, step_C.float().double(), step_C)
        plan = plan + step_C[:, None, None] * direction
        steps_C = steps_C + active_C
        change_C = (new_C - value_C).abs()
        value_C = torch.where(active_C, new_C, value_C)
        active_C = active_C & (change_C >= STOP_CHANGE) & (change_C >= STOP_CHANGE * value_C.abs())
    return Transport(plan, steps_C)


def _line_search(value_at: Callable[[Tensor], Tensor], start_C: Tensor, slope_C: Tensor) -> tuple[Tensor, Tensor]:
    """Backtracking by interpolation (Nocedal, Wright: Numerical Optimization, section 3.5): steps in [0, 1] and their values.

    Tries 0.99, then the minimum of the parabola, then of cubics through the last two trials; if none of these decreases a problem's
    objective enough, its step is 0.
    """

    def enough(a_C: Tensor, f_C: Tensor) -> Tensor:  # a NaN never is
        return f_C <= start_C + ARMIJO * a_C * slope_C

    a0 = torch.full_like(start_C, FIRST_STEP)
    f0 = value_at(a0)
    done = enough(a0, f0)
    step, value = a0, torch.where(done, f0, start_C)
    if not done.all():
        a1 = -slope_C * a0**2 / (2 * (f0 - start_C - slope_C * a0))
        f1 = value_at(a1)
        now = ~done & enough(a1, f1)
        step, value, done = torch.where(now, a1, step), torch.where(now, f1, value), done | now
        for _ in range(MAX_BACKTRACKS):
            searching = ~done & (a1 > 0)
            if not searching.any():
                break
            a2 = _cubic_minimum(a0, f0 - start_C - slope_C * a0, a1, f1 - start_C - slope_C * a1, slope_C)
            f2 = value_at(a2)
            now = searching & enough(a2, f2)
            step, value, done = torch.where(now, a2, step), torch.where(now, f2, value), done | now
            # Neither too small nor too large a move away from the last trial.
            a0, f0, f1 = a1, f1, f2
            a1 = torch.where((a1 - a2 > a1 / 2) | (1 - a2 / a1 < 0.96), a1 / 2, a2)
    return torch.where(done, step.clamp(0.0, 1.0), 0.0), value


def _cubic_minimum(a0: Tensor, r0: Tensor, a1: Tensor, r1: Tensor, slope: Tensor) -> Tensor:
    """Minimum of the cubic with this slope at 0 whose remainders over the tangent are r0 at a0 and r1 at a1."""
    scale = a0**2 * a1**2 * (a1 - a0)
    third = (a0**2 * r1 - a1**2 * r0) / scale
    second = (a1**3 * r0 - a0**3 * r1) / scale
    return (-second + (second**2 - 3 * third * slope).abs().sqrt()) / (3 * third)
