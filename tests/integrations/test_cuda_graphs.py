"""Which CUDA graphs an accelerated model keeps; the capture is emulated without a GPU."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")
from fcos_fast.integrations import cuda_graphs
from fcos_fast.integrations.cuda_graphs import MAX_GRAPHS, MAX_IDLE, run_graphed


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Identity()


class Replay:
    """Stands in for a graph, with memory of its own."""

    def __init__(self, network, images):
        self.network = network
        self.memory = torch.zeros(1)

    def __call__(self, images):
        return self.network(images)


@pytest.fixture
def captured(monkeypatch):
    """Weak references to the captured graphs."""
    captured = []

    def capture(network, images):
        replay = Replay(network, images)
        captured.append(weakref.ref(replay))
        return replay

    monkeypatch.setattr(cuda_graphs, "_capture", capture)
    return captured


@pytest.fixture
def model():
    return Model().eval()


def alive(captured):
    gc.collect()
    return [graph() is not None for graph in captured]


def image(side=8):
    return torch.zeros(1, 3, side, side)


def move_parameter(model):
    model.backbone[0].weight.data = model.backbone[0].weight.data.clone()


def move_buffer(model):
    """As ``load_state_dict(assign=True)`` does; weight and bias of frozen batch norms are buffers."""
    model.backbone[1].running_mean = model.backbone[1].running_mean.clone()


def assign(model):
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)


def freeze(model):
    model.backbone[0].weight.requires_grad_(False)


@pytest.mark.parametrize("change", [move_parameter, move_buffer, assign, freeze])
def test_graphs_are_dropped_when_parameters_move(model, captured, change):
    for side in (8, 16):
        run_graphed(model, image(side))
    run_graphed(model, image(8))
    assert alive(captured) == [True, True]
    before = [
        tensor.clone() for tensor in model.state_dict().values()
    ]  # whose addresses cannot be given again
    change(model)
    run_graphed(model, image(8))
    assert alive(captured) == [False, False, True]
    assert len(before) == len(model.state_dict())


def test_values_change_in_place(model, captured):
    run_graphed(model, image())
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    sizes, outputs = run_graphed(model, image())
    assert sizes == [(8, 8)]
    assert torch.equal(outputs[0], model.backbone(image()))
    assert alive(captured) == [True]


def test_more_sizes_than_graphs(model, captured):
    for side in range(1, MAX_GRAPHS + 1):
        run_graphed(model, image(side))
    with pytest.warns(UserWarning, match="size_divisible"):
        sizes, outputs = run_graphed(model, image(99))
    assert sizes == [(99, 99)]
    assert outputs[0].shape == (1, 4, 99, 99)
    assert alive(captured) == [True] * MAX_GRAPHS  # sizes in use are not captured repeatedly


def test_an_idle_size_makes_room(model, captured, monkeypatch):
    assert MAX_IDLE >= 100
    monkeypatch.setattr(cuda_graphs, "MAX_IDLE", 20)
    for side in range(1, MAX_GRAPHS + 1):
        run_graphed(model, image(side))
    for _ in range(20):
        for side in range(2, MAX_GRAPHS + 1):
            run_graphed(model, image(side))
    run_graphed(model, image(99))
    assert alive(captured) == [False] + [True] * MAX_GRAPHS


def test_graphs_are_freed_with_their_model(captured):
    model = Model()
    run_graphed(model, image())
    cuda_graphs.forget_graphs(model)
    assert alive(captured) == [False]
    run_graphed(model, image())
    del model
    assert alive(captured) == [False, False]


def test_each_mode_has_its_own_graph(model, captured):
    run_graphed(model, image())
    with torch.no_grad():
        run_graphed(model, image())
    run_graphed(model.train(), image())
    assert alive(captured) == [True] * 3
