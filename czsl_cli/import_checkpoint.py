"""``czsl import-checkpoint``: a run from a checkpoint of a public program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from czsl_cli.console import print_json, print_table, print_text, say, warn

if TYPE_CHECKING:
    from torch import Tensor

    from czsl.clip.backbone import Clip
    from czsl.compositions import CompositionSpace
    from czsl.data.table import Dataset
    from methods.parts.public import PublicNames
    from methods.reference import Imported

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
CLIP_FILE = "clip.safetensors"


@click.command(name="import-checkpoint")
@click.argument("file", type=FILE)
@click.option("--method", "-m", required=True, help="The method it was trained with: csp, troika, cluspro, msci or caila.")
@click.option(
    "--labels", metavar="FILE|DATASET", help="Its attributes and objects in the order of its rows.  [default: those of --data]"
)
@click.option("--data", "-d", metavar="DATASET", help="Dataset to evaluate on.  [default: --labels, where that is a dataset]")
@click.option("--clip", help="The CLIP it was trained with.  [default: the one in the file, where it holds one]")
@click.option("--clip-weights", metavar="TAG|FILE", help="Weights of --clip.")
@click.option("--config", "config_file", type=FILE, help="The public program's own configuration (YAML or JSON).")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Run folder to make.  [default: runs/<method>-<file>]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def import_checkpoint(file, method, labels, data, clip, clip_weights, config_file, out, as_json) -> None:
    """Make a run of FILE, a checkpoint (.pt, .pth, .t7) that a public program saved; `czsl evaluate` and `czsl predict` take it.

    \b
      czsl import-checkpoint soft_embeddings.pt --method csp --data mit-states --clip ViT-L-14
      czsl import-checkpoint val_best.pt --method troika --labels space.json --data ut-zappos
      czsl import-checkpoint ckpt_best_auc.t7 --method caila --data mit-states

    Only tensors are read, nothing is unpickled. --labels is a dataset or a JSON file {"attributes": [...], "objects": [...],
    "train_pairs": [["wet", "dog"], ...]}, lists in the order of the checkpoint's rows (public programs sort them). The run folder's path
    is printed on stdout.
    """
    from czsl.clip.weights import read_state
    from methods.reference import public_names, read_reference
    from methods.registry import canonical_name

    method = canonical_name(method)
    public = public_names(method)  # a method without public checkpoints is refused before anything is read
    out = (out or Path("runs") / f"{method}-{file.stem}").resolve()
    _check_free(out)
    space, dataset, where = _labels(labels, data, has_rows=public.table is not None)
    state = read_state(file, "a checkpoint")
    public.translate(state)  # another program's file is refused before its CLIP is looked for
    towers, named = _clip(state, public, clip, clip_weights, out)
    imported = read_reference(method, state, space, towers, _read_config(config_file))
    if dataset is not None:
        imported.method = _on(imported.method, dataset)
    kept = {} if clip else public.towers(state)
    facts = _write(out, imported, file, where, named, kept)
    if dataset is None:
        say("without --data there is nothing to evaluate on: name a dataset with czsl evaluate --data")
    _print(facts, out, as_json)


def _refuse(what: str, why: str, fix: str) -> None:
    from czsl.errors import UsageError

    raise UsageError(what, why, fix)


def _check_free(out: Path) -> None:
    if out.exists():
        _refuse(f"{out} exists", "a run is never overwritten", "choose another --out")


def _labels(labels: str | None, data: str | None, has_rows: bool) -> tuple[CompositionSpace, Dataset | None, str]:
    """The label space of the checkpoint's rows (if it has any), the dataset, and how the run names it."""
    from czsl.data.table import open_data
    from czsl.spaces import load_space

    is_file = labels is not None and Path(labels).is_file()
    if labels not in (None, "toy") and not Path(str(labels)).exists():
        _refuse(f"no labels at {labels}", "no file or dataset exists at this path", "check --labels")
    if labels is None and data is None:
        _refuse("the checkpoint's labels are not known", "its file does not name them", "give --labels FILE or --data DATASET")
    data = data or (None if is_file else labels)
    dataset = open_data(data) if data else None
    space = load_space(labels) if is_file and labels else open_data(labels or data or "").space
    for what, names in (("attributes", space.attributes), ("objects", space.objects)):
        if has_rows and list(names) not in (sorted(names), sorted(names, key=str.lower)):
            warn(f"the {what} are not sorted: rows are taken in the order given (public programs sort theirs)")
    return space, dataset, "toy" if data == "toy" else str(Path(data or labels or "").resolve())


def _clip(
    state: dict[str, Tensor], public: PublicNames, name: str | None, weights: str | None, out: Path
) -> tuple[Clip, dict[str, Any]]:
    """The CLIP to use, and the run's settings that name it; one that is given must be the one in the file."""
    from czsl.clip.loading import load_clip
    from czsl.clip.weights import absolute
    from methods.reference import clip_in

    if name is None:
        if weights is not None:
            _refuse("--clip-weights belongs to --clip", "they are the weights of a model", "give --clip as well")
        own = clip_in(state, public)
        if own is None:
            _refuse(
                "the checkpoint holds no CLIP", "it has no tensors clip.*", "give the one it was trained with: --clip ViT-L-14"
            )
        assert own is not None
        return own, {"clip": str(out / CLIP_FILE)}
    given, own = load_clip(name, weights), clip_in(state, public)
    if own is not None:
        _check_same(own, given)
    return given, {"clip": absolute(name), "clip_weights": absolute(weights) if weights else None}


