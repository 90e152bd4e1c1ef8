"""Composition indexes of runs: text embeddings computed by shards on the workers of a cluster, kept in the run folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.work.comm import Group
from cluster.work.progress import Progress, quiet
from czsl.errors import DataError, UsageError
from czsl.precision import allow_tf32
from czsl.reading import read_array
from czsl.retrieval.index import CompositionIndex, concatenate_parts
from czsl.retrieval.storage import describe
from czsl.runs import checkpoint
from czsl.runs.files import sha256_file, write_array
from czsl.runs.run import Run
from methods.fingerprint import fingerprint
from methods.loading import load
from methods.method import TEXT_CHUNK, Method
from methods.registry import config_class

SHARD = 32 * TEXT_CHUNK  # pairs: whole text chunks, so that a shard's rows are those of one long encoding, bit for bit


@dataclass(frozen=True)
class IndexConfig:
    """Settings of a build: the open world of ``run`` at ``checkpoint``; ``kind`` is ``flat`` or ``ivf`` with ``cells``."""

    run: str
    checkpoint: str = "best"
    kind: str = "flat"
    cells: int | None = None
    seed: int = 0


def folder_of(run: Run) -> Path:
    """Return the folder of a run's index."""
    return run.path / "index"


def origin(run: Run, which: str = "best") -> dict[str, Any]:
    """Origin of an index: an index of another origin is stale."""
    facts = {"weights": fingerprint(run, which), "space": sha256_file(run.path / "space.json")}
    if config_class(run.config.method).trains:
        facts["checkpoint"] = checkpoint.find(run.checkpoints, which).name
    return facts


def fresh_index(run: Run, which: str = "best") -> Path | None:
    """The run's index if there is one of this checkpoint."""
    folder = folder_of(run)
    if not (folder / "index.json").is_file():
        return None
    return folder if describe(folder)["meta"].get("origin") == origin(run, which) else None


def compute(plan: IndexConfig, comm: Group, device: torch.device, progress: Progress = quiet) -> None:
    """One worker's part: every world-th shard; then rank 0 makes the index of all."""
    run = Run(plan.run)
    allow_tf32(device, run.config.precision)
    method = load(run, plan.checkpoint, precision=run.precision_on(device)).to(device)
    check_indexable(method)
    pairs_P2 = method.space.open_pairs
    starts, parts = range(0, len(pairs_P2), SHARD), parts_folder(run, plan)
    for i in range(comm.rank, len(starts), comm.world):
        rows = slice(starts[i], starts[i] + SHARD)
        file = parts / f"{i:06d}.npy"
        if _kept(file, len(pairs_P2[rows])) is None:
            write_array(file, _encode(method, pairs_P2[rows], progress, starts[i], len(pairs_P2)))
        progress("encoding compositions", min(rows.stop, len(pairs_P2)), len(pairs_P2))
    comm.gather_objects(None)  # all shards are written
    if comm.rank == 0:
        shards = ((start, read_array(parts / f"{i:06d}.npy")) for i, start in enumerate(starts))
        embeddings_PD = concatenate_parts(shards, len(pairs_P2))
        progress(f"building the {plan.kind} index", 0, 1)
        index = CompositionIndex.build(embeddings_PD, pairs_P2, kind=plan.kind, cells=plan.cells, seed=plan.seed)
        index.save(folder_of(run), {"origin": origin(run, plan.checkpoint), "run": run.path.name})
        progress(f"building the {plan.kind} index", 1, 1)
    comm.gather_objects(None)


def _kept(file: Path, count: int) -> np.ndarray | None:
    """The embeddings of a shard of an interrupted build; None if they are missing or damaged."""
    if not file.exists():
        return None
    try:
        array = read_array(file, mapped=True)
    except DataError:
        return None
    return array if array.ndim == 2 and len(array) == count and array.dtype == np.float32 else None


def check_indexable(method: Method) -> None:
    """UsageError unless the method's scores can be put as a question to an index."""
    if not method.indexable:
        raise UsageError(
            f"{method.name} cannot be indexed",
            "its scores need more than one embedding for each composition",
            "predict with --no-index, which scores all pairs",
        )


@torch.inference_mode()
def _encode(method: Method, pairs_p2: np.ndarray, progress: Progress, done: int, total: int) -> np.ndarray:
    """Embeddings [p, D] of one shard's pairs, in pieces of whole text chunks, with progress."""
    out = []
    for start in range(0, len(pairs_p2), 4 * TEXT_CHUNK):
        piece = torch.from_numpy(pairs_p2[start : start + 4 * TEXT_CHUNK].copy())
        out.append(method.encode_pairs(piece).float().cpu().numpy())
        progress("encoding compositions", done + start + len(piece), total)
    return np.concatenate(out)


def parts_folder(run: Run, plan: IndexConfig) -> Path:
    """Shards of one origin, so that those of another checkpoint are never taken for them."""
    name = hashlib.sha256(json.dumps(origin(run, plan.checkpoint), sort_keys=True).encode()).hexdigest()[:16]
    return run.path / f".index-{name}"
