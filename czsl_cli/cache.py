"""``czsl cache``: what is kept on the disk between commands, and how to empty it."""

from __future__ import annotations

import click

from czsl_cli.console import print_json, print_table, say


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def cache(context: click.Context, as_json: bool) -> None:
    """Show how much of each kind czsl keeps on the disk; all of it can be made again.

    \b
      czsl cache
      czsl cache clear photographs

    The folder is $CZSL_CACHE, by default ~/.cache/czsl. Features of photographs are kept up to $CZSL_PHOTOGRAPHS_GIB (4 by default, 0:
    none); the oldest make room for new ones.
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError("--json goes with plain `czsl cache`, without a subcommand")
        return
    from czsl.data.caches import caches
    from czsl.data.kept_answers import MAX_BYTES
    from czsl.data.paths import cache_folder, photographs_limit

    found, limit = caches(), photographs_limit()
    if as_json:
        kinds = {c.kind: {"bytes": c.size, "entries": len(c.entries)} for c in found}
        print_json({"folder": str(cache_folder()), "photographs_limit_bytes": limit, "kinds": kinds})
        return
    rows = [[c.kind, f"{c.size / 2**20:,.1f}", len(c.entries), c.about] for c in found]
    print_table(["kind", "MiB", "entries", "holds"], rows)
    limits = f"photographs are limited to {limit / 2**30:g} GiB (CZSL_PHOTOGRAPHS_GIB), answers to {MAX_BYTES / 2**20:g} MiB"
    say(f"{cache_folder()}; {limits}")


@cache.command()
@click.argument("kind", required=False)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def clear(kind: str | None, yes: bool) -> None:
    """Delete what is kept of one KIND (pixels, features, photographs, answers, towers, toy), or of all kinds.

    Only files that czsl made are deleted, and nothing that a run needs: the next command makes them again, which takes time.
    """
    from czsl.data.caches import KINDS, caches
    from czsl.data.paths import cache_folder
    from czsl.errors import UsageError, did_you_mean

    if kind is not None and kind not in KINDS:
        hint = did_you_mean(kind, KINDS)
        raise UsageError(f"unknown kind {kind!r} of cache", hint, f"choose one of {', '.join(KINDS)}")
    chosen = [c for c in caches() if kind in (None, c.kind) and c.entries]
    if not chosen:
        say(f"nothing is kept in {cache_folder()}" + ("" if kind is None else f" of the kind {kind}"))
        return
    size = sum(c.size for c in chosen)
    what = f"{', '.join(c.kind for c in chosen)}: {size / 2**20:,.1f} MiB in {cache_folder()}"
    if not yes and not _agreed(what):
        say("nothing was deleted")
        return
    for c in chosen:
        c.clear()
    say(f"deleted {what}")


def _agreed(what: str) -> bool:
    """Ask on a terminal; UsageError without one."""
    import sys

    from czsl.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError("this needs a confirmation", f"it deletes {what}, and stdin is not a terminal", "repeat it with --yes")
    return click.confirm(f"delete {what}?", err=True)
