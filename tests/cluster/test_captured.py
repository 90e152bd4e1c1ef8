"""Passes that are recorded once and replayed: equal to plain ones in a whole training, and what happens where that is not possible.

The recordings are those of a stand-in for CUDA graphs on a CPU.
"""

from __future__ import annotations

import pytest
import torch

from cluster.work import training
from cluster.work.comm import Group
from cluster.work.gradients import GradientAverage
from czsl.clip.captured import Graphs, replayed, replayed_passes
from czsl.clip.compiled import Use
from czsl.gpus import tell_once
from czsl.runs import checkpoint
from czsl.runs.run import Run
from tests.recorded import make_recorded_callable

CPU = torch.device("cpu")


@pytest.fixture
def replaying(monkeypatch):
    """Trainings with ``compile=auto`` replay their passes; returns the graphs of each."""
    made = []

    def graphs(device):
        made.append(Graphs(device, make_recorded_callable))
        return made[-1]

    tell_once.cache_clear()
    monkeypatch.setattr(training, "Graphs", graphs)
    monkeypatch.setattr(training, "use_of", lambda setting, *_: Use(replayed=setting == "auto"))
    return made


def losses(run):
    return [r["loss"] for r in run.metrics("step")]


def assert_same_ends(one, other):
    ends = [checkpoint.load(checkpoint.find(run.checkpoints, "last")) for run in (one, other)]
    for part in ("method", "optimizer"):
        first, second = (getattr(end, part) for end in ends)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


# Passes that are replayed: two parts of the image tower, and the text tower; only the text of frozen images; images and three texts.
CASES = {"clusPro": 3, "troika": 3, "msci": 3, "csp": 1, "dfsp": 1, "caila": 4}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_a_training_with_replayed_passes_is_the_plain_one_bit_for_bit(make_run, replaying, name, precision):
    """With dropout, augmentation and a smaller last batch."""
    adapters = {"adapter_dim": 8} if name in ("clusPro", "troika", "msci") else {}
    settings = {"method": name, "epochs": 2, "batch": 20, "precision": precision, **adapters}
    plain, faster = make_run(**settings), make_run(**settings, compile="auto")
    for run in (plain, faster):
        assert training.train_worker(run, Group(), CPU) == "done"
    assert [graphs.count for graphs in replaying] == [CASES[name]]
    assert losses(faster) == losses(plain)
    assert_same_ends(plain, faster)


def test_a_resumed_training_records_anew_and_ends_the_same(make_run, stopped_after, replaying):
    settings = {"method": "troika", "adapter_dim": 8, "epochs": 2, "batch": 20, "compile": "auto"}
    whole, broken = make_run(**settings), make_run(**settings)
    assert training.train_worker(whole, Group(), CPU) == "done"
    stopped_after(broken, 3)
    assert training.train_worker(broken, Group(), CPU) == "done"
    assert [graphs.count for graphs in replaying] == [3, 3, 3]
    assert losses(broken) == losses(whole)
    assert_same_ends(whole, broken)


def train_on(rank, paths, folder, world):
    """Train runs one after the other as one of several workers, with the stand-in and small buckets."""
    torch.set_num_threads(1)
    training.Graphs = lambda device: Graphs(device, make_recorded_callable)
    training.use_of = lambda setting, *_: Use(replayed=setting == "auto")
    training.GradientAverage = lambda trained, comm: GradientAverage(trained, comm, 10_000)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    for path in paths:
        assert training.train_worker(Run(path), Group(rank, world), CPU) == "done"
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_several_workers_replay_and_send_what_plain_ones_do(make_run, tmp_path):
    settings = {"method": "clusPro", "adapter_dim": 8, "epochs": 2, "batch": 20}
    plain, faster = make_run(**settings), make_run(**settings, compile="auto")
    torch.multiprocessing.spawn(train_on, ([plain.path, faster.path], str(tmp_path), 2), 2)
    assert losses(faster) == losses(plain)
    assert_same_ends(plain, faster)


# -- one pass ------------------------------------------------------------------------------------------------------
@pytest.fixture
def graphs():
    tell_once.cache_clear()
    return Graphs(CPU, make_recorded_callable)


def squares(weight):
    return lambda x: (x * weight).square()


