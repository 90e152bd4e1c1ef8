import json

import numpy as np
import pytest
from random_problems import make_problem

from czsl.errors import DataError, UsageError
from czsl.evaluation import evaluate, read_scores, write_scores


@pytest.fixture
def problem():
    return make_problem(5, "smooth", open_world=True, images=12)


@pytest.fixture
def files(problem, tmp_path):
    return write_scores(
        tmp_path / "run", problem.scores, problem.labels, problem.space, problem.pairs, open_world=True,
        feasibility=problem.feasibility,
    )  # fmt: skip


def test_round_trip(problem, files):
    file = read_scores(*files)
    assert evaluate(**file.inputs()) == evaluate(**problem.inputs(), feasibility=problem.feasibility)
    assert file.source == str(files[0])
    np.testing.assert_array_equal(file.scores, problem.scores)


def test_a_closed_val_file_says_so(tmp_path):
    problem = make_problem(4)
    labels = np.concatenate([problem.space.val_pairs, problem.space.train_pairs])
    scores = np.random.default_rng(0).normal(size=(len(labels), len(problem.pairs)))
    npz, beside = write_scores(tmp_path / "val.npz", scores, labels, problem.space, problem.pairs, split="val")
    assert (npz.name, beside.name) == ("val.npz", "val.json")
    content = json.loads(beside.read_text())
    assert content["phase"] == "val" and content["open_world"] is False
    assert content["attrs"] == list(problem.space.attributes)
    file = read_scores(npz, beside)
    assert (file.split, file.open_world) == ("val", False)
    assert evaluate(**file.inputs()) == evaluate(scores, labels, problem.space, problem.pairs, split="val")


def test_a_space_json_serves_as_well(problem, files, tmp_path):
    problem.space.save(tmp_path / "space.json")
    file = read_scores(files[0], tmp_path / "space.json")
    assert (file.split, file.open_world) == ("test", True)
    assert evaluate(**file.inputs()) == evaluate(**read_scores(*files).inputs())
    closed = read_scores(files[0], tmp_path / "space.json", split="test", open_world=False)
    assert closed.feasibility is None
    assert evaluate(**closed.inputs()) == evaluate(**{**problem.inputs(), "open_world": False})


def test_val_files_choose_the_threshold_in_any_column_order(problem, files, tmp_path):
    order = np.random.default_rng(0).permutation(len(problem.pairs))
    val = write_scores(
        tmp_path / "val", problem.scores[:, order], problem.labels, problem.space, problem.pairs[order],
        split="val", open_world=True,
    )  # fmt: skip
    file = read_scores(*files)
    chosen = evaluate(**file.inputs(), val=read_scores(*val))
    assert chosen == evaluate(**file.inputs(), val=(problem.scores, problem.labels))
    assert chosen["threshold"] is not None
    spare = np.setdiff1d(np.arange(len(problem.pairs)), problem.true)[0]
    keep = np.arange(len(problem.pairs)) != spare
    fewer = write_scores(
        tmp_path / "fewer", problem.scores[:, keep], problem.labels, problem.space, problem.pairs[keep], open_world=True
    )
    with pytest.raises(DataError, match="score the same pairs"):
        evaluate(**file.inputs(), val=read_scores(*fewer))


def _rewrite(npz, **changes):
    with np.load(npz) as archive:
        arrays = {**dict(archive), **changes}
    np.savez(npz, **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "has no array 'scores'"),
        ({"pair_attr": None}, "has no array 'pair_attr'"),
        ({"scores": np.zeros((2, 3))}, r"scores are float64 of shape \[2, 3\]"),
        ({"scores": np.zeros((12, 4), int)}, "scores are int64"),
        ({"attr": np.zeros(3, int)}, "attr has 3 values and obj has 12"),
        ({"attr": np.zeros(12)}, "attr is float64"),
        ({"pair": np.zeros(12, int)}, "the pair of image 1 is not the column"),
        ({"pair": np.zeros(5, int)}, "5 pairs, 12 images"),
        ({"obj": np.full(12, 77)}, "image 0 has object 77"),
        ({"feasibility": np.zeros(3)}, r"feasibility has shape \[3\]"),
    ],
)
def test_files_that_contradict_themselves(problem, files, changes, message):
    if "scores" in changes and changes["scores"] is not None and changes["scores"].dtype == int:
        changes = {"scores": np.zeros(problem.scores.shape, int)}
    problem_pair = problem.true
    if message.startswith("the pair of image 1"):
        changes = {"pair": np.where(np.arange(12) == 1, problem_pair + 1, problem_pair)}
    _rewrite(files[0], **changes)
    with pytest.raises(DataError, match=message) as error:
        read_scores(*files)
    assert "run.npz" in str(error.value) or "feasibility" in changes


def test_scores_that_are_no_numbers_name_the_file(problem, files):
    scores = problem.scores.copy()
    scores[3, 1] = np.nan
    _rewrite(files[0], scores=scores)
    with pytest.raises(DataError, match=r"run\.npz: the score of image 3 .*pair 1 .*nan"):
        evaluate(**read_scores(*files).inputs())


def test_pickles_and_broken_archives_are_refused(problem, files, tmp_path):
    whole = files[0].read_bytes()
    _rewrite(files[0], attr=np.array([{}] * 12, dtype=object))
    with pytest.raises(DataError, match="cannot read"):
        read_scores(*files)
    for content in (b"", b"PK", whole[: len(whole) // 2], np.random.default_rng(0).bytes(2000)):
        files[0].write_bytes(content)
        with pytest.raises(DataError, match="cannot read"):
            read_scores(*files)
    with pytest.raises(DataError, match="cannot read"):
        read_scores(tmp_path / "none.npz", files[1])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"attrs": ["a"]}', '{"attrs": 3, "objs": 4}', "[" * 100_000])
def test_broken_label_spaces(files, content):
    files[1].write_text(content)
    with pytest.raises(DataError):
        read_scores(*files)


def test_an_unknown_phase_or_world_is_an_error(files):
    content = json.loads(files[1].read_text())
    files[1].write_text(json.dumps({**content, "phase": "tets"}))
    with pytest.raises(UsageError, match="unknown split"):
        read_scores(*files)
    files[1].write_text(json.dumps({**content, "open_world": "false"}))
    with pytest.raises(DataError, match="open_world is 'false'"):
        read_scores(*files)


def test_write_checks_its_arguments(problem, tmp_path):
    with pytest.raises(ValueError, match="scores of shape"):
        write_scores(tmp_path / "x", problem.scores[:, 1:], problem.labels, problem.space, open_world=True)
    with pytest.raises(DataError, match="listed twice"):
        write_scores(tmp_path / "x", problem.scores, problem.labels, problem.space, np.zeros((3, 2), int))
