"""``czsl match``: ranking, explanation, page, and evaluation of every format with broken and missing images."""

import json

import pytest

from czsl.data.files.match import read_match_file
from czsl.data.toy import dataset as toy

THINGS = [("red", "apple"), ("green", "apple"), ("red", "car"), ("blue", "cup")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory, czsl_cache):
    folder = tmp_path_factory.mktemp("photos")
    for i, (attr, obj) in enumerate(THINGS):
        toy.draw(attr, obj, seed=i).resize((96, 64)).save(folder / f"{attr}_{obj}.png")
    (folder / "broken.png").write_bytes((folder / "red_apple.png").read_bytes()[:100])
    return folder


def names():
    return [f"{a}_{o}.png" for a, o in THINGS]


def good(photos):
    return [photos / name for name in names()]


def test_images_are_ranked_for_a_sentence(photos, czsl):
    done = czsl("match", *good(photos), "--text", "a photo of red apple", "--json", "--explain")
    content = json.loads(done.stdout)
    (question,) = content["questions"]
    assert [a["rank"] for a in question["answers"]] == [1, 2, 3, 4]
    scores = [a["score"] for a in question["answers"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(a["clip_rank"] for a in question["answers"]) == [1, 2, 3, 4]
    assert {w["word"] for w in question["answers"][0]["words"]} == {"photo", "red apple", "of"}
    assert sum(w["weight"] for w in question["answers"][0]["words"]) == pytest.approx(1, abs=1e-5)
    assert content["passes"]["images"] == 4
    table = czsl("match", *good(photos), "--text", "a photo of red apple", "--explain").stdout
    assert "CLIP's rank" in table
    assert "of (photo, red apple)" in table


def test_sentences_are_ranked_for_an_image(photos, czsl, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(f"a photo of {a} {o}" for a, o in THINGS))
    done = czsl("match", photos / "red_car.png", "--texts", "texts.txt", "--regions", "whole", "--json")
    (question,) = json.loads(done.stdout)["questions"]
    assert question["question"].endswith("red_car.png")
    assert question["answers"][0]["sentence"] == "a photo of red car"
    assert all(a["score"] == pytest.approx(a["clip"], abs=1e-6) for a in question["answers"])
    assert [a["rank"] for a in question["answers"]] == [a["clip_rank"] for a in question["answers"]]


def test_a_page_shows_sub_images(photos, czsl, tmp_path):
    done = czsl(
        "match", *good(photos), "--text", "a dog chases a <b>cat</b>", "--regions", "grid", "--html", "page.html", "--top", 2
    )
    page = (tmp_path / "page.html").read_text()
    assert "page: page.html" in done.stderr
    assert page.count("<img") == 2 * (1 + 3)
    assert "weight 1" in page
    assert "<b>cat</b>" not in page


def test_only_clips_first_are_composed_on_demand(photos, czsl):
    done = czsl("match", *good(photos), "--text", "a red apple", "--rerank", 2, "--json")
    answers = json.loads(done.stdout)["questions"][0]["answers"]
    assert [a["score"] is None for a in answers] == [False, False, True, True]
    assert {a["clip_rank"] for a in answers[:2]} == {1, 2}


def test_a_bad_image_is_named_and_the_rest_is_ranked(photos, czsl):
    done = czsl("match", photos, "--text", "a red apple", "--json", expect=6)
    content = json.loads(done.stdout)
    assert len(content["questions"][0]["answers"]) == 4
    assert len(content["errors"]) == 1
    assert "broken.png" in done.stderr
    assert "none of the images" in czsl("match", photos / "broken.png", "--text", "x", expect=3).stderr


def test_a_sentence_without_a_word_gets_plain_clip_and_is_counted(photos, czsl):
    done = czsl("match", *good(photos), "--text", "!!!")
    assert "no word to look for: plain CLIP" in done.stdout
    assert "sentences without a word: 1" in done.stderr


def test_regions_from_a_file(photos, czsl, tmp_path):
    regions = [{"image": "red_apple.png", "regions": [{"phrase": "a red apple", "box": [10, 10, 60, 60]}]}]
    (tmp_path / "regions.json").write_text(json.dumps(regions))
    done = czsl("match", *good(photos), "--text", "a red apple", "--regions-file", "regions.json", "--explain", "--json")
    content = json.loads(done.stdout)
    assert content["regions"] == "file"
    assert content["counts"]["images without regions in the file"] == 3
    shares = {a["image"].rsplit("/", 1)[1]: a["words"][0]["share_of_image"] for a in content["questions"][0]["answers"]}
    assert shares.pop("red_apple.png") == pytest.approx(50 * 50 / (96 * 64))
    assert set(shares.values()) == {1.0}


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--text", "x"], "no image"),
        (["."], "no sentence"),
        (["--eval", "f.csv"], "folder of its images"),
        (["--eval", "f.csv", "--images", ".", "--text", "x"], "brings its own"),
        (["--eval", "f.csv", "--images", ".", "--html", "x.html"], "has no page"),
        ([".", "--text", "x", "--limit", "3"], "goes with --eval"),
        ([".", "--text", "x", "--images", "."], "goes with --eval"),
        (["f.png", "--text", "x", "--regions", "file"], "needs its file"),
        (["f.png", "--text", "x", "--regions", "grid", "--regions-file", "f.csv"], "reads no file"),
    ],
)
def test_what_does_not_go_together_is_refused(czsl, tmp_path, args, why):
    for name in ("f.csv", "f.png"):
        (tmp_path / name).write_text("x")
    assert why in czsl("match", *args, expect=2).stderr


