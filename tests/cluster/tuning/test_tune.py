"""Hyperparameter search: how trials share a cluster, what is tried next, who is stopped, and whole searches through Ray Tune."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cluster.tuning.proposals import Drawn, Gridded, Tpe
from cluster.tuning.tune import share, space_of, tune
from czsl.errors import SetupError
from czsl.runs import checkpoint
from czsl.runs.config import RunConfig
from czsl.runs.search import grid, parse_space
from czsl.runs.trials import Search, SearchConfig
from methods.csp.config import CSPConfig


def config(**settings) -> SearchConfig:
    base = RunConfig(method="csp", threads=settings.pop("threads", 0), epochs=settings.pop("epochs", 9))
    return SearchConfig(settings.pop("space", {"lr": {"choice": [0.1, 0.2]}}), base.to_dict(), **settings)


class Described:
    """A Ray of which only ``nodes()`` is asked."""

    def __init__(self, *nodes):
        self._nodes = [{"Alive": True, "Resources": resources} for resources in nodes]

    def nodes(self):
        return self._nodes


@pytest.mark.parametrize(
    ("nodes", "settings", "trials", "expected"),
    [  # concurrent, workers, threads, gpu
        ([{"CPU": 2}], {}, 16, (2, 1, 1, False)),
        ([{"CPU": 2}], {"workers_per_node": 2}, 16, (1, 2, 1, False)),
        ([{"CPU": 2}], {"max_concurrent": 1}, 16, (1, 1, 2, False)),
        ([{"CPU": 2}], {"max_concurrent": 9}, 16, (2, 1, 1, False)),
        ([{"CPU": 2}], {"threads": 2}, 16, (1, 1, 2, False)),
        ([{"CPU": 2}], {}, 1, (1, 1, 2, False)),
        ([{"CPU": 1}], {}, 16, (1, 1, 1, False)),
        ([{"CPU": 64}], {}, 16, (4, 1, 16, False)),
        ([{"CPU": 16, "GPU": 4}] * 2, {}, 16, (8, 1, 4, True)),
        ([{"CPU": 16, "GPU": 4}] * 2, {}, 3, (3, 1, 8, True)),
        ([{"CPU": 16, "GPU": 4}] * 2, {"workers_per_node": 2}, 16, (4, 2, 4, True)),
        ([{"CPU": 16, "GPU": 4}] * 4, {"nodes": 2, "workers_per_node": 4}, 16, (2, 8, 4, True)),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 4}], {}, 16, (4, 1, 4, True)),
    ],
)
def test_trials_that_run_at_once_always_fit(nodes, settings, trials, expected, monkeypatch):
    monkeypatch.setattr("cluster.machines.session.free_resources", dict)  # of a Ray that is not there
    part = share(Described(*nodes), config(**settings), trials)
    assert (part.concurrent, part.workers, part.threads, part.gpu) == expected
    on_gpus = [n for n in nodes if not part.gpu or n.get("GPU")]
    assert part.concurrent * part.workers * part.threads <= sum(n["CPU"] for n in on_gpus)


def test_what_does_not_fit_is_said():
    assert "9 trials at once asked, 2 fit" in share(Described({"CPU": 2}), config(max_concurrent=9), 16).note
    alone = share(Described({"CPU": 2}), config(), 1)
    assert (alone.concurrent, alone.threads) == (1, 2)
    assert share(Described({"CPU": 2}), config(), 1, threads=1).threads == 1  # as the trials before it
    with pytest.raises(SetupError, match="a trial wants 4 CPUs"):
        share(Described({"CPU": 2}), config(threads=4), 16)
    with pytest.raises(SetupError, match="3 workers per node"):
        share(Described({"CPU": 2}), config(workers_per_node=3), 16)


# -- what is tried next --------------------------------------------------------------------------------------------------
SPACE = parse_space(
    {"lr": {"loguniform": [1e-4, 1.0]}, "attr_dropout": {"choice": [0.0, 0.3]}, "batch": {"quniform": [32, 96, 32]}},
    "csp",
    CSPConfig,
)


def test_trials_begun_before_keep_their_values():
    kept = {"lr": 0.5, "attr_dropout": 0.0, "batch": 64}
    countable = {k: SPACE[k] for k in ("attr_dropout", "batch")}
    for source in (Drawn(SPACE, 0), Gridded(countable, 0), Tpe(SPACE, 0)):
        assert source.ask(3, kept) == kept
    assert Gridded(countable, 0).ask(1) == grid(countable, 0)[1]


def test_optuna_learns_from_what_was_tried_also_before():
    """The best learning rate is 0.01; after 40 trials the next ones lie nearer to it than random ones."""

    def worth(values):
        return -abs(np.log10(values["lr"]) + 2)

    source = Tpe(SPACE, 0)
    tried = []
    for number in range(40):
        values = source.ask(number)
        for name, domain in SPACE.items():
            assert values[name] in domain.values() if domain.count else domain.args[0] <= values[name] <= domain.args[1]
        source.tell(number, None if number == 7 else worth(values))
        tried.append((values, None if number == 7 else worth(values)))
    again = Tpe(SPACE, 0, tried)
    later = []
    for number in range(40, 60):
        later.append(worth(again.ask(number)))
        again.tell(number, later[-1])
    chance = [worth(Drawn(SPACE, 0).ask(n)) for n in range(200)]
    assert np.mean(later) > 0.6 * np.mean(chance)
    assert Tpe(SPACE, 0, tried).ask(40) != tried[0][0]  # the first draws are not repeated


def test_optuna_missing_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SetupError, match="not installed"):
        Tpe(SPACE, 0)


# -- who is stopped ------------------------------------------------------------------------------------------------------
class TuneTrial:
    """What Ray's scheduler looks at."""

    def __init__(self, number):
        self.trial_id = f"ray-{number}"


