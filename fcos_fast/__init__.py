"""FCOS object detection whose hot operations are C++/CUDA extensions."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fcos_fast")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.0.0"
