"""Augmentation of training images for frozen image towers: in the step, as kept copies, and settings that cannot be or do nothing."""

import threading

import numpy as np
import pytest
import torch
import yaml

from cluster.work.augmentation import check_loop
from cluster.work.comm import Group
from cluster.work.feature_loader import FeatureLoader
from cluster.work.training import prepare, train_worker
from czsl.clip.loading import load_clip
from czsl.data.augment import augment
from czsl.data.table import open_data
from czsl.errors import UsageError
from czsl.runs import checkpoint
from czsl.runs.config import RunConfig
from czsl.runs.run import Run
from methods.building import build

CPU = torch.device("cpu")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CZSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def loader(dataset, clip_file, own_cache):
    def make(comm=None, rows=None, keep=False):
        data = open_data(str(dataset))
        method = build("csp", data.space, load_clip(str(clip_file)), {})
        return FeatureLoader(method, data, "train", comm or Group(), 16, keep=keep, rows=rows)

    return make


def losses(run):
    assert train_worker(run, Group(), CPU) == "done"
    return [s["loss"] for s in run.metrics("step")]


@pytest.mark.parametrize("method", [{"method": "csp"}, {"method": "clusPro", "adapter_dim": 0}, {"method": "clip-pzsl"}], ids=str)
def test_one_copy_an_epoch_is_the_training_with_the_tower_in_the_step(method, make_run, own_cache):
    settings = {**method, "lr": 0.01, "batch": 42}
    in_step = losses(make_run(**settings, augment=True))
    copies = losses(make_run(**settings, augment=True, augment_copies=2))
    np.testing.assert_allclose(copies, in_step, rtol=1e-4)
    one = losses(make_run(**settings, augment=True, augment_copies=1))
    np.testing.assert_allclose(one[:2], in_step[:2], rtol=1e-4)  # the first epoch
    plain = losses(make_run(**settings))
    assert np.abs(np.array(plain) - in_step).max() > 1e-3
    assert np.abs(np.array(one[2:]) - in_step[2:]).max() > 1e-4


def test_a_copy_is_an_augmentation_drawn_by_seed_copy_and_name(loader):
    rows = np.array([3, 4, 11, 70])
    made = loader(rows=rows)
    made.keep_copies(5, 2, 16)
    for copy in range(2):
        images = augment(made.pixels.batch(rows), made.pixels.keys[rows], 5, copy)
        expected = made.method.image_features({"images": images})
        torch.testing.assert_close(made.copies[copy], expected, rtol=1e-4, atol=1e-5)
        for epoch in (copy, copy + 2):  # they take turns
            got = made.batch(np.array([70, 3]), (5, epoch))["features"]
            assert torch.equal(got, made.copies[copy][[3, 0]])
    assert not torch.allclose(made.copies[0], made.copies[1])


def test_kept_features_are_told_apart_by_seed_copy_and_rows(loader, own_cache, monkeypatch):
    def copies(seed, rows=None):
        made = loader(rows=rows)
        made.keep_copies(seed, 2, 16)
        return made

    first = copies(0)
    again = copies(1)
    assert not torch.allclose(first.copies[0], again.copies[0])
    part = copies(0, np.arange(7))
    torch.testing.assert_close(part.copies[1], first.copies[1][:7], rtol=1e-4, atol=1e-5)
    plain = loader(keep=True)
    assert not torch.allclose(plain.features, first.copies[0])
    assert len(list((own_cache / "features").glob("*.npy"))) == 7

    def encode(*args, **kwargs):
        raise AssertionError("the features are in the cache")

    monkeypatch.setattr(FeatureLoader, "encode", encode)
    for one, other in ((copies(0), first), (copies(1), again), (copies(0, np.arange(7)), part)):
        assert all(torch.equal(a, b) for a, b in zip(one.copies, other.copies, strict=True))
    assert torch.equal(loader(keep=True).features, plain.features)
    assert torch.equal(loader(rows=np.array([2, 9]), keep=True).features, plain.features[[2, 9]])  # out of those of all images


class Pair(Group):
    """Two workers as threads of this process, as far as objects are exchanged."""

    barrier, things = threading.Barrier(2), {}

    def __init__(self, rank):
        self.rank, self.world = rank, 2

    def gather_objects(self, thing):
        self.things[self.rank] = thing
        self.barrier.wait()
        out = [self.things[0], self.things[1]]
        self.barrier.wait()
        return out


def test_copies_do_not_depend_on_the_number_of_workers(loader, tmp_path, monkeypatch):
    alone = loader()
    alone.keep_copies(0, 2, 16)
    monkeypatch.setenv("CZSL_CACHE", str(tmp_path / "another cache"))
    found = {}

    def work(rank):
        made = loader(Pair(rank))
        made.keep_copies(0, 2, 16)
        found[rank] = made.copies

    loader().pixels  # noqa: B018  decoded once
    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for rank in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(found[rank], alone.copies, strict=True))


