"""The GPU of each worker: NCCL needs a card of its own for every one, and fails in the middle of the first exchange otherwise."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from cluster.work.comm import Group
from czsl.errors import SetupError

BOOT = Path("/proc/sys/kernel/random/boot_id")  # the same in all containers of a machine


@dataclass(frozen=True)
class Card:
    """A worker's GPU.

    host : name of the machine
    machine : an id that differs between machines, whatever the names of their containers
    slot : its place on the machine's bus; slices (MIG) of one card share it
    uuid : of the card or of the slice
    name : of its kind
    """

    host: str
    machine: str
    slot: str
    uuid: str
    name: str


def card_of(device: torch.device) -> Card | None:
    """Return a worker's GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    facts, host = torch.cuda.get_device_properties(device), socket.gethostname()
    machine = host
    with suppress(OSError):
        machine = BOOT.read_text(encoding="ascii").strip()
    places = [getattr(facts, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    slot = "" if None in places else ":".join(f"{x:x}" for x in places)
    return Card(host, machine, slot, str(getattr(facts, "uuid", "")), facts.name)


def check_own_cards(comm: Group, device: torch.device) -> None:
    """Compare the GPUs of all workers before they exchange anything on them.

    Raises
    ------
    SetupError
        Two workers have the same card, or slices of the same one, or some have a GPU and others none.
    """
    if comm.world == 1:
        return
    cards = comm.gather_objects(card_of(device))
    without = [rank for rank, card in enumerate(cards) if card is None]
    if without and len(without) < len(cards):
        raise SetupError(
            "some workers have a GPU and others have none",
            f"without: worker {_listed(without)} of {len(cards)}",
            "czsl doctor --cluster shows what each node can use; or compute on CPUs everywhere: CUDA_VISIBLE_DEVICES= on all nodes",
        )
    same: dict[tuple[str, ...], list[int]] = {}
    for rank, card in enumerate(cards):
        if card is not None:
            for key in filter(any, ((card.uuid,), (card.machine, card.slot) if card.slot else ())):
                same.setdefault(key, []).append(rank)
    for ranks in same.values():
        if len(ranks) > 1:
            card = cards[ranks[0]]
            slices = len({cards[rank].uuid for rank in ranks}) > 1
            raise SetupError(
                f"workers {_listed(ranks)} share one GPU{' (as slices of it)' if slices else ''}",
                f"{card.name}, {card.uuid or card.slot}, on {card.host}; NCCL needs a card of its own for each worker",
                "use fewer workers: one per card (leave out --workers-per-node), and name each card once in CUDA_VISIBLE_DEVICES",
            )


def _listed(ranks: list[int]) -> str:
    return f"{', '.join(map(str, ranks[:-1]))} and {ranks[-1]}" if len(ranks) > 1 else str(ranks[0])
