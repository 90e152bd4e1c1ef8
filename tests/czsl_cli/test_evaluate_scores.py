"""``czsl evaluate --scores``: thresholds from files, and an error that names file and place for everything unusable."""

from __future__ import annotations

import json

import numpy as np
import pytest

from czsl.compositions import CompositionSpace
from czsl.evaluation import evaluate, write_scores

A, O = 4, 5


def _space():
    names = [f"a{i}" for i in range(A)], [f"o{i}" for i in range(O)]
    pair = lambda key: [names[0][key // O], names[1][key % O]]  # noqa: E731
    keys = np.random.default_rng(0).permutation(A * O).tolist()
    train, val, test = keys[:8], keys[8:11] + keys[:2], keys[11:15] + keys[2:4]
    lists = {"train_pairs": train, "val_pairs": val, "test_pairs": test}
    return CompositionSpace.from_json(
        {"attributes": names[0], "objects": names[1], **{k: [pair(key) for key in v] for k, v in lists.items()}}
    )


@pytest.fixture
def world(tmp_path):
    """Open-world scores of test and val with signal, a feasibility that helps, as arrays and as files."""
    space, rng = _space(), np.random.default_rng(1)
    known = np.concatenate([space.val_pairs, space.test_pairs])
    likely = np.isin(space.key(space.open_pairs), space.key(known))
    feasibility = np.where(likely, rng.uniform(0.5, 0.9, A * O), rng.uniform(-0.2, 0.6, A * O)).astype(np.float32)
    made = {}
    for name, pairs in (("test", space.test_pairs), ("val", space.val_pairs)):
        labels = np.concatenate([pairs] * 6)
        scores = rng.normal(20, 2, (len(labels), A * O)).astype(np.float32)
        scores[np.arange(len(labels)), space.key(labels)] += 4
        made[name] = (scores, labels)
        write_scores(tmp_path / name, scores, labels, space, split=name, open_world=True, feasibility=feasibility)
    np.save(tmp_path / "feasibility.npy", feasibility)
    return space, made, feasibility


def _rewrite(path, **changes):
    with np.load(path, allow_pickle=False) as archive:
        arrays = {**dict(archive), **changes}
    np.savez(path, **arrays)


FILES = ("evaluate", "--scores", "test.npz", "--space", "test.json")


def test_thresholds_from_val_scores_a_number_and_a_file(czsl, world):
    space, made, feasibility = world
    for args, inputs, how in (
        (["--val-scores", "val.npz"], {"val": made["val"]}, "val"),
        (["--threshold", 0.3], {"threshold": 0.3}, "given"),
        (["--rule", "reference"], {"rule": "reference"}, None),
        (["--feasibility", "feasibility.npy", "--topk", 2], {"topk": 2}, None),
    ):
        shown = json.loads(czsl(*FILES, *args, "--json").stdout)
        expected = evaluate(*made["test"], space, open_world=True, feasibility=feasibility, **inputs)
        assert shown == {**expected, "threshold_chosen": how}
        assert len(shown["thresholds"]) == 50
    assert shown["thresholds"][30]["auc"] != shown["auc"]
    without = json.loads(czsl(*FILES, "--no-feasibility", "--json").stdout)
    assert without == evaluate(*made["test"], space, open_world=True)


def test_people_read_which_threshold_was_used_and_why(czsl, world):
    assert "the best on the validation split; rule: exclude" in czsl(*FILES, "--val-scores", "val.npz").stdout
    assert (
        "feasibility threshold 0.3000, as given; rule: reference"
        in czsl(*FILES, "--threshold", 0.3, "--rule", "reference").stdout
    )
    assert "no feasibility threshold in use; the best of 50 here" in czsl(*FILES).stdout
    assert "feasibility" not in czsl(*FILES, "--no-feasibility").stdout


def test_feasibility_from_word_vectors(czsl, world, tmp_path):
    rng = np.random.default_rng(2)
    words = [f"{name} {' '.join(f'{v:.3f}' for v in rng.normal(size=8))}" for name in [*world[0].attributes, *world[0].objects]]
    (tmp_path / "glove.txt").write_text("\n".join(words))
    czsl("feasibility", "test.json", "--glove", "glove.txt", "--out", "words.npy")
    one = czsl(*FILES, "--glove", "glove.txt", "--val-scores", "val.npz", "--json").stdout
    assert one == czsl(*FILES, "--feasibility", "words.npy", "--val-scores", "val.npz", "--json").stdout


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("split", ["test", "val"])
def test_scores_that_are_no_numbers(czsl, world, value, split):
    scores = world[1][split][0].copy()
    scores[5, 7] = value
    _rewrite(f"{split}.npz", scores=scores)
    shown = czsl(*FILES, "--val-scores", "val.npz", expect=3).stderr
    assert f"{split}.npz: the score of image 5 (row) and pair 7 (column, {world[0].pair_name(divmod(7, O))}) is {value}" in shown


def _labels(world, column, place, value):
    changed = world[1]["test"][1].copy()
    changed[place, column] = value
    return changed[:, column]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {"attr": _labels(w, 0, 3, A)}, f"test.npz: image 3 has attribute {A}"),
        (lambda w: {"obj": _labels(w, 1, 2, -1)}, "test.npz: image 2 has object -1"),
        (lambda w: {"feasibility": np.zeros(A * O - 1, np.float32)}, "test.npz: the feasibility has shape [19]"),
        (
            lambda w: {"feasibility": np.where(np.arange(A * O) == 6, np.nan, 0.5)},
            "test.npz: the feasibility of pair 6 (a1 o1) is nan",
        ),
        (
            lambda w: {"pair_attr": np.zeros(A * O, int), "pair_obj": np.zeros(A * O, int)},
            "test.npz: pair 1 (a0 o0) is listed twice",
        ),
        (lambda w: {"pair_obj": np.full(A * O, O)}, f"test.npz: pair 0 is [0, {O}]"),
        (
            lambda w: {"scores": np.zeros((0, A * O), np.float32), **{k: np.zeros(0, int) for k in ("attr", "obj", "pair")}},
            "test.npz: the split has no images",
        ),
    ],
)
def test_arrays_that_cannot_be_used(czsl, world, change, message):
    _rewrite("test.npz", **change(world))
    assert message in czsl(*FILES, expect=3).stderr


