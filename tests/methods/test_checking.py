"""What a run needs of its CLIP is checked when it is made; methods that need features only take models of any family."""

import json

import pytest
import torch

from czsl.clip.compat import import_open_clip
from czsl.clip.loading import load_clip
from czsl.compositions import CompositionSpace
from czsl.errors import SetupError, UsageError
from czsl.runs.config import RunConfig
from methods.building import build
from methods.checking import check_clip

ABLE = {"zero-shot": {}, "lazsl": {"num_regions": 2}, "comclip": {"regions": "grid"}, "clip-pzsl": {}}


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """The name of a small ResNet CLIP with a sigmoid's bias."""
    folder = tmp_path_factory.mktemp("configs")
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 32, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 32}, "text_cfg": text}
    (folder / "czsl-closed.json").write_text(json.dumps({**config, "init_logit_bias": -3}))
    import_open_clip().add_model_config(folder)
    return "czsl-closed"


@pytest.mark.parametrize("name", ABLE)
def test_methods_that_need_features_only(closed, small_space, name):
    from PIL import Image

    method = build(name, small_space, load_clip(closed, "random", features=True), ABLE[name]).eval()
    picture = Image.linear_gradient("L").convert("RGB")
    (record,) = method.predict([picture], k=2)
    assert len(record["predictions"]) == 2
    pairs = torch.tensor(small_space.closed_pairs[:16])
    with torch.inference_mode():
        scores = method.score_images(torch.from_numpy(method.clip.pixels(picture))[None], pairs)
    assert torch.isfinite(scores).all()
    if name == "zero-shot":
        cosines = scores - method.clip.logit_bias
        assert float(method.clip.logit_bias) == -3
        assert (cosines.abs() <= method.clip.logit_scale + 1e-4).all()


@pytest.mark.parametrize(
    ("name", "model"), [("csp", {}), ("clusPro", {}), ("troika", {}), ("msci", {}), ("comclip", {"regions": "patch"})]
)
def test_the_others_refuse(closed, small_space, name, model):
    with pytest.raises(UsageError):
        check_clip(RunConfig(method=name, clip=closed, clip_weights="random", model=model), small_space)
    with pytest.raises(UsageError, match="cannot use"):
        build(name, small_space, load_clip(closed, "random", features=True), model)


def test_what_is_missing_is_told_when_the_run_is_made(closed, small_space, tmp_path, monkeypatch):
    def check(**settings):
        return check_clip(RunConfig(method="zero-shot", **settings), small_space)

    assert check(clip=closed, clip_weights="random") == []
    (tmp_path / "w.pt").write_bytes(b"junk")
    for clip in ("none.pt", "w.pt"):
        with pytest.raises(UsageError):
            check(clip=str(tmp_path / clip))
    import socket

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("czsl.clip.weights._cached", lambda config: None)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SetupError, match="cannot download RN50"):
        check(clip="RN50")


def test_names_that_are_cut_are_listed(closed):
    long = "very " * 30 + "wet"
    space = CompositionSpace.from_json(
        {"attributes": [long, "dry"], "objects": ["dog"], "train_pairs": [[long, "dog"], ["dry", "dog"]]}
    )
    (note,) = check_clip(RunConfig(method="zero-shot", clip=closed, clip_weights="random"), space)
    assert "cut at the 16 tokens" in note
    assert note.startswith("1 names")
