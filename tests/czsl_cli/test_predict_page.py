"""The page of predictions: what it shows with and without scripts, and that no name of a file or label gets out of its place."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image

from czsl.errors import UsageError
from czsl_cli import predict_page
from czsl_cli.predict_page import PredictionPage, check_free, files_folder

EVIL = '"><script>alert(1)</script>'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def record(image, *candidates, **more):
    found = [{"attr": a, "obj": o, "score": 1.0, "prob": p} for a, o, p in candidates]
    return {"image": image, "predictions": found, "error": None, **more}


class Elements(HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._inside = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data):
        if not self._inside:
            self.text += data


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (400, 300), (60 * i, 90, 120)).save(folder / f"{i}.jpg")
    return folder


def page_of(photos, records, path):
    page = PredictionPage(path, photos)
    for r in records:
        page.add(r)
    page.write("Named by a test.")
    return path.read_text()


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))


RECORDS = [
    record("0.jpg", ("wet", "dog", 0.9), ("dry", "dog", 0.1)),
    record("1.jpg", ("wet", "dog", 0.4), ("wet", "cat", 0.35)),
    record("2.jpg", ("dry", "cat", 0.999), ("wet", "cat", 0.001)),
]


def test_the_page_holds_names_confidence_and_thumbnails(photos, tmp_path):
    text = page_of(photos, RECORDS, tmp_path / "out" / "page.html")
    data = data_of(text)
    assert data["words"] == {"attr": ["dry", "wet"], "obj": ["cat", "dog"]}
    assert [row[0] for row in data["rows"]] == ["2.jpg", "1.jpg", "0.jpg"]  # by name, least sure first
    assert data["rows"][1][4] == [[1, 1, 0.4], [1, 0, 0.35]]
    assert [row[1] for row in data["rows"]] == ["../photos/2.jpg", "../photos/1.jpg", "../photos/0.jpg"]
    for row in data["rows"]:
        with Image.open(tmp_path / "out" / "page.files" / row[2]) as small:
            assert small.size == (192, 144)
    assert "http" not in text.replace("http-equiv", "")
    shown = Elements((tmp_path / "out" / "page.files" / "list-1.html").read_text())
    assert [a["alt"] for tag, a in shown.tags if tag == "img"] == [
        "dry cat, >99\u00a0%: 2.jpg",
        "wet dog, 40\u00a0%: 1.jpg",
        "wet dog, 90\u00a0%: 0.jpg",
    ]
    assert "wet dog 2 images" in shown.text and "dry cat 1 image" in shown.text
    assert [tag for tag, _ in shown.tags if tag in ("h1", "h2")] == ["h1", "h2", "h2"]


def test_hostile_names_stay_text(photos, tmp_path):
    name = 'a\u202egpj.\n\x1b[31m"><script>alert(2)<b>.jpg'
    shutil.copy(photos / "0.jpg", photos / name)
    unread = {"image": EVIL.replace("/", "") + "\u202e", "predictions": [], "error": f"not an image: {EVIL}"}
    text = page_of(photos, [record(name, (EVIL, "do\u202eg\x00", 0.5), ("wet", EVIL, 0.2)), unread], tmp_path / "page.html")
    listed = (tmp_path / "page.files" / "list-1.html").read_text()
    scripts = [a for tag, a in Elements(text).tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    assert not [tag for tag, _ in Elements(listed).tags if tag == "script"]
    for content in (text, listed):
        assert "<script>alert" not in content
        assert not set(content) & set("\u202e\x00\x1b")
    data = data_of(text)
    assert data["rows"][0][0] == r'a\u202egpj.\n\x1b[31m"><script>alert(2)<b>.jpg'
    assert data["words"]["obj"][0] == r"do\u202eg\x00"
    assert re.fullmatch(r"photos/[A-Za-z0-9_.~%-]+", data["rows"][0][1])
    policy = next(a["content"] for tag, a in Elements(text).tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_every_image_is_in_one_list_and_unreadable_ones_are_named(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_page, "LIST_IMAGES", 2)
    records = [*RECORDS, {"image": "x.jpg", "predictions": [], "error": "empty file: zero bytes"}]
    text = page_of(photos, records, tmp_path / "page.html")
    lists = [(tmp_path / "page.files" / f"list-{i}.html").read_text() for i in (1, 2)]
    assert [len([t for t, _ in Elements(x).tags if t == "img"]) for x in lists] == [2, 1]
    assert "list-2.html" in lists[0] and "list-1.html" in lists[1]
    assert not (tmp_path / "page.files" / "list-3.html").exists()
    shown = Elements(text)
    assert "x.jpg" in shown.text and "empty file: zero bytes" in shown.text
    linked = [a["href"] for tag, a in shown.tags if tag == "a" and "list-" in a.get("href", "")]
    assert linked == ["page.files/list-1.html", "page.files/list-2.html"]


def test_an_interrupted_page_keeps_its_thumbnails_and_a_new_one_drops_old(photos, tmp_path):
    path = tmp_path / "page.html"
    first = PredictionPage(path, photos)
    first.add(RECORDS[0])  # and then it was killed
    first._collect(0)
    (thumb,) = files_folder(path).iterdir()
    made = thumb.stat().st_mtime_ns
    page_of(photos, RECORDS, path)
    assert thumb.stat().st_mtime_ns == made
    Image.new("RGB", (10, 10)).save(photos / "0.jpg")  # another image of that name
    text = page_of(photos, RECORDS[:1], path)
    assert not thumb.exists()
    assert {p.name for p in files_folder(path).iterdir()} == {data_of(text)["rows"][0][2], "list-1.html"}


def test_a_full_disk_is_an_error_and_not_a_missing_picture(photos, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(predict_page, "write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        page_of(photos, RECORDS, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_an_image_that_vanished_is_shown_without_a_picture(photos, tmp_path):
    text = page_of(photos, [record("gone.jpg", ("wet", "dog", 0.5))], tmp_path / "page.html")
    assert data_of(text)["rows"][0][2] == ""
    assert "no picture" in (tmp_path / "page.files" / "list-1.html").read_text()


def test_other_files_are_not_replaced(photos, tmp_path):
    path = tmp_path / "page.html"
    with pytest.raises(UsageError, match=r"ends in \.html"):
        check_free(tmp_path / "page.csv")
    path.write_text("<p>mine")
    with pytest.raises(UsageError, match="not a page of czsl predict"):
        PredictionPage(path, photos)
    assert path.read_text() == "<p>mine"
    path.unlink()
    folder = files_folder(path)
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"other files: holiday\.jpg"):
        PredictionPage(path, photos)
    assert (folder / "holiday.jpg").read_bytes() == b"mine"


def test_doubt_is_shown_and_can_be_filtered(photos, tmp_path):
    given = ({"sure": True}, {"sure": False}, {"sure": False, "rejected": True})
    records = [record(f"{i}.jpg", ("wet", "dog", 0.5), **facts) for i, facts in enumerate(given)]
    data = data_of(page_of(photos, records, tmp_path / "page.html"))
    assert data["threshold"] is True
    assert [row[3] for row in data["rows"]] == ["", "not sure", "none of these"]
    assert "none of these" in Elements((tmp_path / "page.files" / "list-1.html").read_text()).text
    assert data_of(page_of(photos, RECORDS, tmp_path / "page.html"))["threshold"] is False


def test_plain_classes_have_one_filter(photos, tmp_path):
    records = [{"image": "0.jpg", "predictions": [{"class": "polar bear", "score": 1.0, "prob": 0.7}], "error": None}]
    assert data_of(page_of(photos, records, tmp_path / "page.html"))["words"] == {"class": ["polar bear"]}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_filters_orders_and_pages(photos, tmp_path):
    """The page after its script ran, for several addresses."""
    records = [
        record(f"{i % 4}.jpg" if i < 4 else f"n{i}.jpg", ("wet" if i % 2 else "dry", "dog", (i + 1) / 300)) for i in range(250)
    ]
    records.append(record("0.jpg", (EVIL, "dog", 0.001)))
    page_of(photos, records, tmp_path / "page.html")

    def shown(state):
        address = f"{(tmp_path / 'page.html').as_uri()}#{state}"
        args = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--dump-dom",
            f"--user-data-dir={tmp_path / 'user'}",
            address,
        ]
        return subprocess.run(args, capture_output=True, text=True, timeout=300, check=True).stdout

    found = shown("order=least&page=3")
    assert "251 of 251 images; here 193 to 251" in found
    assert len(re.findall('<li><a href="photos/', found)) == 59
    found = shown("order=least&attr=dry&to=50&page=1")  # probabilities 1/300, 3/300, ...
    assert "75 of 251 images" in found
    cards = re.findall(r"<b>([^<]*)</b>", found)
    assert cards[0] == "dry dog &lt;1&nbsp;%"
    found = shown("order=name")
    assert "&lt;script&gt;alert(1)" in found and "<script>alert" not in found
