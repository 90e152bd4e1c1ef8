import json
import time
from pathlib import Path

import dense
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from czsl.compositions import SPLITS, CompositionSpace
from czsl.errors import DataError
from czsl.evaluation import threshold_grid
from czsl.evaluation.feasibility import (
    cosine_similarity,
    feasibility_from_glove,
    feasibility_from_vectors,
    feasibility_scores,
    read_feasibility,
    read_rename,
    word_vectors,
)

SPLIT_FOLDER = Path(__file__).parents[4] / "shared" / "data" / "splits"


def _space(seed, attributes, objects, seen):
    rng = np.random.default_rng(seed)
    keys = rng.permutation(attributes * objects)[:seen]
    none = np.empty((0, 2), int)
    names = tuple(f"a{i}" for i in range(attributes)), tuple(f"o{i}" for i in range(objects))
    return CompositionSpace(*names, np.stack(divmod(keys, objects), axis=1), none, none)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6), st.floats(0, 1))
def test_vectorised_is_the_double_loop(seed, attributes, objects, share):
    space = _space(seed, attributes, objects, int(share * attributes * objects))
    rng = np.random.default_rng(seed)
    one, other = (cosine_similarity(rng.normal(size=(n, 3))) for n in (attributes, objects))
    got = feasibility_scores(one, other, space)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, dense.feasibility(one, other, space), atol=1e-7)


def test_size_of_c_gqa_is_quick():
    space = _space(0, 413, 674, 5592)
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    scores = feasibility_from_vectors(rng.normal(size=(413, 300)), rng.normal(size=(674, 300)), space)
    assert time.perf_counter() - start < 2
    assert scores.shape == (278_362,)


@pytest.mark.skipif(not SPLIT_FOLDER.is_dir(), reason="no published splits beside the repository")
@pytest.mark.parametrize(
    ("name", "length", "low", "high", "below"),
    [
        ("mit-states", 28_175, -0.0447, 0.7184, 3),
        ("ut-zappos", 192, 0.3296, 0.8749, 0),
        ("cgqa", 278_362, -0.1346, 0.7791, 8),
    ],
)
def test_published_vectors(name, length, low, high, below):
    folder = SPLIT_FOLDER / name
    lists = {
        f"{s}_pairs": [
            line.split() for line in (folder / "compositional-split-natural" / f"{s}_pairs.txt").read_text().splitlines()
        ]
        for s in SPLITS
    }
    named = [pair for pairs in lists.values() for pair in pairs]
    space = CompositionSpace.from_json(
        {"attributes": sorted({a for a, _ in named}), "objects": sorted({o for _, o in named}), **lists}
    )
    feasibility = read_feasibility(folder / "feasibility.npy", space)
    seen = space.seen_mask(space.open_pairs)
    grid = threshold_grid(feasibility, seen)
    assert len(feasibility) == length
    assert not feasibility[seen].any()
    assert (grid[0], grid[-1]) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert (grid <= 0).sum() == below


def _write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_word_vectors_are_means_of_parts(tmp_path):
    path = _write(tmp_path / "glove.txt", ["the 9 9", "fake 1 0", "leather 0 3", "wet 2 2", "wet 7 7", "broken x y"])
    got = word_vectors(path, ["Wet", "Faux.Leather", "fake leather"], {"Faux.Leather": "fake_leather"})
    assert got.tolist() == [[2, 2], [0.5, 1.5], [0.5, 1.5]]


def test_feasibility_from_a_text_file(tmp_path):
    space = CompositionSpace.from_json(
        {"attributes": ["wet", "dry"], "objects": ["dog", "cat"], "train_pairs": [["wet", "dog"], ["dry", "cat"]]}
    )
    path = _write(tmp_path / "glove.txt", ["wet 1 0", "dry 0 1", "dog 1 1", "cat 1 1"])
    np.testing.assert_allclose(feasibility_from_glove(path, space), [0, 0.5, 0.5, 0], atol=1e-7)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["wet 1 2", "dog 1 nan"], "line 2: 2 numbers"),
        (["wet 1 2", "dog 1"], "line 2: 1 numbers"),
        (["wet 1 two", "dog 1 2"], "line 1: not a word and numbers"),
        (["wet", "dog 1 2"], "no vector for wet"),
        (["dog 1 2"], "no vector for wet"),
    ],
)
def test_hostile_vector_files(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        word_vectors(_write(tmp_path / "glove.txt", lines), ["wet", "dog"])


def test_binary_and_missing_vector_files(tmp_path):
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(300_000))
    with pytest.raises(DataError, match="no vector for wet"):
        word_vectors(tmp_path / "noise", ["wet"])
    with pytest.raises(DataError, match="cannot read"):
        word_vectors(tmp_path / "none", ["wet"])


def test_zero_vector_and_wrong_matrix():
    space = _space(0, 2, 3, 2)
    with pytest.raises(DataError, match="attribute 1 is zero"):
        feasibility_from_vectors(np.array([[1.0, 0], [0, 0]]), np.ones((3, 2)), space)
    with pytest.raises(DataError, match=r"object similarities are not a finite \[3, 3\]"):
        feasibility_scores(np.eye(2), np.eye(2), space)


def test_rename_files(tmp_path):
    assert read_rename(_write(tmp_path / "good.json", [json.dumps({"Faux.Fur": "fake_fur"})])) == {"Faux.Fur": "fake_fur"}
    for content in ('["a"]', '{"a": 1}', "{"):
        with pytest.raises(DataError):
            read_rename(_write(tmp_path / "bad.json", [content]))


def test_feasibility_npy_is_checked(tmp_path):
    space, path = _space(0, 2, 3, 2), tmp_path / "feasibility.npy"
    np.save(path, np.arange(6, dtype=np.float64))
    assert read_feasibility(path, space).tolist() == [0, 1, 2, 3, 4, 5]
    for bad in (np.zeros(5), np.zeros((2, 3)), np.array(["x"] * 6), np.array([0, 1, 2, np.nan, 4, 5])):
        np.save(path, bad)
        with pytest.raises(DataError, match=r"feasibility\.npy"):
            read_feasibility(path, space)
    np.save(path, np.array([{}] * 6), allow_pickle=True)
    with pytest.raises(DataError, match="cannot read"):
        read_feasibility(path, space)
    with pytest.raises(DataError, match="cannot read"):
        read_feasibility(tmp_path / "none.npy", space)