def test_an_empty_folder_and_a_strange_file_are_refused(czsl, tmp_path):
    assert "no images below" in czsl("match", tmp_path, "--text", "x", expect=3).stderr
    (tmp_path / "f.csv").write_text("a,b\n1,2\n")
    assert "no known format" in czsl("match", "--eval", "f.csv", "--images", ".", expect=3).stderr


# -- evaluation ----------------------------------------------------------------------------------------------------
def said(name):
    return f"a photo of {name[:-4].replace('_', ' ')}"


def comvg():
    rows = [(said(n), n, names()[(i + 1) % 4]) for i, n in enumerate(names())]
    rows += [(said(names()[0]), names()[0], "missing"), (said(names()[1]), "broken.png", names()[1])]
    rows += [(said(names()[2]), "../secret.png", names()[2]), ("!!!", names()[0], names()[3])]
    head = "id,sentence,pos_triplet,neg_triplet,pos_image_id,neg_image_id,neg_value,sentence_id\n"
    kinds = ("subject", "verb", "object")
    return head + "".join(
        f'{i},{text},"{text.split()[-1]},in,photo",,{a},{b},{kinds[i % 3]},{i}\n' for i, (text, a, b) in enumerate(rows)
    )


def svo():
    head = "sentence,pos_triplet,neg_triplet,pos_url,neg_url,pos_image_id,neg_image_id,subj_neg,verb_neg,obj_neg\n"
    return head + "".join(f"{said(n)},,,,,{n},{names()[i - 1]},True,False,False\n" for i, n in enumerate(names()))


def winoground():
    pairs = [(0, 1), (2, 3)]
    lines = [
        {"id": k, "caption_0": said(names()[a]), "caption_1": said(names()[b]), "image_0": names()[a][:-4], "image_1": names()[b]}
        for k, (a, b) in enumerate(pairs)
    ]
    return "\n".join(map(json.dumps, [*lines, {**lines[0], "id": 9, "image_0": "missing"}]))


def vl_checklist():
    entries = [[n, {"POS": [said(n)], "NEG": ["a photo of purple nothing"]}] for n in [*names(), "broken.png"]]
    return json.dumps(entries)


def retrieval():
    return "\n".join(json.dumps({"image": n, "captions": [said(n), f"the {said(n)}"]}) for n in [*names(), "missing.png"])


