"""Where workers go, on clusters that are only described."""

from __future__ import annotations

import pytest

from cluster.session import place
from czsl.errors import SetupError


class Described:
    """A Ray of which only ``nodes()`` is asked."""

    def __init__(self, *nodes):
        self._nodes = [{"Alive": alive, "Resources": resources} for alive, resources in nodes]

    def nodes(self):
        return self._nodes


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


def test_more_workers_than_gpus_run_on_cpus():
    assert place(Described((True, {"CPU": 8.0, "GPU": 1.0})), nodes=1, workers_per_node=4).gpu is False


@pytest.mark.parametrize("nodes", [[], [(True, {"CPU": 0.0})], [(True, {"memory": 1.0})]])
def test_a_cluster_without_cpus_is_an_error(nodes):
    with pytest.raises(SetupError, match="no node"):
        place(Described(*nodes), nodes=1)


def test_more_workers_than_cpus_is_an_error():
    with pytest.raises(SetupError, match="5 workers a node"):
        place(Described((True, {"CPU": 4.0})), nodes=1, workers_per_node=5)
