"""What a search may try: reading it, drawing from it, and refusing what makes no sense."""

from __future__ import annotations

import math

import numpy as np
import pytest
import yaml

from czsl.errors import UsageError
from czsl.runs.config import RunConfig
from czsl.runs.search import Domain, grid, parse_space, sample, with_values
from methods.clus_pro.config import ClusProConfig
from methods.presets import load_search
from methods.registry import METHODS, method_class

TEXT = """
lr: {loguniform: [1e-5, 1e-2]}
num_prototypes: {choice: [3, 5, 8]}
pcl_weight: {uniform: [0, 1]}
batch: {quniform: [32, 128, 32]}
seed: {randint: [0, 4]}
pdl_terms: {choice: [[1, 1], [1, 0.5]]}
precision: {choice: [float32, bfloat16]}
"""


def read(text):
    return parse_space(yaml.safe_load(text), "clusPro", ClusProConfig)


def test_every_kind_is_read_with_the_types_of_the_settings():
    space = read(TEXT)
    assert space["lr"] == Domain("loguniform", (1e-5, 1e-2))  # YAML reads 1e-5 as a text
    assert space["batch"].values() == [32, 64, 96, 128]
    assert all(type(v) is int for v in space["batch"].values())
    assert space["seed"].values() == [0, 1, 2, 3, 4]  # both ends
    assert space["pdl_terms"].values() == [[1.0, 1.0], [1.0, 0.5]]
    assert read("search:\n  lr: {choice: [1e-4, 1]}")["lr"].values() == [1e-4, 1.0]
    assert read("pcl_weight: {quniform: [0, 0.3, 0.1]}")["pcl_weight"].values() == [0.0, 0.1, 0.2, 0.3]
    assert read("pcl_weight: {quniform: [0, 1, 0.4]}")["pcl_weight"].values() == [0.0, 0.4, 0.8]


def test_a_trial_is_a_function_of_seed_and_number():
    space = read(TEXT)
    first = [sample(space, 3, n) for n in range(20)]
    assert [sample(space, 3, n) for n in reversed(range(20))] == first[::-1]
    assert len({str(v) for v in first}) == 20
    assert sample(space, 4, 0) != first[0]
    # Another setting more or less changes nothing for the others.
    assert sample({"lr": space["lr"]}, 3, 7)["lr"] == first[7]["lr"]


def test_draws_fill_their_domains_evenly():
    space = read(TEXT)
    drawn = [sample(space, 0, n) for n in range(600)]
    logs = np.log10([d["lr"] for d in drawn])
    assert logs.min() >= -5
    assert logs.max() <= -2
    np.testing.assert_allclose(np.histogram(logs, bins=3, range=(-5, -2))[0], 200, atol=45)
    np.testing.assert_allclose(np.histogram([d["pcl_weight"] for d in drawn], bins=3, range=(0, 1))[0], 200, atol=45)
    for name in ("num_prototypes", "batch", "seed", "pdl_terms"):
        counts = [sum(d[name] == v for d in drawn) for v in space[name].values()]
        np.testing.assert_allclose(counts, 600 / len(counts), rtol=0.3)


def test_numbers_are_short_and_within_the_ends():
    domain = Domain("uniform", (0.123456, 0.123459))
    for n in range(10):
        assert 0.123456 <= sample({"pcl_weight": domain}, 0, n)["pcl_weight"] <= 0.123459
    for n in range(10):
        assert len(f"{sample({'lr': Domain('loguniform', (1e-5, 1e-2))}, 0, n)['lr']:e}".split("e")[0].rstrip("0")) <= 5


