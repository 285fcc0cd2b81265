"""The cost of a detector: parameters and floating-point operations of each part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fcos_fast.models.detector import Detector
from fcos_fast.models.sizes import Size


@dataclass(frozen=True)
class Cost:
    """The cost of one part of a model, for one image.

    Attributes:
        part: dotted name of the module.
        parameters: number of parameters; frozen norms have none, only buffers.
        flops: multiplications plus additions of its convolutions. Torchvision and most papers count multiply-adds,
            half of it.
    """

    part: str
    parameters: int
    flops: int


PARTS = (
    "backbone.body",
    "backbone.fpn",
    "backbone.fpn.extra_blocks",
    "head.classification_head",
    "head.regression_head",
)
"""The parts of every detector; a part inside another is counted only once, as itself."""


def cost(model: Detector, size: Size) -> list[Cost]:
    """The cost of each of :data:`PARTS` of ``model`` and, at the end, of the whole network.

    Counted by torch's ``FlopCounterMode``, which counts convolutions and matrix products, but not norms, activations
    and deformable convolutions. Transform and post-processing are not included.

    Args:
        model: on any device; on ``meta`` nothing is computed.
        size: (height, width) of the padded image.
    """
    image = torch.zeros((1, 3, *size), device=model.transform.mean.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.network(image)
    counts = counter.get_flop_counts()

    def flops(part: str) -> int:
        # The counter names modules by the class of the module that was called and the path below it.
        top, _, below = part.partition(".")
        return sum(counts.get(f"{type(model.get_submodule(top)).__name__}.{below}", {}).values())

    def parameters(part: str) -> int:
        return sum(p.numel() for p in model.get_submodule(part).parameters())

    present = [part for part in PARTS if _has(model, part)]
    costs = []
    for part in present:
        within = [other for other in present if other.startswith(part + ".")]
        own_parameters = parameters(part) - sum(map(parameters, within))
        costs.append(Cost(part, own_parameters, flops(part) - sum(map(flops, within))))
    return [*costs, Cost("all", parameters(""), counter.get_total_flops())]


def cost_table(costs: Sequence[Cost]) -> str:
    """A table: millions of parameters and billions of multiply-adds."""
    rows = [
        f"{c.part:26}{c.parameters / 1e6:12.3f}{c.flops / 2e9:12.3f}{c.flops / costs[-1].flops:10.1%}"
        for c in costs
    ]
    return "\n".join([f"{'part':26}{'M parameters':>12}{'G mult-adds':>12}{'share':>10}", *rows])


def _has(model: nn.Module, part: str) -> bool:
    try:
        return isinstance(model.get_submodule(part), nn.Module)
    except AttributeError:
        return False
