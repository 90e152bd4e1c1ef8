"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from czsl_cli.adapt_options import split_settings


class NodeRange(click.ParamType):
    """``4``, or ``2-4``: at least two and at most four, as a pair."""

    name = "N|MIN-MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, int]:
        """Parse it."""
        if not isinstance(value, str):
            return value
        minimum, dash, maximum = value.partition("-")
        if not (minimum.isdecimal() and (maximum.isdecimal() or not dash)) or int(minimum) < 1:
            self.fail(f"{value!r} is neither a number of nodes nor a range such as 2-4", param, ctx)
        if dash and int(maximum) < int(minimum):
            self.fail(f"{value!r} ends below its start", param, ctx)
        return (int(minimum), int(maximum)) if dash else int(minimum)


_PLACEMENT = (
    click.option(
        "--nodes",
        type=NodeRange(),
        default="1",
        show_default=True,
        help="Nodes to use, with a worker on each GPU. 2-4: start with two, use up to four, continue with those left.",
    ),
    click.option("--gpus-per-node", type=click.IntRange(1), help="GPUs to use of each node.  [default: all]"),
    click.option("--workers-per-node", type=click.IntRange(1), help="Default: one a GPU, one on a node without a GPU."),
    click.option("--address", help="Ray cluster to join.  [default: RAY_ADDRESS]"),
    click.option(
        "--engine",
        type=click.Choice(["auto", "local", "ray"]),
        default="auto",
        show_default=True,
        help="local: one worker on this machine, without Ray. auto: local if one worker is requested and no cluster is joined.",
    ),
    click.option(
        "--wait",
        "wait_s",
        type=click.FloatRange(0),
        default=60,
        show_default=True,
        metavar="SECONDS",
        help="Longest wait for nodes of a cluster.",
    ),
)

_SETTINGS = (
    click.option("--method", "-m", help="clusPro (default), csp, zero-shot; `czsl methods` lists them."),
    click.option("--data", "-d", help="Dataset folder made by `czsl data import`, or the built-in `toy` (default)."),
    click.option(
        "--clip",
        help="`tiny` (default, built in), an open_clip model such as ViT-L-14, hf-hub:org/name, a model's folder, or a weight file.",
    ),
    click.option(
        "--clip-weights", metavar="TAG|FILE", help="Weights of an open_clip model: a published tag (default openai) or a file."
    ),
    click.option("--preset", help="Named settings of the method, e.g. default, paper, released."),
    click.option("--recipe", help="Named settings for a dataset's size, e.g. small, ut-zappos, mit-states, cgqa."),
    click.option(
        "--config", "config_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Settings as YAML."
    ),
    click.option("--epochs", type=int, help="Passes over the training images."),
    click.option("--batch", type=int, help="Images a step, over all workers together."),
)


def named_run(
    others: str | None = None, default: str = "the newest in runs/", settings: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The one way in which a command names its run: RUN as its first word, or ``--run RUN``; the command gets the path as ``run``, or None.

    Parameters
    ----------
    others : str, optional
        The argument (of any number of words) that holds the command's other words, if it has any: its first word is the run if it is
        a folder with a ``config.yaml``, and ``--run`` was not given.
    default : str
        What the command takes where neither is given, for its help.
    settings : bool
        Whether ``key=value`` words may follow RUN: settings of ``--adapt``, which the command gets as ``settings``.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def named(*args: Any, run_option: Path | None, **options: Any) -> Any:
            if settings:
                given, options["settings"] = split_settings(options.pop("run_words"), options["adapt"])
                if len(given) > 1:
                    raise click.UsageError(f"unexpected word {given[1]!r} after the run {given[0]}")
                options["run_word"] = Path(given[0]) if given else None
            if others is None:
                word = options.pop("run_word")
                if word is not None and run_option is not None:
                    raise click.UsageError(f"the run is named twice: {word} and --run {run_option}")
            else:
                words = tuple(options[others])
                word = Path(words[0]) if run_option is None and words and is_run(words[0]) else None
                options[others] = words if word is None else words[1:]
            return command(*args, run=run_option if word is None else word, **options)

        option = click.option(
            "--run",
            "run_option",
            type=click.Path(path_type=Path),
            metavar="RUN",
            help="Run folder; RUN as the first word says the same." + (f"  [default: {default}]" if default else ""),
        )
        if settings:
            named = click.argument("run_words", nargs=-1, metavar="[RUN] [KEY=VALUE]...")(named)
        elif others is None:
            named = click.argument("run_word", required=False, type=click.Path(path_type=Path), metavar="[RUN]")(named)
        return option(named)

    return decorate


def is_run(word: Any) -> bool:
    """Return whether a word of the command line is the folder of a run."""
    try:
        return (Path(word) / "config.yaml").is_file()
    except (OSError, ValueError):  # too long for a path, say
        return False


def decode_options(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options that choose how photographs are decoded, as :class:`czsl.data.photographs.DecodeOptions` takes them.

    ``default`` is for the help: what counts if they are not given.
    """
    orientation = click.option(
        "--orientation",
        type=click.Choice(["exif", "ignore"]),
        help=f"Turn photographs by their EXIF tag, or take them as stored.  [default: {default}]",
    )
    background = click.option(
        "--background",
        metavar="COLOUR",
        help="Colour below transparent pixels: white, grey, black, #rrggbb; `ignore` drops transparency.  [default: as above]",
    )
    return lambda command: orientation(background(command))


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose a run's settings, as :func:`czsl_cli.config.resolve` takes them."""
    for option in reversed(_SETTINGS):
        command = option(command)
    return command


def placement_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose nodes and workers; a command takes them out of its options with :func:`where_of`."""
    for option in reversed(_PLACEMENT):
        command = option(command)
    return command


def where_of(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of :func:`placement_options` out, as :meth:`cluster.machines.nodes.NodeRequest.of` takes them."""
    where = {name: options.pop(name) for name in ("nodes", "gpus_per_node", "workers_per_node", "address", "engine", "wait_s")}
    if where["gpus_per_node"] and where["workers_per_node"]:
        raise click.UsageError("--gpus-per-node starts one worker per GPU and cannot be combined with --workers-per-node")
    from cluster.machines.nodes import NodeRequest

    NodeRequest.of(**where)  # refuses what contradicts itself, before anything is made
    return where