def test_a_form_is_recorded_the_second_time_in_a_row_and_other_forms_stay_plain(graphs):
    weight, calls = torch.nn.Parameter(torch.tensor(3.0)), []

    def work(x):
        calls.append(len(x))
        return (x * weight).square()

    def run(n):
        x = torch.arange(float(n), requires_grad=True)
        with replayed_passes(graphs):
            out = replayed("squares", work, [x], [weight])
        found = torch.autograd.grad(out.sum(), [x, weight])
        expected = torch.autograd.grad((x * weight).square().sum(), [x, weight])
        assert torch.equal(out, (x * weight).square())
        assert all(map(torch.equal, found, expected))

    run(4), run(3), run(4)
    assert graphs.count == 0
    assert calls == [4, 3, 4]
    run(4)
    assert graphs.count == 1
    calls.clear()
    with torch.no_grad():
        weight.mul_(2)  # a step of the optimizer
    run(4)
    assert calls == []
    run(3), run(3)
    assert calls == [3, 3]
    assert graphs.count == 1


def test_without_gradients_or_a_block_nothing_is_recorded(graphs):
    x = torch.ones(3)
    for _ in range(3):
        with replayed_passes(graphs):
            assert torch.equal(replayed("a", lambda x: 2 * x, [x]), 2 * x)
            with torch.no_grad():
                replayed("b", squares(torch.nn.Parameter(torch.ones(()))), [x.clone().requires_grad_()])
        with replayed_passes(None):
            replayed("c", lambda x: 2 * x, [x.clone().requires_grad_()])
    assert graphs.count == 0
    assert not graphs._last


def test_draws_are_those_of_the_plain_pass(graphs):
    x = torch.ones(50, requires_grad=True)
    drop = lambda x: torch.nn.functional.dropout(x, 0.5)  # noqa: E731
    torch.manual_seed(0)
    expected = [drop(x) for _ in range(4)]
    torch.manual_seed(0)
    with replayed_passes(graphs):
        found = [replayed("drop", drop, [x]).clone() for _ in range(4)]
    assert graphs.count == 1
    assert all(map(torch.equal, found, expected))


def reads_a_value(x):
    return x * float(x.detach().sum())


def refused(function, samples, allow_unused_input):
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")


def another(function, samples, allow_unused_input):
    return lambda *args: function(*args) * 1.5


def nothing(function, samples, allow_unused_input):
    return lambda *args: function(*args) * torch.nan


@pytest.mark.parametrize(
    ("make", "work", "why"),
    [
        (make_recorded_callable, reads_a_value, "the host waits"),
        (refused, torch.square, "operation not permitted"),
        (another, torch.square, "its result differs by"),
        (nothing, torch.square, "its result differs by inf"),
    ],
)
def test_a_pass_that_cannot_be_replayed_stays_plain_and_says_why_once(make, work, why, caplog):
    tell_once.cache_clear()
    graphs = Graphs(CPU, make)
    x = torch.arange(4.0).requires_grad_()
    for _ in range(4):
        with replayed_passes(graphs):
            assert torch.equal(replayed("work", work, [x]), work(x))
    assert graphs.count == 0
    assert [why in r.getMessage() for r in caplog.records] == [True]
    assert "\n" not in caplog.records[0].getMessage()
    assert torch.is_autocast_cache_enabled()


def test_other_threads_are_kept_from_the_device_while_a_pass_is_recorded(graphs):
    held = []

    def make(function, samples, allow_unused_input):
        held.append(graphs.quiet.locked())
        return make_recorded_callable(function, samples, allow_unused_input)

    graphs._make = make
    x = torch.ones(3, requires_grad=True)
    for _ in range(2):
        with replayed_passes(graphs):
            replayed("a", torch.square, [x])
    assert held == [True]
    assert not graphs.quiet.locked()


def test_what_a_pass_depends_on_beside_inputs_and_weights_would_stay_as_it_was(graphs):
    """What the stand-in is for: it notices a value of the host that changes between steps."""
    factor = [1.0]
    x = torch.ones(3, requires_grad=True)
    for factor[0] in (1.0, 2.0, 3.0):
        with replayed_passes(graphs):
            out = replayed("a", lambda x: x * factor[0], [x])
    assert out.tolist() == [2.0] * 3


def test_cuda_graphs_are_torchs_own():
    assert Graphs(torch.device("cuda"))._make is torch.cuda.make_graphed_callables
