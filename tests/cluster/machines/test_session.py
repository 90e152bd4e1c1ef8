"""Starting and joining Ray, against a Ray that does as told."""

from __future__ import annotations

import socket
import threading

import pytest

from cluster.machines import nodes, session
from cluster.machines.nodes import NodeRequest
from czsl.errors import SetupError, UsageError


class FakeRay:
    """Fails to start as often as asked, in the words asked."""

    def __init__(self, failures: int, words: str = "The current node timed out during startup."):
        self.failures, self.words, self.calls = failures, words, []

    def init(self, **options):
        self.calls.append(("init", options["address"]))
        if self.failures:
            self.failures -= 1
            raise RuntimeError(self.words)

    def shutdown(self):
        self.calls.append(("shutdown", None))


def test_a_slow_local_start_is_tried_again():
    ray = FakeRay(2)
    session._connect(ray, None)
    assert [name for name, _ in ray.calls] == ["init", "shutdown", "init", "shutdown", "init"]


def test_it_is_not_tried_for_ever():
    with pytest.raises(RuntimeError, match="timed out"):
        session._connect(FakeRay(99), None)


@pytest.mark.parametrize(("address", "words"), [(None, "no such thing"), ("10.0.0.1:6379", "timed out")])
def test_another_failure_or_a_cluster_of_others_is_told_at_once(address, words):
    ray = FakeRay(1, words)
    with pytest.raises(RuntimeError, match=words):
        session._connect(ray, address)
    assert len(ray.calls) == 1


def test_a_head_that_does_not_answer_is_told_in_seconds(monkeypatch):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"  # nobody listens there
    with pytest.raises(SetupError, match="no Ray head answers") as caught, session.session(address):
        pass
    assert "czsl cluster up" in caught.value.fix


def test_an_ask_in_a_persons_words(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert NodeRequest.of() == NodeRequest(max_nodes=1)
    assert NodeRequest.of().local
    assert NodeRequest.of((2, 4), address="a:1", wait_s=9.0) == NodeRequest(max_nodes=4, min_nodes=2, address="a:1", wait_s=9.0)
    assert NodeRequest.of(3, wait_s=9.0).wait_s == 0  # no cluster is joined: none can come
    for where in ({"nodes": 2}, {"workers_per_node": 2}, {"gpus_per_node": 2}, {"address": "a:1"}):
        assert not NodeRequest.of(**where).local
    monkeypatch.setenv("RAY_ADDRESS", "a:1")
    assert not NodeRequest.of().local
    assert NodeRequest.of(engine="local").local  # said outright, it passes over the environment
    assert not NodeRequest.of(engine="ray").local
    assert NodeRequest.of(2, wait_s=9.0).wait_s == 9


@pytest.mark.parametrize(
    "where", [{"nodes": 2}, {"nodes": (1, 2)}, {"workers_per_node": 2}, {"gpus_per_node": 2}, {"address": "a:1"}]
)
def test_the_local_engine_refuses_what_needs_more(where):
    with pytest.raises(UsageError, match="--engine local"):
        NodeRequest.of(**where, engine="local")


@pytest.mark.parametrize(("gpus", "local"), [(0, True), (1, True), (4, False)])
def test_several_gpus_are_rays(monkeypatch, gpus, local):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(nodes, "gpus", lambda: gpus)
    assert NodeRequest.of().local == local
    assert NodeRequest.of(workers_per_node=1).local  # one GPU of several
    assert NodeRequest.of(engine="local").local


def test_a_job_hands_on_what_its_first_worker_kept(tmp_path):
    from cluster.work.progress import hand_on, kept

    told = []
    hand_on(tmp_path, lambda *facts: told.append(facts))
    assert not told
    kept(tmp_path, rank=1)("other work", 1, 1)
    hand_on(tmp_path, lambda *facts: told.append(facts))
    assert not told
    keep = kept(tmp_path, rank=0)
    for done in (1, 2, 10):  # the second comes too soon behind the first; the last is always kept
        keep("scoring", done, 10)
        hand_on(tmp_path, lambda *facts: told.append(facts))
    assert told == [("scoring", 1, 10), ("scoring", 1, 10), ("scoring", 10, 10)]


def test_work_is_looked_at_and_what_it_raises_is_raised_here():
    from cluster.machines.jobs import watched

    looked = threading.Event()

    def work():
        assert looked.wait(30)
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        watched(work, looked.set)
