"""Real files of every kind that the program reads, made by the program itself, and the commands that read them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Case:
    """A file and what reads it: words of the command line (``{file}`` stands for its path), or a function of the path."""

    name: str
    file: Path
    reader: list[str] | Callable[[Path], Any]
    after: Callable[[Path], None] = lambda path: None  # makes the damage look meant: new checksums, say


# -- real files --------------------------------------------------------------------------------------------------------
def prepare(root: Path) -> list[Case]:
    """Real files of each kind below a folder, made by the program itself; no Ray is needed."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from cluster.tuning.adaptation_search import AdaptationSearch, AdaptationSearchConfig
    from cluster.tuning.adapting import search_adaptation
    from czsl.clip.loading import load_clip
    from czsl.data.files.ambiguity import make_partial_labels
    from czsl.data.files.partial_labels import write_partial_labels
    from czsl.data.files.predictions import Partial
    from czsl.data.table import Record, open_data, write_dataset
    from czsl.data.toy import dataset as toy
    from czsl.evaluation import SavedEvaluation, write_scores
    from czsl.retrieval.index import CompositionIndex
    from czsl.runs.checkpoint import Checkpoint, mark_best, save
    from czsl.runs.files import sha256_file, write_json
    from czsl.runs.run import Run
    from czsl.runs.trials import Search, SearchConfig
    from czsl_cli.config import resolve
    from methods.building import build
    from methods.fingerprint import fingerprint

    root.mkdir(parents=True, exist_ok=True)
    os.environ["CZSL_CACHE"], os.environ["CZSL_HOME"] = str(root / "cache"), str(root / "home")
    os.chdir(root)
    space = toy.space()
    write_dataset(root / "ds", space, (Record(n, png, a, o, s) for n, a, o, s, png in toy.samples(scale=0.01)), "drawn")
    data, clip = open_data(root / "ds"), load_clip("tiny")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(root / "dog.png")
    (root / "home").mkdir()
    state = {"address": "127.0.0.1:1", "role": "head", "mark": "x"}
    write_json(root / "home" / "cluster.json", state)

    def run_of(name: str, method: str, **settings: Any) -> Run:
        config = resolve({"method": method, "data": str(root / "ds"), "epochs": 1, **settings})
        run = Run.create(config, data.space, root / "runs", name)
        run.write_environment(seed=0, threads=1)
        built = build(method, data.space, clip, config.model)
        kept = {
            "step": 3, "epoch": 1, "place": 0, "best_auc": 0.2, "method": method, "clip_sha256": clip.sha256, "clip": clip.architecture,
            "data_sha256": data.sha256, "space": {"attributes": list(space.attributes), "objects": list(space.objects)},
        }  # fmt: skip
        if built.trains:
            path = save(run.checkpoints, Checkpoint(built.state_dict(), {}, kept))
            mark_best(run.checkpoints, path, step=3, epoch=1, auc=0.2)
        run.log({"event": "start", "steps": 3, "images": 40, "workers": 1, "batch": 16, "step": 0, "time": 1.0})
        run.log({"event": "step", "epoch": 0, "lr": 0.1, "loss": 2.0, "images_per_s": 5.0, "step": 1, "time": 2.0})
        run.log({"event": "epoch", "epoch": 1, "auc": 0.2, "hm": 0.3, "seen": 0.4, "unseen": 0.1, "step": 3, "time": 3.0})
        run.log({"event": "end", "status": "done", "step": 3, "time": 4.0})
        return run

    trained, plain = run_of("csp", "csp"), run_of("zs", "zero-shot")
    for run in (trained, plain):
        assert called(["evaluate", str(run.path)])[0] == 0, "the undamaged run has to work"
    step = trained.checkpoints / "step-00000003"

    def signed(path: Path) -> None:
        """A manifest that fits the damaged file: what stands behind the checksums is read then."""
        if path.exists():
            write_json(step / "manifest.json", {p.name: sha256_file(p) for p in step.iterdir() if p.name != "manifest.json"})

    pairs = data.space.pairs()
    scores = np.random.default_rng(0).random((len(data.split("test")), len(pairs))).astype(np.float32)
    write_scores(root / "scores.npz", scores, data.split("test").pairs, data.space, pairs)
    opened = data.space.open_pairs
    wide = np.random.default_rng(0).random((len(data.split("test")), len(opened))).astype(np.float32)
    likely = np.random.default_rng(1).random(len(opened)).astype(np.float32)
    write_scores(root / "open.npz", wide, data.split("test").pairs, data.space, opened, open_world=True, feasibility=likely)
    np.save(root / "feasibility.npy", likely)
    CompositionIndex.build(np.random.default_rng(0).random((len(opened), 8)), opened, kind="ivf", gpu=False).save(
        root / "index", {"a": 1}
    )
    write_partial_labels(root / "partial.parquet", make_partial_labels(data, "uniform", 0.1, 0), data.split("train").ids)
    seen = [" ".join(filter(None, data.space.pair_names(p))) for p in data.space.train_pairs[:3]]
    write_json(root / "candidates.json", dict.fromkeys(data.split("train").ids, seen))
    (root / "candidates.csv").write_text(
        "image,attr,obj\n"
        + "".join(f"{i},{','.join(data.space.pair_names(data.space.train_pairs[0]))}\n" for i in data.split("train").ids)
    )
    (root / "names.txt").write_text("dog\ncat\nold chair\n")
    (root / "pairs.txt").write_text("wet,dog\nold chair\ndry cat\n")
    (root / "sentences.txt").write_text("a dog chases a cat\na cat sleeps\n")
    (root / "cfg.yaml").write_text("method: csp\nlr: 1e-3\nepochs: 2\nmodel:\n  names: clean\n  attr_dropout: 0.1\n")
    (root / "search.yaml").write_text(
        "lr: {loguniform: [1e-5, 1e-2]}\nepochs: {choice: [1, 2]}\nattr_dropout: {uniform: [0, 1]}\n"
    )
    (root / "override.txt").write_text("epochs=3")
    write_json(
        root / "regions.json", [{"image": "dog.png", "regions": [{"phrase": "a dog", "box": [1, 2, 30, 40], "score": 0.5}]}]
    )
    write_json(root / "grit.json", {"a dog": [[0, 0, 20, 20]], "a red ball": [[3, 3, 9, 9]]})
    write_json(root / "dino.json", {"image": "dog.png", "boxes": [[0.5, 0.5, 0.2, 0.2]], "phrases": ["dog"], "logits": [0.9]})
    names = list(space.attributes[:2]), list(space.objects[:2])
    write_json(
        root / "descriptors.json",
        {"attributes": {n: ["it looks so"] for n in names[0]}, "objects": {n: ["has a shape"] for n in names[1]}},
    )
    (root / "vectors.txt").write_text(
        "".join(
            f"{w.lower()} {i} 1.0 0.5\n"
            for i, n in enumerate((*space.attributes, *space.objects))
            for w in n.replace("_", " ").split()
        )
    )
    write_json(root / "rename.json", {space.attributes[0]: space.attributes[1]})
    (root / "eval.csv").write_text(
        'id,sentence,pos_image_id,neg_image_id,pos_triplet,neg_value\n1,a dog chases a cat,dog,dog,"dog,chase,cat",verb\n'
    )
    (root / "eval.jsonl").write_text(
        '{"id": 1, "caption_0": "a dog", "caption_1": "a cat", "image_0": "dog", "image_1": "dog", "tag": "x"}\n'
    )
    write_json(root / "eval.json", [["dog.png", {"POS": ["a dog"], "NEG": ["a cat"]}]])
    (root / "retrieval.jsonl").write_text('{"image": "dog.png", "captions": ["a dog", "a cat"]}\n')
    csp = build("csp", space, clip, {"names": "reference"})
    torch.save({"soft_embeddings": csp.state_dict()["prompts.table"]}, root / "csp.pt")
    space.save(root / "labels.json")
    _weights(root)
    save_file({"a": torch.zeros(3)}, root / "odd.safetensors")

    with Partial(root / "out.jsonl", "question") as partial:
        pass
    record = {
        "image": "a.png",
        "predictions": [{"attr": "wet", "obj": "dog", "score": 1.0}],
        "attributes": [{"name": "wet", "prob": 1.0}],
    }
    record |= {"objects": [{"name": "dog", "prob": 1.0}], "error": None}
    with contextlib.suppress(RuntimeError), Partial(root / "out.jsonl", "question") as partial:
        for _ in range(4):
            partial.add([record])
        raise RuntimeError("interrupted")
    shutil.copy(root / ".out.jsonl.partial.jsonl", root / "partial.jsonl")

    def partial_file(path: Path) -> None:
        from czsl_cli.predict import _print

        place = root / f".{path.stem}.jsonl.partial.jsonl"
        shutil.copy(path, place)
        with contextlib.suppress(RuntimeError), Partial(root / f"{path.stem}.jsonl", "question") as kept:
            _print([r for batch in kept.batches() for r in batch], 5, 5)
            raise RuntimeError("keep the file")
        place.unlink(missing_ok=True)

    search = Search.create(SearchConfig({"lr": {"choice": [0.1, 0.2]}}, trained.config.to_dict(), trials=2), root / "tunes", "t")
    search.add(0, {"lr": 0.1}, trained.config, space)
    trial = search.folder / "000"
    shutil.copy(trained.metrics_file, trial / "metrics.jsonl")

    def searched(path: Path) -> None:
        found = Search(search.path)
        rows = found.summaries()
        found.write_results(rows, status="done")
        found.is_over()
        for one in found.trials():
            one.curve("val_auc")
            one.reports("val_auc")

    adapting = AdaptationSearchConfig(str(plain.path), "tda", {"shots": {"choice": [1, 2]}}, {}, trials=1, orders=[0])
    adapting.checkpoint_sha256 = fingerprint(plain, "best")
    adapted = AdaptationSearch.create(adapting, root / "tunes", "a")
    search_adaptation(adapted)

    def metrics(path: Path) -> None:
        run = Run(trained.path)
        list(run.metrics("end"))
        run.cut_metrics(2)

    image, ev = str(root / "dog.png"), ["evaluate"]
    by_run = [
        ["evaluate", str(trained.path)],
        ["explain", image, "--run", str(trained.path), "--json"],
        ["index", "show", str(trained.path)],
    ]
    by_plain = [["evaluate", str(plain.path)], ["feasibility", str(plain.path), "--out", str(root / "f.npy")]]
    scored = [*ev, "--scores", "{file}", "--space", str(root / "scores.json")]
    lazsl = ["explain", image, "--method", "lazsl", "--data", str(root / "ds"), "--json", "num_regions=3"]
    comclip = ["explain", image, "--method", "comclip", "--data", str(root / "ds"), "--json"]
    match = ["match", image, "--text", "a dog chases a cat", "--json"]
    ds, made = str(root / "ds"), str(root / "runs" / "{new}")
    train = ["train", "--dry-run", "--data", ds]
    public = ["--method", "csp", "--labels", str(root / "labels.json"), "--data", ds, "--clip", "tiny", "--out", made]
    with_clip = ["train", "--method", "zero-shot", "--data", ds, "--out", str(root / "made"), "--clip"]
    glove = ["feasibility", ds, "--out", str(root / "f.npy"), "--glove"]
    opened_to = [*ev, "--space", str(root / "open.json"), "--scores"]
    drawn = ["data", "partial", ds, "--out", str(root / "p.parquet"), "--force", "--from", "{file}"]
    of_data = (["data", "verify", ds], ["data", "stats", ds], by_run[0])
    settings, folders = (
        ("config.yaml", "space.json", "environment.json"),
        ("config.json", "preprocessor_config.json", "model.safetensors"),
    )
    parts = sorted(p for p in step.iterdir() if p.name != "manifest.json")
    trials = (search.path / "tune.yaml", trial / "trial.json", trial / "metrics.jsonl", trial / "config.yaml")
    cases = [
        Case("settings", root / "cfg.yaml", [*train, "--config", "{file}"]),
        Case(
            "search",
            root / "search.yaml",
            ["tune", "--dry-run", "--data", str(root / "ds"), "--method", "csp", "--trials", "3", "--search", "{file}"],
        ),
        Case("override", root / "override.txt", override),
        Case("classes", root / "names.txt", ["explain", image, "--method", "zero-shot", "--classes", "{file}"]),
        Case("pairs", root / "pairs.txt", ["explain", image, "--method", "zero-shot", "--pairs", "{file}"]),
        Case("sentences", root / "sentences.txt", ["match", image, "--texts", "{file}"]),
        Case("feasibility", root / "feasibility.npy", [*opened_to, str(root / "open.npz"), "--feasibility", "{file}"]),
        Case("scores", root / "scores.npz", scored),
        Case("open scores", root / "open.npz", [*opened_to, "{file}"]),
        Case("scores' space", root / "scores.json", [*ev, "--scores", str(root / "scores.npz"), "--space", "{file}"]),
        Case("word vectors", root / "vectors.txt", [*glove, "{file}"]),
        Case("rename", root / "rename.json", [*glove, str(root / "vectors.txt"), "--rename", "{file}"]),
        Case("label space", root / "labels.json", ["feasibility", "{file}", "--out", str(root / "f.npy")]),
        Case("regions", root / "regions.json", [*lazsl, "regions=file", "regions_file={file}"]),
        Case("grit", root / "grit.json", [*comclip, "regions=file", "regions_file={file}"]),
        Case("dino", root / "dino.json", [*match, "--regions-file", "{file}"]),
        Case("descriptors", root / "descriptors.json", [*lazsl, "descriptors={file}"]),
        Case("comvg", root / "eval.csv", ["match", "--eval", "{file}", "--images", str(root)]),
        Case("winoground", root / "eval.jsonl", ["match", "--eval", "{file}", "--images", str(root)]),
        Case("vl-checklist", root / "eval.json", ["match", "--eval", "{file}", "--images", str(root)]),
        Case("retrieval", root / "retrieval.jsonl", ["match", "--eval", "{file}", "--images", str(root)]),
        Case("partial labels", root / "partial.parquet", [*train, "--method", "clip-pzsl", "--partial-labels", "{file}"]),
        Case("candidates", root / "candidates.json", drawn),
        Case("candidates csv", root / "candidates.csv", drawn),
        Case("reference", root / "csp.pt", ["import-checkpoint", "{file}", *public]),
        Case("public settings", root / "cfg.yaml", ["import-checkpoint", str(root / "csp.pt"), "--config", "{file}", *public]),
        *(Case(f"weights {n}", root / n, [*with_clip, "{file}"]) for n in ("w.pt", "w.safetensors")),
        *(Case(f"folder {n}", root / "hf" / n, [*with_clip, str(root / "hf")]) for n in folders),
        Case("folder of open_clip", root / "oc" / "open_clip_config.json", [*with_clip, str(root / "oc")]),
        *(Case(f"run {n}", trained.path / n, args) for n in settings for args in by_run),
        *(Case(f"run without weights {n}", plain.path / n, args) for n in settings for args in by_plain),
        *(Case(f"checkpoint {p.name}", p, args) for p in sorted(step.iterdir()) for args in by_run[:2]),
        *(Case(f"checkpoint {p.name}, signed", p, args, signed) for p in parts for args in by_run[:2]),
        Case("best", trained.checkpoints / "best.json", by_run[0]),
        Case("metrics", trained.metrics_file, metrics),
        *(
            Case(f"adaptation search {p.name}", p, ["tune", "--resume", str(adapted.path)])
            for p in sorted(adapted.path.glob("*.*l"))
        ),
        Case("finished metrics", trained.metrics_file, lambda path: _resume(trained.path)),
        Case("reduction", trained.path / "extremes-test-closed.npz", ["compare", str(trained.path), str(plain.path)]),
        Case("reduction alone", trained.path / "extremes-test-closed.npz", lambda path: SavedEvaluation.load(str(path))),
        *(
            Case(f"index {p.name}", p, lambda path: CompositionIndex.load(root / "index"))
            for p in sorted((root / "index").iterdir())
        ),
        Case("interrupted prediction", root / "partial.jsonl", partial_file),
        *(Case(f"search's {p.name}", p, searched) for p in trials),
        *(Case(f"dataset {p.name}", p, args) for p in sorted((root / "ds").iterdir()) if p.is_file() for args in of_data),
        *(
            Case(f"cache {p.name[:20]}", p, args)
            for p in sorted((root / "cache").rglob("*.npy"))
            for args in (by_run[0], by_plain[0])
        ),
        Case("cluster state", root / "home" / "cluster.json", ["cluster", "status"]),
    ]
    missing = [case.name for case in cases if not case.file.is_file()]
    assert not missing, missing
    return cases


