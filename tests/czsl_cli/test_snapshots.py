"""``--help`` of every command and typical errors, as text files in ``tests/snapshots``: a change of wording shows in the diff.

Renew them with ``CZSL_RENEW=1 python -m pytest tests/czsl_cli/test_snapshots.py`` and read the difference before committing it.
Line breaks and indentation are not compared: they depend on the terminal and on click's version.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
import pytest

from czsl_cli.main import COMMANDS, cli

FOLDER = Path(__file__).parents[1] / "snapshots"
RENEW = bool(os.environ.get("CZSL_RENEW"))


def contexts(name: str, command: click.Command, parent: click.Context | None = None):
    """The context of a command, as the command line makes it, and those of all its subcommands."""
    context = click.Context(command, parent, name, **command.context_settings)
    command._help_option = None  # click keeps the one of the first call, which a test made without the program around it
    yield context
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from contexts(child, found, context)


def compare(name: str, text: str) -> None:
    """Compare with a snapshot, or write it."""
    file = FOLDER / name
    if RENEW:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert file.exists(), f"{name} is new: renew the snapshots"
    assert text.split() == file.read_text(encoding="utf-8").split(), f"{name} differs: if it is meant so, renew the snapshots"


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    root = click.Context(cli, None, "czsl", **cli.context_settings)
    if not name:
        compare("help/czsl.txt", root.get_help() + "\n")
        return
    command = cli.get_command(root, name)
    assert command is not None
    compare(f"help/{name}.txt", "\n\n\n".join(context.get_help() for context in contexts(name, command, root)) + "\n")


def test_no_snapshot_is_left_of_a_command_that_is_gone():
    assert {p.stem for p in (FOLDER / "help").glob("*.txt")} == {"czsl", *COMMANDS}


# Name -> words and exit code. {folder} is an empty folder with `names.txt` (one name), `empty.txt` and `run.npz` (damaged).
ERRORS = {
    "unknown-command": (["trian"], 2),
    "unknown-method": (["train", "--method", "clusPo"], 2),
    "unknown-setting": (["train", "--method", "csp", "epoch=3"], 2),
    "setting-that-cannot-be-read": (["train", "--method", "csp", "epochs"], 2),
    "setting-out-of-range": (["train", "--method", "csp", "lr=-1"], 2),
    "no-dataset": (["train", "--data", "nowhere"], 3),
    "no-run": (["evaluate"], 2),
    "not-a-run": (["evaluate", "names.txt"], 2),
    "no-images": (["predict", "--zero-shot", "--classes", "names.txt"], 2),
    "no-such-folder": (["predict", "nowhere", "--zero-shot", "--classes", "names.txt"], 2),
    "empty-list-of-names": (["predict", ".", "--zero-shot", "--classes", "empty.txt"], 3),
    "import-of-nothing": (["data", "import", "nowhere", "out"], 3),
    "import-of-an-unknown-layout": (["data", "import", "stuff", "out"], 3),
    "damaged-scores": (["evaluate", "--scores", "run.npz", "--space", "space.json"], 3),
    "glove-and-clip": (["feasibility", "toy", "--out", "f.npy", "--glove", "names.txt", "--clip", "tiny"], 2),
    "compare-one-run": (["compare", "runs/a"], 2),
    "match-without-a-sentence": (["match", "."], 2),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, czsl, tmp_path):
    words, code = ERRORS[name]
    (tmp_path / "names.txt").write_text("apple\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "stuff").mkdir()
    (tmp_path / "stuff" / "notes.txt").write_text("nothing to see\n")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "run.npz").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "space.json").write_text('{"attributes": ["wet"], "objects": ["dog"], "train_pairs": [["wet", "dog"]]}')
    shown = czsl(*words, expect=code)
    text = re.sub(r"/\S*pytest-of\S*?/(?=\S)", "{folder}/", shown.stderr).replace(str(tmp_path), "{folder}")
    compare(f"errors/{name}.txt", f"$ czsl {' '.join(words)}\nexit code {code}\n{text}")
