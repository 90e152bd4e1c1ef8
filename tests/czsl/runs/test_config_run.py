"""The settings of a run: what they mean and what they refuse."""

import re
from dataclasses import fields

import pytest

from czsl.errors import UsageError
from czsl.runs.config import RunConfig
from czsl.runs.settings import typed


def test_the_learning_rate_falls_by_steps():
    config = RunConfig(lr=1e-3, lr_step=5, lr_gamma=0.5)
    rates = [config.learning_rate(epoch, 1) for epoch in range(12)]
    assert rates == [1e-3] * 5 + [5e-4] * 5 + [2.5e-4] * 2


def test_two_scheduler_steps_an_epoch_as_released():
    """lr * 0.5 ** floor(2 e / 5): it falls in the epochs 3, 5, 8, 10, ..."""
    config = RunConfig(lr=1.0, lr_step=5, lr_gamma=0.5, lr_steps_per_epoch=2)
    assert [config.learning_rate(e, 1) for e in range(11)] == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.0625]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", -1),
        ("batch", 0),
        ("eval_batch", 0),
        ("lr", -1e-4),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("weight_decay", -0.1),
        ("lr_step", 0),
        ("seed", -1),
        ("train_per_pair", -1),
        ("val_per_pair", -2),
        ("threads", -1),
    ],
)
def test_impossible_numbers_are_refused(name, value):
    with pytest.raises(UsageError, match=rf"^{name} is {value}"):
        RunConfig(**{name: value})


def test_an_unknown_precision_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"int8(.|\n)*float32, bfloat16, float64"):
        RunConfig(precision="int8")


def test_every_field_is_documented_and_can_be_set():
    described = set(re.findall(r"^    (\w+): ", RunConfig.__doc__ or "", re.MULTILINE))
    assert described == {f.name for f in fields(RunConfig)}
    assert set(RunConfig.field_names()) == described - {"model"}
    assert list(RunConfig().to_dict()) == [f.name for f in fields(RunConfig)]


@pytest.mark.parametrize("name", ["", "x", 3, "batchs", (1, 2)])
def test_a_name_that_no_setting_has_is_an_error_of_the_file(name):
    with pytest.raises(UsageError, match="unknown setting"):
        typed({"batch": 3, name: 1}, RunConfig)
