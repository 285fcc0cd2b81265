"""What every backbone is: five stages that end in feature maps of strides 4 to 32 and can be frozen; and its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from fcos_fast.models.config import NUM_STAGES

BACKBONES: dict[str, Callable[..., Backbone]] = {}
"""The backbones by name; called with their options they return one with random weights."""

Made = TypeVar("Made", bound=Callable[..., "Backbone"])


def register_backbone(name: str, **options: Any) -> Callable[[Made], Made]:
    """Decorate a :class:`Backbone` or a function that makes one, to have it in :data:`BACKBONES`, with ``options``.

    Its other options that are fields of ``DetectorConfig``, as ``norm``, are given to it by the detectors.
    """

    def register(make: Made) -> Made:
        BACKBONES[name] = partial(make, **options)
        return make

    return register


class Backbone(nn.Module):
    """Base of the backbones.

    Attributes:
        out_channels: channels of the four feature maps C2 to C5.
    """

    out_channels: tuple[int, int, int, int]

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []

    def stages(self) -> list[list[nn.Module]]:
        """The modules of each of the five stages, from the image up."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to [C2, ..., C5]: (B, out_channels[i], ceil(H / stride), ceil(W / stride))."""
        raise NotImplementedError

    def freeze(self, trainable_stages: int) -> None:
        """Train only the last ``trainable_stages`` of the five stages.

        The parameters of the others take no gradient and their batch norms keep their statistics.
        """
        # Kept in a list, which nn.Module does not register: the modules already have their place in the
        # state dict.
        stages = self.stages()
        self._frozen = [module for stage in stages[: NUM_STAGES - trainable_stages] for module in stage]
        for module in (module for stage in stages for module in stage):
            module.requires_grad_(all(module is not frozen for frozen in self._frozen))
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As ``nn.Module.train``; frozen stages stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self
