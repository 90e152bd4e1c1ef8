"""Pages as a reader sees them: on a telephone and a wide screen, in light and dark, with and without scripts."""

from __future__ import annotations

import pytest
from browser import CHROMIUM, Browser
from PIL import Image

from czsl_cli.pages import Card, Gallery, Plot, Table, picture, plot_svg, write_page
from czsl_cli.predict_page import PredictionPage

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

LONG = "a_name_without_any_space_" * 12


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with everything that can be too wide."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4))
    figure.subplots().plot([0, 1])
    shown = picture(Image.new("RGB", (480, 300), (90, 10, 10)))
    columns = ["name", "one", "", "a rather long heading", "four", LONG]
    sections = [
        Gallery(f"{LONG} pictures", [Card(shown, LONG, LONG, "good"), Card("", "gone", "0.5", "bad", "x.html")], LONG, 480),
        Table(f"{LONG} table", columns, [["row", 1.5, "x", LONG, -3, "4"], ["", 2, "y", "b", 3, ""]], LONG, sortable=True),
        Table("Problems", ["kind", "where"], [], "None were found."),
        Plot(f"{LONG} plot", plot_svg(figure), LONG),
        *(Table(f"Part {i}", ["", ""], [["setting", "2, 64, 0.002"]]) for i in range(12)),
    ]
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, f"Run {LONG}", sections, [f"About {LONG} and `code`."])
    return path


@pytest.fixture(scope="module")
def prediction_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictions")
    made = PredictionPage(folder / "page.html", folder)
    for i in range(5):
        name = f"{LONG[: 40 * i]}{i}.jpg"
        Image.new("RGB", (40, 30), (60 * i, 90, 120)).save(folder / name)
        found = [{"attr": "wet", "obj": LONG if i == 3 else f"dog {i // 2}", "score": 1.0, "prob": 0.1 + 0.2 * i}]
        made.add({"image": name, "predictions": found, "error": None, "sure": i > 1})
    made.add({"image": LONG, "predictions": [], "error": f"not an image: {LONG}"})
    made.write(f"Named by {LONG}.")
    return folder / "page.html"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
def test_everything_can_be_read(browser, page, prediction_page, width, dark):
    for path in (page, prediction_page, next(prediction_page.parent.glob("page.files/list-*.html"))):
        found = browser.look(path, width, dark)
        assert found.pop("dark") == dark
        text = found.pop("text")
        assert found == {"faint": [], "outside": [], "sideways": 0, "alt": [], "scope": []}, path
        assert len(text) > 500


def test_without_scripts_nothing_is_missing(browser, page, prediction_page):
    with_scripts, without = (browser.look(page, 400, scripts=scripts)["text"] for scripts in (True, False))
    assert without == with_scripts
    shown = browser.look(prediction_page, 400, scripts=False)["text"]
    assert "Without scripts" in shown and f"wet {LONG} to wet dog 2" in shown
