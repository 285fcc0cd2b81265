"""FCOS and RetinaNet object detection with native C++/CUDA operators.

``fcos_fast.ops`` contains the operators, ``fcos_fast.models`` the detectors. ``fcos_fast.accelerate`` makes
torchvision's detectors faster. ``fcos_fast.train``, ``fcos_fast.load``, ``fcos_fast.fcos``, ``fcos_fast.retinanet``
and ``fcos_fast.backend`` are shortcuts for everyday use. Shortcuts and subpackages are imported on first use:
``import fcos_fast`` alone imports neither torch nor a binary.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from fcos_fast._lazy import lazy_names

try:
    __version__ = version("fcos_fast")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0"

if TYPE_CHECKING:
    from fcos_fast import data as data
    from fcos_fast import engine as engine
    from fcos_fast import inference as inference
    from fcos_fast import integrations as integrations
    from fcos_fast import models as models
    from fcos_fast import ops as ops
    from fcos_fast import reference as reference
    from fcos_fast._extension import backend as backend
    from fcos_fast.engine.callbacks import Callback as Callback
    from fcos_fast.inference import load as load
    from fcos_fast.integrations.accelerate import accelerate as accelerate
    from fcos_fast.integrations.accelerate import restore as restore
    from fcos_fast.memory import keep_memory as keep_memory
    from fcos_fast.models import fcos as fcos
    from fcos_fast.models import retinanet as retinanet
    from fcos_fast.training import train as train
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "_extension": ["backend"],
            "engine.callbacks": ["Callback"],
            "inference": ["load"],
            "integrations.accelerate": ["accelerate", "restore"],
            "memory": ["keep_memory"],
            "models": ["fcos", "retinanet"],
            "training": ["train"],
        },
        subpackages=["data", "engine", "inference", "integrations", "models", "ops", "reference"],
    )
