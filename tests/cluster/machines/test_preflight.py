"""What workers compare before the first step: every difference names the node and says what to do."""

from __future__ import annotations

import copy

import pytest
from pretended import pretend

from cluster.machines import preflight
from cluster.machines.preflight import Requirements, Shared, check, interfaces, network, unread, versions
from cluster.work.placement import Placement
from czsl.errors import SetupError

PLACEMENT = Placement(2, 1, False, 1, True)


def report(rank: int) -> dict:
    return {
        "rank": rank, "node": f"{rank}abcdef", "errors": [], "sees_driver": True,
        "versions": dict(versions()), "data": "d" * 64, "clip": "",
        "address": f"10.0.0.{rank + 1}", "host": f"machine{rank}", "resolved": f"10.0.0.{rank + 1}",
        "interfaces": ["eth0", "lo"], "interface": "eth0", "chosen": "",
    }  # fmt: skip


@pytest.fixture
def reports():
    return [report(0), report(1)]


def failure(reports, placement=PLACEMENT) -> SetupError:
    with pytest.raises(SetupError) as caught:
        check(reports, placement)
    assert caught.value.exit_code == 4
    assert caught.value.fix
    return caught.value


def test_workers_that_fit_together(reports):
    check(reports, PLACEMENT)
    assert interfaces(reports) == ["eth0", "eth0"]


def test_two_workers_on_one_node_where_two_nodes_were_asked(reports):
    reports[1]["node"] = reports[0]["node"]
    error = failure(reports)
    assert "1 on each of 2 nodes" in error.what
    assert "2 on machine0 (10.0.0.1, 0abcde)" in error.why


def test_an_uneven_spread(reports):
    reports = [copy.deepcopy(reports[i]) for i in (0, 0, 0, 1)]
    assert "3 on machine0" in failure(reports, Placement(2, 2, False, 1, True)).why


@pytest.mark.parametrize("package", ["czsl", "torch", "ray", "python"])
def test_another_version(reports, package):
    reports[1]["versions"][package] = "0.0.1"
    error = failure(reports)
    assert package in error.what
    assert "0.0.1 on machine1" in error.why


def test_the_version_of_czsl_changes_with_its_source():
    assert versions()["czsl"].count("(source ") == 1


@pytest.mark.parametrize(("key", "what"), [("data", "different data"), ("clip", "different CLIP weights")])
def test_other_data_or_weights(reports, key, what):
    reports[1][key] = "e" * 64
    error = failure(reports)
    assert what in error.what
    assert "eeee" in error.why and "machine1" in error.why


def test_a_problem_of_one_node_names_it(reports):
    reports[1]["errors"].append(("no such folder", "why", "fix"))
    assert failure(reports).what == "node machine1 (10.0.0.2, 1abcde): no such folder"


def test_storage_that_is_not_shared(reports):
    reports[1]["sees_driver"] = False
    error = failure(reports)
    assert "machine1" in error.why and "machine0" not in error.why
    assert "--out" in error.fix


def test_files_of_other_workers_are_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "READ_AGAIN_S", 0)
    shared = Shared(tmp_path / "preflight")
    words = shared.offer()
    assert preflight._storage(0, shared.folder, words) == {"sees_driver": True}
    assert unread(str(shared.folder), words, 2) == [1]
    preflight._storage(1, shared.folder, words)
    assert unread(str(shared.folder), words, 2) == []
    (shared.folder / "worker-1").write_text("of another run")
    assert unread(str(shared.folder), words, 2) == [1]
    assert preflight._storage(0, tmp_path / "elsewhere", words) == {"sees_driver": False}
    shared.clear()
    assert not shared.folder.exists()


def test_a_full_disk_and_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    shared = Shared(tmp_path / "preflight")
    words = shared.offer()
    monkeypatch.setattr(preflight, "MIN_FREE_BYTES", 2**70)
    with pytest.raises(SetupError, match="is full"):
        preflight._storage(0, shared.folder, words)
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot write"):
        Shared(tmp_path / "file" / "preflight").offer()


def test_inputs_are_hashed(dataset, clip_file, tmp_path):
    facts = preflight._same_inputs(Requirements(str(dataset), str(clip_file)))
    assert len(facts["data"]) == len(facts["clip"]) == 64
    assert preflight._same_inputs(Requirements("", "ViT-B-16", str(clip_file)))["clip"] == facts["clip"]
    assert preflight._same_inputs(Requirements("", "tiny")) == {}
    with pytest.raises(SetupError, match="cannot read the CLIP weights"):
        preflight._same_inputs(Requirements("", str(tmp_path / "absent.pt")))


# -- the network interface ----------------------------------------------------------------------------------------------
def test_one_host_needs_no_interface(reports):
    for r in reports:
        r |= {"host": "one", "address": "127.0.0.1", "interface": "lo", "resolved": "127.0.0.1"}
    assert interfaces(reports) == ["", ""]


def test_what_the_user_chose_stays(reports):
    reports[1]["chosen"] = "lo"
    assert interfaces(reports) == ["eth0", ""]
    reports[1]["chosen"] = "eth7"
    with pytest.raises(SetupError, match=r"machine1.*no network interface eth7"):
        interfaces(reports)


def test_a_name_that_leads_to_loopback_is_cured_by_the_interface_of_the_nodes_address(reports):
    reports[0]["resolved"] = "127.0.1.1"
    assert interfaces(reports) == ["eth0", "eth0"]
    reports[0]["interface"] = None  # behind a NAT no interface has the address
    with pytest.raises(SetupError, match=r"machine0.*no network interface can be chosen") as caught:
        interfaces(reports)
    assert "GLOO_SOCKET_IFNAME" in caught.value.fix and "eth0, lo" in caught.value.fix


def test_a_node_known_by_loopback_cannot_take_part(reports):
    reports[0]["address"] = "127.0.0.1"
    with pytest.raises(SetupError, match="loopback"):
        interfaces(reports)


def test_the_interface_of_an_address_of_this_machine():
    import ray  # noqa: F401 (psutil comes with it)

    assert network("127.0.0.1")["interface"] == "lo"
    assert network("203.0.113.9")["interface"] is None


def test_a_worker_to_which_ray_gave_a_gpu_that_torch_cannot_use(monkeypatch):
    pretend(monkeypatch, 0, build=None)
    assert preflight._gpu(Requirements()) == {}
    with pytest.raises(SetupError) as error:
        preflight._gpu(Requirements(gpu=True))
    assert "no GPU that torch can use" in error.value.what
    assert "is a build for CPUs" in error.value.why
    pretend(monkeypatch, 1)
    assert preflight._gpu(Requirements(gpu=True)) == {}
