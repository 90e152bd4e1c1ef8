"""Options of an adaptation while testing, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from czsl_cli.console import say

if TYPE_CHECKING:
    from methods.adaptation.plan import Plan

TRANSDUCTIVE = "it uses the unlabelled images: the numbers depend on them and on their order"


class SeedType(click.ParamType):
    """A seed, or ``given``: the order in which the images are given."""

    name = "SEED|given"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Parse it; a usage error for anything else."""
        if value == "given" or isinstance(value, int):
            return value
        if not str(value).isdecimal() or int(value) > 2**32 - 1:
            self.fail(f"{value!r} is not a seed: give a number from 0 on, or `given`", param, ctx)
        return int(value)


def adapt_option(command: Callable) -> Callable:
    """Add ``--adapt``."""
    text = "Adapt to the unlabelled stream of images: tomcat or tda, with settings as key=value words (`czsl methods tomcat`)."
    return click.option("--adapt", metavar="NAME", help=text)(command)


def stream_seed_option(default: str, several: bool) -> Callable[[Callable], Callable]:
    """Add ``--stream-seed``; ``default`` is for the help."""
    text = f"Seed of the order of the stream with --adapt, or `given`.{' Repeat it for mean and spread.' if several else ''}"
    option = click.option("--stream-seed", type=SeedType(), multiple=several, help=f"{text}  [default: {default}]")
    return lambda command: option(command)


def split_settings(words: Sequence[str], adapt: str | None) -> tuple[list[str], list[str]]:
    """Split words of a command line into those that are not settings, and ``key=value`` settings of the adaptation.

    A word is a setting if it holds ``=`` and no such file exists.

    Raises
    ------
    UsageError
        Settings without an adaptation.
    """
    from czsl.errors import UsageError

    settings = [word for word in words if _is_setting(word)]
    if settings and not adapt:
        raise UsageError(f"{settings[0]} without --adapt", "key=value words are settings of an adaptation", "add --adapt tomcat")
    return [word for word in words if word not in settings], settings


def plan_of(adapt: str | None, settings: Sequence[str], seed: int | str | None) -> Plan | None:
    """The plan that options ask for; None without ``--adapt``.

    Raises
    ------
    UsageError
        An unknown adaptation or setting, a value out of its range, or a seed without an adaptation.
    """
    from czsl.errors import UsageError
    from czsl_cli.config import parse_overrides
    from methods.adaptation.plan import Plan

    if adapt is None:
        if seed is not None:
            raise UsageError("--stream-seed without --adapt", "only an adaptation depends on the order", "add --adapt tomcat")
        return None
    return Plan.of(adapt, parse_overrides(settings), None if seed == "given" else seed or 0)  # type: ignore[arg-type]


def split_run(word: str) -> tuple[str, Plan | None]:
    """Split ``RUN@tomcat,alpha=0.5,seed=1`` into the run and the plan; a folder of that very name is a run."""
    if "@" not in word or Path(word).exists():
        return word, None
    from czsl.errors import UsageError

    path, _, text = word.rpartition("@")
    name, *settings = text.split(",")
    seeds = [s.partition("=")[2] for s in settings if s.startswith("seed=")]
    if len(seeds) > 1 or not all(s == "given" or s.isdecimal() for s in seeds):
        raise UsageError(
            f"{word}: its seed cannot be read",
            "a seed is one whole number, or `given`",
            f"write for example {path}@{name},seed=1",
        )
    seed = None if not seeds else seeds[0] if seeds[0] == "given" else int(seeds[0])
    return path, plan_of(name, [s for s in settings if not s.startswith("seed=")], seed)


def tell_plan(plan: Plan) -> None:
    """Say which adaptation is at work."""
    changed = ", ".join(f"{key}={value}" for key, value in plan.changed.items()) or "default settings"
    order = "in the given order" if plan.seed is None else f"order of seed {plan.seed}"
    say(f"adapting with {plan.name} ({changed}; {order}); {TRANSDUCTIVE}")


def _is_setting(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and key.replace(".", "_").isidentifier() and not Path(word).exists()
