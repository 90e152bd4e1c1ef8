"""HTML pages in one file: text is escaped, pictures travel inside, nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import DictLoader, Environment
from markupsafe import Markup

from czsl.printable import printable
from czsl.runs.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # told apart by the colour-blind too
THUMBNAIL = 160  # pixels of the longer side


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
    """Rows under column names; numbers stand to the right. ``sortable``: a click on a column sorts, if the browser runs scripts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    text: str = ""
    sortable: bool = False
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Plot:
    """A plot; ``svg``: what :func:`plot_svg` returns; ``alt``: a text for those who do not see it (default: the title)."""

    title: str
    svg: Markup
    text: str = ""
    alt: str = ""
    kind: str = field(default="plot", init=False)


def picture(image: Image.Image, size: int = THUMBNAIL) -> str:
    """A data URI of the image, shrunk to ``size`` pixels on its longer side."""
    small = image.convert("RGB")
    small.thumbnail((size, size))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


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
    script = _script() if any(getattr(s, "sortable", False) for s in sections) else ""
    policy = f"; script-src {script_hash(script)}" if script else ""
    return _templates.get_template("page").render(
        title=title, intro=intro, sections=sections, numeric=_numeric, script=Markup(script), policy=Markup(policy)
    )


@cache
def _script() -> str:
    return (files("czsl_cli") / "assets" / "tables.js").read_text(encoding="utf-8")


def script_hash(text: str) -> str:
    """Return the source of a content security policy that allows this very script or style, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def write_page(path: Path, title: str, sections: Sequence[Gallery | Table | Plot], intro: Sequence[str] = ()) -> None:
    """Write the page to a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render(title, sections, intro).encode())


def _numeric(cell: Any) -> bool:
    return isinstance(cell, int | float) or (str(cell)[:1] in set("0123456789-+.") and str(cell) != "")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'{{ policy }}">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #2e8b57; --bad: #c0392b; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p { margin: .2rem 0; opacity: .8; overflow-wrap: anywhere; }
.gallery { display: flex; flex-wrap: wrap; gap: 14px; margin-top: .6rem; }
figure { margin: 0; width: var(--size); }
figure img { width: var(--size); height: var(--size); object-fit: contain; background: var(--soft); }
figure img { border-radius: 6px; display: block; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; } .note { opacity: .65; }
.good img { outline: 3px solid var(--good); } .bad img { outline: 3px solid var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin-top: .6rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
.number { text-align: right; } td.number { white-space: nowrap; } tbody th { font-weight: normal; }
nav { margin: .6rem 0; } nav a { margin-right: .8rem; }
.plot svg { max-width: 100%; height: auto; background: white; border-radius: 6px; }
.pick { font: inherit; font-weight: bold; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; text-align: inherit; }
.pick:hover { text-decoration: underline; } [aria-sort=ascending] .pick::after { content: " \\2191"; }
[aria-sort=descending] .pick::after { content: " \\2193"; }
@media (prefers-color-scheme: dark) { .plot svg { filter: invert(.9) hue-rotate(180deg); } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for line in intro %}<p>{{ line }}</p>
{% endfor %}
{% if sections|length > 6 %}<nav aria-label="Sections">{% for section in sections %}<a href="#s{{ loop.index }}">{{ section.title }}</a>
{% endfor %}</nav>{% endif %}
{% for section in sections %}
<section>
<h2 id="s{{ loop.index }}">{{ section.title }}</h2>
{% for line in section.text.splitlines() %}<p>{{ line }}</p>{% endfor %}
{% if section.kind == "gallery" %}<div class="gallery" style="--size: {{ section.size }}px">
{% for card in section.cards %}<figure class="{{ card.tone }}">{% if card.link %}<a href="{{ card.link }}">{% endif -%}
<img src="{{ card.picture }}" alt="{{ card.caption }}">{% if card.link %}</a>{% endif %}

<figcaption>{{ card.caption }}{% if card.note %} <span class="note">{{ card.note }}</span>{% endif %}</figcaption></figure>
{% endfor %}</div>
{% elif section.kind == "table" %}<div class="wide" tabindex="0" role="region" aria-labelledby="s{{ loop.index }}">
<table aria-labelledby="s{{ loop.index }}"{% if section.sortable %} class="sortable"{% endif %}><thead><tr>
{% for column in section.columns %}{% set i = loop.index0 %}
<th scope="col"{% if i and section.rows and numeric(section.rows[0][i] or "") %} class="number"{% endif %}>{{ column }}</th>
{% endfor %}</tr></thead><tbody>
{% for row in section.rows %}<tr>{% for cell in row %}
{% if loop.first %}<th scope="row"{% if cell is number %} class="number"{% endif %}>{{ cell }}</th>
{% else %}<td{% if numeric(cell) %} class="number"{% endif %}>{{ cell }}</td>
{% endif %}{% endfor %}</tr>{% endfor %}</tbody></table></div>
{% else %}<div class="plot" role="img" aria-label="{{ section.alt or section.title }}">{{ section.svg }}</div>{% endif %}
</section>
{% endfor %}
{% if script %}<script>{{ script }}</script>{% endif %}

</body>
</html>
"""


def _safe(value: Any) -> Any:
    """Text as it may stand in a page; what is markup already stays."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else printable(value)


_templates = Environment(loader=DictLoader({"page": _PAGE}), autoescape=True, trim_blocks=True, finalize=_safe)
