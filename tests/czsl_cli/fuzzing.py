"""Damaged files of every kind that the program reads, and the commands that meet them.

    python tests/czsl_cli/fuzzing.py --seconds 1200 --seed 0

draws mutations of real files and lists those after which a command ended in a defect. `test_fuzz.py` draws a few of each kind.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import random
import shutil
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_cases import Case, called, prepare

ODD: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2**70,
    -(2**63),
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "é" * 50,
    "\u202eabc",
    "\x00",
    "a/b",
    "../../etc",
    [],
    {},
    [[]],
    [None],
    {"": 0},
    {"a": {"b": []}},
    ["x", 5],
    "2024-13-45",
    "1e999",
    "x" * 5000,
]
TEXTS = [
    b"\xff\xfe",
    b"\x00" * 8,
    b"!!float abc",
    b"2024-13-45",
    b"!!binary x",
    b"!!set {a}",
    b"&a [*a]",
    b"*x",
    b"[" * 2000,
    b"{" * 2000,
    b'{"a":' * 500,
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b"\xed\xa0\x80",
    b"null",
    b"[]",
    b"{}",
    b'"',
    b"'",
    b",",
    b":",
    b"\n\n",
    b"\t",
    b"!!python/object/apply:os.system [x]",
    b"? [a]\n: b",
    b"<<: 5",
    b"\xef\xbb\xbf",
    b"0x",
    b"1:2:3",
    b"~",
]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A file's bytes with one to three accidents."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(9)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + rng.choice((1, 3, 20, 200))]
        elif kind == 2 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 3:
            data[at:at] = rng.choice(TEXTS)
        elif kind == 4:
            data[at : at + rng.choice((1, 5, 20))] = rng.choice(TEXTS)
        elif kind == 5:
            piece = data[at : at + rng.choice((5, 50, 500))]
            data[at:at] = piece * rng.choice((1, 3, 50))
        elif kind == 6 and data:
            for _ in range(rng.choice((2, 8, 30))):
                data[rng.randrange(len(data))] = rng.randrange(256)
        elif kind == 7:  # near the beginning, where headers are
            place = rng.randrange(min(len(data), 128) + 1)
            data[place : place + 2] = bytes(rng.randrange(256) for _ in range(rng.randrange(5)))
        else:
            data[:] = rng.choice((b"", b"\n", b"\x00" * 100, *TEXTS))
    return bytes(data)


def altered(content: Any, rng: random.Random) -> Any:
    """Parsed JSON or YAML with one or two of its nodes replaced, removed or named otherwise."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 2))):
        nodes: list[tuple[Any, Any]] = []

        def walk(node: Any, found: list[tuple[Any, Any]] = nodes) -> None:
            inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
            for key, value in list(inside)[:40]:
                found.append((node, key))
                walk(value, found)

        walk(content)
        if not nodes or rng.random() < 0.05:
            return rng.choice(ODD)
        parent, key = rng.choice(nodes)
        try:
            kind = rng.randrange(4)
            if kind == 0:
                del parent[key]
            elif kind == 1 and isinstance(parent, dict):
                parent[rng.choice(("", "x", "step", str(key) + "x"))] = parent.pop(key)
            else:
                parent[key] = rng.choice(ODD)
        except (KeyError, IndexError):
            continue
    return content


def damage(path: Path, rng: random.Random) -> bytes:
    """What becomes of a file: of a text one node or some bytes, of others some bytes."""
    content = path.read_bytes()
    if path.suffix in (".json", ".yaml", ".jsonl") and rng.random() < 0.6:
        import yaml

        if path.suffix == ".yaml":
            return yaml.safe_dump(altered(yaml.safe_load(content), rng), sort_keys=False).encode()
        if path.suffix == ".json":
            return json.dumps(altered(json.loads(content), rng)).encode()
        lines = content.splitlines()
        if lines:
            place = rng.randrange(len(lines))
            lines[place] = json.dumps(altered(json.loads(lines[place]), rng)).encode()
        return b"\n".join(lines) + b"\n"
    return mutated(content, rng)


# -- one try -----------------------------------------------------------------------------------------------------------
def tried(case: Case, content: bytes, number: int = 0) -> str:
    """Why a damaged file is a defect; empty where the command worked or said what is wrong. The file is put back."""
    from czsl.errors import CzslError

    before, siblings = case.file.read_bytes(), {}
    if case.after is not Case.after:
        siblings = {p: p.read_bytes() for p in case.file.parent.iterdir() if p.is_file()}
    try:
        case.file.write_bytes(content)
        case.after(case.file)
        if callable(case.reader):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                try:
                    case.reader(case.file)
                except CzslError:
                    pass
                except Exception:
                    return traceback.format_exc()
            return ""
        code, err = called([word.replace("{file}", str(case.file)).replace("{new}", f"new-{number}") for word in case.reader])
        if "this is a defect of czsl" in err:
            return err
        return "" if code in (0, 1, 2, 3, 4, 5, 6) else f"exit code {code}\n{err}"
    finally:
        case.file.parent.mkdir(parents=True, exist_ok=True)
        case.file.write_bytes(before)
        for path, kept in siblings.items():
            path.write_bytes(kept)


def main() -> None:
    """Fuzz for a while and print each defect once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=Path("/tmp/czsl-fuzz"))
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    shutil.rmtree(options.root, ignore_errors=True)
    cases = [case for case in prepare(options.root) if options.only in case.name]
    end, number, found, done = time.monotonic() + options.seconds, 0, Counter(), Counter()
    while time.monotonic() < end:
        number += 1
        case = cases[number % len(cases)]
        rng = random.Random(f"{options.seed}-{number}")
        content = damage(case.file, rng)
        done[case.name] += 1
        why = tried(case, content, number)
        if why:
            lines = [line.strip() for line in why.strip().splitlines()]
            place = next((line for line in reversed(lines) if "/czsl" in line and line.startswith("File")), "")
            key = f"{place} | {next((x for x in reversed(lines) if 'Error' in x), lines[-1])[:160]}"
            if not found[key]:
                print(f"DEFECT {case.name} #{number}: {key}", flush=True)
                folder = options.root / "found" / f"{number}"
                folder.mkdir(parents=True)
                (folder / case.file.name).write_bytes(content)
                (folder / "why.txt").write_text(f"{case.name}\n{why}")
            found[key] += 1
    print(f"{number} tries of {len(done)} kinds, {len(found)} defects in {sum(found.values())} tries", flush=True)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
