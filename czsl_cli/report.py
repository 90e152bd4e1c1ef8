"""``czsl report``: one page about a run, to show to others."""

from __future__ import annotations

from pathlib import Path

import click

from czsl_cli.console import print_text, progress_bar, say, warn
from czsl_cli.options import named_run

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@named_run()
@click.option("--html", type=FILE, help="The page.  [default: report.html in the run's folder]")
@click.option("--figures", type=click.Path(file_okay=False, path_type=Path), help="Also write each plot there, as SVG and PDF.")
@click.option("--split", type=click.Choice(["test", "val"]), default="test", show_default=True, help="Images to report on.")
@click.option("--open-world", is_flag=True, help="Let all attribute-object pairs compete.")
@click.option("--checkpoint", default="best", show_default=True, help="best, last or a step.")
@click.option("--per-pair", type=click.IntRange(0), default=0, help="Number of images per pair.  [default: all]")
@click.option("--gallery", type=click.IntRange(0), default=6, show_default=True, help="Images of each kind in the gallery.")
@click.option("--published", metavar="DATASET", help="Show what papers report on DATASET next to the run, e.g. mit-states.")
@click.option(
    "--explain/--no-explain", default=True, show_default=True, help="Write a page of czsl explain for each gallery image."
)
def report(run, html, figures, gallery, published, explain, **asked) -> None:
    """Write a page about RUN (the newest one by default): settings, curves, confusions, tables and images.

    \b
      czsl report runs/mine
      czsl report runs/mine --html mine.html --figures figures --open-world

    The page holds everything it shows and works without a network and without scripts; only its tables need one to be sorted. Pages that
    explain the images of the gallery lie in a folder next to it (<page>.files). A run that was not evaluated yet is evaluated first. The
    page's path is printed on stdout.
    """
    from czsl.errors import UsageError
    from czsl_cli.published import check_dataset
    from czsl_cli.runs import chosen_run

    if published is not None:
        check_dataset(published)
    chosen = chosen_run(run)
    page = html or chosen.path / "report.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html {page}: a page ends in .html", "browsers choose by the suffix", f"--html {page.stem}.html")
    from cluster.work.evaluation import EvalConfig
    from czsl_cli.report_page import Material, gather, write_figures, write_report

    notes: list[str] = []

    def noted(text: str) -> None:
        notes.append(text)
        warn(text)

    with progress_bar() as bar:
        found: Material = gather(chosen, EvalConfig(**asked), gallery, bar.update, noted)
        found.benchmark = published
        links: dict[int, str] = {}
        if explain and found.shown:
            from czsl_cli.report_page import explain_images

            links = explain_images(found, page, asked["checkpoint"], bar.update, noted)
    plots = write_report(page, found, links, notes)
    if figures:
        for path in write_figures(plots, figures):
            say(f"written to {path}")
    print_text(page)
