"""Gradients averaged over workers in buckets: the numbers of a plain average, in an order that stays, while others are computed."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cluster.work import gradients
from cluster.work.comm import Group
from cluster.work.gradients import GradientAverage


class Twins:
    """The first of three workers that compute the same."""

    world = 3

    def from_first(self, thing):
        return thing


@pytest.fixture
def sent(monkeypatch):
    """Buffers in the order in which they are sent, each added up over three equal workers."""
    buffers = []

    class Work:
        def __init__(self, flat):
            self.flat = flat

        def wait(self):
            self.flat *= 3

    def all_reduce(flat, async_op):
        assert async_op
        buffers.append(flat)
        return Work(flat)

    monkeypatch.setattr(gradients.dist, "all_reduce", all_reduce)
    return buffers


def model():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(6)), nn.Linear(8, 1)).double()


def average_of(network, bucket_bytes=600):
    return GradientAverage(list(network.parameters()), Twins(), bucket_bytes)


def step(network, average, use=slice(None), flag=0.0):
    network.zero_grad()
    network[use](torch.ones(2, 8, dtype=torch.float64)).sum().backward()
    before = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    total = average.finish(flag)
    for p, expected in zip(network.parameters(), before, strict=True):
        assert (p.grad is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(p.grad, expected, rtol=1e-15, atol=0)
    return total


def test_gradients_are_sent_in_the_same_buckets_in_each_step(sent):
    network = model()
    average = average_of(network)
    sizes = []
    for _ in range(3):
        sent.clear()
        step(network, average)
        sizes.append([len(flat) for flat in sent])
    assert sizes[0] == sizes[1] == sizes[2]
    assert len(sizes[0]) >= 3
    assert sum(sizes[0]) == sum(p.numel() for p in network.parameters()) + 1  # and the flag
    # The last layer's gradients come first.
    assert average._buckets[0][0] >= 12


def test_a_new_process_takes_the_same_buckets(sent):
    found = []
    for _ in range(2):
        network = model()
        average = average_of(network)
        step(network, average)
        found.append(average._buckets)
    assert found[0] == found[1]


def test_full_buckets_are_sent_while_the_backward_pass_goes_on(sent):
    network = model()
    average = average_of(network)
    step(network, average)
    seen = []
    network[0].weight.register_hook(lambda grad: seen.append(len(sent)))  # of the layer that comes last
    for _ in range(2):
        sent.clear()
        step(network, average)
    everything = len(average._buckets)
    assert seen == [everything - 1] * 2


def test_gradients_that_are_missing_or_new_in_a_step(sent):
    network = model()
    average = average_of(network)
    step(network, average, slice(1, None))  # the first layer takes no part
    step(network, average, slice(3, None))  # nor do the next two
    step(network, average)  # all do
    step(network, average, slice(1, None))


def test_the_flag_is_added_up_and_one_worker_sends_nothing(sent):
    network = model()
    assert step(network, average_of(network), flag=1.0) == 3.0
    sent.clear()
    alone = model()
    average = GradientAverage(list(alone.parameters()), Group())
    assert step(alone, average, flag=1.0) == 1.0
    assert not sent
    assert not alone[0].weight._post_accumulate_grad_hooks


def work(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    network = model()
    average = GradientAverage(list(network.parameters()), Group(rank, world), 600)
    for number in range(3):
        inputs = [torch.full((2, 8), 1.0 + number + other, dtype=torch.float64) for other in range(world)]
        expected = [torch.zeros_like(p) for p in network.parameters()]
        for x in inputs:
            for total, g in zip(
                expected, torch.autograd.grad(network(x).square().sum(), list(network.parameters())), strict=True
            ):
                total += g / world
        network.zero_grad()
        network(inputs[rank]).square().sum().backward()
        assert average.finish(float(rank == 1)) == 1.0
        for p, there in zip(network.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, there, rtol=1e-12, atol=1e-12)
    dist.destroy_process_group()


@pytest.mark.slow
def test_real_workers_get_the_mean_of_their_gradients(tmp_path):
    torch.multiprocessing.spawn(work, (3, str(tmp_path)), 3)


def train(rank, world, network, average, steps):
    """Steps of plain gradient descent in float32, each worker on its own numbers."""
    for number in steps:
        draw = torch.Generator().manual_seed(100 * number + rank)
        network.zero_grad()
        network(torch.randn(4, 64, generator=draw)).square().mean().backward()
        average.finish()
        with torch.no_grad():
            for p in network.parameters():
                p -= 0.05 * p.grad


def resume(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    ends = []
    for parts in ([range(6)], [range(2), range(2, 6)], [range(5), range(5, 6)]):
        torch.manual_seed(0)
        network = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8)), nn.Linear(64, 3))
        for steps in parts:  # each part as after a resumption
            state = {k: v.clone() for k, v in network.state_dict().items()}
            network = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8)), nn.Linear(64, 3))
            network.load_state_dict(state)
            average = GradientAverage(list(network.parameters()), Group(rank, world), 10_000)
            train(rank, world, network, average, steps)
            assert len(average._buckets) > 4
        ends.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [3, 4])
def test_a_resumed_run_adds_in_the_same_order(tmp_path, world):
    """Bit for bit with three and four workers, whose sums change with the place of a number in its buffer."""
    torch.multiprocessing.spawn(resume, (world, str(tmp_path)), world)
