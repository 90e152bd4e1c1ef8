"""GDE as a run: repeatable, the same for any number of workers, and images added in place with a way back."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.add import add, history, undo
from cluster.calibrate import calibrate_run
from cluster.train import train
from cluster.work.calibration import Calibration
from cluster.work.comm import Group
from cluster.work.evaluation import EvalConfig, evaluate
from cluster.work.training import train_worker
from czsl.data.table import open_data
from czsl.errors import DataError, UsageError
from czsl.runs import checkpoint
from czsl.runs.files import held, read_by
from czsl.runs.run import Run
from methods.fingerprint import fingerprint
from methods.loading import load
from methods.points import stored_point

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(dataset, clip_file, tmp_path_factory):
    """A run of GDE that is never changed."""
    from czsl_cli.config import resolve

    config = resolve({"method": "gde", "data": str(dataset), "clip": str(clip_file), "threads": 1, "eval_batch": 16})
    run = Run.create(config, open_data(str(dataset)).space, tmp_path_factory.mktemp("gde"), "gde")
    assert train_worker(run, Group(), CPU) == "done"
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy to change."""
    return Run(shutil.copytree(trained.path, tmp_path / "tagger"))


def photo(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path):
    """Two photos of a known composition, two with a new word, one whose names are written otherwise."""
    folder = tmp_path / "photos"
    for i, name in enumerate(
        ("red apple/a.png", "red apple/b.png", "frosted apple/a.png", "frosted_apple/b.png", "Red_gizmo/a.png")
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photo(i))
    return folder


def content(run: Run) -> dict[str, bytes]:
    """Every file of a run that an addition may not change when it is refused or undone."""
    left = ("metrics.jsonl", ".lock", ".readers")
    return {str(p.relative_to(run.path)): p.read_bytes() for p in run.path.rglob("*") if p.is_file() and p.name not in left}


def test_training_again_gives_the_same_bits_and_what_was_chosen_is_logged(trained, make_run):
    again = make_run(method="gde", epochs=0)
    assert train_worker(again, Group(), CPU) == "done"
    for key, value in load(trained).state_dict().items():
        assert torch.equal(load(again).state_dict()[key], value), key
    found = next(trained.metrics("found"))
    assert found["how"] == "val"
    assert {"text", "ridge"} <= found["settings"].keys()
    epoch = next(trained.metrics("epoch"))
    assert 0 <= epoch["auc"] <= 1
    assert epoch["step"] == 0


def test_the_choice_is_the_best_on_validation_images(trained, make_run):
    best = next(trained.metrics("epoch"))["auc"]
    for text, ridge in ((1.0, 1.0), (0.5, 1.0), (0.0, 0.01), (0.35, 10.0)):
        run = make_run(method="gde", epochs=0, text=text, ridge=ridge, weights="uniform")
        train_worker(run, Group(), CPU)
        assert next(run.metrics("epoch"))["auc"] <= best


@pytest.mark.slow
def test_two_workers_find_what_one_finds(trained, make_run, ray_local):
    run = make_run(method="gde", epochs=0)
    assert train(run, workers_per_node=2, engine="ray") == "done"
    for key, value in load(trained).state_dict().items():
        assert torch.equal(load(run).state_dict()[key], value), key


def test_candidates_are_enough_to_find_directions(make_run, candidates_file):
    run = make_run(method="gde", epochs=0, partial_labels=str(candidates_file))
    assert train_worker(run, Group(), CPU) == "done"
    assert next(run.metrics("epoch"))["disambiguation"] > 0
    assert int(load(run).pair_images.sum()) == len(open_data(run.config.data).split("train"))


