"""The regions of an image that all labels share: what the loader cuts out, what the tower makes of it, and how it is packed.

Letters: B images, L regions, N patches, D joint width, S image side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from czsl.clip.towers import Towers
from czsl.data.files.regions import RegionTable
from methods.comclip.config import ComCLIPConfig
from methods.comclip.fills import sub_images
from methods.comclip.windows import SEGMENTS, box_mask, grid_boxes, patch_shares, slic_segments
from methods.explanation import centre_square
from methods.features import ImageFeatures
from methods.parts.views import encode_views

SPARE = 2 * SEGMENTS  # rows for segments: SLIC makes about as many as it is asked for


@dataclass
class ComCLIPImages(ImageFeatures):
    """Features of B images: ``pair`` [B, D], the whole image with length 1, and their regions.

    whole : the whole image as the mode wants it, [B, D]
    regions : the regions as the mode wants them, [B, L, D]; the whole image is the last of them where it takes part
    unit : the same with length 1
    present : which of them an image has, bool [B, L]
    attended : tables of words against these images, by what they are of
    """

    whole: Tensor = field(kw_only=True)
    regions: Tensor = field(kw_only=True)
    unit: Tensor = field(kw_only=True)
    present: Tensor = field(kw_only=True)
    attended: dict[Any, Any] = field(default_factory=dict, kw_only=True)


def regions_key(config: ComCLIPConfig) -> str:
    """Names what the kept features depend on; empty for the whole image only."""
    if config.regions == "whole":
        return ""
    if config.regions in ("patch", "superpixel"):
        return f"comclip-{config.regions}"
    key = f"comclip-{config.regions}-{config.fill}"
    if config.regions == "file":
        digest = hashlib.blake2b(json.dumps(config.regions_file, sort_keys=True).encode(), digest_size=8)
        key += f"-{config.max_regions}-{digest.hexdigest()}"
    return key


def file_masks(table: RegionTable, image_id: str, size: tuple[int, int], limit: int) -> list[np.ndarray]:
    """Masks of an image's regions in a file, at most ``limit``, the best scores first; those outside of the image are left out."""
    found = table.of(image_id)
    regions = sorted(found.regions, key=lambda r: -np.inf if r.score is None else -r.score) if found else []
    masks = (region.pixels(size) for region in regions)
    return [mask for mask in masks if mask is not None][:limit]


def prepare_regions(
    image: Image.Image, image_id: str, config: ComCLIPConfig, clip: Towers, table: RegionTable | None
) -> dict[str, Tensor]:
    """``images`` [3, S, S] of CLIP's pipeline, and with sub-images ``regions`` [L, 3, S, S] with ``present`` [L] or, of
    segments, their ``shares`` of patches [L, N]."""
    image = image.convert("RGB")
    pixels = clip.pixels(image)
    out = {"images": torch.from_numpy(pixels)}
    if config.regions == "superpixel":
        shares = patch_shares(slic_segments(pixels), patches_per_side(clip))[:SPARE]
        out["shares"] = torch.from_numpy(np.pad(shares, ((0, SPARE - len(shares)), (0, 0))))
    elif config.regions in ("grid", "file"):
        if config.regions == "grid":
            left, top, right, _ = centre_square(image.size)
            boxes = grid_boxes(left, top, right - left).tolist()
            masks, rows = [box_mask(box, image.size) for box in boxes], len(boxes)
        else:
            assert table is not None
            masks, rows = file_masks(table, image_id, image.size, config.max_regions), config.max_regions
        views = sub_images(image, masks, config.fill, clip.pixels)
        out["regions"] = torch.cat([views, views.new_zeros(rows - len(views), *views.shape[1:])])
        out["present"] = torch.arange(rows) < len(views)
    return out


def patches_per_side(clip: Towers) -> int:
    """Patches along a side of the image."""
    return clip.image_size // int(clip.visual.vit.patch_size[0])


def encode_regions(clip: Towers, batch: Mapping[str, Tensor], config: ComCLIPConfig) -> Tensor:
    """Un-normalised features of images and their regions, packed [B, (1 + L) * D]; a region that an image lacks is 0."""
    if config.regions in ("patch", "superpixel"):
        if config.regions == "superpixel" and "shares" not in batch:
            return encode_views(clip, batch["images"], None)
        whole_BD, patches_BND = (x.to(clip.mean.dtype) for x in clip.visual.dense(clip.normalise(batch["images"])))
        if config.regions == "superpixel":
            # A segment's cosine to a word is the mean of its patches' cosines, but for its own length.
            shares_BLN = batch["shares"].to(patches_BND)
            patches_BND = shares_BLN @ normalize(patches_BND, dim=-1) * whole_BD.norm(dim=-1)[:, None, None]
        return torch.cat([whole_BD[:, None], patches_BND], dim=1).flatten(1)
    if "present" not in batch:
        return encode_views(clip, batch["images"], None)
    rows = []
    for image, regions, present in zip(batch["images"], batch["regions"], batch["present"], strict=True):
        own_F = encode_views(clip, image[None], regions[present][None])[0]
        rows.append(torch.cat([own_F, own_F.new_zeros(int((~present).sum()) * clip.dim)]))
    return torch.stack(rows)


def region_features(features_BF: Tensor, dim: int, config: ComCLIPConfig) -> ComCLIPImages:
    """Images from packed features [B, (1 + L) * D]."""
    views = features_BF.unflatten(1, (-1, dim))
    unit = normalize(views, dim=-1)
    own = unit if config.mode == "unit" else views
    # Regions first; without any the whole image is the only one.
    rows = slice(1, None) if views.shape[1] > 1 else slice(0, 1)
    regions, unit_regions = own[:, rows], unit[:, rows]
    present = (unit_regions != 0).any(-1)
    if views.shape[1] > 1:
        include = config.include_whole | ~present.any(1)
        regions, unit_regions = (torch.cat([x, y[:, :1]], dim=1) for x, y in ((regions, own), (unit_regions, unit)))
        present = torch.cat([present, include[:, None]], dim=1)
    return ComCLIPImages(unit[:, 0], whole=own[:, 0], regions=regions, unit=unit_regions, present=present)
