"""``czsl prototypes`` on a small run: table, page, JSON, and what it refuses."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from czsl_cli.main import cli


@pytest.fixture(scope="module")
def runs(tmp_path_factory, czsl_cache):
    """A ClusPro run with a checkpoint of seeded prototypes, on a few drawn images."""
    import torch

    from cluster.work.comm import Group
    from cluster.work.saving import save
    from cluster.work.training import initialise, prepare
    from czsl.data.table import Record, write_dataset
    from czsl.data.toy import dataset as toy
    from czsl.runs.run import Run
    from czsl_cli.config import resolve

    folder = tmp_path_factory.mktemp("prototypes")
    records = (Record(name, image, attr, obj, split) for name, attr, obj, split, image in toy.samples(scale=0.05))
    write_dataset(folder / "drawn", toy.space(), records, "drawn")
    options = {"data": str(folder / "drawn"), "threads": 1, "adapter_dim": 0, "num_prototypes": 2}
    run = Run.create(resolve({"method": "clusPro", **options}), toy.space(), folder / "runs", "clus")
    trainer = prepare(run, Group(), torch.device("cpu"))
    initialise(trainer)
    save(trainer)
    Run.create(resolve({"method": "zero-shot", "data": str(folder / "drawn")}), toy.space(), folder / "runs", "plain")
    return folder / "runs"


def czsl(*args):
    return CliRunner().invoke(cli, [str(a) for a in args], standalone_mode=False)


def test_a_page_shows_every_prototype(runs):
    done = czsl("prototypes", runs / "clus", "--images", 2, "--counts", "2-3")
    assert done.exception is None
    assert "effective K" in done.stdout
    assert "silhouette" in done.stderr
    page = (runs / "clus" / "prototypes.html").read_text()
    assert page.count("(attribute), prototype") == 2 * 2 * 14  # in the list of sections, and as their titles
    assert page.count("(object), prototype") == 2 * 2 * 12
    assert page.count("<img") == 2 * 2 * 26


def test_json_says_the_same_and_writes_no_page(runs, tmp_path):
    done = czsl("prototypes", runs / "clus", "--json", "--per-pair", 1)
    content = json.loads(done.stdout)
    assert content["health"]["primitives"] >= 0
    for entry in content["primitives"]:
        assert sum(p["size"] for p in entry["prototypes"]) == entry["images"]
        assert all(len(p["nearest"]) <= 8 for p in entry["prototypes"])


def test_what_has_no_prototypes_is_refused(runs):
    assert "has no prototypes" in str(czsl("prototypes", runs / "plain").exception)
    assert "not a range" in str(czsl("prototypes", runs / "clus", "--counts", "8-2").exception)
    assert "not a range" in str(czsl("prototypes", runs / "clus", "--counts", "5").exception)
