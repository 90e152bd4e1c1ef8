"""The engine of one worker: a process of this machine, started here and ended with whoever started it. No Ray.

The worker gets its job on stdin, as a line of JSON, and answers on stdout with another. Stdin stays open as long as its driver lives: at
its end the worker ends too, whatever it is doing.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from cluster.machines.here import cpus
from cluster.machines.launch import WorkerFunction, check_packages, error_from_words, error_in_words, log_crash
from cluster.machines.preflight import Requirements, check_storage
from cluster.work.placement import Placement
from czsl.errors import CzslError
from czsl.gpus import gpus, own_device
from czsl.runs.files import FULL, no_space

START = """import json, sys
job = json.loads(sys.stdin.readline())
sys.path[:] = job["path"]  # not the folder in which the user stands
from cluster.machines.local import work
work(job)
"""
KEPT_LINES = 20  # of what a worker writes to stderr


class WorkerDiedError(Exception):
    """The worker ended without an answer."""


class LocalEngine:
    """One worker as a process of its own, in a session of its own: a Ctrl-C in the terminal reaches the driver only.

    Parameters
    ----------
    threads : int
        CPU threads of the worker; 0: all of this machine.
    """

    def __init__(self, threads: int = 0):
        self._threads = threads
        self._process: subprocess.Popen[str] | None = None

    def place(self, again: bool = False) -> Placement:
        """Here."""
        return Placement(nodes=1, per_node=1, gpu=gpus() > 0, threads=self._threads or cpus(), spread=False)

    def attempt(
        self, function: WorkerFunction, config: dict[str, Any], placement: Placement, folder: Path, requirements: Requirements
    ) -> None:
        """Start the worker and wait for its answer."""
        check_storage(folder)
        job = {
            "path": sys.path,
            "module": function.__module__,
            "function": function.__qualname__,
            "config": config,
            "folder": str(folder),
            "threads": placement.threads,
        }
        pipe = subprocess.PIPE
        environment = {**os.environ, "OMP_NUM_THREADS": str(placement.threads)}
        command = [sys.executable, "-c", START]
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace", env=environment, start_new_session=True
        ) as process:
            self._process = process
            assert process.stdin and process.stdout and process.stderr
            last: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
            reader = threading.Thread(target=_keep, args=(process.stderr, last), daemon=True)
            reader.start()
            with contextlib.suppress(BrokenPipeError):  # it died at once
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
            answer = process.stdout.readline()
            code = process.wait()
            reader.join()
        self._process = None
        _conclude(answer, code, list(last), folder)

    def reason(self, error: Exception) -> str:
        """Return one line on why the worker died."""
        return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]

    def close(self) -> None:
        """End the worker if it still runs."""
        if self._process is not None:
            self._process.kill()


def _keep(stream: IO[str], last: collections.deque[str]) -> None:
    for line in stream:
        last.append(line.rstrip())


def _conclude(answer: str, code: int, said: list[str], folder: Path) -> None:
    """Raise what the worker's answer stands for; no answer means that it died."""
    if not answer.endswith("\n"):
        text = "\n".join(said)
        if code < 0:
            name = signal.Signals(-code).name
            why = " (the system does this when memory runs out)" if name == "SIGKILL" else ""
            text = f"{text}\nthe worker died of {name}{why}"
        raise WorkerDiedError(text.strip() or f"the worker ended with exit code {code} and without an answer")
    found = json.loads(answer)
    if "error" in found:
        raise error_from_words(found["error"])
    if "full" in found:
        raise no_space(OSError(*found["full"]), folder)  # a full disk does not empty itself
    if "crash" in found:
        raise WorkerDiedError(found["crash"])


def work(job: dict[str, Any]) -> None:
    """Do a job in this process, which the engine started for it, and answer on stdout."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries is not an answer
    threading.Thread(target=_end_with_driver, daemon=True).start()
    folder = Path(job["folder"])
    try:
        answer = _answer(job, folder)
    except CzslError as error:
        answer = {"error": error_in_words(error)}
    except OSError as error:
        log_crash(folder, 0)
        full = error.errno in FULL
        answer = {"full": [error.errno, error.strerror, error.filename]} if full else {"crash": str(error)}
    except Exception as error:
        log_crash(folder, 0)
        answer = {"crash": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    os._exit(0)  # nothing is left to do, and libraries take a second to say goodbye


def _answer(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    import importlib

    import torch

    from cluster.work.comm import Group
    from cluster.work.memory import memory_errors

    check_packages()
    torch.set_num_threads(job["threads"])
    function = getattr(importlib.import_module(job["module"]), job["function"])
    with memory_errors():
        function(job["config"], Group(), own_device())
    return {}


def _end_with_driver() -> None:
    # Not sys.stdin: its buffer's lock would be held for ever.
    while os.read(0, 1):
        pass
    os._exit(1)
