"""Files that are whole or absent, and folders that one process at a time works on."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from czsl.errors import UsageError
from czsl.runs import files
from czsl.runs.files import held, write_array, write_atomically


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    file = tmp_path / "a"
    write_atomically(file, b"old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        write_atomically(file, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert file.read_bytes() == b"old"


def test_an_array_comes_back(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_array(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), array, strict=True)


HOLD = """
import sys
from pathlib import Path
from czsl.runs.files import held
with held(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_held_folder_is_refused_to_others_until_its_holder_is_gone(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError) as caught, held(tmp_path, "training"):
            pass
        assert f"training is under way in {tmp_path}" in caught.value.what
        assert f"process {holder.pid} on" in caught.value.why
    finally:
        holder.kill()  # no chance to clean up
        holder.communicate()
    with held(tmp_path, "training"):
        pass


def test_a_file_system_without_locks_is_used_without_one(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with held(tmp_path, "training"):
        pass
