"""``czsl doctor``: findings, what to do about them, and the exit code."""

from __future__ import annotations

import json

import pytest

from cluster.machines import health
from cluster.machines.health import FAIL, OK, WARN, Finding


@pytest.fixture(autouse=True)
def no_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("CZSL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_ADDRESS", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)


def one(findings, subject: str | None = None) -> Finding:
    (found,) = [f for f in findings if subject in (None, f.subject)]
    return found


def test_this_machine_can_do_its_work(czsl):
    shown = json.loads(czsl("doctor", "--json").stdout)
    assert shown["ok"]
    levels = {f["subject"]: f["level"] for f in shown["findings"]}
    assert {"python", "torch", "ray", "faiss", "CLIP tiny", "cache", "memory", "network", "Ray token"} <= levels.keys()
    assert "fail" not in levels.values()
    assert all(f["fix"] for f in shown["findings"] if f["level"] != "ok")


def test_a_failure_is_exit_code_4_with_what_to_do(czsl, tmp_path, monkeypatch):
    monkeypatch.setattr(health, "_packages", lambda: iter(()))
    shown = czsl("doctor", "--clip", "ViT-B-16", "--clip-weights", tmp_path / "absent.pt", expect=4)
    assert "absent.pt" in shown.stdout
    assert "check --clip and --clip-weights" in shown.stdout
    assert "1 failures" in shown.stderr


def test_a_look_that_stumbles_is_a_finding(monkeypatch):
    def _faiss():
        raise ImportError("libfaiss.so: cannot open shared object file")

    monkeypatch.setattr(health, "_faiss", _faiss)
    found = one(health.examine(), "faiss")
    assert found.level == FAIL
    assert "libfaiss" in found.found


def test_missing_and_unfit_packages(monkeypatch):
    import importlib.metadata

    needs = ["click>=8.1", "numpy<1", "no-such-package-here>=2", "optuna>=4; extra == 'tune'", "pywin32; sys_platform == 'win32'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)
    found = {f.subject: f for f in health._packages()}
    assert {k: f.level for k, f in found.items()} == {"click": OK, "numpy": FAIL, "no-such-package-here": FAIL}
    assert found["numpy"].fix == "pip install 'numpy<1'"


def test_the_token_and_who_can_read_it(tmp_path, monkeypatch):
    assert one(health._token()).level == OK
    file = tmp_path / "token"
    file.write_text("0" * 64)
    file.chmod(0o644)
    assert one(health._token()).fix == f"chmod 600 {file}"
    file.chmod(0o600)
    assert one(health._token()).level == OK
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert one(health._token()).level == WARN


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("", OK),
        ("127.0.0.1:8265", OK),
        ("http://localhost:8265", OK),
        ("0.0.0.0:8265", FAIL),
        ("10.0.0.1:8265", FAIL),
        ("head:8265", FAIL),
    ],
)
def test_the_dashboard_belongs_on_loopback(url, level):
    assert one(health._dashboard(url)).level == level


def test_nodes_that_differ_are_named():
    said = {"a (10.0.0.1)": {"torch": "2.13.0"}, "b (10.0.0.2)": {"torch": "2.12.0"}, "c (10.0.0.3)": {"torch": "2.13.0"}}
    found = one(health._agreement(said))
    assert found.level == FAIL
    assert found.found == "2.13.0 on a (10.0.0.1), c (10.0.0.3); 2.12.0 on b (10.0.0.2)"
    assert one(health._agreement({"a": {"torch": "2"}, "b": {"torch": "2"}})).level == OK


def test_an_interface_that_does_not_exist(monkeypatch):
    import ray  # noqa: F401

    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth77")
    found = one(health._network())
    assert found.level == FAIL
    assert "lo" in found.fix


def test_weights_that_would_be_downloaded_are_not_waited_for(monkeypatch):
    import socket

    from czsl.clip import weights

    def refuse(address, timeout):
        assert timeout < 10
        raise OSError("no route")

    monkeypatch.setattr(weights, "_cached", lambda config: None)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    found = one(health._clip("ViT-L/14", None))
    assert (found.level, "no route" in found.found) == (FAIL, True)
    assert "--clip-weights" in found.fix
    assert one(health._clip("no-such-model", None)).level == FAIL
    assert one(health._clip("tiny", None)).found == "built in"


def test_a_full_disk_is_a_warning_with_a_way_out(monkeypatch):
    monkeypatch.setattr(health, "ROOM_BYTES", 2**60)
    assert {f.level for f in health._disk()} == {WARN}
    assert "CZSL_CACHE" in one(health._disk(), "cache").fix
