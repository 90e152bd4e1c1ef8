"""HTML pages in one file: text is escaped, pictures travel inside, nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import DictLoader, Environment
from markupsafe import Markup, escape

from czsl.printable import printable
from czsl.runs.files import write_atomically
from czsl_cli.console import numeric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # told apart by the colour-blind too
THUMBNAIL = 160  # pixels of the longer side
OPEN_UP_TO = 12  # sections in the list at the top of a page; a longer list is folded up


@dataclass(frozen=True)
class Card:
    """A picture with words. ``picture``: what :func:`picture` returns; ``tone``: ``good``, ``bad`` or empty, shown as a colour.

    ``link`` is the address of a page about the picture, relative to this one.
    """

    picture: str
    caption: str
    note: str = ""
    tone: str = ""
    link: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side under a heading, each in a square of ``size`` pixels."""

    title: str
    cards: Sequence[Card]
    text: str = ""
    size: int = THUMBNAIL
    kind: str = field(default="gallery", init=False)


@dataclass(frozen=True)
class Table:
    """Rows under column names; columns of numbers stand to the right. Without rows only the text is shown.

    ``sortable``: a click on a column sorts, if the browser runs scripts.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    text: str = ""
    sortable: bool = False
    kind: str = field(default="table", init=False)

    @property
    def numeric(self) -> list[bool]:
        """Return for each column whether it holds numbers only."""
        return [numeric([row[i] for row in self.rows]) for i in range(len(self.columns))]


@dataclass(frozen=True)
class Plot:
    """A plot; ``svg``: what :func:`plot_svg` returns; ``alt``: a text for those who do not see it (default: the title)."""

    title: str
    svg: Markup
    text: str = ""
    alt: str = ""
    kind: str = field(default="plot", init=False)

    @property
    def width(self) -> str:
        """Return the width of the drawing as CSS: on a narrow screen it shrinks only as far as its labels can be read."""
        found = re.search(r'<svg[^>]*? width="([\d.]+)pt"', self.svg[:2000])
        return f"{found[1]}pt" if found else "0"


def picture(image: Image.Image, size: int = THUMBNAIL) -> str:
    """A data URI of the image, shrunk to ``size`` pixels on its longer side."""
    small = image.convert("RGB")
    small.thumbnail((size, size))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def legend_below(axes: Axes, columns: int, title: str | None = None) -> None:
    """Draw the legend below the axes, so that it never lies on the curves."""
    axes.legend(
        frameon=False, fontsize="small", title=title, title_fontsize="small", ncols=columns,
        loc="upper center", bbox_to_anchor=(0.5, -0.16),
    )  # fmt: skip


def plot_svg(figure: Figure) -> Markup:
    """A matplotlib figure as inline SVG, the same bytes for the same figure."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "czsl", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(printable(text[text.index("<svg") :], keep="\n\t"))


def render(title: str, sections: Sequence[Gallery | Table | Plot], intro: Sequence[str] = ()) -> str:
    """Return the page as text: everything is inside, and only tables that can be sorted bring a script."""
    script = asset("tables.js") if any(getattr(s, "sortable", False) for s in sections) else ""
    policy = f"; script-src {script_hash(script)}" if script else ""
    style = Markup(asset("base.css") + asset("page.css"))
    page = _templates().get_template("page")
    about = {"title": title, "intro": intro, "sections": sections, "open_up_to": OPEN_UP_TO}
    return page.render(**about, style=style, script=Markup(script), policy=Markup(policy))


@cache
def asset(name: str) -> str:
    """Return the text of a file in ``czsl_cli/assets``."""
    return (files("czsl_cli") / "assets" / name).read_text(encoding="utf-8")


def script_hash(text: str) -> str:
    """Return the source of a content security policy that allows this very script or style, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def write_page(path: Path, title: str, sections: Sequence[Gallery | Table | Plot], intro: Sequence[str] = ()) -> None:
    """Write the page to a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render(title, sections, intro).encode())


def _code(text: str) -> Markup:
    """Return text with what stands between backticks as code."""
    return Markup(re.sub("`([^`<>]+)`", r"<code>\1</code>", str(escape(_safe(text)))))


def _safe(value: Any) -> Any:
    """Text as it may stand in a page; what is markup already stays."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else printable(value)


@cache
def _templates() -> Environment:
    made = Environment(loader=DictLoader({"page": asset("page.html")}), autoescape=True, trim_blocks=True, finalize=_safe)
    made.filters["code"] = _code
    return made
