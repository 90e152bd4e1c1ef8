"""``czsl``: the commands, loaded on use, and the display of errors."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click

from czsl import __version__
from czsl.printable import printable
from czsl_cli.console import SafeFormatter, prepare_streams, say, say_error, signs_of_life

# Name -> module that defines the command, and its line in the overview (so that --help imports nothing else).
COMMANDS = {
    "train": ("czsl_cli.train", "Train a method on this machine or a Ray cluster."),
    "tune": ("czsl_cli.tune", "Search hyperparameters."),
    "experiment": ("czsl_cli.experiment", "Fill a table: methods, seeds and data of one file, trained where missing."),
    "reproduce": ("czsl_cli.reproduce", "Train what a paper reports, and say whether its numbers were reached."),
    "published": ("czsl_cli.published", "List what papers report, with sources."),
    "add": ("czsl_cli.add", "Add images, and new words, to a finished run."),
    "evaluate": ("czsl_cli.evaluate", "Evaluate a run, or any method's score file."),
    "report": ("czsl_cli.report", "Write a page about a run: curves, confusions, tables, images."),
    "runs": ("czsl_cli.run_folders", "List runs, show one, tag them, and free the space of old checkpoints."),
    "calibrate": ("czsl_cli.calibrate", "Choose the operating point that a run's answers use."),
    "compare": ("czsl_cli.compare", "Compare runs on the same test images."),
    "feasibility": ("czsl_cli.feasibility", "Write how plausible unseen compositions are."),
    "predict": ("czsl_cli.predict", "Name the compositions in a folder of images."),
    "search": ("czsl_cli.search", "Find the images of a folder that show a composition."),
    "match": ("czsl_cli.match", "Rank images for a sentence, or sentences for an image."),
    "explain": ("czsl_cli.explain", "Show why an image is named as it is."),
    "index": ("czsl_cli.index", "Index the compositions of an open world."),
    "prototypes": ("czsl_cli.prototypes", "Show what a run's prototypes stand for."),
    "data": ("czsl_cli.data", "Import, verify and describe datasets."),
    "cache": ("czsl_cli.cache", "Show what is kept on the disk, and empty it."),
    "doctor": ("czsl_cli.doctor", "Check this machine or a cluster, and say what to do."),
    "cluster": ("czsl_cli.cluster", "Start, show and end a Ray cluster; submit commands to it."),
    "methods": ("czsl_cli.methods", "List methods, their presets and fields."),
    "import-checkpoint": ("czsl_cli.import_checkpoint", "Make a run of a public program's checkpoint."),
    "completion": ("czsl_cli.completion", "Print the shell completion script."),
}


class _ReaderGoneError(Exception):
    """The reader of stdout went away, as in ``czsl ... | head``; that is not an error of the command."""


@contextlib.contextmanager
def _while_read() -> Iterator[None]:
    """Raise `_ReaderGoneError` in place of a broken pipe: click and rich would end the process with exit code 1."""
    try:
        yield
    except BrokenPipeError:
        if _reader_is_gone():
            raise _ReaderGoneError from None
        raise
    except SystemExit as end:  # rich ends the process after it has put another file in the place of stdout
        if isinstance(end.__context__, BrokenPipeError):
            raise _ReaderGoneError from None
        raise


def _reader_is_gone() -> bool:
    """Return whether stdout or stderr is a pipe without a reader, so that no other broken pipe is taken for one of them."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


