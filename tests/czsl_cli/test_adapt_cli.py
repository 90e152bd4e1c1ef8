"""--adapt on evaluate, predict and compare: what is printed, and what is refused before anything is computed."""

from __future__ import annotations

import pytest

from czsl.data.table import open_data
from czsl.errors import UsageError
from czsl.runs.run import Run
from czsl_cli.adapt_options import plan_of, split_run, split_settings
from czsl_cli.config import resolve


@pytest.fixture
def runs(dataset, tmp_path):
    """A run of a method that can be adapted, and one of a method that cannot."""
    made = {}
    for method in ("zero-shot", "troika"):
        config = resolve({"method": method, "data": str(dataset), "clip": "tiny", "threads": 1})
        made[method] = Run.create(config, open_data(str(dataset)).space, tmp_path / "runs", method).path
    return made


def test_words_are_settings_or_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b=2.png").touch()
    assert split_settings(["photos", "alpha=1", "b=2.png", "a/b=c"], "tomcat") == (["photos", "b=2.png", "a/b=c"], ["alpha=1"])
    assert split_settings(["photos"], None) == (["photos"], [])
    with pytest.raises(UsageError, match="without --adapt"):
        split_settings(["alpha=1"], None)


def test_a_run_with_its_adaptation_is_one_word(tmp_path):
    path, plan = split_run("runs/a@tomcat,alpha=0.5,seed=2")
    assert (path, plan.name, plan.settings.alpha, plan.seed) == ("runs/a", "tomcat", 0.5, 2)
    assert split_run("runs/a@tda,seed=given")[1].seed is None
    assert split_run("runs/a@tda")[1] == plan_of("tda", [], None)
    named = tmp_path / "a@tomcat"
    named.mkdir()
    assert split_run(str(named)) == (str(named), None)
    for word in ("a@tomcat,seed=x", "a@tomcat,seed=1,seed=2", "a@tomcut", "a@tomcat,alpha", "a@tomcat,shots=0"):
        with pytest.raises(UsageError):
            split_run(word)


def test_evaluate_shows_both(czsl, runs):
    done = czsl("evaluate", runs["zero-shot"], "--adapt", "tomcat", "alpha=1", "--stream-seed", 2)
    assert "adapted with tomcat, order of the stream: seed 2" in done.stdout
    assert "without adaptation: AUC" in done.stdout
    assert "unlabelled" in done.stdout
    several = czsl("evaluate", runs["zero-shot"], "--adapt", "tda", "--stream-seed", 0, "--stream-seed", "given")
    assert "mean of 2 orders" in several.stdout


def test_compare_tells_them_apart(czsl, runs):
    run = runs["zero-shot"]
    done = czsl("compare", run, f"{run}@tda", "--resamples", 10)
    assert "zero-shot@tda" in done.stdout
    assert "not only a difference of the methods" in done.stderr


def test_predict_shuffles_and_answers_in_the_given_order(czsl, runs, dataset, tmp_path):
    split, folder = open_data(str(dataset)).split("test"), tmp_path / "photos"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.png").write_bytes(split.image_bytes(i))
    state = tmp_path / "stream.safetensors"
    common = ("predict", folder, "--run", runs["zero-shot"], "--adapt", "tomcat", "alpha=2", "--json")
    given, shuffled = czsl(*common, "--state", state), czsl(*common, "--stream-seed", 1)
    assert state.is_file()
    names = [[line.split('"')[3] for line in done.stdout.splitlines()] for done in (given, shuffled)]
    assert names[0] == names[1] == [f"{i}.png" for i in range(8)]
    assert given.stdout != shuffled.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("evaluate", "RUN", "--adapt", "tomcut"), "did you mean 'tomcat'"),
        (("evaluate", "RUN", "--adapt", "tomcat", "alhpa=1"), "did you mean 'alpha'"),
        (("evaluate", "RUN", "--adapt", "tomcat", "beta=-1"), "must be 0 or more"),
        (("evaluate", "RUN", "alpha=1"), "without --adapt"),
        (("evaluate", "RUN", "--stream-seed", "1"), "without --adapt"),
        (("evaluate", "RUN", "more", "--adapt", "tda"), "unexpected word"),
        (("evaluate", "RUN", "--adapt", "tda", "--stream-seed", "1", "--stream-seed", "1"), "twice"),
        (("evaluate", "RUN", "--adapt", "tda", "--stream-seed", "-1"), "not a seed"),
        (("evaluate", "TROIKA", "--adapt", "tomcat"), "methods that can: zero-shot, coop, csp, dfsp, clusPro"),
        (("predict", "x.png", "--run", "TROIKA", "--adapt", "tomcat"), "cannot be adapted"),
        (("compare", "RUN", "TROIKA@tomcat"), "cannot be adapted"),
        (("predict", "x.png", "--run", "RUN", "--state", "s"), "without --adapt"),
    ],
)
def test_refused(czsl, runs, tmp_path, args, words):
    (tmp_path / "x.png").write_bytes(open_data(str(Run(runs["zero-shot"]).config.data)).split("test").image_bytes(0))
    paths = {"RUN": runs["zero-shot"], "TROIKA": runs["troika"], "TROIKA@tomcat": f"{runs['troika']}@tomcat"}
    done = czsl(*(paths.get(a, a) for a in args), expect=2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
