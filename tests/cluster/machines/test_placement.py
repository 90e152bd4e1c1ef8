"""Where workers go, on clusters that are only described."""

from __future__ import annotations

import itertools

import pytest
from pretended import pretend

from cluster.machines import nodes as nodes_module
from cluster.machines import session
from cluster.machines.nodes import NodeRequest, WaitStoppedError, await_placement
from cluster.machines.session import place
from czsl.errors import SetupError


class Described:
    """A Ray of which only ``nodes()`` is asked."""

    def __init__(self, *nodes):
        self._nodes = [{"NodeID": f"node{i}", "Alive": alive, "Resources": r} for i, (alive, r) in enumerate(nodes)]

    def nodes(self):
        return self._nodes


class Growing:
    """A Ray that has one more node at each look, up to a maximum."""

    def __init__(self, first: int, max_nodes: int, **resources):
        self._counts = itertools.chain(range(first, max_nodes), itertools.repeat(max_nodes))
        self._resources = resources or {"CPU": 2.0}

    def nodes(self):
        return [{"NodeID": f"node{i}", "Alive": True, "Resources": self._resources} for i in range(next(self._counts))]


@pytest.fixture(autouse=True)
def nobody_works(monkeypatch):
    """All resources of a described cluster are free."""
    monkeypatch.setattr(session, "free_resources", lambda: {f"node{i}": {"CPU": 1e3, "GPU": 1e3} for i in range(9)})


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """No test waits for real; missing nodes are demanded of nobody."""
    clock = Clock()
    monkeypatch.setattr(nodes_module, "time", clock)
    monkeypatch.setattr(nodes_module._Demand, "make", lambda self: None)
    return clock


def test_one_worker_a_gpu_on_each_node():
    chosen = place(Described(*[(True, {"CPU": 16.0, "GPU": 4.0})] * 3), nodes=2)
    assert (chosen.nodes, chosen.per_node, chosen.workers, chosen.gpu, chosen.threads, chosen.spread) == (2, 4, 8, True, 4, True)
    assert chosen.note == ""


def test_one_worker_a_node_without_gpus():
    chosen = place(Described((True, {"CPU": 2.0})), nodes=1)
    assert (chosen.workers, chosen.gpu, chosen.threads, chosen.spread) == (1, False, 2, False)


def test_fewer_nodes_than_asked_is_said():
    chosen = place(Described((True, {"CPU": 2.0}), (False, {"CPU": 2.0})), nodes=4)
    assert chosen.nodes == 1
    assert "4 nodes asked, 1 in the cluster" in chosen.note
    assert "global batch" in chosen.note


def test_gpu_nodes_are_preferred_and_the_poorest_chosen_node_sets_the_workers():
    nodes = [(True, {"CPU": 64.0}), (True, {"CPU": 8.0, "GPU": 8.0}), (True, {"CPU": 8.0, "GPU": 2.0})]
    assert place(Described(*nodes), nodes=2).per_node == 2


def test_more_workers_than_gpus_run_on_cpus_and_say_so():
    chosen = place(Described((True, {"CPU": 8.0, "GPU": 1.0})), nodes=1, workers_per_node=4)
    assert chosen.gpu is False
    assert "4 workers per node on the CPU: a node has 1 GPU, and each worker needs its own" in chosen.note


@pytest.mark.parametrize("nodes", [[], [(True, {"CPU": 0.0})], [(True, {"memory": 1.0})]])
def test_a_cluster_without_cpus_is_an_error(nodes):
    with pytest.raises(SetupError, match="no node"):
        place(Described(*nodes), nodes=1)


def test_more_workers_than_cpus_is_an_error():
    with pytest.raises(SetupError, match="5 workers per node"):
        place(Described((True, {"CPU": 4.0})), nodes=1, workers_per_node=5)


def test_only_nodes_with_gpus_count_where_there_are_some():
    cpu, gpu = (True, {"CPU": 64.0}), (True, {"CPU": 16.0, "GPU": 2.0})
    chosen = place(Described(cpu, gpu, gpu), nodes=3)
    assert (chosen.nodes, chosen.per_node, chosen.gpu) == (2, 2, True)
    assert "3 nodes with a GPU asked, 2 in the cluster" in chosen.note