@pytest.mark.parametrize(
    ("text", "kind", "items", "failed"),
    [(comvg, "comvg", 8, 3), (svo, "svo", 4, 0), (winoground, "winoground", 3, 1), (vl_checklist, "vl-checklist", 5, 1)],
)
def test_every_item_counts_and_failures_are_listed(photos, czsl, tmp_path, text, kind, items, failed):
    (tmp_path / "file").write_text(text())
    args = ("match", "--eval", "file", "--images", photos)
    plain = json.loads(czsl(*args, "--regions", "whole", "--json", expect=6 if failed else 0).stdout)
    assert (plain["format"], plain["items"], len(plain["failed"])) == (kind, items, failed)
    for row in plain["results"]:
        assert row["comclip"] == row["clip"]  # no regions: plain CLIP
        assert row["difference_95"] == [0, 0]
    whole = [row for row in plain["results"] if "," not in row["measure"]]
    assert all(row["items"] == items for row in whole)
    assert all(row["clip"] <= 1 - failed / items for row in whole)  # what cannot be read is wrong
    assert whole[0]["clip"] > 0.3  # the tiny CLIP knows these things
    done = czsl(*args, expect=6 if failed else 0)
    assert "difference" in done.stdout
    assert done.stderr.count("counts as wrong") == failed


def test_the_outside_of_the_folder_is_never_opened(photos, czsl, tmp_path):
    secret = photos.parent / "secret.png"
    secret.write_bytes((photos / "red_car.png").read_bytes())
    (tmp_path / "file").write_text(comvg())
    found = json.loads(czsl("match", "--eval", "file", "--images", photos, "--json", expect=6).stdout)
    (why,) = [f["why"] for f in found["failed"] if "secret" in f["why"]]
    assert "path leaves the root" in why


def test_an_item_that_cannot_be_composed_counts_as_clips_answer(photos, czsl, tmp_path):
    (tmp_path / "file").write_text(svo())
    mask = {"size": [3, 3], "counts": [9]}
    regions = [{"image": n, "regions": [{"phrase": "photo", "box": [0, 0, 9, 9], "mask": mask}]} for n in names()]
    (tmp_path / "regions.json").write_text(json.dumps(regions))
    done = czsl("match", "--eval", "file", "--images", photos, "--regions-file", "regions.json", "--json", expect=6)
    found = json.loads(done.stdout)
    assert {f["counted_as"] for f in found["failed"]} == {"plain CLIP's answer"}
    assert len(found["failed"]) == 4
    assert all(row["comclip"] == row["clip"] for row in found["results"])


def test_retrieval_in_both_directions(photos, czsl, tmp_path):
    (tmp_path / "file").write_text(retrieval())
    args = ("match", "--eval", "file", "--images", photos, "--json")
    found = json.loads(czsl(*args, "--regions", "whole", expect=6).stdout)
    rows = {row["measure"]: row for row in found["results"]}
    assert rows["text to image, R@1"]["items"] == 10
    assert rows["image to text, R@1"]["items"] == 5
    assert rows["text to image, R@10"]["clip"] == pytest.approx(0.8)  # both captions of the missing image are wrong
    assert rows["image to text, R@10"]["clip"] == pytest.approx(0.8)
    assert all(row["comclip"] == row["clip"] for row in rows.values())
    one = json.loads(czsl(*args, "--rerank", 1, expect=6).stdout)
    assert one["rerank"] == 1
    assert all(row["comclip"] == row["clip"] for row in one["results"])  # one candidate has no other order
    assert one["passes"]["images"] == 4
    table = czsl("match", "--eval", "file", "--images", photos, expect=6)
    assert "re-ranked" in table.stdout


def test_a_limit_takes_items_from_the_whole_file(photos, czsl, tmp_path):
    (tmp_path / "file").write_text(comvg())
    found = json.loads(czsl("match", "--eval", "file", "--images", photos, "--limit", 3, "--json", expect=6).stdout)
    assert (found["items"], found["of_items"]) == (3, 8)
    everything = read_match_file(tmp_path / "file")
    assert len(everything.items) == 8
    shown = czsl("match", "--eval", "file", "--images", photos, "--limit", 3, expect=6).stdout
    assert "3 of 8 items" in shown


def test_the_released_sample_without_its_pictures(shared, czsl, tmp_path):
    """All images are missing: all items are wrong, none is dropped."""
    sample = shared / "data" / "comvg" / "sample.csv"
    found = json.loads(czsl("match", "--eval", sample, "--images", tmp_path, "--clean-triplets", "--json", expect=6).stdout)
    assert found["items"] == len(found["failed"]) == 20
    assert [row["comclip"] for row in found["results"]] == [0, 0, 0, 0]
