"""For ``pytest -p tests.emulation.plugin``: operators on the CPU are those of CUDA, emulated."""

from __future__ import annotations

import ctypes
import os

import torch

from fcos_fast import _extension
from fcos_fast.ops import focal_loss

torch.ops.load_library(os.environ["EMULATED_CUDA"])
emulation = ctypes.CDLL(os.environ["EMULATED_CUDA"])
emulation.emulation_watch_tensors()
focal_loss._in_one_pass = lambda inputs: False  # as for tensors on a GPU
_extension.is_on_gpu = lambda tensor: True
