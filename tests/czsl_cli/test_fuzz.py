"""A few damaged files of every kind through the command line; `fuzzing.py` draws as many as there is time for."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import fuzzing

pytestmark = pytest.mark.slow


# Folder of an example beside the repository -> the cases that read such a file.
EXAMPLES = {
    "config-0": "settings", "config-11": "search", "override-4": "override", "lists-42": "classes", "feasibility-33": "feasibility",
    "scores-23": "open scores", "index-16": "index pairs.npy", "feature-cache-1": "cache", "partial-file-23": "interrupted prediction",
    "reference-3": "reference", "run-10": "run environment.json", "run-23": "checkpoint state.json, signed",
    "run-35": "checkpoint manifest.json", "run-89": "run config.yaml", "tune-3": "search's metrics.jsonl",
}  # fmt: skip


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Real files of each kind, made once."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CZSL_CACHE", "CZSL_HOME"):
            patch.setenv(name, str(folder))  # fuzzing sets its own, and these come back
        patch.chdir(folder)
        yield fuzzing.prepare(folder / "real")


def test_examples_that_were_found_by_fuzzing(shared, cases):
    folder = shared / "cases" / "damaged"
    if not folder.is_dir():
        pytest.skip("the case files (../shared/cases) are not beside the repository")
    found = {}
    for name, kind in EXAMPLES.items():
        (file,) = (folder / name).iterdir()
        content = file.read_bytes().replace(b'{"question": "q"}', b'{"question": "question"}')
        of_kind = [case for case in cases if case.name.startswith(kind)]
        assert of_kind, kind
        for case in of_kind:
            if why := fuzzing.tried(case, content):
                found[f"{name}, {case.name}"] = why.strip().splitlines()[-3:]
    assert not found


def test_no_damaged_file_is_a_defect_of_the_program(cases):
    found = {}
    for number, case in enumerate(cases * 2):
        why = fuzzing.tried(case, fuzzing.damage(case.file, random.Random(f"test-{number}")), number)
        if why:
            found[f"{case.name} {number}"] = why.strip().splitlines()[-3:]
    assert not found


def test_the_fuzz_finds_a_defect_where_there_is_one(tmp_path):
    """A reader that lets an error through is told, so the test above can fail."""
    file = tmp_path / "f.json"
    file.write_text("{}")
    case = fuzzing.Case("broken", file, lambda path: {}["nothing"])
    assert "KeyError" in fuzzing.tried(case, b"x")
    assert file.read_text() == "{}"
