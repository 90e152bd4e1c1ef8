"""Display of a running search."""

from __future__ import annotations

from typing import Any

from czsl_cli.console import Bar, duration, percent, say, short, warn

NAMES = {"val_auc": "AUC", "val_hm": "HM"}


def shown(value: Any) -> str:
    """A value of a setting, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shown_all(values: dict[str, Any]) -> str:
    """Settings as they are typed."""
    return " ".join(f"{name}={shown(value)}" for name, value in values.items())


class SearchWatcher:
    """Turns what trials log into a bar, or into a line now and then, and prints when one begins and ends."""

    def __init__(self, search, bar: Bar):
        from czsl.runs.trials import METRICS

        self.search, self.bar, self.config = search, bar, search.config
        self.key = METRICS[self.config.metric]
        self.running: dict[int, str] = {}
        self.total: dict[int, int] = {}
        self.over = sum(t.status() != "unfinished" for t in search.trials())
        self.best: tuple[float, int] | None = None
        if self.over:
            say(f"{self.over} of {self.config.trials} trials are over, continuing with the others")

    def share(self, share) -> None:
        """Say how trials share the cluster."""
        if share.note:
            warn(share.note)
        kind = "GPU" if share.gpu else f"CPU, {share.threads} thread{'s' * (share.threads > 1)} each"
        workers = f"{share.workers} worker{'s' * (share.workers > 1)} a trial ({kind})"
        how = f"{self.config.algorithm}, {self.config.scheduler}" if self.config.scheduler != "none" else self.config.algorithm
        say(f"{short(self.search.path)}: {self.config.trials} trials ({how}), {share.concurrent} at once, {workers}")

    def trial(self, trial) -> None:
        """A trial began, or is over."""
        number, status = trial.number, trial.status()
        if status == "unfinished" and number not in self.running:
            self.total[number] = trial.run.config.epochs
            self.running[number] = "starting"
            say(f"trial {number}: {shown_all(trial.values)}")
        elif status == "unfinished":
            del self.running[number]
            say(f"trial {number} was interrupted")
        else:
            self.running.pop(number, None)
            self.over += 1
            row = trial.summary(self.config.metric)
            result = f"{NAMES[self.config.metric]} {percent(row[self.config.metric])} in epoch {row['best_epoch']}"
            how = {
                "done": "done",
                "pruned": f"stopped early after epoch {row['epochs_done']}",
                "failed": f"failed: {row['reason']}",
            }
            say(f"trial {number} {how[status]}" + (f": {result}, {duration(row['seconds'])}" if status != "failed" else ""))
        self._show()

    def stopping(self) -> None:
        """Somebody pressed Ctrl-C."""
        say("stopping all trials with checkpoints; once more ends at once and without them")

    def record(self, trial, record: dict[str, Any]) -> None:
        """One line of a trial's metrics."""
        number, event = trial.number, record.get("event")
        if number not in self.running:
            return
        if event == "progress":
            self.running[number] = f"{record['what']} {record['done']}/{record['total']}"
        elif event == "step":
            self.running[number] = f"epoch {record['epoch'] + 1}/{self.total[number]}"
        elif event == "epoch" and record.get(self.key) is not None:
            self.best = max(self.best or (-1.0, 0), (record[self.key], -number))
        self._show()

    def _show(self) -> None:
        best = f"best {percent(self.best[0])} (trial {-self.best[1]})" if self.best else ""
        note = "  ".join([*(f"{n}: {what}" for n, what in sorted(self.running.items())), best])
        self.bar.update("trials", self.over, self.config.trials, note, f"{self.over}/{self.config.trials} trials over  {note}")
