"""Which steps are captured and what they are given; torch.cuda is played by a recorder, so that no GPU is needed."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

import fcos_fast.cuda_graphs
from fcos_fast.assignment import GroundTruth
from fcos_fast.engine import cuda_graphs
from fcos_fast.engine.cuda_graphs import WARM_UP, GraphedStep
from fcos_fast.models import ImageBatch


class Stream:
    device = None

    def __init__(self, *_):
        pass

    def wait_stream(self, other):
        pass


class Recorder:
    """A step that adds up what it is given, and the part of torch.cuda that captures and replays it."""

    def __init__(self):
        self.total = 0.0
        self.captures = self.calls = 0
        self.capturing = None
        self.broken = False

    def step(self, images, targets):
        if self.capturing is not None:
            if self.broken:
                raise RuntimeError("operation not permitted\nwhen stream is capturing")
            self.capturing.inputs = images, targets
            return
        self.calls += 1
        self._add(images, targets)

    def _add(self, images, targets):
        self.total += images.tensor.sum().item() + targets.boxes.sum().item()

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        self.captures += 1
        self.capturing = graph
        try:
            yield
        finally:
            self.capturing = None

    def namespace(self) -> SimpleNamespace:
        return SimpleNamespace(
            Stream=Stream,
            CUDAGraph=lambda: SimpleNamespace(),
            graph=self.graph,
            graph_pool_handle=lambda: None,
            stream=lambda _: contextlib.nullcontext(),
            current_stream=lambda *_: Stream(),
        )


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    recorder = Recorder()
    cuda = recorder.namespace()

    def new_graph():
        graph = SimpleNamespace()
        graph.replay = lambda: recorder._add(*graph.inputs)
        return graph

    cuda.CUDAGraph = new_graph
    for module in (cuda_graphs, fcos_fast.cuda_graphs):
        monkeypatch.setattr(module, "torch", SimpleNamespace(cuda=cuda))
    return recorder


def batch(value: float, size: int = 32, capacity: int = 16):
    images = ImageBatch(torch.full((1, 3, size, size), value), [(size, size)])
    return images, GroundTruth.pack([torch.full((1, 4), value)], [torch.tensor([0])], capacity)


def expected(values, sizes) -> float:
    return sum(v * (3 * s * s + 4) for v, s in zip(values, sizes, strict=True))


def test_every_step_is_done_once_and_on_its_own_data(recorder):
    step = GraphedStep(recorder.step, "cuda")
    values, sizes = list(range(1, 13)), [32, 64] * 6
    for value, size in zip(values, sizes, strict=True):
        step(*batch(value, size))
    assert recorder.total == expected(values, sizes)
    assert (recorder.captures, recorder.calls) == (2, 2 * WARM_UP)


def test_capacity_and_padding_have_graphs_of_their_own(recorder):
    step = GraphedStep(recorder.step, "cuda")
    images, targets = batch(1.0)
    for _ in range(WARM_UP + 1):
        step(images, targets)
        step(*batch(1.0, capacity=64))
        step(ImageBatch(images.tensor, [(30, 32)]), targets)
    assert recorder.captures == 3


def test_the_number_of_graphs_is_bounded(recorder, monkeypatch, capsys):
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    step = GraphedStep(recorder.step, "cuda")
    sizes = [32, 64, 96, 128] * (WARM_UP + 2)
    for size in sizes:
        step(*batch(1.0, size))
    assert recorder.captures == 2
    assert recorder.total == expected([1] * len(sizes), sizes)
    assert capsys.readouterr().out.count("2 sizes have graphs") == 1


def test_a_failed_capture_is_said_once_and_the_steps_go_on(recorder, capsys):
    recorder.broken = True
    step = GraphedStep(recorder.step, "cuda")
    sizes = [32, 64] * (WARM_UP + 2)
    for size in sizes:
        step(*batch(1.0, size))
    assert recorder.total == expected([1] * len(sizes), sizes)
    assert recorder.captures == 1
    line = "train.cuda_graphs: steps of new sizes run without graphs: operation not permitted\n"
    assert capsys.readouterr().out == line