def test_without_validation_images_defaults_are_used_and_said(dataset, clip_file, tmp_path):
    from czsl.compositions import CompositionSpace
    from czsl.data.table import Record, write_dataset
    from czsl_cli.config import resolve

    old = open_data(str(dataset))
    split = old.split("train")
    records = [Record(r.id, split.image_bytes(i), r.attr, r.obj, "train") for i, r in enumerate(split.rows())]
    space = old.space
    space = CompositionSpace(space.attributes, space.objects, space.train_pairs, space.val_pairs[:0], space.test_pairs)
    write_dataset(tmp_path / "data", space, records, "no-val")
    config = resolve({"method": "gde", "data": str(tmp_path / "data"), "clip": str(clip_file), "threads": 1})
    run = Run.create(config, space, tmp_path, "gde")
    assert train_worker(run, Group(), CPU) == "done"
    found = next(run.metrics("found"))
    assert found["how"] == "none"
    assert found["settings"] == {"text": 0.5, "ridge": 1.0}


# -- adding ------------------------------------------------------------------------------------------------------------
def test_images_and_words_are_added_in_place_and_undone_to_the_bit(run, photos):
    before, old = content(run), load(run)
    done = add(run, photos)
    assert [len(done.images), done.attributes, done.objects] == [5, ["frosted"], ["gizmo"]]
    assert {tuple(p) for p in done.pairs} >= {("frosted", "apple"), ("red", "gizmo")}
    new, A = load(run), len(old.space.attributes)
    assert run.space.attributes == (*old.space.attributes, "frosted")
    assert new.space.pairs().shape[0] == run.space.pairs().shape[0]
    assert int(new.pair_images.sum()) == int(old.pair_images.sum()) + 5
    assert new.directions[A].norm() > 1e-4
    answers = new.predict([photos / "frosted apple" / "a.png"], k=1)
    assert answers[0]["predictions"][0]["score"] > 0
    assert [one["images"] for one in history(run)] == [done.images]
    assert fingerprint(run) != fingerprint(Run(run.path), "step-00000000")
    taken = undo(run)
    assert taken["images"] == done.images
    assert content(run) == before
    assert history(run) == []
    with pytest.raises(UsageError, match="nothing was added"):
        undo(run)


def test_many_additions_are_undone_one_by_one(run, tmp_path):
    states = [content(run)]
    for i in range(5):
        folder = tmp_path / f"new{i}" / "wet apple"
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(photo(100 + i))
        add(run, folder.parent)
        states.append(content(run))
    assert len(history(run)) == 5
    for state in reversed(states[:-1]):
        undo(run)
        assert content(run) == state


def test_two_additions_are_one(run, photos, tmp_path, trained):
    once = Run(shutil.copytree(trained.path, tmp_path / "once"))
    add(once, photos)
    for name in ("red apple", "frosted apple"):
        shutil.copytree(photos / name, tmp_path / "part" / name)
    add(run, tmp_path / "part")
    add(run, photos, skip_known=True)
    one, other = load(once), load(run).for_space(once.space)
    pairs = torch.from_numpy(once.space.open_pairs)
    torch.testing.assert_close(other.encode_pairs(pairs), one.encode_pairs(pairs), rtol=0, atol=1e-6)


def test_an_image_that_is_there_is_refused_wherever_it_is(run, photos, tmp_path):
    before, data = content(run), open_data(run.config.data)
    for split in ("train", "val", "test"):
        folder = tmp_path / split / "red apple"
        folder.mkdir(parents=True)
        (folder / "again.png").write_bytes(data.split(split).image_bytes(0))
        with pytest.raises(DataError, match="1 of 1 images are there already") as error:
            add(run, folder.parent)
        assert f"the {split} image {data.split(split).ids[0]}" in error.value.why
    (photos / "red apple" / "twin.png").write_bytes(photo(0))
    with pytest.raises(DataError, match="1 of 6 images are there already") as error:
        add(run, photos)
    assert "red apple/twin.png: the same as red apple/a.png" in error.value.why
    assert content(run) == before
    assert len(add(run, photos, skip_known=True).images) == 5
    with pytest.raises(DataError, match=r"[56] of 6"):
        add(run, photos)
    with pytest.raises(DataError, match="no image to add"):
        add(run, photos, skip_known=True)
    assert len(history(run)) == 1