def plain_asha(curves: list[list[float]], grace: int, factor: int) -> list[int | None]:
    """Asynchronous successive halving of trials that run one after the other: the epoch after which each is stopped."""
    rungs: dict[int, list[float]] = {}
    stopped: list[int | None] = []
    for curve in curves:
        stop, best = None, -1.0
        for epoch, value in enumerate(curve, 1):
            best = max(best, value)
            if epoch not in [grace * factor**k for k in range(9)] or epoch >= len(curve):
                continue
            others = rungs.setdefault(epoch, [])
            bad = bool(others) and best < np.percentile(others, 100 * (1 - 1 / factor))
            others.append(best)
            if bad:
                stop = epoch
                break
        stopped.append(stop)
    return stopped


@pytest.fixture
def search(tmp_path):
    return Search.create(config(trials=12), tmp_path, "s")


def begin(search, small_space, number):
    return search.add(number, {"lr": 0.1}, search.config.base, small_space)


@pytest.mark.parametrize("interrupted_at", [None, 5])
def test_halving_stops_whom_the_plain_rule_stops_also_after_an_interruption(search, small_space, interrupted_at):
    from cluster.tuning.tuner import Halving

    rng = np.random.default_rng(0)
    curves = [[rng.normal(0.02 * e + rise, 0.05) for e in range(1, 10)] for rise in rng.random(12)]
    expected = plain_asha(curves, 1, 3)
    assert {None} < set(expected)
    live = {}
    halving = None
    for number, curve in enumerate(curves):
        if halving is None or number == interrupted_at:  # a new driver, which knows the folder alone
            halving = Halving(search, live, 9)
            halving.set_search_properties("value", "max")
        ray_trial, trial = TuneTrial(number), begin(search, small_space, number)
        live[ray_trial.trial_id] = trial
        halving.on_trial_add(None, ray_trial)
        for epoch, value in enumerate(curve, 1):
            trial.run.log({"event": "epoch", "epoch": epoch, "auc": value, "step": epoch, "time": 100.0 * number + epoch})
            assert halving.on_trial_result(None, ray_trial, trial.reports("val_auc")[-1]) == halving.CONTINUE
            if trial.pruned:
                break
        trial.run.log({"event": "end", "status": "stopped" if trial.pruned else "done", "step": 9, "time": 100.0 * number + 50})
        del live[ray_trial.trial_id]
    assert [t.pruned for t in search.trials()] == expected


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_queue_begins_with_what_was_begun_and_goes_on_with_what_is_missing(search, small_space, nodes):
    from cluster.tuning.tuner import SearchQueue

    search.config.trials, search.config.nodes = 4, nodes
    begin(search, small_space, 0).run.log({"event": "end", "status": "done", "step": 1, "time": 1.0})
    begun = begin(search, small_space, 2).run
    begun.log({"event": "start", "step": 0, "time": 1.0})
    begun.log({"event": "step", "step": 1, "time": 1.0})
    queue = SearchQueue(search, Drawn(space_of(search.config), 0), small_space, lambda trial: None)
    assert queue.left == 3
    first = queue.suggest("a")
    assert first["number"] == 2
    # The others wait until the first has made a step of its own: features are then in the cache.
    run = search.trials()[1].run
    assert queue.suggest("b") is None
    run.log({"event": "start", "step": 1, "time": 2.0})
    assert queue.suggest("b") is None
    run.log({"event": "step", "step": 2, "time": 3.0})
    assert queue.suggest("b")["number"] == 1
    assert (None if nodes > 1 else 3) == (queue.suggest("c") or {}).get("number")  # of several nodes one starts after the other
    queue.on_trial_complete("a", error=True)
    assert search.trials()[-2 if nodes == 1 else -1].status() == "failed"


