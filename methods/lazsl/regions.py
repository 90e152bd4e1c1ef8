"""Regions of an image: their boxes, and the choice of those that are kept.

Letters: B images, R regions, S image side, D joint width. A box is (left, top, right, bottom) in pixels of the original image.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from czsl.data.augment import id_keys, uniforms
from czsl.data.pixels import Pixels
from methods.features import ImageFeatures
from methods.lazsl.config import LaZSLConfig
from methods.parts.views import crops

# The rounded mean of equal numbers exceeds them in a third of the cases: a blank picture would lose every region.
SLACK = 1e-6
GRID_LEVELS = 3


@dataclass
class RegionFeatures(ImageFeatures):
    """Features of B images: ``pair`` [B, D] of the whole image, and their regions.

    regions : unit features of the kept regions, in their order, then padding, [B, R, D]
    mass : 1 / kept on them, 0 on padding, [B, R]
    kept : which of the sampled regions these are, bool [B, sampled]
    none_kept : images of which the selection would have kept nothing, so that all regions were kept, bool [B]
    compared : what was computed of these images against a bank of phrases, by the bank's identity
    """

    regions: Tensor = field(kw_only=True)
    mass: Tensor = field(kw_only=True)
    kept: Tensor = field(kw_only=True)
    none_kept: Tensor = field(kw_only=True)
    compared: dict[int, Any] = field(default_factory=dict, kw_only=True)


def regions_key(config: LaZSLConfig) -> str:
    """Names the regions that an image gets, for caches; empty without regions."""
    if not config.num_regions:
        return ""
    if config.regions == "file":
        given = json.dumps(config.regions_file, sort_keys=True).encode()
        return f"lazsl-file-{config.num_regions}-{hashlib.blake2b(given, digest_size=10).hexdigest()}"
    seed = f"-{config.region_seed}" if config.regions == "random" else ""
    return f"lazsl-{config.regions}-{config.num_regions}-{config.region_min}-{config.region_max}{seed}"


def boxes_of(size: tuple[int, int], image_id: str, config: LaZSLConfig) -> tuple[np.ndarray, int]:
    """Boxes in an image (width, height), int64 [R, 4], and how many of a file lie outside of it and were dropped."""
    if config.regions != "file":
        return sample_boxes(size, image_id, config), 0
    found = config.table.of(image_id)
    return found.boxes(size, config.num_regions) if found else (np.zeros((0, 4), np.int64), 0)


def sample_boxes(size: tuple[int, int], image_id: str, config: LaZSLConfig) -> np.ndarray:
    """Square boxes inside an image, int64 [R, 4]: a function of (region seed, image name, image size).

    A side is floor(gamma * shorter side of the image), gamma uniform between ``region_min`` and ``region_max``; the place is uniform.
    """
    width, height = size
    if config.regions == "grid":
        gamma_R, x_R, y_R = _grid(config)
    else:
        draws = uniforms(id_keys([image_id]), config.region_seed, 0, 3 * config.num_regions)[0].reshape(-1, 3)
        gamma_R, x_R, y_R = config.region_min + (config.region_max - config.region_min) * draws[:, 0], draws[:, 1], draws[:, 2]
    side_R = np.maximum(np.floor(gamma_R * min(width, height)), 1).astype(np.int64)
    left_R, top_R = (
        np.minimum(np.floor(u_R * (extent - side_R + 1)), extent - side_R).astype(np.int64)
        for u_R, extent in ((x_R, width), (y_R, height))
    )
    return np.stack([left_R, top_R, left_R + side_R, top_R + side_R], axis=1)


def _grid(config: LaZSLConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R evenly chosen squares out of three grids: sides from the largest to the smallest, spread evenly over the image."""
    per_side = int(np.ceil(np.sqrt(config.num_regions / GRID_LEVELS)))
    place = (np.arange(per_side) + 0.5) / max(per_side, 1)
    sides = np.linspace(config.region_max, config.region_min, GRID_LEVELS)
    gamma, y, x = (axis.reshape(-1) for axis in np.meshgrid(sides, place, place, indexing="ij"))
    chosen = np.linspace(0, max(len(gamma) - 1, 0), config.num_regions).round().astype(int)
    return gamma[chosen], x[chosen], y[chosen]


def prepare_views(image: Image.Image, image_id: str, config: LaZSLConfig, pixels: Pixels) -> dict[str, Tensor]:
    """The whole image through CLIP's pipeline, ``images`` [3, S, S], and its ``regions`` [R, 3, S, S], if any.

    R of a region file is its largest number of regions per image; ``present`` [R] marks the image's own, the rest is padding.
    """
    image = image.convert("RGB")
    out = {"images": torch.from_numpy(pixels(image))}
    if not config.num_regions:
        return out
    regions = crops(image, boxes_of(image.size, image_id, config)[0], pixels)
    if config.regions == "file":
        out["present"] = torch.arange(config.max_per_image) < len(regions)
        regions = torch.cat([regions, regions.new_zeros(config.max_per_image - len(regions), *regions.shape[1:])])
    return out | {"regions": regions}


def region_features(features_BF: Tensor, dim: int, config: LaZSLConfig) -> RegionFeatures:
    """Images from packed features [B, (1 + R) * D]; without regions the whole image is the only one.

    A region is kept if its cosine to the whole image is not below the mean over regions (plus ``select_shift``). Features of zeros
    are padding.
    """
    views = normalize(features_BF.unflatten(1, (-1, dim)), dim=-1)
    whole_BD, regions_BRD = views[:, 0], views[:, 1:] if views.shape[1] > 1 else views
    present_BR = regions_BRD.any(2)
    if not present_BR.any(1).all():
        first_BR = torch.arange(regions_BRD.shape[1], device=regions_BRD.device) < 1
        alone_BR = first_BR & ~present_BR.any(1, keepdim=True)
        regions_BRD, present_BR = torch.where(alone_BR[:, :, None], whole_BD[:, None], regions_BRD), present_BR | alone_BR
    likeness_BR = torch.einsum("brd,bd->br", regions_BRD, whole_BD)
    mean_B1 = (likeness_BR * present_BR).sum(1, keepdim=True) / present_BR.sum(1, keepdim=True)
    keep_BR = present_BR & (likeness_BR >= mean_B1 + config.select_shift - SLACK)
    none_B = ~keep_BR.any(1)
    keep_BR = keep_BR | (present_BR & (none_B[:, None] | (not config.select)))
    count_B = keep_BR.sum(1)
    # Kept regions first, in their order, cut to the most that an image keeps.
    order_BR = torch.argsort(~keep_BR, dim=1, stable=True)[:, : int(count_B.max()) if len(count_B) else None]
    regions_BRD = regions_BRD.gather(1, order_BR[:, :, None].expand(-1, -1, dim))
    mass_BR = keep_BR.gather(1, order_BR) / count_B[:, None].to(regions_BRD.dtype)
    return RegionFeatures(whole_BD, regions=regions_BRD, mass=mass_BR, kept=keep_BR, none_kept=none_B & config.select)
