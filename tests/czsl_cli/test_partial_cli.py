"""`czsl data partial` and `--partial-labels` as a person meets them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from czsl.data.files.partial_labels import read_partial_labels
from czsl.data.table import open_data
from czsl.errors import CzslError
from czsl_cli.data import data
from czsl_cli.train import train


def run(command, *arguments):
    """Exit code, stdout and stderr; the error of the program instead of a code where there is one."""
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    if isinstance(result.exception, CzslError):
        return result.exception, result.stdout, result.stderr
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_sets_are_drawn_and_their_law_is_told(dataset, tmp_path):
    path = tmp_path / "c.parquet"
    code, out, err = run(data, "partial", dataset, "-q", "0.1", "--seed", "3", "--out", path)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == str(path)
    assert "84 training images, 84 seen pairs; candidate labels per image: " in out
    assert "(9.30 expected)" in out
    assert read_partial_labels(path, open_data(dataset)).origin.seed == 3
    error, _, _ = run(data, "partial", dataset, "--out", path)
    assert error.exit_code == 2
    assert "--force" in error.fix


@pytest.mark.parametrize("kind", ["pair", "semantic"])
def test_other_kinds_and_json(dataset, tmp_path, kind):
    path = tmp_path / "c.parquet"
    code, out, _ = run(data, "partial", dataset, "--kind", kind, "-q", "0.2", "--force-one", "--out", path, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["candidates"]["min"] == 2
    assert found["true_inside"] == 1
    assert sum(found["sizes"].values()) == found["images"] == 84


def test_noise_is_warned_of(dataset, tmp_path):
    _, _, err = run(data, "partial", dataset, "--noise-rate", "0.3", "--out", tmp_path / "c.parquet")
    assert "the true label is not among the candidate labels" in err
    assert "label_rescue" in err


def test_sets_of_ones_own_and_what_is_wrong_with_them(dataset, tmp_path):
    split = open_data(dataset).split("train")
    space = open_data(dataset).space
    sets = {i: [space.pair_name(p), space.pair_name(space.train_pairs[0])] for i, p in zip(split.ids, split.pairs, strict=True)}
    file, path = tmp_path / "sets.json", tmp_path / "c.parquet"
    file.write_text(json.dumps(sets))
    assert run(data, "partial", dataset, "--from", file, "--out", path)[0] == 0
    assert read_partial_labels(path, open_data(dataset)).origin.kind == "file"
    file.write_text(json.dumps({**sets, split.ids[0]: ["no such"]}))
    error, _, _ = run(data, "partial", dataset, "--from", file, "--out", tmp_path / "d.parquet")
    assert error.exit_code == 3
    assert "is not a seen pair" in error.what
    assert not (tmp_path / "d.parquet").exists()
    code, _, err = run(data, "partial", dataset, "--from", file, "-q", "0.1")
    assert code == 2
    assert "draws none" in err


def test_a_dry_run_shows_the_candidates_and_a_wrong_file_is_told_at_once(dataset, tmp_path):
    path = tmp_path / "c.parquet"
    run(data, "partial", dataset, "-q", "0.1", "--out", path)
    given = ("--data", dataset, "--partial-labels", path)
    code, out, err = run(train, "--method", "clip-pzsl", *given, "--dry-run")
    assert code == 0
    assert f"partial_labels: {path}" in out
    assert "candidates an image" in err
    error, _, _ = run(train, "--method", "zero-shot", *given, "--dry-run")
    assert (error.exit_code, "cannot use partial labels" in error.what) == (2, True)
    error, _, _ = run(train, "--method", "csp", "--data", "toy", "--partial-labels", path, "--out", tmp_path / "runs")
    assert (error.exit_code, "was made for other data" in error.what, bool(error.fix)) == (3, True, True)
    assert not (tmp_path / "runs").exists()
    error, _, _ = run(train, "--method", "csp", *given, "train_per_pair=1", "--dry-run")
    assert error.exit_code == 2


def test_a_dataset_with_candidates_beside_it_verifies(dataset, tmp_path):
    import shutil

    folder = shutil.copytree(dataset, tmp_path / "copy")
    code, out, _ = run(data, "partial", folder, "-q", "0.1", "--seed", "1")
    assert (code, out.splitlines()[-1]) == (0, str(folder / "candidates-uniform-0.1-1.parquet"))
    code, out, _ = run(data, "verify", folder)
    assert (code, "unlisted" in out) == (0, False)
