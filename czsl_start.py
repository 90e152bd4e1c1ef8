"""Start of the ``czsl`` command: refuse to run if a foreign package stands in for one of ours.

``cluster`` and ``methods`` are common names. A folder or file of that name in the current folder or on PYTHONPATH is
found first, and every command would end in an ImportError far from its cause. This module needs the standard library only,
so it works whichever of the packages is foreign.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("czsl", "methods", "cluster", "czsl_cli")
EXIT_CODE = 4  # of the environment, as czsl.errors.SetupError


def shadowed(packages: Sequence[str] = PACKAGES) -> tuple[str, str, str] | None:
    """Return what is wrong, why and what to do if one of the packages would come from elsewhere; None if all are in place."""
    home = Path(__file__).resolve().parent
    for name in packages:
        found = _location(name)
        if found is None:
            return (
                f"the package {name!r} was not found",
                f"czsl is installed in {_quoted(home)} and {name!r} is missing there",
                "install czsl again: pip install --force-reinstall --no-deps czsl (in a checkout: pip install -e .)",
            )
        if found.resolve() != home / name:
            kind = "file" if found.is_file() else "folder"
            return (
                f"the package {name!r} was found in {_quoted(found.parent)}, which is not part of czsl",
                f"the {kind} {_quoted(found)} shadows the package of czsl, which is installed in {_quoted(home)}",
                _remedy(found, kind),
            )
    return None


def require(*packages: str) -> None:
    """Raise ImportError if one of the packages would come from elsewhere."""
    if lines := shadowed(packages):
        raise ImportError("\n".join(lines))


def exit_if_shadowed() -> None:
    """End the process with three lines and exit code 4 if one of the packages would come from elsewhere."""
    if lines := shadowed():
        print("error: " + "\n  ".join(lines), file=sys.stderr)
        sys.exit(EXIT_CODE)


def main() -> None:
    """Run the command line."""
    exit_if_shadowed()
    from czsl_cli.main import main as command

    command()


def _location(name: str) -> Path | None:
    """Return the folder or file that ``import name`` uses."""
    try:
        spec = find_spec(name)
    except ValueError:  # a module that was put into sys.modules by hand
        return None
    if spec is None:
        return None
    if spec.origin and spec.has_location:
        file = Path(spec.origin)
        return file.parent if spec.submodule_search_locations is not None else file
    return Path(next(iter(spec.submodule_search_locations or ()), spec.origin or name))


def _remedy(found: Path, kind: str) -> str:
    parent = found.parent.resolve()
    listed = [Path(entry).resolve() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if parent in listed:
        return f"take {_quoted(found.parent)} out of PYTHONPATH, or rename the {kind}"
    if parent == Path.cwd().resolve():
        return f"start czsl in another folder or with the `czsl` script, or rename the {kind}"
    return f"rename the {kind}, or remove it from sys.path"


def _quoted(path: Path) -> str:
    """Return a path in quotes; characters that a terminal would obey are escaped."""
    return repr(str(path))


if __name__ == "__main__":
    main()
