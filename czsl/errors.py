"""Errors that a person reads: what happened, why, and what to do; each kind knows its exit code."""

from __future__ import annotations


class CzslError(Exception):
    """A failure that the user can act on.

    Parameters
    ----------
    what : str
        What went wrong, in one line.
    why : str
        The cause, as far as the program knows it.
    fix : str
        What the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = ""):
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
    """The environment or the cluster cannot do what is asked (exit code 4)."""

    exit_code = 4


class ExpectationError(CzslError):
    """A result is below what ``--expect`` asks for (exit code 5)."""

    exit_code = 5
