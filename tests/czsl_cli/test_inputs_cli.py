"""Images as people name them through the real entry point: names stay in results, nothing raw reaches a terminal.

One worker in this process stands in for the cluster, which has tests of its own.
"""

import csv
import io
import json
import os
import sys
import unicodedata
import zipfile
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from czsl.data.toy import dataset as toy

ODD = ["a\x1b[31mb.png", "x\x1b]0;title\x07.png", "r\u202egpj.png", "l\nf.png", "=1+1.png"]
BYTES = os.fsdecode(b"caf\xe9.png")
LABELS = ("--attributes", "attributes.txt", "--objects", "objects.txt")


@pytest.fixture(autouse=True)
def one_worker(monkeypatch):
    import cluster.predict
    from cluster.predict import BATCH
    from cluster.work.predictor import Predictor

    def local(request, source, names, *, partial=None, progress=None, notice=None, **where):
        done = 0
        for records in partial.batches() if partial else ():
            yield from records
            done += 1
        predictor = Predictor(request, torch.device("cpu"))
        for start in range(done * BATCH, len(names), BATCH):
            records = predictor.predict(source, names[start : start + BATCH])
            if partial:
                partial.add(records)
            yield from records

    monkeypatch.setattr(cluster.predict, "predict_files", local)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate(ODD):
        toy.draw("red", "apple", seed=seed).save(tmp_path / "photos" / name)
    (tmp_path / "attributes.txt").write_text("red\nblue\n")
    (tmp_path / "objects.txt").write_text("apple\nball\n")
    return tmp_path / "photos"


@pytest.fixture
def run(tmp_path):
    from czsl.runs.run import Run
    from czsl_cli.config import resolve

    return Run.create(resolve({"method": "zero-shot", "threads": 1}), toy.space(), tmp_path / "runs", "plain")


def stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def safe(text):
    return not {unicodedata.category(c) for c in text if c != "\n"} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def predict(czsl, *args, expect=0, labels=LABELS):
    return czsl("predict", *args, "--zero-shot", *labels, expect=expect)


def records(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


# -- safe to look at -----------------------------------------------------------------------------------------------
def test_names_are_escaped_on_the_terminal_and_kept_in_results(czsl, photos):
    toy.draw("red", "apple", seed=9).save(BYTES)
    (photos / "broken\x1b[2J.png").write_bytes(b"x")
    (photos / "left\x07out.txt").write_bytes(b"x")
    names = ["photos/" + name for name in sorted([*ODD, "broken\x1b[2J.png"])] + [BYTES]
    table = predict(czsl, "photos", BYTES, expect=6)
    assert safe(table.stdout)
    assert safe(table.stderr)
    for shown in (r"a\x1b[31mb.png", r"x\x1b]0;title\x07.png", r"r\u202egpj.png", r"l\nf.png", r"caf\udce9.png"):
        assert shown in table.stdout
    assert r"left\x07out.txt" in table.stderr
    assert r"broken\x1b[2J.png: not an image" in table.stderr

    lines = predict(czsl, "photos", BYTES, "--json", expect=6)
    assert safe(lines.stdout)
    assert [r["image"] for r in records(lines)] == names

    for suffix in ("jsonl", "csv", "parquet"):
        predict(czsl, "photos", BYTES, "--out", f"out.{suffix}", expect=6)
    with open("out.jsonl", encoding="utf-8") as file:  # noqa: PTH123
        assert [json.loads(line)["image"] for line in file] == names
    with open("out.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:  # noqa: PTH123
        assert list(dict.fromkeys(row["image"] for row in csv.DictReader(file))) == names
    found = pq.read_table("out.parquet")["image"].to_pylist()
    assert found == [*names[:-1], r"caf\udce9.png"]  # Parquet's text is Unicode


def test_labels_and_messages_are_escaped(czsl, photos):
    (photos.parent / "classes.txt").write_text("red\x1b[7m apple\nblue\u202eball\n")
    done = predict(czsl, "photos/a\x1b[31mb.png", labels=("--classes", "classes.txt"))
    assert safe(done.stdout)
    assert r"\x1b[7m" in done.stdout
    assert r"\u202e" in done.stdout
    done = predict(czsl, "photos/a\x1b[31mb.png", "--json", labels=("--classes", "classes.txt"))
    assert {c["name"] for c in records(done)[0]["classes"]} == {"red\x1b[7m apple", "blue\u202eball"}
    for args, code in (
        (["predict", "none\x1b[31m", "--zero-shot", *LABELS], 2),
        (["predict", "--run", "none\x1b[31m", "photos"], 2),
        (["predict", "photos", "--pairs", "none\x1b[31m"], 2),
        (["train", "--data", "none\x1b]0;x\x07"], 3),
        (["no\x1b[31mcommand"], 2),
        (["methods", "x\u202ey"], 2),
    ):
        done = czsl(*args, expect=code)
        assert safe(done.stderr), args
        assert "\\" in done.stderr


def test_a_folder_whose_name_is_not_utf8_ends_no_command_as_a_defect(czsl, tmp_path):
    for pair in ("train/wet dog", "test/dry cat", "val/dry cat", "train/dry dog", "train/wet cat"):
        (tmp_path / BYTES / pair).mkdir(parents=True)
        for i in range(5):
            toy.draw("red", "apple", seed=len(pair) + i).save(tmp_path / BYTES / pair / f"{i}.png")
    done = czsl("data", "import", BYTES, "out", expect=2)
    assert "a name is not UTF-8" in done.stderr
    assert safe(done.stderr)
    czsl("data", "import", BYTES, "out", "--name", "named")
    czsl("data", "import", BYTES, BYTES + ".out", "--name", "named", "--json", expect=2)


def test_pages_are_safe(czsl, photos, run):
    toy.draw("blue", "ball", seed=9).save(photos / "<script>&.png")
    done = czsl("search", "red apple", "--in", "photos", "--html", "page.html")
    assert safe(done.stdout)
    page = open("page.html", encoding="utf-8").read()  # noqa: PTH123, SIM115
    assert safe(page)
    assert r"r\u202egpj.png" in page
    assert "&lt;script&gt;&amp;.png" in page
    assert "<script>" not in page


# -- spreadsheets --------------------------------------------------------------------------------------------------
def test_excel_quotes_what_would_run(czsl, photos, monkeypatch):
    monkeypatch.chdir(photos)
    for name in ("attributes.txt", "objects.txt"):
        (photos / name).write_text((photos.parent / name).read_text())
    for name in ("+2.png", "-3.png", "@x.png", " =4.png", "\t5.png", "plain.png", "é.png"):
        toy.draw("red", "apple", seed=1).save(photos / name)
    predict(czsl, ".", "--out", "plain.csv")
    predict(czsl, ".", "--out", "excel.csv", "--excel")
    plain, excel = ((photos / f"{n}.csv").read_bytes() for n in ("plain", "excel"))
    assert not plain.startswith(b"\xef\xbb\xbf")
    assert excel.startswith(b"\xef\xbb\xbf")
    rows = [list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))) for data in (plain, excel)]
    assert len(rows[0]) == len(rows[1])
    for a, b in zip(*rows, strict=True):
        risky = a["image"].lstrip()[:1] in "=+-@" or a["image"][0] == "\t"
        assert b == {**a, "image": f"'{a['image']}" if risky else a["image"]}
    assert sum(row["image"].startswith("'") for row in excel_rows(rows)) == 6
    assert "goes with --out FILE.csv" in predict(czsl, ".", "--out", "a.jsonl", "--excel", expect=2).stderr
    assert "goes with --out FILE.csv" in predict(czsl, ".", "--excel", expect=2).stderr


