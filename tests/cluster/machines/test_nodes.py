"""Clusters of several real Ray nodes on one machine, started as a user starts them on several."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.machines import daemons
from czsl.errors import SetupError, UsageError
from czsl.runs import checkpoint
from czsl.runs.run import Run

CZSL = [sys.executable, "-m", "czsl_cli.main"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@dataclass
class Machines:
    """Nodes of one cluster, each as if on a machine of its own: a state file each, one token."""

    folder: Path
    address: str = ""
    names: list[str] = field(default_factory=list)
    prefix: dict[str, list[str]] = field(default_factory=dict)  # how to reach a machine

    def environment(self, name: str) -> dict[str, str]:
        own = {"CZSL_HOME": str(self.folder / name), "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"), "OMP_NUM_THREADS": "1"}
        return {**os.environ, **own}

    def czsl(self, name: str, *words: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
        command = [*self.prefix.get(name, []), *CZSL, *(str(w) for w in words)]
        done = subprocess.run(command, env=self.environment(name), cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    def start(self, name: str, *words: object) -> subprocess.Popen[str]:
        command = [*self.prefix.get(name, []), *CZSL, *(str(w) for w in words)]
        return subprocess.Popen(
            command, env=self.environment(name), cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def up(self, name: str, *options: str, cpus: int = 1) -> None:
        self.names.append(name)
        if self.address:
            self.czsl(name, "cluster", "up", "--join", self.address, "--cpus", cpus, *options)
        else:
            ports = ["--port", free_port(), "--dashboard-port", free_port()]
            self.address = self.czsl(name, "cluster", "up", *ports, "--cpus", cpus, *options).stdout.strip()

    def pids(self, name: str) -> list[int]:
        state = json.loads((self.folder / name / "cluster.json").read_text())
        return [p["pid"] for p in state["processes"]]


def short_training(machines: Machines, data: Path, clip: Path) -> list[object]:
    """Words of ``czsl train`` for an epoch of CSP on a cluster."""
    return ["--method", "csp", "--data", data, "--clip", clip, "--epochs", 1, "--address", machines.address]


@pytest.fixture
def machines(tmp_path):
    made = Machines(tmp_path)
    yield made
    for name in reversed(made.names):
        made.czsl(name, "cluster", "down")


# -- processes, without Ray ---------------------------------------------------------------------------------------------
@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CZSL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray" / "auth_token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


@pytest.fixture
def sleeper():
    """Start sleeping processes with a mark, or without one."""
    started = []

    def start(mark: str = "") -> subprocess.Popen:
        environment = {**os.environ, daemons.MARK: mark} if mark else None
        started.append(subprocess.Popen(["sleep", "86400"], env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def entry(process: subprocess.Popen, later: float = 0.0) -> dict:
    import psutil

    return {"pid": process.pid, "started": psutil.Process(process.pid).create_time() + later, "name": "sleep"}


def test_down_ends_what_was_started_and_nothing_else(home, sleeper):
    import ray  # noqa: F401 (psutil comes with it)
    import psutil  # isort: skip

    mine, child, foreign, reused, other = (sleeper(m) for m in ("abc", "abc", "", "abd", "xyz"))
    time.sleep(0.3)  # until they have become sleep
    processes = [entry(mine), entry(foreign), entry(other), entry(reused, later=-60)]
    daemons._write(daemons.State("head", "10.0.0.1:6379", "10.0.0.1", "abc", processes=processes))
    ended = daemons.down()
    assert [p["pid"] for p in ended] == [mine.pid]
    assert not psutil.pid_exists(mine.pid)
    assert not psutil.pid_exists(child.pid)  # not recorded, but it inherited the mark
    assert [p.poll() for p in (foreign, reused, other)] == [None] * 3
    assert not daemons.state_file().exists()
    assert daemons.down() == []


def test_a_pid_of_another_process_is_left_alone(home, sleeper):
    """The recorded process ended, its pid now belongs to something that even carries a mark of czsl, only not this one."""
    import ray  # noqa: F401

    other = sleeper("later")
    time.sleep(0.3)
    daemons._write(daemons.State("head", "a:1", "a", "earlier", processes=[entry(other)]))
    assert daemons.alive(daemons.read_state()) == []
    assert daemons.down() == []
    assert other.poll() is None


def test_a_machine_is_up_once(home, sleeper):
    import ray  # noqa: F401

    process = sleeper("abc")
    time.sleep(0.3)
    daemons._write(daemons.State("head", "a:1", "a", "abc", processes=[entry(process)]))
    with pytest.raises(UsageError, match="runs here already"):
        daemons.up()


def test_a_token_is_made_for_its_user_alone_and_never_guessed(home):
    with pytest.raises(SetupError, match="no token") as caught:
        daemons.ensure_token(create=False)
    assert "scp" in caught.value.fix
    assert "made a token" in daemons.ensure_token(create=True)
    file = home / "ray" / "auth_token"
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(file.read_text()) == 64
    before = file.read_text()
    file.chmod(0o644)
    assert "only by you" in daemons.ensure_token(create=True)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == before


def test_no_cluster_to_describe(home):
    with pytest.raises(SetupError, match="no cluster"):
        daemons.address_of(None)
    daemons._write(daemons.State("worker", "10.0.0.1:6379", "10.0.0.2", "abc"))
    assert daemons.address_of(None) == "10.0.0.1:6379"
    daemons.state_file().write_text("{")
    with pytest.raises(SetupError, match="cannot be read"):
        daemons.read_state()


# -- real nodes ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_two_machines_from_up_to_down(machines, dataset, clip_file, sleeper):
    bystander = sleeper("another cluster of czsl")
    machines.up("head")
    machines.up("second")
    assert (machines.folder / "token").stat().st_mode & 0o777 == 0o600
    machines.czsl("head", "cluster", "up", expect=2)

    known = json.loads(machines.czsl("second", "cluster", "status", "--json").stdout)["nodes"]
    assert [n["state"] for n in known] == ["alive", "alive"]
    assert sum(n["head"] for n in known) == 1
    assert known[0]["versions"]["torch"] == known[1]["versions"]["torch"] != ""

    quick = short_training(machines, dataset, clip_file)
    done = machines.czsl("second", "train", *quick, "--name", "both", "--nodes", 2, "--wait", 5)
    assert "2 workers on 2 nodes" in done.stderr
    run = Run(machines.folder / "runs" / "both")
    assert next(run.metrics("start"))["workers"] == 2
    assert next(run.metrics("end"))["status"] == "done"
    alone = machines.czsl("head", "evaluate", run.path, "--json").stdout
    asked = ("evaluate", run.path, "--json", "--nodes", "2-3", "--wait", 20, "--address", machines.address)
    assert machines.czsl("second", *asked).stdout == alone

    shown = machines.czsl("head", "train", *quick, "--name", "three", "--nodes", "3-3", "--wait", 2, expect=4).stderr
    assert "2 nodes in the cluster, at least 3 needed" in shown

    healthy = json.loads(machines.czsl("head", "doctor", "--cluster", "--json").stdout)
    assert healthy["ok"]
    assert {f["subject"] for f in healthy["findings"] if not f["node"]} >= {"czsl on all nodes", "dashboard"}
    assert len({f["node"] for f in healthy["findings"]} - {""}) == 2

    pids = machines.pids("head") + machines.pids("second")
    for name in ("second", "head"):
        assert "ended the Ray" in machines.czsl(name, "cluster", "down").stderr
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert bystander.poll() is None
    machines.czsl("second", "cluster", "status", "--address", machines.address, expect=4)


@pytest.mark.fault
def test_a_lost_machine_costs_no_result(machines, dataset, clip_file):
    """Elastic from three nodes to two: the same global batch, from the newest checkpoint on, to the end."""
    for name in ("head", "second", "third"):
        machines.up(name)
    settings = ["--method", "csp", "--data", dataset, "--clip", clip_file, "--epochs", 40, "--batch", 24, "precision=float64"]
    job = machines.start(
        "head", "train", *settings, "--name", "elastic", "--address", machines.address, "--nodes", "2-3", "--wait", 60
    )
    folder = machines.folder / "runs" / "elastic"
    while not checkpoint.steps(folder / "checkpoints"):
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.5)
    for pid in machines.pids("third"):
        os.kill(pid, signal.SIGKILL)
    shown, _ = job.communicate()
    assert job.returncode == 0, shown
    assert "3 workers on 3 nodes" in shown and "workers failed" in shown and "2 workers on 2 nodes" in shown
    run = Run(folder)
    starts = list(run.metrics("start"))
    assert [s["workers"] for s in starts] == [3, 2]
    assert {s["batch"] for s in starts} == {24}
    steps = [s["step"] for s in run.metrics("step")]
    assert steps == list(range(1, starts[0]["steps"] + 1))


@pytest.fixture
def two_networks(machines):
    """Two network namespaces with a wire between them: 10.77.0.1 and 10.77.0.2; the machine's own name means 127.0.0.1 in both."""
    names = {"head": "10.77.0.1", "second": "10.77.0.2"}
    spaces = {name: f"czsl-{name}-{os.getpid()}" for name in names}
    commands = [["ip", "netns", "add", space] for space in spaces.values()]
    commands += [
        ["ip", "link", "add", "czsl-a", "netns", spaces["head"], "type", "veth", "peer", "czsl-b", "netns", spaces["second"]]
    ]
    for name, wire in (("head", "czsl-a"), ("second", "czsl-b")):
        inside = ["ip", "-n", spaces[name]]
        commands += [[*inside, "address", "add", f"{names[name]}/24", "dev", wire]]
        commands += [[*inside, "link", "set", device, "up"] for device in (wire, "lo")]
    if shutil.which("ip") is None:
        pytest.skip("no network namespaces here: the program ip is missing")
    machines.prefix = {name: ["ip", "netns", "exec", space] for name, space in spaces.items()}
    try:
        for command in [*commands, [*machines.prefix["head"], "true"]]:
            subprocess.run(command, check=True, capture_output=True, text=True)
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    finally:
        machines.prefix = {}  # processes are ended by their ids, from anywhere
        for name in reversed(machines.names):
            machines.czsl(name, "cluster", "down")
        for space in spaces.values():
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)


@pytest.mark.slow
def test_two_machines_whose_names_lead_to_loopback(machines, two_networks, dataset, clip_file):
    """gloo by itself would connect to 127.0.0.1; the interface of the address by which Ray knows each machine is chosen."""
    for name, address in two_networks.items():
        machines.up(name, "--host", address)
    assert machines.address.startswith("10.77.0.1:")
    quick = short_training(machines, dataset, clip_file)
    done = machines.czsl("head", "train", *quick, "--name", "both", "--nodes", "2-2", "--wait", 30)
    assert "2 workers on 2 nodes" in done.stderr
    assert next(Run(machines.folder / "runs" / "both").metrics("end"))["status"] == "done"