def test_a_pair_listed_twice_in_the_space(czsl, world, tmp_path):
    content = json.loads((tmp_path / "test.json").read_text())
    for split in ("train", "test"):
        pairs = content[f"{split}_pairs"]
        (tmp_path / "twice.json").write_text(json.dumps({**content, f"{split}_pairs": [*pairs, pairs[1]]}))
        shown = czsl("evaluate", "--scores", "test.npz", "--space", "twice.json", expect=3).stderr
        assert f"{split} pair {len(pairs)} occurs twice: {' '.join(pairs[1])}" in shown


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(7), "feasibility.npy holds float64 of shape [7]"),
        (np.where(np.arange(A * O) == 6, np.inf, 0.5), "feasibility.npy: value 6 (a1 o1) is inf"),
        (np.array(["x"] * (A * O)), "feasibility.npy holds <U1"),
    ],
)
def test_feasibility_files(czsl, world, values, message):
    np.save("feasibility.npy", values)
    assert message in czsl(*FILES, "--feasibility", "feasibility.npy", expect=3).stderr


def test_a_split_without_unseen_images_has_numbers_and_a_warning(czsl, world):
    space, made, _ = world
    scores, labels = made["test"]
    seen = space.seen_mask(labels)
    for chosen, undefined, defined in ((seen, "unseen", "seen"), (~seen, "seen", "unseen")):
        write_scores("part", scores[chosen], labels[chosen], space, space.open_pairs, split="test")
        done = czsl("evaluate", "--scores", "part.npz", "--space", "part.json", "--json")
        shown = json.loads(done.stdout)
        assert (shown[undefined], shown["auc"], shown["hm"]) == (None, None, None)
        assert 0 < shown[defined] <= 1
        assert f"no image shows {'an' if undefined == 'unseen' else 'a'} {undefined} pair" in done.stderr
        assert "-" in czsl("evaluate", "--scores", "part.npz", "--space", "part.json").stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--feasibility", "feasibility.npy", "--glove", "test.json"], "--feasibility and --glove were given"),
        (["--no-feasibility", "--feasibility", "feasibility.npy"], "--feasibility and --no-feasibility were given"),
        (["--no-feasibility", "--threshold", 0.1], "--threshold with --no-feasibility"),
        (["--rename", "test.json"], "--rename goes with --glove"),
        (["--threshold", 0.1, "--val-scores", "val.npz"], "--threshold and --val-scores were given"),
        (["--threshold", "nan"], "compared with a finite number"),
    ],
)
def test_options_that_contradict_each_other(czsl, world, args, message):
    assert message in czsl(*FILES, *args, expect=2).stderr


def test_options_of_the_open_world_alone(czsl, world):
    space, made, _ = world
    write_scores("closed", *made["test"], space, space.open_pairs)
    closed = ("evaluate", "--scores", "closed.npz", "--space", "closed.json")
    for args in (["--feasibility", "feasibility.npy"], ["--threshold", 0.1], ["--no-feasibility"]):
        assert "without --open-world" in czsl(*closed, *args, expect=2).stderr
