"""Scripts in ``examples`` start as the documents have it: ``python examples/NAME.py``."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_house import FLOORS

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_no_folder_takes_the_place_of_a_package():
    """A script's own folder comes first on Python's path, so a folder ``cluster`` there would be imported instead of ours."""
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert not folders & {*FLOORS, "ray", "torch", "tests"}


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_starts(script):
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
