"""Builds the two extensions: fcos_fast._C (pybind11 module, CPU operators) and fcos_fast._C_cuda (CUDA operators).

Static metadata is in pyproject.toml. Environment variables: FCOS_FAST_BUILD=auto|cpu|cuda, CUDA_HOME,
TORCH_CUDA_ARCH_LIST, MAX_JOBS.
"""

from __future__ import annotations

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
STABLE_ABI = "0x020a000000000000"  # torch 2.10: one binary runs on it and on everything newer
GIB_PER_JOB = {"cpp": 1.0, "cuda": 2.5}


def run(*command: str) -> str:
    """Output of a command, both streams; "" where it cannot run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def cuda_home_of(nvcc: str) -> Path | None:
    """The toolkit that an nvcc belongs to; nvcc may be a wrapper script, so ask it instead of reading its path."""
    try:
        dry = subprocess.run(
            [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    here = re.search(r"_HERE_=(.+)", dry.stderr + dry.stdout)
    home = Path(here.group(1)).resolve().parent if here else Path(nvcc).resolve().parent.parent
    return home if (home / "bin" / "nvcc").exists() else None


def find_cuda_home() -> Path | None:
    """CUDA_HOME, the nvcc on the PATH, the usual folders, or PyPI's nvidia-cuda-nvcc, in that order."""
    if named := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return Path(named) if (Path(named) / "bin" / "nvcc").exists() else None
    if on_path := shutil.which("nvcc"):
        return cuda_home_of(on_path)
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    for folder in (
        Path("/usr/local/cuda"),
        *sorted(Path("/opt").glob("cuda*")),
        *sorted(site.glob("cu*")),
        site / "cuda_nvcc",
    ):
        if (folder / "bin" / "nvcc").exists():
            return folder
    return None


def choose_backend() -> tuple[Path | None, str]:
    """The CUDA toolkit to build with, or None and the reason why there is no CUDA build."""
    wish = os.environ.get("FCOS_FAST_BUILD", "auto")
    if wish not in ("auto", "cpu", "cuda"):
        raise SystemExit(f"FCOS_FAST_BUILD={wish}: expected auto, cpu or cuda")
    if wish == "cpu":
        return None, "FCOS_FAST_BUILD=cpu"
    home = find_cuda_home()
    reason = ""
    if torch.version.cuda is None:
        reason = (
            "the torch that builds it has no CUDA; install a CUDA build of torch and use --no-build-isolation"
        )
    elif home is None:
        reason = "no nvcc found; set CUDA_HOME, or pip install nvidia-cuda-nvcc, or set FCOS_FAST_BUILD=cpu"
    if reason and wish == "cuda":
        raise SystemExit(f"fcos_fast: FCOS_FAST_BUILD=cuda, but {reason}")
    return (None, reason) if reason else (home, "")


def cuda_architectures(home: Path) -> list[str]:
    """Compute capabilities as nvcc flags: TORCH_CUDA_ARCH_LIST, else those of torch that nvcc knows, and PTX."""
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        wanted = [entry.strip() for entry in re.split(r"[;, ]+", listed) if entry.strip()]
        numbers = [entry.removesuffix("+PTX").replace(".", "") for entry in wanted]
        ptx = [number for number, entry in zip(numbers, wanted, strict=True) if entry.endswith("+PTX")]
    else:
        known = re.findall(r"compute_(\d+a?)\b", run(str(home / "bin" / "nvcc"), "--list-gpu-arch"))
        numbers = [
            arch.removeprefix("sm_")
            for arch in torch._C._cuda_getArchFlags().split()
            if arch.startswith("sm_")
        ]
        numbers = [number for number in numbers if number in known] or ["80", "90"]
        ptx = numbers[-1:]
    return [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers] + [
        f"-gencode=arch=compute_{n},code=compute_{n}" for n in ptx
    ]


def limit_jobs(kind: str) -> None:
    """Leave MAX_JOBS alone where it is set; else as many compilers as cores and free memory allow."""
    free_gib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("MAX_JOBS", str(max(1, min(cores, int(free_gib / GIB_PER_JOB[kind])))))


def sources(*patterns: str) -> list[str]:
    """Paths below csrc, relative to this file as setuptools wants them."""
    return sorted(
        path.relative_to(ROOT).as_posix() for pattern in patterns for path in (ROOT / "csrc").glob(pattern)
    )


