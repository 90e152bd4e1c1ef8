"""Going on with a run to another number of epochs: which settings may change, and what the change means."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import yaml

from czsl.errors import UsageError
from czsl.runs import checkpoint
from czsl.runs.config import RunConfig
from czsl.runs.files import held, write_atomically
from czsl.runs.run import Run
from czsl.runs.schedules import depends_on_epochs

CHANGEABLE = ("epochs", "stop_after", "log")  # they change when training ends and what is shown, not what a step does


def changes(run: Run, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings out of ``given`` that differ from the run's own; the settings that may change are among them only.

    Raises
    ------
    UsageError
        Others differ as well: it lists them and names what ``--from`` does.
    """
    own = {**run.config.model, **{name: getattr(run.config, name) for name in RunConfig.field_names()}}
    different = {key: value for key, value in given.items() if own.get(key) != value}
    if other := [f"{key}={value}" for key, value in different.items() if key not in CHANGEABLE]:
        raise UsageError(
            "a resumed run keeps its settings",
            f"{', '.join(other)} would change what was trained; only {', '.join(CHANGEABLE)} can be given",
            f"drop these, or start a new run from these weights: czsl train --from {run.path} {' '.join(other)}",
        )
    return different


def go_on(run: Run, changed: dict[str, Any], dry: bool = False) -> tuple[Run, list[str]]:
    """Change settings of a finished or interrupted run, with a line in the history of its ``config.yaml``.

    Parameters
    ----------
    run : Run
    changed : dict
        Values of the right type, as :func:`changes` returns them.
    dry : bool, default False
        Write nothing.

    Returns
    -------
    Run
        The run with its changed settings.
    list of str
        Notes about what the change means.

    Raises
    ------
    UsageError
        The run has no usable checkpoint, was trained for longer, grew since, or takes no gradient steps; another process trains it.
    """
    with held(run.path, "training"):
        run = Run(run.path)  # as it is now that no other process changes it
        state = _state(run)
        config = replace(run.config, **changed)  # checks the values
        epoch, begun = state["epoch"], state["epoch"] + (state["place"] > 0)
        if config.epochs < begun:
            part = f"epoch {begun} has begun" if state["place"] else f"{epoch} epochs are done"
            raise UsageError(
                f"epochs={config.epochs} is too few",
                f"{part} (step {state['step']}), and training cannot be taken back",
                f"give epochs={begun + 1} or more; czsl predict and evaluate take an earlier checkpoint with --checkpoint",
            )
        notes = _notes(run, config, state, run.config)
        entry = {
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "step": state["step"],
            "epoch": epoch,
            "changed": {key: [getattr(run.config, key), value] for key, value in changed.items()},
        }
        run.config, run.history = config, [*run.history, entry]
        if not dry:
            content = {**config.to_dict(), "history": run.history}
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            write_atomically(run.path / "config.yaml", text.encode())
    return run if dry else Run(run.path), notes


def _state(run: Run) -> dict[str, Any]:
    """Return the state of the newest checkpoint of a run that can be continued."""
    if run.has_grown:
        raise UsageError(
            f"{run.path.name} cannot be trained further",
            "images were added to it (czsl add), which its training data does not have",
            "train a new run on all images",
        )
    newest = checkpoint.newest_valid(run.checkpoints)
    state = checkpoint.state_of(newest) if newest else {"step": 0, "epoch": 0, "place": 0}
    if any(type(state.get(key)) is not int for key in ("step", "epoch", "place")):
        raise UsageError(
            f"{run.path.name} cannot be trained further",
            "its checkpoint was not written by a training (imported weights have no optimizer)",
            f"start a new run from its weights: czsl train --from {run.path}",
        )
    return state


def _notes(run: Run, config: RunConfig, state: dict[str, Any], before: RunConfig) -> list[str]:
    """Return what a change of the number of epochs does to the schedule and to early stopping."""
    notes, step, epoch = [], state["step"], state["epoch"]
    if config.epochs != before.epochs and depends_on_epochs(config.schedule) and step:
        started: dict[str, Any] = next(reversed(list(run.metrics("start"))), {})
        # Steps of an epoch, as the run logged them; without a log, as the newest checkpoint has them.
        per_epoch = started.get("steps", 0) // max(before.epochs, 1) or (step // epoch if epoch else 0)
        rates = f" at {config.learning_rate(step, per_epoch):.3g}" if per_epoch else ""
        was = f" (the last step had {before.learning_rate(step - 1, per_epoch):.3g})" if per_epoch else ""
        notes.append(
            f"schedule={config.schedule} depends on the number of epochs: the learning rate continues{rates}{was} and falls to 0 at epoch "
            f"{config.epochs}; the {step} steps until here had the rates of {before.epochs} epochs, so this is not a run of "
            f"{config.epochs} epochs from the start"
        )
    if config.stop_after and state.get("waited", 0) >= config.stop_after:
        notes.append(
            f"training had stopped because {state['waited']} epochs in a row were not better; stop_after={config.stop_after} "
            "counts from 0 again"
        )
    return notes