def test_values_that_cannot_be_are_failed_trials_and_the_next_one_comes(tmp_path, small_space):
    from cluster.tuning.tuner import SearchQueue

    bad = config(space={"lr": {"choice": [-1.0, 0.1]}}, algorithm="grid", trials=2)
    search, told = Search.create(bad, tmp_path, "s"), []
    queue = SearchQueue(search, Gridded(space_of(bad), 0), small_space, told.append)
    handed = queue.suggest("a")
    if not told:  # the good one came first
        queue.on_trial_complete("a", {"value": 0.5})
        queue.suggest("b")
    assert len(told) == 1
    assert "must be at least 0" in told[0].reason
    assert told[0].status() == "failed"
    assert handed["number"] != told[0].number


# -- through Ray ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_search_stops_the_bad_and_reports_the_broken(ray_local, tmp_path, dataset, capfd):
    """A good learning rate, one that overflows, one that destroys, one that cannot be; one trial at a time."""
    from czsl_cli.config import resolve

    space = {"lr": {"choice": [1e-3, 1e30, 1.0, -1.0]}}
    seed = next(
        s for s in range(99) if [p["lr"] for p in grid(parse_space(space, "csp", CSPConfig), s)] == [1e-3, 1e30, 1.0, -1.0]
    )
    base = {"method": "csp", "data": str(dataset), "epochs": 54, "batch": 24, "eval_batch": 16, "threads": 1}
    asked = SearchConfig(space, resolve(base).to_dict(), 4, "grid", grace=6, seed=seed, max_concurrent=1)
    search, over = Search.create(asked, tmp_path, "s"), []
    assert tune(search, on_trial=lambda trial: over.append((trial.number, trial.status()))) == "done"
    assert [t.status() for t in search.trials()] == ["done", "failed", "pruned", "failed"]
    assert {(n, s) for n, s in over if s != "unfinished"} == {(0, "done"), (1, "failed"), (2, "pruned"), (3, "failed")}
    rows = search.summaries()
    assert rows[0]["epochs_done"] == 54
    assert rows[0]["val_auc"] > rows[2]["val_auc"]
    assert "not a number" in rows[1]["reason"]
    assert "at least 0" in rows[3]["reason"]
    assert 6 <= rows[2]["epochs_done"] < 54
    stopped = search.trials()[2]
    assert stopped.pruned in (6, 18)
    last = list(stopped.run.metrics("step"))[-1]["step"]  # it ended by itself, with a checkpoint
    assert checkpoint.newest_valid(stopped.run.checkpoints).name == f"step-{last:08d}"
    assert not (search.path / ".ray").exists()
    assert capfd.readouterr().out == ""  # stdout carries data


@pytest.fixture
def command(tmp_path, dataset, clip_file):
    """A search as a process of its own."""
    czsl = str(Path(sys.executable).parent / "czsl")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CZSL_CACHE": str(tmp_path / "cache")}

    def start(*args):
        return subprocess.Popen(
            [czsl, "tune", *args], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def wait_for(condition, seconds=240):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.fault
def test_a_killed_search_goes_on_without_repeating(command, tmp_path, dataset, clip_file):
    """SIGKILL of the driver while the second trial trains: the first stays as it is, the second goes on from its checkpoint."""
    (tmp_path / "space.yaml").write_text("lr: {choice: [1e-2, 2e-2]}")
    start = [
        "-m",
        "csp",
        "--data",
        str(dataset),
        "--clip",
        str(clip_file),
        "--search",
        "space.yaml",
        "--name",
        "s",
        "--max-concurrent",
        "1",
    ]
    process = command(
        *start, "--algorithm", "grid", "--scheduler", "none", "epochs=150", "batch=24", "eval_batch=16", "threads=1"
    )
    second = tmp_path / "runs/s/trials/001/metrics.jsonl"
    wait_for(lambda: process.poll() is not None or (second.exists() and second.read_text().count('"event": "epoch"') > 5))
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    search = Search(tmp_path / "runs/s")
    wait_for(lambda: not _alive(search.folder / "001" / "worker-0.json"))  # Ray's own processes die with their driver
    first = (search.folder / "000" / "metrics.jsonl").read_bytes()
    reached = checkpoint.step_of(checkpoint.newest_valid(search.folder / "001" / "checkpoints"))
    assert [t.status() for t in search.trials()] == ["done", "unfinished"]
    assert 0 < reached < 150 * 4

    again = command("--resume", "runs/s", "--json")
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert "1 of 2 trials are over" in err
    report = json.loads(out)
    assert [t["status"] for t in report["trials"]] == ["done"] * 2
    assert [t["epochs_done"] for t in report["trials"]] == [150] * 2
    assert (search.folder / "000" / "metrics.jsonl").read_bytes() == first
    begun = [r["step"] for r in search.trials()[1].run.metrics("start")]
    assert begun == [0, reached]
    steps = [r["step"] for r in search.trials()[1].run.metrics("step")]
    assert steps == list(range(1, 150 * 4 + 1))


def _alive(worker: Path) -> bool:
    return Path(f"/proc/{json.loads(worker.read_text())['pid']}").exists()
