"""Measure the gain of a round of review: predict on new photographs, correct the least sure ones, add them to the data, train on.

    python examples/review_loop.py --data mydata --clip clip_b16_128.pt --out runs/review --seeds 0 1 2

For each seed: a model is trained on a few images of each training pair. Half of the chosen test images are the new photographs, the other
half measures. ``czsl predict --review`` picks the least sure of the new ones, their true labels are written into the file, ``czsl data
import --add-to`` adds them, ``czsl train --from`` continues. Compared with as many images at random, and the same training without new
labels. Seen and unseen are those of the first model everywhere. One process, no Ray; images are encoded once. What is done is not
done again, so the script can be stopped and started.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch

from cluster.work.comm import Group
from cluster.work.feature_loader import FeatureLoader, arithmetic
from cluster.work.scoring import score_split
from cluster.work.training import train_worker
from czsl.clip.loading import load_clip
from czsl.data.batches import feature_file, save_features, stratified
from czsl.data.importing.importers import ImportOptions, import_dataset
from czsl.data.table import Dataset, Record, Split, open_data, write_dataset
from czsl.evaluation import Candidates, report
from czsl.runs.run import Run
from czsl_cli.config import fix_paths, resolve
from czsl_cli.review import Review
from methods.building import build
from methods.loading import load, starting_point
from methods.method import Method
from methods.parts.ranking import Ranking

SPLITS = ("train", "val", "test")
CPU = torch.device("cpu")
COLUMNS = {
    "all": "right",
    "seen_right": "seen right",
    "unseen_right": "unseen right",
    "auc": "AUC",
    "hm": "HM",
    "attr": "attr",
    "obj": "obj",
}


class Loop:
    """The images that take part, their features, and the rounds of each seed."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.tag = options, "".join(f"-{setting}" for setting in options.then)
        torch.set_num_threads(options.threads)
        self.clip = load_clip(options.clip)
        self.chosen = self._chosen_images()
        zero_shot = build("zero-shot", self.chosen.space, self.clip, {})
        self._features: dict[str, torch.Tensor] = {}
        for name in SPLITS:
            loader = FeatureLoader(zero_shot, self.chosen, name, Group(), options.eval_batch, precision=options.precision)
            self._features |= dict(zip(loader.split.sha256, loader.features, strict=True))

    def _chosen_images(self) -> Dataset:
        """A dataset of the images that any seed may use: their features are computed once."""
        o, folder = self.options, self.options.out / "images"
        if not (folder / "dataset.json").exists():
            whole, limits = open_data(o.data), {"train": o.start * len(o.seeds), "val": o.val, "test": o.test}
            splits = [whole.split(name) for name in SPLITS]
            rows = [stratified(s.attr, s.obj, limits[s.name], 0) for s in splits]
            write_dataset(folder, whole.space, records([*zip(splits, rows, strict=True)]), whole.name)
        return open_data(folder)

    def keep_features(self, data: Dataset, method: Method) -> None:
        """Put the features of a dataset's images where training looks for them."""
        for name in SPLITS:
            split = data.split(name)
            path = feature_file(split, self.clip.sha256, arithmetic(CPU, self.options.precision), method.cache_key)
            if len(split) and not path.exists():
                save_features(path, torch.stack([self._features[digest] for digest in split.sha256]))

    def parts(self, seed: int) -> tuple[Dataset, Path]:
        """The dataset that a seed starts from, whose test images measure, and the folder of new photographs."""
        folder = self.options.out / f"seed{seed}"
        train, val, test = (self.chosen.split(name) for name in SPLITS)
        new = np.random.Generator(np.random.Philox(key=[seed, 1])).permutation(len(test)) < len(test) // 2
        if not (folder / "data" / "dataset.json").exists():
            rows = stratified(train.attr, train.obj, self.options.start, seed)
            parts = [(train, rows), (val, np.arange(len(val))), (test, np.flatnonzero(~new))]
            write_dataset(folder / "data", self.chosen.space, records(parts), "start")
        photos = folder / "photos"
        photos.mkdir(exist_ok=True)
        for row in np.flatnonzero(new):
            (photos / file_name(test, row)).write_bytes(test.image_bytes(row))
        self.new = {file_name(test, row): row for row in np.flatnonzero(new).tolist()}
        return open_data(folder / "data"), photos

    def train(self, data: Dataset, seed: int, name: str, source: Run | None) -> Run:
        """A finished run, trained now unless it was before; one that starts from another has settings of its own."""
        o, settings = self.options, self.options.settings if source is None else [*self.options.settings, *self.options.then]
        folder = o.out / f"seed{seed}" / ("runs" if source is None else f"runs{self.tag}")
        if not (folder / name / "done").exists():
            given = {"data": str(data.folder), "clip": o.clip, "method": o.method, "seed": seed}
            given |= {"threads": o.threads, "precision": o.precision}
            config = resolve(given, settings)
            fix_paths(config)
            method = build(config.method, data.space, self.clip, config.model)
            self.keep_features(data, method)
            start = None if source is None else starting_point(source, method, data.sha256)
            run = Run(folder / name) if (folder / name).exists() else Run.create(config, data.space, folder, name, start)
            train_worker(run, Group(), CPU)
            (folder / name / "done").touch()
        return Run(folder / name)

    @torch.inference_mode()
    def predictions(self, run: Run) -> list[dict]:
        """Records of the new photographs, as ``czsl predict`` makes them."""
        method, test, pairs, found = load(run), self.chosen.split("test"), run.space.closed_pairs, []
        text = method.encode_compositions(torch.from_numpy(pairs.copy()))
        names, size = list(self.new), self.options.eval_batch
        for start in range(0, len(names), size):
            part = names[start : start + size]
            features = torch.stack([self._features[test.sha256[self.new[name]]] for name in part])
            scores, ranking = method.scores(method.embed_images(features), text).float(), Ranking(pairs, run.space, 5)
            ranking.add(scores, method.log_weights(scores))
            found += [{"image": name, **record, "error": None} for name, record in zip(part, ranking.records(), strict=True)]
        return found

    def reviewed(self, data: Dataset, photos: Path, found: list[dict], name: str) -> tuple[Dataset, int]:
        """The dataset with corrected images added, and how many of their predicted names were right."""
        folder, test = photos.parent / name, self.chosen.split("test")
        folder.mkdir(exist_ok=True)
        file = folder / "review.csv"
        file.unlink(missing_ok=True)
        review = Review(file, photos, len(found))
        for record in found:
            review.add(record)
        review.write()
        with file.open(encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
        right = 0
        for row in rows:
            true = data.space.pair_names(test.pairs[self.new[row["image"]]])
            right += (row["attr"], row["obj"]) == true
            row["attr"], row["obj"] = true
        with file.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        import_dataset(file, folder / "data", ImportOptions(root=photos, add_to=data.folder, max_bad=0.0, force=True))
        return open_data(folder / "data"), right

    @torch.inference_mode()
    def measure(self, run: Run, data: Dataset) -> dict[str, float]:
        """Figures on the test images, with the candidates and the seen pairs that the first model has."""
        method = load(run).for_space(data.space)
        self.keep_features(data, method)
        loader = FeatureLoader(method, data, "test", Group(), self.options.eval_batch, precision=self.options.precision)
        candidates = Candidates.build(data.space, split="test")
        numbers = report(
            score_split(method, loader, candidates, np.arange(len(loader.split)), self.options.eval_batch, Group()), candidates
        )
        text = method.encode_compositions(torch.from_numpy(candidates.pairs))
        assert loader.features is not None
        scores = torch.cat([method.scores(method.embed_images(part), text) for part in loader.features.split(256)])
        best = candidates.pairs[scores.argmax(1).numpy()]
        true = loader.split.pairs
        right, seen = (best == true).all(1), data.space.seen_mask(true)
        return {
            "all": right.mean(), "seen_right": right[seen].mean(), "unseen_right": right[~seen].mean(),
            "auc": numbers["auc"], "hm": numbers["hm"], "attr": (best[:, 0] == true[:, 0]).mean(), "obj": (best[:, 1] == true[:, 1]).mean(),
        }  # fmt: skip

    def rounds(self, seed: int) -> dict[str, dict[str, float]]:
        """Figures of each way to continue, by its name."""
        done = self.options.out / f"seed{seed}" / f"result{self.tag}.json"
        if done.exists():
            return json.loads(done.read_text(encoding="utf-8"))
        data, photos = self.parts(seed)
        first = self.train(data, seed, "start", None)
        found = self.predictions(first)
        least = sorted(found, key=lambda r: (r["predictions"][0]["prob"], r["image"]))
        drawn = [found[i] for i in np.random.Generator(np.random.Philox(key=[seed, 2])).permutation(len(found))]
        results = {"first model": self.measure(first, data)}
        results["trained on, nothing new"] = self.measure(self.train(data, seed, "again", first), data)
        for count in self.options.corrected:
            for name, order in (("least sure", least), ("at random", drawn)):
                key = f"{count} {name}"
                more, right = self.reviewed(data, photos, order[:count], key.replace(" ", "-"))
                results[key] = self.measure(self.train(more, seed, key.replace(" ", "-"), first), data)
                results[key] |= {
                    "named_right": right / count,
                    "new_pairs": len(more.space.train_pairs) - len(data.space.train_pairs),
                }
        done.write_text(json.dumps(results, default=float, indent=1), encoding="utf-8")
        return results


def records(parts: list[tuple[Split, np.ndarray]]):
    """Rows of splits as they are written into another dataset."""
    for split, rows in parts:
        listed = list(split.rows())
        for row in rows.tolist():
            yield Record(listed[row].id, split.image_bytes(row), listed[row].attr, listed[row].obj, split.name)


def file_name(split: Split, row: int) -> str:
    """A file's name of its own for each row."""
    name = Path(split.ids[row])
    return f"{name.stem}-{row}{name.suffix}"


def main() -> None:
    """Print the table: the mean over the seeds, and each way's gain over training on without new labels, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the runs, e.g. recipe=small epochs=10")
    parser.add_argument("--data", required=True, help="a dataset of attributes and objects")
    parser.add_argument("--clip", default="tiny")
    parser.add_argument("--method", default="csp", help="one that leaves the image tower as it is")
    parser.add_argument("--out", type=Path, default=Path("runs/review"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--start", type=int, default=2, help="images of each training pair that the first model sees")
    parser.add_argument("--val", type=int, default=3, help="validation images of each pair")
    parser.add_argument("--test", type=int, default=12, help="test images of each pair; half of them are the new photographs")
    parser.add_argument(
        "--then", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the runs that continue, if different"
    )
    parser.add_argument("--corrected", type=int, nargs="+", default=[20, 100], help="images whose labels are corrected")
    parser.add_argument("--precision", default="float32", help="bfloat16 halves the time of the image tower")
    parser.add_argument("--eval-batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    loop = Loop(options)
    found = [loop.rounds(seed) for seed in options.seeds]
    print("| training |", " | ".join(COLUMNS.values()), "| gain in right | predicted names right | new pairs |")
    print("| --- |" + " --- |" * (len(COLUMNS) + 3))
    for name in found[0]:
        cells = [f"{100 * np.mean([f[name][key] for f in found]):.1f}" for key in COLUMNS]
        gains = [100 * (f[name]["all"] - f["trained on, nothing new"]["all"]) for f in found]
        cells.append(" / ".join(f"{gain:+.1f}" for gain in gains))
        for key, scale in (("named_right", 100), ("new_pairs", 1)):
            cells.append(f"{scale * np.mean([f[name][key] for f in found]):.0f}" if key in found[0][name] else "-")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
