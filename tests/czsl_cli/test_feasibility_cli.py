"""``czsl feasibility``: the file, the summary, and what it says about bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest

from czsl.evaluation.feasibility import feasibility_from_glove, read_feasibility
from czsl.spaces import space_from_json

SPACE = {
    "attributes": ["wet", "dry", "Faux.Fur"],
    "objects": ["dog", "cat", "coat"],
    "train_pairs": [["wet", "dog"], ["dry", "cat"], ["Faux.Fur", "coat"]],
    "val_pairs": [["dry", "dog"]],
    "test_pairs": [["wet", "cat"]],
}
GLOVE = ["the 9 9 9", "wet 1 0 0", "dry 1 1 0", "fake 0 1 1", "fur 1 1 1", "dog 1 2 3", "cat 1 2 2", "coat 3 1 0"]


@pytest.fixture
def files(tmp_path):
    """A label space, word vectors, and the words for a name they lack."""
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    (tmp_path / "glove.txt").write_text("\n".join(GLOVE) + "\n")
    (tmp_path / "rename.json").write_text(json.dumps({"Faux.Fur": "fake fur"}))
    return tmp_path


def test_from_word_vectors(czsl, files):
    glove = ["--glove", "glove.txt", "--rename", "rename.json"]
    done = czsl("feasibility", "space.json", *glove, "--out", "new/f.npy", "--json")
    space = space_from_json(SPACE)
    expected = feasibility_from_glove(files / "glove.txt", space, {"Faux.Fur": "fake fur"})
    np.testing.assert_array_equal(read_feasibility(files / "new/f.npy", space), expected)
    shown = json.loads(done.stdout)
    assert (shown["pairs"], shown["seen"], shown["unseen"], shown["source"]) == (9, 3, 6, "glove.txt")
    values = expected.reshape(3, 3)
    unseen = sorted(values[~np.eye(3, dtype=bool)].tolist(), reverse=True)
    assert [row["feasibility"] for row in shown["most"]] == unseen
    assert [row["feasibility"] for row in shown["least"]] == unseen[::-1]
    for row in shown["most"]:
        assert row["feasibility"] == values[SPACE["attributes"].index(row["attr"]), SPACE["objects"].index(row["obj"])]
    assert (shown["thresholds"][0], shown["thresholds"][-1], len(shown["thresholds"])) == (unseen[-1], unseen[0], 50)
    assert "new/f.npy" in done.stderr


def test_from_the_text_tower(czsl, files, czsl_cache):
    from czsl.clip.feasibility import feasibility_from_clip
    from czsl.clip.loading import load_clip
    from czsl.data.toy import dataset as toy

    done = czsl("feasibility", "toy", "--out", "f.npy")
    expected = feasibility_from_clip(load_clip(), toy.space())
    np.testing.assert_array_equal(np.load(files / "f.npy", allow_pickle=False), expected)
    assert "168 pairs, 84 unseen" in done.stdout
    space = toy.space()
    best = np.where(space.seen_mask(space.open_pairs), -np.inf, expected).argmax()
    assert f"{space.pair_name(divmod(int(best), space.num_objects))}" in done.stdout.splitlines()[4]
    assert "never trained on" in czsl("feasibility", "space.json", "--out", "g.npy").stderr


def test_a_score_files_json_and_a_space_without_unseen_pairs(czsl, files):
    content = {"attrs": ["wet"], "objs": ["dog"], "train_pairs": [["wet", "dog"]], "phase": "test", "open_world": True}
    (files / "scores.json").write_text(json.dumps(content))
    done = czsl("feasibility", "scores.json", "--glove", "glove.txt", "--out", "f.npy")
    assert "nothing is left to judge" in done.stdout
    assert np.load(files / "f.npy", allow_pickle=False).tolist() == [0]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["space.json", "--glove", "glove.txt"], 3, "glove.txt has no vector for Faux.Fur"),
        (["space.json", "--glove", "glove.txt", "--clip", "tiny"], 2, "--glove and --clip"),
        (["space.json", "--rename", "rename.json"], 2, "--rename goes with --glove"),
        (["space.json", "--glove", "glove.txt", "--rename", "glove.txt"], 3, "cannot read glove.txt"),
        (["none.json"], 3, "cannot read none.json"),
        (["nowhere"], 3, "nowhere is not a dataset folder"),
        (["twice.json", "--glove", "glove.txt"], 3, "occurs twice: wet dog"),
        (["other.json", "--glove", "glove.txt"], 3, "other.json: pair 0"),
        (["space.json", "--clip", "ViT-L-144"], 2, "unknown CLIP model"),
        (["space.json", "--out", "f.txt"], 2, "no .npy file"),
    ],
)
def test_bad_input_names_file_and_place(czsl, files, args, code, message):
    (files / "twice.json").write_text(json.dumps({**SPACE, "train_pairs": [["wet", "dog"]] * 2}))
    (files / "other.json").write_text(json.dumps({**SPACE, "val_pairs": [["wet", "car"]]}))
    out = [] if "--out" in args else ["--out", "f.npy"]
    assert message in czsl("feasibility", *args, *out, expect=code).stderr
    assert not (files / "f.npy").exists()
