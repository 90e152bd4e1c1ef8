"""Prototypes of attributes and objects: assignment of features to them, their moving averages, seeding and health.

Letters: A attributes, O objects, C primitives (attributes first), K prototypes per primitive, B images, M = 2B features (attribute
branch first), N features of one transport problem, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from czsl.retrieval.clusters import balanced_kmeans
from methods.clus_pro.config import ClusProConfig
from methods.parts.transport import entropic_plan, structured_plan

RING = 5  # features a prototype's ring buffer holds
JITTER = 0.1  # length of what tells the copies of a unit feature apart, where a primitive has fewer images than prototypes


@dataclass(frozen=True)
class Sizes:
    """Sizes of a batch that the host needs before it can make tensors: ``primitives`` in it, ``largest`` features of one of them, whether
    one of them has no prototypes yet (``fresh``), and how many attributes and objects have prototypes.
    """

    primitives: int
    largest: int
    fresh: bool
    attributes: int
    objects: int


@dataclass(frozen=True)
class Order:
    """Features [M] sorted by their primitive.

    ``ids``: their primitives; ``rows``: the features; ``problem``: how many other primitives come before; ``place``: how many features of
    the same primitive do.
    """

    ids: Tensor
    rows: Tensor
    problem: Tensor
    place: Tensor


@dataclass
class Problems:
    """Transport problems of a batch.

    ``primitives`` [C']; ``rows`` [C', N], the features of each; ``mask`` [C', N], which of them carry mass; ``filler`` [C', N], which
    of these are not features: a primitive with fewer features than prototypes is filled up to K with indifferent samples (no cost), or
    the equal shares of the prototypes would tear its few features apart. Feature m stands in problem ``problem[m]`` at ``place[m]``.
    """

    primitives: Tensor
    rows: Tensor
    mask: Tensor
    filler: Tensor
    problem: Tensor
    place: Tensor


class Prototypes(nn.Module):
    """The prototype bank [C, K, D], a buffer that no gradient reaches.

    Parameters
    ----------
    num_attributes, num_objects, dim : int
    config : ClusProConfig
    """

    bank: Tensor
    seeded: Tensor
    ring: Tensor
    ring_place: Tensor

    def __init__(self, num_attributes: int, num_objects: int, dim: int, config: ClusProConfig):
        super().__init__()
        self.config, self.num_attributes = config, num_attributes
        self._sizes: Sizes | None = None  # of the last step
        self.without_values = False  # a copy whose tensors have shapes only: all prototypes are in use, an image has the first
        C, K = num_attributes + num_objects, config.num_prototypes
        self.register_buffer("bank", torch.zeros(C, K, dim))
        self.register_buffer("seeded", torch.tensor(config.proto_init == "zeros"))
        if config.bn_mode == "released":
            self.register_buffer("ring", F.normalize(torch.randn(C, K, RING, dim), dim=-1))
            self.register_buffer("ring_place", torch.zeros(C, K, dtype=torch.long))

    def ids(self, attr_B: Tensor, obj_B: Tensor) -> Tensor:
        """Primitive of each feature [M]: the images' attributes, then their objects."""
        return torch.cat([attr_B, self.num_attributes + obj_B])

    def in_use(self) -> Tensor:
        """Return which primitives take part in losses, bool [C]: all if they start from zeros, else those with prototypes."""
        if self.config.proto_init == "zeros":
            return torch.ones(len(self.bank), dtype=torch.bool, device=self.bank.device)
        return self.bank.abs().amax((1, 2)) > 0

    # -- seeding ---------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def seed(self, features_MD: Tensor, ids_M: Tensor) -> None:
        """Start the prototypes of every primitive from its features; a primitive without any keeps zeros."""
        self.bank.zero_()
        self._seed_from(features_MD, ids_M, self.config.proto_init == "kmeans")
        self.seeded.fill_(True)

    def _seed_from(self, features_MD: Tensor, ids_M: Tensor, kmeans: bool) -> None:
        unit_MD = F.normalize(features_MD.to(self.bank.dtype), dim=-1)
        K = self.config.num_prototypes
        for c in ids_M.unique().tolist():
            own_nD = unit_MD[ids_M == c]
            if kmeans and len(own_nD) > K:
                centres_KD, _ = balanced_kmeans(own_nD.cpu().numpy(), K, seed=c)
                self.bank[c] = torch.from_numpy(centres_KD).to(self.bank)
            else:
                self.bank[c] = self._filled_up(own_nD[:K], c)

    def _filled_up(self, own_nD: Tensor, seed: int) -> Tensor:
        """K rows of at most K features: copies differ by a little noise, so that they can part."""
        n, K = len(own_nD), self.config.num_prototypes
        rows_KD = own_nD[torch.arange(K, device=own_nD.device) % n]
        noise = torch.randn(K - n, own_nD.shape[1], generator=torch.Generator().manual_seed(seed)) * JITTER
        rows_KD[n:] += noise.to(rows_KD) / own_nD.shape[1] ** 0.5
        return F.normalize(rows_KD, dim=-1)

    def sizes(self, ids_M: Tensor) -> tuple[Sizes, Order]:
        """Read the sizes of a batch, all in one wait for the device; also return the order of its features."""
        A, used_C = self.num_attributes, self.in_use()
        ordered_M, rows_M = ids_M.sort(stable=True)
        every_M = torch.arange(len(ids_M), device=ids_M.device)
        first_M = torch.ones_like(ids_M, dtype=torch.bool)
        first_M[1:] = ordered_M[1:] != ordered_M[:-1]
        place_M = every_M - torch.where(first_M, every_M, 0).cummax(0)[0]
        problem_M = first_M.cumsum(0) - 1
        numbers = [problem_M[-1] + 1, place_M.max() + 1, (~used_C[ids_M]).any(), used_C[:A].sum(), used_C[A:].sum()]
        primitives, largest, fresh, attributes, objects = torch.stack(numbers).tolist()
        return Sizes(primitives, largest, bool(fresh), attributes, objects), Order(ordered_M, rows_M, problem_M, place_M)

    def rows_in_use(self, used_C: Tensor) -> tuple[Tensor, Tensor]:
        """Prototypes of the attributes and of the objects that take part in losses, [n, D] each; as many as at the last step.

        ``used_C``: those that :meth:`in_use` gives.
        """
        A, out = self.num_attributes, []
        known = self._sizes
        for bank, used, n in (
            (self.bank[:A], used_C[:A], known.attributes if known else int(used_C[:A].sum())),
            (self.bank[A:], used_C[A:], known.objects if known else int(used_C[A:].sum())),
        ):
            out.append((bank if n == len(bank) else bank[(~used).long().argsort(stable=True)[:n]]).flatten(0, 1))
        return out[0], out[1]

    # -- one step --------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def step(self, hidden_2BD: Tensor, attr_B: Tensor, obj_B: Tensor) -> Tensor:
        """Assign the features of a batch and move the prototypes.

        Parameters
        ----------
        hidden_2BD : float tensor
            Features before the L2 norm, attribute branch first.
        attr_B, obj_B : int64 tensor

        Returns
        -------
        int64 [2, B]
            Prototype (0..K-1) of each image's attribute and object.
        """
        if self.without_values:
            A = self.num_attributes
            self._sizes = Sizes(1, 1, False, A, len(self.bank) - A)
            return attr_B.new_zeros(2, len(attr_B))
        g_MD = hidden_2BD.detach().flatten(0, 1)
        ids_M = self.ids(attr_B, obj_B)
        self._sizes, order = self.sizes(ids_M)
        if self._sizes.fresh:
            # A primitive met without an initialisation (or in a new label space) starts from its features in this batch.
            new_M = (~self.in_use()[ids_M]).nonzero()[:, 0]
            self._seed_from(g_MD[new_M], ids_M[new_M], kmeans=False)
            self._sizes, order = self.sizes(ids_M)
        problems = self.problems(ids_M, attr_B, self._sizes, order)
        plan_CNK = self.plans(g_MD, problems)
        plan_MK = plan_CNK[problems.problem, problems.place].to(self.bank.dtype)
        labels_M = plan_MK.argmax(1)
        if self.config.ema_assign == "argmax":
            chosen_M = labels_M
        elif not self.config.object_branch_bug:
            chosen_M = (plan_MK + self.gumbel(plan_MK)).argmax(1)
        else:
            return self._step_with_bug(g_MD, attr_B, problems, plan_CNK, labels_M)
        self._move(g_MD, ids_M, chosen_M)
        return labels_M.view(2, -1)

    def gumbel(self, plan_MK: Tensor) -> Tensor:
        """Standard Gumbel noise in the shape of ``plan_MK``."""
        return -torch.empty_like(plan_MK).exponential_().log()

    def _step_with_bug(self, g_MD: Tensor, attr_B: Tensor, problems: Problems, plan_CNK: Tensor, labels_M: Tensor) -> Tensor:
        """Object prototype k moves by *attribute* features of images whose *attribute* has index k."""
        B, A = len(attr_B), self.num_attributes
        wrong_B = attr_B < len(self.bank) - A
        ids_M = torch.cat([attr_B, A + attr_B])[torch.cat([torch.ones_like(wrong_B), wrong_B])]
        keep_M = torch.cat([torch.ones_like(wrong_B), wrong_B])
        place_M = torch.arange(B, device=attr_B.device).repeat(2)[keep_M]
        plan_MK = plan_CNK[torch.searchsorted(problems.primitives, ids_M), place_M].to(self.bank.dtype)
        self._move(g_MD[:B].repeat(2, 1)[keep_M], ids_M, (plan_MK + self.gumbel(plan_MK)).argmax(1))
        return labels_M.view(2, -1)

    def problems(self, ids_M: Tensor, attr_B: Tensor, sizes: Sizes | None = None, order: Order | None = None) -> Problems:
        """One transport problem for each primitive in the batch, padded to equal size; :meth:`sizes` is read if it is not given."""
        M, B, device = len(ids_M), len(attr_B), ids_M.device
        if self.config.assign_scope == "batch":
            wanted = ids_M
            if self.config.object_branch_bug:
                wanted = torch.cat([ids_M, self.num_attributes + attr_B[attr_B < len(self.bank) - self.num_attributes]])
            primitives = wanted.unique()
            every_B = torch.arange(B, device=device)
            rows = torch.where(primitives < self.num_attributes, 0, B)[:, None] + every_B
            mask = torch.ones_like(rows, dtype=torch.bool)
            problem = torch.searchsorted(primitives, ids_M)
            return Problems(primitives, rows, mask, ~mask, problem, every_B.repeat(2))
        if sizes is None or order is None:
            sizes, order = self.sizes(ids_M)
        primitives = ids_M.new_empty(sizes.primitives).scatter_(0, order.problem, order.ids)
        counts = torch.searchsorted(order.ids, primitives, right=True) - torch.searchsorted(order.ids, primitives)
        problem, place = torch.empty_like(ids_M), torch.empty_like(ids_M)
        problem[order.rows], place[order.rows] = order.problem, order.place
        filled = counts.clamp(min=self.config.num_prototypes)
        place_N = torch.arange(max(sizes.largest, self.config.num_prototypes), device=device)
        mask, filler = place_N < filled[:, None], place_N >= counts[:, None]
        rows = torch.zeros_like(mask, dtype=torch.long)
        rows[problem, place] = torch.arange(M, device=device)
        return Problems(primitives, rows, mask, mask & filler, problem, place)

    def similarities(self, g_MD: Tensor, problems: Problems) -> Tensor:
        """Cosine of features times length of prototypes, [C', N, K]."""
        return self._products(F.normalize(g_MD, dim=-1), problems)

    def _products(self, unit_MD: Tensor, problems: Problems) -> Tensor:
        near_MC = unit_MD @ self.bank[problems.primitives].flatten(0, 1).T
        near_MCK = near_MC.unflatten(1, (-1, self.config.num_prototypes))
        return near_MCK[problems.rows, torch.arange(len(problems.rows), device=unit_MD.device)[:, None]]

    def plans(self, g_MD: Tensor, problems: Problems) -> Tensor:
        """Transport plans [C', N, K] (with ``assign_method=cosine``: the similarities themselves)."""
        c, unit_MD = self.config, F.normalize(g_MD, dim=-1)
        similarity_CNK = self._products(unit_MD, problems)
        if c.assign_method == "cosine":
            return similarity_CNK
        cost, prior = -similarity_CNK, similarity_CNK
        if c.cost == "log_softmax":
            cost = -(similarity_CNK / c.pcl_tau).log_softmax(2)
            prior = (-cost).exp()
        cost, prior = (x.masked_fill(problems.filler[:, :, None], 0.0) for x in (cost, prior))
        if c.assign_method == "sinkhorn":
            return entropic_plan(cost, c.entropy, problems.mask)
        x_MD = unit_MD if c.structure == "cosine" else g_MD
        structure_CNN = (x_MD @ x_MD.T)[problems.rows[:, :, None], problems.rows[:, None, :]]
        return structured_plan(cost, prior, structure_CNN, c.entropy, c.structure_weight, problems.mask, c.solver).plan

    def _move(self, g_MD: Tensor, ids_M: Tensor, chosen_M: Tensor) -> None:
        """Moving average towards the features that chose each prototype; the others stay."""
        c = self.config
        flat = self.bank.flatten(0, 1)
        slot_M = ids_M * c.num_prototypes + chosen_M
        x_MD = F.normalize(g_MD, dim=-1) if c.ema_mean == "mean" else g_MD
        # Not index_add_, whose order of additions differs from run to run on a GPU.
        sums = torch.zeros_like(flat).index_put_((slot_M,), x_MD, accumulate=True)
        # Not bincount, for which the host waits.
        counts = torch.zeros_like(flat[:, 0]).index_add_(0, slot_M, torch.ones_like(g_MD[:, 0], dtype=flat.dtype))[:, None]
        target = sums / counts.clamp(min=1) if c.ema_mean == "mean" else F.normalize(sums, dim=-1)
        moved = flat * c.momentum + (1 - c.momentum) * target
        if c.proto_normalise:
            moved = F.normalize(moved, dim=-1)
        self.bank.copy_(torch.where(counts > 0, moved, flat).view_as(self.bank))

    @torch.no_grad()
    def remember(self, hidden_2BD: Tensor, attr_B: Tensor, obj_B: Tensor, labels_2B: Tensor) -> None:
        """Write features into the ring buffers of their prototypes, in the order of the batch."""
        if self.without_values:
            return
        ids_M = self.ids(attr_B, obj_B).tolist()
        rows = zip(hidden_2BD.detach().flatten(0, 1), ids_M, labels_2B.flatten().tolist(), strict=True)
        for g_D, c, j in rows:
            place = int(self.ring_place[c, j])
            self.ring[c, j, place] = g_D
            self.ring_place[c, j] = (place + 1) % RING


