"""A method decodes files as its run did: in `load`, on other labels, and in prediction."""

import numpy as np
from PIL import Image

from czsl.clip.loading import load_clip
from czsl.data.photographs import AS_SHOWN, AS_STORED
from czsl.data.toy import dataset as toy
from czsl.runs.config import RunConfig
from czsl.runs.run import Run
from methods import load
from methods.building import build


def test_prediction_follows_the_run(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    drawing = toy.draw("red", "apple", seed=3)
    drawing.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    drawing.save(tmp_path / "upright.png")
    answers = {}
    for options in (AS_SHOWN, AS_STORED):
        config = RunConfig(method="zero-shot")
        config.remember(options)
        method = load(Run.create(config, toy.space(), tmp_path, options.orientation))
        assert method.decode == options
        assert method.for_space(toy.space()).decode == options
        turned, upright = method.predict([tmp_path / "turned.png", str(tmp_path / "upright.png")])
        answers[options] = (turned == upright, upright)
    assert answers[AS_SHOWN][0]
    assert not answers[AS_STORED][0]
    assert answers[AS_SHOWN][1] == answers[AS_STORED][1]


def test_without_a_run_photographs_are_upright():
    method = build("zero-shot", toy.space(), load_clip("tiny", None), {})
    assert method.decode == AS_SHOWN
    assert np.asarray(method.space.closed_pairs).shape[1] == 2