def test_a_grid_holds_every_point_once_in_an_order_of_the_seed():
    space = read("num_prototypes: {choice: [3, 5, 8]}\nbatch: {quniform: [32, 64, 32]}\nseed: {randint: [0, 1]}")
    points = grid(space, 0)
    assert len({tuple(p.values()) for p in points}) == len(points) == 12
    assert grid(space, 0) == points
    assert grid(space, 1) != points
    with pytest.raises(UsageError, match="lr: a grid needs countable"):
        grid(read("lr: {uniform: [0, 1]}"), 0)
    with pytest.raises(UsageError, match="points"):
        grid(read("seed: {randint: [0, 99999]}\nnum_prototypes: {choice: [1, 2, 3]}"), 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing to search"),
        ("[1, 2]", "nothing to search"),
        ("search: {}", "nothing to search"),
        ("lrr: {uniform: [0, 1]}", "'lr'"),
        ("momentun: {uniform: [0, 1]}", "'momentum'"),
        ("5: {uniform: [0, 1]}", "unknown setting '5'"),
        ("lr: 0.1", "lr=VALUE"),
        ("lr: {uniform: [0, 1], choice: [1]}", "not a set of values"),
        ("lr: {logunifrom: [1, 2]}", "'loguniform'"),
        ("lr: {uniform: 3}", "wants a list"),
        ("lr: {uniform: [0]}", "low and high"),
        ("lr: {uniform: [0, 1, 2]}", "low and high"),
        ("lr: {uniform: [1, 0]}", "low must be below high"),
        ("lr: {uniform: [0, .inf]}", "finite"),
        ("lr: {uniform: [0, .nan]}", "finite"),
        ("lr: {uniform: [a, b]}", "finite"),
        ("lr: {uniform: [false, true]}", "finite"),
        ("lr: {loguniform: [0, 1]}", "above 0"),
        ("lr: {quniform: [0, 1]}", "a step"),
        ("lr: {quniform: [0, 1, 0]}", "above 0"),
        ("epochs: {randint: [1, 2.5]}", "whole"),
        ("epochs: {uniform: [1, 5]}", "expected int"),
        ("epochs: {quniform: [1, 2, 0.5]}", "expected int"),
        ("epochs: {choice: [1, two]}", "expected int"),
        ("precision: {choice: []}", "at least one choice"),
        ("num_prototypes: {choice: [3, 3]}", "each once"),
        ("solver: {choice: [log, kernal]}", "choose one of"),
        ("augment: {uniform: [0, 1]}", "expected bool"),
        ("method: {choice: [csp, clusPro]}", "cannot be searched"),
        ("recipe: {choice: [small, cgqa]}", "cannot be searched"),
    ],
)
def test_what_makes_no_search_is_refused_with_a_word_of_help(text, said):
    with pytest.raises(UsageError) as error:
        read(text)
    assert said in str(error.value)


def test_values_become_the_settings_of_a_run():
    base = RunConfig(model={"num_prototypes": 5})
    config = with_values(base, {"lr": 0.5, "num_prototypes": 3, "pdl_terms": [1, 0.5]}, ClusProConfig)
    assert (config.lr, config.model["num_prototypes"], config.model["pdl_terms"]) == (0.5, 3, (1.0, 0.5))
    assert config.epochs == base.epochs
    assert base.model == {"num_prototypes": 5}
    with pytest.raises(UsageError, match="between 0 and 1"):
        with_values(base, {"momentum": 1.5}, ClusProConfig)


@pytest.mark.parametrize("method", [m for m in METHODS if load_search(m)])
def test_what_methods_suggest_can_be_searched(method):
    space = parse_space(load_search(method), method, method_class(method).Config)
    for number in range(20):
        with_values(RunConfig(method=method), sample(space, 0, number), method_class(method).Config)


def test_log_draws_are_uniform_in_the_logarithm():
    low, high = 2e-4, 3e-1
    drawn = [sample({"lr": Domain("loguniform", (low, high))}, 0, n)["lr"] for n in range(400)]
    assert np.mean(np.log(drawn)) == pytest.approx((math.log(low) + math.log(high)) / 2, abs=0.35)


@pytest.mark.parametrize("name", ["batch", "seed", "pdl_terms", "num_prototypes", "precision"])
def test_countable_values_have_places(name):
    domain = read(TEXT)[name]
    assert [domain.place(v) for v in domain.values()] == list(range(domain.count))


def test_a_range_without_end_in_sight_costs_nothing():
    space = read("seed: {randint: [0, 1000000000000]}\npcl_weight: {quniform: [0, 1, 1e-12]}")
    assert 0 <= sample(space, 0, 0)["pcl_weight"] <= 1
    with pytest.raises(UsageError, match="points"):
        grid(space, 0)
