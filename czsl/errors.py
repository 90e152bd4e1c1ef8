"""Errors with three parts (what happened, why, what to do) and an exit code."""

from __future__ import annotations

from collections.abc import Iterable


class CzslError(Exception):
    """A failure that the user can act on.

    Parameters
    ----------
    what : str
        What went wrong, in one line.
    why : str
        The cause.
    fix : str
        What the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, why: str, fix: str):
        super().__init__(what, why, fix)  # all three in args, so that the error survives a trip between processes
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        return "\n".join(line for line in (self.what, self.why, self.fix) if line)


class UsageError(CzslError):
    """Wrong arguments or configuration (exit code 2)."""

    exit_code = 2


class DataError(CzslError):
    """Unusable data: images, labels, splits, score files (exit code 3)."""

    exit_code = 3


class SetupError(CzslError):
    """The environment or the cluster lacks something that the command needs (exit code 4)."""

    exit_code = 4


class ExpectationError(CzslError):
    """A result is below the limit of ``--expect`` (exit code 5)."""

    exit_code = 5


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``did you mean 'x'?`` for the known name that is nearest to a misspelt one, or that none is near.

    ``cutoff`` is the similarity, from 0 to 1, that a name needs (:func:`difflib.get_close_matches`).
    """
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else "no known name is close to it"
