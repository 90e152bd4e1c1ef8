"""What goes wrong while work is under way, and that it costs no result."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.predict import BATCH, PredictConfig, partial_of, predict_files
from cluster.train import train
from cluster.work.comm import Group
from cluster.work.trainer import Trainer
from cluster.work.training import train_worker
from czsl.data.files import predictions
from czsl.data.images import list_images
from czsl.data.toy import dataset as toy
from czsl.errors import SetupError
from czsl.runs import checkpoint
from czsl.runs.run import Run

CZSL = [str(Path(sys.executable).parent / "czsl")]
CLOCKS = ("time", "images_per_s")
ENGINES = ["local", "ray"]


def learned(run: Run) -> list[dict]:
    """The metrics of steps and epochs without the time they took."""
    kept = (r for r in run.metrics() if r["event"] in ("step", "epoch"))
    return [{k: v for k, v in r.items() if k not in CLOCKS} for r in kept]


def assert_same_result(run: Run, whole: Run) -> None:
    """Weights, optimizer state and progress byte for byte, metrics, and which checkpoint is best."""
    assert learned(run) == learned(whole)
    ours, theirs = (checkpoint.find(r.checkpoints, "last") for r in (run, whole))
    assert ours.name == theirs.name
    for name in ("method.safetensors", "optimizer.safetensors", "state.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert checkpoint.best(run.checkpoints) == checkpoint.best(whole.checkpoints)


def when_step(run: Run, step: int, then: Callable[[], Any]) -> Callable[[dict[str, Any]], None]:
    """For ``on_record``: calls ``then`` once, at a step or soon behind it."""
    pending = [then]

    def look(record):
        if pending and record.get("event") == "step" and record["step"] >= step:
            pending.pop()()

    return look


def newest(folder: Path) -> Path:
    found = checkpoint.newest_valid(folder)
    assert found is not None
    return found


def pid_of(run: Run, rank: int = 0) -> int:
    return json.loads((run.path / f"worker-{rank}.json").read_text())["pid"]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@contextlib.contextmanager
def czsl(*args, **options):
    """The command as a process, killed at the end if it still runs."""
    process = subprocess.Popen([*CZSL, *map(str, args)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# -- resume ------------------------------------------------------------------------------------------------------------
@pytest.mark.fault
@pytest.mark.parametrize("name", ENGINES)
def test_a_second_ctrl_c_ends_at_once_and_leaves_no_worker(make_run, name):
    run = make_run(method="csp", epochs=4000, batch=12)
    with czsl("train", "--resume", run.path, "--engine", name) as driver:
        wait_until(lambda: sum(1 for _ in run.metrics("epoch")) >= 2)  # the first has its checkpoint
        worker = pid_of(run)
        os.kill(worker, signal.SIGSTOP)  # a worker that does not answer
        try:
            driver.send_signal(signal.SIGINT)
            wait_until(run.stop_file.exists)
            driver.send_signal(signal.SIGINT)
            _, err = driver.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGCONT)
        assert driver.returncode == 130, err
    wait_until(lambda: not is_running(worker), 60)
    assert checkpoint.newest_valid(run.checkpoints) is not None


@pytest.mark.slow
def test_three_workers_stopped_in_an_epoch_go_on_bit_for_bit(ray_local, make_run):
    settings = {"method": "csp", "epochs": 12, "batch": 12, "lr": 0.01}
    whole, broken = make_run(**settings), make_run(**settings)
    assert train(whole, workers_per_node=3) == "done"
    assert train(broken, workers_per_node=3, on_record=when_step(broken, 17, broken.stop_file.touch)) == "stopped"
    stopped = newest(broken.checkpoints)
    assert 17 <= checkpoint.step_of(stopped) < learned(whole)[-1]["step"]
    assert train(broken, workers_per_node=3) == "done"
    assert_same_result(broken, whole)


@pytest.mark.fault
@pytest.mark.parametrize("name", ENGINES)
def test_a_killed_driver_takes_its_workers_along_and_the_run_goes_on_bit_for_bit(make_run, name):
    settings = {"method": "csp", "epochs": 60, "batch": 12, "lr": 0.01}
    whole, broken = make_run(**settings), make_run(**settings)
    assert train_worker(whole, Group(), torch.device("cpu")) == "done"
    with czsl("train", "--resume", broken.path, "--engine", name) as driver:
        wait_until(lambda: sum(1 for _ in broken.metrics("epoch")) >= 2)
        worker = pid_of(broken)
        assert is_running(worker)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    wait_until(lambda: not is_running(worker), 60)
    assert not list(broken.metrics("end"))
    with czsl("train", "--resume", broken.path, "--engine", name) as driver:
        _, err = driver.communicate()
        assert driver.returncode == 0, err
    assert_same_result(broken, whole)


SCHEDULED = {"schedule": "cosine", "warmup": 2.5, "accumulate": 3, "lr": 0.01, "batch": 12, "method": "csp"}


@pytest.mark.fault
@pytest.mark.parametrize(
    "settings", [{"epochs": 40}, {"epochs": 400, "stop_after": 12}], ids=["a cosine to its end", "stopped by stop_after"]
)
def test_a_killed_training_with_a_schedule_in_parts_goes_on_bit_for_bit(make_run, settings):
    """Warm-up, cosine, accumulation and the waiting of ``stop_after`` depend on nothing that a killed process takes along."""
    whole, broken = (make_run(**SCHEDULED, **settings) for _ in range(2))
    assert train_worker(whole, Group(), torch.device("cpu")) == "done"
    for epochs in (1, 4):  # within the warm-up, and on the cosine
        with czsl("train", "--resume", broken.path, "--engine", "local") as driver:
            wait_until(lambda epochs=epochs: sum(1 for _ in broken.metrics("epoch")) >= epochs)
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        wait_until(lambda: not is_running(pid_of(broken)), 60)
        assert not list(broken.metrics("end"))
    with czsl("train", "--resume", broken.path, "--engine", "local") as driver:
        _, err = driver.communicate()
        assert driver.returncode == 0, err
    assert_same_result(broken, whole)
    if "stop_after" in settings:
        assert learned(whole)[-1]["epoch"] < settings["epochs"] - 1


@pytest.mark.fault
@pytest.mark.parametrize("harm", ["truncate", "delete"])
def test_a_damaged_newest_checkpoint_is_passed_over(make_run, monkeypatch, harm):
    settings = {"method": "csp", "epochs": 6, "batch": 24, "lr": 0.01}
    whole, broken = make_run(**settings), make_run(**settings)
    assert train_worker(whole, Group(), torch.device("cpu")) == "done"
    log = Trainer.log

    def die(self, **record):
        log(self, **record)
        if self.step == 17:
            raise RuntimeError("a crash")

    monkeypatch.setattr(Trainer, "log", die)
    with pytest.raises(RuntimeError, match="a crash"):
        train_worker(broken, Group(), torch.device("cpu"))
    monkeypatch.setattr(Trainer, "log", log)
    last = newest(broken.checkpoints)
    victim = last / "optimizer.safetensors"
    if harm == "delete":
        victim.unlink()
    else:
        os.truncate(victim, victim.stat().st_size // 2)
    assert checkpoint.step_of(newest(broken.checkpoints)) < checkpoint.step_of(last)
    assert train_worker(broken, Group(), torch.device("cpu")) == "done"
    assert_same_result(broken, whole)


# -- a full disk -------------------------------------------------------------------------------------------------------
@pytest.mark.fault
@pytest.mark.parametrize("where", [{"engine": "local"}, {"engine": "ray"}, {"workers_per_node": 2}], ids=str)
def test_a_full_disk_ends_the_run_at_once_and_costs_no_checkpoint(ray_local, make_run, where):
    """The kernel refuses the worker larger files than its metrics: what a checkpoint meets on a full disk."""
    settings = {"method": "csp", "epochs": 40, "batch": 12, "lr": 0.01}
    whole, full = make_run(**settings), make_run(**settings)
    assert train(whole, **where) == "done"
    failures = []
    fill = lambda: resource.prlimit(pid_of(full), resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))  # noqa: E731
    with pytest.raises(SetupError) as caught:
        train(full, **where, on_record=when_step(full, 18, fill), on_failure=lambda *f: failures.append(f))
    error = caught.value
    assert not failures  # repeating would not cure it
    assert len(str(error).splitlines()) == 3
    assert error.exit_code == 4
    assert "no space left" in error.what
    assert f"czsl train --resume {full.path}" in error.fix
    kept = newest(full.checkpoints)
    assert checkpoint.step_of(kept) > 0
    assert train(full, **where) == "done"
    assert_same_result(full, whole)


@pytest.mark.fault
@pytest.mark.parametrize(
    "words",
    [("data", "export", "toy", "out", "--limit", 3), ("predict", "photos", "--out", "found.parquet"), ("train", "-m", "csp")],
)
def test_a_full_disk_of_the_command_itself_is_an_environment_error(source, tmp_path, words):
    """The kernel refuses the driver's own files: pictures, the dataset that they come from, predictions, a run's settings."""
    (tmp_path / "photos").mkdir()
    toy.draw(toy.ATTRIBUTES[0], toy.OBJECTS[0], seed=0).save(tmp_path / "photos" / "a.png")
    run = ("--run", source.path) if words[0] == "predict" else ()
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))  # noqa: E731
    with czsl(*words, *run, preexec_fn=small, cwd=tmp_path) as process:
        _, err = process.communicate()
    assert process.returncode == 4, err
    assert "too large" in err
    assert "free space" in err
    assert "Traceback" not in err


@pytest.mark.fault
@pytest.mark.parametrize("name", ENGINES)
def test_a_second_driver_of_the_same_run_is_refused_and_harms_nothing(make_run, name):
    settings = {"method": "csp", "epochs": 60, "batch": 12, "lr": 0.01}
    whole, shared = make_run(**settings), make_run(**settings)
    assert train_worker(whole, Group(), torch.device("cpu")) == "done"
    with czsl("train", "--resume", shared.path, "--engine", name) as first:
        wait_until(lambda: any(shared.metrics("epoch")))
        with czsl("train", "--resume", shared.path) as second:
            _, err = second.communicate()
        assert second.returncode == 2, err
        assert f"training is under way in {shared.path}" in err
        assert f"process {first.pid} on" in err
        _, err = first.communicate()
        assert first.returncode == 0, err
    assert_same_result(shared, whole)


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path):
    folder = tmp_path / "checkpoints"
    first = checkpoint.save(folder, checkpoint.Checkpoint({"w": torch.ones(10)}, {}, {"step": 1}))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            checkpoint.save(folder, checkpoint.Checkpoint({"w": torch.ones(10_000)}, {}, {"step": 2}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in folder.iterdir()] == [first.name]
    assert newest(folder) == first


# -- prediction --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five batches of files, one of which is broken."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(4 * BATCH + 5):
        toy.draw(toy.ATTRIBUTES[i % 5], toy.OBJECTS[i % 7], seed=i).save(folder / f"{i:03d}.png")
    (folder / "007.png").write_bytes(b"no image")
    return folder


def spoil(file: Path) -> None:
    """Other content of the same size and time: computed again, its record would be another one."""
    stat = file.stat()
    file.write_bytes(bytes(stat.st_size))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.slow
def test_an_interrupted_prediction_goes_on_without_repeating_a_file(source, photos, tmp_path):
    import shutil

    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    names = [p.relative_to(folder).as_posix() for p in list_images(folder)]
    config = PredictConfig(run=str(source.path), top=2)

    def predict(out: Path, crash_behind: int = 0) -> int:
        """Batches that were done before."""
        with partial_of(out, config, folder, names) as partial:
            stream = predictions.write(out, predict_files(config, folder, names, partial=partial))
            for count, _ in enumerate(stream, 1):
                if count == crash_behind:
                    raise RuntimeError("a crash")
            return partial.done

    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert predict(whole) == 0
    with pytest.raises(RuntimeError, match="a crash"):
        predict(broken, crash_behind=2 * BATCH + 3)
    assert not broken.exists()
    for name in names[: 3 * BATCH]:
        spoil(folder / name)
    assert predict(broken) == 3
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.jsonl", "photos", "whole.jsonl"]
    # A finished file is no partial one: asked again, everything is computed, and the spoilt files show.
    assert predict(broken) == 0
    assert broken.read_bytes() != whole.read_bytes()


@pytest.mark.fault
@pytest.mark.parametrize("name", ENGINES)
def test_a_killed_prediction_goes_on_to_the_same_file(source, photos, tmp_path, name):
    many = tmp_path / "many"
    for copy in range(12):
        (many / str(copy)).mkdir(parents=True)
        for file in photos.iterdir():
            (many / str(copy) / file.name).hardlink_to(file)
    args = ("predict", many, "--run", source.path, "--engine", name, "--out")
    with czsl(*args, tmp_path / "whole.parquet") as process:
        _, err = process.communicate()
        assert process.returncode == 6, err  # the broken file
    sidecar = tmp_path / ".broken.parquet.partial.jsonl"
    with czsl(*args, tmp_path / "broken.parquet") as process:
        wait_until(lambda: sidecar.exists() and sidecar.read_bytes().count(b"\n") >= 4)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "broken.parquet").exists()
    with czsl(*args, tmp_path / "broken.parquet") as process:
        _, err = process.communicate()
        assert process.returncode == 6, err
    assert "resuming: " in err
    assert (tmp_path / "broken.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.parquet", "many", "whole.parquet"]
