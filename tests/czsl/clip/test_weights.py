"""Weight files from outside: what is read, what is refused and never run, and what happens without a network."""

import os
import pickle
import socket
import time

import pytest
import torch
from safetensors.torch import save_file

from czsl.clip import weights
from czsl.clip.compat import import_open_clip
from czsl.clip.weights import fetch, is_path, read_state
from czsl.errors import SetupError, UsageError


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "visual.proj": torch.randn(4, 3, generator=generator).half(),
        "ln_final.weight": torch.randn(5, generator=generator),
        "context_length": torch.tensor(77),
    }


@pytest.mark.parametrize("form", ["safetensors", "plain", "legacy", "checkpoint", "parallel"])
def test_every_harmless_form_gives_the_same_float32_tensors(tmp_path, state, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "checkpoint":
        torch.save({"epoch": 3, "name": "x", "state_dict": state}, path)
    elif form == "parallel":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "plain")
    read = read_state(path)
    assert read.keys() == state.keys()
    for key, value in state.items():
        assert read[key].dtype == (torch.float32 if value.is_floating_point() else value.dtype)
        torch.testing.assert_close(read[key], value.to(read[key].dtype), rtol=0, atol=0)


class Malicious:
    """Unpickling this makes a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["torch", "pickle", "nested"])
def test_a_pickle_is_refused_and_never_run(tmp_path, state, form):
    marker, path = tmp_path / "executed", tmp_path / "w.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Malicious(marker)))
    else:
        torch.save({"state_dict": state, "extra": Malicious(marker)} if form == "nested" else Malicious(marker), path)
    with pytest.raises(UsageError, match="nothing is unpickled"):
        read_state(path)
    assert not marker.exists()
    if form != "pickle":  # the file would have done it
        torch.load(path, weights_only=False)
        assert marker.exists()


@pytest.fixture
def archive(tmp_path):
    """A TorchScript archive with one weight."""
    module = torch.nn.Linear(2, 2, bias=False)
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(module), str(path))
    return path, module.weight.detach()


def test_an_unknown_torchscript_archive_is_not_opened(archive, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("opened"))
    with pytest.raises(UsageError, match="TorchScript archive that OpenAI did not publish"):
        read_state(archive[0])


def test_a_published_archive_is_read(archive, monkeypatch):
    path, weight = archive
    monkeypatch.setattr(weights, "_published_hashes", lambda: {weights.hashlib.sha256(path.read_bytes()).hexdigest()})
    torch.testing.assert_close(read_state(path), {"weight": weight})


def test_the_published_hashes_are_known():
    hashes = weights._published_hashes()
    assert "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836" in hashes  # ViT-L/14
    assert all(len(h) == 64 for h in hashes)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("w.safetensors", b"junk", "is not a safetensors file"),
        ("w.pt", b"", "cannot be read as CLIP weights"),
        ("w.pt", b"junk", "cannot be read as CLIP weights"),
        ("w.pt", b"PK\x03\x04" + b"\0" * 100, "cannot be read as CLIP weights"),
        ("w.pt", b"\0" * 40 + b"PK\x05\x06" + b"\xff" * 18, "cannot be read as CLIP weights"),
    ],
)
def test_junk_is_refused(tmp_path, name, content, named):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=named):
        read_state(tmp_path / name)


def test_a_file_without_a_mapping_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "w.pt")
    with pytest.raises(UsageError, match="it holds a Tensor"):
        read_state(tmp_path / "w.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no CLIP weights at .*absent\.pt"):
        read_state(tmp_path / "absent.pt")


@pytest.mark.parametrize("text", ["a.pt", "w.safetensors", "folder/file", "./x"])
def test_paths(text):
    assert is_path(text)


@pytest.mark.parametrize("text", ["tiny", "ViT-L-14", "openai", "laion2b_s32b_b82k"])
def test_names(text):
    assert not is_path(text)


@pytest.fixture
def offline(monkeypatch):
    """No network and an empty cache; returns the hosts that were tried."""
    tried = []

    def refuse(address, *args, **kwargs):
        tried.append(address[0])
        raise OSError("no route to host")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(weights, "_cached", lambda config: None)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    import_open_clip()
    from open_clip import pretrained

    monkeypatch.setattr(pretrained, "download_pretrained", lambda *args, **kwargs: pytest.fail("tried to download"))
    return tried


def test_without_a_network_the_error_comes_at_once_and_says_how_to_supply_a_file(offline):
    began = time.monotonic()
    with pytest.raises(SetupError) as error:
        fetch("ViT-L-14", "openai")
    assert time.monotonic() - began < 3
    assert offline == ["huggingface.co"]  # once: no retries
    assert error.value.exit_code == 4
    assert "no route to host" in error.value.why
    # OpenAI's weights want QuickGELU, which a file does not tell: the model's name must.
    assert "--clip ViT-L-14-quickgelu --clip-weights" in error.value.fix


def test_other_weights_keep_the_model_they_belong_to(offline):
    with pytest.raises(SetupError) as error:
        fetch("ViT-L-14", "laion2b_s32b_b82k")
    assert "--clip ViT-L-14 --clip-weights" in error.value.fix


def test_cached_weights_need_no_network(monkeypatch, tmp_path):
    import huggingface_hub

    def lookup(repository, file):
        assert repository == "timm/vit_large_patch14_clip_224.openai"
        return str(tmp_path / file) if file == "open_clip_model.safetensors" else None

    monkeypatch.setattr(socket, "create_connection", lambda *args, **kwargs: pytest.fail("asked the network"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lookup)
    assert fetch("ViT-L-14", "openai") == tmp_path / "open_clip_model.safetensors"


def test_a_failing_download_is_one_clear_error(monkeypatch):
    import_open_clip()
    from open_clip import pretrained

    def fail(config):
        raise RuntimeError("")  # an error without a text, too

    monkeypatch.setattr(weights, "_cached", lambda config: None)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr(pretrained, "download_pretrained", fail)
    with pytest.raises(SetupError, match="RuntimeError"):
        fetch("ViT-B-16", "openai")
