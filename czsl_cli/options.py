"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_SETTINGS = (
    click.option("--method", "-m", help="clusPro (default), csp, zero-shot; `czsl methods` lists them."),
    click.option("--data", "-d", help="Dataset folder made by `czsl data import`, or the built-in `toy` (default)."),
    click.option(
        "--clip", help="`tiny` (default, built in), an open_clip model such as ViT-L-14, or a weight file in OpenAI's format."
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


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose a run's settings, as :func:`czsl_cli.config.resolve` takes them."""
    for option in reversed(_SETTINGS):
        command = option(command)
    return command
