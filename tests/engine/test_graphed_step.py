"""Whole training steps as CUDA graphs, emulated on the CPU: a graph is a list of operator calls on fixed memory."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fcos_fast.cuda_graphs
from fcos_fast.cuda_graphs import WARM_UP
from fcos_fast.engine import cuda_graphs
from fcos_fast.engine import step as step_module
from fcos_fast.engine.ema import ExponentialMovingAverage
from fcos_fast.engine.optimizer import OptimizerConfig, build_optimizer
from fcos_fast.engine.step import TrainStep
from fcos_fast.models import build_detector
from tests.engine.small import MODEL, packed
from tests.engine.test_cuda_graphs import Stream


class Graph(TorchDispatchMode):
    """Records the operator calls of a capture, which a replay repeats with the same tensors.

    A capture on a GPU computes nothing; this one does, so the replay that follows it is skipped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # torch's optimizers and checks read values on a CPU; test_step.py finds what would do so on a GPU
        if func.namespace != "profiler" and func is not torch.ops.aten._local_scalar_dense.default:
            self.calls.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        if self.replays == 1:
            return
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            if any(output.alias_info is not None for output in func._schema.returns):
                continue  # a view, or written in place
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor):
                    old.copy_(new)


@pytest.fixture(autouse=True)
def graphs(monkeypatch) -> list[Graph]:
    """All captured graphs."""
    captured: list[Graph] = []

    def new() -> Graph:
        captured.append(Graph())
        return captured[-1]

    cuda = SimpleNamespace(
        CUDAGraph=new,
        graph=lambda graph, pool, stream, capture_error_mode: graph,
        Stream=Stream,
        graph_pool_handle=lambda: None,
        stream=lambda _: contextlib.nullcontext(),
        current_stream=lambda *_: Stream(),
    )
    for module in (cuda_graphs, fcos_fast.cuda_graphs):
        monkeypatch.setattr(module, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(step_module, "why_not", lambda _: None)
    return captured


PADDED = ((64, 96), (64, 96), (60, 80), (50, 90))
"""In two parts, the second of which is padded."""


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_replayed_steps_equal_eager_steps(name, accumulate, graphs):
    """Also of batches in which other images are padded than in the captured one."""
    torch.manual_seed(0)
    weights = build_detector(MODEL).state_dict()
    optimizer = OptimizerConfig(name=name, lr=0.001)

    def build(cuda_graphs: bool) -> TrainStep:
        model = build_detector(MODEL).train()
        model.load_state_dict(weights)
        ema = ExponentialMovingAverage(model, 0.5)
        options = {"clip_norm": 1.0, "cuda_graphs": cuda_graphs, "accumulate": accumulate}
        return TrainStep(model, build_optimizer(model, optimizer), ema, **options)

    eager, graphed = build(False), build(True)
    for t in range(7):
        images, targets = packed(t, PADDED if t < 5 else PADDED[::-1])
        for step in (eager, graphed):
            step(images, targets)
    assert [graph.replays for graph in graphs] == [7 - WARM_UP]
    assert eager.tally() == graphed.tally()
    for a, b in zip(_tensors(eager), _tensors(graphed), strict=True):
        assert torch.equal(a, b)


def _tensors(step: TrainStep) -> list[Tensor]:
    return [*step.model.state_dict().values(), *step.ema.model.state_dict().values()]
