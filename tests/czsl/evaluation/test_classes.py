"""Accuracies of plain classes from a few numbers an image, against a plain evaluation of all scores."""

import numpy as np
import pytest

from czsl.classes import ClassSpace
from czsl.errors import UsageError
from czsl.evaluation import Candidates, choose_bias, class_numbers, evaluate, read_scores, reduce_scores, write_scores


def space_of(seen=6, val=3, test=4):
    names = [f"c{i}" for i in range(seen + val + test)]
    return ClassSpace.of(names, names[:seen], names[: seen + val], names[:seen] + names[seen + val :])


def drawn(space, split, images=120, seed=0, coarse=False):
    """Scores with signal and with a lean to seen classes, and labels [N, 2]; ``coarse`` makes many scores equal."""
    rng = np.random.default_rng(seed)
    own = getattr(space, f"{split}_pairs")[:, 1]
    label = rng.choice(own, images, p=(weights := rng.random(len(own))) / weights.sum())
    scores = rng.normal(size=(images, len(space.classes))) + space.seen_mask(space.closed_pairs)
    scores[np.arange(images), label] += 1.2
    scores = np.round(scores) if coarse else scores
    return scores.astype(np.float32), np.stack([0 * label, label], axis=1)


def dense(space, scores, labels, split, gamma, k=1):
    """The definitions, written out: subtract gamma from the seen scores, rank, count, average over classes."""
    seen, allowed, label = space.seen_mask(space.closed_pairs), space.split_mask(space.closed_pairs, split), labels[:, 1]

    def right(shift, among):
        shifted = np.where(among & allowed, scores.astype(np.float64) - shift * seen, -np.inf)
        order = np.argsort(-shifted, axis=1, kind="stable")[:, :k]
        return (order == label[:, None]).any(axis=1)

    def mean(hit, group):
        each = [hit[label == c].mean() for c in np.unique(label) if seen[c] == group]
        return np.mean(each) if each else np.nan

    everything = np.ones(len(seen), bool)
    S, U, S0, U0 = (mean(right(shift, everything), group) for shift in (gamma, 0.0) for group in (True, False))
    return {
        "top1": right(0.0, everything).mean(), "T1": mean(right(0.0, ~seen), False), "S": S, "U": U, "H": 2 * S * U / (S + U),
        "S0": S0, "U0": U0, "H0": 2 * S0 * U0 / (S0 + U0), "gamma": gamma,
    }  # fmt: skip


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_numbers_are_those_of_the_dense_evaluation(k, coarse, seed):
    space = space_of()
    scores, labels = drawn(space, "test", seed=seed, coarse=coarse)
    extremes = reduce_scores(scores, labels, Candidates.build(space), k)
    for gamma in (0.0, 0.7, 1.0, 2.5, -1.0):
        found = class_numbers(extremes, gamma)
        assert found == pytest.approx(dense(space, scores, labels, "test", gamma, k))


def test_a_weight_counts_as_repeated_images():
    space = space_of()
    scores, labels = drawn(space, "test")
    times = np.random.default_rng(1).integers(0, 3, len(labels))
    extremes = reduce_scores(scores, labels, Candidates.build(space))
    repeated = reduce_scores(scores.repeat(times, 0), labels.repeat(times, 0), Candidates.build(space))
    assert class_numbers(extremes, 0.5, times.astype(float)) == pytest.approx(class_numbers(repeated, 0.5))


@pytest.mark.parametrize("seed", range(6))
def test_no_gamma_has_a_better_h_than_the_chosen_one(seed):
    space = space_of()
    scores, labels = drawn(space, "val", seed=seed)
    extremes = reduce_scores(scores, labels, Candidates.build(space, split="val"))
    best = class_numbers(extremes, choose_bias(extremes, classes=True)[0])["H"]
    tried = [class_numbers(extremes, gamma)["H"] for gamma in np.linspace(-4, 6, 2001)]
    assert best >= max(tried) - 1e-12
    assert best == pytest.approx(max(tried), abs=0.01)


def test_gamma_is_chosen_on_val_and_its_classes(tmp_path):
    space = space_of()
    test, val = drawn(space, "test"), drawn(space, "val", seed=1)
    result = evaluate(*test, space, val=val)
    gamma, _ = choose_bias(reduce_scores(*val, Candidates.build(space, split="val")), classes=True)
    assert result["gamma"] == gamma == result["op_bias"] != 0
    assert (result["op_seen"], result["op_unseen"], result["op_hm"]) == (result["S"], result["U"], result["H"])
    assert {k: result[k] for k in ("T1", "S", "U", "H", "S0", "top1")} == pytest.approx(
        {k: v for k, v in dense(space, *test, "test", gamma).items() if k in ("T1", "S", "U", "H", "S0", "top1")}
    )
    assert "attr_acc" not in result and "obj_acc" not in result
    assert result["auc"] > 0
    files = [write_scores(tmp_path / name, *given, space) for name, given in (("test", test), ("val", val))]
    read = [read_scores(npz, json, split) for (npz, json), split in zip(files, ("test", "val"), strict=True)]
    assert evaluate(**read[0].inputs(), val=read[1]) == result
    assert evaluate(*test, space)["gamma"] == 0


def test_intervals_surround_the_numbers_and_details_name_classes():
    space = space_of()
    result = evaluate(*drawn(space, "test", 300), space, bootstrap=100, details=True)
    for key in ("top1", "T1", "S", "U", "H", "auc"):
        low, high = result["intervals"][key]
        assert low <= result[key] <= high
        assert low < high
    assert "attr_acc" not in result["intervals"]
    assert set(result["per_class"]) <= set(space.classes)
    assert "per_object" not in result


def test_what_is_undefined_is_none_and_said():
    space = space_of()
    scores, labels = drawn(space, "test", 300)
    seen = labels[:, 1] < 6
    only_seen, only_unseen = (evaluate(scores[part], labels[part], space) for part in (seen, ~seen))
    assert only_seen["S"] is not None
    assert only_seen["T1"] is only_seen["U"] is only_seen["H"] is None
    assert "no image shows an unseen class" in only_seen["warnings"][0]
    assert only_unseen["T1"] is not None
    assert only_unseen["S"] is only_unseen["H"] is None
    extremes = reduce_scores(scores[seen], labels[seen], Candidates.build(space))
    bias, note = choose_bias(extremes, classes=True)
    assert bias == 0
    assert "no validation image shows an unseen label" in note
    with pytest.raises(UsageError, match="no open world"):
        evaluate(scores, labels, space, open_world=True)
