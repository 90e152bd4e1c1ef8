"""The precision of a run: chosen once, the same in all that follows from the run, kept when it resumes."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

import cluster.work.precision
from cluster.evaluate import evaluate_run
from cluster.work.comm import Group
from cluster.work.evaluation import EvalConfig
from cluster.work.indexing import IndexConfig, compute, folder_of, parts_folder
from cluster.work.predictor import PredictConfig, Predictor
from cluster.work.training import prepare, train_worker
from czsl.data.images import list_images
from czsl.data.toy import dataset as toy
from czsl.errors import UsageError
from czsl.reading import read_json
from czsl.retrieval.index import CompositionIndex
from czsl.runs.run import Run
from methods import load

CPU = torch.device("cpu")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """``auto`` chooses here what it chooses on a card with bfloat16."""
    monkeypatch.setattr(cluster.work.precision, "fitting", lambda device: "bfloat16")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        toy.draw(toy.ATTRIBUTES[i % 5], toy.OBJECTS[i % 7], seed=i).save(folder / f"{i}.png")
    return folder


def test_auto_is_float32_on_a_processor_and_says_so(make_run):
    run = make_run(method="csp", epochs=1)
    assert run.config.precision == "auto"
    assert (run.precision, run.precision_on(CPU)) == ("", "float32")
    train_worker(run, Group(), CPU)
    assert run.environment()["precision"] == run.precision == "float32"
    assert next(run.metrics("start"))["precision"] == "float32"
    method = load(run)
    assert method.clip.precision == "float32"
    assert next(method.clip.visual.parameters()).dtype == torch.float32


def test_everything_that_follows_from_a_run_computes_as_it_was_trained(make_run, as_on_a_gpu, photos, monkeypatch):
    run = make_run(method="csp", epochs=1, lr=0.01)
    train_worker(run, Group(), CPU)
    assert run.precision == "bfloat16"
    monkeypatch.undo()
    names = sorted(p.name for p in list_images(photos))
    predictor = Predictor(PredictConfig(run=str(run.path), bias="none"), CPU)
    assert predictor.method.clip.precision == "bfloat16"
    answered = predictor.predict(photos, names)
    direct = load(run).predict([photos / n for n in names], bias="none")
    assert [r["predictions"] for r in answered] == [r["predictions"] for r in direct]
    plan = IndexConfig(str(run.path))
    parts_folder(run, plan).mkdir()
    compute(plan, Group(), CPU)
    method = load(run)
    kept = CompositionIndex.load(folder_of(run))
    with torch.inference_mode():
        expected = method.encode_pairs(torch.from_numpy(method.space.open_pairs.copy()))
    assert torch.equal(torch.from_numpy(kept.embeddings(slice(None))), expected)
    assert "bfloat16" in json.dumps([p.name for p in (_cache() / "features").iterdir()])
    evaluate_run(run, EvalConfig())


def _cache():
    from czsl.data.paths import cache_folder

    return cache_folder()


def test_a_run_resumes_in_what_it_began_with(make_run, as_on_a_gpu, monkeypatch):
    run = make_run(method="csp", epochs=2)
    prepared = prepare(run, Group(), CPU)
    assert prepared.precision == "bfloat16"
    monkeypatch.undo()
    again = prepare(Run(run.path), Group(), CPU)
    assert again.precision == "bfloat16"
    assert again.method.clip.visual.vit.proj.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in again.method.parameters())


def test_workers_on_unlike_cards_take_what_all_can_do(make_run, as_on_a_gpu):
    class Two(Group):
        def gather_objects(self, value):
            return [value, "float32"]

    assert cluster.work.precision.agreed_precision(make_run(), Two(), CPU) == "float32"
    assert cluster.work.precision.agreed_precision(make_run(), Group(), CPU) == "bfloat16"
    assert cluster.work.precision.agreed_precision(make_run(precision="float64"), Two(), CPU) == "float64"


def test_old_runs_keep_what_they_have(make_run):
    for old in ("float32", "bfloat16", None):
        run = make_run()
        file = run.path / "config.yaml"
        content = yaml.safe_load(file.read_text())
        if old is None:
            del content["precision"]
        else:
            content["precision"] = old
        file.write_text(yaml.safe_dump(content))
        assert Run(run.path).precision == (old or "float32")


def test_a_damaged_record_is_refused(make_run):
    run = make_run()
    for bad in ("int8", "auto", 3, None, ["float32"]):
        (run.path / "environment.json").write_text(json.dumps({"precision": bad}))
        with pytest.raises(UsageError, match="is damaged"):
            _ = run.precision


def test_a_run_without_training_notes_what_fits(czsl_main, tmp_path):
    czsl_main("train", "--method", "zero-shot", "--out", str(tmp_path), "--name", "z")
    assert read_json(tmp_path / "z" / "environment.json")["precision"] == "float32"


@pytest.fixture
def czsl_main(capsys):
    from czsl_cli.main import main

    def run(*args):
        with pytest.raises(SystemExit) as end:
            main([*args])
        shown = capsys.readouterr()
        assert not end.value.code, shown.err
        return shown

    return run


def test_bfloat16_on_a_processor_without_it_is_said(czsl_main, tmp_path, monkeypatch, make_run, photos):
    from czsl import precision
    from czsl_cli import runs

    run = make_run(method="csp", epochs=1, precision="bfloat16")
    train_worker(run, Group(), CPU)
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    for words in (["predict", str(photos), "--run", str(run.path)], ["evaluate", str(run.path), "--engine", "local"]):
        assert "without bfloat16 instructions" in czsl_main(*words).err
    doctor = json.loads(czsl_main("doctor", "--json").out)
    (found,) = [f for f in doctor["findings"] if f["subject"] == "precision"]
    assert "auto is float32" in found["found"]
    assert "8 times as long" in found["found"]
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    assert "bfloat16 instructions" not in czsl_main("predict", str(photos), "--run", str(run.path)).err
    assert runs.tell_precision(run) is None
