import json

import numpy as np
import pytest

from fcos_fast.data.categories import Categories
from fcos_fast.inference import RawDetections, fastest
from fcos_fast.inference.fastest import FastestEngine, time_engines
from fcos_fast.models.config import FCOSConfig

IMAGE = np.zeros((64, 96, 3), np.uint8)
CATEGORIES = Categories(("cat",))


class Clock:
    """Seconds that pass only while an engine runs."""

    now = 0.0


class Timed:
    """Takes so many milliseconds of the clock; its labels tell which engine ran."""

    def __init__(self, name, milliseconds, started):
        self.name, self.milliseconds, self.categories = name, milliseconds, CATEGORIES
        started.append(name)

    def detect(self, images):
        Clock.now += self.milliseconds(images[0].shape) / 1000
        empty = np.zeros((0, 4), np.float32)
        return [RawDetections(empty, empty[:, 0], np.array([self.name])) for _ in images]


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Names of the engines that were built, in order; the cache is a new folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fastest.time, "perf_counter", lambda: Clock.now)
    return []


def engine(started, config=None, **milliseconds):
    def build(name):
        chosen = milliseconds[name]
        return Timed(name, chosen if callable(chosen) else lambda shape: chosen, started)

    candidates = {name: lambda name=name: build(name) for name in milliseconds}
    return FastestEngine(candidates, config or FCOSConfig(num_classes=1, min_size=None), CATEGORIES)


def used(chosen, image=IMAGE):
    return str(chosen.detect([image])[0].labels[0])


def test_the_fastest_is_used_and_named(started, capsys):
    chosen = engine(started, torch=6, onnxruntime=2, openvino=4)
    assert used(chosen) == "onnxruntime"
    line = capsys.readouterr().err
    assert line.startswith("engine for 1x64x96: onnxruntime (onnxruntime ")
    assert line.index("openvino") < line.index("torch")
    assert used(chosen) == "onnxruntime"
    assert capsys.readouterr().err == ""
    assert started == ["torch", "onnxruntime", "openvino"]


def test_each_size_has_its_own(started):
    small_is_fast = engine(started, torch=lambda shape: shape[0] / 10, openvino=10)
    assert used(small_is_fast) == "torch"
    assert used(small_is_fast, np.zeros((320, 96, 3), np.uint8)) == "openvino"
    assert used(small_is_fast) == "torch"


def test_the_times_are_kept_for_the_next_process(started, capsys):
    used(engine(started, torch=6, openvino=2))
    started.clear()
    assert used(engine(started, torch=1, openvino=20)) == "openvino"  # as timed before
    assert started == ["openvino"]
    assert "timed before" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["configuration", "candidates", "broken file", "version"])
def test_other_work_is_timed_again(started, monkeypatch, change):
    used(engine(started, torch=6, openvino=2))
    config = FCOSConfig(num_classes=1, min_size=None, head_convs=3) if change == "configuration" else None
    candidates = {"torch": 2, "openvino": 6}
    if change == "candidates":
        candidates["onnxruntime"] = 6
    elif change == "broken file":
        (fastest.cache_folder() / "engines.json").write_text("{")
    elif change == "version":
        monkeypatch.setattr(fastest, "_version", lambda package: "9.9")
    assert used(engine(started, config, **candidates)) == "torch"


def test_without_a_folder_for_the_times(started, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert used(engine(started, torch=6, openvino=2)) == "openvino"


def test_times_are_milliseconds(started):
    times = time_engines({"a": Timed("a", lambda shape: 8, started)}, [IMAGE])
    assert times["a"] == pytest.approx(8)
    used(engine(started, torch=3, openvino=5))
    (kept,) = json.loads((fastest.cache_folder() / "engines.json").read_text()).values()
    assert kept.keys() == {"torch", "openvino"}
