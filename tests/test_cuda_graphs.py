"""The cache of CUDA graphs; captures are tested where they are used."""

from __future__ import annotations

import pytest

from fcos_fast.cuda_graphs import GraphCache


def test_one_graph_per_key_up_to_a_maximum():
    made: list[str] = []
    cache: GraphCache[str] = GraphCache(2)
    for key in "abcabca":
        found = cache.find(key, lambda key=key: made.append(key) or key)
        assert found == (None if key == "c" else key)
    assert made == ["a", "b"]


def test_an_idle_graph_makes_room():
    cache: GraphCache[str] = GraphCache(2, max_idle=3)
    found = [cache.find(key, lambda key=key: key) for key in "abcaaccb"]
    assert found == [
        "a",
        "b",
        None,
        "a",
        "a",
        "c",
        "c",
        None,
    ]  # c replaces b once that is idle


def test_a_failed_capture_leaves_no_graph():
    def fail():
        raise RuntimeError("not permitted")

    cache: GraphCache[str] = GraphCache(2)
    cache.find("a", lambda: "a")
    with pytest.raises(RuntimeError):
        cache.find("b", fail)
    cache.stop()
    assert cache.find("b", lambda: "b") is None
    assert cache.find("a", lambda: "other") == "a"
