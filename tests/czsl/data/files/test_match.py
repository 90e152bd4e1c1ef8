"""Readers of ComVG, SVO-Probes, Winoground, VL-Checklist and retrieval files."""

import json

import pytest

from czsl.data.files.match import all_captions, all_images, read_match_file, read_sentences
from czsl.errors import DataError

COMVG = "id,sentence,pos_triplet,neg_triplet,pos_image_id,neg_image_id,neg_value,sentence_id\n"
SVO = "sentence,pos_triplet,neg_triplet,pos_url,neg_url,pos_image_id,neg_image_id,subj_neg,verb_neg,obj_neg\n"


def write(path, text):
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def test_comvg(tmp_path):
    row = "7,a man sits.,\"man,sit,table\",\"('dog', 'sit', 'table')\",123,456,subject,2\n"
    file = read_match_file(write(tmp_path / "f.csv", COMVG + row + row.replace("7,", "8,")))
    assert file.kind == "comvg"
    item = file.items[0]
    assert (item.identity, item.captions, item.images, item.group) == ("7", ("a man sits.",), ("123.jpg", "456.jpg"), "subject")
    assert item.triplets == (("man", "sit", "table"),)
    assert all_captions(file.items) == {"a man sits.": ("man", "sit", "table")}
    assert all_images(file.items) == ["123.jpg", "456.jpg"]


def test_the_released_sample(shared):
    file = read_match_file(shared / "data" / "comvg" / "sample.csv")
    assert (file.kind, len(file.items)) == ("comvg", 20)
    assert {item.group for item in file.items} == {"subject", "object", "verb"}
    assert all(len(item.triplets[0]) == 3 and item.images[0].endswith(".jpg") for item in file.items)


def test_svo_probes(tmp_path):
    rows = 'x,"a,b,c","a,b,d",u,v,1,2,False,False,True\ny,,,u,v,3,4,True,False,False\n'
    file = read_match_file(write(tmp_path / "f.csv", SVO + rows))
    assert file.kind == "svo"
    assert [item.group for item in file.items] == ["object", "subject"]
    assert [item.triplets for item in file.items] == [(("a", "b", "c"),), (None,)]


def test_winoground(tmp_path):
    record = {
        "id": 0,
        "caption_0": "a b",
        "caption_1": "b a",
        "image_0": "ex_0_img_0",
        "image_1": "ex_0_img_1.jpg",
        "tag": "Object",
    }
    file = read_match_file(write(tmp_path / "f.jsonl", json.dumps(record) + "\n"))
    assert file.kind == "winoground"
    assert file.items[0].images == ("ex_0_img_0.png", "ex_0_img_1.jpg")
    assert file.items[0].captions == ("a b", "b a")


def test_vl_checklist_has_an_item_for_each_pair_of_captions(tmp_path):
    content = [["vg/1.jpg", {"POS": ["a", "b"], "NEG": ["c", "d"]}], ["2.jpg", {"POS": ["e"], "NEG": ["f"]}]]
    file = read_match_file(write(tmp_path / "f.json", content))
    assert file.kind == "vl-checklist"
    assert [item.captions for item in file.items] == [("a", "c"), ("b", "d"), ("e", "f")]


def test_retrieval(tmp_path):
    lines = [{"image": "1.jpg", "captions": ["a", "b"]}, {"image": "2.jpg", "captions": ["c"]}]
    file = read_match_file(write(tmp_path / "f.jsonl", "\n".join(map(json.dumps, lines))))
    assert file.kind == "retrieval"
    assert file.items[0].captions == ("a", "b")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no known format"),
        ("a,b\n1,2\n", "no known format"),
        (COMVG, "no item"),
        (COMVG + '7,x,"man,sit","",1,2,subject,2\n', "triplet"),
        (COMVG + "7,x,,,,2,subject,2\n", "names no image"),
        (COMVG + '7,"x', "CSV"),
        ("[1]", "VL-Checklist"),
        ('[["a.jpg", {"POS": ["x"], "NEG": []}]]', "VL-Checklist"),
        ("[", "not JSON"),
        ('{"other": 1}', "no known format"),
        ('{"image": "a.jpg", "captions": []}', "list of captions"),
        ('{"image": "a.jpg", "captions": [1]}', "no sentence"),
        (
            '{"image": "a.jpg", "captions": ["x"]}\n{"caption_0": "a", "caption_1": "b", "image_0": "c", "image_1": "d"}',
            "another format",
        ),
        ('{"caption_0": "a", "caption_1": "b", "image_0": "c"}', "names no image"),
    ],
)
def test_what_is_none_of_them_is_refused_in_words(tmp_path, text, why):
    with pytest.raises(DataError, match=why):
        read_match_file(write(tmp_path / "bad", text))


def test_sentences_are_lines(tmp_path):
    assert read_sentences(write(tmp_path / "s.txt", "a dog\n\n  a cat \n")) == ["a dog", "a cat"]
    for bad in (b"", b"\n \n", b"\xff\xff"):
        (tmp_path / "bad.txt").write_bytes(bad)
        with pytest.raises(DataError):
            read_sentences(tmp_path / "bad.txt")
