"""Feasibility of unseen pairs: could this attribute go with this object, judged by what was seen?

From *Open World Compositional Zero-Shot Learning* (Mancini et al., 2021) as CSP and Troika use it: the mean of two maxima, the
similarity of the object to objects seen with the attribute and of the attribute to attributes seen with the object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from czsl.compositions import CompositionSpace
from czsl.errors import DataError
from czsl.reading import PathLike, read_array, read_json

MAX_LINE_BYTES = 1 << 16  # bytes; a line of 300 numbers has about 3,000


def feasibility_scores(similarity_AA: np.ndarray, similarity_OO: np.ndarray, space: CompositionSpace) -> np.ndarray:
    """Feasibility of every pair of the open world, float32 [A * O] in attribute-major order; 0 on seen pairs.

    For an unseen pair (a, o): the mean of max sim(o, o') over objects o' seen with a and max sim(a, a') over attributes a' seen
    with o, where a maximum over nothing is -1.

    Parameters
    ----------
    similarity_AA : float [A, A]
        Similarities of attributes, such as cosines, all at least -1.
    similarity_OO : float [O, O]
        Similarities of objects.
    space : CompositionSpace
        Its training pairs are the seen ones.

    Raises
    ------
    DataError
        If a matrix has the wrong shape or values that are not finite.
    """
    for kind, matrix, size in (
        ("attribute", similarity_AA, space.num_attributes),
        ("object", similarity_OO, space.num_objects),
    ):
        if np.shape(matrix) != (size, size) or not np.isfinite(matrix).all():
            raise DataError(
                f"the {kind} similarities are not a finite [{size}, {size}] matrix",
                f"shape {list(np.shape(matrix))}",
                f"give one row for each of the {size} {kind}s",
            )
    seen_attr, seen_obj = space.train_pairs.T
    # An unseen pair is not among its own partners, so the primitive itself needs no exclusion.
    by_object_AO = _best_partner(similarity_OO, seen_attr, seen_obj, space.num_attributes)
    by_attribute_OA = _best_partner(similarity_AA, seen_obj, seen_attr, space.num_objects)
    scores_AO = (by_object_AO + by_attribute_OA.T) / 2
    scores_AO[seen_attr, seen_obj] = 0
    return scores_AO.astype(np.float32).reshape(-1)


def _best_partner(similarity_XX: np.ndarray, given: np.ndarray, partner: np.ndarray, size: int) -> np.ndarray:
    """[size, X]: for each given primitive and each x, the best similarity of x to a seen partner of the given one; else -1."""
    best = np.full((size, len(similarity_XX)), -1.0)
    if given.size:
        order = np.argsort(given, kind="stable")
        present, starts = np.unique(given[order], return_index=True)
        best[present] = np.maximum.reduceat(np.asarray(similarity_XX)[partner[order]], starts, axis=0)
    return np.maximum(best, -1.0)


def cosine_similarity(vectors_XD: np.ndarray, kind: str = "primitive") -> np.ndarray:
    """Cosines between the rows of [X, D], float64 [X, X].

    Raises
    ------
    DataError
        If a row is zero or not finite, named by its place.
    """
    vectors_XD = np.asarray(vectors_XD, np.float64)
    norm_X = np.linalg.norm(vectors_XD, axis=-1)
    bad = np.flatnonzero(~(np.isfinite(norm_X) & (norm_X > 0)))
    if bad.size:
        raise DataError(f"the vector of {kind} {bad[0]} is zero or not finite", "it has no direction", "give another vector")
    unit = vectors_XD / norm_X[:, None]
    return unit @ unit.T


def feasibility_from_vectors(attributes_AD: np.ndarray, objects_OD: np.ndarray, space: CompositionSpace) -> np.ndarray:
    """Feasibility [A * O] from vectors of the primitives: word vectors, or a text encoder's embeddings of their prompts."""
    attributes, objects = cosine_similarity(attributes_AD, "attribute"), cosine_similarity(objects_OD, "object")
    return feasibility_scores(attributes, objects, space)


def feasibility_from_glove(path: PathLike, space: CompositionSpace, rename: Mapping[str, str] | None = None) -> np.ndarray:
    """Feasibility [A * O] from a text file of word vectors (see :func:`word_vectors`)."""
    path = Path(path)
    names = (*space.attributes, *space.objects)
    vectors = word_vectors(path, names, rename)
    return feasibility_from_vectors(vectors[: space.num_attributes], vectors[space.num_attributes :], space)


def word_vectors(path: PathLike, names: Sequence[str], rename: Mapping[str, str] | None = None) -> np.ndarray:
    """Vectors of names from a text file with ``word number number ...`` lines, as GloVe comes; float64 [n, D].

    A name is renamed, lowered, split at ``_`` and spaces, and gets the mean of its parts' vectors. Only lines of words that are
    needed are parsed; the first line of a word counts.

    Parameters
    ----------
    path : path
    names : sequence of str
    rename : dict, optional
        Name -> words to look up instead, for names that the file does not have (``Faux.Leather`` -> ``fake_leather``).

    Raises
    ------
    DataError
        No such file, a line that is not a word and D finite numbers (by line number), or names without a vector.
    """
    path = Path(path)
    rename = rename or {}
    parts = [[p for p in re.split(r"[_\s]+", rename.get(name, name).lower()) if p] for name in names]
    needed = {part.encode() for words in parts for part in words}
    found: dict[bytes, np.ndarray] = {}
    width = 0
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
                word, _, rest = line.partition(b" ")
                if word in needed and word not in found:
                    found[word] = _parse_vector(rest, width, f"{path}, line {number}")
                    width = len(found[word])
    except OSError as error:
        raise DataError(f"cannot read {path}", str(error), "give a text file of word vectors") from None
    missing = sorted(
        {name for name, words in zip(names, parts, strict=True) if not words or any(w.encode() not in found for w in words)}
    )
    if missing:
        raise DataError(
            f"{path} has no vector for {', '.join(missing[:10])}",
            f"{len(missing)} names lack a word",
            'map them to words of the file with a rename file: {"Faux.Leather": "fake_leather"}',
        )
    return np.stack([np.mean([found[word.encode()] for word in words], axis=0) for words in parts])


def _parse_vector(text: bytes, width: int, place: str) -> np.ndarray:
    try:
        vector = np.array([float(value) for value in text.split()])
    except ValueError as error:
        raise DataError(f"{place}: not a word and numbers", str(error), "give a text file of word vectors") from None
    if not vector.size or not np.isfinite(vector).all() or (width and len(vector) != width):
        raise DataError(f"{place}: {len(vector)} numbers", f"{width or 'some'} finite ones are needed", "is the file cut?")
    return vector


def read_rename(path: PathLike) -> dict[str, str]:
    """Read a rename file: a JSON object of name -> words."""
    path = Path(path)
    content = read_json(path, head="cannot read {path}", fix="give a JSON object of name: words")
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise DataError(
            f"{path} is not a JSON object of names and words", "each name needs a text", 'write {"Faux.Leather": "fake_leather"}'
        )
    return content


def read_feasibility(path: PathLike, space: CompositionSpace) -> np.ndarray:
    """Read ``feasibility.npy``, one finite number for each pair of the open world in attribute-major order; float32 [A * O].

    Raises
    ------
    DataError
        No such file, no plain numeric array, or another length.
    """
    path = Path(path)
    values = read_array(path)
    expected = space.num_attributes * space.num_objects
    if values.dtype.kind not in "fiu" or values.shape != (expected,):
        raise DataError(
            f"{path} holds {values.dtype} of shape {list(values.shape)}",
            f"the space has {space.num_attributes} x {space.num_objects} = {expected} pairs",
            "give one number for each pair, attribute by attribute",
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise DataError(
            f"{path}: value {bad[0]} ({space.pair_name(divmod(int(bad[0]), space.num_objects))}) is {values[bad[0]]}",
            "feasibilities are compared with one another",
            "give finite numbers",
        )
    return values.astype(np.float32)
