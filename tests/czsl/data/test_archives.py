"""Archives: read in place, nothing hostile is followed, nothing is lost without a word."""

import io
import struct
import tarfile
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from czsl.data import archives
from czsl.data.archives import Archive, images_in, is_archive, open_archive
from czsl.data.images import BadImage
from czsl.errors import CzslError, DataError

from .conftest import encode

CONTENT = {"wet dog/1.jpg": encode(1), "dry/no-suffix": encode(2), "é.png": encode(3, kind="PNG")}
TARS = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tar.bz2": "w:bz2", "a.tar.xz": "w:xz", "by-content": "w:gz"}


def make(path, content):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in content.items():
                file.writestr(name, data)
        return path
    with tarfile.open(path, TARS.get(path.name, "w")) as file:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def linked(path, kind=tarfile.SYMTYPE):
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo("link.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info)
        info = tarfile.TarInfo("good.jpg")
        info.size = len(CONTENT["wet dog/1.jpg"])
        file.addfile(info, io.BytesIO(CONTENT["wet dog/1.jpg"]))
    return path


@pytest.mark.parametrize("name", ["a.zip", *TARS])
def test_members_are_read_in_place_in_any_order(tmp_path, name):
    path = make(tmp_path / name, {**CONTENT, "notes.txt": b"x"})
    assert is_archive(path)
    archive = Archive(path)
    assert list(images_in(archive)) == list(CONTENT)
    for member in [*CONTENT, *reversed(CONTENT)]:
        assert archive.read(member) == CONTENT[member]
    assert list(tmp_path.iterdir()) == [path]
    assert not archive.refused


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
@pytest.mark.parametrize("evil", ["../up.jpg", "/etc/abs.jpg", "in/../../up.jpg"])
def test_names_that_lead_out_are_refused_and_named(tmp_path, name, evil):
    archive = Archive(make(tmp_path / name, {evil: b"x", "good.jpg": CONTENT["wet dog/1.jpg"]}))
    assert list(archive.members) == ["good.jpg"]
    assert list(archive.refused) == [evil]
    with pytest.raises(BadImage, match="no such member"):
        archive.read(evil)


def test_backslashes_of_a_zip_are_folders(tmp_path):
    archive = Archive(make(tmp_path / "a.zip", {"in\\a.jpg": b"x", "..\\b.jpg": b"y"}))
    assert list(archive.members) == ["in/a.jpg"]
    assert archive.read("in/a.jpg") == b"x"
    assert list(archive.refused) == ["..\\b.jpg"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    archive = Archive(linked(tmp_path / "a.tar", kind))
    assert list(archive.members) == ["good.jpg"]
    assert list(archive.refused) == ["link.jpg"]


def test_a_link_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        info = zipfile.ZipInfo("link.jpg")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")
    assert Archive(tmp_path / "a.zip").refused == {"link.jpg": "a link"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_read_once_and_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a.jpg", b"first")
        file.writestr("a.jpg", b"second")
    archive = Archive(tmp_path / "a.zip")
    assert archive.read("a.jpg") == b"first"
    assert list(archive.refused) == ["a.jpg#2"]


def test_a_member_without_a_name_is_refused(tmp_path):
    data = make(tmp_path / "a.zip", {"a.jpg": b"x", "b.jpg": b"y"}).read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(b"b.jpg", b"\0.jpg"))  # zipfile ends a name at a zero byte
    assert list(Archive(tmp_path / "a.zip").members) == ["a.jpg"]
    assert list(Archive(tmp_path / "a.zip").refused) == [""]


def test_an_encrypted_member_is_told(tmp_path):
    data = bytearray(make(tmp_path / "a.zip", {"a.jpg": b"x"}).read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    assert Archive(tmp_path / "a.zip").refused == {"a.jpg": "it is encrypted"}


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
def test_bombs_are_refused_before_they_go_off(tmp_path, name, monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 2**20)
    bomb = make(tmp_path / name, {f"{i}.bmp": bytes(2**20) for i in range(8)})
    assert bomb.stat().st_size * archives.MAX_RATIO < 8 * 2**20
    with pytest.raises(DataError, match="not read"):
        Archive(bomb)
    monkeypatch.setattr(archives, "FREE_BYTES", 2**30)
    assert len(Archive(bomb).members) == 8


def test_a_large_member_costs_itself(tmp_path):
    archive = Archive(make(tmp_path / "a.zip", {"large.bmp": bytes(5000), "a.jpg": b"x"}))
    with pytest.raises(BadImage, match="5,000 bytes, limit 1,000"):
        archive.read("large.bmp", 1000)
    assert archive.read("a.jpg") == b"x"


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_too_many_members_are_refused(tmp_path, name, monkeypatch):
    path = make(tmp_path / name, {f"{i}.jpg": b"" for i in range(30)})
    monkeypatch.setattr(archives, "MAX_MEMBERS", 30)
    assert len(Archive(path).members) == 30
    monkeypatch.setattr(archives, "MAX_MEMBERS", 29)
    with pytest.raises(DataError, match="more than 29 members"):
        Archive(path)


def test_a_million_members_are_refused_without_being_listed(tmp_path):
    """The list of a zip, written by hand: 10^6 entries would take a gigabyte once parsed."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    listing = entry * 10**6
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(listing), 4, 0)
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04" + listing + end)
    with pytest.raises(DataError, match="more than 250,000 members"):
        Archive(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["a.zip", *TARS])
def test_a_cut_archive_is_an_error_or_tells_what_is_missing(tmp_path, name):
    data = make(tmp_path / name, CONTENT).read_bytes()
    for end in range(0, len(data), max(1, len(data) // 60)):
        (tmp_path / name).write_bytes(data[:end])
        try:
            archive = Archive(tmp_path / name)
        except DataError:
            continue
        whole = 0
        for member in archive.members:
            try:
                assert archive.read(member) == CONTENT[member]
                whole += 1
            except BadImage:
                pass
        told = whole < len(archive.members) or archive.refused
        assert told or whole == len(CONTENT) or end % 512 == 0  # a tar that ends between members is whole


def test_a_damaged_header_in_the_middle_is_told(tmp_path):
    data = bytearray(make(tmp_path / "a.tar", CONTENT).read_bytes())
    second = data.index(b"dry/no-suffix")
    data[second + 148 : second + 156] = b"99999999"  # its checksum
    (tmp_path / "a.tar").write_bytes(data)
    archive = Archive(tmp_path / "a.tar")
    assert list(archive.members) == ["wet dog/1.jpg"]
    assert list(archive.refused.values()) == ["damaged header"]


def test_a_long_name_that_is_none_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as file:
        file.addfile(tarfile.TarInfo("n" * 2 * 2**20))
    with pytest.raises(DataError, match="larger than any name"):
        Archive(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x1f\x8b\x08", b"\x1f\x8bhello", b"BZh9", b"x" * 600]
)
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    if content == b"PK\x05\x06" + bytes(18):  # an empty zip
        assert not Archive(path).members
        return
    with pytest.raises(DataError, match="not read"):
        Archive(path)


def test_an_archive_is_listed_once_until_it_changes(tmp_path):
    path = make(tmp_path / "a.zip", {"a.jpg": b"1"})
    assert open_archive(path) is open_archive(path)
    make(tmp_path / "a.zip", {"b.jpg": b"12"})
    assert list(open_archive(path).members) == ["b.jpg"]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["a.zip", *TARS]), st.binary(min_size=1, max_size=24), st.floats(0, 1))
def test_altered_bytes_are_an_archive_or_a_czsl_error(tmp_path_factory, name, noise, where):
    path = tmp_path_factory.mktemp("altered") / name
    data = bytearray(make(path, CONTENT).read_bytes())
    place = int(where * len(data))
    data[place : place + len(noise)] = noise
    path.write_bytes(data)
    try:
        archive = Archive(path)
    except CzslError:
        return
    for member in images_in(archive):
        try:
            archive.read(member)
        except BadImage:
            continue
