"""What people name becomes images under the names they gave, wherever they lie; what is not read is told."""

import os
import pickle
import shutil
import sys
import tarfile
import zipfile

import pytest

from czsl.data.images import BadImage
from czsl.data.inputs import ImageSource, as_source, gather, gather_table, listed, no_images
from czsl.errors import DataError, UsageError

from .conftest import encode

ODD = [
    "a\x1b[31mb.png",
    "x\x1b]0;title\x07.png",
    "r\u202egpj.png",
    "l\nf.png",
    "=1+1.png",
    " spaced .jpg",
    "-dash.jpg",
    "a[1].jpg",
]
PNG = encode(1, kind="PNG")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos/b/2.PNG", "photos/a.jpg", "photos/no-suffix", "more/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "photos/notes.txt").write_text("hello")
    (tmp_path / "photos/.DS_Store").write_bytes(b"x")
    (tmp_path / "photos/b/._2.PNG").write_bytes(b"x")
    (tmp_path / "photos/raw.nef").write_bytes(b"II*\0")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "photos/out.jpg").symlink_to(tmp_path / "secret.jpg")
    return tmp_path


def archive(path, names):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, PNG if not name.endswith(".txt") else b"hi")
    else:
        with tarfile.open(path, "w:gz") as file:
            for name in names:
                file.add("photos/a.jpg", name)
    return path


def check(source, names):
    """The names, and that every image can be read, after a trip to another process as well."""
    assert source.names == names
    for there in (source, pickle.loads(pickle.dumps(source))):
        assert [there.open(name) for name in names] == [PNG] * len(names)


def test_one_folder_gives_names_below_it(photos):
    for given in ("photos", "photos/", str(photos / "photos")):
        found = gather([given])
        check(found.source, ["a.jpg", "b/2.PNG", "no-suffix"])
        assert found.source.locations == {}  # nothing but the names travels
        assert found.left_out == {
            ".DS_Store": "hidden",
            "b/._2.PNG": "hidden",
            "notes.txt": "neither its suffix nor its content is that of an image",
            "raw.nef": "a camera's raw file",
        }
        assert list(found.refused) == ["out.jpg"]


def test_several_keep_the_names_that_were_given(photos):
    zipped = archive(photos / "z.zip", ["in/1.png", "t.txt"])
    tarred = archive(photos / "t.tgz", ["2.png"])
    found = gather(["photos/", "more", "photos/a.jpg", "./more/a.jpg", str(zipped), "t.tgz"])
    names = [
        "photos/a.jpg",
        "photos/b/2.PNG",
        "photos/no-suffix",
        "more/a.jpg",
        "./more/a.jpg",
        f"{zipped}/in/1.png",
        "t.tgz/2.png",
    ]
    check(found.source, names)
    assert f"{zipped}/t.txt" in found.left_out
    assert tarred.is_file()


def test_one_archive_is_like_a_folder(photos):
    found = gather([archive(photos / "z.zip", ["in/1.png", "t.txt", "../evil.png"])])
    check(found.source, ["in/1.png"])
    assert (list(found.left_out), list(found.refused)) == (["t.txt"], ["../evil.png"])
    assert not (photos.parent / "evil.png").exists()


def test_a_file_keeps_its_name_whatever_it_holds(photos):
    check(gather(["photos/no-suffix"]).source, ["photos/no-suffix"])
    found = gather(["photos/notes.txt", "photos/a.jpg"])
    assert found.source.names == ["photos/notes.txt", "photos/a.jpg"]  # tried, since it was named


def test_patterns_are_expanded_where_the_shell_did_not(photos):
    check(gather(["photos/**/*.PNG", "m*/*.jpg"]).source, ["photos/b/2.PNG", "more/a.jpg"])
    check(gather(["phot?s"]).source, ["a.jpg", "b/2.PNG", "no-suffix"])
    with pytest.raises(UsageError, match=r"no file matches \*\.webp"):
        gather(["*.webp"])


def test_an_archive_within_a_folder_is_told_not_opened(photos):
    archive(photos / "more" / "z.zip", ["1.png"])
    assert gather(["more"]).left_out == {"z.zip": "an archive within a folder: name it to read it"}


@pytest.mark.parametrize("name", ODD)
def test_odd_names_stay_as_they_are(photos, name):
    (photos / "odd").mkdir()
    (photos / "odd" / name).write_bytes(PNG)
    check(gather(["odd"]).source, [name])
    check(gather([f"odd/{name}"]).source, [f"odd/{name}"])
    check(gather([], lines=listed(os.fsencode(f"odd/{name}") + b"\0")).source, [f"odd/{name}"])


