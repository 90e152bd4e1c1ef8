"""A foreign package with the name of one of ours is named in a plain error, however czsl was started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import czsl_start

ROOT = Path(__file__).parents[1]
NAMES = ("cluster", "methods", "czsl", "czsl_cli")


@pytest.fixture
def script(tmp_path):
    """The console script as pip writes it for the entry point of pyproject.toml, in a folder of its own."""
    file = tmp_path / "bin" / "czsl"
    file.parent.mkdir()
    file.write_text("import sys\nfrom czsl_start import main\nsys.exit(main())\n")
    return [sys.executable, str(file)]


def foreign(folder, name, package):
    """Write a package or module of somebody else."""
    folder.mkdir(exist_ok=True)
    if package:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("VALUE = 1\n")
        return folder / name
    (folder / f"{name}.py").write_text("VALUE = 1\n")
    return folder / f"{name}.py"


def run(command, folder, path=()):
    """Run a command with entries of PYTHONPATH before this repository."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)])}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


def check(done, place):
    """Three lines, exit code 4, and the folder that shadows is named."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 4, done.stderr
    assert len(lines) == 3, done.stderr
    assert lines[0].startswith("error: ")
    assert str(place) in lines[1]
    assert not done.stdout


@pytest.mark.parametrize("package", [True, False], ids=["folder", "file"])
@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_package_on_the_path_is_named_by_the_script(name, package, tmp_path, script):
    place = foreign(tmp_path / "theirs", name, package)
    done = run([*script, "methods"], tmp_path, [tmp_path / "theirs"])
    check(done, place)
    assert "PYTHONPATH" in done.stderr.splitlines()[2]


@pytest.mark.parametrize("module", ["czsl_cli", "czsl_cli.main", "czsl_start"])
@pytest.mark.parametrize("name", ["cluster", "methods", "czsl"])
def test_a_foreign_package_in_the_current_folder_is_named_by_python_m(name, module, tmp_path):
    place = foreign(tmp_path / "theirs", name, name != "methods")
    done = run([sys.executable, "-m", module, "methods"], tmp_path / "theirs")
    check(done, place)
    assert "another folder" in done.stderr.splitlines()[2]


@pytest.mark.parametrize("name", NAMES)
def test_the_script_does_not_look_into_the_current_folder(name, tmp_path, script):
    foreign(tmp_path / "theirs", name, package=True)
    done = run([*script, "methods", "csp"], tmp_path / "theirs")
    assert done.returncode == 0, done.stderr
    assert "lr" in done.stdout


def test_a_folder_without_modules_shadows_nothing(tmp_path):
    for name in NAMES:
        (tmp_path / name).mkdir()
    done = run([sys.executable, "-m", "czsl_cli", "--version"], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("ours", "theirs"), [("cluster.train", "methods"), ("methods", "czsl"), ("cluster", "czsl")])
def test_an_import_names_the_folder(ours, theirs, tmp_path):
    place = foreign(tmp_path, theirs, package=True)
    done = run([sys.executable, "-c", f"import {ours}"], tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-3].startswith("ImportError: ")
    assert str(place) in done.stderr


def test_an_import_does_not_ask_for_what_it_does_not_need(tmp_path):
    foreign(tmp_path, "cluster", package=True)
    done = run([sys.executable, "-c", "import methods; methods.load"], tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_missing_package_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(czsl_start, "find_spec", lambda name: None)
    what, why, fix = czsl_start.shadowed()
    assert "was not found" in what
    assert str(ROOT) in why
    assert "install" in fix


def test_a_name_of_a_folder_cannot_steer_the_terminal(tmp_path, script):
    place = foreign(tmp_path / "a\x1b[31mb", "cluster", package=True)
    done = run([*script, "methods"], tmp_path, [place.parent])
    assert done.returncode == 4
    assert "\x1b" not in done.stderr
    assert "\\x1b[31m" in done.stderr
