"""Two workers on one card are found before they exchange anything."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cluster.work import cards
from cluster.work.cards import Card, card_of, check_own_cards
from cluster.work.comm import Group
from czsl.errors import SetupError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def worker(uuid, machine="m", slot="0:3b:0", host="node"):
    return Card(host, machine, slot, uuid, "NVIDIA A100")


class Several(Group):
    """A group whose other workers have these cards."""

    def __init__(self, *found):
        super().__init__()
        self.world, self.found = len(found), list(found)

    def gather_objects(self, thing):
        return self.found


def check(*found):
    check_own_cards(Several(*found), CPU)


def test_cards_of_their_own():
    check(worker("a", slot="0:3b:0"), worker("b", slot="0:5e:0"))
    check(worker("a", machine="one"), worker("b", machine="two"))  # the same slot of two machines
    check(worker("a", slot=""), worker("b", slot=""))
    check(None, None)
    check_own_cards(Group(), CUDA)  # one worker looks at nothing


def test_one_card_twice():
    with pytest.raises(SetupError) as error:
        check(worker("a", slot="0:1:0"), worker("b"), worker("b"))
    assert error.value.what == "workers 1 and 2 share one GPU"
    assert "NVIDIA A100, b, on node" in error.value.why
    assert "NCCL" in error.value.why
    assert "--workers-per-node" in error.value.fix


def test_one_card_without_its_place_on_the_bus():
    with pytest.raises(SetupError, match="workers 0, 1 and 2 share one GPU"):
        check(*[worker("a", slot="")] * 3)


def test_slices_of_one_card():
    with pytest.raises(SetupError, match=r"workers 0 and 1 share one GPU \(as slices of it\)"):
        check(worker("MIG-a"), worker("MIG-b"))


def test_some_without_a_gpu():
    with pytest.raises(SetupError) as error:
        check(worker("a"), None, worker("b"), None)
    assert "worker 1 and 3 of 4" in error.value.why


def test_facts_of_a_card(monkeypatch, tmp_path):
    facts = SimpleNamespace(name="NVIDIA A100", uuid="1234", pci_domain_id=0, pci_bus_id=59, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    (tmp_path / "boot").write_text("of this start\n")
    monkeypatch.setattr(cards, "BOOT", tmp_path / "boot")
    found = card_of(CUDA)
    assert (found.machine, found.slot, found.uuid, found.name) == ("of this start", "0:3b:0", "1234", "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name="old", uuid="5"))
    monkeypatch.setattr(cards, "BOOT", tmp_path / "absent")
    assert card_of(CUDA).slot == ""
    assert card_of(CUDA).machine == card_of(CUDA).host
    assert card_of(CPU) is None


def _share(rank, port, out):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    cards.card_of = lambda device: worker("one")
    try:
        check_own_cards(Group(rank, 2), CUDA)
    except SetupError as error:
        out.put((rank, error.what))
    dist.destroy_process_group()


def test_all_workers_of_a_real_group_end_with_the_same_error():
    import socket

    import torch.multiprocessing as mp

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    out = context.Queue()
    workers = [context.Process(target=_share, args=(rank, port, out)) for rank in range(2)]
    for each in workers:
        each.start()
    found = sorted(out.get(timeout=120) for _ in workers)
    for each in workers:
        each.join(60)
    assert found == [(0, "workers 0 and 1 share one GPU"), (1, "workers 0 and 1 share one GPU")]
