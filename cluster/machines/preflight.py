"""Checks on every worker before the first step, and the choice of their network interface.

Each worker describes what it sees (:func:`inspect`); :func:`check` compares the descriptions. This happens before the process group
is made, because with a wrong network interface that is what hangs or fails, without a word about the node.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.work.placement import Placement
from czsl.errors import CzslError, SetupError
from czsl.gpus import find

MIN_FREE_BYTES = 64 * 2**20  # of the run folder's file system
READ_AGAIN_S = 10.0  # network file systems show a new file late
INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True)
class Requirements:
    """Data and CLIP of a run, which must be equal on all workers; empty if a job needs none. ``gpu``: each worker needs a GPU."""

    data: str = ""
    clip: str = ""
    clip_weights: str | None = None
    gpu: bool = False


class Shared:
    """A folder in which the workers look for each other's files."""

    def __init__(self, folder: Path):
        self.folder = folder

    def offer(self) -> str:
        """Write the driver's file; returns the words in it."""
        words = secrets.token_hex(16)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "driver").write_text(words, encoding="utf-8")
        except OSError as error:
            raise SetupError(
                f"cannot write to {self.folder.parent}", str(error), "check the permissions and the free space"
            ) from None
        return words

    def clear(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def inspect(rank: int, folder: str, words: str, requirements: Requirements) -> dict[str, Any]:
    """Report of this worker; its own problems are under ``errors``, as (what, why, fix)."""
    import ray

    context = ray.get_runtime_context()
    facts: dict[str, Any] = {"rank": rank, "node": context.get_node_id(), "versions": versions(), "errors": []}
    facts |= network(ray.util.get_node_ip_address())
    for look in (lambda: _storage(rank, Path(folder), words), lambda: _same_inputs(requirements), lambda: _gpu(requirements)):
        try:
            facts |= look()
        except CzslError as error:
            facts["errors"].append((error.what, error.why, error.fix))
    return facts


@cache
def versions() -> dict[str, str]:
    """Versions that must be the same everywhere; that of czsl with a hash of its source."""
    import czsl

    home = Path(czsl.__file__).parents[1]
    digest = hashlib.sha256()
    for package in ("cluster", "czsl", "methods"):
        for file in sorted((home / package).rglob("*.py")):
            digest.update(file.relative_to(home).as_posix().encode() + file.read_bytes())
    own = f"{czsl.__version__} (source {digest.hexdigest()[:8]})"
    return {"czsl": own, "torch": version("torch"), "ray": version("ray"), "python": platform.python_version()}


def network(address: str) -> dict[str, Any]:
    """Name, address, what the name resolves to, and the interface with this node's address in Ray."""
    import psutil  # comes with Ray

    host = socket.gethostname()
    try:
        resolved = socket.gethostbyname(host)
    except OSError:
        resolved = ""
    all_interfaces = {name: [a.address for a in held] for name, held in psutil.net_if_addrs().items()}
    own = [name for name, held in all_interfaces.items() if address in held]
    return {
        "address": address,
        "host": host,
        "resolved": resolved,
        "interfaces": sorted(all_interfaces),
        "interface": own[0] if len(own) == 1 else None,
        "chosen": os.environ.get(INTERFACE, ""),
    }


def _storage(rank: int, folder: Path, words: str) -> dict[str, Any]:
    sees = _reads(folder / "driver", words)
    try:
        _write(folder / f"worker-{rank}", words)
    except OSError as error:
        if sees:
            raise _cannot_write(folder.parent, error) from None
    else:
        _check_free(folder.parent)
    return {"sees_driver": sees}


def check_storage(folder: Path) -> None:
    """SetupError if nothing can be written to the folder of a job, or next to nothing is free there."""
    trial = folder / f".trial-{os.getpid()}"
    try:
        _write(trial, "trial")
    except OSError as error:
        raise _cannot_write(folder, error) from None
    finally:
        with suppress(OSError):
            trial.unlink(missing_ok=True)
    _check_free(folder)


def _write(file: Path, words: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as opened:
        opened.write(words)
        opened.flush()
        os.fsync(opened.fileno())


def _cannot_write(folder: Path, error: OSError) -> SetupError:
    return SetupError(f"cannot write to {folder}", str(error), "check the mount, its permissions and the free space there")


def _check_free(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        why = f"{free / 2**20:.0f} MiB free, checkpoints need more"
        raise SetupError(f"the disk of {folder} is full", why, "free some space, or choose another --out")


def _reads(file: Path, words: str) -> bool:
    """Return whether the text can be read there, within some seconds."""
    until = time.monotonic() + READ_AGAIN_S
    while True:
        try:
            if file.read_text(encoding="utf-8") == words:
                return True
        except OSError:
            pass
        if time.monotonic() >= until:
            return False
        time.sleep(0.2)


def unread(folder: str, words: str, workers: int) -> list[int]:
    """Ranks whose files this worker cannot read."""
    return [i for i in range(workers) if not _reads(Path(folder) / f"worker-{i}", words)]


def _same_inputs(requirements: Requirements) -> dict[str, Any]:
    from czsl.clip.weights import is_folder, is_path, weight_files
    from czsl.data.table import open_data
    from czsl.runs.files import sha256_file

    facts: dict[str, Any] = {}
    if requirements.data:
        facts["data"] = open_data(requirements.data).sha256
    weights = next((w for w in (requirements.clip_weights or "", requirements.clip) if w and (is_path(w) or is_folder(w))), None)
    if weights:
        try:
            files = weight_files(Path(weights)) if is_folder(weights) else [Path(weights)]
            facts["clip"] = " ".join(map(sha256_file, files))
        except OSError as error:
            why = error.strerror or str(error)
            raise SetupError(f"cannot read the CLIP weights {weights}", why, "put the file where all nodes see it") from None
    return facts


def _gpu(requirements: Requirements) -> dict[str, Any]:
    """Look for the GPU that Ray gave this worker: Ray counts cards by the driver's library, and torch may be unable to use them."""
    if requirements.gpu:
        found = find()
        if not found.count:
            why = f"{found.what}: {found.why}" if found.what else "torch finds none in this worker"
            raise SetupError("a worker has no GPU that torch can use", why, found.fix or "look at: czsl doctor --cluster")
    return {}


def check(reports: list[dict[str, Any]], placement: Placement) -> None:
    """Compare what the workers see.

    Raises
    ------
    SetupError
        Wrong spread, unlike versions, data or CLIP weights, storage that is not shared, a problem of one node; names the nodes.
    """
    a_node = Counter(r["node"] for r in reports)
    if len(a_node) != placement.nodes or set(a_node.values()) != {placement.per_node}:
        found = ", ".join(f"{n} on {_name(next(r for r in reports if r['node'] == node))}" for node, n in a_node.items())
        raise SetupError(
            f"the workers are not where they belong: {placement.per_node} on each of {placement.nodes} nodes were requested",
            f"found {found}",
            "other work took the room? Look at czsl cluster status and start again",
        )
    for r in reports:
        for what, why, fix in r["errors"]:
            raise SetupError(f"node {_name(r)}: {what}", why, fix)
    if blind := [r for r in reports if not r["sees_driver"]]:
        raise not_shared(blind)
    a_machine = list({(r["host"], r["address"]): r for r in reversed(reports)}.values())  # workers of one share its installation
    for package in reports[0]["versions"]:
        _alike(
            a_machine,
            lambda r, p=package: r["versions"][p],  # type: ignore[misc]
            f"the nodes have different versions of {package}",
            "install the same on all nodes, then restart Ray there",
        )
    _alike(
        reports,
        lambda r: r.get("data", ""),
        "the nodes see different data",
        "put one copy where all nodes see it, or copy it again",
    )
    _alike(reports, lambda r: r.get("clip", ""), "the nodes see different CLIP weights", "use one file that all nodes see")


def _alike(reports: list[dict[str, Any]], key: Callable[[dict[str, Any]], str], what: str, fix: str) -> None:
    groups: dict[str, list[str]] = {}
    for r in reports:
        names = groups.setdefault(key(r), [])
        if _name(r) not in names:
            names.append(_name(r))
    if len(groups) > 1:
        said = [
            f"{value[:40] or 'nothing'} on {', '.join(names)}"
            for value, names in sorted(groups.items(), key=lambda g: -len(g[1]))
        ]
        raise SetupError(what, "; ".join(said), fix)


def not_shared(blind: list[dict[str, Any]], folder: Path | None = None) -> SetupError:
    """The error of nodes that see another storage than the driver or rank 0."""
    nodes = ", ".join(dict.fromkeys(_name(r) for r in blind))
    return SetupError(
        "the run folder is not on storage that all nodes share",
        f"node {nodes}: files written by the others cannot be read there, or the other way round"
        + (f" ({folder})" if folder else ""),
        "put the run on a network file system: --out /shared/runs",
    )


def interfaces(reports: list[dict[str, Any]]) -> list[str]:
    """The interface for each worker, empty to leave the choice to gloo: with several hosts, that of the address by which Ray reached it.

    Raises
    ------
    SetupError
        An interface that was chosen does not exist; a host is known by a loopback address, or only its name would lead to one.
    """
    several = len({(r["host"], r["address"]) for r in reports}) > 1
    names = []
    for r in reports:
        if r["chosen"]:
            if unknown := set(r["chosen"].split(",")) - set(r["interfaces"]):
                raise SetupError(
                    f"node {_name(r)} has no network interface {', '.join(sorted(unknown))}",
                    f"{INTERFACE} names it; there are {', '.join(r['interfaces'])}",
                    f"set {INTERFACE} on that node before Ray is started there",
                )
        elif several and r["address"].startswith("127."):
            raise SetupError(
                f"node {_name(r)} is known by a loopback address",
                "other machines cannot reach it there",
                "start Ray on it with its real address: czsl cluster up --host ADDRESS",
            )
        elif several and not r["interface"] and (not r["resolved"] or r["resolved"].startswith("127.")):
            raise SetupError(
                f"node {_name(r)}: no network interface can be chosen",
                f"its name {r['host']} resolves to {r['resolved'] or 'nothing'}, and no interface has the address {r['address']}",
                f"set {INTERFACE} there before Ray is started; interfaces: {', '.join(r['interfaces'])}",
            )
        names.append("" if r["chosen"] or not several else r["interface"] or "")
    return names


def set_interface(name: str) -> None:
    """Choose the network interface of this process; empty leaves it open."""
    if name:
        os.environ[INTERFACE] = name


def _name(report: dict[str, Any]) -> str:
    """Name of a node for messages; simulated nodes share a host and are distinguished by Ray's id."""
    return f"{report['host']} ({report['address']}, {report['node'][:6]})"
