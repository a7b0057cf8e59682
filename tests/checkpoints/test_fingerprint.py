from __future__ import annotations

import hashlib
import os
import shutil

from kinograph.checkpoints.fingerprint import WHOLE, combined_fingerprint, fingerprint


def test_stable_under_copy_and_name(tmp_path):
    (tmp_path / "a").write_bytes(b"weights")
    shutil.copy(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b", (0, 0))
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    # Recorded beside results, so it may never change.
    assert fingerprint(tmp_path / "a") == hashlib.sha256(b"kinograph fingerprint 1, 7 bytes\nweights").hexdigest()


def test_small_files_count_whole(tmp_path):
    (tmp_path / "a").write_bytes(bytes(5000))
    (tmp_path / "b").write_bytes(bytes(4999) + b"\x01")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_large_files_by_size_and_both_ends(tmp_path):
    size = 3 * WHOLE
    for name, change_at in (("same", None), ("start", 0), ("end", size - 1), ("whole", None)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
            if change_at is not None:
                file.seek(change_at)
                file.write(b"\x01")
    (tmp_path / "longer").touch()
    os.truncate(tmp_path / "longer", size + 1)
    prints = {name: fingerprint(tmp_path / name) for name in ("same", "start", "end", "longer")}
    assert len(set(prints.values())) == 4
    assert fingerprint(tmp_path / "whole") == prints["same"]


def test_combined(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    a, b = tmp_path / "a", tmp_path / "b"
    assert combined_fingerprint([a]) == fingerprint(a)
    assert combined_fingerprint([a, b]) != combined_fingerprint([b, a])