def test_bad_images_and_folders_change_nothing(run, photos, tmp_path):
    before = content(run)
    (photos / "red apple" / "broken.png").write_bytes(photo(9)[:200])
    with pytest.raises(DataError, match="1 of 6 images cannot be used, nothing was added") as error:
        add(run, photos)
    assert "broken.png" in error.value.why
    for name, cause in (("a_b_c/x.png", "cannot tell"), ("train/red apple/x.png", "folders of splits")):
        folder = tmp_path / name.split("/")[0] / "photos"
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(photo(10))
        with pytest.raises(DataError, match=cause):
            add(run, folder)
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(DataError, match=r"no image to add|no folder"):
            add(run, folder)
    assert add(run, photos, max_bad=0.2, dry_run=True).skipped[0][0] == "red apple/broken.png"
    assert content(run) == before
    assert len(add(run, photos, max_bad=0.2).images) == 5


def test_a_run_in_use_is_left_alone(run, photos):
    with held(run.path, "training"), pytest.raises(UsageError, match="under way"):
        add(run, photos)
    with read_by(run.path), read_by(run.path), pytest.raises(UsageError, match="another czsl command uses"):
        add(run, photos)
    assert history(run) == []
    add(run, photos)


def test_an_addition_that_died_does_not_count(run, photos, monkeypatch):
    before, mark = content(run), checkpoint.mark_best

    def die(*args, **facts):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "mark_best", die)
    with pytest.raises(KeyboardInterrupt):
        add(run, photos)
    monkeypatch.setattr(checkpoint, "mark_best", mark)
    assert run.space.attributes == Run(run.path).space.attributes
    assert "frosted" not in run.space.attributes
    assert "frosted" not in load(run).space.attributes
    assert history(run) == []
    add(run, photos)
    undo(run)
    assert content(run) == before


def test_evaluation_keeps_to_the_labels_of_the_data_and_says_so(run, photos):
    plain, _ = evaluate(run, EvalConfig(), Group(), CPU)
    add(run, photos)
    result, _ = evaluate(run, EvalConfig(), Group(), CPU)
    assert result["pairs"] == plain["pairs"]
    assert any("5 images were added" in text for text in result["warnings"])
    undo(run)
    assert evaluate(run, EvalConfig(), Group(), CPU)[0] == plain


def test_a_run_without_its_dataset_can_be_added_to(run, photos):
    settings = run.path / "config.yaml"
    settings.write_text(settings.read_text().replace(run.config.data, "/nowhere"))
    done = add(Run(run.path), photos)
    assert "cannot be read" in done.notes[0]
    assert json.loads((run.checkpoints / done.checkpoint / "state.json").read_text())["additions"][0]["images"]


def test_other_methods_are_refused(source, photos):
    with pytest.raises(UsageError, match="takes no images") as error:
        add(source, photos)
    assert "gde" in error.value.fix


# -- the operating point -----------------------------------------------------------------------------------------------
def test_the_operating_point_is_chosen_again_for_the_words_of_now(run, photos):
    before = load(run).operating_point
    assert before is not None
    add(run, photos)
    grown = load(run)
    assert grown.stale_point == ""
    assert grown.operating_point.facts["checkpoint_sha256"] == fingerprint(run) != before.facts["checkpoint_sha256"]
    for open_world in (False, True):
        (run.path / f"operating-point-{'open' if open_world else 'closed'}.json").unlink(missing_ok=True)
        assert calibrate_run(run, Calibration(open_world=open_world)).facts["own_data"]
        assert stored_point(run, open_world=open_world)[1] == ""
    undo(run)
    assert load(run).operating_point == before


def test_without_the_dataset_the_operating_point_stays(run, photos):
    before = load(run).operating_point
    settings = run.path / "config.yaml"
    settings.write_text(settings.read_text().replace(run.config.data, "/nowhere"))
    moved = Run(run.path)
    done = add(moved, photos)
    assert any("operating point is that of before" in text for text in done.notes)
    after = load(moved).point()
    assert (after.bias, after.composition) == (before.bias, before.composition)