def excel_rows(rows):
    return {row["image"]: row for row in rows[1]}.values()


# -- inputs --------------------------------------------------------------------------------------------------------
def test_every_way_to_name_images_gives_the_same_answers(czsl, photos, monkeypatch):
    names = sorted(ODD)
    with zipfile.ZipFile("z.zip", "w") as file:
        for name in names:
            file.write(photos / name, name)
    rows = [["n", "photo"], *([i, f"photos/{name}"] for i, name in enumerate(names))]
    with open("t.csv", "w", newline="", encoding="utf-8") as file:  # noqa: PTH123
        csv.writer(file, delimiter=";").writerows(rows)

    def answers(*args):
        found = records(predict(czsl, *args, "--json"))
        return [r["image"] for r in found], [r["predictions"] for r in found]

    expected = answers("photos")
    assert expected[0] == names
    given = [f"photos/{name}" for name in names]
    assert answers(*given) == (given, expected[1])
    assert answers("photos/*.png") == (given, expected[1])
    assert answers("z.zip") == expected
    assert answers("--images", "t.csv") == (given, expected[1])
    assert answers("--images", "t.csv", "--column", "Photo", "--root", ".") == (given, expected[1])
    stdin(monkeypatch, b"\0".join(map(os.fsencode, given)))
    assert answers("-") == (given, expected[1])


def test_what_cannot_be_read_or_is_left_out_is_told(czsl, photos, monkeypatch):
    with zipfile.ZipFile("z.zip", "w") as file:
        file.write(photos / "=1+1.png", "good.png")
        file.writestr("../evil.png", "x")
        file.writestr("readme.txt", "x")
    done = predict(czsl, "z.zip", expect=6)
    assert "refused: 1 ('..' in the path): ../evil.png" in done.stderr
    assert "left out: 1 (neither its suffix nor its content is that of an image): readme.txt; --all-files" in done.stderr
    done = predict(czsl, "z.zip", "--all-files", expect=6)
    assert "readme.txt: not an image" in done.stderr
    stdin(monkeypatch, b"photos/=1+1.png\ngone.png\n")
    done = predict(czsl, "-", "--json", expect=6)
    assert [r["error"] for r in records(done)] == [None, "unreadable file: No such file or directory"]
    (photos / "web.heic").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf\0\0\x01\xbe")
    monkeypatch.setattr("czsl.data.images._heic_opener", lambda: False)
    assert "czsl[heic]" in predict(czsl, "photos", expect=6).stderr


