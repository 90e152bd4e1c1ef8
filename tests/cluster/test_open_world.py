"""Open-world evaluation of a run: thresholds chosen on val, the same for any number of workers, and what is kept of it."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from cluster.evaluate import evaluate_run, load_or_evaluate
from cluster.work import scoring as score
from cluster.work.comm import Group
from cluster.work.evaluation import EvalConfig, saved_evaluation, saved_evaluation_file
from cluster.work.training import train_worker
from czsl.clip.feasibility import feasibility_from_clip
from czsl.data.table import open_data
from czsl.errors import DataError, UsageError
from czsl.evaluation import Curve, ExtremesAccumulator, SavedEvaluation, evaluate
from czsl.runs.run import Run
from methods.fingerprint import fingerprint


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """A CSP run of two epochs on the built-in CLIP, which knows what it sees: two checkpoints."""
    from czsl_cli.config import resolve

    settings = {"method": "csp", "data": str(dataset), "clip": "tiny", "epochs": 2, "eval_batch": 16, "threads": 1}
    space = open_data(str(dataset)).space
    run = Run.create(resolve({**settings, "lr": 0.01}), space, tmp_path_factory.mktemp("runs"), "trained")
    assert train_worker(run, Group(), torch.device("cpu")) == "done"
    return run


@pytest.fixture(scope="module")
def dense(trained):
    """All scores of a split at once, as the method alone computes them, and a feasibility by hand."""
    from methods import load

    method, data = load(trained.path), open_data(trained.config.data)
    attributes = method.clip.text.encode([f"a photo of {name}" for name in method.attribute_names]).double().numpy()
    objects = method.clip.text.encode([f"a photo of {name}" for name in method.object_names]).double().numpy()
    seen = {tuple(pair) for pair in data.space.train_pairs.tolist()}
    values = np.zeros((len(attributes), len(objects)))
    for a, o in data.space.open_pairs.tolist():
        if (a, o) not in seen:
            partners = (
                [objects[o] @ objects[q] for b, q in seen if b == a],
                [attributes[a] @ attributes[b] for b, q in seen if q == o],
            )
            values[a, o] = sum(max(similar, default=-1.0) for similar in partners) / 2

    @torch.inference_mode()
    def scores(name):
        split = data.split(name)
        images = torch.stack([method.prepare(_decoded(split, i), "")["images"] for i in range(len(split))])
        return method.score_images(images, torch.from_numpy(data.space.open_pairs)).numpy(), split.pairs

    return data.space, scores, values.reshape(-1).astype(np.float32)


def _decoded(split, row):
    from czsl.data.images import decode

    return decode(split.image_bytes(row)).convert("RGB")


def test_the_report_is_that_of_all_scores_at_once(trained, dense):
    space, scores, feasibility = dense
    for rule in ("exclude", "reference"):
        found = evaluate_run(trained, EvalConfig(open_world=True, rule=rule))
        expected = evaluate(*scores("test"), space, open_world=True, feasibility=feasibility, val=scores("val"), rule=rule)
        assert found["threshold_chosen"] == "val"
        assert found["threshold"] == pytest.approx(expected["threshold"], abs=1e-6)
        assert len(found["thresholds"]) == 50
        for key in ("auc", "hm", "seen", "unseen", "auc_ref20", "attr_acc", "obj_acc"):
            assert found[key] == pytest.approx(expected[key], abs=1e-6), key
            here, there = ([row[key] for row in result["thresholds"]] for result in (found, expected))
            assert here == pytest.approx(there, abs=1e-6), key


def test_feasibility_of_the_text_tower_is_that_by_hand(trained, dense):
    from methods import load

    space, _, feasibility = dense
    np.testing.assert_allclose(feasibility_from_clip(load(trained.path).clip, space), feasibility, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True])
def test_thresholds_are_the_same_on_several_workers(ray_local, trained, dense, given):
    eval_config = EvalConfig(open_world=True)
    if given:
        eval_config = dataclasses.replace(eval_config, feasibility=dense[2][::-1].copy(), threshold=0.4, rule="reference", topk=2)
    alone = evaluate_run(trained, eval_config)
    kept = saved_evaluation_file(trained, eval_config).read_bytes()
    assert json.dumps(evaluate_run(trained, eval_config, workers_per_node=2)) == json.dumps(alone)
    assert saved_evaluation_file(trained, eval_config).read_bytes() == kept
    assert alone["threshold_chosen"] == ("given" if given else "val")
    assert len(alone["thresholds"]) == 50


def test_validation_chooses_nothing_for_itself(trained):
    found = evaluate_run(trained, EvalConfig(split="val", open_world=True))
    assert found["threshold"] is None
    assert found["threshold_chosen"] is None
    assert len(found["thresholds"]) == 50
    lowest = found["thresholds"][0]  # every pair is feasible
    assert {key: found[key] for key in lowest if key != "threshold"} == {k: v for k, v in lowest.items() if k != "threshold"}


def test_without_feasibility_there_is_no_threshold(trained):
    found = evaluate_run(trained, EvalConfig(open_world=True, feasibility=None))
    assert found["threshold"] is None
    assert "thresholds" not in found
    assert "threshold_chosen" not in found


def test_thresholds_that_make_no_sense(trained):
    with pytest.raises(UsageError, match="closed world"):
        EvalConfig(threshold=0.1)
    with pytest.raises(UsageError, match="without a feasibility"):
        EvalConfig(open_world=True, feasibility=None, threshold=0.1)
    with pytest.raises(DataError, match="shape"):
        evaluate_run(trained, EvalConfig(open_world=True, feasibility=np.zeros(3)))
    with pytest.raises(UsageError, match="rule is 'maybe'"):
        evaluate_run(trained, EvalConfig(open_world=True, rule="maybe"))


def test_no_tile_holds_more_than_a_batch_and_a_tile_of_pairs(trained, monkeypatch):
    largest = []
    update = ExtremesAccumulator.update
    before = evaluate_run(trained, EvalConfig(open_world=True))
    monkeypatch.setattr(score, "PAIR_TILE", 32)
    monkeypatch.setattr(
        ExtremesAccumulator,
        "update",
        lambda self, rows, pairs, scores: (largest.append(scores.shape), update(self, rows, pairs, scores))[1],
    )
    after = evaluate_run(trained, EvalConfig(open_world=True))
    assert max(rows for rows, _ in largest) <= 16
    assert max(columns for _, columns in largest) < 32 + 16
    assert after["auc"] == pytest.approx(before["auc"], abs=1e-6)


def test_the_kept_numbers_are_those_of_the_report(trained):
    for eval_config in (EvalConfig(), EvalConfig(open_world=True), EvalConfig(topk=3), EvalConfig(split="val")):
        found = evaluate_run(trained, eval_config)
        kept, why = saved_evaluation(trained, eval_config)
        assert (kept is None, why) == (False, "")
        numbers = Curve(kept.extremes).numbers()
        assert {key: numbers[key] for key in ("auc", "hm", "seen", "unseen", "bias")} == {
            key: found[key] for key in ("auc", "hm", "seen", "unseen", "bias")
        }
        assert kept.ids == open_data(trained.config.data).split(eval_config.split).ids
        assert kept.facts.get("threshold") == found.get("threshold")
        assert kept.facts["open_world"] == eval_config.open_world


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the run that may be harmed."""
    return Run(shutil.copytree(trained.path, tmp_path / "copy"))


