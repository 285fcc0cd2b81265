"""Backbone and head of a detector, replayed from CUDA graphs: one for each shape of the image batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

MAX_GRAPHS = 8
"""Shapes per model that get a graph, each of which holds on to the memory of all activations."""

MAX_IDLE = 1000
"""Calls after which a graph that none of them used makes room for another."""

Sizes = list[tuple[int, int]]


class Network(nn.Module):
    """Backbone and head as one module.

    Attributes:
        sizes: (height, width) of each feature map of the last call.
    """

    sizes: Sizes

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.training = model.training  # and not train(), which would reach into the model

    def forward(self, images: Tensor) -> Any:
        """Padded images (B, 3, H, W) to what the head makes of them."""
        features = self.backbone(images)
        features = [features] if isinstance(features, Tensor) else list(features.values())
        self.sizes = [tuple(x.shape[-2:]) for x in features]
        return self.head(features)


class Key(NamedTuple):
    """What a graph is captured for.

    Attributes:
        call: shape, type and place of the images, and the modes of torch and the model.
        places: addresses of all parameters and buffers, which the graph reads and writes.
    """

    call: Hashable
    places: Hashable


class Graphs:
    """The graphs of one model: at most ``MAX_GRAPHS``, and none for memory that the model has left."""

    def __init__(self) -> None:
        self.entries: dict[Key, Any] = {}  # the least recently used first
        self._calls = 0
        self._last_call: dict[Key, int] = {}

    def find(self, key: Key, make: Callable[[], Any]) -> Any | None:
        """The entry of ``key``, made where there is none yet; None where there is no room for it."""
        self._calls += 1
        if key not in self.entries:
            self._make_room(key)
            if len(self.entries) == MAX_GRAPHS:
                return None
            self.entries[key] = make()
        self.entries[key] = self.entries.pop(key)
        self._last_call[key] = self._calls
        return self.entries[key]

    def _make_room(self, new: Key) -> None:
        """Drop graphs of other parameters and buffers; of these, where there are too many, one out of use."""
        for key in [key for key in self.entries if key.places != new.places]:
            self._drop(key)
        if len(self.entries) == MAX_GRAPHS:
            oldest = next(iter(self.entries))
            if self._calls - self._last_call[oldest] > MAX_IDLE:
                self._drop(oldest)

    def _drop(self, key: Key) -> None:
        del self.entries[key], self._last_call[key]


# Beside the models and not in them: a graph can be neither copied nor saved.
_GRAPHS: WeakKeyDictionary[nn.Module, Graphs] = WeakKeyDictionary()


def run_graphed(model: nn.Module, images: Tensor) -> tuple[Sizes, Any]:
    """The sizes of the feature maps, and the head's outputs, which the next call with this shape overwrites.

    One backward pass belongs to one forward pass: the next forward pass comes after it.
    """
    graphs = _GRAPHS.setdefault(model, Graphs())
    autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    # Weights that autocast keeps from one call to the next would be a graph's past.
    with torch.autocast("cuda", autocast, enabled=autocast is not None, cache_enabled=False):
        found = graphs.find(_key(model, images, autocast), lambda: _record(model, images))
        if found is None:
            warnings.warn(
                f"fcos_fast: {MAX_GRAPHS} image sizes have CUDA graphs, this one runs without; let "
                "size_divisible of the model's transform be greater, or fix the image sizes",
                stacklevel=2,
            )
            network = Network(model)
            outputs = network(images)
            return network.sizes, outputs
        run, network = found
        outputs = run(images)
        return network.sizes, outputs


def _key(model: nn.Module, images: Tensor, autocast: torch.dtype | None) -> Key:
    modes = (model.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast)
    places = tuple((p.data_ptr(), p.requires_grad) for p in model.parameters())
    places += tuple(buffer.data_ptr() for buffer in model.buffers())  # statistics of batch norms
    return Key((images.shape, images.stride(), images.dtype, images.device, *modes), places)


def _record(model: nn.Module, images: Tensor) -> tuple[Callable[[Tensor], Any], Network]:
    network = Network(model)
    return _capture_or_not(network, images), network


def forget_graphs(model: nn.Module) -> None:
    """Free the graphs of a model."""
    _GRAPHS.pop(model, None)


def _capture_or_not(network: Network, images: Tensor) -> Callable[[Tensor], Any]:
    """A replay, or the network itself where something in it cannot be captured, which a warning says."""
    statistics = [buffer.clone() for buffer in network.buffers()]
    try:
        return _capture(network, images)
    except RuntimeError as error:
        warnings.warn(f"fcos_fast: the network runs without a CUDA graph: {error}", stacklevel=3)
        return network
    finally:  # warming up has moved the running statistics of batch norms
        for buffer, before in zip(network.buffers(), statistics, strict=True):
            buffer.copy_(before)


def _capture(network: Network, images: Tensor) -> Callable[[Tensor], Any]:
    if torch.is_grad_enabled():
        return torch.cuda.make_graphed_callables(network, (images.clone(),), allow_unused_input=True)
    inputs = images.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what libraries set up on first use must not be captured
            network(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as that which pins memory, go on meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = network(inputs)

    def replay(images: Tensor) -> Any:
        inputs.copy_(images)
        graph.replay()
        return outputs

    return replay
