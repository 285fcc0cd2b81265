"""Backbone and head of a detector, replayed from CUDA graphs: one for each shape of the image batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

MAX_GRAPHS = 8
"""Shapes per model that get a graph, each of which holds on to the memory of all activations."""

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


# Beside the models and not in them: a graph can be neither copied nor saved.
_GRAPHS: WeakKeyDictionary[nn.Module, dict[tuple, tuple[Callable[[Tensor], Any], Network]]] = (
    WeakKeyDictionary()
)


def run_graphed(model: nn.Module, images: Tensor) -> tuple[Sizes, Any]:
    """The sizes of the feature maps, and the head's outputs, which the next call with this shape overwrites.

    One backward pass belongs to one forward pass: the next forward pass comes after it.
    """
    graphs = _GRAPHS.setdefault(model, {})
    autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    modes = (model.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast)
    weights = tuple((p.data_ptr(), p.requires_grad) for p in model.parameters())  # a graph knows their places
    key = (images.shape, images.stride(), images.dtype, images.device, *modes, weights)
    # Weights that autocast keeps from one call to the next would be a graph's past.
    with torch.autocast("cuda", autocast, enabled=autocast is not None, cache_enabled=False):
        if key not in graphs:
            if len(graphs) == MAX_GRAPHS:
                warnings.warn(
                    f"fcos_fast: {MAX_GRAPHS} image sizes have CUDA graphs, no further one gets any; let "
                    "size_divisible of the model's transform be greater, or fix the image sizes",
                    stacklevel=2,
                )
                network = Network(model)
                outputs = network(images)
                return network.sizes, outputs
            network = Network(model)
            graphs[key] = (_capture_or_not(network, images), network)
        run, network = graphs[key]
        outputs = run(images)
        return network.sizes, outputs


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
