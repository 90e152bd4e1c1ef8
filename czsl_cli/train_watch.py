"""Progress of a training on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from czsl_cli.console import Bar, duration, percent, say, short, warn


class TrainingWatcher:
    """Turns a run's metrics into a bar, or into a line now and then."""

    def __init__(self, epochs: int, bar: Bar):
        self.epochs, self.bar = epochs, bar
        self.total = self.images = self.batch = 0
        self.first: tuple[float, int] | None = None
        self.best = -1.0

    def placed(self, placement, path: Path) -> None:
        """Say where the workers run."""
        self.bar.clear()
        if placement.note:
            warn(placement.note)
        kind = "GPU" if placement.gpu else f"CPU, {placement.threads} threads each"
        workers, nodes = (f"{n} {what}{'s' * (n > 1)}" for n, what in ((placement.workers, "worker"), (placement.nodes, "node")))
        say(f"{short(path)}: {workers} on {nodes} ({kind})")

    def waiting(self, waiting) -> None:
        """Show what the run waits for."""
        self._show(
            "waiting for nodes", waiting.found, waiting.wanted, f"{waiting.waited_s:.0f} of {waiting.limit_s:.0f} s", str(waiting)
        )

    def failed(self, reason: str, failures: int) -> None:
        """Print that workers are restarted."""
        self.first = None
        warn(f"workers failed ({failures} in a row): {reason}")
        say("restarting from the newest checkpoint")

    def record(self, record: dict[str, Any]) -> None:
        """Show one line of metrics."""
        event = record.get("event")
        if event == "progress":
            self._show(
                record["what"], record["done"], record["total"], "", f"{record['what']} {record['done']}/{record['total']}"
            )
        elif event == "start":
            self.total, self.images, self.batch = record["steps"], record["images"], record["batch"]
            where = f", continuing at step {record['step']}" if record["step"] else ""
            how = f", precision {record['precision']}" if "precision" in record else ""
            steps = f"batches of {self.batch}, {self.total} steps{how}{where}" if self.total else "no steps"
            say(f"{self.images} training images, {steps}")
        elif event == "step":
            self._step(record)
        elif event == "epoch":
            self._epoch(record)
        elif event == "found":
            how = "chosen on validation images" if record["how"] == "val" else "without validation images to choose on"
            say(f"{how}: {', '.join(f'{key} {value:g}' for key, value in record['settings'].items())}")
        elif event == "note":
            self.bar.clear()
            warn(record["note"])
        elif event == "stopping":
            say("stopping at the next step with a checkpoint; once more ends at once and without one")

    def _step(self, record: dict[str, Any]) -> None:
        now, step = record["time"], record["step"]
        self.first = self.first or (now, step - 1)
        left = (now - self.first[0]) / max(step - self.first[1], 1) * (self.total - step)
        note = f"loss {record['loss']:.3f}  {record['images_per_s']:.0f} images/s"
        line = f"epoch {record['epoch'] + 1}/{self.epochs}  step {step}/{self.total}  {note}  left {duration(left)}"
        self._show(f"epoch {record['epoch'] + 1}/{self.epochs}", step, self.total, note, line)

    def _epoch(self, record: dict[str, Any]) -> None:
        if record.get("auc") is None:
            return
        found = record.get("disambiguation")
        note = "" if found is None else f"  true label top-1 {percent(found)}"
        mark = "  best so far" if record["auc"] > self.best and self.total else ""
        self.best = max(self.best, record["auc"])
        where = f"epoch {record['epoch']}/{self.epochs}  " if self.total else ""
        say(
            f"{where}validation: AUC {percent(record['auc'])}  HM {percent(record['hm'])}  "
            f"seen {percent(record['seen'])}  unseen {percent(record['unseen'])}{note}{mark}"
        )

    def _show(self, what: str, done: int, total: int, note: str, line: str) -> None:
        self.bar.update(what, done, total, note, line)