def test_some_of_each_nodes_gpus():
    two, four = (True, {"CPU": 16.0, "GPU": 2.0}), (True, {"CPU": 16.0, "GPU": 4.0})
    chosen = place(Described(four, two, four), nodes=3, gpus_per_node=3)
    assert (chosen.nodes, chosen.per_node, chosen.gpu, chosen.pins) == (2, 3, True, ("node0", "node2"))
    with pytest.raises(SetupError, match="no node with 8 GPUs"):
        place(Described(four), nodes=1, gpus_per_node=8)


def test_a_plan_for_this_machine_names_the_missing_gpus(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    pretend(monkeypatch, 1)
    assert session.planned(None, 1).gpu
    with pytest.raises(SetupError, match="no node with 2 GPUs"):
        session.planned(None, 1, gpus_per_node=2)


def test_several_workers_a_node_are_pinned_to_free_nodes(monkeypatch):
    """Otherwise Ray would spread 2 x 2 workers over all four nodes."""
    busy = {f"node{i}": {"CPU": 1.0 if i in (0, 2) else 4.0} for i in range(4)}
    monkeypatch.setattr(session, "free_resources", lambda: busy)
    cluster = Described(*[(True, {"CPU": 4.0})] * 4)
    assert place(cluster, nodes=2, workers_per_node=2).pins == ("node1", "node3")
    assert place(cluster, nodes=2).pins == ()  # one a node: Ray's strict spread does it


def test_nodes_left_out():
    cluster = Described(*[(True, {"CPU": 4.0})] * 3)
    assert place(cluster, nodes=3, without={"node1"}).nodes == 2


def test_waiting_for_nodes_is_told_and_ends_when_all_are_there(clock):
    told = []
    chosen = await_placement(Growing(1, 4), NodeRequest(max_nodes=4, wait_s=600), on_wait=told.append)
    assert chosen.nodes == 4 and not chosen.note
    assert str(told[1]) == "waiting for nodes: 2 of 4, 1 s of 600 s"


def test_at_the_deadline_it_runs_on_what_is_there(clock):
    told = []
    chosen = await_placement(Growing(2, 2), NodeRequest(max_nodes=4, wait_s=30), on_wait=told.append)
    assert (chosen.nodes, clock.now, len(told)) == (2, 130.0, 30)
    assert "4 nodes asked, 2 in the cluster" in chosen.note


def test_elastic_waits_a_short_while_for_more_than_the_least(clock):
    chosen = await_placement(Growing(1, 3), NodeRequest(max_nodes=4, min_nodes=2, wait_s=600))
    assert chosen.nodes == 3
    assert clock.now - 100 == pytest.approx(1 + nodes_module.GROWTH_S)


def test_elastic_without_its_least_is_an_error_that_says_what_was_waited_for(clock):
    with pytest.raises(SetupError, match="1 node in the cluster, at least 2 needed") as caught:
        await_placement(Growing(1, 1), NodeRequest(max_nodes=4, min_nodes=2, wait_s=20))
    assert caught.value.why == "waited 20 s"
    assert "--wait" in caught.value.fix


def test_lost_nodes_count_as_gone(clock):
    with pytest.raises(SetupError, match="1 node in the cluster, at least 2 needed") as caught:
        await_placement(Growing(2, 2), NodeRequest(max_nodes=2, min_nodes=2), without=frozenset({"node1"}))
    assert "1 do not answer" in caught.value.why


def test_a_cluster_that_is_still_empty_is_waited_for(clock):
    assert await_placement(Growing(0, 2), NodeRequest(max_nodes=2, wait_s=60)).nodes == 2
    with pytest.raises(SetupError, match="0 nodes with 2 GPUs in the cluster"):
        await_placement(Growing(1, 1, CPU=4.0), NodeRequest(max_nodes=1, gpus_per_node=2, wait_s=5))


def test_waiting_can_be_stopped(clock):
    with pytest.raises(WaitStoppedError):
        await_placement(Growing(1, 1), NodeRequest(max_nodes=2, wait_s=600), stop=lambda: clock.now > 105)
