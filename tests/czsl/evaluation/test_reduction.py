import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
from random_problems import make_problem

from czsl.errors import DataError
from czsl.evaluation import Candidates, Curve, Extremes, SavedEvaluation, at_threshold, compare, reduce_scores


@pytest.fixture
def kept(tmp_path):
    """A saved evaluation of 12 images in the open world under a threshold, and its file."""
    problem = make_problem(3, "smooth", True, 12)
    candidates = Candidates.build(problem.space, problem.pairs, open_world=True, feasibility=problem.feasibility)
    extremes = reduce_scores(problem.scores, problem.labels, candidates, 2)
    threshold = float(candidates.grid[9])
    ids = [f"photos/é {i}\ud800.jpg" for i in range(12)]
    names = list(problem.space.attributes), list(problem.space.objects)
    facts = {"split": "test", "open_world": True, "threshold": threshold, "data_sha256": "ab"}
    saved = SavedEvaluation(at_threshold(extremes, candidates, threshold), ids, *names, facts)
    saved.save(tmp_path / "extremes.npz")
    return saved, tmp_path / "extremes.npz"


def _assert_same(first, second):
    for field in dataclasses.fields(Extremes):
        one, other = getattr(first, field.name), getattr(second, field.name)
        assert one.dtype == other.dtype, field.name
        np.testing.assert_array_equal(one, other, err_msg=field.name)


def test_what_is_read_is_what_was_saved(kept):
    saved, path = kept
    again = SavedEvaluation.load(path)
    _assert_same(again.extremes, saved.extremes)
    assert (again.ids, again.attributes, again.objects) == (saved.ids, saved.attributes, saved.objects)
    assert again.facts == saved.facts
    assert Curve(again.extremes).numbers() == Curve(saved.extremes).numbers()
    again.save(path.with_name("twice.npz"))
    with np.load(path, allow_pickle=False) as one, np.load(path.with_name("twice.npz"), allow_pickle=False) as two:
        assert one.files == two.files
        assert one["about"].tobytes() == two["about"].tobytes()


def test_images_are_brought_into_one_order(kept):
    saved, _ = kept
    order = np.random.default_rng(0).permutation(12)
    shuffled = saved.arranged([saved.ids[i] for i in order])
    _assert_same(shuffled.arranged(saved.ids).extremes, saved.extremes)
    assert Curve(shuffled.extremes).numbers() == Curve(saved.extremes).numbers()
    assert compare(shuffled.arranged(saved.ids).extremes, saved.extremes, 10)["auc"]["difference"] == 0
    for others in (saved.ids[:-1], [*saved.ids[:-1], "strange"], [*saved.ids, "strange"]):
        with pytest.raises(DataError, match="other images"):
            saved.arranged(others)


def _rewritten(path, about=None, **changes):
    with np.load(path, allow_pickle=False) as archive:
        arrays = {**dict(archive), **changes}
    if callable(about):
        content = json.loads(arrays["about"].tobytes())
        about = np.frombuffer(json.dumps(about(content)).encode(), np.uint8)
    if about is not None:
        arrays["about"] = about
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seen_score": None}, "12 images, arrays"),
        ({"true_score": np.full(12, np.nan, np.float32)}, "not a score"),
        ({"true_score": np.zeros(12)}, "true_score is float64"),
        ({"labels": np.zeros((11, 2), np.int64)}, "labels is int64 of shape"),
        ({"labels": np.full((12, 2), 99)}, "beyond the names"),
        ({"labels": np.full((12, 2), -1)}, "negative index"),
        ({"unseen_score": np.zeros((12, 2, 2), np.float32)}, "unseen_score is float32 of shape"),
        ({"seen_score": np.zeros((12, 0), np.float32)}, "seen_score"),
        ({"seen_score": np.float32(3)}, "seen_score"),
        ({"true_seen": np.array([{}] * 12, object)}, "cannot read"),
        ({"about": np.frombuffer(b"{", np.uint8)}, "cannot read"),
        ({"about": np.frombuffer(b"[" * 100_000, np.uint8)}, "cannot read"),
        ({"about": lambda about: {**about, "ids": []}}, "0 images"),
        ({"about": lambda about: {**about, "ids": [3] * 12}}, "not lists of text"),
        ({"about": lambda about: {**about, "objects": "cat"}}, "not lists of text"),
        ({"about": lambda about: {**about, "facts": {"rule": []}}}, "not texts or numbers"),
        ({"about": lambda about: {**about, "facts": {"threshold": "1"}}}, "not a number"),
        ({"about": lambda about: about["ids"]}, "cannot read"),
    ],
)
def test_a_file_that_does_not_hold_together_is_refused(kept, changes, message):
    _rewritten(kept[1], **changes)
    with pytest.raises(DataError, match=message) as error:
        SavedEvaluation.load(kept[1])
    assert "extremes.npz" in str(error.value)


def test_broken_and_unfolding_archives_are_refused(kept):
    _, path = kept
    whole = path.read_bytes()
    for content in (b"", b"PK", whole[: len(whole) // 2], np.random.default_rng(0).bytes(2000)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read .*extremes\.npz"):
            SavedEvaluation.load(path)
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(10_000_000, np.uint8))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("about.npy", buffer.getvalue())
    with pytest.raises(DataError, match="compressed"):
        SavedEvaluation.load(path)
    with pytest.raises(DataError, match="cannot read"):
        SavedEvaluation.load(path.with_name("none.npz"))
