"""Training augmentation on tensors: flip, perspective and small rotation, in one resampling.

CSP's successors augment with HorizontalFlip(0.5), RandomPerspective(distortion 0.5, p 0.5) and RandomRotation(5 degrees). Here the
three are one homography and one bilinear sampling, on the device that holds the images. Every draw is a function of (seed, epoch,
image id): it depends neither on the batch nor on the worker. Letters: B images, S image side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from czsl.gpus import onto

DISTORTION, MAX_DEGREES = 0.5, 5.0
VERSION = 1  # part of the name of kept features of augmented images: counts changes of what :func:`augment` gives
DRAWS = 11  # flip, perspective, angle, eight corner shifts


def id_keys(ids: Sequence[str]) -> np.ndarray:
    """A 64-bit key per image, from its name only, uint64 [n]."""
    digests = (hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection that scatters neighbouring integers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(keys_B: np.ndarray, seed: int, epoch: int, draws: int = DRAWS) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [B, draws], a function of (seed, epoch, key)."""
    with np.errstate(over="ignore"):
        stream = _mix(np.array([seed], np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(epoch + 1))
        counter = np.arange(1, draws + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = _mix(_mix(keys_B ^ stream)[:, None] + counter[None])
    return (bits >> np.uint64(11)).astype(np.float64) / 2.0**53


def _homographies(u_Bn: np.ndarray) -> np.ndarray:
    """Maps from output to input points in coordinates [-1, 1], [B, 3, 3]: rotation, then perspective, then flip, read backwards."""
    n = len(u_Bn)
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    shift = u_Bn[:, 3:11].reshape(n, 4, 2) * DISTORTION * (u_Bn[:, 1] < 0.5)[:, None, None]
    moved = corners - np.sign(corners) * shift  # where each corner of the input comes to lie
    rows = np.zeros((n, 8, 8))
    rows[:, 0::2, 0:2], rows[:, 0::2, 2] = moved, 1
    rows[:, 1::2, 3:5], rows[:, 1::2, 5] = moved, 1
    rows[:, 0::2, 6:8] = -moved * corners[None, :, :1]
    rows[:, 1::2, 6:8] = -moved * corners[None, :, 1:]
    h = np.linalg.solve(rows, np.broadcast_to(corners.reshape(1, 8, 1), (n, 8, 1)))[..., 0]
    perspective = np.concatenate([h, np.ones((n, 1))], axis=1).reshape(n, 3, 3)
    angle = np.deg2rad((2 * u_Bn[:, 2] - 1) * MAX_DEGREES)
    rotation = np.zeros((n, 3, 3))
    rotation[:, 0, 0] = rotation[:, 1, 1] = np.cos(angle)
    rotation[:, 0, 1], rotation[:, 1, 0] = -np.sin(angle), np.sin(angle)
    rotation[:, 2, 2] = 1
    flip = np.where(u_Bn[:, 0] < 0.5, -1.0, 1.0)[:, None, None] * np.eye(3)[:1]
    return np.concatenate([flip, np.broadcast_to(np.eye(3)[1:], (n, 2, 3))], axis=1) @ perspective @ rotation


def augment(images_B3SS: Tensor, keys_B: np.ndarray, seed: int, epoch: int) -> Tensor:
    """Augmented uint8 images [B, 3, S, S]; what falls outside the frame is black. ``epoch`` counts them: it may be a copy's number."""
    if not len(images_B3SS):
        return images_B3SS
    size = images_B3SS.shape[-1]
    map_B33 = onto(torch.from_numpy(_homographies(uniforms(keys_B, seed, epoch)).astype(np.float32)), images_B3SS.device)
    centre = (torch.arange(size, device=images_B3SS.device, dtype=torch.float32) * 2 + 1) / size - 1
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    points_N3 = torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3)
    mapped_BN3 = points_N3 @ map_B33.transpose(1, 2)
    grid = (mapped_BN3[..., :2] / mapped_BN3[..., 2:].clamp_min(1e-6)).reshape(-1, size, size, 2)
    out = F.grid_sample(images_B3SS.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return out.round_().clamp_(0, 255).to(torch.uint8)