@pytest.mark.parametrize(
    ("args", "code", "why"),
    [
        ([], 2, "no images were given"),
        (["photos", "--images", "t.csv"], 2, "give one of the two"),
        (["photos", "--column", "x"], 2, "go with --images"),
        (["gone.jpg"], 2, "no file or folder gone.jpg"),
        (["*.webp"], 2, "no file matches"),
        (["t.csv"], 2, "--images t.csv"),
        (["--images", "t.csv"], 3, "no column is called like"),
        (["--images", "t.csv", "--column", "x"], 3, "--root DIR"),
        (["empty"], 3, "no images below empty"),
        (["cut.zip"], 3, "it is damaged"),
        (["photos", "--background", "pink"], 2, "unknown background"),
    ],
)
def test_bad_input_ends_early_with_its_reason(czsl, photos, args, code, why):
    (photos.parent / "t.csv").write_text("x,y\n1,2\n")
    (photos.parent / "cut.zip").write_bytes(b"PK\x03\x04 and no more")
    (photos.parent / "empty").mkdir()
    done = predict(czsl, *args, expect=code)
    assert why in done.stderr
    assert done.stdout == ""


def test_an_interrupted_prediction_of_an_archive_is_taken_up(czsl, photos, monkeypatch):
    from cluster.work import predictor

    with zipfile.ZipFile("z.zip", "w") as file:
        for i in range(predictor.BATCH + 3):
            file.write(photos / "=1+1.png", f"{i:02d}.png")
    whole = predict(czsl, "z.zip", "--json").stdout
    work, calls = predictor.Predictor.predict, []

    def stopping(self, source, names):
        calls.append(names)
        if len(calls) == 2:
            raise OSError("pulled the plug")
        return work(self, source, names)

    monkeypatch.setattr(predictor.Predictor, "predict", stopping)
    predict(czsl, "z.zip", "--out", "o.jsonl", expect=1)
    assert not (photos.parent / "o.jsonl").exists()
    done = predict(czsl, "z.zip", "--out", "o.jsonl")
    assert f"{predictor.BATCH} of {predictor.BATCH + 3} images" in done.stderr
    assert len(calls) == 3
    assert (photos.parent / "o.jsonl").read_text() == whole


# -- photographs ---------------------------------------------------------------------------------------------------
def test_photographs_are_upright_on_white_unless_the_run_says_otherwise(czsl, photos, run):
    upright = toy.draw("red", "apple", seed=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save("upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=exif)
    cut = np.asarray(upright.convert("RGBA")).copy()
    cut[:20] = (0, 0, 0, 0)
    Image.fromarray(cut).save("cut.png")
    cut[:20] = 255
    Image.fromarray(cut[..., :3]).save("white.png")
    images = ("upright.png", "turned.png", "white.png", "cut.png")

    def answers(*args):
        done = czsl("predict", *images, "--json", *args)
        return [r["predictions"] for r in records(done)], done.stderr

    found, told = answers("--zero-shot", *LABELS)
    assert (found[0], found[2]) == (found[1], found[3])
    assert told == ""
    found, told = answers()  # a run of before there was a choice
    assert found[0] != found[1]
    assert found[2] != found[3]
    assert "--orientation exif --background white" in told
    found, told = answers("--orientation", "exif", "--background", "white")
    assert (found[0], found[2]) == (found[1], found[3])
    settings = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(settings.replace("orientation: null", "orientation: exif"))
    found, told = answers()
    assert found[0] == found[1]
    assert found[2] != found[3]


def test_match_and_search_take_the_same_inputs(czsl, photos, run):
    with zipfile.ZipFile("z.zip", "w") as file:
        file.write(photos / "=1+1.png", "in/one.png")
        file.writestr("notes.txt", "x")
    done = czsl("search", "red apple", "--in", "z.zip", "--in", "photos/a*.png", "--json")
    assert {i["image"] for i in json.loads(done.stdout)[0]["images"]} == {"z.zip/in/one.png", "photos/a\x1b[31mb.png"}
    assert "left out: 1" in done.stderr
    done = czsl("match", "z.zip", "photos", "--text", "a red apple on a blue ball", "--regions", "whole", "--json")
    images = {a["image"] for a in json.loads(done.stdout)["questions"][0]["answers"]}
    assert images == {"z.zip/in/one.png", *(f"photos/{name}" for name in ODD)}
    assert "left out: 1" in done.stderr
    (photos.parent / "t.jsonl").write_text(json.dumps({"image": "photos/=1+1.png"}))
    done = czsl("match", "--images", "t.jsonl", "--text", "a red apple", "--regions", "whole")
    assert "photos/=1+1.png" in done.stdout
