"""Directions of attributes and objects from image features, in closed form (GDE, Berasi et al., CVPR 2025) or by ridge regression.

Letters: N images, C training pairs, P pairs, A attributes, O objects, D width. Everything is computed in float64 on the CPU, so that
device, workers and order of the images change nothing that float32 shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

Geometry = Literal["sphere", "linear"]
Fit = Literal["mean", "ridge"]

MAX_STEPS, SMALL_STEP = 10, 1e-5  # of the mean on the sphere, as the public code has them
TINY = 1e-12


# -- the sphere --------------------------------------------------------------------------------------------------------
def log_map(at_D: Tensor, points_ND: Tensor) -> Tensor:
    """Tangent vectors [N, D] at a unit vector that lead to unit vectors; 0 for the point itself."""
    cosine_N1 = (points_ND @ at_D)[:, None]
    side_ND = points_ND - cosine_N1 * at_D
    length_N1 = side_ND.norm(dim=1, keepdim=True)
    return torch.where(length_N1 > TINY, torch.atan2(length_N1, cosine_N1) / length_N1.clamp_min(TINY), 0.0) * side_ND


def exp_map(at_D: Tensor, tangents_ND: Tensor) -> Tensor:
    """Unit vectors [N, D] at the end of tangent vectors; ``at_D`` itself for a zero vector."""
    length_N1 = tangents_ND.norm(dim=1, keepdim=True)
    return normalize(length_N1.cos() * at_D + torch.sinc(length_N1 / torch.pi) * tangents_ND, dim=1)


def sphere_mean(points_ND: Tensor, weights_N: Tensor) -> Tensor:
    """The intrinsic mean [D] of weighted unit vectors."""
    weights_N = weights_N / weights_N.sum()
    mean_D = normalize(weights_N @ points_ND, dim=0)
    for _ in range(MAX_STEPS):
        step_D = weights_N @ log_map(mean_D, points_ND)
        mean_D = exp_map(mean_D, step_D[None])[0]
        if step_D.norm() < SMALL_STEP:
            break
    return mean_D


# -- pairs -------------------------------------------------------------------------------------------------------------
def pair_weights(logits_N: Tensor, place_N: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
    """Softmax of logits within each pair, [N], and the logarithm of its denominator, [C]: -inf for a pair without images.

    Parameters
    ----------
    logits_N : float tensor
        Zeros give 1 / n to each of a pair's n images.
    place_N : int64 tensor
        The pair of each image.
    num_pairs : int
        C.
    """
    max_C = logits_N.new_full((num_pairs,), -torch.inf).scatter_reduce(0, place_N, logits_N, "amax")
    shifted_N = (logits_N - max_C[place_N]).exp()
    sum_C = logits_N.new_zeros(num_pairs).index_add_(0, place_N, shifted_N)
    return shifted_N / sum_C[place_N], max_C + sum_C.log()


def weighted_means(values_ND: Tensor, weights_N: Tensor, place_N: Tensor, num_pairs: int) -> Tensor:
    """Sums of weighted rows by pair, [C, D]: means, since a pair's weights sum to 1."""
    return values_ND.new_zeros(num_pairs, values_ND.shape[1]).index_add_(0, place_N, weights_N[:, None] * values_ND)


def solve(means_CD: Tensor, pairs_C2: Tensor, num_attributes: int, num_objects: int, fit: Fit, ridge: float) -> Tensor:
    """Directions [A + O, D] of primitives from the means of pairs; zeros for a primitive without a pair.

    Parameters
    ----------
    means_CD : float tensor
        Means of the pairs that have images, less the mean of all of them.
    pairs_C2 : int64 tensor
        Their attributes and objects.
    fit : str
        ``mean``: the mean over the pairs of a primitive (GDE's form). ``ridge``: the least squares fit of ``d_a + d_o`` to the
        means, so that an attribute's direction holds nothing of the objects that it happens to come with.
    ridge : float
        Weight of the squared length of directions; 0: the shortest of all best fits.
    """
    total = num_attributes + num_objects
    rows_C = torch.arange(len(pairs_C2))
    design_CT = means_CD.new_zeros(len(pairs_C2), total)
    design_CT[rows_C, pairs_C2[:, 0]] = 1
    design_CT[rows_C, num_attributes + pairs_C2[:, 1]] = 1
    sums_TD = design_CT.T @ means_CD
    if fit == "mean":
        return sums_TD / design_CT.sum(0).clamp_min(1)[:, None]
    gram_TT = design_CT.T @ design_CT
    if ridge:
        # A primitive without a pair has a row of zeros: its direction is 0 / ridge.
        return torch.linalg.solve(gram_TT + ridge * torch.eye(total, dtype=gram_TT.dtype), sums_TD)
    found_TD = torch.linalg.pinv(gram_TT, rtol=1e-10, hermitian=True) @ sums_TD
    return torch.where(design_CT.any(0)[:, None], found_TD, 0.0)  # zeros, not their rounding


