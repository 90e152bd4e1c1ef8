"""Images to work on: options and messages that all commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from czsl_cli.console import print_table, say, warn

if TYPE_CHECKING:
    from czsl.data.inputs import Gathered
    from czsl.data.photographs import DecodeOptions

MAX_NAMED = 10  # of what was left out for one reason
TABLE = click.Path(exists=True, dir_okay=False, path_type=Path)


def image_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of :func:`gather_images`, besides the images themselves."""
    for option in reversed(
        (
            click.option("--column", metavar="NAME", help="--images: the column of file names.  [default: image, path, ...]"),
            click.option(
                "--root",
                type=click.Path(exists=True, file_okay=False, path_type=Path),
                help="--images: folder that its names are relative to.  [default: that of the table]",
            ),
            click.option("--all-files", is_flag=True, help="Folders and archives: also try files that do not look like images."),
        )
    ):
        command = option(command)
    return command


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options for reading images and caching their features; a command takes the options out with :func:`reading_of`."""
    for option in reversed(
        (
            click.option(
                "--fast-jpeg",
                is_flag=True,
                help="Decode JPEGs of more than 4 times the needed size at a fraction of it: faster, with slightly other pixels.",
            ),
            click.option(
                "--keep/--no-keep", default=True, help="Keep image features and answers for later questions (czsl cache)."
            ),
            click.option("--profile", is_flag=True, help="Say where the time went, on stderr."),
        )
    ):
        command = option(command)
    return command


def reading_of(options: dict[str, Any], where: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Take the options of :func:`reading_options` out: whether JPEGs are reduced, and arguments of :func:`cluster.predict.predict_files`.

    Raises
    ------
    UsageError
        A profile of several workers, or a limit of the cache that is not a number.
    """
    from cluster.machines.nodes import NodeRequest
    from cluster.work.profile import Profile, process_began
    from czsl.data.paths import photographs_limit
    from czsl.errors import UsageError

    fast, keep, profile = (options.pop(name) for name in ("fast_jpeg", "keep", "profile"))
    photographs_limit()
    if profile and not NodeRequest.of(**where).local:
        raise UsageError("--profile measures one worker on this machine", "several were requested", "add --engine local")
    return fast, {"keep": keep, "profile": Profile(process_began()) if profile else None}


def tell_earlier() -> None:
    """Say that nothing is computed."""
    say("answered as by an earlier command: the images and all settings are the same (--no-keep computes again)")


def tell_profile(profile: Any) -> None:
    """Print on stderr where the time went, if requested."""
    if profile is None:
        return
    from cluster.work.profile import COUNTS, OWN, THREADS

    facts = profile.facts()
    wall = facts["wall"]
    rows = [[OWN[name], f"{s:.2f}", f"{100 * s / wall:.0f} %"] for name, s in facts["own"].items()]
    rows.append(["together", f"{wall:.2f}", "100 %"])
    rows += [[f"{THREADS[name]} (threads beside it)", f"{s:.2f}", ""] for name, s in facts["threads"].items()]
    print_table(["where the time went", "seconds", "share"], rows, err=True)
    say(", ".join(f"{number} {COUNTS[name]}" for name, number in facts["counts"].items()))


def images_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option that names a table of images."""
    return click.option("--images", "table", type=TABLE, help="Images named by a column of a table (CSV, JSON lines, Parquet).")(
        command
    )


def gather_images(
    given: Sequence[str],
    table: Path | None,
    *,
    column: str | None,
    root: Path | None,
    all_files: bool,
    full_names: bool = False,
) -> Gathered:
    """The images that arguments and options name; ``-`` reads a list from stdin.

    Raises
    ------
    UsageError
        None are named, arguments and a table together, or options of a table without one.
    DataError
        No image was found, or an archive or table is refused.
    """
    from czsl.data.inputs import gather, gather_table, listed, no_images
    from czsl.errors import UsageError

    if table is not None:
        if given:
            raise UsageError("images and --images were given", f"{given[0]} and {table}", "give one of the two")
        found = gather_table(table, column, root)
    else:
        if column or root:
            raise UsageError("--column and --root go with --images", "no table was given", "add --images FILE, or drop them")
        if not given:
            raise UsageError(
                "no images were given",
                "the command needs at least one",
                "give images, folders, archives, `-` for a list on stdin, or --images TABLE",
            )
        lines = listed(sys.stdin.buffer.read()) if "-" in given else []
        paths = [path for path in given if path != "-"]
        found = gather(paths, lines=lines, all_files=all_files, full_names=full_names)
    if not found.source.names:
        raise no_images(found, ", ".join(map(str, given)) or str(table))
    return found


def tell_left_out(found: Gathered) -> None:
    """Count and name what was not read: files that look like no image, and what cannot be used."""
    _tell("left out", found.left_out, say, "; --all-files tries them")
    _tell("refused", found.refused, warn, "")


def _tell(what: str, names: dict[str, str], write: Callable[[str], None], advice: str) -> None:
    reasons: dict[str, list[str]] = {}
    for name, why in names.items():
        reasons.setdefault(why, []).append(name)
    for why, group in reasons.items():
        more = f" and {len(group) - MAX_NAMED:,} more" if len(group) > MAX_NAMED else ""
        write(f"{what}: {len(group):,} ({why}): {', '.join(group[:MAX_NAMED])}{more}{advice}")


def tell_decoding(used: DecodeOptions, asked: dict[str, Any]) -> None:
    """A line where a run takes photographs as stored, which surprises with those of a phone."""
    ignored = [
        name for name, value in (("orientation", used.orientation), ("transparency", used.background)) if value == "ignore"
    ]
    if ignored and not any(asked.values()):
        say(
            f"as in this run's training, {' and '.join(ignored)} of photographs are ignored (--orientation exif --background white)"
        )
