"""Every command that works on a run names it as its first word, by --run, or not at all: then it is the newest one."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from czsl_cli.main import COMMANDS, cli
from czsl_cli.options import named_run

ON_RUNS = (
    "calibrate",
    "evaluate",
    "predict",
    "search",
    "explain",
    "match",
    "prototypes",
    "feasibility",
    "compare",
    "index build",
    "index show",
    "add",
    "report",
    "runs show",
)


@pytest.fixture
def run(tmp_path):
    """What a command line takes for a run."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.yaml").touch()
    return folder


def command(beside=None):
    @click.command()
    @(click.argument("words", nargs=-1) if beside else (lambda f: f))
    @click.option("--other")
    @named_run(others=beside)
    def shown(run, words=(), other=None):
        click.echo(f"{run and run.name}|{' '.join(words)}|{other}")

    return lambda *args: CliRunner().invoke(shown, [str(a) for a in args])


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["RUN", "photos"], "mine|photos|None"),
        (["photos", "--run", "RUN"], "mine|photos|None"),
        (["--run", "RUN", "photos", "--other", "x"], "mine|photos|x"),
        (["photos"], "None|photos|None"),
        (["photos", "RUN"], "None|photos RUN|None"),  # the first word alone may be the run
        ([], "None||None"),
        (["RUN"], "mine||None"),
        (["RUN", "--run", "RUN"], "mine|RUN|None"),  # named already, so the word is something else
    ],
)
def test_beside_other_words(run, args, told):
    done = command("words")(*(run if a == "RUN" else a for a in args))
    assert done.output.strip() == told.replace("RUN", str(run))


@pytest.mark.parametrize(("args", "told"), [(["RUN"], "mine||None"), (["--run", "RUN"], "mine||None"), ([], "None||None")])
def test_as_the_only_word(run, args, told):
    assert command()(*(run if a == "RUN" else a for a in args)).output.strip() == told


def test_a_run_that_is_named_twice(run):
    done = command()(run, "--run", "other")
    assert done.exit_code == 2
    assert "named twice" in done.output


@pytest.mark.parametrize("name", ON_RUNS)
def test_all_of_them_have_both_ways(name):
    words = name.split()
    found = cli.get_command(None, words[0])
    if len(words) > 1:
        found = found.get_command(None, words[1])
    assert any("--run" in p.opts for p in found.params)
    assert "RUN" in " ".join(p.make_metavar(click.Context(found)) for p in found.params if isinstance(p, click.Argument))


def test_the_list_is_whole():
    """A command whose help speaks of a run folder to work on is in the list."""
    others = [
        "train",
        "tune",
        "data",
        "cluster",
        "doctor",
        "cache",
        "methods",
        "completion",
        "experiment",
        "reproduce",
        "published",
    ]
    at_work = {name for name in COMMANDS if name not in others}
    assert at_work - {"import-checkpoint"} == {name.split()[0] for name in ON_RUNS}


def test_no_command_words_its_run_in_a_way_of_its_own():
    for file in (Path(__file__).parents[2] / "czsl_cli").glob("*.py"):
        if file.name not in ("options.py", "compare.py"):
            assert '"--run"' not in file.read_text(encoding="utf-8"), file.name