# -- directions --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Directions:
    """A centre and the directions that lead from it.

    mean : the centre of the images, [D]; a unit vector on the sphere
    attributes, objects : [A, D] and [O, D]; a primitive without images has zeros
    geometry : ``sphere`` or ``linear``
    """

    mean: Tensor
    attributes: Tensor
    objects: Tensor
    geometry: Geometry = "sphere"

    def pairs(self, pairs_P2: Tensor) -> Tensor:
        """Classifier rows [P, D] of index pairs [P, 2]: unit vectors on the sphere; as they are in the linear geometry."""
        moved_PD = self.attributes[pairs_P2[:, 0]] + self.objects[pairs_P2[:, 1]]
        return end_points(self.mean, moved_PD, self.geometry)


def end_points(mean_D: Tensor, moved_PD: Tensor, geometry: Geometry) -> Tensor:
    """Return the end points of moves [P, D] from the centre."""
    return exp_map(mean_D, moved_PD) if geometry == "sphere" else mean_D + moved_PD


def moves(mean_D: Tensor, points_ND: Tensor, geometry: Geometry) -> Tensor:
    """The moves [N, D] from the centre to points: the inverse of :func:`end_points`."""
    return log_map(mean_D, points_ND) if geometry == "sphere" else points_ND - mean_D


def centre(points_ND: Tensor, weights_N: Tensor, geometry: Geometry) -> Tensor:
    """The mean [D] of weighted points."""
    return sphere_mean(points_ND, weights_N) if geometry == "sphere" else weights_N @ points_ND / weights_N.sum()


def directions(
    features: Tensor,
    attr: Tensor,
    obj: Tensor,
    *,
    geometry: Geometry = "sphere",
    weights: Tensor | None = None,
    fit: Fit = "mean",
    ridge: float = 0.0,
) -> Directions:
    """Directions of attributes and objects in closed form.

    Parameters
    ----------
    features : float tensor [N, D]
        Image features; they are normalised.
    attr, obj : int64 tensor [N]
        Labels. Numbers that no image has get a zero direction.
    geometry : str, default "sphere"
        ``sphere``: in the tangent space of the mean on the sphere (GDE). ``linear``: differences of means (LDE).
    weights : float tensor [N], optional
        Non-negative; they are scaled to sum to 1 within each pair, so that every pair counts once. Default: equal weights.
    fit, ridge
        See :func:`solve`.

    Returns
    -------
    Directions
        In the precision of the features.

    Raises
    ------
    ValueError
        No image, shapes that do not fit, a geometry or fit that does not exist, a negative weight or a pair whose weights are all 0.

    References
    ----------
    Berasi et al.: Not Only Text: Exploring Compositionality of Visual Representations in Vision-Language Models, CVPR 2025.
    """
    if geometry not in ("sphere", "linear") or fit not in ("mean", "ridge"):
        raise ValueError(f"geometry is sphere or linear, fit is mean or ridge, not {geometry!r} and {fit!r}")
    if features.ndim != 2 or not len(features) or attr.shape != obj.shape or attr.shape != features.shape[:1]:
        raise ValueError(f"features [N, D], attr [N], obj [N], not {[list(x.shape) for x in (features, attr, obj)]}")
    x_ND = normalize(features.detach().cpu().double(), dim=1)
    labels_N2 = torch.stack([attr, obj], dim=1).cpu().long()
    num_attributes, num_objects = (int(n) + 1 for n in labels_N2.amax(0))
    pairs_C2, place_N = labels_N2.unique(dim=0, return_inverse=True)
    logits_N = x_ND.new_zeros(len(x_ND))
    if weights is not None:
        if weights.shape != attr.shape or not bool((weights >= 0).all()):
            raise ValueError("weights [N] are 0 or more")
        logits_N = weights.cpu().double().log()
    weights_N, mass_C = pair_weights(logits_N, place_N, len(pairs_C2))
    if not bool(mass_C.isfinite().all()):
        raise ValueError("all weights of a pair are 0")
    mean_D = centre(x_ND, weights_N, geometry)
    means_CD = weighted_means(moves(mean_D, x_ND, geometry), weights_N, place_N, len(pairs_C2))
    found_TD = solve(means_CD - means_CD.mean(0), pairs_C2, num_attributes, num_objects, fit, ridge).to(features.dtype)
    return Directions(mean_D.to(features.dtype), found_TD[:num_attributes], found_TD[num_attributes:], geometry)
