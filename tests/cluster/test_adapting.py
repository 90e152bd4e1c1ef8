"""Adaptation of runs: evaluation and prediction as streams, with the layer by itself as the oracle."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import methods
from cluster.evaluate import evaluate_orders, evaluate_run
from cluster.predict import predict_files
from cluster.work.adapting import Stream, reduce_stream
from cluster.work.comm import Group
from cluster.work.evaluation import EvalConfig, saved_evaluation
from cluster.work.feature_loader import FeatureLoader
from cluster.work.predictor import PredictConfig, Predictor
from cluster.work.request import for_encoding
from cluster.work.scoring import reduce_split
from czsl.data.table import open_data
from czsl.errors import DataError, UsageError
from czsl.evaluation import Candidates
from czsl.runs.run import Run
from methods.adaptation.plan import Plan
from methods.points import stored_point

LIVELY = {"alpha": 3.0, "text_lr": 1e-3, "image_lr": 1e-3}
STILL = {"alpha": 0.0, "text_lr": 0.0, "image_lr": 0.0}
PLAIN = EvalConfig(feasibility=None)


def run_of(method, dataset, folder, **more):
    from czsl_cli.config import resolve

    config = resolve({"method": method, "data": str(dataset), "clip": "tiny", "threads": 1, **more})
    return Run.create(config, open_data(str(dataset)).space, folder, method)


@pytest.fixture(scope="module")
def zero_shot(dataset, tmp_path_factory):
    return run_of("zero-shot", dataset, tmp_path_factory.mktemp("zero-shot"))


@pytest.fixture
def copied(zero_shot, tmp_path):
    return Run(shutil.copytree(zero_shot.path, tmp_path / "copy"))


def loader_of(run, method, split="test"):
    return FeatureLoader(method, open_data(run.config.data), split, Group(), run.config.eval_batch)


@pytest.mark.parametrize("name", ["tomcat", "tda"])
def test_a_split_is_scored_as_the_layer_scores_its_features(zero_shot, name):
    method = methods.load(zero_shot)
    loader, plan = loader_of(zero_shot, method), Plan.of(name, LIVELY if name == "tomcat" else {}, seed=4)
    candidates = Candidates.build(method.space)
    extremes = reduce_stream(method, plan, loader, candidates, 16, Group())[0]
    text = method.encode_compositions(torch.from_numpy(candidates.pairs[candidates.order])).pair
    order = plan.order(len(loader.split))
    features = method.image_features(loader.batch(order))
    scores = np.empty((len(order), len(candidates.order)), np.float32)
    scores[order] = methods.adapt_stream(name, features, text, float(method.clip.logit_scale), vars(plan.settings)).numpy()
    seen = candidates.seen[candidates.order]
    np.testing.assert_allclose(extremes.seen_score[:, 0], scores[:, seen].max(1), atol=1e-4)
    np.testing.assert_allclose(extremes.unseen_score[:, 0, 0], scores[:, ~seen].max(1), atol=1e-4)


@pytest.mark.parametrize("method", ["zero-shot", "csp", "clusPro", "clip-pzsl"])
@pytest.mark.parametrize("open_world", [False, True])
def test_settings_that_move_nothing_leave_every_number(method, open_world, dataset, tmp_path):
    run = run_of(method, dataset, tmp_path)
    from methods.building import build, clip_for

    config = run.config
    torch.manual_seed(0)
    clip = clip_for(config.method, config.model, config.clip, config.clip_weights)
    built = build(config.method, run.space, clip, config.model).eval()
    candidates = Candidates.build(run.space, open_world=open_world)
    loader = loader_of(run, built)
    plain = reduce_split(built, loader, candidates, np.arange(len(loader.split)), 16, Group())[0]
    still, moved = (reduce_stream(built, Plan.of("tomcat", s), loader, candidates, 16, Group())[0] for s in (STILL, LIVELY))
    for field in ("true_score", "seen_score", "unseen_score", "seen_pair", "unseen_pair"):
        assert np.array_equal(getattr(still, field), getattr(plain, field))
    assert not np.array_equal(moved.true_score, plain.true_score)


def test_labels_are_never_seen(zero_shot):
    """The scores are the same when every image has another label."""
    method = methods.load(zero_shot)
    candidates = Candidates.build(method.space)
    scores = []
    for wrong in (False, True):
        loader = loader_of(zero_shot, method)
        if wrong:
            loader.split.attr, loader.split.obj = np.roll(loader.split.attr, 7), np.roll(loader.split.obj, 7)
        scores.append(reduce_stream(method, Plan.of("tomcat", LIVELY), loader, candidates, 16, Group())[0])
    assert not np.array_equal(scores[0].labels, scores[1].labels)
    assert np.array_equal(scores[0].seen_score, scores[1].seen_score)
    assert np.array_equal(scores[0].unseen_score, scores[1].unseen_score)


def test_the_report_names_adaptation_order_and_the_run_without_it(copied):
    plan = Plan.of("tomcat", LIVELY, seed=3)
    plain = evaluate_run(copied, PLAIN)
    result = evaluate_run(copied, replace(PLAIN, adapt=plan))
    assert result["adaptation"]["transductive"] is True
    assert (result["adaptation"]["name"], result["adaptation"]["stream_seed"]) == ("tomcat", 3)
    assert result["adaptation"]["settings"]["alpha"] == 3.0
    assert result["without_adaptation"]["auc"] == plain["auc"] != result["auc"]
    # Its files stand beside those of the run, and neither is taken for the other.
    assert saved_evaluation(copied, PLAIN)[0].facts.get("adaptation") is None
    assert saved_evaluation(copied, replace(PLAIN, adapt=plan))[0].facts["adaptation"] == plan.key
    assert saved_evaluation(copied, replace(PLAIN, adapt=Plan.of("tomcat", LIVELY, seed=4)))[0] is None
    # The operating point is that of the adapted validation images.
    own, other = stored_point(copied, layer=plan.key)[0], stored_point(copied)[0]
    assert own.bias == result["operating_point"]["bias"] != other.bias
    assert own.facts["adaptation"] == plan.key


def test_several_orders_give_mean_and_spread(copied):
    eval_config = replace(PLAIN, adapt=Plan.of("tomcat", LIVELY))
    result = evaluate_orders(copied, eval_config, [0, 1, None])[0]
    values = [report["auc"] for report in result["orders"]]
    assert result["auc"] == pytest.approx(np.mean(values))
    assert result["spread"]["auc"] == pytest.approx({"sd": np.std(values, ddof=1), "min": min(values), "max": max(values)})
    assert result["adaptation"]["stream_seed"] == [0, 1, None]
    assert len(set(values)) > 1


def test_the_open_world_chooses_its_threshold_on_adapted_validation_images(copied):
    result = evaluate_run(copied, replace(PLAIN, open_world=True, feasibility="clip", adapt=Plan.of("tomcat", LIVELY)))
    assert result["threshold_chosen"] == "val"
    assert result["operating_point"]["how"] == "val"


class _Threads(Group):
    """A worker of two in one process."""

    def __init__(self, rank, box, barrier):
        super().__init__(rank, 1)
        self.world, self._box, self._barrier = 2, box, barrier

    def gather_objects(self, thing):
        self._box[self.rank] = thing
        self._barrier.wait(timeout=60)
        out = list(self._box)
        self._barrier.wait(timeout=60)
        return out


def test_two_workers_encode_together_and_get_the_stream_of_one(zero_shot):
    def work(comm):
        method = methods.load(zero_shot)
        loader = FeatureLoader(method, open_data(zero_shot.config.data), "test", comm, 16, keep=False)
        return reduce_stream(method, Plan.of("tomcat", LIVELY), loader, Candidates.build(method.space), 16, comm)[0]

    alone = work(Group())  # first: it leaves the decoded images, which two threads of one process would write at once
    box, barrier = [None, None], Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, [_Threads(rank, box, barrier) for rank in (0, 1)]))
    for extremes in found:
        for field in ("true_score", "seen_score", "unseen_score", "seen_pair", "unseen_pair"):
            assert np.array_equal(getattr(extremes, field), getattr(alone, field))


def test_released_adapts_over_all_pairs_of_the_dataset(zero_shot):
    method = methods.load(zero_shot)
    candidates, loader = Candidates.build(method.space), loader_of(zero_shot, method)
    assert len(candidates.order) < len(candidates.pairs)  # there are pairs of val alone
    found = [
        reduce_stream(method, Plan.of("tomcat", {**LIVELY, "released": r}), loader, candidates, 16, Group())[0]
        for r in (False, True)
    ]
    assert not np.array_equal(found[0].true_score, found[1].true_score)
    assert set(np.unique(found[1].seen_pair)) <= set(candidates.order.tolist())


def test_a_method_whose_texts_attend_to_images_refuses(dataset, tmp_path):
    run = run_of("troika", dataset, tmp_path)
    from methods.building import build, clip_for

    config = run.config
    method = build("troika", run.space, clip_for("troika", config.model, config.clip, config.clip_weights), config.model)
    with pytest.raises(UsageError, match="cannot be adapted"):
        Stream(method, Plan.of("tomcat"), method.encode_compositions(torch.from_numpy(run.space.closed_pairs)))


# -- prediction ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def photos(dataset, tmp_path_factory):
    folder, split = tmp_path_factory.mktemp("photos"), open_data(str(dataset)).split("test")
    names = [f"{i}.png" for i in range(40)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(split.image_bytes(i))
    return folder, names


def scores_of(records):
    return [[p["score"] for p in record["predictions"]] for record in records]


def test_a_state_continues_over_folders(copied, photos, tmp_path):
    folder, names = photos
    config = PredictConfig(run=str(copied.path), adapt=Plan.of("tomcat", LIVELY, None), bias="none")
    whole = scores_of(predict_files(config, folder, names, engine="local"))
    kept = replace(config, state=str(tmp_path / "state.safetensors"))
    parts = [*predict_files(kept, folder, names[:32], engine="local"), *predict_files(kept, folder, names[32:], engine="local")]
    assert scores_of(parts) == whole
    fresh = scores_of(predict_files(config, folder, names[32:], engine="local"))
    assert fresh != whole[32:]  # without the state the first images are missed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"adapt": Plan.of("tomcat", {"shots": 2}, None)}, "settings"),
        ({"open_world": True}, "candidates"),
        ({"run": None}, "run"),
    ],
)
def test_a_state_of_something_else_is_refused(change, words, copied, photos, tmp_path):
    folder, names = photos
    file = tmp_path / "state.safetensors"
    config = PredictConfig(run=str(copied.path), adapt=Plan.of("tomcat", None, None), bias="none", state=str(file))
    list(predict_files(config, folder, names[:3], engine="local"))
    if change.get("run", "") is None:
        space = {"attributes": list(copied.space.attributes), "objects": list(copied.space.objects)}
        pairs = [list(copied.space.pair_names(p)) for p in copied.space.closed_pairs.tolist()]
        change = {"run": None, "clip": "tiny", "space": space, "pairs": pairs}
    with pytest.raises(DataError, match="cannot be continued") as error:
        Predictor(replace(config, **change), torch.device("cpu"))
    assert words in error.value.why


@pytest.mark.parametrize("damage", ["cut", "garbage", "shape", "strange"])
def test_a_damaged_state_is_refused(damage, copied, photos, tmp_path):
    folder, names = photos
    file = tmp_path / "state.safetensors"
    config = PredictConfig(run=str(copied.path), adapt=Plan.of("tda", None, None), bias="none", state=str(file))
    list(predict_files(config, folder, names[:3], engine="local"))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "garbage":
        file.write_bytes(b"not a state")
    else:
        tensors = load_file(file)
        tensors |= {"positive_classes": tensors["positive_classes"] + 10**6} if damage == "shape" else {"about": torch.zeros(3)}
        save_file(tensors, file)
    with pytest.raises(DataError):
        Predictor(config, torch.device("cpu"))


def test_an_unreadable_image_leaves_no_trace(copied, photos, tmp_path):
    folder, names = photos
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in names[:6]:
        shutil.copy(folder / name, mine / name)
    (mine / "2.png").write_bytes(b"no image")
    config = PredictConfig(run=str(copied.path), adapt=Plan.of("tomcat", LIVELY, None), bias="none")
    found = list(predict_files(config, mine, names[:6], engine="local"))
    assert found[2]["error"]
    good = [name for name in names[:6] if name != "2.png"]
    assert scores_of(found[:2] + found[3:]) == scores_of(predict_files(config, mine, good, engine="local"))


def test_workers_that_only_encode_hand_over_what_one_worker_ranks(copied, photos, tmp_path):
    """Batches dealt to two predictors without candidates, their features named in order by a third, which adapts."""
    folder, names = photos
    (tmp_path / "bad.png").write_bytes(b"no image")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    names = [*names[:5], "bad.png", *names[5:]]
    config = PredictConfig(run=str(copied.path), adapt=Plan.of("tomcat", LIVELY, None), bias="none", threads=1)
    whole = list(predict_files(config, tmp_path, names, engine="local", keep=False))
    workers = [Predictor(for_encoding(config), torch.device("cpu")) for _ in range(2)]
    assert all(len(worker.pairs) == 0 and worker.stream is None for worker in workers)
    batches = [names[:32], names[32:]]
    encoded = [next(worker.photographs(tmp_path, [batch])) for worker, batch in zip(workers, batches, strict=True)]
    first = Predictor(config, torch.device("cpu"))
    assert [record for batch in encoded for record in first.named(batch)] == whole


@pytest.mark.parametrize("name", ["tomcat", "tda"])
def test_prediction_on_several_workers_is_one_stream(name, ray_local, copied, photos, tmp_path):
    folder, names = photos
    names = [*names, *names[::-1], *names[10:30]]  # several batches for each worker
    settings = LIVELY if name == "tomcat" else {}
    config = PredictConfig(run=str(copied.path), adapt=Plan.of(name, settings, None), bias="none", state=str(tmp_path / "one"))
    one = list(predict_files(config, folder, names, keep=False))
    two = list(predict_files(replace(config, state=str(tmp_path / "two")), folder, names, workers_per_node=2, keep=False))
    assert two == one
    still = list(predict_files(replace(config, adapt=None, state=None), folder, names, workers_per_node=2, keep=False))
    assert scores_of(two) != scores_of(still)
    ends = [load_file(tmp_path / file) for file in ("one", "two")]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.parametrize("open_world", [False, True])
def test_evaluation_on_several_workers_is_one_stream(open_world, ray_local, copied, monkeypatch, tmp_path):
    """With adapted validation images for the operating point, from features that all workers encode together."""
    eval_config = replace(PLAIN, open_world=open_world, feasibility="clip", adapt=Plan.of("tomcat", LIVELY))
    one = evaluate_run(copied, eval_config)
    assert one["auc"] != one["without_adaptation"]["auc"]
    other = Run(
        shutil.copytree(
            copied.path, tmp_path / "other", ignore=shutil.ignore_patterns("report-*", "extremes-*", "operating-point*")
        )
    )
    monkeypatch.setenv("CZSL_CACHE", str(tmp_path / "cache"))
    assert evaluate_run(other, eval_config, workers_per_node=2) == one
