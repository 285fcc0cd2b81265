"""Atomic writes."""

from __future__ import annotations

import json
import os

import pytest

from fcos_fast.engine.files import WriteError, replacing, write_json, write_text


def test_replaces_without_leftovers(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    write_text(path, "new: ä")
    assert path.read_text(encoding="utf-8") == "new: ä"
    assert list(tmp_path.iterdir()) == [path]


def fail_halfway(path):
    with replacing(path) as temporary:
        temporary.write_text("ne")
        assert path.read_text() == "old"
        raise RuntimeError("disk full")


def test_a_writer_that_fails_halfway_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="disk full"):
        fail_halfway(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_name_keeps_the_suffix_and_the_folder(tmp_path):
    with replacing(tmp_path / "image.png") as temporary:
        temporary.write_bytes(b"x")
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path


def test_two_writers_of_one_file_do_not_interfere(tmp_path):
    """The second starts and ends while the first is writing."""
    path = tmp_path / "last.pt"
    with replacing(path) as first:
        first.write_bytes(b"first")
        with replacing(path) as second:
            assert second != first
            second.write_bytes(b"second")
        assert path.read_bytes() == b"second"
        assert first.read_bytes() == b"first"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_the_longest_possible_name(tmp_path):
    path = tmp_path / ("a" * 251 + ".txt")
    write_text(path, "text")
    assert path.read_text() == "text"


def test_errors_name_the_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match=r"folder: cannot be written: .*irectory"):
        write_text(tmp_path / "folder", "text")
    with pytest.raises(WriteError, match=r"nowhere/a.txt: cannot be written, its folder does not exist"):
        write_text(tmp_path / "nowhere" / "a.txt", "text")


def test_json_has_no_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"ap": float("nan"), "all": [1, float("inf"), (0.5, "é")], "name": os.fsdecode(b"\xff")})

    def reject(constant):
        raise AssertionError(constant)

    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=reject)
    assert read == {"ap": None, "all": [1, None, [0.5, "é"]], "name": os.fsdecode(b"\xff")}


def test_surrogates_are_escaped(tmp_path):
    write_text(tmp_path / "a.txt", "a" + os.fsdecode(b"\xff"))
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "a\\udcff"
