"""Outputs of ``czsl predict`` to look at: a page, sorted folders, a review file. Each is fed record by record."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from czsl.printable import printable
from czsl_cli.console import say, warn

if TYPE_CHECKING:
    from cluster.work.request import PredictConfig
    from czsl.data.inputs import ImageSource
    from czsl.data.photographs import DecodeOptions

FILE = click.Path(dir_okay=False, path_type=Path)
_OPTIONS = (
    click.option("--html", type=FILE, metavar="PAGE.html", help="Write a page of the images under their names, and PAGE.files/."),
    click.option(
        "--sort-into",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Copy the images into folders of DIR named after their composition; nothing is overwritten.",
    ),
    click.option("--link", is_flag=True, help="With --sort-into: make symbolic links instead of copies."),
    click.option(
        "--review",
        type=FILE,
        metavar="FILE.csv",
        help="Write the doubtful images with their candidates, to be corrected and imported.",
    ),
    click.option(
        "--review-size",
        type=click.IntRange(1),
        metavar="N",
        help="Images in the review file, least sure first.  [default: those that are not sure; without a threshold 20]",
    ),
)


def people_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of this module; a command hands its options to :class:`PeopleOutputs`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class PeopleOutputs:
    """The requested outputs.

    Parameters
    ----------
    options : dict
        Options of the command; those of :func:`people_options` are taken out.
    source : ImageSource
        The images.
    out : Path, optional
        File of predictions that the command writes as well.

    Raises
    ------
    UsageError
        If an output would overwrite something, or would lie among the images. Nothing is written then.
    """

    def __init__(self, options: dict[str, Any], source: ImageSource, out: Path | None = None):
        from czsl.errors import UsageError
        from czsl_cli.sorting import check_apart

        self._html, self._dest = options.pop("html"), options.pop("sort_into")
        self._link, self._file, self._size = options.pop("link"), options.pop("review"), options.pop("review_size")
        self._source = source
        if self._link and not self._dest:
            raise click.UsageError("--link goes with --sort-into")
        if self._size and not self._file:
            raise click.UsageError("--review-size goes with --review")
        folders = [Path(_shown(root)) for root in source.folders if os.path.isdir(root)]  # noqa: PTH112
        for folder in folders if self._dest else ():
            check_apart(self._dest, folder)
        _check_files(self._html, self._file, out, folders, self._dest)
        if self._file and any(os.path.isfile(root) for root in source.roots):  # noqa: PTH113
            raise UsageError("--review with an archive", "the corrected file names images that must be files", "unpack it first")
        self._page: Any = None
        self._sorter: Any = None
        self._review: Any = None
        self._reviewed = 0

    def start(self, config: PredictConfig) -> None:
        """Make the folders, when nothing else can be wrong with the command."""
        if self._html:
            from czsl_cli.predict_page import PredictionPage

            self._page, self._about = PredictionPage(self._html, self._source, _decoding(config)), _about(config)
        if self._dest:
            from czsl_cli.sorting import Sorter

            self._sorter = Sorter(self._dest, self._source, self._source.names, _vocabulary(config), self._link)
        if self._file:
            from czsl_cli.review import Review

            self._review = Review(self._file, self._source, self._size)

    def add(self, record: Mapping[str, Any]) -> None:
        """Hand on a record."""
        for output in (self._page, self._sorter, self._review):
            if output is not None:
                output.add(record)

    def write(self) -> None:
        """Write what is written at the end: the page and the review file."""
        if self._page is not None:
            self._page.write(self._about)
        if self._review is not None:
            self._reviewed = self._review.write()

    def tell(self) -> bool:
        """Say what was made; False if an image that could be read could not be sorted."""
        if self._page is not None:
            say(f"page: {self._html}")
        if self._review is not None:
            images = f"{self._reviewed} image{'' if self._reviewed == 1 else 's'}"
            say(f"review: {images} in {self._file}; correct the labels, then: {self._review.next_step}")
        if self._sorter is None:
            return True
        for name, reason in self._sorter.failed.items():
            warn(f"{name}: {reason}")
        say(self._sorter.summary())
        return not self._sorter.failed


def _shown(path: str) -> str:
    """A path as people write it: relative to this folder, if it lies below."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _check_files(html: Path | None, review: Path | None, out: Path | None, folders: Sequence[Path], dest: Path | None) -> None:
    from czsl.errors import UsageError
    from czsl_cli.predict_page import check_free, files_folder
    from czsl_cli.review import check_new

    if html:
        check_free(html)
        thumbnails = files_folder(html).resolve()
        readers = [*((folder, "the next prediction") for folder in folders), (dest, "an import of the folders")]
        for place, reader in readers:
            if place is not None and thumbnails.is_relative_to(place.resolve()):
                raise UsageError(
                    f"--html {html} lies inside {place}", f"{reader} would find its thumbnails", "give a file outside of it"
                )
    if review:
        if out and review.resolve() == out.resolve():
            raise UsageError(f"{out} is given as --out and as --review", "they have different columns", "give two files")
        check_new(review)


def _decoding(config: PredictConfig) -> DecodeOptions:
    """Return the options for decoding images."""
    from czsl.data.photographs import AS_SHOWN
    from czsl.runs.run import Run

    usual = Run(config.run).config.decode if config.run else AS_SHOWN
    return usual.changed(config.orientation, config.background)


def _vocabulary(config: PredictConfig) -> Mapping[str, Sequence[str]]:
    """Names of labels, by kind."""
    from czsl.runs.run import Run
    from czsl.spaces import space_from_json

    if config.space is not None:
        return space_from_json(config.space).vocabulary
    assert config.run is not None
    return Run(config.run).space.vocabulary


def _about(config: PredictConfig) -> str:
    """Return a line for people on how names and confidence came about."""
    source = f"run {Path(config.run).name}, checkpoint {config.checkpoint}" if config.run else f"CLIP {config.clip}, zero-shot"
    return printable(f"Named by {source}. Confidence is the probability of a name among all candidates, as the model gives it.")
