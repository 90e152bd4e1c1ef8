"""Score files: the scores of any method, with their labels and label space, as ``NAME.npz`` and ``NAME.json``.

The npz holds ``scores`` [N, P] float32, ``attr``, ``obj``, ``pair`` [N] (true indices), ``pair_attr``, ``pair_obj`` [P] (the pair
of each column) and, in the open world, ``feasibility`` [P]. The json holds ``attrs``, ``objs``, ``train_pairs``, ``val_pairs``,
``test_pairs`` (pairs of names), ``phase`` and ``open_world``; of plain classes ``classes``, ``seen``, ``val`` and ``test``, and
``attr``, ``pair_attr`` are 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from czsl.compositions import CompositionSpace
from czsl.errors import DataError
from czsl.evaluation.candidates import Candidates
from czsl.evaluation.labels import check_labels, locate_labels
from czsl.reading import PathLike, read_arrays, read_json
from czsl.spaces import space_from_json

ARRAYS = ("scores", "attr", "obj", "pair", "pair_attr", "pair_obj", "feasibility")


@dataclass(frozen=True)
class ScoreFile:
    """Scores as read from files; the fields are arguments of :func:`czsl.evaluation.evaluate`.

    Attributes
    ----------
    scores : float [N, P]
    labels : int [N, 2]
    space : CompositionSpace
    pairs : int64 [P, 2]
    split : str
    open_world : bool
    feasibility : float32 [P], optional
    source : str
        Path of the npz.
    """

    scores: np.ndarray
    labels: np.ndarray
    space: CompositionSpace
    pairs: np.ndarray
    split: str
    open_world: bool
    feasibility: np.ndarray | None
    source: str

    def inputs(self) -> dict:
        """The fields by name: ``evaluate(**file.inputs())``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def as_space(space: CompositionSpace | Mapping, source: str = "space") -> CompositionSpace:
    """A label space from itself, from the content of ``space.json``, or from that of a score file's json."""
    if isinstance(space, CompositionSpace):
        return space
    if not isinstance(space, Mapping):
        raise DataError(f"{source} is not a label space", f"it is a {type(space).__name__}", "give the content of space.json")
    if "attrs" in space:
        space = {**space, "attributes": space["attrs"], "objects": space.get("objs")}
    return space_from_json(dict(space), source)


def read_space(path: PathLike) -> CompositionSpace:
    """A label space from a file: ``space.json``, or the JSON file next to a score file; DataError names file and place."""
    path = Path(path)
    return as_space(_read_json(Path(path)), str(path))


def read_scores(npz: PathLike, space_json: PathLike, split: str | None = None, open_world: bool | None = None) -> ScoreFile:
    """Read scores and their label space.

    Parameters
    ----------
    npz : path
    space_json : path
        The JSON file next to the npz, or a dataset's ``space.json``.
    split : {"val", "test"}, optional
        Default: the json's ``phase``, else ``test``.
    open_world : bool, optional
        Default: the json's ``open_world``, else whether the npz has a ``feasibility``.

    Raises
    ------
    DataError
        A file that is missing, broken, or contradicts itself; the message names file and place.
    """
    npz, space_json = Path(npz), Path(space_json)
    content = _read_json(Path(space_json))
    space = as_space(content, str(space_json))
    arrays = read_arrays(Path(npz), ARRAYS)
    source = str(npz)
    pairs_P2 = _columns(arrays, "pair_attr", "pair_obj", source)
    labels_N2 = _columns(arrays, "attr", "obj", source)
    scores_NP = _member(arrays, "scores", source)
    if scores_NP.shape != (len(labels_N2), len(pairs_P2)) or not np.issubdtype(scores_NP.dtype, np.floating):
        raise DataError(
            f"{source}: scores are {scores_NP.dtype} of shape {list(scores_NP.shape)}",
            f"there are {len(labels_N2)} images and {len(pairs_P2)} pairs",
            "give floating-point scores [N, P]",
        )
    feasibility = arrays.get("feasibility")
    split = split or str(content.get("phase", "test"))
    if open_world is None:
        open_world = content.get("open_world", feasibility is not None)
        if not isinstance(open_world, bool):
            raise DataError(f"{space_json}: open_world is {open_world!r}", "it is neither true nor false", "write true or false")
    candidates = Candidates.build(
        space, pairs_P2, split=split, open_world=open_world, feasibility=feasibility if open_world else None, source=source
    )
    columns_N = locate_labels(check_labels(labels_N2, candidates, source), candidates, source)
    if "pair" in arrays:
        pair_N = _vector(arrays, "pair", source)
        wrong = np.flatnonzero(pair_N != columns_N) if len(pair_N) == len(columns_N) else np.array([len(pair_N)])
        if wrong.size:
            raise DataError(
                f"{source}: the pair of image {wrong[0]} is not the column of its attr and obj",
                f"{len(pair_N)} pairs, {len(columns_N)} images",
                "is the pair an index into pair_attr and pair_obj?",
            )
    return ScoreFile(scores_NP, labels_N2, space, candidates.pairs, split, open_world, candidates.feasibility, source)


