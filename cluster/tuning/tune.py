"""Hyperparameter search: Ray Tune shares the cluster between trials, each of which is an ordinary training on Ray Train."""

from __future__ import annotations

import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.machines.session import node_resources, place, session
from cluster.train import POLL_S, TrainingFailedError, stop_on_signal, train
from cluster.tuning.proposals import Drawn, Gridded, Proposals, Tpe
from cluster.work.progress import follow
from czsl.data.table import open_data
from czsl.errors import CzslError, DataError, SetupError
from czsl.runs.files import held
from czsl.runs.run import Run
from czsl.runs.search import Space, parse_space
from czsl.runs.trials import OVER, Search, SearchConfig, Trial
from methods.registry import config_class

TRIALS_A_NODE = 4  # without GPUs; more would each get few threads and a memory of their own
DRIVER_FAILURES = 2  # deaths of a trial's driver that are made good
# A trial's driver only waits. A fraction of a CPU would keep a worker from the last whole one, so it holds a scrap of memory.
DRIVER_RESOURCES = {"memory": 2.0**20}


@dataclass(frozen=True)
class Share:
    """How trials share a cluster.

    concurrent : trials at once
    workers : of a trial
    threads : CPU threads a worker
    gpu : each worker has a GPU
    note : what differs from what was asked
    """

    concurrent: int
    workers: int
    threads: int
    gpu: bool
    note: str = ""


