"""Trainings through Ray Tune: it shares the cluster among them; what is tried next and who is stopped is the caller's."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.train import POLL_S, stop_on_signal, train
from cluster.work.progress import follow
from czsl.errors import CzslError
from czsl.runs.run import Run
from czsl.runs.trials import SearchConfig, Trial

DRIVER_FAILURES = 2  # deaths of a trial's driver that are made good
# A trial's driver only waits. A fraction of a CPU would keep a worker from the last whole one, so it holds a scrap of memory.
DRIVER_RESOURCES = {"memory": 2.0**20}


def drive(
    folder: Path,
    config: SearchConfig,
    queue: Any,
    scheduler: Any,
    *,
    concurrent: int,
    threads: int,
    on_record: Callable[[Trial, dict[str, Any]], None],
    on_trial: Callable[[Trial], None],
    on_stop: Callable[[], None],
) -> BaseException | None:
    """Train what a queue hands out until it has no more, or until SIGINT or SIGTERM; returns what stopped Ray Tune itself.

    Parameters
    ----------
    folder : Path
        Gets Ray's files (below ``.ray``) and a traceback (``log.txt``).
    config : SearchConfig
        Its metric, nodes and workers per node count.
    queue : Queue
        Queue of :mod:`cluster.tuning.tuner`.
    scheduler : TrialScheduler
        One of Ray Tune's.
    concurrent, threads : int
        Trials at once, and CPU threads of each of their workers.
    on_record, on_trial, on_stop : callable
        As :func:`cluster.tuning.tune.tune` takes them.
    """
    failures: list[BaseException] = []
    settings = {
        "metric": config.metric,
        "nodes": config.nodes,
        "workers_per_node": config.workers_per_node,
        "threads": threads,
    }
    job = threading.Thread(target=_fit, args=(folder, settings, queue, scheduler, concurrent, failures), daemon=True)
    watch = _Watch(on_record, on_trial)

    def stop() -> None:
        queue.stopping = True
        on_stop()

    with stop_on_signal(stop):
        job.start()
        while job.is_alive():
            job.join(POLL_S)
            live = list(queue.live.values())
            watch.look(live)
            for trial in live:
                # Again and again, for a run that is about to start takes the file away.
                if (queue.stopping or trial.pruned is not None) and trial.run:
                    trial.run.stop_file.touch()
    watch.look([])
    return failures[0] if failures else None


def prepare_ray() -> None:
    """Set what Ray Tune reads: no tables on stdout, which carries data, no log files of its own, no signal handler; a trial that fails
    before its first epoch has nothing to report.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")


class _Watch:
    """Passes on what trials log, and when they begin and end."""

    def __init__(self, on_record: Callable[[Trial, dict[str, Any]], None], on_trial: Callable[[Trial], None]):
        self._on_record, self._on_trial = on_record, on_trial
        self._positions: dict[int, tuple[Trial, int]] = {}

    def look(self, live: list[Trial]) -> None:
        """Read on in the metrics of the trials that run, and of those that ran at the last look."""
        for trial in live:
            if trial.number not in self._positions:
                run = trial.run
                self._positions[trial.number] = (
                    trial,
                    run.metrics_file.stat().st_size if run and run.metrics_file.exists() else 0,
                )
                self._on_trial(trial)
        for number, (trial, position) in list(self._positions.items()):
            for record, behind in follow(trial.run, position) if trial.run else ():
                self._on_record(trial, record)
                position = behind
            self._positions[number] = (trial, position)
            if trial not in live:
                del self._positions[number]
                self._on_trial(trial)


def _fit(
    folder: Path, settings: dict[str, Any], queue: Any, scheduler: Any, concurrent: int, failures: list[BaseException]
) -> None:
    """Run Ray Tune to its end; what stopped it goes into ``failures``, and the traceback into the log."""
    from ray import tune as ray_tune

    from cluster.tuning.tuner import VALUE, Silence

    try:
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(_trial, DRIVER_RESOURCES),
            param_space=settings,
            tune_config=ray_tune.TuneConfig(
                metric=VALUE,
                mode="max",
                search_alg=queue,
                scheduler=scheduler,
                num_samples=-1,  # the queue says when there are no more
                max_concurrent_trials=concurrent,
            ),
            run_config=ray_tune.RunConfig(
                name=f"attempt-{time.time_ns()}",
                storage_path=str(folder / ".ray"),
                verbose=0,
                callbacks=[Silence()],
                failure_config=ray_tune.FailureConfig(max_failures=DRIVER_FAILURES),
            ),
        )
        tuner.fit()
    except BaseException as error:
        failures.append(error)
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} driver\n{traceback.format_exc()}\n")


def _trial(settings: dict[str, Any]) -> None:
    """A trial's driver: train its run, tell Ray Tune about each epoch; a failure is kept with the run and ends this trial only."""
    from ray import tune as ray_tune

    trial = Trial(settings["number"], Path(settings["run"]), {})
    run = Run(trial.path)

    def tell_all(placement: Any) -> None:
        for report in trial.reports(settings["metric"]):
            ray_tune.report(report)

    def tell(record: dict[str, Any]) -> None:
        if record.get("event") == "epoch":
            # On a busy machine the next epoch may be known as well by now; every epoch is told, or a rung would be passed unseen.
            for report in trial.reports(settings["metric"]):
                if report["epoch"] == record["epoch"]:
                    ray_tune.report(report)

    try:
        train(
            run,
            engine="ray",
            nodes=settings["nodes"],
            workers_per_node=settings["workers_per_node"],
            threads=settings["threads"],
            on_placement=tell_all,  # what is left of an interrupted trial's epochs
            on_record=tell,
        )
    except CzslError as error:
        last = max((r.get("step", 0) for r in run.metrics()), default=0)
        reason = "; ".join(part for part in (error.what, error.why) if part)
        run.log({"event": "end", "status": "failed", "reason": reason, "step": last, "time": round(time.time(), 3)})