def test_kept_numbers_are_used_until_they_are_stale(copy, monkeypatch):
    eval_config = EvalConfig()
    for file in copy.path.glob("extremes-*"):
        file.unlink()
    assert saved_evaluation(copy, eval_config) == (None, "no numbers of its images are kept yet")
    said = []
    first = load_or_evaluate(copy, eval_config, say=said.append)
    assert said == ["evaluating copy first: no numbers of its images are kept yet"]
    with monkeypatch.context() as nothing_is_scored:
        nothing_is_scored.setattr("cluster.evaluate.evaluate", None)
        again = load_or_evaluate(copy, eval_config, say=said.append)
    assert len(said) == 1
    assert Curve(again.extremes).numbers() == Curve(first.extremes).numbers()

    steps = sorted(p.name for p in copy.checkpoints.glob("step-*"))
    other = next(name for name in steps if fingerprint(copy, name) != fingerprint(copy))
    last = EvalConfig(checkpoint=other)
    assert saved_evaluation(copy, last)[1] == "its kept numbers are of another checkpoint"

    file = saved_evaluation_file(copy, eval_config)
    SavedEvaluation(first.extremes, first.ids, first.attributes, first.objects, {**first.facts, "data_sha256": "0"}).save(file)
    assert saved_evaluation(copy, eval_config)[1] == "its kept numbers are of other data"
    SavedEvaluation(first.extremes, first.ids, first.attributes, first.objects, {**first.facts, "split": "val"}).save(file)
    assert saved_evaluation(copy, eval_config)[1] == "extremes-test-closed.npz is of another evaluation"
    file.write_bytes(file.read_bytes()[:-200])
    assert "is damaged" in saved_evaluation(copy, eval_config)[1]
    load_or_evaluate(copy, eval_config, say=said.append)
    assert "is damaged" in said[-1]
    assert saved_evaluation(copy, eval_config)[0] is not None


def test_other_settings_are_another_fingerprint(copy):
    import yaml

    before = fingerprint(copy)
    content = yaml.safe_load((copy.path / "config.yaml").read_text())
    (copy.path / "config.yaml").write_text(yaml.safe_dump({**content, "data": "elsewhere"}))
    assert fingerprint(Run(copy.path)) == before
    (copy.path / "config.yaml").write_text(yaml.safe_dump({**content, "precision": "bfloat16"}))
    assert fingerprint(Run(copy.path)) != before


def test_data_without_validation_images_choose_nothing_and_an_empty_split_is_an_error(trained, tmp_path, czsl_cache):
    from czsl.data.table import Record, write_dataset
    from czsl.data.toy import dataset as toy

    records = (Record(n, image, attr, obj, split) for n, attr, obj, split, image in toy.samples(scale=0.01) if split == "test")
    write_dataset(tmp_path / "drawn", toy.space(), records, "drawn")
    found = evaluate_run(trained, EvalConfig(open_world=True, data=str(tmp_path / "drawn")))
    assert found["threshold"] is None
    assert "there are no validation images" in found["warnings"][-1]
    with pytest.raises(DataError, match="no val images"):
        evaluate_run(trained, EvalConfig(split="val", data=str(tmp_path / "drawn")))


def test_a_split_without_unseen_pairs_has_numbers_and_a_warning(trained, tmp_path, czsl_cache):
    from czsl.data.table import Record, write_dataset
    from czsl.data.toy import dataset as toy

    space = toy.space()
    seen = {tuple(pair) for pair in space.to_json()["train_pairs"]}
    records = (
        Record(n, image, attr, obj, split)
        for n, attr, obj, split, image in toy.samples(scale=0.01)
        if split == "test" and (attr, obj) in seen
    )
    write_dataset(tmp_path / "drawn", space, records, "drawn")
    found = evaluate_run(trained, EvalConfig(data=str(tmp_path / "drawn")))
    assert (found["auc"], found["unseen"]) == (None, None)
    assert 0 <= found["seen"] <= 1
    assert "no image shows an unseen pair" in found["warnings"][0]
