"""Backbone and head of a detector replayed from CUDA graphs, one per shape of the image batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fcos_fast.cuda_graphs import WARM_UP, GraphCache, capture

MAX_GRAPHS = 8
"""Shapes per model that get a graph, each of which keeps the memory of all activations."""

MAX_IDLE = 1000
"""If all graphs are taken, one that was not used in this many calls makes room for another."""

Run = Callable[[Tensor], Any]
"""Images to the outputs of the head, by a graph or without."""

Sizes = list[tuple[int, int]]


class Network(nn.Module):
    """Backbone and head as one module.

    Attributes:
        sizes: (height, width) of each feature map of the last call.
    """

    sizes: Sizes

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = model.get_submodule("backbone"), model.get_submodule("head")
        self.training = model.training  # not train(), which would change the model

    def forward(self, images: Tensor) -> Any:
        """Padded images (B, 3, H, W) to the outputs of the head."""
        features = self.backbone(images)
        features = [features] if isinstance(features, Tensor) else list(features.values())
        self.sizes = [tuple(x.shape[-2:]) for x in features]
        return self.head(features)


class _Graphs:
    """The graphs of one model. They read and write its parameters and buffers at fixed addresses."""

    def __init__(self, addresses: Hashable) -> None:
        self.addresses = addresses
        self.cache: GraphCache[tuple[Run, Network]] = GraphCache(MAX_GRAPHS, MAX_IDLE)


# Not an attribute of the model: graphs can be neither copied nor saved.
_GRAPHS: WeakKeyDictionary[nn.Module, _Graphs] = WeakKeyDictionary()


def run_graphed(model: nn.Module, images: Tensor) -> tuple[Sizes, Any]:
    """The sizes of the feature maps, and the outputs of the head, which the next call with this shape overwrites.

    With gradients, each forward pass must be followed by its backward pass before the next forward pass.
    """
    autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    modes = (model.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast)
    key = (images.shape, images.stride(), images.dtype, images.device, *modes)
    # No cache: a graph would read weights that autocast cast in an earlier call.
    with torch.autocast("cuda", autocast, enabled=autocast is not None, cache_enabled=False):
        found = _graphs_of(model).find(key, lambda: _record(model, images))
        if found is None:
            warnings.warn(
                f"fcos_fast: {MAX_GRAPHS} image sizes have CUDA graphs, this one runs without; increase "
                "size_divisible of the model's transform, or use fewer image sizes",
                stacklevel=2,
            )
            network = Network(model)
            found = network, network
        run, network = found
        outputs = run(images)
        return network.sizes, outputs


def _graphs_of(model: nn.Module) -> GraphCache[tuple[Run, Network]]:
    """The graphs of a model; new ones if its parameters or buffers have moved."""
    parameters = tuple((p.data_ptr(), p.requires_grad) for p in model.parameters())
    buffers = tuple(buffer.data_ptr() for buffer in model.buffers())  # statistics of batch norms
    addresses = (parameters, buffers)
    graphs = _GRAPHS.get(model)
    if graphs is None or graphs.addresses != addresses:
        graphs = _GRAPHS[model] = _Graphs(addresses)
    return graphs.cache


def _record(model: nn.Module, images: Tensor) -> tuple[Run, Network]:
    network = Network(model)
    return _capture_or_not(network, images), network


def forget_graphs(model: nn.Module) -> None:
    """Free the graphs of a model."""
    _GRAPHS.pop(model, None)


def _capture_or_not(network: Network, images: Tensor) -> Run:
    """A graph of the network, or with a warning the network itself if it cannot be captured."""
    statistics = [buffer.clone() for buffer in network.buffers()]
    try:
        return _capture(network, images)
    except RuntimeError as error:
        warnings.warn(f"fcos_fast: the network runs without a CUDA graph: {error}", stacklevel=3)
        return network
    finally:  # the warm-up has changed the running statistics of batch norms
        for buffer, before in zip(network.buffers(), statistics, strict=True):
            buffer.copy_(before)


def _capture(network: Network, images: Tensor) -> Run:
    if torch.is_grad_enabled():
        return torch.cuda.make_graphed_callables(network, (images.clone(),), allow_unused_input=True)
    return capture(network, [images], torch.cuda.Stream(), warm_up=WARM_UP)
