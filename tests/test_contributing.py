"""CONTRIBUTING's method, taken from its text, goes through the contract, training and evaluation as a registered one does."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch

import methods
from cluster.evaluate import evaluate_run
from cluster.work.comm import Group
from cluster.work.evaluation import EvalConfig
from cluster.work.training import train_worker
from czsl.data.table import open_data
from czsl.runs.run import Run
from czsl_cli.config import resolve
from methods.building import build
from methods.registry import METHODS, canonical_name

ROOT = Path(__file__).parents[1]


def loaded(name, file):
    """A module from a file, not kept among the loaded ones."""
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    return spec, module


def contract_checks():
    """The checks of the contract that every method passes by itself, by name."""
    spec, module = loaded("contract_checks", ROOT / "tests/methods/test_contract.py")
    spec.loader.exec_module(module)
    checks = {n: f for n, f in vars(module).items() if n.startswith("test_") and "method" in inspect.signature(f).parameters}
    assert len(checks) > 10
    return checks


CHECKS = contract_checks()


@pytest.fixture
def offsets(tmp_path, monkeypatch):
    """The guide's method: its file and its line of the registry, as somebody would add them."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "offsets.py"
    file.write_text(blocks[0], encoding="utf-8")
    spec, module = loaded("methods.offsets", file)
    monkeypatch.setitem(sys.modules, "methods.offsets", module)
    spec.loader.exec_module(module)
    ((name, target),) = ast.literal_eval(f"{{{blocks[1]}}}").items()
    monkeypatch.setitem(METHODS, name, target)
    return name


def test_the_method_of_the_guide_is_as_short_as_it_says():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert len(code.splitlines()) < 60
    for name in re.findall(r"\]\((methods/[\w/.]+)\)", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_the_method_of_the_guide_keeps_the_contract(check, offsets, small_clip, small_space):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    size = small_clip.image_size
    given = {
        "method": build(offsets, small_space, small_clip, {}).eval(),
        "images": torch.randint(0, 256, (6, 3, size, size), generator=generator, dtype=torch.uint8),
        "small_clip": small_clip,
    }
    check(**{name: given[name] for name in inspect.signature(check).parameters})


def test_the_method_of_the_guide_trains_as_a_run(offsets, dataset, tmp_path):
    assert canonical_name("OFFSETS") == offsets
    settings = {"method": offsets, "data": str(dataset), "clip": "tiny", "epochs": 4, "batch": 24, "lr": 0.02, "threads": 1}
    run = Run.create(resolve(settings, ["scale=2.0"]), open_data(str(dataset)).space, tmp_path, "offsets")
    assert train_worker(run, Group(), torch.device("cpu")) == "done"
    losses = [record["loss"] for record in run.metrics("step")]
    assert losses[-1] < losses[0]
    report = evaluate_run(run, EvalConfig())
    assert report["method"] == offsets
    assert 0 < report["auc"] < 1
    plain = Run.create(resolve({**settings, "method": "zero-shot"}), run.space, tmp_path, "plain")
    assert methods.load(run).offsets.abs().max() > 0
    assert evaluate_run(plain, EvalConfig())["auc"] != report["auc"]
