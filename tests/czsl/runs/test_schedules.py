"""Learning-rate schedules: plain formulas, their ends, and what cannot be meant."""

from __future__ import annotations

import math

import pytest

from czsl.errors import UsageError
from czsl.runs.config import RunConfig


@pytest.mark.parametrize(
    "settings", [{}, {"lr_step": 3, "lr_gamma": 0.1}, {"lr_step": 5, "lr_steps_per_epoch": 2}, {"lr_gamma": 1.0}]
)
def test_without_new_settings_a_step_has_the_rate_of_its_epoch_to_the_last_bit(settings):
    config = RunConfig(epochs=20, lr=3e-4, **settings)
    for step in range(20 * 7):
        epoch = step // 7
        assert config.learning_rate(step, 7) == config.lr * config.lr_gamma ** (
            epoch * config.lr_steps_per_epoch // config.lr_step
        )


def test_cosine_starts_with_the_full_rate_and_falls_to_nearly_nothing():
    config = RunConfig(epochs=4, lr=0.1, schedule="cosine")
    rates = [config.learning_rate(step, 5) for step in range(20)]
    for step, rate in enumerate(rates):
        assert rate == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * step / 20)), abs=1e-15)
    assert rates[0] == 0.1
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.5, 1, 1.3, 2.0])
def test_a_warm_up_rises_evenly_and_the_schedule_follows(schedule, warmup):
    config = RunConfig(epochs=4, lr=0.1, schedule=schedule, warmup=warmup, lr_step=100)
    rates, rising = [config.learning_rate(step, 10) for step in range(40)], warmup * 10
    first = math.ceil(rising) - 1
    for step in range(first):
        assert rates[step] == pytest.approx(0.1 * (step + 1) / rising)
    assert rates[first] == pytest.approx(0.1)
    assert all(0 < rate <= 0.1 for rate in rates)
    if schedule == "cosine":
        assert rates[first:] == sorted(rates[first:], reverse=True)
        assert rates[-1] < 0.1 * (1 - math.cos(math.pi * 1.5 / (40 - first))) / 2
    else:
        assert rates[first:] == [0.1] * (40 - first)


def test_a_constant_rate_never_falls():
    config = RunConfig(epochs=30, lr=0.1, schedule="constant", lr_step=1, lr_gamma=0.5)
    assert {config.learning_rate(step, 3) for step in range(90)} == {0.1}


def test_a_warm_up_as_long_as_the_training_still_reaches_the_full_rate():
    config = RunConfig(epochs=2, lr=0.1, schedule="cosine", warmup=2)
    assert config.learning_rate(2 * 5 - 1, 5) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"schedule": "cosin"}, "step, cosine, constant"),
        ({"warmup": 11.0}, "never reach its full value"),
        ({"warmup": -0.5}, "at least 0"),
        ({"warmup": math.nan}, "at least 0"),
        ({"warmup": math.inf}, "at least 0"),
        ({"accumulate": 0}, "at least 1"),
        ({"accumulate": 65}, "no more than 64 parts"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings, text):
    with pytest.raises(UsageError) as error:
        RunConfig(epochs=10, batch=64, **settings)
    assert text in str(error.value)
