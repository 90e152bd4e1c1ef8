"""Pages hold everything they show, and nothing that a file name could smuggle in."""

import base64
import io

from PIL import Image

from czsl_cli.pages import Card, Gallery, Plot, Table, picture, plot_svg, render, write_page


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
