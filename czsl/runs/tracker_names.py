"""The names of trackers in the setting ``log``, and the packages that each needs."""

from __future__ import annotations

from czsl.errors import UsageError

PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}


def tracker_names(log: str | None) -> list[str]:
    """Return the names in a setting ``log``, each once.

    Raises
    ------
    UsageError
        No such tracker exists.
    """
    names = [part.strip().lower() for part in (log or "").split(",") if part.strip()]
    for name in names:
        if name not in PACKAGES:
            raise UsageError(f"log={log!r} is unknown", f"{name!r} is not one of them", f"choose from {', '.join(PACKAGES)}")
    return list(dict.fromkeys(names))
