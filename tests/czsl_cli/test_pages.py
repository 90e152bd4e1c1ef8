"""Pages hold everything they show, and nothing that a file name could smuggle in."""

import base64
import io

from PIL import Image

from czsl_cli.console import numeric
from czsl_cli.pages import OPEN_UP_TO, Card, Gallery, Plot, Table, legend_below, picture, plot_svg, render, write_page


def _figure():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1], [1, 0], label="<b>")
    return figure


def test_text_is_escaped_everywhere():
    evil = '<script>alert("x")</script>'
    shown = picture(Image.new("RGB", (8, 8)))
    sections = [Gallery(evil, [Card(shown, evil, evil)], evil), Table(evil, [evil], [[evil]], evil)]
    page = render(evil, sections, [evil])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 12  # title twice, intro, each field (the caption also as alt)


def test_a_picture_is_shrunk_and_travels_inside():
    uri = picture(Image.new("RGB", (400, 200), (200, 10, 10)), size=100)
    opened = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert opened.size == (100, 50)
    assert abs(opened.getpixel((50, 25))[0] - 200) < 4


def test_a_plot_is_inline_and_the_same_twice(tmp_path):
    first, second = plot_svg(_figure()), plot_svg(_figure())
    assert first == second
    assert first.startswith("<svg")
    write_page(tmp_path / "new" / "page.html", "curves", [Plot("one", first)])
    page = (tmp_path / "new" / "page.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org/", "").replace("http-equiv", "").split("<svg")[0]


def test_numbers_stand_to_the_right():
    page = render("t", [Table("numbers", ["name", "value"], [["a", "-0.5"], ["b", 3]])])
    assert page.count('class="number"') == 3  # the heading of the column too


def test_a_column_is_numeric_as_a_whole():
    rows = [["lr", "2, 64, 0.002", "0011-171.png", "51.2 ± 0.3", 0], ["0:46", "clusPro", "12.jpg", "-", ""]]
    assert Table("t", ["a"] * 5, rows).numeric == [False, False, False, True, True]
    numbers = [
        "1,234",
        "36.4 to 45.9",
        "+2.3 [+0.3, +4.2] / -1.0",
        "+1.2 (seeds from +0.3 to +2.1)",
        "0.9 GiB",
        "<1 %",
        "1e-05",
        "3 of 7",
    ]
    for cell in numbers:
        assert numeric([cell, "", "-", None]), cell
    for cell in ("24 images", "5-shot", "2026 model", "1.2.3+cpu", "-", "", "ViT-L/14", "3 labels", "1" + " (" * 5000 + "x"):
        assert not numeric([cell]), cell[:20]


def test_headings_and_cells_without_text_are_no_heads():
    page = render("t", [Table("key and value", ["", ""], [["lr", "x"]]), Table("two", ["run", ""], [["a", "b"], ["", "c"]])])
    assert page.count("<thead>") == 1
    assert "<th" in page and "></th>" not in page
    assert "<table" not in render("t", [Table("Problems", ["kind"], [], "None were found.")])


def test_a_picture_that_is_missing_is_said_and_not_broken():
    page = render("t", [Gallery("g", [Card("", "gone")])])
    assert "<img" not in page and "no picture" in page


def test_the_list_of_sections_folds_up_when_it_is_long():
    def shown(count):
        return render("t", [Table(f"part {i}", ["a"], [["b"]]) for i in range(count)])

    assert "<details" not in shown(3)
    assert "<details open>" in shown(OPEN_UP_TO)
    assert "<details>" in shown(OPEN_UP_TO + 1) and 'href="#s13"' in shown(OPEN_UP_TO + 1)


def test_code_in_a_sentence_smuggles_nothing_in():
    page = render("t", [], ["`czsl data verify` lists `<b>all</b>`"])
    assert "<p><code>czsl data verify</code> lists <code>&lt;b&gt;all&lt;/b&gt;</code></p>" in page


def test_a_legend_lies_below_the_axes():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], label="one")
    legend_below(axes, 1, "title")
    figure.canvas.draw()
    assert axes.get_legend().get_window_extent().y1 < axes.xaxis.label.get_window_extent().y1
