"""What is measured is what is delivered: the point that validation chooses is the one that answers use."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.calibrate import calibrate_run, ensure_point
from cluster.evaluate import evaluate_run
from cluster.work.calibration import Calibration, confidence_threshold, kept_answers, rejection_threshold, saved_evaluation_file
from cluster.work.comm import Group
from cluster.work.evaluation import EvalConfig
from cluster.work.predictor import PredictConfig, Predictor
from cluster.work.training import train_worker
from czsl.compositions import CompositionSpace
from czsl.data.table import Record, open_data, write_dataset
from czsl.data.toy import dataset as toy
from czsl.errors import DataError, SetupError, UsageError
from czsl.evaluation import OperatingPoint, SavedEvaluation
from czsl.evaluation.at_point import accuracies
from czsl.evaluation.calibration import answers
from czsl.evaluation.operating import point_file
from czsl.retrieval.index import CompositionIndex
from czsl.runs.run import Run
from methods import load
from methods.points import stored_point


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """A CSP run of two epochs on a CLIP that knows something; training chose its point."""
    from czsl_cli.config import resolve

    config = resolve({"method": "csp", "data": str(dataset), "clip": "tiny", "epochs": 2, "batch": 32, "threads": 1})
    run = Run.create(config, open_data(str(dataset)).space, tmp_path_factory.mktemp("trained"), "trained")
    assert train_worker(run, Group(), torch.device("cpu")) == "done"
    return run


@pytest.fixture
def copied(trained, tmp_path):
    """A copy that a test may change."""
    return Run(shutil.copytree(trained.path, tmp_path / "copy"))


def test_training_chooses_the_point_of_the_best_checkpoint(trained):
    point, why = stored_point(trained)
    assert (point.how, point.aim, why) == ("val", "hm", "")
    assert point.bias > 0  # training learns to prefer what it saw
    (event,) = trained.metrics("operating_point")
    assert event["bias"] == point.bias
    kept = kept_answers(trained, Calibration())
    assert len(kept.extremes) == len(open_data(trained.config.data).split("val"))
    assert evaluate_run(trained, EvalConfig(split="val"))["op_hm_loss"] == pytest.approx(0, abs=1e-12)
    assert trained.path.joinpath("operating-point-closed.json").exists()


def test_prediction_reaches_what_evaluation_reports(trained, tmp_path):
    """The very images, candidates and numbers: not close to each other, but equal."""
    data = open_data(trained.config.data)
    split, space = data.split("test"), data.space
    names = []
    for row in range(len(split)):
        names.append(f"{row:03d}.png")
        (tmp_path / names[-1]).write_bytes(split.image_bytes(row))
    pairs = space.closed_pairs[space.split_mask(space.closed_pairs, "test")]
    named = [list(space.pair_names(pair)) for pair in pairs]
    truth = [space.label(pair) for pair in split.pairs]
    seen = space.seen_mask(split.pairs)
    report = evaluate_run(trained, EvalConfig())
    for bias, prefix in (("val", "op"), ("none", "none")):
        predictor = Predictor(PredictConfig(run=str(trained.path), pairs=named, top=1, bias=bias, threads=1), torch.device("cpu"))
        records = [record for i in range(0, len(names), 32) for record in predictor.predict(tmp_path, names[i : i + 32])]
        right = np.array([{k: r["predictions"][0][k] for k in t} == t for r, t in zip(records, truth, strict=True)])
        assert report[f"{prefix}_acc"] == right.mean()
        assert report[f"{prefix}_seen"] == right[seen].mean()
        assert report[f"{prefix}_unseen"] == right[~seen].mean()
        if bias == "val":
            saved = SavedEvaluation.load(trained.path / "extremes-test-closed.npz")
            found = answers(saved.extremes, saved.sums, stored_point(trained)[0])
            assert [r["predictions"][0]["prob"] for r in records] == pytest.approx(found.confidence, abs=2e-5)
    assert report["op_unseen"] > report["none_unseen"]


def test_every_answer_uses_it(trained):
    """`load(run).predict` and a predictor agree, also on new words, which count as unseen."""
    point, _ = stored_point(trained)
    method = load(trained)
    image = toy.draw(toy.ATTRIBUTES[0], toy.OBJECTS[1], seed=3)
    (record,) = method.predict([image], k=200)
    assert record["operating_point"] == point.brief()
    order = [p["calibrated"] for p in record["predictions"]]
    assert order == sorted(order, reverse=True)
    trained_on = {trained.space.pair_names(pair) for pair in trained.space.train_pairs}
    for p in record["predictions"]:
        added = 0.0 if (p["attr"], p["obj"]) in trained_on else point.bias
        assert p["calibrated"] == pytest.approx(p["score"] + added, abs=1e-12)
    assert sum(p["prob"] for p in record["predictions"]) == pytest.approx(1, abs=1e-4)
    (plain,) = method.predict([image], k=200, bias="none")
    assert all(p["calibrated"] == p["score"] for p in plain["predictions"])
    assert plain["operating_point"] == OperatingPoint().brief()
    (given,) = method.predict([image], k=1, bias=50.0)
    assert (given["predictions"][0]["attr"], given["predictions"][0]["obj"]) not in trained_on
    assert given["operating_point"]["how"] == "given"
    with pytest.raises(UsageError, match="not a bias"):
        method.predict([image], bias="best")
    new = replace(trained.space, attributes=(*trained.space.attributes, "shiny"))
    moved = method.for_space(new)
    pairs = np.array([[len(new.attributes) - 1, 0], trained.space.train_pairs[0]])
    (answer,) = moved.predict([image], pairs, k=2)
    added = {p["attr"]: p["calibrated"] - p["score"] for p in answer["predictions"]}
    assert added["shiny"] == pytest.approx(point.bias)
    assert added[trained.space.attributes[trained.space.train_pairs[0][0]]] == 0


def test_named_candidates_without_training_pairs_keep_what_was_seen(trained, tmp_path):
    """A file of names has no training pairs of its own: those of the run count."""
    seen, unseen = trained.space.pair_names(trained.space.train_pairs[0]), ("shiny", trained.space.objects[0])
    space = {"attributes": [seen[0], "shiny"], "objects": sorted({seen[1], unseen[1]})}
    toy.draw(toy.ATTRIBUTES[0], toy.OBJECTS[1], seed=3).save(tmp_path / "a.png")
    config = PredictConfig(run=str(trained.path), space=space, pairs=[list(seen), list(unseen)], threads=1)
    predictor = Predictor(config, torch.device("cpu"))
    (record,) = predictor.predict(tmp_path, ["a.png"])
    added = {p["attr"]: p["calibrated"] - p["score"] for p in record["predictions"]}
    assert added[seen[0]] == 0
    assert added["shiny"] == pytest.approx(stored_point(trained)[0].bias)


def test_the_index_answers_as_the_scan_of_all_pairs_does(trained, tmp_path):
    run = Run(shutil.copytree(trained.path, tmp_path / "indexed"))
    method = load(run)
    with torch.inference_mode():
        vectors = method.encode_pairs(torch.from_numpy(method.space.open_pairs.copy())).numpy()
    CompositionIndex.build(vectors, method.space.open_pairs).save(tmp_path / "index", {})
    for i in range(5):
        toy.draw(toy.ATTRIBUTES[i], toy.OBJECTS[i], seed=i).save(tmp_path / f"{i}.png")
    names = [f"{i}.png" for i in range(5)]
    calibrate_run(run, Calibration(open_world=True))
    found = []
    for index in (None, str(tmp_path / "index")):
        config = PredictConfig(run=str(run.path), open_world=True, index=index, top=20, threads=1)
        found.append(Predictor(config, torch.device("cpu")).predict(tmp_path, names))
    for scanned, asked in zip(*found, strict=True):
        assert scanned["operating_point"] == asked["operating_point"]
        assert scanned["operating_point"]["how"] == "val"
        for one, other in zip(scanned["predictions"], asked["predictions"], strict=True):
            assert (one["attr"], one["obj"]) == (other["attr"], other["obj"])
            assert one["calibrated"] == pytest.approx(other["calibrated"], abs=1e-4)
            assert one["prob"] == pytest.approx(other["prob"], abs=1e-5)  # fewer pairs than the index is asked for


# -- doubt -----------------------------------------------------------------------------------------------------------------
def test_doubtful_names_are_left_out(trained, tmp_path):
    data = open_data(trained.config.data).split("val")
    names = [f"{row}.png" for row in range(len(data))]
    for row, name in enumerate(names):
        (tmp_path / name).write_bytes(data.image_bytes(row))
    space = trained.space
    named = [list(space.pair_names(p)) for p in space.closed_pairs[space.split_mask(space.closed_pairs, "val")]]
    point, _ = stored_point(trained)
    threshold, precision, coverage = confidence_threshold(trained, Calibration(), point, 0.5)
    detector, limit = rejection_threshold(trained, Calibration(), point, 0.2)
    config = PredictConfig(
        run=str(trained.path), pairs=named, top=1, min_prob=threshold - 1e-6, reject=(detector, limit), threads=1
    )
    predictor = Predictor(config, torch.device("cpu"))
    records = [record for i in range(0, len(names), 32) for record in predictor.predict(tmp_path, names[i : i + 32])]
    probable = np.array([r["predictions"][0]["prob"] >= threshold - 2e-6 for r in records])
    rejected = np.array([r["rejected"] for r in records])
    right = np.array(
        [{k: r["predictions"][0][k] for k in space.label(p)} == space.label(p) for r, p in zip(records, data.pairs, strict=True)]
    )
    assert probable.mean() == pytest.approx(coverage)
    assert right[probable].mean() == pytest.approx(precision)
    assert precision >= 0.5
    assert rejected.mean() <= 0.2 + 1 / len(names)
    assert [r["sure"] for r in records] == (probable & ~rejected).tolist()


def test_a_precision_that_is_never_reached_names_the_highest(copied):
    asked = Calibration()
    kept = kept_answers(copied, asked)
    point, _ = stored_point(copied)
    found = answers(kept.extremes, kept.sums, point)
    wrong = replace(kept.extremes, true_pair=np.where(found.right, (kept.extremes.true_pair + 1) % 5, kept.extremes.true_pair))
    SavedEvaluation(wrong, kept.ids, kept.attributes, kept.objects, kept.facts, kept.sums).save(
        saved_evaluation_file(copied, asked)
    )
    with pytest.raises(UsageError, match=r"no threshold reaches a precision of 0\.99") as error:
        confidence_threshold(copied, asked, point, 0.99)
    assert "the highest is" in error.value.why


# -- what it holds for -------------------------------------------------------------------------------------------------------
def test_another_aim_scores_no_image(copied, monkeypatch):
    monkeypatch.setattr("cluster.calibrate.load", lambda *_: pytest.fail("the method was loaded"))
    e = kept_answers(copied, Calibration()).extremes
    found = {aim: calibrate_run(copied, Calibration(aim=aim)) for aim in ("hm", "accuracy", "unseen-share=1", "seen>=0.2")}
    assert found["unseen-share=1"].bias > found["hm"].bias
    assert accuracies(e, found["seen>=0.2"].bias)["seen"] >= 0.2
    assert accuracies(e, found["accuracy"].bias)["acc"] == max(accuracies(e, p.bias)["acc"] for p in found.values())
    assert stored_point(copied)[0] == found["seen>=0.2"]
    assert len({p.composition for p in found.values()}) == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"checkpoint_sha256": "0" * 64}, "another checkpoint"),
        ({"candidates_sha256": "0" * 64}, "other candidates"),
        ({"data_sha256": "0" * 64}, "other data"),
        ({"bias": "high"}, "damaged"),
    ],
)
def test_a_point_of_something_else_is_renewed_or_refused(copied, change, word):
    file = point_file(copied.path)
    before = stored_point(copied)[0]
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert word in stored_point(copied)[1]
    method = load(copied)
    image = Image.new("RGB", (32, 32))
    with pytest.raises(DataError, match="cannot be used"):
        method.predict([image])
    with pytest.raises(DataError, match="cannot be used"):
        Predictor(PredictConfig(run=str(copied.path)), torch.device("cpu"))
    assert method.predict([image], bias="none")
    said = []
    assert ensure_point(copied, "best", False, "val", say=said.append).brief() == before.brief()
    assert word in said[0]
    assert stored_point(copied)[0].brief() == before.brief()


def test_kept_numbers_of_other_weights_are_not_used(copied):
    asked = Calibration()
    file = saved_evaluation_file(copied, asked)
    kept = SavedEvaluation.load(file)
    SavedEvaluation(
        kept.extremes, kept.ids, kept.attributes, kept.objects, {**kept.facts, "checkpoint_sha256": "0" * 64}, kept.sums
    ).save(file)
    with pytest.raises(DataError, match="keeps no answers"):
        kept_answers(copied, asked)
    calibrate_run(copied, asked)
    assert kept_answers(copied, asked).facts["checkpoint_sha256"] == kept.facts["checkpoint_sha256"]


def test_without_validation_images_there_is_none_and_that_is_said(tmp_path):
    from czsl_cli.config import resolve

    records = [Record(n, image, a, o, s) for n, a, o, s, image in toy.samples(scale=0.01) if s != "val"]
    write_dataset(tmp_path / "data", toy.space(), records, "no-val")
    config = resolve({"method": "zero-shot", "data": str(tmp_path / "data"), "clip": "tiny", "threads": 1})
    run = Run.create(config, toy.space(), tmp_path, "run")
    with pytest.raises(DataError, match="has no val images"):
        calibrate_run(run, Calibration())
    report = evaluate_run(run, EvalConfig())
    assert report["operating_point"]["how"] == "none" and report["op_bias"] == 0
    assert any("there are no validation images" in text for text in report["warnings"])
    assert "there are no validation images" in ensure_point(run, "best", False, "val").notes[0]


def test_without_one_group_the_bias_is_0_and_the_temperature_is_fitted(tmp_path):
    from czsl_cli.config import resolve

    space = toy.space()
    seen = {space.pair_names(pair) for pair in space.train_pairs}
    records = [Record(n, image, a, o, s) for n, a, o, s, image in toy.samples(scale=0.01) if s != "val" or (a, o) in seen]
    write_dataset(tmp_path / "data", space, records, "only-seen")
    config = resolve({"method": "zero-shot", "data": str(tmp_path / "data"), "clip": "tiny", "threads": 1})
    run = Run.create(config, space, tmp_path, "run")
    report = evaluate_run(run, EvalConfig())
    assert (report["op_bias"], report["operating_point"]["how"]) == (0.0, "none")
    assert any("no validation image shows an unseen label" in text for text in report["warnings"])
    point, _ = stored_point(run)
    assert point.composition.bias == 0


def test_a_method_that_trains_nothing_gets_its_point_when_it_is_first_evaluated(tmp_path, dataset):
    from czsl_cli.config import resolve

    config = resolve({"method": "zero-shot", "data": str(dataset), "clip": "tiny", "threads": 1})
    run = Run.create(config, open_data(str(dataset)).space, tmp_path, "run")
    assert stored_point(run) == (None, "")
    report = evaluate_run(run, EvalConfig())
    assert stored_point(run)[0].bias == report["op_bias"]
    assert load(run).operating_point.bias == report["op_bias"]


def test_a_run_that_cannot_be_written_to_is_evaluated_and_keeps_nothing(tmp_path, dataset, monkeypatch):
    from czsl_cli.config import resolve

    config = resolve({"method": "zero-shot", "data": str(dataset), "clip": "tiny", "threads": 1})
    run = Run.create(config, open_data(str(dataset)).space, tmp_path, "run")
    other = Run.create(config, run.space, tmp_path, "other")
    files, said = sorted(run.path.rglob("*")), []
    with monkeypatch.context() as patch:
        patch.setattr(Run, "writable", False)
        report = evaluate_run(run, EvalConfig(), notice=said.append)
        assert "nothing is kept" in said[0] and "cannot be written to" in said[0]
        point = ensure_point(run, "best", False, "val")
        assert point.composition.bias == 0 and "no point is kept" in point.notes[0]
        with pytest.raises(SetupError, match="cannot be kept"):
            calibrate_run(run, Calibration())
    assert sorted(run.path.rglob("*")) == files
    assert report == evaluate_run(other, EvalConfig())


def test_images_of_ones_own_choose_it_too(copied, tmp_path):
    """Other splits, fewer labels in another order and a new word."""
    space = CompositionSpace(
        ("shiny", *toy.ATTRIBUTES[:3]),
        tuple(reversed(toy.OBJECTS[:4])),
        *(np.array([[0, 0], [1, 1], [2, 2], [3, 3], [1, 0]]),) * 3,
    )
    records = []
    for i in range(40):
        attr, obj = space.pair_names(space.test_pairs[i % 5])
        drawn = toy.draw(attr if attr in toy.ATTRIBUTES else toy.ATTRIBUTES[4], obj, seed=i)
        file = tmp_path / "drawn.png"
        drawn.save(file)
        records.append(Record(f"{i}.png", file.read_bytes(), attr, obj, "test"))
    write_dataset(tmp_path / "mine", space, records, "mine")
    asked = Calibration(data=str(tmp_path / "mine"), split="test", aim="unseen-share=0.5")
    point = calibrate_run(copied, asked)
    assert point.facts["images"] == 40 and point.facts["own_data"]
    trained_on = {copied.space.pair_names(pair) for pair in copied.space.train_pairs}
    assert point.facts["seen_images"] == sum((r.attr, r.obj) in trained_on for r in records)
    assert stored_point(copied)[0] == point
    with pytest.raises(DataError, match="has no val images"):
        calibrate_run(copied, replace(asked, split="val"))


def test_another_checkpoint_has_a_point_of_its_own(copied):
    point = ensure_point(copied, "last", False, "val")
    assert point.facts["checkpoint"] == "last"
    assert (copied.path / "operating-point-closed-last.json").exists()
    assert stored_point(copied, "best")[0] is not None


def test_a_stop_while_it_is_chosen_costs_no_training(make_run, monkeypatch):
    from cluster.work import training

    def stopped(*_, **__):
        raise training.StopAskedError

    run = make_run(method="csp", epochs=1)
    monkeypatch.setattr(training, "choose_point", stopped)
    assert train_worker(run, Group(), torch.device("cpu")) == "done"
    assert stored_point(run) == (None, "")
    assert ensure_point(run, "best", False, "val").how == "val"