def _check_same(own: Clip, given: Clip) -> None:
    """Refuse a CLIP that is not the checkpoint's; public programs keep the first rows of the positional table only."""
    import torch

    ours = given.state_dict()
    for key, value in own.state_dict().items():
        other = ours.get(key)
        if other is not None and key == "text.positional_embedding":
            other = other[: len(value)]
        if other is None or other.shape != value.shape or not torch.allclose(other, value, atol=1e-3, rtol=1e-3):
            _refuse(
                f"{given.name} is not the CLIP in the checkpoint",
                f"they differ in {key}",
                "leave out --clip to use the one in the file",
            )


def _read_config(path: Path | None) -> dict[str, Any]:
    """Settings of a public program's configuration file; groups of them are flattened."""
    from czsl.errors import UsageError
    from czsl.reading import read_yaml

    if path is None:
        return {}
    error_texts = {"head": "{path} is neither YAML nor JSON", "fix": "give the program's own configuration file"}
    content = read_yaml(path, any_keys=True, error=UsageError, **error_texts)
    if not isinstance(content, dict):
        _refuse(
            f"{path} holds no settings", "a mapping of names to values is expected", "give the program's own configuration file"
        )
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= value if isinstance(value, dict) else {str(key): value}
    return flat


def _on(method, dataset: Dataset):
    """The method on the dataset's own label space: the same labels, perhaps in another order."""
    from czsl.compositions import prompt_name

    here, there = method.space, dataset.space
    for what in ("attributes", "objects"):
        ours, theirs = ({prompt_name(n) for n in getattr(s, what)} for s in (here, there))
        if ours != theirs:
            odd = sorted(ours ^ theirs)
            _refuse(
                f"{dataset.folder} has other {what} than --labels",
                f"not in both: {', '.join(odd[:5])}",
                "give the dataset of these labels",
            )
    return method.for_space(there)


def _write(out: Path, imported: Imported, file: Path, data: str, clip: dict[str, Any], kept: dict[str, Tensor]) -> dict[str, Any]:
    """Write the run folder, with the checkpoint's own CLIP (``kept``) where that is used; what was read of the checkpoint."""
    import time
    from dataclasses import asdict

    from safetensors.torch import save_file

    from czsl.data.photographs import AS_STORED
    from czsl.runs import checkpoint
    from czsl.runs.config import RunConfig
    from czsl.runs.files import sha256_file
    from czsl.runs.run import Run

    method, translation = imported.method, imported.translation
    config = RunConfig(method=method.name, data=data, **clip, epochs=0, model=asdict(method.config))
    config.remember(AS_STORED)  # as the public programs read images
    run = Run.create(config, method.space, out.parent, out.name)
    if kept:
        save_file({k: v.clone() for k, v in kept.items()}, out / CLIP_FILE)
    state = {
        "step": 0, "epoch": 0, "place": 0, "best_auc": -1.0, "method": method.name,
        "clip_sha256": method.clip.sha256, "clip": method.clip.architecture,
        "space": {"attributes": list(method.space.attributes), "objects": list(method.space.objects)},
    }  # fmt: skip
    path = checkpoint.save(run.checkpoints, checkpoint.Checkpoint(method.state_dict(), {}, state))
    checkpoint.mark_best(run.checkpoints, path, step=0, epoch=0, auc=None)
    facts = {
        "run": str(out), "file": str(file.resolve()), "sha256": sha256_file(file),
        "used": dict(sorted(translation.origin.items())), "ignored": sorted(translation.ignored),
    }  # fmt: skip
    run.write_environment(seed=0, imported=facts)
    run.log({"event": "end", "status": "done", "step": 0, "time": round(time.time(), 3)})
    return facts


def _print(facts: dict[str, Any], out: Path, as_json: bool) -> None:
    from collections import Counter

    if as_json:
        print_json(facts)
        return
    rows: dict[str, list[str]] = {}
    for own, names in facts["used"].items():
        public = names[0].split(".")[0]
        rows.setdefault(public if len(names) == 1 else public.rstrip("0123456789") + "*", []).append(own)
    table = [[public, _common(own), sum(len(facts["used"][k]) for k in own)] for public, own in rows.items()]
    unread = Counter(name.split(".")[0].rstrip("0123456789") for name in facts["ignored"])
    towers = {"clip": "(the CLIP)", "clip_model": "(the CLIP)", "text_encoder": "(the CLIP again)"}
    table += [[public, towers.get(public, "(not read by its program)"), count] for public, count in sorted(unread.items())]
    print_table(["in the file", "here", "tensors"], table, err=True)
    shown = out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out
    say(f"next: czsl evaluate {shown}    czsl predict FOLDER --run {shown}")
    print_text(shown)


def _common(names: list[str]) -> str:
    """The parts that several names begin with."""
    from os.path import commonpath

    if len(names) == 1:
        return names[0]
    heads = sorted({name.split(".")[0] for name in names})
    common = commonpath([name.replace(".", "/") for name in names]).replace("/", ".")
    return common + ".*" if common else ", ".join(f"{head}.*" for head in heads)