# -- health --------------------------------------------------------------------------------------------------------
def prototype_cosines(hidden_nD: Tensor, prototypes_KD: Tensor) -> Tensor:
    """Cosines [n, K] of features in the prototypes' space; 0 with a prototype that training never touched."""
    return F.normalize(hidden_nD, dim=-1) @ F.normalize(prototypes_KD, dim=-1).T


def effective_count(prototypes_CKD: Tensor) -> Tensor:
    """exp of the entropy of the eigenvalues of G / K, G the Gram matrix of the unit prototypes: K if orthogonal, 1 if equal. [C]"""
    unit = F.normalize(prototypes_CKD.double(), dim=-1)
    share_CK = torch.linalg.eigvalsh(unit @ unit.mT).clamp(min=0) / unit.shape[1]
    return torch.special.entr(share_CK).sum(1).exp()


def mean_cosine(prototypes_CKD: Tensor) -> Tensor:
    """Mean cosine of two different prototypes of a primitive, [C]; 1 where K = 1."""
    unit = F.normalize(prototypes_CKD.double(), dim=-1)
    K = unit.shape[1]
    return ((unit @ unit.mT).sum((1, 2)) - K) / (K * (K - 1)) if K > 1 else torch.ones(len(unit), dtype=torch.float64)


def health(prototypes_CKD: Tensor, features_MD: Tensor, ids_M: Tensor, min_images: int = 20) -> dict[str, float]:
    """Measure whether prototypes have collapsed, compared with what these features allow.

    Parameters
    ----------
    prototypes_CKD : float tensor
    features_MD : float tensor
        Features of training images in the prototypes' space.
    ids_M : int64 tensor
        Primitive of each feature.
    min_images : int, default 20
        Primitives with fewer images are left out.

    Returns
    -------
    dict
        Means over primitives: ``effective_k``; ``ceiling``, the same of balanced spherical k-means centres of the features; ``ratio``
        of the two (healthy: 0.8 or more); ``cosine``, mean pairwise; ``idle``, the share of prototypes nearest to less than 1 % of
        their primitive's features; ``primitives``, their number.
    """
    K, idle, centres, used = prototypes_CKD.shape[1], [], [], []
    unit_MD = F.normalize(features_MD.to(prototypes_CKD.dtype), dim=-1)
    for c in ids_M.unique().tolist():
        own_nD = unit_MD[ids_M == c]
        if len(own_nD) < max(min_images, K + 1):
            continue
        nearest_n = (own_nD @ F.normalize(prototypes_CKD[c], dim=-1).T).argmax(1)
        idle.append((torch.bincount(nearest_n, minlength=K) < 0.01 * len(own_nD)).double().mean())
        centres.append(torch.from_numpy(balanced_kmeans(own_nD.cpu().numpy(), K, seed=c)[0]))
        used.append(c)
    if not used:
        return {"primitives": 0.0}
    effective, ceiling = effective_count(prototypes_CKD[used]).cpu(), effective_count(torch.stack(centres))
    return {
        "effective_k": float(effective.mean()),
        "ceiling": float(ceiling.mean()),
        "ratio": float((effective / ceiling).mean()),
        "cosine": float(mean_cosine(prototypes_CKD[used]).mean()),
        "idle": float(torch.stack(idle).mean()),
        "primitives": float(len(used)),
    }
