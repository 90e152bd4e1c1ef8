"""The documents tell the truth: every command in them exists with its options, and the tour runs as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from czsl_cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("methods/**/*.md"), *ROOT.glob("czsl/**/*.md")])


def commands(text: str) -> list[list[str]]:
    """The czsl command lines of the bash blocks, split as a shell splits them."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("czsl ")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_in_the_documents_exists_with_its_options(document):
    text = document.read_text(encoding="utf-8")
    inline = [shlex.split(found) for found in re.findall(r"`(czsl [^`\n]*)`", text) if "'" not in found]
    lines = [*commands(text), *inline]
    handed_on = [["czsl", *words[words.index("--") + 1 :]] for words in lines if "--" in words]
    for words in [*(w[: w.index("--")] if "--" in w else w for w in lines), *handed_on]:
        node: click.Command = cli
        context = click.Context(cli)
        rest = [w for w in words[1:] if w not in ("...", "|", ">>")]
        while isinstance(node, click.Group) and rest and not rest[0].startswith("-") and rest[0].islower():
            name = rest.pop(0)
            found = node.get_command(context, name)
            assert found is not None, f"{document.name}: no command {' '.join(words)}"
            node = found
        options = {o for p in node.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
        used = {w.split("=")[0] for w in rest if w.startswith("-")}
        assert used <= options, f"{document.name}: {' '.join(words)}: {used - options}"


def test_make_targets_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8"))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE) or target == "sense", target


def test_the_overview_lists_every_command():
    text = subprocess.run([sys.executable, "-m", "czsl_cli.main", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in COMMANDS)


@pytest.mark.slow
def test_the_five_minute_tour_runs_as_printed(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tour = next(part for part in text.split("\n## ") if part.startswith("Five minutes"))
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    found = commands(tour)
    assert len(found) >= 6
    for words in found:
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "found.parquet").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("document", "word", "count"), [("README.md", "'score'", 6), ("docs/explain.md", "'What the branches say'", 1)]
)
def test_the_python_lines_of_a_document_run(tmp_path, document, word, count):
    """With a run and pictures put where the lines expect them."""
    from czsl.data.toy import dataset as toy

    czsl = str(Path(sys.executable).parent / "czsl")
    subprocess.run([czsl, "train", "--method", "zero-shot", "--name", "mine"], cwd=tmp_path, check=True, capture_output=True)
    for name in ("a.jpg", "b.jpg"):
        toy.draw(toy.ATTRIBUTES[0], toy.OBJECTS[0], seed=1).save(tmp_path / name)
    code = re.search(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count(word) == count
