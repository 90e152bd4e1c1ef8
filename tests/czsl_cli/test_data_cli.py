"""`czsl data` as a person or a script meets it."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from czsl.errors import CzslError
from czsl_cli.data import data, progress, spread


def run(*arguments):
    """Exit code, stdout and stderr, with the error of the program instead of a code where there is one."""
    result = CliRunner().invoke(data, [str(a) for a in arguments])
    error = result.exception if isinstance(result.exception, CzslError) else None
    if result.exception is not None and error is None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return error.exit_code if error else result.exit_code, result.stdout, result.stderr


@pytest.fixture
def tree(tmp_path):
    """A tree of 6 pairs x 5 images, one of them a text file."""
    for place, pair in enumerate(("wet dog", "wet cat", "wet hat", "dry dog", "dry cat", "dry hat")):
        folder = tmp_path / "tree" / pair
        folder.mkdir(parents=True)
        for number in range(5):
            pixels = np.random.default_rng([place, number]).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "tree" / "wet cat" / "te\x1b[31mxt.jpg").write_text("hello")
    return tmp_path / "tree"


def test_import_lists_what_it_skipped(tree, tmp_path):
    code, out, err = run("import", tree, tmp_path / "out", "--max-bad", "0.1")
    assert code == 0
    assert err == ""
    assert "wet cat/te\\x1b[31mxt.jpg (skipped)" in out  # no raw escape sequences from file names
    assert "\x1b" not in out
    assert "1 of 31 images unusable" in out


def test_import_stops_and_lists(tree, tmp_path):
    code, out, _ = run("import", tree, tmp_path / "out")
    assert code == 3
    assert "not an image: 1" in out
    assert not (tmp_path / "out").exists()
    code, out, _ = run("import", tree, tmp_path / "out", "--json")
    report = json.loads(out)
    assert code == 3
    assert report["folder"] is None
    assert [p["where"] for p in report["problems"]] == [["wet cat/te\x1b[31mxt.jpg"]]


def test_import_verify_stats_as_json(tree, tmp_path):
    code, out, _ = run("import", tree, tmp_path / "out", "--max-bad", "0.1", "--seed", "2", "--name", "wd", "--json")
    imported = json.loads(out)
    assert (code, imported["name"], imported["bad"], sum(imported["images"].values())) == (0, "wd", 1, 30)
    code, out, _ = run("verify", tmp_path / "out", "--json")
    assert (code, json.loads(out)["sha256"]) == (0, imported["sha256"])
    code, out, _ = run("stats", tmp_path / "out", "--json")
    assert (code, json.loads(out)["images"], json.loads(out)["open_world"]) == (0, 30, 6)


def test_stats_table(tree, tmp_path):
    run("import", tree, tmp_path / "out", "--max-bad", "0.1")
    code, out, err = run("stats", tmp_path / "out")
    assert code == 0
    assert err == ""
    for words in ("train", "of unseen pairs", "2 attributes x 3 objects: 6 pairs in the open world", "width 9 / 9 / 9"):
        assert words in out


def test_verify_fails_on_damage(tree, tmp_path):
    run("import", tree, tmp_path / "out", "--max-bad", "0.1")
    (tmp_path / "out" / "train-00000.parquet").write_bytes(b"x")
    code, out, _ = run("verify", tmp_path / "out")
    assert code == 3
    assert "unreadable shard: 1" in out


def test_exit_codes_of_wrong_use(tree, tmp_path):
    assert run("import", tree, tree / "out")[0] == 2
    assert run("import", tree, tmp_path / "out", "--max-bad", "2")[0] == 2
    assert run("import", tmp_path / "none", tmp_path / "out")[0] == 3
    assert run("verify", tree)[0] == 3
    assert run("stats", tmp_path / "none")[0] == 3
    assert run("import", tree, tmp_path / "out", "--attributes", tmp_path / "none.txt")[0] == 3


def test_force_replaces_a_dataset_only(tree, tmp_path):
    assert run("import", tree, tmp_path / "out", "--max-bad", "1")[0] == 0
    assert run("import", tree, tmp_path / "out", "--max-bad", "1")[0] == 2
    assert run("import", tree, tmp_path / "out", "--max-bad", "1", "--seed", "9", "--force")[0] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    assert run("import", tree, tmp_path / "mine", "--force")[0] == 2
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (None, "-"),
        ({"min": 3, "median": 1234567.5, "max": 2000000}, "3 / 1,234,567.5 / 2,000,000"),
        ({"min": 100, "median": 100.0, "max": 100}, "100 / 100 / 100"),
    ],
)
def test_spread(values, text):
    assert spread(values) == text


def test_the_documented_pixel_limit_is_the_one_in_use():
    from czsl.data.images import MAX_PIXELS

    for command in ("import", "verify"):
        option = next(p for p in data.commands[command].params if p.name == "max_pixels")
        assert option.default == MAX_PIXELS


def test_reading_a_dataset_never_imports_torch(tree, tmp_path):
    code = (
        "import sys; from czsl_cli.data import data; heavy = {'torch', 'pyarrow', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        f"data.main(['import', {str(tree)!r}, {str(tmp_path / 'out')!r}, '--max-bad', '1'], standalone_mode=False)\n"
        f"data.main(['stats', {str(tmp_path / 'out')!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_progress_bar_only_on_a_terminal(tree, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress("importing") as advance:
            advance(1, 2)
        assert ("importing" in stream.getvalue()) == shown


# -- tables, annotations, exports ----------------------------------------------------------------------------------
@pytest.fixture
def table(tree, tmp_path):
    """The tree's images in a table with other names of columns."""
    path = tmp_path / "tree" / "list.csv"
    rows = [(f"{p.parent.name}/{p.name}", *p.parent.name.split(), "training") for p in sorted(tree.glob("*/*.png"))]
    path.write_text("where;Colour;noun;phase\n" + "\n".join(";".join(row) for row in rows) + "\n")
    return path