def write_scores(
    path: PathLike,
    scores,
    labels,
    space: CompositionSpace | Mapping,
    pairs=None,
    *,
    split: str = "test",
    open_world: bool = False,
    feasibility=None,
) -> tuple[Path, Path]:
    """Write ``path`` (with the suffix .npz) and the JSON file next to it; arguments as for :func:`czsl.evaluation.evaluate`.

    Returns
    -------
    tuple of Path
        The npz and the json, which :func:`read_scores` takes.
    """
    path = Path(path)
    space = as_space(space)
    candidates = Candidates.build(space, pairs, split=split, open_world=open_world, feasibility=feasibility)
    labels_N2 = check_labels(labels, candidates)
    scores_NP = np.asarray(scores, np.float32)
    if scores_NP.shape != (len(labels_N2), len(candidates.pairs)):
        raise ValueError(f"scores of shape {list(scores_NP.shape)} for {len(labels_N2)} images and {len(candidates.pairs)} pairs")
    arrays = {
        "scores": scores_NP,
        "attr": labels_N2[:, 0],
        "obj": labels_N2[:, 1],
        "pair": locate_labels(labels_N2, candidates),
        "pair_attr": candidates.pairs[:, 0],
        "pair_obj": candidates.pairs[:, 1],
    }
    if candidates.feasibility is not None:
        arrays["feasibility"] = candidates.feasibility
    short = {"attributes": "attrs", "objects": "objs"}
    named = {short.get(key, key): value for key, value in space.to_json().items()}
    content = {"name": Path(path).stem, "phase": split, "open_world": open_world, **named}
    npz, beside = Path(path).with_suffix(".npz"), Path(path).with_suffix(".json")
    np.savez(npz, allow_pickle=False, **arrays)
    beside.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return npz, beside


def _read_json(path: Path) -> dict:
    content = read_json(path, head="cannot read {path}", fix="give the json of the scores or a space.json")
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a label space", f"it holds a {type(content).__name__}", "give a space.json")
    return content


def _member(arrays: dict[str, np.ndarray], name: str, source: str) -> np.ndarray:
    if name not in arrays:
        raise DataError(
            f"{source} has no array {name!r}",
            f"it holds {', '.join(arrays) or 'no known array'}",
            "write the file with czsl.evaluation.write_scores, or see docs/evaluation.md for its arrays",
        )
    return arrays[name]


def _vector(arrays: dict[str, np.ndarray], name: str, source: str) -> np.ndarray:
    values = _member(arrays, name, source)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise DataError(
            f"{source}: {name} is {values.dtype} of shape {list(values.shape)}",
            "it holds one index per row",
            "give a vector of integers",
        )
    return values


def _columns(arrays: dict[str, np.ndarray], first: str, second: str, source: str) -> np.ndarray:
    one, other = _vector(arrays, first, source), _vector(arrays, second, source)
    if len(one) != len(other):
        raise DataError(
            f"{source}: {first} has {len(one)} values and {second} has {len(other)}",
            "together they name one pair per row",
            "give both the same length",
        )
    return np.stack([one, other], axis=1)