def _weights(root: Path) -> None:
    """A small CLIP as a file, as Hugging Face's folder and as open_clip's."""
    import torch
    from safetensors.torch import save_file

    from czsl.clip.compat import import_open_clip

    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    model = import_open_clip().CLIP(16, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    state = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    torch.save(state, root / "w.pt")
    save_file(state, root / "w.safetensors")
    for name in ("hf", "oc"):
        (root / name).mkdir()
        save_file(state, root / name / "model.safetensors")
    tower = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 256,
        "hidden_act": "quick_gelu",
    }
    config = {"model_type": "clip", "projection_dim": 16, "vision_config": {**tower, "image_size": 32, "patch_size": 16}}
    (root / "hf" / "config.json").write_text(json.dumps({**config, "text_config": {**tower, "max_position_embeddings": 16}}))
    prepared = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "do_center_crop": True}
    (root / "hf" / "preprocessor_config.json").write_text(json.dumps(prepared))
    described = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    (root / "oc" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": described, "preprocess_cfg": {"mean": [0.5] * 3}})
    )


def override(path: Path) -> None:
    """A file's text as one KEY=VALUE."""
    from czsl_cli.config import resolve

    resolve({"method": "csp"}, [path.read_bytes().decode("utf-8", "surrogateescape")])


def _resume(path: Path) -> None:
    from czsl.errors import CzslError
    from czsl_cli.train import _resumed

    with contextlib.suppress(CzslError):
        _resumed(path, (), None, {}, False)
    _resumed(path, ("epochs=9",), None, {}, True)  # to more epochs


def called(args: list[str]) -> tuple[int, str]:
    """A command's exit code and what it printed on stderr, in this process."""
    from czsl_cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["--debug", *args])
            code: Any = 0
        except SystemExit as end:
            code = end.code
    return code, err.getvalue()
