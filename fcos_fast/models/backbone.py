"""Base class and registry of the backbones: five stages that can be frozen, feature maps of strides 4 to 32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from fcos_fast.models.config import NUM_STAGES

BACKBONES: dict[str, Callable[..., Backbone]] = {}
"""Name to a function of the options that returns a backbone with random weights."""

Made = TypeVar("Made", bound=Callable[..., "Backbone"])


def register_backbone(name: str, **options: Any) -> Callable[[Made], Made]:
    """Decorator: register a :class:`Backbone` class, or a function that returns one, with fixed ``options``.

    Detectors pass its other options that are fields of ``DetectorConfig``, such as ``norm``.
    """

    def register(make: Made) -> Made:
        BACKBONES[name] = partial(make, **options)
        return make

    return register


class Backbone(nn.Module):
    """Base class of the backbones.

    Attributes:
        out_channels: channels of the four feature maps C2 to C5.
        UNUSED_KEYS: prefixes of keys that published state dicts have and the backbone has not, such as a classifier;
            ``load_state_dict`` ignores them.
    """

    out_channels: tuple[int, int, int, int]
    UNUSED_KEYS: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []

    def stages(self) -> list[list[nn.Module]]:
        """The modules of each of the five stages, the stem first."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to [C2, ..., C5]: (B, out_channels[i], ceil(H / stride), ceil(W / stride))."""
        raise NotImplementedError

    def freeze(self, trainable_stages: int) -> None:
        """Train only the last ``trainable_stages`` of the five stages.

        The parameters of the other stages have no gradient, and their batch norms keep their statistics.
        """
        # In a list, because nn.Module would register them a second time.
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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        unused = tuple(prefix + key for key in self.UNUSED_KEYS)
        for key in [key for key in state_dict if key.startswith(unused)] if unused else ():
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)
