"""Checks of ``czsl doctor``, on this machine or on every node of a cluster: findings, each with what to do about it."""

from __future__ import annotations

import importlib.metadata
import ipaddress
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.machines.nodes import call_every_node
from cluster.machines.preflight import INTERFACE, versions
from cluster.machines.session import prepare_environment, session, token_file
from czsl.errors import CzslError
from czsl.gpus import find as find_gpus

OK, WARN, FAIL = "ok", "warn", "fail"
ROOM_BYTES = 5 * 2**30  # below it a cache of features or the checkpoints of a few runs may not fit
SHARED_BYTES = 2**30
GPU_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    level : ``ok``, ``warn`` or ``fail``
    subject : what
    found : what is there
    fix : what to do, empty if it is fine
    node : on which node; empty for this machine
    """

    level: str
    subject: str
    found: str
    fix: str = ""
    node: str = ""


def examine(clip: str = "tiny", clip_weights: str | None = None) -> list[Finding]:
    """All findings on this machine; a look that fails is a finding itself."""
    prepare_environment(joins=True)
    looks = (_python, _packages, _torch, _faiss, lambda: _clip(clip, clip_weights), _disk, _memory, _network, _token)
    findings: list[Finding] = []
    for look in looks:
        try:
            findings += look()
        except Exception as error:  # a failing check must not abort the report
            name = getattr(look, "__name__", "_clip").strip("_")
            findings.append(
                Finding(FAIL, name, f"{type(error).__name__}: {error}"[:300], "repair the installation: pip install -e .")
            )
    return findings


def examine_as_words(clip: str, clip_weights: str | None) -> dict[str, Any]:
    """The findings of a node, and its versions, as plain data."""
    return {"host": socket.gethostname(), "versions": versions(), "findings": [asdict(f) for f in examine(clip, clip_weights)]}


def examine_cluster(address: str, clip: str = "tiny", clip_weights: str | None = None) -> list[Finding]:
    """The findings on every node, whether their versions agree, and where the dashboard listens."""
    findings: list[Finding] = []
    said: dict[str, dict[str, str]] = {}
    with session(address) as ray:
        url = ray._private.worker.global_worker.node.webui_url or ""
        for n in ray.nodes():
            if not n["Alive"]:
                name = f"{n['NodeManagerHostname']} ({n['NodeManagerAddress']})"
                findings.append(Finding(WARN, "node", "dead", "start it again if it is needed: czsl cluster up --join", name))
        for answer in call_every_node(ray, examine_as_words, clip, clip_weights, timeout_s=180):
            name = f"{(answer.result or {}).get('host', '')} ({answer.address}, {answer.node[:6]})".strip()
            if answer.error:
                findings.append(Finding(FAIL, "node", answer.error, "install the same czsl there and restart Ray on it", name))
                continue
            said.setdefault(
                f"{answer.result['host']} ({answer.address})", answer.result["versions"]
            )  # nodes of one machine share them
            findings += [Finding(**{**f, "node": name}) for f in answer.result["findings"]]
    findings += _agreement(said)
    findings += _dashboard(url)
    return findings


def _agreement(said: dict[str, dict[str, str]]) -> Iterator[Finding]:
    """One finding a package: the nodes have the same version of it."""
    for package in next(iter(said.values()), {}):
        groups: dict[str, list[str]] = {}
        for name, versions_there in said.items():
            groups.setdefault(versions_there[package], []).append(name)
        if len(groups) == 1:
            yield Finding(OK, f"{package} on all nodes", next(iter(groups)))
        else:
            found = "; ".join(f"{v} on {', '.join(names)}" for v, names in groups.items())
            yield Finding(FAIL, f"{package} on all nodes", found, "install the same version on every node")


def _dashboard(url: str) -> Iterator[Finding]:
    host = url.rpartition(":")[0].rpartition("/")[2]
    if not host:
        yield Finding(OK, "dashboard", "none")
    elif host == "localhost" or _is_loopback(host):
        yield Finding(OK, "dashboard", f"{url}, reachable from the head only")
    else:
        yield Finding(
            FAIL,
            "dashboard",
            f"{url}: who reaches it can run code",
            "start the head with czsl cluster up, or --dashboard-host 127.0.0.1",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _python() -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    yield Finding(OK if good else FAIL, "python", platform.python_version(), "" if good else "use Python 3.11 or newer")


def _packages() -> Iterator[Finding]:
    """Every requirement of czsl against what is installed."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("czsl") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(FAIL, "czsl", "not installed as a package", "pip install -e . in its folder")
        return
    for line in lines:
        wanted = Requirement(line)
        if "extra ==" in line or (wanted.marker and not wanted.marker.evaluate()):
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(FAIL, wanted.name, "missing", f"pip install '{wanted}'")
            continue
        good = wanted.specifier.contains(found, prereleases=True)
        yield Finding(OK if good else FAIL, wanted.name, found, "" if good else f"pip install '{wanted}'")


def _torch() -> Iterator[Finding]:
    import torch

    from czsl.clip.compat import import_open_clip

    import_open_clip()
    gpus = find_gpus()
    if gpus.broken:
        yield Finding(FAIL, "GPU", f"{gpus.what}: {gpus.why}", gpus.fix)
        return
    if gpus.what:
        yield Finding(WARN if gpus.fix else OK, "GPU", f"{gpus.what}: {gpus.why}" if gpus.why else gpus.what, gpus.fix)
    elif not gpus.count:
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
        yield Finding(OK, "GPU", f"none usable ({build} of torch); work runs on the CPU")
    yield _bfloat16()
    for i in range(gpus.count):
        try:
            free, total = torch.cuda.mem_get_info(i)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            yield Finding(FAIL, f"GPU {i}", f"cannot be used: {reason}", "nvidia-smi shows whether other processes hold it")
            continue
        found = f"{torch.cuda.get_device_name(i)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, CUDA {torch.version.cuda}"
        low = free < GPU_BYTES
        yield Finding(WARN if low else OK, f"GPU {i}", found, "other work uses it: nvidia-smi" if low else "")


