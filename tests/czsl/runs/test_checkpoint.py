"""Checkpoints: whole or absent, verified, and never more than are needed."""

import errno
import json
import logging
import os
from pathlib import Path

import pytest
import torch

from czsl.errors import UsageError
from czsl.runs import checkpoint, files
from czsl.runs.checkpoint import KEEP, Checkpoint


def made(step=1):
    generator = torch.Generator().manual_seed(step)
    method = {
        "prompts.table": torch.randn(4, 3, generator=generator),
        "bn.count": torch.tensor(step),
        "wide": torch.randn(2, 4).T,
    }
    return Checkpoint(method, {"exp_avg.prompts.table": torch.ones(4, 3, dtype=torch.float64)}, {"step": step, "auc": 0.1 * step})


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def three(folder):
    """Checkpoints of the steps 1, 2 and 3."""
    return [checkpoint.save(folder, made(step)) for step in (1, 2, 3)]


def test_what_is_saved_comes_back(folder):
    saved = made(12)
    path = checkpoint.save(folder, saved)
    assert path == folder / "step-00000012"
    assert names(folder) == ["step-00000012"]
    back = checkpoint.load(path)
    torch.testing.assert_close(back.method, saved.method, rtol=0, atol=0)
    torch.testing.assert_close(back.optimizer, saved.optimizer, rtol=0, atol=0)
    assert back.state == saved.state


def test_the_same_step_is_saved_anew(folder):
    checkpoint.save(folder, made(5))
    again = made(5)
    again.method["bn.count"] = torch.tensor(77)
    path = checkpoint.save(folder, again)
    assert names(folder) == ["step-00000005"]
    assert checkpoint.load(path).method["bn.count"] == 77


FILES = ("method.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80  # in JSON: no longer UTF-8
    path.write_bytes(bytes(content))


DAMAGE = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_is_seen_and_the_one_before_is_used(three, folder, caplog, file, damage):
    assert all(checkpoint.is_valid(path) for path in three)
    DAMAGE[damage](three[2] / file)
    assert not checkpoint.is_valid(three[2])
    with caplog.at_level(logging.WARNING, "czsl"):
        assert checkpoint.newest_valid(folder) == three[1]
    assert "step-00000003 is damaged" in caplog.text
    assert checkpoint.find(folder, "last") == three[1]
    with pytest.raises(UsageError, match="no usable checkpoint 'step-00000003'"):
        checkpoint.find(folder, "step-00000003")


@pytest.mark.parametrize("manifest", ["[]", "{}", "null", '"x"', '{"method.safetensors": 5}'])
def test_a_manifest_of_another_shape_is_damage(three, manifest):
    (three[0] / "manifest.json").write_text(manifest)
    assert not checkpoint.is_valid(three[0])


def test_a_manifest_names_no_file_outside(three, tmp_path):
    """What is hashed lies in the checkpoint, whatever the manifest says."""
    outside = tmp_path / "outside"
    outside.write_text("x")
    (three[0] / "manifest.json").write_text(json.dumps({"../../../outside": files.sha256_file(outside)}))
    assert not checkpoint.is_valid(three[0])


def test_a_checkpoint_that_verifies_but_cannot_be_read_is_an_error(three):
    (three[0] / "method.safetensors").write_bytes(b"junk")
    with pytest.raises(UsageError, match="cannot be read"):
        checkpoint.load(three[0])


def test_three_are_kept_and_the_best(folder):
    for step in range(1, 8):
        path = checkpoint.save(folder, made(step))
        if step == 2:
            checkpoint.mark_best(folder, path, auc=0.5, step=2)
    assert KEEP == 3
    assert names(folder) == ["best.json", "step-00000002", "step-00000005", "step-00000006", "step-00000007"]
    assert checkpoint.best(folder) == {"checkpoint": "step-00000002", "auc": 0.5, "step": 2}
    assert checkpoint.find(folder) == folder / "step-00000002"
    checkpoint.mark_best(folder, folder / "step-00000006")
    checkpoint.save(folder, made(8))
    assert names(folder) == ["best.json", "step-00000006", "step-00000007", "step-00000008"]


@pytest.mark.parametrize("call", range(8))
def test_a_full_disk_leaves_nothing_behind(folder, monkeypatch, call):
    """Whichever sync fails, the checkpoint is whole or absent, and the ones before are untouched."""
    checkpoint.save(folder, made(1))
    calls = iter(range(100))
    sync = os.fsync

    def fails_once(descriptor):
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fails_once)
    failed = False
    try:
        checkpoint.save(folder, made(2))
    except OSError as error:
        assert error.errno == errno.ENOSPC
        failed = True
    steps = checkpoint.steps(folder)
    assert names(folder) == [p.name for p in steps]
    assert all(checkpoint.is_valid(path) for path in steps)
    assert folder / "step-00000001" in steps
    assert failed == (call < next(calls))


@pytest.mark.parametrize("file", ["method.safetensors", "optimizer.safetensors"])
def test_a_disk_full_while_tensors_are_written_leaves_nothing_behind(folder, monkeypatch, file):
    checkpoint.save(folder, made(1))
    write_bytes = Path.write_bytes

    def fails(path, data):
        if path.name == file:
            write_bytes(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(folder, made(2))
    assert names(folder) == ["step-00000001"]
    assert checkpoint.find(folder, "last") == folder / "step-00000001"


def test_leftovers_of_a_killed_process_are_no_checkpoints_and_are_swept(folder):
    left = folder / ".step-00000009.4711.tmp"
    left.mkdir(parents=True)
    (left / "method.safetensors").write_bytes(b"half")
    assert checkpoint.newest_valid(folder) is None
    checkpoint.save(folder, made(1))
    assert names(folder) == ["step-00000001"]


@pytest.mark.parametrize("which", ["2", "00000002", "step-00000002"])
def test_a_checkpoint_by_its_step(three, folder, which):
    assert checkpoint.find(folder, which) == three[1]


@pytest.mark.parametrize("which", ["4", "step-00000004", "newest", "", "²", "../checkpoints/step-00000004"])
def test_an_unknown_checkpoint_lists_those_there_are(three, folder, which):
    with pytest.raises(UsageError) as error:
        checkpoint.find(folder, which)
    assert error.value.why == "there are: step-00000001, step-00000002, step-00000003"


def test_best_is_the_newest_where_none_was_marked(three, folder):
    assert checkpoint.find(folder) == three[2]


@pytest.mark.parametrize("how", ["gone", "damaged", "unreadable mark", "mark of another shape"])
def test_a_lost_best_falls_back_to_the_newest_with_a_warning(three, folder, how, caplog):
    checkpoint.mark_best(folder, three[0])
    if how == "gone":
        checkpoint.mark_best(folder, folder / "step-00000099")
    elif how == "damaged":
        flip(three[0] / "method.safetensors")
    else:
        (folder / "best.json").write_bytes(b"\xff{" if how == "unreadable mark" else b"[1]")
    with caplog.at_level(logging.WARNING, "czsl"):
        assert checkpoint.find(folder) == three[2]
    assert caplog.text or how == "mark of another shape"
    checkpoint.save(folder, made(4))  # and training goes on


@pytest.mark.parametrize("which", ["best", "last", "1"])
def test_a_run_without_checkpoints_says_so(folder, which):
    with pytest.raises(UsageError, match="no usable checkpoint"):
        checkpoint.find(folder, which)
    assert checkpoint.newest_valid(folder) is None


def test_files_are_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "best.json"
    files.write_json(path, {"a": "ü"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ü"}

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"b": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ü"}
    assert names(tmp_path) == ["best.json"]