def test_what_was_taken_for_what_is_printed(table, tmp_path):
    code, out, err = run("import", table, tmp_path / "out", "--columns", "image=where, attr=colour")
    assert code == 0
    assert "sha256" in out and "read as" not in out
    assert err.splitlines() == [
        "read as: manifest",
        "  columns: image=where, attr=Colour, obj=noun, split=phase",
        "  separated by: semicolons",
        "  splits: training=train",
    ]
    code, out, _ = run("import", table, tmp_path / "json", "--columns", "image=where,attr=colour", "--json")
    assert json.loads(out)["read_as"]["columns"] == {"image": "where", "attr": "Colour", "obj": "noun", "split": "phase"}


@pytest.mark.parametrize("columns", ["image", "image=", "image=where,image=x", "picture=where", "image=nowhere", "=where"])
def test_wrong_columns(table, tmp_path, columns):
    assert run("import", table, tmp_path / "out", "--columns", columns)[0] == 2


def test_names_of_columns_may_hold_signs(table, tmp_path):
    table.write_text(table.read_text().replace("Colour", "a, b=c"))
    code, _, err = run("import", table, tmp_path / "out", "--columns", "image=where,attr=a, b=c,obj=noun")
    assert code == 2  # b=c is taken for a role
    table.write_text(table.read_text().replace("a, b=c", "a, b"))
    code, _, err = run("import", table, tmp_path / "out", "--columns", "image=where,attr=a, b,obj=noun")
    assert code == 0 and "attr=a, b" in err


def test_control_characters_of_columns_are_escaped(table, tmp_path):
    table.write_text(table.read_text().replace("noun", "no\x1b[31mun"))
    code, _, err = run("import", table, tmp_path / "out", "--columns", "image=where,attr=Colour,obj=no\x1b[31mun")
    assert code == 0 and "\x1b" not in err and "no\\x1b[31mun" in err


def test_options_of_reading_reach_the_readers(tree, tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "wet cat/0.png", "width": 9, "height": 9}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": 1, "bbox": [2, 2, 4, 4], "attributes": ["wet", "old"], "split": "train"}
        ],
    }
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.json").write_text(json.dumps(content))
    assert run("import", tmp_path / "notes" / "a.json", tmp_path / "x", "--root", tree)[0] == 3  # several attributes
    options = ("--root", tree, "--several", "each", "--margin", "0.25", "--layout", "coco")
    code, _, err = run("import", tmp_path / "notes" / "a.json", tmp_path / "out", *options)
    assert code == 0 and "margin of 0.25" in err and "several attributes: each" in err
    assert run("stats", tmp_path / "out")[1].count("width 6 / 6 / 6") == 1


@pytest.mark.parametrize("form", ["imagefolder", "table", "coco"])
def test_export_and_import_again(tree, tmp_path, form):
    _, out, _ = run("import", tree, tmp_path / "data", "--max-bad", "0.1", "--json")
    code, text, err = run("export", tmp_path / "data", tmp_path / form, "--format", form)
    assert (code, err) == (0, "") and "30 images" in text
    code, again, _ = run("import", tmp_path / form, tmp_path / "again", "--json")
    assert (code, json.loads(again)["sha256"]) == (0, json.loads(out)["sha256"])
    code, _, err = run("export", tmp_path / "data", tmp_path / "part", "--format", form, "--split", "train", "--limit", "3")
    assert code == 0 and "a part" in err
    assert run("export", tmp_path / "data", tmp_path / "part", "--format", form)[0] == 2


def test_import_remembers_how_photographs_are_decoded(tree, tmp_path):
    code, out, _ = run("import", tree, tmp_path / "own", "--max-bad", "0.1")
    assert code == 0
    assert "decoded with orientation exif, background white" in out
    code, out, _ = run("stats", tmp_path / "own", "--json")
    assert json.loads(out)["decode"] == {"orientation": "exif", "background": "white"}
    code, out, _ = run(
        "import", tree, tmp_path / "as-is", "--max-bad", "0.1", "--orientation", "ignore", "--background", "#102030"
    )
    assert "decoded with orientation ignore, background #102030" in out
    assert "decoded with orientation ignore, background #102030" in run("stats", tmp_path / "as-is")[1]
    assert run("import", tree, tmp_path / "x", "--background", "pink")[0] == 2


def test_import_goes_by_content_and_tries_all_files_on_request(tree, tmp_path):
    (tree / "wet dog" / "0.png").rename(tree / "wet dog" / "no-suffix")
    (tree / "wet dog" / "notes.txt").write_text("no image")
    code, out, _ = run("import", tree, tmp_path / "a", "--max-bad", "0.1")
    assert code == 0
    assert "1 of 31 images unusable" in out
    assert "notes.txt (left out): neither its suffix nor its content" in out
    code, out, _ = run("import", tree, tmp_path / "b", "--max-bad", "0.1", "--all-files")
    assert "2 of 32 images unusable" in out
