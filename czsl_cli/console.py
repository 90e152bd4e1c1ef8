"""Output of all commands: tables and JSON on stdout, everything else on stderr, bars only on a terminal.

The only place of this package that writes: names, labels and messages are escaped here (:mod:`czsl.printable`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from czsl.printable import printable, printable_json

WIDE_ENOUGH = 200  # columns if stdout is not a terminal: a table in a file is not wrapped
# Numbers with their units, and what may stand between several: "51.2 ± 0.3", "36.4 to 45.9", "+2.3 [+0.3, +4.2] / -1.0".
_NUMBER = re.compile(r"[<>]?\s?[-+−]?(?:\d[\d,.:]*|\.\d+)(?:e[-+]?\d+)?(?:\s?(?:%|[KMG]iB|ms|s|min|h|px)(?!\w))?")
_BETWEEN = re.compile(r"(?:[\s±/\[\](),×-]|to|of|seeds|from)*")

FIRST_LINE_S, LAST_LINE_S = 10.0, 45.0  # without a terminal: longest silence at the start, and of a command that has run for long


class SignsOfLife:
    """Lines of a long command without a terminal: how far it is, or that it still works; every 10 s at first, later every 45 s.

    Any line on stderr counts, so a command that speaks by itself is not interrupted. One thread serves all commands
    (:func:`signs_of_life`); bars leave here how far their work is.

    clock : callable
        Monotonic seconds, replaced in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._began, self._said, self._latest = clock, clock(), clock(), ""

    def heard(self) -> None:
        """Note that a line was printed."""
        self._said = self._clock()

    def working(self, line: str) -> None:
        """Note how far the command is; an empty line: it is done with what it was at."""
        self._latest = line

    def due(self) -> str:
        """Return the line to print now, or an empty text."""
        now = self._clock()
        silence = min(max((now - self._began) / 6, FIRST_LINE_S), LAST_LINE_S)
        if now - self._said < silence:
            return ""
        return self._latest or f"still working, {duration(now - self._began)} so far"


_life = SignsOfLife()


@contextlib.contextmanager
def signs_of_life() -> Iterator[None]:
    """Print a line now and then while the block runs, if stderr is not a terminal."""
    global _life
    if sys.stderr.isatty():
        yield
        return
    _life, over = SignsOfLife(), threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if line := _life.due():
                say(line)

    thread = threading.Thread(target=watch, daemon=True, name="signs of life")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def continued_with(how: Callable[[], str]) -> Iterator[None]:
    """If the block is interrupted, print how to continue and end with exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted; {how()}")
        sys.exit(130)


def say(text: str = "") -> None:
    """Print a line on stderr."""
    _life.heard()
    click.echo(printable(text), err=True)


def print_text(text: object = "") -> None:
    """A line on stdout: an answer, or the name of what was made."""
    click.echo(printable(str(text)))


def print_lines(text: str, end: str = "\n") -> None:
    """Text of several lines on stdout, for example settings as YAML."""
    click.echo(printable(text, keep="\n\t") + end, nl=False)


def warn(text: str) -> None:
    """A warning, on stderr."""
    _life.heard()
    click.echo(coloured("warning: ", "yellow") + printable(text), err=True)


def say_error(lines: Sequence[str]) -> None:
    """Print what happened, why and what to do on stderr; empty lines are left out."""
    head, *rest = [printable(line) for line in lines if line]
    click.echo(coloured("error: ", "red") + head, err=True)
    for line in rest:
        click.echo(f"  {line}", err=True)


def coloured(text: str, colour: str) -> str:
    """Text in a colour where the terminal has them and NO_COLOR does not forbid them (https://no-color.org)."""
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour, bold=True)


def print_json(content: Any) -> None:
    """JSON on stdout."""
    click.echo(printable_json(content, indent=2))


def print_json_line(content: Any) -> None:
    """A JSON object as one line on stdout."""
    click.echo(printable_json(content))


def numeric(column: Sequence[Any]) -> bool:
    """Return whether the cells of a column are numbers, also with units, deviations or intervals; empty cells and "-" do not count."""
    cells = [cell for cell in column if cell not in ("", "-", None)]
    return bool(cells) and all(isinstance(cell, int | float) or _is_numeric(str(cell)) for cell in cells)


def _is_numeric(text: str) -> bool:
    return bool(_NUMBER.match(text) and _BETWEEN.fullmatch(_NUMBER.sub("", text)))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None, err: bool = False) -> None:
    """A table; numbers stand to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for i, name in enumerate(columns):
        right = numeric([row[i] for row in rows])
        table.add_column(printable(name), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else printable(str(cell)) for cell in row))
    stream = sys.stderr if err else sys.stdout
    columns_asked = os.environ.get("COLUMNS", "")
    width = None if stream.isatty() else int(columns_asked) if columns_asked.isdecimal() else WIDE_ENOUGH
    console = Console(file=stream, width=width, highlight=False, emoji=False, markup=False)
    if title:
        console.print(printable(title), style="bold")
    console.print(table)


def percent(value: float | None) -> str:
    """A fraction as people print it in this field: ``23.8``; ``-`` if it is undefined."""
    return "-" if value is None else f"{100 * value:.1f}"


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def short(path: Path) -> str:
    """A path relative to the working folder where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


class SafeFormatter(logging.Formatter):
    """Log messages, escaped; lines stay."""

    def format(self, record: logging.LogRecord) -> str:
        """The message as text."""
        return printable(super().format(record), keep="\n\t")


def prepare_streams() -> None:
    """Escape what the terminal's encoding lacks, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class Bar:
    """A progress bar on a terminal; elsewhere what :class:`SignsOfLife` prints now and then."""

    def __init__(self, progress: Any):
        self._progress, self._task, self._what = progress, None, ""

    def update(self, what: str, done: int, total: int, note: str = "", line: str = "") -> None:
        """Show how far a piece of work is; a new ``what`` starts a new bar. ``line``: what stands for it without a terminal."""
        if self._progress is None:
            _life.working(line or "  ".join(filter(None, (f"{what} {done:,}/{total:,}", note))))
            return
        what, note = printable(what), printable(note)
        if what != self._what:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task, self._what = self._progress.add_task(what, total=total, note=note), what
        self._progress.update(self._task, completed=done, total=total, note=note)

    def clear(self) -> None:
        """Take the bar away."""
        _life.working("")
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task, self._what = None, ""


@contextlib.contextmanager
def progress_bar() -> Iterator[Bar]:
    """A bar on stderr while the block runs, if stderr is a terminal."""
    if not sys.stderr.isatty():
        bar = Bar(None)
        try:
            yield bar
        finally:
            bar.clear()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress)
