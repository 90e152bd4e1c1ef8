"""``czsl import-checkpoint``: from a public program's file to a run that evaluates and predicts, and what is refused."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from czsl.clip.loading import load_clip
from czsl.compositions import CompositionSpace
from czsl.data.toy import dataset as toy
from czsl.errors import CzslError
from czsl_cli.main import cli
from methods import load
from methods.building import build

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from caila_states import SMALL, random_state
from public_states import public_state


def czsl(*args, expect=None):
    """A command in this process; its result, or with ``expect`` the error it raised."""
    done = CliRunner().invoke(cli, list(map(str, args)))
    if expect is None:
        assert done.exception is None, done.output + repr(done.exception)
        return done
    assert isinstance(done.exception, CzslError), done.output + repr(done.exception)
    assert done.exception.exit_code == expect
    assert done.exception.what
    assert done.exception.why
    return str(done.exception)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, czsl_cache):
    """Drawn images on the toy's labels: one of each pair of each split."""
    from czsl.data.table import Record, write_dataset

    records = (Record(name, image, attr, obj, split) for name, attr, obj, split, image in toy.samples(scale=0.01))
    path = tmp_path_factory.mktemp("data") / "drawn"
    write_dataset(path, toy.space(), records, "drawn")
    return path


def made(name, space):
    """A method on the tiny CLIP that is not as it starts, under the settings that a public file implies."""
    torch.manual_seed(0)
    settings = {
        "csp": {},
        "troika": {"adapter_dim": 4, "patch_norm": "cumulative"},
        "clusPro": {"adapter_dim": 4, "heads": 2, "fusion": "logit"},
        "msci": {"adapter_dim": 4, "low_blocks": 2, "high_blocks": 2, "stage1_heads": 2, "stage2_heads": 4},
    }[name]
    method = build(name, space, load_clip("tiny"), {"names": "reference", **settings})
    with torch.no_grad():
        for value in method.parameters():
            value.add_(0.02 * torch.randn_like(value))
    return method.eval()


def reordered(space):
    """The same labels in sorted order, as the public programs have them."""
    named = space.to_json()
    return CompositionSpace.from_json({**named, "attributes": sorted(named["attributes"]), "objects": sorted(named["objects"])})


@pytest.fixture
def files(tmp_path):
    """A public CSP file on the toy's sorted labels, and these labels."""
    space = reordered(toy.space())
    method = made("csp", space)
    # Saved as the public program saves it: a Parameter alone.
    torch.save({"soft_embeddings": torch.nn.Parameter(method.prompts.table.detach())}, tmp_path / "soft_embeddings.pt")
    space.save(tmp_path / "labels.json")
    return tmp_path / "soft_embeddings.pt", tmp_path / "labels.json", method


@pytest.mark.parametrize("name", ["csp", "troika", "clusPro", "msci"])
def test_from_file_to_evaluation_and_prediction(name, dataset, tmp_path, monkeypatch):
    """The labels of the file are in another order than those of the dataset; scores are those of the method that was saved."""
    monkeypatch.chdir(tmp_path)
    space = reordered(toy.space())
    method = made(name, space)
    torch.save(public_state(method), "val_best.pt")
    space.save(tmp_path / "labels.json")
    where = ("--labels", "labels.json", "--data", dataset, "--clip", "tiny")
    if name == "msci":  # no tensor tells its heads
        assert "--config FILE" in czsl("import-checkpoint", "val_best.pt", "--method", name, *where, expect=2)
        Path("msci.yml").write_text("model: {stage_1_num_heads: 2, stage_2_num_heads: 4}")
        where += ("--config", "msci.yml")
    done = czsl("import-checkpoint", "val_best.pt", "--method", name.lower(), *where, "--out", "taken")
    assert done.stdout.strip() == "taken"
    assert "prompts.table" in done.stderr  # what was read

    here = load("taken")
    assert here.space.attributes == toy.space().attributes
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pairs = toy.space().closed_pairs[:40]
    named = [[toy.space().attributes[a], toy.space().objects[o]] for a, o in pairs]
    places = [[space.attributes.index(a), space.objects.index(o)] for a, o in named]
    with torch.no_grad():
        expected = method.score_images(images, torch.tensor(places))
        torch.testing.assert_close(here.score_images(images, torch.from_numpy(pairs.copy())), expected, rtol=1e-5, atol=1e-4)

    report = json.loads(czsl("evaluate", "taken", "--json").stdout)
    assert report["method"] == name
    assert report["images"] == 40
    Image.fromarray(np.zeros((80, 70, 3), np.uint8)).save("black.png")
    (best,) = method.predict(["black.png"], pairs=space.closed_pairs, k=1)
    (record,) = here.predict(["black.png"], k=1)
    assert {k: best["predictions"][0][k] for k in ("attr", "obj")} == {k: record["predictions"][0][k] for k in ("attr", "obj")}


