"""compile=auto: where it compiles, what it falls back to, and a step that is equal to the plain one, dropout included."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from cluster.work import training
from cluster.work.comm import Group
from cluster.work.device_checks import step_of
from czsl.clip import compiled
from czsl.clip.compiled import PLAIN, Use, can_compile, compilable, compiled_functions, use_of
from czsl.errors import UsageError
from czsl.gpus import tell_once
from czsl.runs import checkpoint
from czsl.runs.config import RunConfig
from czsl_cli.config import resolve

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def czsl_config():
    """Settings from words of the command line."""
    return lambda words: resolve({"method": "csp"}, words)


@pytest.fixture
def noted(monkeypatch):
    """``torch.compile`` that only notes that its result was called."""
    seen = []

    def compile(function, **options):
        assert options["dynamic"]
        return lambda *args: seen.append(function.__name__) or function(*args)

    monkeypatch.setattr(compiled.torch, "compile", compile)
    return seen


def test_a_function_is_plain_unless_a_block_asks_and_gradients_are_computed(noted):
    @compilable
    def double(x):
        return 2 * x

    x = torch.ones(2, requires_grad=True)
    double(x)
    with compiled_functions(False):
        double(x)
    with compiled_functions(), torch.no_grad():
        double(x)
    assert noted == []
    with compiled_functions():
        assert torch.equal(double(x), 2 * x)
        double(x)
    double(x)
    assert noted == ["double", "double"]


def test_auto_is_for_gpus_and_activations_that_are_kept(monkeypatch):
    monkeypatch.setattr(compiled, "can_compile", lambda device: True)
    assert use_of("auto", CUDA, recomputes=False) == Use(True, True)
    assert use_of("off", CUDA, recomputes=False) == PLAIN
    assert "for GPUs" in use_of("auto", CPU, recomputes=False).note
    assert "checkpoint_blocks" in use_of("auto", CUDA, recomputes=True).note
    monkeypatch.setattr(compiled, "can_compile", lambda device: False)
    assert use_of("auto", CUDA, recomputes=False)[:2] == (False, True)
    with pytest.raises(UsageError, match="unknown way to compile"):
        RunConfig(compile="yes")
    assert RunConfig().compile == "off"


@pytest.mark.parametrize("word", ["off", "auto"])
def test_the_setting_is_typed_as_the_guide_has_it(czsl_config, word):
    config = czsl_config([f"compile={word}"])
    assert config.compile == word
    assert RunConfig.from_file(yaml.safe_load(yaml.safe_dump(config.to_dict()))).compile == word


def test_other_words_are_refused_with_the_choices(czsl_config):
    for word in ("yes", "on", "fast"):
        with pytest.raises(UsageError, match="choose one of off, auto"):
            czsl_config([f"compile={word}"])


def test_a_compiler_that_fails_is_told_once_and_leaves_the_step_as_it_is(monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("cannot find a C compiler\nand more")

    tell_once.cache_clear()
    monkeypatch.setattr(compiled.torch, "compile", broken)
    monkeypatch.setattr(compiled, "_sample", compilable(lambda layer, x: layer(x)))
    state = torch.get_rng_state()
    assert not can_compile(CPU)
    assert not can_compile(CPU)
    assert [r.getMessage().count("cannot find a C compiler") for r in caplog.records] == [1]
    assert torch.equal(torch.get_rng_state(), state)
    assert not use_of("auto", CUDA, recomputes=False).compiled


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clusPro", "troika", "csp"])
def test_a_compiled_step_is_the_plain_one(name):
    if not can_compile(CPU):
        pytest.skip("torch.compile does not work here")
    for precision, most in (("float32", 1e-5), ("bfloat16", 5e-2)):
        (terms, gradient), (plain_terms, plain_gradient) = (step_of(name, CPU, precision, c) for c in (True, False))
        assert torch.allclose(terms, plain_terms, rtol=most, atol=most)
        assert torch.nn.functional.cosine_similarity(gradient, plain_gradient, dim=0) > 1 - most


@pytest.mark.slow
def test_a_compiled_training_draws_the_same_and_goes_on_bit_for_bit(make_run, stopped_after, monkeypatch):
    """With dropout and augmentation; stopped in the middle of an epoch; its losses are those of a plain training."""
    if not can_compile(CPU):
        pytest.skip("torch.compile does not work here")
    settings = {"method": "troika", "adapter_dim": 8, "epochs": 2, "batch": 24}
    plain, whole, broken = make_run(**settings), make_run(**settings, compile="auto"), make_run(**settings, compile="auto")
    assert training.train_worker(plain, Group(), CPU) == "done"
    monkeypatch.setattr(training, "use_of", lambda setting, *_: Use(compiled=setting == "auto"))
    torch._dynamo.reset()  # each process compiles anew, here one that trains from start to end
    assert training.train_worker(whole, Group(), CPU) == "done"
    stopped_after(broken, 2)
    torch._dynamo.reset()  # and one that resumes, which meets the sizes in another order
    assert training.train_worker(broken, Group(), CPU) == "done"
    losses = [[r["loss"] for r in run.metrics("step")] for run in (plain, whole, broken)]
    assert losses[1] == losses[2]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    ends = [checkpoint.load(checkpoint.find(run.checkpoints, "last")) for run in (whole, broken)]
    assert all(torch.equal(ends[0].method[key], ends[1].method[key]) for key in ends[0].method)


@pytest.mark.slow
def test_counting_operations_leaves_a_compiled_step_plain():
    if not can_compile(CPU):
        pytest.skip("torch.compile does not work here")
    plain = step_of("csp", CPU, "float32")[0]
    with FlopCounterMode(display=False):
        assert torch.equal(step_of("csp", CPU, "float32", compiled=True)[0], plain)
