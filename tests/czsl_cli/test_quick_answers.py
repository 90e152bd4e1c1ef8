"""What can be refused or listed at once is, without the seconds that torch and Ray need to load."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = [
    ("methods",),
    ("methods", "clusPro"),
    ("evaluate", "nowhere"),
    ("evaluate", "RUN", "--checkpoint", "7"),
    ("predict", "PHOTOS", "--run", "nowhere"),
    ("predict", "PHOTOS", "--run", "RUN", "--checkpoint", "7"),
    ("search", "nowhere", "wet dog", "--in", "PHOTOS"),
    ("explain", "PHOTOS/a.png", "--run", "nowhere"),
    ("prototypes", "nowhere"),
    ("index", "build", "nowhere"),
    ("index", "show", "nowhere"),
    ("compare", "nowhere", "elsewhere"),
    ("train", "epochz=3"),
    ("train", "--method", "clusQro"),
    ("train", "--resume", "nowhere"),
    ("train", "--nodes", "2", "--engine", "local"),
    ("tune", "--method", "zero-shot"),
]
PROGRAM = """
import json, sys
from czsl_cli.main import main
try:
    main(json.loads(sys.argv[1]))
except SystemExit as end:
    code = end.code
print("\\n" + json.dumps([code, sorted({m.split(".")[0] for m in sys.modules} & {"torch", "ray", "open_clip", "faiss", "matplotlib"})]))
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory, dataset):
    from PIL import Image

    from czsl.data.table import open_data
    from czsl.runs.run import Run
    from czsl_cli.config import resolve

    folder = tmp_path_factory.mktemp("quick")
    (folder / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "photos" / "a.png")
    run = Run.create(resolve({"method": "csp", "data": str(dataset)}), open_data(str(dataset)).space, folder, "run")
    return {"PHOTOS": str(folder / "photos"), "RUN": str(run.path)}


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_it_answers_without_loading_torch_or_ray(call, places, tmp_path):
    for name, place in places.items():
        call = [word.replace(name, place) for word in call]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(call)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    code, loaded = json.loads(done.stdout.splitlines()[-1])
    assert not loaded, done.stderr
    assert code == (0 if call[0] == "methods" else 2), done.stderr
    assert code == 0 or done.stderr.startswith(("error: ", "Error", "Usage")), done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stdout and stderr"])
@pytest.mark.parametrize(
    "arguments", [["methods", "clusPro"], ["methods", "--json"], ["--help"], ["published", "mit-states"]], ids=" ".join
)
def test_a_reader_that_went_away_is_not_an_error(arguments, both):
    read, write = os.pipe()
    os.close(read)
    command = [str(Path(sys.executable).parent / "czsl"), *arguments]
    done = subprocess.run(command, stdout=write, stderr=write if both else subprocess.PIPE)
    os.close(write)
    assert done.returncode == 0
    assert not done.stderr


def test_another_broken_pipe_is_an_error(monkeypatch):
    from czsl_cli import main

    def broken():
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(main.importlib, "import_module", lambda name: broken())
    with pytest.raises(SystemExit) as end:
        main.main(["methods"])
    assert end.value.code == 1
