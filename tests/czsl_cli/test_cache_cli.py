"""``czsl cache``, and what commands keep of photographs: seen, limited, emptied, and never more than was made here."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from czsl.data import kept_features
from czsl.data.caches import KINDS, caches
from czsl.data.toy import dataset as toy

LABELS = ["--attributes", "a.txt", "--objects", "o.txt", "--engine", "local"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder; nothing is too fresh to be known by its times."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CZSL_CACHE", str(folder))
    monkeypatch.setattr(kept_features, "FRESH_NS", -1)
    return folder


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for seed in range(5):
        toy.draw("red", "apple", seed=seed).save(f"photos/{seed}.png")
    (tmp_path / "a.txt").write_text("red\nblue\n")
    (tmp_path / "o.txt").write_text("apple\nball\n")
    return tmp_path / "photos"


def test_what_is_kept_is_shown_and_emptied(czsl, cache, photos):
    czsl("predict", "photos", "--zero-shot", *LABELS)
    shown = json.loads(czsl("cache", "--json").stdout)
    assert shown["folder"] == str(cache)
    assert shown["photographs_limit_bytes"] == 4 * 2**30
    assert list(shown["kinds"]) == list(KINDS)
    assert shown["kinds"]["photographs"]["entries"] == 2  # of images, and of texts
    assert shown["kinds"]["towers"]["entries"] == 1
    assert shown["kinds"]["photographs"]["bytes"] > 5 * 64 * 4
    assert "photographs" in czsl("cache").stdout
    (cache / "photographs" / "mine.txt").write_text("mine")
    assert "needs a confirmation" in czsl("cache", "clear", expect=2).stderr
    assert json.loads(czsl("cache", "--json").stdout) == shown
    assert "deleted photographs" in czsl("cache", "clear", "photographs", "--yes").stderr
    assert [p.name for p in (cache / "photographs").iterdir()] == ["mine.txt"]
    assert "nothing is kept" in czsl("cache", "clear", "photographs", "-y").stderr
    assert "deleted answers, towers" in czsl("cache", "clear", "-y").stderr
    assert "nothing is kept" in czsl("cache", "clear", "-y").stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["clear", "photograph"], "did you mean 'photographs'"),
        (["clear", "../.."], "unknown kind"),
        (["--json", "clear"], "goes with"),
        (["empty"], "No such command"),
    ],
)
def test_bad_words_are_refused(czsl, cache, args, words):
    assert words in czsl("cache", *args, expect=2).stderr


@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf", ""])
def test_a_limit_that_is_no_number_is_refused(czsl, cache, photos, monkeypatch, value):
    monkeypatch.setenv("CZSL_PHOTOGRAPHS_GIB", value)
    for args in (["cache"], ["predict", "photos", "--zero-shot", *LABELS]):
        assert "CZSL_PHOTOGRAPHS_GIB" in czsl(*args, expect=2).stderr


def test_files_of_other_people_are_left_alone(cache):
    for folder, _, _ in KINDS.values():
        (cache / folder).mkdir(parents=True, exist_ok=True)
    strange = ["pixels/a.npy", "features/mine.npy", "photographs/a.sqlite", "toy-abc", "notes.txt", "features/.x.tmp"]
    for name in strange:
        (cache / name).write_bytes(b"mine")
    (cache / "toy-abcdef").mkdir()  # without a dataset in it
    key = "0123456789abcdef0123"
    ours = [f"pixels/train-{key}-64.npy", f"features/val-{key}-{key}-float32-cpu1.npy", f"features/.a.npy.{key}{key[:12]}.tmp"]
    for name in ours:
        np.save((cache / name).open("wb"), np.zeros(9))
    outside = cache.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("stays")
    (cache / f"features/val-{key}-{key}-x.parts").symlink_to(outside)
    found = {str(p.relative_to(cache)) for c in caches() for p in c.entries}
    assert found == {*ours, f"features/val-{key}-{key}-x.parts"}
    for c in caches():
        c.clear()
    assert (outside / "precious").read_text() == "stays"
    assert all((cache / name).exists() for name in strange)
    assert not any(c.entries for c in caches())


def test_a_second_question_says_what_it_found_and_answers_the_same(czsl, cache, photos):
    args = ["predict", "photos", "--zero-shot", *LABELS, "--json", "--profile"]
    first = czsl(*args)
    assert "0 images found among the kept features, 5 images encoded" in first.stderr
    again = czsl(*args)
    assert "5 images answered as by an earlier command, 0 images found among the kept features, 0 images encoded" in again.stderr
    assert again.stdout == first.stdout
    second = czsl(*args, "--top", "4")  # another question: there are four compositions
    assert "5 images found among the kept features, 0 images encoded" in second.stderr
    assert second.stdout == first.stdout
    plain = czsl(*args, "--no-keep")
    assert "0 images found among the kept features, 5 images encoded" in plain.stderr
    assert plain.stdout == first.stdout
    fast = czsl(*args, "--fast-jpeg")
    assert "5 images encoded" in fast.stderr
    assert "--fast-jpeg" in fast.stderr
    assert all(json.loads(line)["decoding"] == "fast-jpeg" for line in fast.stdout.splitlines())


def test_a_cache_folder_that_cannot_be_written_costs_no_answer(czsl, cache, photos):
    cache.mkdir()
    (cache / "photographs").write_text("a file")
    done = czsl("predict", "photos", "--zero-shot", *LABELS, "--json")
    assert len(done.stdout.splitlines()) == 5


def test_a_profile_of_several_workers_is_refused(czsl, photos):
    args = [
        "predict",
        "photos",
        "--zero-shot",
        "--attributes",
        "a.txt",
        "--objects",
        "o.txt",
        "--workers-per-node",
        "2",
        "--profile",
    ]
    assert "one worker on this machine" in czsl(*args, expect=2).stderr


def test_a_profile_names_every_phase(czsl, cache, photos):
    words = czsl("predict", "photos", "--zero-shot", *LABELS, "--profile").stderr
    for phase in ("importing", "loading CLIP", "candidates", "waiting", "encoding images", "ranking", "together", "decoding"):
        assert phase in words
    assert os.environ["CZSL_CACHE"] == str(cache)
