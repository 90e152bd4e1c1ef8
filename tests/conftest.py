"""What tests of all packages share: a cache of their own, a small CLIP with random weights, a small label space, a small dataset."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))  # golden.py and snapshots.py, which tests of several packages share

# The same code gives the same verdict: drawn examples are fixed in `make test`, and new ones each time in `make test-all`.
# Neither has a deadline: a busy machine is no failure.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("drawn", deadline=None)
settings.load_profile("fixed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests of a local Ray are slow ones. They come first: Ray reads its mode of authentication once per process."""
    rays = [item for item in items if "ray_local" in getattr(item, "fixturenames", ())]
    for item in rays:
        item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item not in rays)


@pytest.fixture(scope="session", autouse=True)
def czsl_cache(tmp_path_factory):
    """Tests keep their caches in a folder of their own, in the processes they start as well."""
    before = os.environ.get("CZSL_CACHE")
    folder = tmp_path_factory.mktemp("cache")
    os.environ["CZSL_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["CZSL_CACHE"]
    else:
        os.environ["CZSL_CACHE"] = before


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference fixtures and data beside the repository."""
    folder = ROOT.parent / "shared"
    if not (folder / "fixtures").is_dir():
        pytest.skip("the reference fixtures (../shared) are not beside the repository")
    return folder


@pytest.fixture(scope="session")
def reference(shared):
    """Arrays of a reference fixture as tensors, by name; see its README."""
    import torch

    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(shared / "fixtures" / f"{name}.npz", allow_pickle=False) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    return load


@pytest.fixture(scope="session")
def open_clip_model():
    """A small CLIP as open_clip builds it; no weight is at its initial value, so that a wrong wire shows."""
    import torch

    from czsl.clip.compat import import_open_clip

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2}
        text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
        model = import_open_clip().CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text, quick_gelu=True)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def small_clip(open_clip_model):
    """The same as a `Clip`; shared by all tests, so never change it (copy it first)."""
    from czsl.clip.backbone import Clip

    return Clip(open_clip_model, "small")


@pytest.fixture(scope="session")
def small_space():
    """Six attributes, five objects; 14 of the 30 pairs are seen, val and test hold seen and unseen ones."""
    from czsl.compositions import CompositionSpace

    attributes = ("wet", "dry", "Faux.Leather", "old", "sliced", "hair_calf")
    objects = ("dog", "cat", "coffee_table", "Boots.Mid-Calf", "apple")
    pairs = np.array([(a, o) for a in range(6) for o in range(5) if (a + o) % 5 != 4])
    seen, unseen = pairs[:14], pairs[14:]
    return CompositionSpace(
        attributes, objects, seen, np.concatenate([seen[:4], unseen[:4]]), np.concatenate([seen[4:9], unseen[4:9]])
    )


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, czsl_cache):
    """A dataset of drawn images: the toy's space, one image of each pair of each split (140 images)."""
    from czsl.data.table import Record, write_dataset
    from czsl.data.toy import dataset as toy

    records = (Record(name, image, attr, obj, split) for name, attr, obj, split, image in toy.samples(scale=0.01))
    path = tmp_path_factory.mktemp("data") / "drawn"
    write_dataset(path, toy.space(), records, "drawn")
    return path