@pytest.mark.skipif(sys.platform != "linux", reason="file names are any bytes on Linux only")
def test_names_that_are_not_utf8_cost_nothing_but_themselves(photos):
    name = os.fsdecode(b"caf\xe9.jpg")
    shutil.copy("photos/a.jpg", name)
    shutil.copy("photos/a.jpg", f"photos/{name}")
    check(gather([name]).source, [name])
    assert gather(["photos"]).refused[name] == "it is not UTF-8"
    assert gather(["photos"]).source.stamp("a.jpg")[2] == len(PNG)


def test_all_files_takes_what_looks_like_no_image(photos):
    found = gather(["photos"], all_files=True)
    assert set(found.source.names) > {"notes.txt", "raw.nef", ".DS_Store"}
    assert not found.left_out


def test_full_names_begin_with_the_folder(photos):
    check(gather(["photos"], full_names=True).source, ["photos/a.jpg", "photos/b/2.PNG", "photos/no-suffix"])


def test_a_list_names_files_one_a_line_or_with_zero_bytes():
    assert listed(b"\xef\xbb\xbfa b.jpg\r\n\nc.jpg") == ["a b.jpg", "c.jpg"]
    assert listed(b"a\nb.jpg\0c.jpg\0") == ["a\nb.jpg", "c.jpg"]
    assert os.fsencode(listed(b"caf\xe9.jpg")[0]) == b"caf\xe9.jpg"
    for empty in (b"", b"\n\r\n", b"\0\0"):
        with pytest.raises(UsageError, match="is empty"):
            listed(empty)


def test_what_a_list_names_in_vain_is_an_image_that_cannot_be_read(photos):
    source = gather([], lines=["photos/a.jpg", "gone.jpg", "photos/a.jpg", "a*.jpg"]).source
    assert source.names == ["photos/a.jpg", "gone.jpg", "a*.jpg"]
    with pytest.raises(BadImage, match="No such file"):
        source.open("gone.jpg")
    assert source.stamp("gone.jpg")[2:] == [None, None]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("gone", "no file or folder gone"),
        ("https://a.b/c.jpg", "web addresses are not downloaded"),
        ("photos/notes.txt", "looks like a table or a list"),
        ("a\0b", "zero byte"),
    ],
)
def test_what_is_not_there_is_refused(photos, given, why):
    with pytest.raises(UsageError, match=why):
        gather([given])


def test_a_folder_without_images_says_what_it_holds(photos):
    (photos / "empty").mkdir()
    assert "no files were found" in str(no_images(gather(["empty"]), "empty"))
    (photos / "empty" / "list.txt").write_text("x")
    assert "list.txt (neither" in str(no_images(gather(["empty"]), "empty"))


# -- tables --------------------------------------------------------------------------------------------------------
def test_a_table_keeps_its_own_names(photos):
    absolute = str(photos / "more" / "a.jpg")
    names = ["photos/a.jpg", "photos\\b\\2.PNG", absolute, f"file://{absolute}", "./photos/no-suffix"]
    (photos / "t.csv").write_text("image\n" + "\n".join([*names, "../up.jpg", "/etc/passwd", "photos/out.jpg", "", "gone.jpg"]))
    found = gather_table(photos / "t.csv")
    assert found.source.names == [*names, "photos/out.jpg", "gone.jpg"]
    assert [found.source.open(name) for name in names] == [PNG] * 5
    assert list(found.refused) == ["../up.jpg", "/etc/passwd"]
    with pytest.raises(BadImage, match="No such file"):
        found.source.open("gone.jpg")


def test_links_of_a_table_stay_below_its_root(photos):
    (photos / "photos" / "t.csv").write_text("image\na.jpg\nout.jpg\n")
    assert gather_table(photos / "photos" / "t.csv").refused.keys() == {"out.jpg"}
    (photos / "lists").mkdir()
    shutil.copy("photos/t.csv", "lists/t.csv")
    with pytest.raises(DataError, match="--root DIR"):
        gather_table(photos / "lists" / "t.csv")
    check(gather_table(photos / "lists" / "t.csv", root=photos / "photos").source, ["a.jpg"])


def test_a_folder_is_a_source(photos):
    source = as_source(photos / "photos", ["a.jpg"])
    assert source == ImageSource(str(photos / "photos"), ["a.jpg"])
    assert as_source(source) is source
