"""Loading a model for detection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_args

from fcos_fast.inference.engine import Engine
from fcos_fast.inference.exported import ExportedEngine
from fcos_fast.inference.fastest import FastestEngine
from fcos_fast.inference.predictor import Predictor
from fcos_fast.inference.runtimes import RUNTIMES, RUNTIMES_OF, exported_copy, file_digest, runtime_engine
from fcos_fast.models.config import DetectorConfig
from fcos_fast.precision import EngineName, Precision
from fcos_fast.suggest import unknown_name


def is_exported(path: str | Path) -> bool:
    """Whether ``path`` is named as a file of ``fcos-fast export``, and not as a checkpoint."""
    return Path(path).suffix in RUNTIMES_OF


def exported_engine(
    path: str | Path,
    device: str = "auto",
    precision: Precision = "auto",
    threads: int | None = None,
    runtime: str | None = None,
) -> ExportedEngine:
    """The engine of a file of ``fcos-fast export``; see :func:`load`.

    Args:
        path: the file.
        device: ``auto`` or ``cpu``.
        precision: ``auto`` or ``float32``.
        threads: of one call; None: one per core.
        runtime: ``onnxruntime``, ``openvino`` or ``torch``; by default that of the format.

    Raises:
        ValueError: it does not run there.
    """
    if device not in ("auto", "cpu") or precision not in ("auto", "float32"):
        raise ValueError(
            f"{path} is an exported detector, which runs on the CPU in float32; got device {device!r} and "
            f"precision {precision!r}"
        )
    runtimes = RUNTIMES_OF[Path(path).suffix]
    if runtime not in (None, *runtimes):
        raise ValueError(f"{path} does not run in {runtime}; choose another engine or load the checkpoint")
    return runtime_engine(runtime or runtimes[0], Path(path), threads)


def load(
    path: str | Path,
    device: str = "auto",
    precision: Precision = "auto",
    *,
    lowest_score: float | None = None,
    iou_threshold: float | None = None,
    max_detections: int | None = None,
    engine: EngineName = "default",
    threads: int | None = None,
) -> Predictor:
    """Load a checkpoint for detection, with its model optimized for inference, or an exported detector.

    Args:
        path: a ``best.pt`` or ``last.pt`` of ``fcos-fast train``, or a checkpoint of another implementation; or a file
            of ``fcos-fast export``: ``model.onnx`` or ``model.xml`` (OpenVINO), which run without torch, or
            ``model.pt2``.
        device: ``auto``, ``cpu``, ``cuda``, ...; ``auto`` or ``cpu`` for an exported detector.
        precision: ``auto``: bfloat16 if the device is fast at it; ``auto`` or ``float32`` for an exported detector.
        lowest_score: find detections down to this score: lowers the ``score_threshold`` of the model if that is higher.
        iou_threshold: IoU above which a box suppresses one with a lower score, in place of the model's
            ``nms_threshold``.
        max_detections: maximum number of detections per image, in place of the model's.
        engine: ``torch``, ``onnxruntime`` or ``openvino``; ``auto``: the fastest of those that are installed, found by
            timing them on the first batch of about each size, see
            :class:`~fcos_fast.inference.fastest.FastestEngine`. By default a checkpoint runs in torch, and an exported
            detector in the runtime of its format. A checkpoint that runs in another engine than torch is
            exported once, into ``~/.cache/fcos_fast``.
        threads: CPU threads of one call; by default ``OMP_NUM_THREADS``, or one per core. In torch it applies to the
            whole process.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, or is neither; an option is out of range, or an exported
            detector cannot change it.
        ModuleNotFoundError: the runtime of the exported detector is not installed.
    """
    wanted = Wanted(lowest_score, iou_threshold, max_detections)
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"threads={threads!r}; expected a positive integer or None")
    if engine not in get_args(EngineName):
        raise unknown_name("engine", engine, get_args(EngineName))
    build = _exported if is_exported(path) else _checkpoint
    return Predictor(build(Path(path), device, precision, engine, threads, wanted))


class Wanted(NamedTuple):
    """The options of :func:`load` that change what is detected."""

    lowest_score: float | None
    iou_threshold: float | None
    max_detections: int | None

    def changes(self, config: DetectorConfig) -> dict[str, Any]:
        """The fields of ``config`` with another value."""
        lowest = None if self.lowest_score is None else min(self.lowest_score, config.score_threshold)
        fields = {
            "score_threshold": lowest,
            "nms_threshold": self.iou_threshold,
            "max_detections": self.max_detections,
        }
        return {name: value for name, value in fields.items() if value not in (None, getattr(config, name))}


def _checkpoint(
    path: Path, device: str, precision: Precision, engine: EngineName, threads: int | None, wanted: Wanted
) -> Engine:
    import torch

    from fcos_fast.engine.checkpoint import load_checkpoint, model_from_checkpoint
    from fcos_fast.inference.torch_engine import TorchEngine
    from fcos_fast.precision import choose_device

    target = choose_device(device)
    digest = file_digest(path) if engine not in ("default", "torch") and path.is_file() else ""
    model, categories = model_from_checkpoint(load_checkpoint(path))
    changes = wanted.changes(model.config)
    model.config = replace(model.config, **changes)

    def in_torch() -> Engine:
        if threads is not None:
            torch.set_num_threads(threads)
        return TorchEngine(model.to(target).optimize_for_inference(precision), categories)

    if engine in ("default", "torch"):
        return in_torch()
    runtimes = RUNTIMES if engine == "auto" else (engine,)
    if target.type != "cpu" or precision == "bfloat16":
        raise ValueError(
            f"engine={engine!r} runs on the CPU, and {' and '.join(RUNTIMES)} in float32; got device {target} and "
            f"precision {precision!r}"
        )

    def in_runtime(runtime: str) -> Callable[[], Engine]:
        return lambda: runtime_engine(runtime, exported_copy(path, digest, changes), threads)

    if engine != "auto":
        return in_runtime(engine)()
    candidates = {"torch": in_torch} | {name: in_runtime(name) for name in runtimes if find_spec(name)}
    return FastestEngine(candidates, model.config, categories, precision, threads)


def _exported(
    path: Path, device: str, precision: Precision, engine: EngineName, threads: int | None, wanted: Wanted
) -> Engine:
    runtime = None if engine in ("default", "auto") else engine
    chosen = exported_engine(path, device, precision, threads, runtime)
    for name, value in wanted.changes(chosen.config).items():
        raise ValueError(
            f"{path}: its {name} is {getattr(chosen.config, name)} and cannot be changed to {value}; export the "
            f"checkpoint again with --{name} {value}"
        )
    if engine != "auto" or "openvino" not in RUNTIMES_OF[path.suffix][1:] or not find_spec("openvino"):
        return chosen
    candidates: dict[str, Callable[[], Engine]] = {
        "onnxruntime": lambda: chosen,
        "openvino": lambda: runtime_engine("openvino", path, threads),
    }
    return FastestEngine(candidates, chosen.config, chosen.categories, threads=threads)
