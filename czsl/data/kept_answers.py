"""Answers to a whole question, kept between commands, so that the same question is answered without loading a model.

An answer is a list of records, plain data, in a file that is named after everything that it follows from. The folder holds at most
`MAX_BYTES`; the least recently used answers make room for new ones.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from czsl.data.caches import stamps_of
from czsl.data.paths import cache_folder

FORMAT = 1
MAX_BYTES = 256 << 20  # of all answers together
MAX_ANSWER_BYTES = 64 << 20  # of one, before compression
log = logging.getLogger("czsl")


class KeptAnswer:
    """The place of one answer in the cache folder.

    Parameters
    ----------
    facts : dict
        Plain data: everything that the answer follows from, except weight files, whose places are known only once it is made.
    names : sequence of str
        The images of the records, in order.
    """

    def __init__(self, facts: dict[str, Any], names: Sequence[str]):
        told = json.dumps([FORMAT, facts, list(names)], sort_keys=True)
        self.names = names
        self.path = cache_folder() / "answers" / f"{hashlib.blake2b(told.encode(), digest_size=16).hexdigest()}.jsonl.gz"

    def find(self) -> list[dict[str, Any]] | None:
        """The records; None if they are not there, damaged, or made with weight files that have changed since."""
        try:
            with gzip.open(self.path) as file:
                content = file.read(MAX_ANSWER_BYTES + 1)
            header, *lines = content.splitlines()
            files = json.loads(header)["files"]
            records = [json.loads(line) for line in lines]
            whole = [r["image"] for r in records] == list(self.names)
            if not whole or stamps_of([Path(str(f[0])) for f in files]) != files:
                return None
            os.utime(self.path)  # the least recently used goes first
        except FileNotFoundError:
            return None
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, IndexError) as error:
            log.debug("a kept answer cannot be used: %s: %s", self.path, error)
            return None
        return records

    def keep(self, lines: Sequence[str], files: Sequence[Path]) -> None:
        """Keep records, each as a line of JSON, that were made with these weight files. What cannot be written is not kept."""
        from czsl.runs.files import write_atomically

        stamps = stamps_of(files)
        content = "\n".join([json.dumps({"files": stamps}), *lines]).encode()
        if stamps is None or len(content) > MAX_ANSWER_BYTES:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, gzip.compress(content, compresslevel=1), sync=False)
            self._make_room()
        except OSError as error:
            log.debug("an answer is not kept: %s: %s", self.path, error)

    def _make_room(self) -> None:
        found = []
        for file in self.path.parent.glob("*.jsonl.gz"):
            with suppress(OSError):
                status = file.stat()
                found.append((file != self.path, status.st_mtime_ns, status.st_size, file))
        total = sum(size for _, _, size, _ in found)
        for other, _, size, file in sorted(found, key=lambda f: (not f[0], f[1])):
            if total > MAX_BYTES and other:
                file.unlink(missing_ok=True)
                total -= size
