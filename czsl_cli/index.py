"""``czsl index``: composition indexes of runs, for open worlds too large to score pair by pair."""

from __future__ import annotations

from pathlib import Path

import click

from czsl_cli.console import print_json, print_table, print_text, progress_bar, say, warn
from czsl_cli.options import named_run, placement_options, where_of


@click.group()
def index() -> None:
    """Index the compositions of an open world, so that predictions need not score all of them.

    \b
      czsl index build RUN
      czsl predict photos/ --run RUN --open-world
    """


@index.command()
@named_run()
@click.option(
    "--kind",
    type=click.Choice(["flat", "ivf"]),
    default="flat",
    show_default=True,
    help="flat: exact scan of all embeddings; ivf: embeddings grouped in cells, for approximate answers with --probes.",
)
@click.option("--cells", type=click.IntRange(1), help="Cells of ivf.  [default: the square root of the number of pairs]")
@click.option("--checkpoint", default="best", show_default=True, help="best, last or a step.")
@placement_options
def build(run, kind, cells, checkpoint, **options) -> None:
    """Encode all attribute-object pairs of RUN (the newest one by default) and keep them in RUN/index.

    What an interrupted build has encoded is used by the next one.
    """
    where = where_of(options)
    from czsl.errors import UsageError
    from czsl_cli.runs import chosen_run, usable_checkpoint

    if cells and kind == "flat":
        raise UsageError("--cells goes with --kind ivf", "a flat index has none", "drop --cells or give --kind ivf")
    chosen = chosen_run(run)
    chosen.space.pairs(open_world=True)  # refuses plain classes, of which all are scored anyway
    usable_checkpoint(chosen, checkpoint)
    from cluster.index import build_index
    from cluster.work.indexing import IndexConfig

    plan = IndexConfig(str(chosen.path), checkpoint, kind, cells, chosen.config.seed)
    with progress_bar() as bar:
        folder = build_index(plan, **where, progress=bar.update, notice=warn)
    _describe(folder)
    print_text(str(folder))


@index.command()
@named_run()
@click.option("--json", "as_json", is_flag=True, help="Print the index's own description.")
def show(run, as_json) -> None:
    """Describe the index of RUN and say whether it belongs to the best checkpoint."""
    from czsl.errors import UsageError
    from czsl.retrieval.storage import describe
    from czsl_cli.runs import chosen_run

    chosen = chosen_run(run)
    from cluster.work.indexing import folder_of, fresh_index

    folder = folder_of(chosen)
    if not (folder / "index.json").is_file():
        raise UsageError(f"{chosen.path.name} has no index", f"looked for {folder}", f"czsl index build {chosen.path}")
    fresh = fresh_index(chosen) is not None
    if as_json:
        print_json({"folder": str(folder), "fresh": fresh, **describe(folder)})
        return
    _describe(folder)
    say("it belongs to the best checkpoint" if fresh else "it is of another checkpoint: build it again to use it")


def _describe(folder: Path) -> None:
    from czsl.retrieval.storage import describe

    facts = describe(folder)
    size = sum(p.stat().st_size for p in folder.iterdir())
    rows = [["kind", facts["kind"]], ["compositions", f"{facts['pairs']:,}"], ["dimensions", facts["dim"]]]
    if facts.get("cells"):
        rows.append(["cells", facts["cells"]])
    rows += [["made from", facts["meta"]["origin"].get("checkpoint", "CLIP")], ["on disk", f"{size / 2**20:,.1f} MiB"]]
    print_table(["index", ""], rows, err=True)
