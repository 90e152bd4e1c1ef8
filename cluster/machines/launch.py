"""Starting one function on every worker of a placement, and starting it again after workers died; the engine defines how."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cluster.machines.preflight import Requirements
from cluster.work.placement import Placement
from czsl.errors import CzslError, SetupError
from czsl_start import shadowed

if TYPE_CHECKING:
    import torch

    from cluster.work.comm import Group

WorkerFunction = Callable[[dict[str, Any], "Group", "torch.device"], None]


class Engine(Protocol):
    """The way workers are started: through Ray, or as a process of this machine."""

    def place(self, again: bool = False) -> Placement:
        """Return where the workers run; ``again``: after some of them died. SetupError if nothing is free."""

    def attempt(
        self, function: WorkerFunction, config: dict[str, Any], placement: Placement, folder: Path, requirements: Requirements
    ) -> None:
        """Run the function on all workers once. Raises what it raised as CzslError; anything else means that workers died."""

    def reason(self, error: Exception) -> str:
        """Return one line on why workers died."""


def run_workers(
    engine: Engine,
    function: WorkerFunction,
    config: dict[str, Any],
    folder: Path,
    max_failures: int,
    *,
    requirements: Requirements | None = None,
    progress: Callable[[], int] = lambda: 0,
    on_placement: Callable[[Placement], None] = lambda placement: None,
    on_failure: Callable[[str, int], None] = lambda reason, failures: None,
) -> None:
    """Run ``function(config, group, device)`` on all workers until it returns everywhere.

    Parameters
    ----------
    engine : Engine
    function : callable
        A function of one of our modules. What it raises as CzslError is not retried: repeating would not cure it.
    config : dict
        Plain data handed to every worker.
    folder : Path
        Storage that all nodes see; files of an attempt go below it, and a worker's traceback into ``log.txt``.
    max_failures : int
        How often in a row all workers are started again after some died; a failure after ``progress`` is the first one again.
    requirements : Requirements, optional
        What must be equal on all workers, see :mod:`cluster.machines.preflight`.
    progress : callable, optional
        Returns how far the job is, as a number that grows.
    on_placement : callable, optional
        Called with where the workers run, at each start.
    on_failure : callable, optional
        Called with the reason and the number of failures in a row before workers are started again.

    Raises
    ------
    CzslError
        What the function raised, what does not fit together between the nodes, or no room for the workers.
    Exception
        The engine's, when workers died more often.
    """
    failures, before = 0, progress()
    placement = engine.place()
    while True:
        on_placement(placement)
        try:
            engine.attempt(function, config, placement, folder, requirements or Requirements())
            return
        except CzslError:
            raise
        except Exception as error:
            now = progress()
            failures, before = (1 if now > before else failures + 1), now
            if failures > max_failures:
                raise
            on_failure(engine.reason(error), failures)
        placement = engine.place(again=True)


def attempts_folder(folder: Path) -> Path:
    """Return the folder of the files of attempts while a job runs."""
    return folder / ".attempts"


def log_crash(folder: Path, rank: int) -> None:
    """Append the traceback of the exception at hand to the job's ``log.txt``."""
    with suppress(OSError), (folder / "log.txt").open("a", encoding="utf-8") as log:  # a full disk cannot hold it
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} worker {rank}\n{traceback.format_exc()}\n")


def check_packages() -> None:
    """Raise SetupError if a foreign package stands in for one of ours (``methods`` and ``cluster`` are common names)."""
    if lines := shadowed(("czsl", "methods", "cluster")):
        raise SetupError(*lines)


def error_in_words(error: CzslError) -> dict[str, Any]:
    """An error as plain data, for its way to the driver."""
    return {"what": error.what, "why": error.why, "fix": error.fix, "exit_code": error.exit_code}


def error_from_words(words: dict[str, Any]) -> CzslError:
    """The error that :func:`error_in_words` described."""
    error = CzslError(words["what"], words["why"], words["fix"])
    error.exit_code = words["exit_code"]
    return error
