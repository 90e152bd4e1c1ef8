"""The same question about the same images is answered from what an earlier command kept, and never where anything changed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cluster.predict
from cluster import answers
from cluster.work.comm import Group
from cluster.work.training import train_worker
from czsl.data import kept_answers, kept_features
from czsl.data.table import open_data
from czsl.data.toy import dataset as toy
from czsl.runs.run import Run
from czsl_cli.config import resolve

ASK = ["predict", "photos", "--zero-shot", "--attributes", "a.txt", "--objects", "o.txt", "--engine", "local"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Five drawings, an empty cache, and names in files; nothing is too fresh to be known by its times."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CZSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_features, "FRESH_NS", -1)
    Path("photos").mkdir()
    for seed in range(5):
        toy.draw("red", "apple", seed=seed).save(f"photos/{seed}.png")
    Path("a.txt").write_text("red\nblue\n")
    Path("o.txt").write_text("apple\nball\n")
    return Path("photos")


@pytest.fixture
def computed(monkeypatch):
    """The numbers of images of questions that were computed."""
    seen, real = [], cluster.predict.predict_files
    monkeypatch.setattr(
        cluster.predict, "predict_files", lambda c, s, names, **more: seen.append(len(names)) or real(c, s, names, **more)
    )
    return seen


@pytest.fixture(scope="module")
def trained(tmp_path_factory, czsl_cache, dataset):
    """A short CSP run with the point that its training chose."""
    config = resolve({"method": "csp", "data": str(dataset), "epochs": 1, "batch": 32, "threads": 1, "seed": 0})
    run = Run.create(config, open_data(str(dataset)).space, tmp_path_factory.mktemp("runs"), "trained")
    assert train_worker(run, Group(), torch.device("cpu")) == "done"
    return run


def test_the_same_question_is_answered_without_computing(czsl, photos, computed):
    first = czsl(*ASK, "--json").stdout
    again = czsl(*ASK, "--json")
    assert again.stdout == first == czsl(*ASK, "--json", "--no-keep").stdout
    assert computed == [5, 5]
    for suffix in ("csv", "jsonl", "parquet"):
        czsl(*ASK, "--out", f"kept.{suffix}", "--html", "kept.html", "--sort-into", f"sorted-{suffix}")
        czsl(*ASK, "--out", f"new.{suffix}", "--no-keep")
        assert Path(f"kept.{suffix}").read_bytes() == Path(f"new.{suffix}").read_bytes()
        assert not list(Path().glob(".kept*"))
    assert computed == [5, 5, 5, 5, 5]
    assert "5 images answered as by an earlier command" in czsl(*ASK, "--json", "--profile").stderr
    czsl("cache", "clear", "answers", "--yes")
    czsl(*ASK, "--json")
    assert len(computed) == 6


def test_an_answer_that_is_there_needs_no_torch(photos):
    code = (
        "import sys\n"
        "from czsl.data import kept_features\n"
        "kept_features.FRESH_NS = -1\n"
        "from czsl_cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print('torch' in sys.modules, 'pyarrow' in sys.modules, file=sys.stderr)\n"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    found = [
        subprocess.run([sys.executable, "-c", code, *ASK, "--json"], capture_output=True, text=True, env=environment, check=True)
        for _ in range(2)
    ]
    assert found[0].stdout == found[1].stdout
    assert "True True" not in found[1].stderr and "False False" in found[1].stderr


def changed_photo(photos):
    toy.draw("blue", "ball", seed=9).save(photos / "3.png")


def touched_photo(photos):
    os.utime(photos / "3.png", (10**9, 10**9))


def new_photo(photos):
    toy.draw("blue", "ball", seed=9).save(photos / "9.png")


def no_photo(photos):
    (photos / "3.png").unlink()


def other_words(photos):
    Path("a.txt").write_text("red\ngreen\n")


@pytest.mark.parametrize("change", [changed_photo, touched_photo, new_photo, no_photo, other_words])
def test_a_change_of_the_images_or_the_words_is_another_question(czsl, photos, computed, change):
    czsl(*ASK, "--json")
    change(photos)
    found = czsl(*ASK, "--json").stdout
    assert len(computed) == 2
    assert found == czsl(*ASK, "--json", "--no-keep").stdout


@pytest.mark.parametrize(
    "more", [["--top", "2"], ["--bias", "1.5"], ["--min-prob", "0.4"], ["--fast-jpeg"], ["--background", "black"]], ids=" ".join
)
def test_other_options_are_another_question(czsl, photos, computed, more):
    czsl(*ASK, "--json")
    found = czsl(*ASK, *more, "--json").stdout
    assert len(computed) == 2
    assert czsl(*ASK, *more, "--json").stdout == found
    assert len(computed) == 2


def test_another_version_another_machine_and_changed_weights_answer_anew(czsl, photos, computed, monkeypatch, open_clip_model):
    torch.save(open_clip_model.state_dict(), "own.pt")
    ask = [*ASK, "--clip", "own.pt"]
    czsl(*ask, "--json"), czsl(*ask, "--json")
    assert len(computed) == 1
    os.utime("own.pt", (10**9, 10**9))
    czsl(*ask, "--json")
    assert len(computed) == 2
    for name, value in (("_code", lambda: "edited"), ("_machine", lambda: ["another"]), ("_version", lambda package: "99")):
        with monkeypatch.context() as patch:
            patch.setattr(answers, name, value)
            czsl(*ask, "--json")
    assert len(computed) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    czsl(*ask, "--json")
    assert len(computed) == 6


def test_fresh_images_bad_images_and_a_user_who_keeps_nothing(czsl, photos, computed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(kept_features, "FRESH_NS", 10**12)
        czsl(*ASK, "--json"), czsl(*ASK, "--json")
    with monkeypatch.context() as patch:
        patch.setenv("CZSL_PHOTOGRAPHS_GIB", "0")
        czsl(*ASK, "--json"), czsl(*ASK, "--json")
    (photos / "bad.png").write_bytes(b"no image")
    czsl(*ASK, "--json", expect=6), czsl(*ASK, "--json", expect=6)
    assert computed == [5, 5, 5, 5, 6, 6]
    assert not (Path("cache") / "answers").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"not compressed",
        lambda content: gzip.compress(b"[]"),
        lambda content: gzip.compress(b'{"files": 3}\n' + b'{"image": 1}\n' * 5),
        lambda content: gzip.compress(gzip.decompress(content)[:-40]),
        lambda content: gzip.compress(b"\n".join(gzip.decompress(content).splitlines()[:-1])),
        lambda content: gzip.compress(b"\0" * 200_000),
    ],
)
def test_a_damaged_answer_is_computed_anew(czsl, photos, computed, damage, monkeypatch):
    monkeypatch.setattr(kept_answers, "MAX_ANSWER_BYTES", 100_000)
    first = czsl(*ASK, "--json").stdout
    (file,) = (Path("cache") / "answers").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert czsl(*ASK, "--json").stdout == first
    assert len(computed) == 2
    assert czsl(*ASK, "--json").stdout == first
    assert len(computed) == 2


def test_the_least_recently_used_answers_make_room(czsl, photos, computed, monkeypatch):
    folder = Path("cache") / "answers"
    for top in (1, 2, 3):
        czsl(*ASK, "--top", top, "--json")
    size = max(file.stat().st_size for file in folder.iterdir())
    times = {file: 10**9 + n for n, file in enumerate(sorted(folder.iterdir()))}
    for file, when in times.items():
        os.utime(file, (when, when))
    monkeypatch.setattr(kept_answers, "MAX_BYTES", 2 * size + size // 2)
    czsl(*ASK, "--top", 4, "--json")
    left = set(folder.iterdir())
    assert len(left) <= 3
    assert min(times, key=times.__getitem__) not in left


def test_a_run_answers_again_until_its_point_or_its_weights_change(czsl, photos, computed, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.path, run)
    ask = ["predict", run, "photos", "--engine", "local", "--json"]
    first = czsl(*ask).stdout
    assert czsl(*ask).stdout == first
    assert len(computed) == 1
    found = czsl("search", run, "red apple", "--in", "photos", "--engine", "local", "--json").stdout
    assert czsl("search", run, "red apple", "--in", "photos", "--engine", "local", "--json").stdout == found
    assert len(computed) == 2
    (point,) = run.glob("*point*.json")
    facts = json.loads(point.read_text())
    facts["bias"] = facts["bias"] + 3.0
    point.write_text(json.dumps(facts))
    assert czsl(*ask).stdout != first
    assert len(computed) == 3
