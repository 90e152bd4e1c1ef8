"""The operating point that a run keeps; needs no torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from czsl.data.table import open_data
from czsl.errors import CzslError, DataError
from czsl.evaluation.candidates import Candidates
from czsl.evaluation.operating import OperatingPoint, candidates_sha256, point_file
from czsl.runs.run import Run
from methods.fingerprint import fingerprint


def stored_point(run: Run, which: str = "best", open_world: bool = False, layer: str = "") -> tuple[OperatingPoint | None, str]:
    """The operating point that a run keeps for a checkpoint and a world; None and why if there is one that does not hold any more.

    ``layer`` is the key of a :class:`methods.adaptation.plan.Plan`, whose scores have a point of their own. A point
    holds for the checkpoint, the candidates and, if the dataset is still at its place, the data that it was chosen on.
    """
    file = point_file(run.path, open_world, which, layer)
    if not file.exists():
        return None, ""
    try:
        point = OperatingPoint.load(file)
    except DataError as error:
        return None, f"{file.name} is damaged ({error.why})"
    facts = point.facts
    if facts["checkpoint_sha256"] != fingerprint(run, which):
        return None, f"{file.name} was chosen for another checkpoint"
    if not facts.get("own_data"):
        candidates = Candidates.build(run.space, split="val", open_world=open_world)
        if facts["candidates_sha256"] != candidates_sha256(candidates):
            return None, f"{file.name} was chosen among other candidates"
    with suppress(CzslError, OSError):
        if open_data(str(facts.get("data"))).sha256 != facts["data_sha256"]:
            return None, f"{file.name} was chosen on other data"
    return point, ""


def usable_point(
    run: Run, which: str = "best", open_world: bool = False, bias: str | float = "val", layer: str = ""
) -> OperatingPoint | None:
    """The point of :func:`point_for`; None if one has to be chosen first. In the open world that of the closed one is enough."""
    if bias == "none":
        return OperatingPoint()
    kept, why = stored_point(run, which, open_world, layer)
    if kept is None and (why or not open_world or stored_point(run, which, layer=layer)[0] is None):
        return None
    return point_for(run, which, open_world, bias, layer)


def point_for(
    run: Run, which: str = "best", open_world: bool = False, bias: str | float = "val", layer: str = ""
) -> OperatingPoint:
    """The operating point of a run's answers.

    In the open world that of the closed one stands in until one is chosen among all pairs.

    Parameters
    ----------
    run : Run
    which : str
        Checkpoint.
    open_world : bool
    bias : "val", "none" or float
        The kept point; no bias and no temperature; or this bias instead of the kept one.
    layer : str
        Key of the adaptation, if there is one.

    Raises
    ------
    DataError
        The kept point does not hold any more.
    """
    if bias == "none":
        return OperatingPoint()
    point, why = stored_point(run, which, open_world, layer)
    if point is None and not why and open_world:
        point, why = stored_point(run, which, layer=layer)
        if point is not None:
            note = "the bias was chosen in the closed world; among all pairs: czsl calibrate RUN --open-world"
            point = replace(point, notes=(*point.notes, note))
    if why:
        raise DataError(
            f"the operating point of {run.path.name} cannot be used", why, f"czsl calibrate {run.path}, or --bias none"
        )
    point = point or OperatingPoint()
    return point if bias == "val" else point.given(float(bias))
