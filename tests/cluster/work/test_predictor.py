"""What one worker answers does not depend on how many images share its batch."""

from __future__ import annotations

import json

import pytest
import torch

from cluster.work.predictor import BATCH, HALF, PredictConfig, Predictor
from czsl.data.toy import dataset as toy


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(BATCH):
        toy.draw(toy.ATTRIBUTES[i % 5], toy.OBJECTS[i % 7], seed=i).save(folder / f"{i:02d}.png")
    return folder


@pytest.mark.parametrize("config", [PredictConfig(space=toy.space().to_json(), open_world=True)], ids=["zero-shot"])
def test_few_images_have_the_digits_that_they_have_among_many(photos, config):
    predictor = Predictor(config, torch.device("cpu"))
    names = sorted(p.name for p in photos.iterdir())
    whole = {r["image"]: json.dumps(r) for r in predictor.predict(photos, names)}
    for count in (1, 5, 12, HALF, HALF + 1):
        for record in predictor.predict(photos, names[:count]):
            assert json.dumps(record) == whole[record["image"]], (count, record["image"])


def test_few_images_cost_half_a_batch(photos):
    predictor, seen = Predictor(PredictConfig(space=toy.space().to_json()), torch.device("cpu")), []
    encode = predictor.method.image_features
    predictor.method.image_features = lambda batch: seen.append(len(batch["images"])) or encode(batch)
    names = sorted(p.name for p in photos.iterdir())
    for count in (1, 12, HALF, HALF + 1, BATCH):
        predictor.predict(photos, names[:count])
    assert seen == [HALF, HALF, HALF, BATCH, BATCH]
