"""``czsl feasibility``: how plausible each unseen composition is, as a file for open-world evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from czsl_cli.console import print_json, print_table, print_text, say
from czsl_cli.options import named_run

MAX_SHOWN = 10
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("words", nargs=-1, metavar="[RUN|DATA|SPACE.json]")
@named_run(others="words")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The vector, as .npy.")
@click.option(
    "--glove", type=FILE, help="Word vectors: a text file of lines with a word and numbers.  [default: CLIP's text tower]"
)
@click.option("--rename", type=FILE, help="JSON of names that --glove does not have: the words to look up instead.")
@click.option("--clip", default=None, help="CLIP whose text tower compares names.  [default: tiny]")
@click.option("--clip-weights", metavar="TAG|FILE", help="Weights of an open_clip model.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def feasibility(words, run, out, glove, rename, clip, clip_weights, as_json) -> None:
    """Write the feasibility of every attribute-object pair of RUN (the newest one by default), of DATA (a dataset folder, toy) or of a
    label space.

    \b
      czsl feasibility RUN --out feasibility.npy
      czsl feasibility mydata --clip ViT-L-14 --out feasibility.npy
      czsl feasibility mydata --glove glove.6B.300d.txt --out feasibility.npy
      czsl evaluate RUN --open-world --feasibility feasibility.npy

    A pair is feasible if its object is like one seen with its attribute, and its attribute like one seen with its object: the
    mean of the two best cosines, 0 for pairs seen in training. The file holds A * O float32 numbers, attribute by attribute.
    """
    from czsl.errors import UsageError
    from czsl_cli.runs import chosen_run, tell_unknown_words

    if glove and (clip or clip_weights):
        raise UsageError("--glove and --clip were given", "names are compared by one of them", "keep one")
    if rename and not glove:
        raise UsageError("--rename goes with --glove", "CLIP has a vector for every name", "add --glove FILE, or drop it")
    if out.suffix != ".npy":
        raise UsageError(f"--out {out} is no .npy file", "the vector is written as plain NumPy", f"--out {out.stem}.npy")
    if len(words) + (run is not None) > 1:
        raise UsageError("more than one label space was named", " ".join(map(str, [*words, *([run] if run else [])])), "name one")
    data = words[0] if words else None
    if data is None:
        chosen = chosen_run(run)
        space = chosen.space
        if clip is None and not glove:  # as `czsl evaluate --open-world` does by default
            clip, clip_weights = chosen.config.clip, chosen.config.clip_weights or clip_weights
    else:
        space = _space(data)
    space.pairs(open_world=True)  # refuses plain classes
    if glove:
        from czsl.evaluation.feasibility import feasibility_from_glove, read_rename

        values = feasibility_from_glove(glove, space, read_rename(rename) if rename else None)
    else:
        from czsl.clip.feasibility import feasibility_from_clip
        from czsl.clip.loading import load_clip

        tell_unknown_words(clip or "tiny", (*space.attributes, *space.objects))
        values = feasibility_from_clip(load_clip(clip or "tiny", clip_weights, features=True), space)
    _write(out, values)
    summary = _summary(values, space)
    if as_json:
        print_json({**summary, "source": str(glove) if glove else f"CLIP {clip or 'tiny'}", "out": str(out)})
    else:
        _print(summary)
    say(f"written to {out}")


def _space(data: str) -> Any:
    """The label space of a dataset, or of a JSON file."""
    from czsl.data.table import open_data
    from czsl.evaluation import read_space

    return read_space(data) if data.endswith(".json") or Path(data).is_file() else open_data(data).space


def _write(out: Path, values: Any) -> None:
    from czsl.runs.files import write_array

    out.parent.mkdir(parents=True, exist_ok=True)
    write_array(out, values)


def _summary(values: Any, space: Any) -> dict[str, Any]:
    """Counts, range and the ends of the ranking of unseen pairs."""
    import numpy as np

    from czsl.evaluation import threshold_grid

    unseen = np.flatnonzero(~space.seen_mask(space.open_pairs))
    summary: dict[str, Any] = {"pairs": len(values), "unseen": len(unseen), "seen": len(values) - len(unseen)}
    if not len(unseen):
        return {**summary, "min": None, "max": None, "thresholds": [], "most": [], "least": []}
    ranked = unseen[np.argsort(-values[unseen], kind="stable")]

    def named(places: Any) -> list[dict[str, Any]]:
        pairs = (divmod(int(place), space.num_objects) for place in places)
        return [
            {"attr": space.attributes[a], "obj": space.objects[o], "feasibility": float(values[a * space.num_objects + o])}
            for a, o in pairs
        ]

    return {
        **summary,
        "min": float(values[unseen].min()),
        "max": float(values[unseen].max()),
        "thresholds": threshold_grid(values, ~np.isin(np.arange(len(values)), unseen)).tolist(),
        "most": named(ranked[:MAX_SHOWN]),
        "least": named(ranked[::-1][:MAX_SHOWN]),
    }


def _print(summary: dict[str, Any]) -> None:

    title = f"{summary['pairs']:,} pairs, {summary['unseen']:,} unseen"
    if not summary["unseen"]:
        print_text(f"{title}: every pair occurs in training, nothing is left to judge")
        return
    title += f"; feasibility of the unseen from {summary['min']:.4f} to {summary['max']:.4f}"
    rows = []
    for most, least in zip(summary["most"], summary["least"], strict=True):
        ends = [(f"{p['attr']} {p['obj']}", f"{p['feasibility']:.4f}") for p in (most, least)]
        rows.append([*ends[0], *ends[1]])
    print_table(["most feasible", "", "least feasible", ""], rows, title)
