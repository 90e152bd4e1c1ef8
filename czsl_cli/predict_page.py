"""``czsl predict --html``: images under their names with confidence; a page, and a folder of thumbnails and plain lists next to it.

Everything is local: the page loads nothing but its thumbnails, and its script is the only one that its policy lets run. Thumbnails are
written while predictions pass by, so memory holds names and probabilities only.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import DictLoader, Environment

from czsl.compositions import label_words
from czsl.data.images import BadImage, thumbnail
from czsl.data.inputs import ImageSource, as_source
from czsl.data.photographs import AS_SHOWN, DecodeOptions
from czsl.errors import UsageError
from czsl.runs.files import write_atomically
from czsl_cli.answers import candidate_words, doubt, percentage
from czsl_cli.console import printable
from czsl_cli.pages import asset, script_hash

SIZE = 192  # pixels of a thumbnail's longer side
LIST_IMAGES = 200  # of a plain list
THREADS, WAITING = 4, 64  # that make thumbnails; images that may wait for them
MARK = "czsl predict"  # the page's generator: what has it may be replaced
_OURS = re.compile(r"[0-9a-f]{24}\.jpg|list-\d+\.html|\..*\.tmp")


class PageRow(NamedTuple):
    """An image of the page.

    ``candidates``: label and probability of each, best first; ``thumb``: file in the page's folder, or empty; ``link``: URL of the image
    relative to the page; ``doubt``: see :func:`czsl_cli.answers.doubt`.
    """

    image: str
    link: str
    thumb: str
    candidates: tuple[tuple[dict[str, str], float], ...]
    doubt: str

    @property
    def name(self) -> str:
        """The words of the best candidate."""
        return label_words(self.candidates[0][0])


class PredictionPage:
    """A page that is filled record by record and written at the end.

    Parameters
    ----------
    path : Path
        The page. Its thumbnails and plain lists go to the folder ``<stem>.files`` next to it.
    source : ImageSource or Path
        The images, or the folder of them.
    decode : DecodeOptions, optional
        How thumbnails are decoded; by default as a viewer shows the image.

    Raises
    ------
    UsageError
        If a file of that name is not such a page, or the folder holds other files.
    """

    def __init__(self, path: Path, source: ImageSource | Path, decode: DecodeOptions = AS_SHOWN):
        self.path, self._source, self._decode = path, as_source(source), decode
        self.folder = files_folder(path)
        check_free(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._from = path.parent.resolve()
        self.rows: list[PageRow] = []
        self._pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))  # Pillow decodes outside the interpreter lock
        self._waiting: deque[tuple[int, Future[str]]] = deque()  # places of rows whose thumbnails are being made
        self.unreadable: list[tuple[str, str]] = []
        self._threshold = False

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record into the page and make its thumbnail, unless it is there from an interrupted run."""
        name = record["image"]
        if record["error"]:
            self.unreadable.append((name, record["error"]))
            return
        self._threshold |= "sure" in record
        keys = ("class",) if "class" in record["predictions"][0] else ("attr", "obj")
        candidates = tuple(({key: p[key] for key in keys}, float(p["prob"])) for p in record["predictions"])
        self._waiting.append((len(self.rows), self._pool.submit(self._thumbnail, name)))
        self.rows.append(PageRow(name, self._link(name), "", candidates, doubt(record)))
        self._collect(WAITING)

    def write(self, about: str) -> None:
        """Write lists and page, and remove what an earlier page left in the folder. ``about``: a line on how the names were found."""
        self._collect(0)
        self._pool.shutdown()
        self.rows.sort(key=lambda row: (row.name, row.candidates[0][1], row.image))
        images = f"{len(self.rows):,} image{'' if len(self.rows) == 1 else 's'}"
        facts = {"title": f"{images} under their names", "about": about, "unreadable": self._shown_unreadable()}
        total, lists = -(-len(self.rows) // LIST_IMAGES), []
        for number, groups in enumerate(self._groups(), 1):
            text = _render("list", **facts, groups=groups, number=number, total=total, back=quote(self.path.name))
            write_atomically(self.folder / f"list-{number}.html", text.encode(), sync=False)
            lists.append((f"list-{number}.html", groups[0][0], groups[-1][0]))
        text = _render("page", **facts, data=_script_json(self._data()), lists=lists, folder=quote(self.folder.name))
        write_atomically(self.path, text.encode())
        kept = {row.thumb for row in self.rows} | {file for file, _, _ in lists}
        for file in self.folder.iterdir():
            if file.name not in kept:
                file.unlink()

    def _collect(self, limit: int) -> None:
        """Wait until at most this many thumbnails are being made; what went wrong with one is raised here."""
        while len(self._waiting) > limit:
            place, made = self._waiting.popleft()
            self.rows[place] = self.rows[place]._replace(thumb=made.result())

    def _link(self, name: str) -> str:
        """The address of the image's file, or of the archive that it lies in."""
        root, _ = self._source.locations.get(name, (self._source.root, name))
        file = self._source.file(name) or root
        return quote(os.path.relpath(file, self._from).replace(os.sep, "/"))

    def _thumbnail(self, name: str) -> str:
        try:
            key = json.dumps([*self._source.stamp(name), SIZE, self._decode.key])
            file = f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.jpg"
            if not (self.folder / file).exists():
                content = io.BytesIO()
                thumbnail(self._source.open(name), SIZE, options=self._decode).save(content, "JPEG", quality=82)
                write_atomically(self.folder / file, content.getvalue(), sync=False)
            return file
        except (BadImage, FileNotFoundError):  # it changed after its prediction
            return ""

    def _shown_unreadable(self) -> list[tuple[str, str]]:
        return [(printable(name), printable(reason)) for name, reason in self.unreadable]

    def _data(self) -> dict[str, Any]:
        """The page's rows with the words of labels once each: small enough for ten thousand images."""
        words: dict[str, dict[str, int]] = {key: {} for key in ("attr", "obj", "class")}
        rows = []
        for row in self.rows:
            candidates = []
            for label, prob in row.candidates:
                locations = [words[k].setdefault(printable(v), len(words[k])) for k, v in label.items()]
                candidates.append([*locations, round(prob, 4)])
            rows.append([printable(row.image), row.link, row.thumb, row.doubt, candidates])
        used = {key: list(names) for key, names in words.items() if names}
        return {"words": used, "rows": rows, "folder": quote(self.folder.name), "threshold": self._threshold}

    def _groups(self) -> Iterator[list[tuple[str, int, list[dict[str, Any]]]]]:
        """For each plain list its names, with the number of their images and those of the list."""
        total: dict[str, int] = {}
        for row in self.rows:
            total[row.name] = total.get(row.name, 0) + 1
        for start in range(0, len(self.rows), LIST_IMAGES):
            part = self.rows[start : start + LIST_IMAGES]
            yield [(printable(n), total[n], [_plain(row) for row in rows]) for n, rows in groupby(part, key=lambda row: row.name)]


def files_folder(path: Path) -> Path:
    """Return the folder next to a page that holds its thumbnails and plain lists."""
    return path.with_name(f"{path.stem}.files")


def check_free(path: Path) -> None:
    """UsageError if writing the page would replace something that is not a page of this command."""
    folder = files_folder(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html {path}: a page ends in .html", "browsers choose by the suffix", f"--html {path.stem}.html")
    if path.is_file() and f'name="generator" content="{MARK}"'.encode() not in path.read_bytes()[:2000]:
        raise UsageError(f"{path} exists and is not a page of czsl predict", "it is not overwritten", "give another --html FILE")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is not a folder", "the page's thumbnails go there", "give another --html FILE")
    other = next((file.name for file in folder.iterdir() if not _OURS.fullmatch(file.name)), None) if folder.exists() else None
    if other is not None:
        raise UsageError(
            f"{folder} holds other files: {printable(other)}", "the page's thumbnails go there", "give another --html FILE"
        )


def _plain(row: PageRow) -> dict[str, Any]:
    """An image of a plain list."""
    others = [candidate_words({**label, "prob": prob}) for label, prob in row.candidates[1:4]]
    return {
        "image": printable(row.image),
        "link": f"../{row.link}",
        "thumb": row.thumb,
        "prob": percentage(row.candidates[0][1]).replace(" ", "\u00a0"),
        "others": printable(", ".join(others)).replace(" %", "\u00a0%"),
        "doubt": row.doubt,
    }


def _script_json(content: Any) -> str:
    """JSON that ends no script element and holds ASCII only."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _render(name: str, **values: Any) -> str:
    style, script = asset("base.css") + asset("predictions.css"), asset("predictions.js")
    policy = f"default-src 'none'; img-src 'self' file:; style-src {script_hash(style)}"
    if name == "page":
        policy += f"; script-src {script_hash(script)}"
    return _templates().get_template(name).render(style=style, script=script, policy=policy, mark=MARK, **values)


@cache
def _templates() -> Environment:
    sources = {name: asset(f"predictions-{name}.html") for name in ("page", "list")}
    return Environment(loader=DictLoader(sources), autoescape=True, trim_blocks=True, lstrip_blocks=True)
