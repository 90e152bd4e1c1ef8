"""LaZSL with regions from a file: the boxes that were given and no others, at most so many, and what does not fit is said."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from czsl.data.files.regions import notes_on, read_regions
from czsl.data.pixels import clip_pixels
from czsl.data.table import Dataset
from czsl.errors import DataError, UsageError
from methods.building import build
from methods.lazsl.config import LaZSLConfig
from methods.lazsl.regions import regions_key

BOXES = {
    "two.jpg": [[0, 0, 40, 40], [30.5, 10, 90, 60]],
    "one.jpg": [[5, 5, 50, 60], [500, 500, 600, 600]],
    "none.jpg": [],
    "three.jpg": [[0, 0, 10, 10], [0, 0, 20, 20], [0, 0, 30, 30]],
}


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 90, 3), dtype=np.uint8))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(BOXES))
    return path


@pytest.fixture
def method(small_clip, small_space, file):
    settings = {"regions": "file", "regions_file": str(file), "select": False}
    return build("lazsl", small_space, small_clip, settings).eval()


def scores_of(method, images):
    prepared = [method.prepare(image, name) for name, image in images.items()]
    batch = {key: torch.stack([p[key] for p in prepared]) for key in prepared[0]}
    with torch.no_grad():
        encoded = method.encode_images(batch)
        return encoded, method.scores(encoded, method.encode_compositions(torch.from_numpy(method.space.closed_pairs)))


def test_an_image_is_scored_by_its_own_boxes_in_any_company(method, small_clip, small_space):
    images = {name: picture(i) for i, name in enumerate([*BOXES, "strange.jpg"])}
    assert method.config.max_per_image == 3
    encoded, together = scores_of(method, images)
    assert encoded.mass.gt(0).sum(1).tolist() == [2, 1, 1, 3, 1]
    for row, (name, image) in enumerate(images.items()):
        torch.testing.assert_close(scores_of(method, {name: image})[1][0], together[row], rtol=1e-5, atol=1e-5)
        boxes = BOXES.get(name, [])
        explained = method.explain(image, ("wet", "dog"), name)
        given = method.explain(image, ("wet", "dog"), name, boxes=[b for b in boxes if b[0] < 90])
        assert explained.boxes.tolist() == given.boxes.tolist()
        assert explained.score == pytest.approx(given.score, abs=1e-9)
        column = small_space.locate(np.array([[0, 0]]), small_space.closed_pairs)[0]
        assert float(together[row, column]) == pytest.approx(explained.score * explained.logit_scale, abs=1e-4)
    assert "1 regions lie outside the image" in method.explain(images["one.jpg"], ("wet", "dog"), "one.jpg").notes[0]
    # Without a box the whole image is the only region.
    whole = build("lazsl", small_space, small_clip, {"num_regions": 0}).eval()
    torch.testing.assert_close(scores_of(whole, {"none.jpg": images["none.jpg"]})[1][0], together[2], rtol=1e-5, atol=1e-5)


def test_views_are_crops_of_the_boxes(method, small_clip):
    image = picture(0)
    views = method.prepare(image, "folder/two.jpg")  # by the file's name too
    assert views["present"].tolist() == [True, True, False]
    for box, view in zip([(0, 0, 40, 40), (30, 10, 90, 60)], views["regions"], strict=False):
        assert np.array_equal(view.numpy(), clip_pixels(image.crop(box), small_clip.image_size))


def test_a_selection_looks_at_the_regions_that_are_there(small_clip, small_space, file):
    method = build("lazsl", small_space, small_clip, {"regions": "file", "regions_file": str(file)}).eval()
    image = picture(0)
    encoded, _ = scores_of(method, {"two.jpg": image})
    likeness = [float(x) for x in _cosines(small_clip, image, [(0, 0, 40, 40), (30, 10, 90, 60)])]
    assert encoded.kept[0].tolist() == [x >= np.mean(likeness) - 1e-6 for x in likeness] + [False]


def _cosines(clip, image, boxes):
    views = np.stack([clip_pixels(part, clip.image_size) for part in (image, *(image.crop(b) for b in boxes))])
    with torch.no_grad():
        features = torch.nn.functional.normalize(clip.visual(clip.normalise(torch.from_numpy(views))), dim=1)
    return features[1:] @ features[0]


def test_at_most_so_many_and_the_best_scores_first():
    records = [{"image": "a", "regions": [{"box": [0, 0, i, i], "score": s} for i, s in ((5, 0.1), (6, 0.9), (7, 0.5))]}]
    config = LaZSLConfig(regions="file", regions_file=records, num_regions=2)
    assert config.max_per_image == 2
    assert config.table.of("a").boxes((50, 50), 2)[0].tolist() == [[0, 0, 6, 6], [0, 0, 7, 7]]
    mask = {"size": [4, 6], "counts": [5, 2, 2, 2, 13]}  # columns 1 and 2, rows 1 and 2
    masked = LaZSLConfig(regions="file", regions_file=[{"image": "a", "regions": [{"mask": mask}]}])
    assert masked.table.of("a").boxes((6, 4), 9)[0].tolist() == [[1, 1, 3, 3]]


def test_kept_features_are_those_of_the_file():
    first = LaZSLConfig(regions="file", regions_file=[{"image": "a", "regions": [{"box": [0, 0, 5, 5]}]}])
    other = LaZSLConfig(regions="file", regions_file=[{"image": "a", "regions": [{"box": [0, 0, 5, 6]}]}])
    assert len({regions_key(first), regions_key(other), regions_key(LaZSLConfig())}) == 3
    for wrong in ({"regions": "file"}, {"regions_file": first.regions_file}):
        with pytest.raises(UsageError, match="do not fit"):
            LaZSLConfig(**wrong)


def test_what_does_not_fit_a_dataset_is_said(dataset, tmp_path):
    data = Dataset.open(dataset)
    first, second = data.split("test").ids[0], data.split("train").ids[3]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({first: [[0, 0, 9, 9], [900, 900, 950, 950]], second: [[900, 0, 999, 9]], "strange.jpg": []}))
    total = sum(data.counts.values())
    assert notes_on(read_regions(path), data) == [
        f"{total - 2} of {total} images have no regions and are looked at as a whole",
        "2 regions lie outside of their image and are dropped",
        "1 images of the region file are not in the data: strange.jpg",
    ]
    path.write_text(json.dumps({"a.jpg": [[0, 0, 1]]}))
    with pytest.raises(DataError, match="four finite numbers"):
        read_regions(path)
