"""Files that are whole or not there."""

from __future__ import annotations

import pytest

from fcos_fast.engine.files import replacing, write_text


def test_replaces_and_leaves_nothing_beside(tmp_path):
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
    with replacing(tmp_path / "picture.png") as temporary:
        temporary.write_bytes(b"x")
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path
