import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from czsl.errors import DataError, UsageError
from czsl.retrieval import index as index_module
from czsl.retrieval.index import CompositionIndex, concatenate_parts
from czsl.retrieval.topk import top_compositions
from czsl.runs.files import sha256_file

META = {"run": "runs/troika", "checkpoint": "ab" * 32, "attributes": ["dry", "näss"]}


def made(kind="ivf", attributes=12, objects=15, dim=8, seed=0, **options):
    make = np.random.default_rng(seed)
    pairs = np.stack(np.divmod(np.arange(attributes * objects), objects), axis=1)
    vectors = make.normal(size=(len(pairs), dim)).astype(np.float32)
    return CompositionIndex.build(vectors, pairs, kind, seed=seed, **options), vectors, pairs


@pytest.fixture(params=["flat", "ivf"])
def saved(request, tmp_path):
    index, vectors, _ = made(request.param)
    index.save(tmp_path / "index", META)
    return tmp_path / "index", index, vectors


def rewrite(folder, name=None, array=None, **facts):
    """Edit an index as somebody would who knows the format: hashes and sizes are right again."""
    content = json.loads((folder / "index.json").read_text())
    if name:
        np.save(folder / f"{name}.npy", array)
        path = folder / f"{name}.npy"
        content["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (folder / "index.json").write_text(json.dumps(content | facts))


# -- building ----------------------------------------------------------------------------------------------------------
def test_cells_hold_every_pair_once_within_their_radius():
    index, vectors, pairs = made("ivf")
    assert index.cells == 13  # the root of 180
    np.testing.assert_array_equal(np.sort(index.order), np.arange(len(pairs)))
    np.testing.assert_array_equal(index.vectors, vectors[index.order])
    np.testing.assert_array_equal(index.embeddings(np.array([7, 0, 99])), vectors[[7, 0, 99]])
    for cell in range(index.cells):
        members = vectors[index.order[index.starts[cell] : index.starts[cell + 1]]].astype(np.float64)
        np.testing.assert_allclose(index.centroids[cell], members.mean(0), atol=1e-6)


def test_the_seed_decides_the_cells():
    first, again, other = (
        made("ivf", seed=0)[0],
        made("ivf", seed=0)[0],
        CompositionIndex.build(*made("flat")[1:], "ivf", seed=1),
    )
    np.testing.assert_array_equal(first.order, again.order)
    np.testing.assert_array_equal(first.centroids, again.centroids)
    assert not np.array_equal(first.order, other.order)


def test_planted_clusters_become_cells():
    make = np.random.default_rng(0)
    modes, label = np.eye(5, 16), np.arange(400) % 5
    vectors = (modes[label] + 0.01 * make.normal(size=(400, 16))).astype(np.float32)
    index = CompositionIndex.build(vectors, np.stack(np.divmod(np.arange(400), 20), axis=1), "ivf", cells=5)
    assert np.linalg.norm(index.vectors - np.repeat(index.centroids, np.diff(index.starts), axis=0), axis=1).max() < 0.1
    assert sorted(np.diff(index.starts)) == [80] * 5


def test_as_many_cells_as_pairs_and_equal_embeddings():
    pairs = np.stack(np.divmod(np.arange(30), 6), axis=1)
    index = CompositionIndex.build(np.ones((30, 4), np.float32), pairs, "ivf", cells=30)
    assert 1 <= index.cells <= 30
    assert index.starts[-1] == 30


def test_a_flat_index_keeps_the_array():
    index, vectors, _ = made("flat")
    assert index.vectors is vectors
    assert index.kind == "flat"
    assert index.longest == pytest.approx(np.linalg.norm(vectors, axis=1).max())


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_places_of_pairs(kind):
    pairs = np.array([[3, 1], [0, 2], [900_000, 0], [0, 0]])
    index = CompositionIndex.build(np.eye(4, dtype=np.float32), pairs, kind)
    np.testing.assert_array_equal(index.locate([[0, 0], [3, 1], [1, 1], [900_000, 0]]), [3, 0, -1, 2])
    np.testing.assert_array_equal(index.locate(pairs.reshape(2, 2, 2)), [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("embeddings", "pairs", "error"),
    [
        (np.ones((3, 4), np.float32), [[0, 0], [0, 1]], "2 pairs"),
        (np.ones(2, np.float32), [[0, 0], [0, 1]], "2 pairs"),
        (np.ones((2, 0), np.float32), [[0, 0], [0, 1]], "2 pairs"),
        (np.ones((2, 4), int), [[0, 0], [0, 1]], "int64"),
        (np.ones((2, 4)), [[0, 0], [0, 0]], "pair 1 .* twice"),
        (np.ones((2, 4)), [[0, 0], [0, -1]], "pair 1"),
        (np.ones((2, 4)), [[0, 0], [0, 2**40]], "pair 1"),
        (np.ones((2, 4)), [[0.0, 0], [0, 1]], "integers"),
        (np.ones((0, 4)), np.empty((0, 2), int), "at least one"),
        (np.array([[1.0, 2], [np.nan, 0]]), [[0, 0], [0, 1]], "row 1 is not finite"),
        (np.array([[np.inf, 2], [0, 0]]), [[0, 0], [0, 1]], "row 0 is not finite"),
    ],
)
def test_input_that_does_not_fit(embeddings, pairs, error):
    with pytest.raises((DataError, ValueError), match=error):
        CompositionIndex.build(embeddings, np.array(pairs))


@pytest.mark.parametrize("options", [{"kind": "hnsw"}, {"kind": "ivf", "cells": 0}, {"kind": "ivf", "cells": 181}, {"cells": 5}])
def test_impossible_options(options):
    _, vectors, pairs = made("flat")
    with pytest.raises((UsageError, ValueError)):
        CompositionIndex.build(vectors, pairs, **options)


# -- parts -------------------------------------------------------------------------------------------------------------
def test_parts_give_the_bits_of_one_build():
    _, vectors, pairs = made("flat")
    cuts = [0, 1, 50, 50, 120, 180]
    parts = [(a, vectors[a:b]) for a, b in itertools.pairwise(cuts)]
    joined = concatenate_parts((parts[i] for i in (3, 0, 4, 2, 1)), len(pairs))
    assert joined.tobytes() == vectors.tobytes()
    one, many = CompositionIndex.build(vectors, pairs, "ivf"), CompositionIndex.build(joined, pairs, "ivf")
    for name in ("vectors", "order", "starts", "centroids"):
        assert getattr(one, name).tobytes() == getattr(many, name).tobytes()


@pytest.mark.parametrize(
    ("spans", "error"),
    [
        ([(0, 10), (12, 20)], "pair 10 is in no part"),
        ([(0, 10), (9, 20)], "pair 9 is in two parts"),
        ([(0, 20), (5, 6)], "pair 5 is in two parts"),
        ([(0, 19)], "pair 19 is in no part"),
        ([(1, 20)], "pair 0 is in no part"),
        ([(0, 21)], "from pair 0"),
        ([(-1, 20)], "from pair -1"),
        ([], "pair 0 is in no part"),
    ],
)
def test_parts_that_do_not_make_a_whole(spans, error):
    with pytest.raises(ValueError, match=error):
        concatenate_parts([(start, np.ones((stop - start, 3), np.float32)) for start, stop in spans], 20)
    with pytest.raises(ValueError, match="one width"):
        concatenate_parts([(0, np.ones((10, 3))), (10, np.ones((10, 4)))], 20)


# -- files -------------------------------------------------------------------------------------------------------------
def test_round_trip(saved):
    folder, index, vectors = saved
    loaded = CompositionIndex.load(folder)
    assert loaded.meta == META
    assert (loaded.kind, len(loaded), loaded.dim, loaded.cells) == (index.kind, 180, 8, index.cells)
    assert isinstance(loaded.vectors, np.memmap)
    queries = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    before, after = top_compositions(index, queries), top_compositions(loaded, queries)
    np.testing.assert_array_equal(before.places, after.places)
    np.testing.assert_array_equal(before.scores, after.scores)
    np.testing.assert_array_equal(loaded.embeddings(np.arange(180)), vectors)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["index"]


def test_saving_again_replaces_even_what_is_in_use(saved):
    folder, _, vectors = saved
    loaded = CompositionIndex.load(folder)
    made("flat", seed=9)[0].save(folder)
    loaded.save(folder)
    again = CompositionIndex.load(folder)
    assert again.meta == META
    np.testing.assert_array_equal(again.embeddings(np.arange(180)), vectors)


def test_same_content_same_files(saved, tmp_path):
    folder, index, _ = saved
    index.save(tmp_path / "other", META)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


def test_what_is_no_index_is_not_replaced(tmp_path):
    index = made("flat")[0]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(UsageError, match="other files"):
            index.save(tmp_path / name)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    index.save(tmp_path / "file.d" / "deep")
    assert len(CompositionIndex.load(tmp_path / "file.d" / "deep")) == 180


@pytest.mark.parametrize("meta", [{"x": np.ones(2)}, {"x": float("nan")}])
def test_meta_that_is_not_json(tmp_path, meta):
    with pytest.raises(UsageError, match="JSON"):
        made("flat")[0].save(tmp_path / "index", meta)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_index(saved, monkeypatch):
    folder, index, _ = saved

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("czsl.retrieval.storage.write_json", full)
    with pytest.raises(OSError, match="space"):
        made("flat", seed=3)[0].save(folder)
    monkeypatch.undo()
    assert [path.name for path in folder.parent.iterdir()] == ["index"]
    np.testing.assert_array_equal(CompositionIndex.load(folder).vectors, index.vectors)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="not an index"):
        CompositionIndex.load(tmp_path / "nowhere")


def test_every_file_missing_cut_or_changed(saved, tmp_path):
    folder, index, _ = saved
    names = [path.name for path in folder.iterdir()]
    assert len(names) == (3 if index.kind == "flat" else 6)
    for name in names:
        for harm in ("missing", "cut", "changed"):
            copy = tmp_path / f"{name}-{harm}"
            shutil.copytree(folder, copy)
            path, content = copy / name, (copy / name).read_bytes()
            if harm == "missing":
                path.unlink()
            elif harm == "cut":
                path.write_bytes(content[:-5])
            else:
                path.write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])
            with pytest.raises(DataError) as caught:
                CompositionIndex.load(copy)
            assert name in str(caught.value), (name, harm)


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"format": "other"}', "\udcff"])
def test_index_json_of_any_kind(tmp_path, content):
    (tmp_path / "index.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"index\.json"):
        CompositionIndex.load(tmp_path)


@pytest.mark.parametrize(
    "facts",
    [
        {"kind": "tree"},
        {"kind": ["ivf"]},
        {"version": 1},
        {"pairs": 181},
        {"pairs": 0},
        {"pairs": True},
        {"dim": "8"},
        {"dim": 2**50},
        {"files": []},
        {"files": {}},
        {"meta": 3},
    ],
)
def test_index_json_that_contradicts_the_arrays(tmp_path, facts):
    made("ivf")[0].save(tmp_path / "index")
    rewrite(tmp_path / "index", **facts)
    with pytest.raises(DataError):
        CompositionIndex.load(tmp_path / "index")


def replaced(array, place, value):
    array = np.array(array)
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("vectors", lambda x: replaced(x.vectors, (4, 1), np.nan), "row 4 is not finite"),
        ("vectors", lambda x: x.vectors[:-1], "shape"),
        ("vectors", lambda x: x.vectors.astype(np.float64), "float64"),
        ("vectors", lambda x: np.asfortranarray(x.vectors), "float32"),
        ("vectors", lambda x: np.array([{"a": 1}], dtype=object), "cannot read"),
        ("pairs", lambda x: x.pairs.astype(np.int32), "int32"),
        ("pairs", lambda x: replaced(x.pairs, 3, [0, 0]), "pair 3 .* twice"),
        ("pairs", lambda x: replaced(x.pairs, 3, [-1, 0]), "pair 3"),
        ("order", lambda x: replaced(x.order, 0, x.order[1]), "not a permutation"),
        ("order", lambda x: replaced(x.order, 0, 10**9), "not a permutation"),
        ("starts", lambda x: replaced(x.starts, 1, 10**6), "starts"),
        ("starts", lambda x: replaced(x.starts, -1, 3), "starts"),
        ("starts", lambda x: x.starts[::-1].copy(), "starts"),
        ("centroids", lambda x: replaced(x.centroids, (0, 0), np.inf), "not finite"),
    ],
)
def test_arrays_that_are_wrong_though_their_hashes_are_right(tmp_path, name, change, error):
    index = made("ivf")[0]
    index.save(tmp_path / "index")
    rewrite(tmp_path / "index", name, change(index))
    with pytest.raises(DataError, match=error):
        CompositionIndex.load(tmp_path / "index")