class LazyGroup(click.Group):
    """Commands whose modules are imported on use: ``czsl --help`` stays quick."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the arguments; ``--help`` prints here."""
        with _while_read():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _while_read():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of a first session."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the command's module."""
        if name not in COMMANDS:
            return None
        return getattr(importlib.import_module(COMMANDS[name][0]), name.replace("-", "_"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]):
        """Name the nearest command if one is misspelt."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise click.UsageError(f"no command {args[0]!r}. {hint}Commands: {', '.join(COMMANDS)}", ctx) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="czsl")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """Compositional zero-shot learning with CLIP: recognise `wet dog` having seen `wet cat` and `dry dog`.

    \b
      czsl data import photos/ mydata        a dataset from a folder of `attr obj/` folders, a manifest, or a benchmark
      czsl train --data mydata --clip ViT-L-14
      czsl predict new_photos/

    Exit codes: 0 done, 1 failed, 2 usage or config, 3 data, 4 environment or cluster, 5 below --expect, 6 partial, 130 interrupted.
    """


def main(args: list[str] | None = None) -> None:
    """Entry point: an error is three lines and an exit code; a traceback only with ``--debug``."""
    debug = "--debug" in (sys.argv[1:] if args is None else args)
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(SafeFormatter("%(message)s"))
    prepare_streams()
    _share_cores()
    if not debug:
        for noisy in ("ray", "PIL", "urllib3", "httpx", "huggingface_hub", "matplotlib", "filelock"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
    code: Any
    try:
        with signs_of_life(), _terminated_as_interrupted():
            code = cli.main(args=args, prog_name="czsl", standalone_mode=False)
    except SystemExit as end:
        code = end.code
    except click.exceptions.Abort:
        say("interrupted")
        code = 130
    except click.ClickException as error:
        error.message = printable(error.message, keep="\n")  # type: ignore[misc]
        error.show()
        code = error.exit_code
    except KeyboardInterrupt:
        say("interrupted")
        code = 130
    except _ReaderGoneError:
        nowhere = os.open(os.devnull, os.O_WRONLY)  # for what is still buffered
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        code = 0
    except Exception as error:
        code = _explain(error, debug)
    if code == 130 and args is None:  # the process ends; one more signal ends it at once, with the same exit code
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: os._exit(130))
    code = code if isinstance(code, int) else 0
    if args is None:
        _end_quickly(code)
    sys.exit(code)


def _end_quickly(code: int) -> None:
    """End the process after its exit handlers, without taking torch apart: that takes 0.6 seconds, and the system frees all anyway.

    Return if a thread is still at work or an output cannot be written; the usual end of Python then deals with it.
    """
    if "torch" not in sys.modules or any(not t.daemon for t in threading.enumerate() if t is not threading.main_thread()):
        return
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # a full disk, a reader that went away, a stream that is closed
        return
    os._exit(code)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: what is open is closed, workers are ended, and the exit code is 130."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _share_cores() -> None:
    """Let idle OpenMP threads sleep soon, in this process and in those that it starts.

    By default they spin for milliseconds and wait for each other. One other busy process on the machine then makes training five to ten
    times slower (docs/performance.md). Whoever sets a policy keeps it.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = "2000"


def _explain(error: Exception, debug: bool) -> int:
    from czsl.errors import CzslError

    if debug:
        import traceback

        traceback.print_exc()
    if isinstance(error, CzslError):
        lines = [error.what, error.why, error.fix]
        code = error.exit_code
    elif isinstance(error, OSError):
        from czsl.runs.files import FORBIDDEN, FULL

        lines = [f"{error.strerror or error}", str(error.filename or ""), "check the path, its permissions and the free space"]
        code = 4 if error.errno in (*FULL, *FORBIDDEN) else 1
    elif isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        near = error.object[max(0, error.start - 40) : error.end + 40]
        lines = [f"a name is not UTF-8: {near!r}", "it is written to a file that holds text", "rename the file or folder"]
        code = 2
    elif isinstance(error, RuntimeError) and type(error).__name__ == "OutOfMemoryError":  # of torch, which is loaded then
        from cluster.work.memory import too_full

        full = too_full(error)
        lines, code = [full.what, full.why, full.fix], full.exit_code
    else:
        lines = [f"unexpected {type(error).__name__}: {error}", "this is a defect of czsl", "run again with: czsl --debug ..."]
        code = 1
    say_error(lines)
    return code


if __name__ == "__main__":
    main()