def test_a_resumed_run_shows_the_copies_of_its_epoch(make_run, own_cache):
    settings = {"method": "csp", "augment": True, "augment_copies": 2, "epochs": 3, "batch": 42, "lr": 0.01}
    whole, broken = losses(make_run(**settings)), make_run(**settings)
    trainer = prepare(broken, Group(), CPU)
    assert len(trainer.train.copies) == 2
    broken.stop_file.touch()
    assert train_worker(broken, Group(), CPU) == "stopped"
    broken.stop_file.unlink()
    assert losses(broken) == whole


def test_the_last_epoch_counts_if_it_is_asked_for(make_run):
    run = make_run(method="csp", selection="last", lr=1.0)
    losses(run)
    assert checkpoint.best(run.checkpoints)["epoch"] == 2
    assert checkpoint.find(run.checkpoints, "best") == checkpoint.find(run.checkpoints, "last")


# -- what cannot be, and what does nothing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "frozen", "why"),
    [
        ({"augment_copies": 2}, True, "only augment=true"),
        ({"augment_copies": 2, "augment": True}, False, "training changes"),
        ({"augment_copies": 2}, False, "training changes"),
    ],
)
def test_copies_that_cannot_be(settings, frozen, why):
    with pytest.raises(UsageError, match=why):
        check_loop(RunConfig(method="csp", **settings), frozen)


def test_copies_without_augmentation_are_refused_whatever_the_method():
    with pytest.raises(UsageError, match="without augmentation"):
        RunConfig(augment=False, augment_copies=2)


@pytest.mark.parametrize(
    ("settings", "frozen", "trains", "notes"),
    [
        ({}, True, True, ["not augmented"]),
        ({"augment": False}, True, True, []),
        ({"augment": True}, True, True, ["encodes 84 augmented images in each of 10 epochs"]),
        ({"augment": True, "augment_copies": 3}, True, True, []),
        ({"augment": True, "augment_copies": 30}, True, True, ["only 10 are made"]),
        ({"augment": False, "checkpoint_blocks": True}, True, True, ["checkpoint_blocks=true has no effect"]),
        ({"checkpoint_blocks": True}, False, True, []),
        ({"augment": True}, True, False, ["augment=true has no effect"]),
        ({"method": "gde", "epochs": 0}, True, True, []),
        ({"method": "gde", "epochs": 0, "augment": True}, True, True, ["no training steps here: augment=true has no effect"]),
        ({"method": "clip-pzsl"}, True, True, []),
        ({"method": "clip-pzsl", "augment": True}, True, True, ["encodes 84 augmented images"]),
        ({"method": "clip-pzsl", "epochs": 0}, True, True, []),
        ({"model": {"train_mode": "reference"}, "epochs": 1}, False, True, ["no effect in one epoch"]),
        ({"model": {"train_mode": "reference"}}, False, True, []),
    ],
)
def test_settings_without_effect_are_named(settings, frozen, trains, notes):
    found = check_loop(RunConfig(**{"method": "csp", **settings}), frozen, trains, 84)
    assert len(found) == len(notes)
    assert all(part in note for part, note in zip(notes, found, strict=True))


# -- runs of before ------------------------------------------------------------------------------------------------------------


def made_before(run, *fields):
    """The run's folder without settings that are younger."""
    file = run.path / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    for name in (*fields, "augment_copies", "selection"):
        settings.pop(name, None)
        settings["model"].pop(name, None)
    settings["augment"] = True
    file.write_text(yaml.safe_dump(settings))
    return Run(run.path)


def test_an_older_run_keeps_the_mode_it_was_trained_in(make_run, monkeypatch):
    from click.testing import CliRunner

    import cluster.train
    from czsl_cli.train import train

    run = made_before(make_run(method="troika", preset="released", adapter_dim=4), "train_mode")
    data = open_data(run.config.data)
    assert build("troika", data.space, load_clip(run.config.clip), run.config.model).config.train_mode == "correct"
    monkeypatch.setattr(cluster.train, "train", lambda run, **options: "done")
    shown = CliRunner().invoke(train, ["--resume", str(run.path)], catch_exceptions=False)
    assert "older than train_mode: it keeps train_mode=correct" in shown.output
    assert "preset=released has another one now" in shown.output


def test_an_older_run_on_kept_features_stays_without_augmentation(make_run, monkeypatch):
    from click.testing import CliRunner

    import cluster.train
    from czsl_cli.config import read_config_file
    from czsl_cli.train import train

    run = made_before(make_run(method="csp"))
    assert run.config.augment is None and not run.config.augments(frozen=True) and run.config.augments(frozen=False)
    assert read_config_file(run.path / "config.yaml")["augment"] is None
    assert prepare(run, Group(), CPU).train.features is not None
    monkeypatch.setattr(cluster.train, "train", lambda run, **options: "done")
    shown = CliRunner().invoke(train, ["--resume", str(run.path)], catch_exceptions=False)
    assert "its training images stay without" in shown.output
