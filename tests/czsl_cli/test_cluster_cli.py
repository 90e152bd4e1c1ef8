"""``czsl cluster`` and the placement options, as far as no Ray is started."""

from __future__ import annotations

import json

import pytest

from czsl_cli.options import NodeRange


@pytest.fixture(autouse=True)
def no_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("CZSL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(("text", "nodes"), [("4", 4), ("2-4", (2, 4)), ("3-3", (3, 3))])
def test_nodes_are_a_number_or_a_range(text, nodes):
    assert NodeRange()(text) == nodes


@pytest.mark.parametrize("text", ["0", "four", "4-2", "-3", "2-", "1-2-3", "0-2", ""])
def test_other_nodes_are_refused(czsl, text):
    shown = czsl("train", f"--nodes={text}", expect=2)
    assert "--nodes" in shown.stderr


def test_two_ways_to_say_how_many_workers(czsl):
    shown = czsl("train", "--gpus-per-node", 2, "--workers-per-node", 2, expect=2)
    assert "cannot be combined with --workers-per-node" in shown.stderr


@pytest.mark.parametrize("option", ["--clip", "--clip-weights"])
def test_a_wrong_path_is_told_before_a_cluster_is_started(czsl, tmp_path, option):
    shown = czsl("train", "--clip", "ViT-B-16", option, "absent.pt", expect=2)
    assert "no CLIP weights at absent.pt" in shown.stderr
    assert not (tmp_path / "runs").exists()


def test_joining_needs_the_heads_token(czsl):
    shown = czsl("cluster", "up", "--join", "10.0.0.1:6379", expect=4)
    assert shown.stderr.splitlines()[0].startswith("error: no token at ")
    assert "scp HEAD:~/.ray/auth_token" in shown.stderr
    assert czsl("cluster", "up", "--join", "10.0.0.1", expect=2).stderr.count("10.0.0.1:6379") == 1


def test_nothing_to_end_and_nothing_to_describe(czsl):
    assert "nothing to end" in czsl("cluster", "down").stderr
    assert json.loads(czsl("cluster", "down", "--json").stdout) == []
    assert "start one with: czsl cluster up" in czsl("cluster", "status", expect=4).stderr
    assert "no cluster" in czsl("doctor", "--cluster", expect=4).stderr


@pytest.mark.parametrize("command", [["cluster", "status"], ["doctor"], ["train", "--method", "csp"]])
def test_a_head_that_is_gone_is_told_at_once(czsl, command):
    """Ray itself would try for more than ten minutes."""
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"  # bound, but nobody listens
        shown = czsl(*command, "--address", address, expect=4)
    assert f"no Ray head answers at {address}" in shown.stderr


def test_submit_takes_commands_of_czsl_only_and_names_the_extra(czsl, monkeypatch):
    assert "no command 'rm'" in czsl("cluster", "submit", "--", "rm", "-rf", "x", expect=2).stderr
    from cluster.machines import submit

    monkeypatch.setattr(submit.importlib.util, "find_spec", lambda name: None)
    shown = czsl("cluster", "submit", "--", "train", "--nodes", "2", expect=4)
    assert "pip install 'czsl[cluster]'" in shown.stderr
    assert len(shown.stderr.splitlines()) == 3


class Jobs:
    """A job server whose one job says something at each look and then ends."""

    def __init__(self, *states, code=None):
        self.states, self.code, self.submitted, self.looks = list(states), code, [], 0

    def submit_job(self, entrypoint):
        self.submitted.append(entrypoint)
        return "job-1"

    def get_job_status(self, job):
        from types import SimpleNamespace

        self.looks += 1
        return SimpleNamespace(value=self.states.pop(0))

    def get_job_logs(self, job):
        return "".join(f"line {i}\n" for i in range(self.looks))

    def get_job_info(self, job):
        from types import SimpleNamespace

        return SimpleNamespace(driver_exit_code=self.code)


@pytest.mark.parametrize(
    ("end", "code", "expect"), [("SUCCEEDED", 0, 0), ("FAILED", 4, 4), ("FAILED", None, 1), ("STOPPED", None, 1)]
)
def test_a_submitted_command_is_followed_to_its_exit_code(czsl, monkeypatch, tmp_path, end, code, expect):
    from cluster.machines import submit

    jobs = Jobs("RUNNING", "RUNNING", end, code=code)
    monkeypatch.setattr(submit, "client", lambda dashboard: jobs)
    monkeypatch.setattr(submit, "POLL_S", 0)
    shown = czsl("cluster", "submit", "--folder", tmp_path / "a b", "--", "train", "--name", "it's", expect=expect)
    assert shown.stdout == "line 0\nline 1\nline 2\n"  # each once
    (entrypoint,) = jobs.submitted
    assert entrypoint.startswith(f"cd '{tmp_path}/a b' && exec ")
    assert entrypoint.endswith("""-m czsl_cli.main train --name 'it'"'"'s'""")
