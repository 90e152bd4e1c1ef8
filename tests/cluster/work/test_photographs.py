"""Files on their way to features: the same for any number of threads, order and earlier question; each encoded once."""

from __future__ import annotations

import json
import os
import random
import shutil
import tarfile
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.work import photographs
from cluster.work.photographs import BATCH, HALF, Photographs, Preparation
from cluster.work.predictor import PredictConfig, Predictor
from cluster.work.profile import Profile, process_began
from czsl.data.inputs import ImageSource, gather
from czsl.data.kept_features import FeatureStore
from czsl.data.photographs import AS_STORED
from czsl.data.toy import dataset as toy

CPU = torch.device("cpu")
COUNT = 75
YEARS_AGO = 10**9


@pytest.fixture
def photos(tmp_path):
    """75 small images, four of them unreadable, none changed lately."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(COUNT):
        file = folder / f"{i:03d}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 9, 3), np.uint8)).save(file)
        if i % 20 == 7:
            file.write_bytes(b"no image")
    return folder


def parts(names, size=BATCH):
    return [names[i : i + size] for i in range(0, len(names), size)]


class Counting:
    """A preparation and an encoder that note what they are given."""

    def __init__(self, named=False):
        self.prepared, self.sizes, self.threads = [], [], set()
        self.how = Preparation(self.prepare, AS_STORED, named)

    def prepare(self, image, name):
        self.threads.add(threading.get_ident())
        self.prepared.append(name)
        return {"images": torch.from_numpy(np.asarray(image).copy())}

    def encode(self, prepared):
        self.sizes.append(len(prepared["images"]))
        return prepared["images"].double().flatten(1)[:, :5]

    def features(self, source, names, size=BATCH, **options):
        """Name -> features, or the kind of error."""
        found = Photographs(self.how, self.encode, halves=True, **options).batches(source, parts(names, size))
        found = [list(batch) for batch in found]
        assert [[p.name for p in batch] for batch in found] == parts(names, size)
        return {p.name: p.error.kind if p.error else p.features.tolist() for batch in found for p in batch}


def expected(folder):
    out = {}
    for file in sorted(folder.iterdir()):
        try:
            out[file.name] = np.asarray(Image.open(file)).astype(np.float64).reshape(-1)[:5].tolist()
        except OSError:
            out[file.name] = "not an image"
    return out


@pytest.mark.parametrize(("threads", "size"), [(1, BATCH), (2, 3), (5, 1), (3, BATCH)])
def test_threads_and_batches_change_nothing(photos, threads, size):
    names, work = sorted(p.name for p in photos.iterdir()), Counting()
    assert work.features(ImageSource(str(photos), names), names, size, threads=threads) == expected(photos)
    assert len(work.threads) <= threads
    assert set(work.sizes) <= {HALF, BATCH}
    assert len(work.sizes) == 3  # 71 images


def test_a_second_question_encodes_what_is_new_and_reads_nothing_else(photos, tmp_path):
    store = FeatureStore(tmp_path / "s.sqlite", 2**30)
    names = sorted(p.name for p in photos.iterdir())
    before, real = 0, time.time_ns
    for name in names:
        os.utime(photos / name, (YEARS_AGO, YEARS_AGO))
    first, second = Counting(), Counting()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: real() + 10**11)  # the files were made long ago
        one = first.features(ImageSource(str(photos), names), names, store=store)
        before = store.find([ImageSource(str(photos), names).version("000.png")])
        assert before[0] is not None
        (photos / "broken-now.png").write_bytes(b"x")
        shutil.copy(photos / "001.png", photos / "copy.png")
        toy.draw("red", "apple", seed=1).resize((9, 9)).save(photos / "new.png")
        (photos / "002.png").write_bytes((photos / "003.png").read_bytes())
        again = sorted(p.name for p in photos.iterdir())
        random.Random(0).shuffle(again)
        source, opened = ImageSource(str(photos), again), []
        original = ImageSource.open
        patch.setattr(ImageSource, "open", lambda self, name: opened.append(name) or original(self, name))
        two = second.features(source, again, store=store)
    assert second.prepared == ["new.png"]
    assert second.sizes == [HALF]
    bad = {name for name, value in one.items() if isinstance(value, str)}
    assert sorted(opened) == sorted({"broken-now.png", "copy.png", "new.png", "002.png"} | bad)
    assert two == expected(photos)


def test_a_new_image_among_many_kept_ones_holds_up_few_of_them(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "MAX_WAITING", 20)
    store = FeatureStore(tmp_path / "s.sqlite", 2**30)
    names = [n for n in sorted(p.name for p in photos.iterdir()) if expected(photos)[n] != "not an image"]
    source = ImageSource(str(photos), names)
    Counting().features(source, names[1:], store=store)
    work, handed = Counting(), []
    batches = [[n] for n in names]
    for batch in Photographs(work.how, work.encode, halves=True, store=store, threads=1).batches(source, batches):
        handed.append(batch[0].name)
        if len(handed) == 1:
            assert work.sizes == [HALF]
    assert handed == names
    assert len(names) > 20


def test_names_count_where_images_are_prepared_by_name(photos, tmp_path):
    store = FeatureStore(tmp_path / "s.sqlite", 2**30)
    shutil.copy(photos / "001.png", photos / "copy.png")
    source = ImageSource(str(photos), ["001.png", "copy.png"])
    work = Counting(named=True)
    for _ in range(2):
        work.features(source, ["001.png"], store=store)
        work.features(source, ["copy.png"], store=store)
    assert sorted(work.prepared) == ["001.png", "copy.png"]


def test_a_compressed_archive_is_read_from_front_to_back(photos, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as packed:
        for file in sorted(photos.iterdir()):
            packed.add(file, file.name)
    source = gather([tmp_path / "t.tar.gz"]).source
    opened, original = [], ImageSource.open
    monkeypatch.setattr(ImageSource, "open", lambda self, name: opened.append(name) or original(self, name))
    assert Counting().features(source, source.names, threads=4) == expected(photos)
    assert opened == source.names


def test_whoever_stops_asking_leaves_no_thread(photos, tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as packed:
        for file in sorted(photos.iterdir()):
            packed.add(file, file.name)
    before = threading.active_count()
    for source in (gather([photos]).source, gather([tmp_path / "t.tar"]).source):
        work = Counting()
        stream = Photographs(work.how, work.encode, threads=2).batches(source, parts(source.names, 4))
        next(stream)
        stream.close()
    assert threading.active_count() == before


def test_a_profile_adds_up(photos):
    profile, names = Profile(), sorted(p.name for p in photos.iterdir())
    Counting().features(ImageSource(str(photos), names), names, profile=profile)
    facts = profile.facts()
    assert facts["counts"] == {"answers": 0, "kept": 0, "encoded": 71, "bad": 4}
    assert sum(facts["own"].values()) == pytest.approx(facts["wall"], abs=0.01)
    assert facts["own"]["waiting"] > 0
    assert facts["threads"]["decoding"] > 0
    assert 0 < time.time() - process_began() < 10**5


# -- answers -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawings")
    for i in range(COUNT):
        toy.draw(toy.ATTRIBUTES[i % 5], toy.OBJECTS[i % 7], seed=i).save(folder / f"{i:03d}.png")
    return folder


def answers(predictor, folder, names, size=BATCH):
    return {r["image"]: json.dumps(r) for batch in predictor.records(folder, parts(names, size)) for r in batch}


def test_answers_have_the_same_digits_kept_or_new_in_any_order(drawings, tmp_path, monkeypatch):
    monkeypatch.setenv("CZSL_CACHE", str(tmp_path))
    config = PredictConfig(space=toy.space().to_json(), open_world=True)
    names = sorted(p.name for p in drawings.iterdir())
    plain = answers(Predictor(config, CPU), drawings, names)
    shuffled = random.Random(1).sample(names, len(names))
    assert answers(Predictor(config, CPU, threads=3), drawings, shuffled, 5) == plain
    assert not (tmp_path / "photographs").exists()
    keeping = Predictor(config, CPU, keep=True)
    assert answers(keeping, drawings, shuffled[:40]) == {n: plain[n] for n in shuffled[:40]}
    assert keeping.profile.counts["encoded"] == 40
    later = Predictor(config, CPU, keep=True)
    assert answers(later, drawings, names) == plain
    assert later.profile.counts == {"answers": 0, "kept": 40, "encoded": 35, "bad": 0}


def test_what_changes_features_has_a_store_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CZSL_CACHE", str(tmp_path))
    space = toy.space().to_json()
    requests = [
        PredictConfig(space=space),
        PredictConfig(space=space, background="black"),
        PredictConfig(space=space, fast_jpeg=True),
        PredictConfig(space=space, threads=torch.get_num_threads() + 1),
    ]
    before = torch.get_num_threads()
    try:
        files = {Predictor(config, CPU, keep=True).store.path for config in requests}
    finally:
        torch.set_num_threads(before)
    assert len(files) == len(requests)
    assert Predictor(PredictConfig(space=space, top=2, open_world=True), CPU, keep=True).store.path in files


def test_reduced_decoding_says_so_and_ends_nearby(tmp_path):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
    small.resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=95)
    small.resize((200, 150), Image.Resampling.BICUBIC).save(tmp_path / "small.jpg", quality=95)
    space = toy.space().to_json()
    plain = Predictor(PredictConfig(space=space, top=3), CPU).predict(tmp_path, ["large.jpg", "small.jpg"])
    fast = Predictor(PredictConfig(space=space, top=3, fast_jpeg=True), CPU).predict(tmp_path, ["large.jpg", "small.jpg"])
    assert [r["decoding"] for r in fast] == ["fast-jpeg"] * 2
    assert all("decoding" not in r for r in plain)
    scores = [[p["score"] for r in records for p in r["predictions"][:1]] for records in (plain, fast)]
    assert scores[0][0] != scores[1][0]
    assert scores[0][0] == pytest.approx(scores[1][0], abs=0.5)
    assert scores[0][1] == scores[1][1]  # not larger than four times what is needed
