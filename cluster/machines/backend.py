"""Ray Train's process group, made only when all workers fit together. Imported where Ray is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig

from cluster.machines.nodes import last_line
from cluster.machines.preflight import Requirements, Shared, check, inspect, interfaces, not_shared, set_interface, unread
from cluster.work.placement import Placement
from czsl.errors import SetupError


@dataclass
class CheckedTorch(TorchConfig):
    """Backend configuration of Ray Train.

    Attributes
    ----------
    folder : str
        Storage that all nodes must share.
    placement : Placement
        Where the workers were meant to be.
    requirements : Requirements
    """

    folder: str = ""
    placement: Placement | None = None
    requirements: Requirements = field(default_factory=Requirements)

    @property
    def backend_cls(self) -> type:
        """The hook that Ray calls."""
        return _CheckedBackend


class _CheckedBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: CheckedTorch) -> None:
        assert backend_config.placement is not None
        shared = Shared(Path(backend_config.folder) / "preflight")
        words = shared.offer()
        n, requirements = len(worker_group), replace(backend_config.requirements, gpu=backend_config.placement.gpu)
        reports = _ask(worker_group, [(inspect, (i, str(shared.folder), words, requirements)) for i in range(n)])
        check(reports, backend_config.placement)
        unseen = _ask(worker_group, [(unread, (str(shared.folder), words, n))])[0]
        if unseen:
            raise not_shared([reports[i] for i in unseen], shared.folder.parent)
        names = interfaces(reports)
        _ask(worker_group, [(set_interface, (name,)) for name in names])
        shared.clear()
        super().on_start(worker_group, backend_config)


def _ask(worker_group: Any, calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Call function i on worker i, all at once."""
    refs = [worker_group.execute_single_async(i, function, *arguments) for i, (function, arguments) in enumerate(calls)]
    answers = []
    for i, ref in enumerate(refs):
        try:
            answers.append(ray.get(ref))
        except ray.exceptions.RayActorError:
            raise  # a worker that died is replaced
        except Exception as error:
            host = worker_group.get_workers()[i].metadata.node_ip
            raise SetupError(
                f"czsl does not work on node {host}", last_line(error), "install the same czsl there; try: czsl doctor --cluster"
            ) from None
    return answers
