"""A Ray cluster of machines reached by hand: this machine's part of it, started, described and ended.

The processes that :func:`up` starts carry a mark in their environment and are written to a state file with their start times;
:func:`down` ends these and what they started, never another Ray of the machine. Environment variables read here: ``CZSL_HOME``
(folder of the state file, default ``~/.czsl``) and those of :mod:`cluster.machines.session`.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.machines.nodes import call_every_node
from cluster.machines.preflight import versions
from cluster.machines.session import free_resources, prepare_environment, session, token_file
from czsl.errors import SetupError, UsageError
from czsl.reading import read_json
from czsl.runs.files import write_json
from czsl.runs.settings import typed

MARK = "CZSL_CLUSTER"  # in the environment of everything that is started
PORT = 6379
DASHBOARD_PORT = 8265
START_S, END_S, ATTEMPTS = 180.0, 10.0, 3


@dataclass
class State:
    """This machine's part of a cluster.

    role : ``head`` or ``worker``
    address : of the head, host:port
    host : by which the others reach this machine
    mark : in the environment of the started processes
    dashboard : host:port, on the head
    processes : pid, start time and name of each
    """

    role: str
    address: str
    host: str
    mark: str
    dashboard: str = ""
    processes: list[dict[str, Any]] = field(default_factory=list)


def state_file() -> Path:
    """Return the file in which :func:`up` records what it started."""
    return Path(os.environ.get("CZSL_HOME") or Path.home() / ".czsl") / "cluster.json"


def read_state() -> State | None:
    """Return the record of :func:`up` on this machine, whether or not its processes still run; None without one."""
    if not state_file().exists():
        return None
    error_texts: dict[str, Any] = {
        "head": "{path} cannot be read",
        "fix": "was it edited? Remove it once no Ray of it runs any more",
    }
    content = read_json(state_file(), error=SetupError, **error_texts)
    try:
        if not isinstance(content, dict):
            raise TypeError("it is not a record of a cluster")
        return State(**typed(content, State))
    except (TypeError, KeyError, UsageError) as error:
        raise SetupError(f"{state_file()} cannot be read", str(error).splitlines()[0], error_texts["fix"]) from None


def up(
    *,
    join: str | None = None,
    host: str | None = None,
    port: int = PORT,
    dashboard_port: int = DASHBOARD_PORT,
    cpus: int | None = None,
    gpus: int | None = None,
) -> State:
    """Start a Ray head on this machine, or a worker that joins the head at ``join`` (host:port).

    Token authentication is on: the head makes a token if none exists, a worker needs a copy of it. The dashboard listens on
    127.0.0.1 only.

    Parameters
    ----------
    host : str, optional
        Address of this machine by which the others reach it. Default: Ray's guess.
    cpus, gpus : int, optional
        What this machine offers. Default: all it has.

    Raises
    ------
    UsageError
        This machine's part is up already.
    SetupError
        No token, or Ray did not start; nothing is left running then.
    """
    before = read_state()
    if before and alive(before):
        raise UsageError(
            f"a Ray {before.role} of czsl runs here already", f"it belongs to {before.address}", "end it with: czsl cluster down"
        )
    ensure_token(create=join is None)
    from ray.util import get_node_ip_address

    host = host or get_node_ip_address()
    state = State("worker" if join else "head", join or f"{host}:{port}", host, secrets.token_hex(8))
    command = ["--address", join] if join else ["--head", "--port", str(port)]
    command += ["--node-ip-address", host, "--disable-usage-stats"]
    if not join:
        command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port)]
        state.dashboard = f"127.0.0.1:{dashboard_port}"
    for option, value in (("--num-cpus", cpus), ("--num-gpus", gpus)):
        command += [option, str(value)] if value is not None else []
    _write(state)  # before anything runs: a killed `up` can be cleaned up by its mark
    try:
        _ray_start(command, state.mark)
        state.processes = [{"pid": p.pid, "started": p.create_time(), "name": p.name()} for p in _marked(state.mark)]
        _write(state)
    except BaseException:
        down()
        raise
    return state


def _ray_start(options: list[str], mark: str) -> None:
    environment = {"RAY_AUTH_MODE": "token", "RAY_raylet_start_wait_time_s": "45", **os.environ, MARK: mark}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
    for left in reversed(range(ATTEMPTS)):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            out, _ = process.communicate(timeout=START_S)
        except subprocess.TimeoutExpired:
            raise SetupError(
                "Ray did not start", f"it was not ready within {START_S:.0f} s", "is the head's address right and reachable?"
            ) from None
        if not process.returncode:
            return
        if not (left and "timed out during startup" in out):  # on a busy machine a raylet gives up after a fixed 15 s
            break
        _end(_marked(mark))
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "Exception" in line or "token" in line.lower()]
    raise SetupError(
        "Ray did not start",
        (telling or lines or ["without a word"])[-1][:300],
        "check the address, that the port is free and that token, Ray and Python are those of the head",
    )


def ensure_token(create: bool) -> str:
    """See to it that this machine has a token which only its user can read; returns what was done, empty if nothing.

    Raises
    ------
    SetupError
        The token is missing and this machine is not the head, which makes it.
    """
    file = token_file()
    if os.environ.get("RAY_AUTH_TOKEN"):
        return ""
    if file.is_file():
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)
            return f"{file} could be read by others: now only by you"
        return ""
    if not create:
        raise SetupError(
            f"no token at {file}",
            "every machine of a cluster needs the head's",
            f"copy it first: scp HEAD:~/.ray/auth_token {file}",
        )
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(secrets.token_hex(32))
    return f"made a token: {file}"


def down() -> list[dict[str, Any]]:
    """End what :func:`up` started here, and what that started; returns the recorded processes that were ended.

    A recorded pid that now belongs to another process (another start time or no mark) is not touched.
    """
    state = read_state()
    if state is None:
        return []
    running = alive(state)
    recorded = {p.pid for p in running}
    ended = [p for p in state.processes if p["pid"] in recorded]
    _end(running)
    _end(_marked(state.mark))  # Ray's workers end with their node; one that does not is known by the mark it inherited
    if left := _marked(state.mark):
        pids = ", ".join(str(p.pid) for p in left)
        raise SetupError("some processes do not end", f"pids {pids}", "look at them; czsl cluster down again")
    state_file().unlink(missing_ok=True)
    return ended


def _end(processes: list[Any]) -> None:
    """Ask processes to end, and end those that do not."""
    psutil = _psutil()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        _, processes = psutil.wait_procs(processes, timeout=END_S)


def alive(state: State) -> list[Any]:
    """The recorded processes that still run, as psutil processes."""
    psutil = _psutil()
    found = []
    for entry in state.processes:
        try:
            process = psutil.Process(entry["pid"])
            if abs(process.create_time() - entry["started"]) < 1 and _carries(process, state.mark):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _marked(mark: str) -> list[Any]:
    return [p for p in _psutil().process_iter() if p.pid != os.getpid() and _carries(p, mark)]


def _carries(process: Any, mark: str) -> bool:
    psutil = _psutil()
    try:
        return process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):  # of another user, or gone
        return False


def _psutil() -> Any:
    prepare_environment(joins=True)
    import ray  # noqa: F401 (psutil comes with it)
    import psutil  # isort: skip

    return psutil


def _write(state: State) -> None:
    file = state_file()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(file, asdict(state))


def address_of(address: str | None) -> str:
    """Address of the cluster: as given, ``RAY_ADDRESS``, or the cluster this machine has joined; SetupError without any."""
    state = read_state()
    found = address or os.environ.get("RAY_ADDRESS") or (state.address if state else None)
    if not found:
        raise SetupError(
            "no cluster", f"neither --address nor RAY_ADDRESS, and no {state_file()}", "start one with: czsl cluster up"
        )
    return found


def describe_node() -> dict[str, Any]:
    """Name and versions of this node."""
    return {"host": socket.gethostname(), "versions": versions()}


def status(address: str | None = None) -> dict[str, Any]:
    """The cluster's nodes: name, address, whether they answer, CPUs, GPUs (all and free), versions."""
    where = address_of(address)
    began = time.monotonic()
    with session(where) as ray:
        free, answers = free_resources(), {a.node: a for a in call_every_node(ray, describe_node)}
        nodes = []
        for n in ray.nodes():
            name, has, answer = n["NodeID"], n["Resources"], answers.get(n["NodeID"])
            said = answer.result if answer and answer.result else {}
            state = "dead" if answer is None else "silent" if answer.error else "alive"
            nodes.append({
                "node": name[:8], "host": said.get("host") or n["NodeManagerHostname"], "address": n["NodeManagerAddress"], "state": state,
                "head": "node:__internal_head__" in has, "why": answer.error if answer else "",
                "cpus": has.get("CPU", 0), "gpus": has.get("GPU", 0),
                "free_cpus": free.get(name, {}).get("CPU", 0), "free_gpus": free.get(name, {}).get("GPU", 0),
                "versions": said.get("versions", {}),
            })  # fmt: skip
    return {"address": where, "seconds": round(time.monotonic() - began, 1), "nodes": nodes}