def share(ray: Any, config: SearchConfig, trials: int, threads: int = 0) -> Share:
    """Divide the cluster among the trials that are left, so that every one that is started finds room for all its workers.

    ``threads`` are those of the trials before: all have the same, or their last bits, and the features that they share, would differ.

    Raises
    ------
    SetupError
        If not even one trial fits.
    """
    asked = min(config.max_concurrent or trials, trials)
    pinned = config.base.threads or threads
    placement = place(ray, config.nodes, config.workers_per_node, pinned)
    nodes = [n for n in node_resources(ray) if not placement.gpu or n.get("GPU", 0) >= placement.per_node]
    groups = max(1, len(nodes) // placement.nodes)  # sets of nodes that hold trials side by side
    cpus = int(min(n["CPU"] for n in nodes))
    room = (
        int(min(n["GPU"] for n in nodes)) // placement.per_node
        if placement.gpu
        else min(TRIALS_A_NODE, cpus // placement.per_node)
    )
    a_node = max(1, min(room, -(-asked // groups)))
    threads = pinned or max(1, cpus // (a_node * placement.per_node))
    a_node = min(a_node, cpus // (threads * placement.per_node))
    if not a_node:
        wanted = threads * placement.per_node
        raise SetupError(
            f"a trial wants {wanted} CPUs of a node",
            f"{placement.per_node} workers of {threads} threads; a node has {cpus} CPUs",
            "lower threads or --workers-per-node",
        )
    concurrent = min(asked, groups * a_node)
    note = placement.note
    if config.max_concurrent > concurrent and trials > concurrent:
        note = " ".join(filter(None, [note, f"{config.max_concurrent} trials at once asked, {concurrent} fit"]))
    return Share(concurrent, placement.workers, threads, placement.gpu, note)


def space_of(config: SearchConfig) -> Space:
    """The parsed search space."""
    method = config.base.method
    return parse_space(config.space, method, config_class(method))


def proposals(config: SearchConfig, tried: list[Trial]) -> Proposals:
    """The search algorithm, which knows the trials that are over."""
    space = space_of(config)
    if config.algorithm == "grid":
        return Gridded(space, config.seed)
    if config.algorithm == "random":
        return Drawn(space, config.seed)
    rows = [(t, t.summary(config.metric)) for t in tried if t.status() in OVER]
    return Tpe(space, config.seed, [(t.values, None if r["status"] == "failed" else r[config.metric]) for t, r in rows])


def tune(
    search: Search,
    *,
    address: str | None = None,
    on_share: Callable[[Share], None] = lambda share: None,
    on_record: Callable[[Trial, dict[str, Any]], None] = lambda trial, record: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    on_stop: Callable[[], None] = lambda: None,
) -> str:
    """Run the trials of a search that are not over; returns ``done``, or ``stopped`` after SIGINT or SIGTERM.

    Parameters
    ----------
    search : Search
        A new search, or one that was interrupted.
    address
        See :func:`cluster.machines.session.session`.
    on_share, on_record, on_trial, on_stop : callable
        Told how the trials share the cluster, every new line of a trial's metrics, every trial that begins or is over, and of a signal.

    Raises
    ------
    CzslError
        No validation images; nothing fits; Ray Tune itself failed. A trial that fails is no error here.
    """
    config = search.config
    data = open_data(config.base.data)
    if not len(data.split("val")):
        raise DataError(
            f"{config.base.data} has no validation images", "trials are compared on them", "import it with a val split"
        )
    _prepare_ray()
    with held(search.path, "this search"):
        search.clean()
        if search.is_over():
            return "done"
        source = proposals(config, search.trials())
        with session(address) as ray:
            from cluster.tuning.tuner import Queue

            queue = Queue(search, source, data.space, on_trial)
            part = share(ray, config, queue.left, next((t.run.threads for t in search.trials() if t.run and t.run.threads), 0))
            on_share(part)
            failures: list[BaseException] = []
            job = threading.Thread(target=_fit, args=(search, queue, part, failures), daemon=True)
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
        shutil.rmtree(search.path / ".ray", ignore_errors=True)
    if failures:
        raise TrainingFailedError(
            "the search failed",
            str(failures[0]).strip().splitlines()[-1],
            f"see {search.path / 'log.txt'}; go on with: czsl tune --resume {search.path}",
        )
    return "stopped" if queue.stopping else "done"


class _Watch:
    """Passes on what trials log, and when they begin and end."""

    def __init__(self, on_record: Callable[[Trial, dict[str, Any]], None], on_trial: Callable[[Trial], None]):
        self._on_record, self._on_trial = on_record, on_trial
        self._places: dict[int, tuple[Trial, int]] = {}

    def look(self, live: list[Trial]) -> None:
        """Read on in the metrics of the trials that run, and of those that ran at the last look."""
        for trial in live:
            if trial.number not in self._places:
                run = trial.run
                self._places[trial.number] = (trial, run.metrics_file.stat().st_size if run and run.metrics_file.exists() else 0)
                self._on_trial(trial)
        for number, (trial, position) in list(self._places.items()):
            for record, behind in follow(trial.run, position) if trial.run else ():
                self._on_record(trial, record)
                position = behind
            self._places[number] = (trial, position)
            if trial not in live:
                del self._places[number]
                self._on_trial(trial)


def _prepare_ray() -> None:
    """Set what Ray Tune reads: no tables on stdout, which carries data, no log files of its own, no signal handler; a trial that fails
    before its first epoch has nothing to report.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")


def _fit(search: Search, queue: Any, part: Share, failures: list[BaseException]) -> None:
    """Run Ray Tune to its end; what stopped it goes into ``failures``, and the traceback into the log."""
    from ray import tune as ray_tune
    from ray.tune.schedulers import FIFOScheduler

    from cluster.tuning.tuner import VALUE, Halving, Silence

    config = search.config
    longest = config.base.epochs
    if domain := space_of(config).get("epochs"):
        longest = int(max(domain.args if domain.kind == "choice" else domain.args[:2]))
    halving = Halving(search, queue.live, longest) if config.scheduler == "asha" else FIFOScheduler()
    settings = {
        "metric": config.metric,
        "nodes": config.nodes,
        "workers_per_node": config.workers_per_node,
        "threads": part.threads,
    }
    try:
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(_trial, DRIVER_RESOURCES),
            param_space=settings,
            tune_config=ray_tune.TuneConfig(
                metric=VALUE,
                mode="max",
                search_alg=queue,
                scheduler=halving,
                num_samples=-1,  # the queue says when there are no more
                max_concurrent_trials=part.concurrent,
            ),
            run_config=ray_tune.RunConfig(
                name=f"attempt-{time.time_ns()}",
                storage_path=str(search.path / ".ray"),
                verbose=0,
                callbacks=[Silence()],
                failure_config=ray_tune.FailureConfig(max_failures=DRIVER_FAILURES),
            ),
        )
        tuner.fit()
    except BaseException as error:
        failures.append(error)
        with (search.path / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} driver\n{traceback.format_exc()}\n")


def _trial(settings: dict[str, Any]) -> None:
    """A trial's driver: train its run, tell Ray Tune about each epoch; a failure is kept with the run and ends this trial alone."""
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
