"""Which GPUs torch can use, and what is said if they are not those of the machine or of CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import pytest
import torch
from pretended import ERROR, TOO_OLD, pretend

from czsl import gpus
from czsl.errors import SetupError

CARDS = ("GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-11111111)", "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-22222222)")
SLICES = (
    CARDS[0],
    "  MIG 3g.20gb     Device  0: (UUID: MIG-aaaaaaaa)",
    "  MIG 3g.20gb     Device  1: (UUID: MIG-bbbbbbbb)",
)


def test_a_gpu_that_works_needs_no_words(monkeypatch, caplog):
    pretend(monkeypatch, 2)
    assert (gpus.gpus(), gpus.own_device()) == (2, torch.device("cuda"))
    assert gpus.find() == gpus.Gpus(2)
    assert not caplog.messages


@pytest.mark.parametrize("build", [None, "12.8"])
@pytest.mark.parametrize("visible", [None, "", "-1"])
def test_a_machine_without_cards_needs_no_words(monkeypatch, caplog, build, visible):
    pretend(monkeypatch, 0, build=build, card=False, visible=visible)
    assert (gpus.gpus(), gpus.own_device()) == (0, torch.device("cpu"))
    assert gpus.find() == gpus.Gpus(0)
    assert not caplog.messages


def test_a_build_for_cpus_next_to_a_card_is_said_once(monkeypatch, caplog):
    pretend(monkeypatch, 0, build=None)
    assert [gpus.gpus() for _ in range(3)] == [0, 0, 0]
    (said,) = caplog.messages
    assert "has an NVIDIA GPU, but the CPU is used" in said
    assert "is a build for CPUs" in said
    assert "pip install" in said


def test_nvidia_smi_alone_shows_that_there_is_a_card(monkeypatch, caplog):
    pretend(monkeypatch, 0, build=None, card=False, listed=CARDS)
    assert gpus.own_device().type == "cpu"
    assert "the CPU is used" in caplog.text


@pytest.mark.parametrize(
    ("trouble", "why", "fix"),
    [
        (TOO_OLD, "driver on your system is too old (found version 11040).", "update the NVIDIA driver"),
        (ERROR.format("804: forward compatibility was attempted on non supported HW"), "Error 804: forward", "container"),
        (ERROR.format("803: system has unsupported display driver / cuda driver combination"), "Error 803: system", "restart"),
        (ERROR.format("802: system not yet initialized"), "Error 802", "nvidia-fabricmanager"),
        (ERROR.format("999: unknown error"), "Error 999: unknown error", "nvidia_uvm"),
        (ERROR.format("46: all CUDA-capable devices are busy"), "Error 46: all CUDA-capable devices are busy", "nvidia-smi"),
    ],
)
def test_a_driver_that_does_not_work_is_an_error_with_a_way_out(monkeypatch, trouble, why, fix):
    pretend(monkeypatch, 0, trouble=trouble)
    for ask in (gpus.gpus, gpus.own_device):
        with pytest.raises(SetupError) as error:
            ask()
        assert "cannot use this machine's GPU" in error.value.what
        assert "CUDA 12.8" in error.value.what
        assert error.value.why.startswith(why) or why in error.value.why
        assert "http" not in error.value.why
        assert fix in error.value.fix
        assert "CUDA_VISIBLE_DEVICES= (empty)" in error.value.fix


def test_what_torch_said_before_is_said_again(monkeypatch):
    """Torch warns once per process; later looks get the reason from its initialisation."""
    pretend(monkeypatch, 0, trouble=TOO_OLD)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SetupError, match="cannot use"):
        gpus.gpus()


def test_the_way_out_works(monkeypatch, caplog):
    pretend(monkeypatch, 0, trouble=TOO_OLD, visible="")
    assert gpus.own_device() == torch.device("cpu")
    (said,) = caplog.messages
    assert said == "the CPU is used: CUDA_VISIBLE_DEVICES is empty, which hides this machine's GPUs"


@pytest.mark.parametrize(
    ("visible", "count"),
    [("7", 0), ("0,7", 1), ("0,0", 0), ("GPU-deadbeef", 0), ("first", 0), ("0,,1", 1), ("MIG-cccc", 0)],
)
def test_a_value_that_names_no_card_is_an_error_with_the_cards(monkeypatch, visible, count):
    pretend(monkeypatch, count, visible=visible, listed=CARDS)
    with pytest.raises(SetupError) as error:
        gpus.gpus()
    assert f"CUDA_VISIBLE_DEVICES={visible}" in error.value.what
    assert "GPU-22222222" in error.value.why
    assert f"torch finds {count} of" in error.value.why


def test_without_nvidia_smi_the_error_says_so(monkeypatch):
    pretend(monkeypatch, 0, card=False, visible="3")
    with pytest.raises(SetupError, match="nvidia-smi lists no GPU"):
        gpus.gpus()


@pytest.mark.parametrize(("visible", "count"), [("1", 1), ("1,0", 2), ("0,-1,1", 1), (" 0 , 1 ", 2), ("GPU-11111111", 1)])
def test_values_that_name_cards(monkeypatch, caplog, visible, count):
    pretend(monkeypatch, count, visible=visible, listed=CARDS)
    assert gpus.gpus() == count
    assert not caplog.messages


def test_a_value_for_a_build_for_cpus_is_a_warning(monkeypatch, caplog):
    pretend(monkeypatch, 0, build=None, card=False, visible="0")
    assert gpus.gpus() == 0
    assert "CUDA_VISIBLE_DEVICES=0 names a GPU, but the CPU is used" in caplog.text


@pytest.mark.parametrize(
    ("visible", "rest"),
    [(None, "1 more is not used"), ("MIG-aaaaaaaa", "1 more is not used"), ("MIG-aaaaaaaa,MIG-bbbbbbbb", "1 more is not used")],
)
def test_of_several_slices_the_used_one_is_named(monkeypatch, caplog, visible, rest):
    pretend(monkeypatch, 1, visible=visible, name="NVIDIA A100-SXM4-40GB MIG 3g.20gb", listed=SLICES)
    assert gpus.gpus() == 1
    (said,) = caplog.messages
    assert "computing on a slice (MIG) of a GPU: NVIDIA A100-SXM4-40GB MIG 3g.20gb" in said
    assert rest in said
    assert ("MIG-aaaaaaaa" in said) == (visible is not None)


def test_amd_has_a_variable_of_its_own(monkeypatch):
    pretend(monkeypatch, 1, build=None, card=False, name="AMD Instinct MI300X")
    monkeypatch.setattr(torch.version, "hip", "6.2")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    assert gpus.find() == gpus.Gpus(1)
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1,9")
    assert gpus.find().what == "HIP_VISIBLE_DEVICES=1,9 names GPUs that are not there"


def test_a_card_that_refuses_the_first_contact_is_an_error(monkeypatch):
    pretend(monkeypatch)

    def busy(device=0):
        raise RuntimeError(
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
        )

    monkeypatch.setattr(torch.cuda, "mem_get_info", busy)
    with pytest.raises(SetupError) as error:
        gpus.own_device()
    assert error.value.why == "CUDA error: out of memory"
    assert "nvidia-smi" in error.value.fix


def test_a_listing_that_hangs_or_fails_is_none(monkeypatch):
    pretend(monkeypatch, listed=CARDS)
    assert gpus.cards_there() == list(CARDS)

    def fails(*_, **__):
        raise gpus.subprocess.TimeoutExpired("nvidia-smi", 1)

    monkeypatch.setattr(gpus.subprocess, "run", fails)
    assert gpus.cards_there() == []