def test_nothing_is_unpickled(tmp_path):
    """A pickle that would leave a trace if it were ever loaded."""
    index = made("flat")[0]
    index.save(tmp_path / "index")

    class Trace:
        def __reduce__(self):
            return (open, (str(tmp_path / "trace"), "w"))

    rewrite(tmp_path / "index", "pairs", np.array([Trace()], dtype=object))
    with pytest.raises(DataError, match="cannot read"):
        CompositionIndex.load(tmp_path / "index")
    assert not (tmp_path / "trace").exists()


# -- GPUs --------------------------------------------------------------------------------------------------------------
def test_without_a_gpu_the_cpu_searches(monkeypatch):
    monkeypatch.setattr(index_module, "gpu_there", lambda: False)
    _, vectors, pairs = made("flat")
    assert CompositionIndex.build(vectors, pairs, gpu=True).on_gpu is None
    assert CompositionIndex.build(vectors, pairs).gpu is False


def test_a_gpu_that_is_too_small_is_left_alone(monkeypatch, caplog):
    import faiss

    def full(*_, **__):
        raise RuntimeError("Error in StandardGpuResources: out of memory\ndetails")

    monkeypatch.setattr(index_module, "gpu_there", lambda: True)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", full)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", type("Options", (), {}), raising=False)
    index, vectors, _ = made("flat")
    assert index.gpu
    result = top_compositions(index, vectors[:3], k=1)
    assert result.scores[:, 0].tolist() == pytest.approx((vectors[:3] @ vectors.T).max(1).tolist())
    assert "searching on the CPU" in caplog.text


def test_the_lines_of_the_document_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = Path(__file__).parents[3] / "docs" / "retrieval.md"
    code = re.search(r"## In Python\n\n```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL).group(1)
    names = {}
    exec(compile(code, str(document), "exec"), names)
    assert names["found"].places.shape == (3, 5)
    assert names["found"].exact