def cpu_extension() -> Extension:
    """fcos_fast._C."""
    import pybind11

    hash_of_sources = runpy.run_path(str(ROOT / "fcos_fast" / "_source_hash.py"))["source_hash"]()
    return Extension(
        "fcos_fast._C",
        sources("*.cpp", "cpu/*.cpp"),
        include_dirs=[pybind11.get_include(), *cpp_extension.include_paths()],
        library_dirs=cpp_extension.library_paths(),
        libraries=["c10", "torch", "torch_cpu"],
        define_macros=[
            ("TORCH_TARGET_VERSION", STABLE_ABI),
            ("FCOS_FAST_SOURCE_HASH", f'"{hash_of_sources}"'),
            ("FCOS_FAST_BUILD_TORCH", f'"{torch.__version__}"'),
        ],
        extra_compile_args={
            "cxx": [
                *(
                    "-std=c++17",
                    "-O3",
                    "-g0",
                    "-fvisibility=hidden",
                    "-Wall",
                    "-Wno-psabi",
                    "-Wno-unknown-pragmas",
                ),
                # No fused multiply-add but the written ones: thresholds and ties must fall alike on every machine.
                "-ffp-contract=off",
                # These two change no result; without them comparisons are not vectorised.
                *("-fno-math-errno", "-fno-trapping-math"),
            ]
        },
        language="c++",
    )


def cuda_extension(home: Path) -> Extension:
    """fcos_fast._C_cuda: no Python module, loaded with torch.ops.load_library."""
    return Extension(
        "fcos_fast._C_cuda",
        sources("cuda/*.cu"),
        include_dirs=[*cpp_extension.include_paths(), str(home / "include")],
        library_dirs=[*cpp_extension.library_paths(), str(home / "lib64"), str(home / "lib")],
        libraries=["c10", "torch_cpu", "cudart_static", "rt", "dl", "pthread"],
        define_macros=[("TORCH_TARGET_VERSION", STABLE_ABI), ("USE_CUDA", None)],
        extra_compile_args={
            "cxx": ["-std=c++17", "-O3"],
            "nvcc": [
                *(
                    "-std=c++17",
                    "-O3",
                    "-fmad=false",
                    "--expt-relaxed-constexpr",
                    "-Xcompiler=-fvisibility=hidden",
                ),
                *cuda_architectures(home),
            ],
        },
        # libtorch.so has no symbol of its own but brings libtorch_cuda.so; a linker would drop it as unused.
        extra_link_args=["-Wl,--no-as-needed", "-ltorch"],
        language="c++",
    )


def print_summary(home: Path | None, reason: str, extensions: list[Extension]) -> None:
    """One loud block: what is built, for what, and what is left out and why."""
    lines = [
        f"fcos_fast: building with torch {torch.__version__}, Python {platform.python_version()}, "
        f"{os.environ['MAX_JOBS']} jobs"
    ]
    lines.append("CPU operators   yes: SIMD chosen at run time (baseline, and on x86-64 AVX2 and AVX-512)")
    if home is None:
        lines.append(f"CUDA operators  NO: {reason}")
    else:
        archs = re.findall(r"code=(\w+)", " ".join(extensions[1].extra_compile_args["nvcc"]))
        lines.append(f"CUDA operators  yes: nvcc of {home}, {' '.join(archs)}")
    width = max(map(len, lines))
    print("\n".join(["=" * width, *lines, "=" * width]), file=sys.stderr, flush=True)


try:
    import torch
except ImportError:
    raise SystemExit(
        "fcos_fast: building needs torch >= 2.10; leave build isolation on (pip install .), or pip install torch first"
    ) from None

cuda_home, why_not = choose_backend()
if cuda_home is not None:
    os.environ["CUDA_HOME"] = str(cuda_home)  # read when torch.utils.cpp_extension is imported
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "")
from torch.utils import cpp_extension  # noqa: E402

limit_jobs("cuda" if cuda_home else "cpp")
extensions = [cpu_extension()] + ([cuda_extension(cuda_home)] if cuda_home else [])
if {"build_ext", "bdist_wheel", "editable_wheel", "develop", "install"} & set(sys.argv):
    print_summary(cuda_home, why_not, extensions)
setup(
    ext_modules=extensions, cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(use_ninja=True)}
)