@pytest.mark.slow
def test_the_predict_command_takes_the_run(files, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    czsl("import-checkpoint", files[0], "-m", "csp", "--labels", files[1], "-d", dataset, "--clip", "tiny", "--out", "taken")
    Image.fromarray(np.zeros((80, 70, 3), np.uint8)).save("black.png")
    record = json.loads(czsl("predict", "black.png", "--run", "taken", "--json").stdout)
    assert record["predictions"]


def test_a_checkpoint_that_brings_its_clip_keeps_it_in_the_run(shared, reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = reference("troika_reference")
    about = json.loads((shared / "fixtures/troika_reference.json").read_text())
    torch.save({k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}, "val_best.pt")
    A, O = about["attributes"], about["objects"]
    pairs = [[A[a], O[o]] for a, o in arrays["pairs/train"].tolist()]
    Path("labels.json").write_text(json.dumps({"attributes": A, "objects": O, "train_pairs": pairs}))
    Path("troika.yml").write_text(yaml.safe_dump({"train": {"attr_loss_weight": 0.7, "lr": 1e-4}, "cmt_layers": 2}))
    facts = czsl(
        "import-checkpoint", "val_best.pt", "-m", "troika", "--labels", "labels.json", "--config", "troika.yml", "--json"
    )
    facts = json.loads(facts.stdout)
    assert facts["used"]["traction_scale"] == ["lamda"]
    assert "clip.visual.proj" in facts["ignored"]
    method = load(facts["run"])
    assert Path(facts["run"]).name == "troika-val_best"
    assert method.config.attr_loss_weight == 0.7
    with torch.no_grad():
        scores = method.score_images(arrays["inputs/images"], arrays["pairs/open"])
    torch.testing.assert_close(scores, arrays["tensors/fused_open"], atol=1e-5, rtol=0)
    assert method.space.train_pairs.tolist() == arrays["pairs/train"].tolist()
    why = czsl(
        "import-checkpoint", "val_best.pt", "-m", "troika", "--labels", "labels.json", "--clip", "tiny", "-o", "b", expect=2
    )
    assert "not the CLIP in the checkpoint" in why
    assert not Path("b").exists()


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (Path.write_text, (self.victim, "run"))


@pytest.mark.parametrize("write", ["pickle", "torch"])
def test_a_hostile_pickle_is_refused_and_never_run(files, tmp_path, write):
    victim, file = tmp_path / "victim", tmp_path / "hostile.pt"
    if write == "torch":
        torch.save({"soft_embeddings": Hostile(victim)}, file)
    else:
        file.write_bytes(pickle.dumps({"soft_embeddings": Hostile(victim)}, protocol=2))
    why = czsl("import-checkpoint", file, "-m", "csp", "--labels", files[1], "--clip", "tiny", "-o", tmp_path / "r", expect=2)
    assert "nothing is unpickled" in why
    assert "weights_only" not in why  # torch advises to switch the guard off
    assert not victim.exists()
    assert not (tmp_path / "r").exists()


def test_what_is_refused(files, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, labels, method = files

    def refused(path=file, expect=2, **options):
        given = {"method": "csp", "labels": labels, "clip": "tiny", "out": "r", **options}
        flags = [x for k, v in given.items() if v is not None for x in (f"--{k}", v)]
        why = czsl("import-checkpoint", path, *flags, expect=expect)
        assert not Path("r").exists()
        return why

    Path("text.pt").write_text("no checkpoint")
    assert "cannot be read as a checkpoint" in refused("text.pt")
    torch.save([1, 2], "list.pt")
    assert "a list" in refused("list.pt")
    torch.save({"epoch": 3}, "empty.pt")
    assert "no tensor" in refused("empty.pt")
    assert "public Troika program" in refused(method="troika")
    assert "did you mean 'zero-shot'" in refused(method="zeroshoot")
    assert "no public checkpoints of zero-shot" in refused(method="zero-shot")

    fewer = CompositionSpace(method.space.attributes[:-1], method.space.objects, *[np.zeros((0, 2))] * 3)
    fewer.save(Path("fewer.json"))
    assert "26 attributes and objects together\nthe labels have 13 + 12" in refused(labels="fewer.json")
    other = CompositionSpace((*method.space.attributes[:-1], "zzz"), method.space.objects, *[np.zeros((0, 2))] * 3)
    other.save(Path("other.json"))
    assert "other attributes than --labels\nnot in both: wooden, zzz" in refused(labels="other.json", data=dataset)
    assert "no labels at absent.json" in refused(labels="absent.json")
    Path("bad.json").write_text("{")
    assert "not JSON" in refused(labels="bad.json", expect=3)
    assert "labels are not known" in refused(labels=None)

    torch.save({"soft_embeddings": torch.zeros(26, 768)}, "wide.pt")
    assert "another CLIP\nits words (soft_embeddings) are 768 wide, the text tower of tiny is 128 wide" in refused("wide.pt")
    assert "holds no CLIP" in refused(clip=None)
    Path("config.yml").write_text("- 1")
    assert "holds no settings" in refused(config="config.yml")
    Path("config.yml").write_text("attr_dropout: lots")
    assert "attr_dropout" in refused(config="config.yml")
    Path("there").mkdir()
    assert "a run is never overwritten" in czsl(
        "import-checkpoint", file, "-m", "csp", "--labels", labels, "--clip", "tiny", "-o", "there", expect=2
    )


def test_a_file_of_caila_imports_evaluates_predicts_and_is_indexed(dataset, tmp_path):
    """In its published form: the state below ``net``, beside it the epoch and a NumPy number."""
    file, run = tmp_path / "ckpt_best_auc.t7", tmp_path / "run"
    torch.save({"net": random_state(SMALL), "epoch": 3, "AUC": np.float64(0.25)}, file)
    facts = json.loads(czsl("import-checkpoint", file, "-m", "caila", "-d", dataset, "-o", run, "--json").stdout)
    assert facts["used"]["attribute_scale"] == ["attr_logit_scale"]
    assert (run / "clip.safetensors").is_file()
    report = json.loads(czsl("evaluate", run, "--engine", "local", "--json").stdout)
    assert report["method"] == "caila" and 0 <= report["auc"] <= 1
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (80, 60), (200, 30, 30)).save(folder / "a.png")
    record = json.loads(czsl("predict", folder, "--run", run, "--engine", "local", "--json").stdout.splitlines()[0])
    assert record["error"] is None and len(record["predictions"]) == 5
    czsl("index", "build", run, "--engine", "local")
    found = json.loads(
        czsl("predict", folder, "--run", run, "--open-world", "--engine", "local", "--json").stdout.splitlines()[0]
    )
    assert found["retrieval"]["exact"]
    # The same numbers as the method itself gives.
    named = [(p["attr"], p["obj"]) for p in load(run).predict([folder / "a.png"])[0]["predictions"]]
    assert named == [(p["attr"], p["obj"]) for p in record["predictions"]]


def test_a_file_with_more_than_numbers_beside_the_weights_is_refused(dataset, tmp_path):
    file = tmp_path / "ckpt.t7"
    torch.save({"net": random_state(SMALL), "epoch": Path("x")}, file)
    said = czsl("import-checkpoint", file, "-m", "caila", "-d", dataset, "-o", tmp_path / "run", expect=2)
    assert "unpickled" in said
    torch.save({"net": {"a": torch.zeros(2)}}, file)
    said = czsl("import-checkpoint", file, "-m", "caila", "-d", dataset, "-o", tmp_path / "run", expect=2)
    assert "public CAILA program" in said or "no CLIP" in said
    assert not (tmp_path / "run").exists()