def _bfloat16() -> Finding:
    """Report what ``precision=auto`` means on this machine, and what bfloat16 costs on its processor."""
    import torch

    from czsl.precision import cpu_has_bfloat16, fitting

    device = torch.device("cuda" if find_gpus().count else "cpu")
    found = f"auto is {fitting(device)} on this machine's {'GPU' if device.type == 'cuda' else 'processor'}"
    if device.type == "cuda" or cpu_has_bfloat16():
        return Finding(OK, "precision", found)
    return Finding(
        OK, "precision", f"{found}, which has no bfloat16 instructions: precision=bfloat16 takes about 8 times as long"
    )


def _faiss() -> Iterator[Finding]:
    import faiss
    import numpy as np

    index = faiss.IndexFlatIP(4)
    index.add(np.eye(4, dtype=np.float32))
    works = index.search(np.eye(4, dtype=np.float32)[2:3], 1)[1][0, 0] == 2
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    kind = f"{gpus} GPUs" if gpus else "on the CPU"
    yield Finding(OK if works else FAIL, "faiss", f"{faiss.__version__}, {kind}", "" if works else "install it again")


def _clip(clip: str, clip_weights: str | None) -> Iterator[Finding]:
    """Report where the weights are, or whether their server answers; nothing is downloaded."""
    from czsl.clip.weights import find_weights

    try:
        found = find_weights(clip, clip_weights)
    except CzslError as error:
        yield Finding(FAIL, f"CLIP {clip}", "; ".join(filter(None, [error.what, error.why])), error.fix)
        return
    yield Finding(OK, f"CLIP {clip}", found)


def _disk() -> Iterator[Finding]:
    from czsl.data.paths import cache_folder

    for what, folder, how in (
        ("cache", cache_folder(), "set CZSL_CACHE to a folder with room"),
        ("working folder", Path.cwd(), "write runs elsewhere with --out"),
        ("Ray's files", Path(os.environ.get("RAY_TMPDIR") or "/tmp"), "set RAY_TMPDIR to a folder with room"),
    ):
        there = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(there).free
        found = f"{folder}: {free / 2**30:.1f} GiB free"
        if not os.access(there, os.W_OK):
            yield Finding(WARN if what == "working folder" else FAIL, what, f"{folder} cannot be written", how)
        else:
            low = free < ROOM_BYTES
            yield Finding(WARN if low else OK, what, found, how if low else "")


def _memory() -> Iterator[Finding]:
    import ray  # noqa: F401 (psutil comes with it)
    import psutil  # isort: skip

    memory = psutil.virtual_memory()
    low = memory.available < 2 * 2**30
    found = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free, {os.cpu_count()} CPUs"
    yield Finding(WARN if low else OK, "memory", found, "end other work, or use a smaller batch" if low else "")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        small = size < SHARED_BYTES
        fix = "in a container: docker run --shm-size=2g; Kubernetes: an emptyDir of medium Memory" if small else ""
        yield Finding(WARN if small else OK, "shared memory", f"{size / 2**30:.1f} GiB at {shared}", fix)


def _network() -> Iterator[Finding]:
    import ray

    from cluster.machines.preflight import network

    facts = network(ray.util.get_node_ip_address())
    found = f"{facts['host']} is {facts['address']} on {facts['interface'] or 'no interface of its own'}"
    if facts["chosen"]:
        missing = set(facts["chosen"].split(",")) - set(facts["interfaces"])
        fix = f"{INTERFACE} must be one of: {', '.join(facts['interfaces'])}" if missing else ""
        yield Finding(FAIL if missing else OK, "network", f"{found}; {INTERFACE}={facts['chosen']}", fix)
    elif facts["address"].startswith("127."):
        yield Finding(WARN, "network", found, "on a cluster give this machine's address: czsl cluster up --host ADDRESS")
    elif not facts["interface"] and (not facts["resolved"] or facts["resolved"].startswith("127.")):
        why = f"its name resolves to {facts['resolved'] or 'nothing'}"
        yield Finding(WARN, "network", f"{found}; {why}", f"for work on several nodes set {INTERFACE} before Ray is started")
    else:
        yield Finding(OK, "network", found)


def _token() -> Iterator[Finding]:
    mode = os.environ.get("RAY_AUTH_MODE", "")
    file = token_file()
    if mode == "disabled":
        yield Finding(WARN, "Ray token", "RAY_AUTH_MODE=disabled: who reaches a port of Ray can run code", "unset RAY_AUTH_MODE")
    elif os.environ.get("RAY_AUTH_TOKEN"):
        yield Finding(OK, "Ray token", "from RAY_AUTH_TOKEN")
    elif not file.is_file():
        yield Finding(OK, "Ray token", f"none yet at {file}; the first Ray or czsl cluster up makes one")
    elif file.stat().st_mode & 0o077:
        yield Finding(WARN, "Ray token", f"{file} can be read by others", f"chmod 600 {file}")
    else:
        yield Finding(OK, "Ray token", str(file))
