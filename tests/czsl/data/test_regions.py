"""Region files: both forms say the same, what is no box is refused, and what does not fit the images is counted."""

import json

import numpy as np
import pytest

from czsl.data.regions import check_boxes, cut_boxes, fit, read_boxes, read_regions
from czsl.data.table import Dataset
from czsl.errors import DataError


def write(folder, content, name="regions.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_three_forms_say_the_same(tmp_path):
    boxes = {"a.jpg": [[0, 1, 20, 30.5]], "b/c.jpg": []}
    records = [{"image": k, "regions": [{"box": box, "phrase": "a dog", "score": 0.5} for box in v]} for k, v in boxes.items()]
    forms = [
        write(tmp_path, boxes),
        write(tmp_path, records, "records.json"),
        write(tmp_path, "\n\n".join(map(json.dumps, records)) + "\n", "records.jsonl"),
    ]
    assert all(read_boxes(form) == boxes for form in forms)
    assert read_regions(forms[2])["a.jpg"] == [{"box": [0, 1, 20, 30.5], "phrase": "a dog", "score": 0.5}]
    assert read_boxes(write(tmp_path, records[0], "one.json")) == {"a.jpg": boxes["a.jpg"]}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[[",
        "[" * 100_000,
        '{"a": [[0, 0, 1, 1]], "a": []}',
        '{"a": [[0, 0, NaN, 1]]}',
        '{"a": [[0, 0, 1e999, 1]]}',
        {"a": [[0, 0, 1]]},
        {"a": [[0, 0, 1, 1], [0, 0, 1]]},
        {"a": [[0, 0, True, 1]]},
        {"a": [["0", 0, 1, 1]]},
        {"a": [[5, 5, 5, 9]]},
        {"a": [[5, 5, 2, 9]]},
        {"a": [{"phrase": "dog"}]},
        {"a": "dog"},
        {"a": [[0, 0, 1, 1]] * 1001},
        [{"image": "a", "regions": []}, {"image": "a", "regions": []}],
        [{"image": 3, "regions": []}],
        [{"image": "a"}],
        "3",
    ],
)
def test_what_is_no_file_of_regions_is_refused_by_name(tmp_path, content):
    path = write(tmp_path, content)
    with pytest.raises(DataError) as error:
        read_regions(path)
    assert str(path) in error.value.what
    with pytest.raises(DataError):
        read_regions(tmp_path / "absent.json")


def test_boxes_are_cut_to_the_image_and_those_outside_are_counted():
    boxes, outside = cut_boxes(check_boxes([[-5, 3.4, 20.2, 300], [200, 0, 300, 10], [10, 10, 11, 11]]), (100, 80))
    assert boxes.tolist() == [[0, 3, 21, 80], [10, 10, 11, 11]]
    assert outside == 1
    assert cut_boxes(check_boxes([]), (100, 80))[0].shape == (0, 4)
    for wrong in ([[0, 0, 1]], [[0, 0, np.nan, 1]], [[0, 0, np.inf, 1]], [[5, 5, 5, 9]], [[5, 5, 2, 9]], "abc", [[0, 0, "x", 1]]):
        with pytest.raises(DataError):
            check_boxes(wrong)


def test_what_does_not_fit_a_dataset_is_counted(dataset):
    data = Dataset.open(dataset)
    first, second = data.split("test").ids[0], data.split("train").ids[3]
    found = fit({first: [[0, 0, 9, 9], [900, 900, 950, 950]], second: [[900, 0, 999, 9]], "strange.jpg": [[0, 0, 1, 1]]}, data)
    assert found.images == sum(data.counts.values())
    assert found.without == found.images - 2
    assert found.unknown == ["strange.jpg"]
    assert found.outside == 2
