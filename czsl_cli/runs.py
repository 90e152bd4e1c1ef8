"""Choice of the run that a command works on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from czsl.errors import UsageError
from czsl.runs.files import read_by
from czsl.runs.run import Run, latest_run
from czsl_cli.console import say, warn


def chosen_run(path: Path | None, out: Path = Path("runs")) -> Run:
    """The run at a path, or the newest one below ``runs/`` (and prints which)."""
    if path is not None:
        return _read(Run(path))
    run = latest_run(out)
    if run is None:
        raise UsageError(
            "no run was given and runs/ holds none",
            "commands use the newest run by default",
            "train one with czsl train, or name a run folder",
        )
    say(f"using the newest run: {out / run.path.name}")
    return _read(run)


def _read(run: Run) -> Run:
    """The run, which `czsl add` does not change as long as the command works."""
    context = click.get_current_context(silent=True)
    if context is not None:
        context.with_resource(read_by(run.path))
    return run


def usable_checkpoint(run: Run, which: str) -> None:
    """UsageError unless the run has the checkpoint (a method that trains nothing has none): before a cluster is started for nothing.

    Also warns if the run's precision is slow on this machine, and about labels that the built-in CLIP cannot tell apart.
    """
    from czsl.runs.checkpoint import find
    from methods.registry import config_class

    if config_class(run.config.method).trains:
        find(run.checkpoints, which)
    tell_precision(run)
    tell_unknown_words(run.config.clip, (*run.space.attributes, *run.space.objects))


def tell_unknown_words(clip: str, texts: Iterable[str]) -> None:
    """Warn, once per command and word, about words for which the built-in CLIP has no vectors."""
    from czsl.clip.vocabulary import note_on_words, unknown_words

    context = click.get_current_context(silent=True)
    warned: set[str] = context.meta.setdefault("czsl.unknown_words", set()) if context is not None else set()
    new = [word for word in unknown_words(clip, texts) if word not in warned]
    warned.update(new)
    if note := note_on_words(new):
        warn(note)


def tell_precision(run: Run) -> None:
    """Warn about bfloat16 on a processor without it, if this machine has no GPU."""
    from czsl.gpus import gpus
    from czsl.precision import slow_on_cpu

    if (slow := slow_on_cpu(run.precision)) and not gpus():
        warn(slow)
