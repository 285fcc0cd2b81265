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
STABLE_ABI = "0x020a000000000000"  # torch 2.10: one binary works with this and all later versions
FAMILIES = {
    "Maxwell": "5.0;5.2+PTX",
    "Maxwell+Tegra": "5.3",
    "Pascal": "6.0;6.1+PTX",
    "Volta": "7.0+PTX",
    "Volta+Tegra": "7.2",
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ampere+Tegra": "8.7",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
    "Blackwell+Tegra": "11.0",
}
"""Names that TORCH_CUDA_ARCH_LIST accepts instead of numbers, as in torch.utils.cpp_extension."""
GIB_PER_JOB = {"cpp": 1.0, "cuda": 2.5}


def run(*command: str) -> str:
    """Output of a command (both streams); "" if it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def has_nvcc(folder: Path) -> bool:
    """Whether the folder is a CUDA toolkit."""
    return (folder / "bin" / "nvcc").exists()


def toolkit_of(nvcc: str) -> Path:
    """The toolkit that an nvcc belongs to. Asks nvcc, which may be a wrapper script, instead of using its path."""
    here = re.search(r"_HERE_=(.+)", run(nvcc, "--dryrun", "-c", "-x", "cu", os.devnull))
    return Path(here.group(1)).resolve().parent if here else Path(nvcc).resolve().parent.parent


def find_cuda_home() -> Path | None:
    """CUDA_HOME, or else nvcc on the PATH, the usual folders, or PyPI's nvidia-cuda-nvcc, in this order."""
    if named := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return Path(named) if has_nvcc(Path(named)) else None
    on_path = shutil.which("nvcc")
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    folders = [
        *([toolkit_of(on_path)] if on_path else []),
        Path("/usr/local/cuda"),
        *sorted(Path("/opt").glob("cuda*")),
        *sorted(site.glob("cu*")),
    ]
    return next(filter(has_nvcc, folders), None)


def why_no_cuda(home: Path | None) -> str:
    """Why CUDA operators cannot be built with this toolkit; "" if they can."""
    if torch.version.cuda is None:
        return "the torch used for building has no CUDA; install a CUDA build of torch and use --no-build-isolation"
    if home is None:
        named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        where = f"no bin/nvcc in CUDA_HOME={named}" if named else "no nvcc found"
        return f'{where}; set CUDA_HOME, or pip install "cuda-toolkit[nvcc,cccl]", or set FCOS_FAST_BUILD=cpu'
    release = re.search(r"release (\d+)\.(\d+)", run(str(home / "bin" / "nvcc"), "--version"))
    if release and release.group(1) != torch.version.cuda.split(".")[0]:
        return (
            f"nvcc in {home} is version {release.group(1)}.{release.group(2)}, but torch {torch.__version__} is built "
            f"with CUDA {torch.version.cuda}; set CUDA_HOME to a toolkit of that major version"
        )
    return ""


def choose_backend() -> tuple[Path | None, str]:
    """The CUDA toolkit to build with, or None and the reason why CUDA operators are not built."""
    requested = os.environ.get("FCOS_FAST_BUILD") or "auto"
    if requested not in ("auto", "cpu", "cuda"):
        raise SystemExit(f"FCOS_FAST_BUILD={requested}; expected auto, cpu or cuda")
    if requested == "cpu":
        return None, "FCOS_FAST_BUILD=cpu"
    home = find_cuda_home()
    reason = why_no_cuda(home)
    if reason and requested == "cuda":
        raise SystemExit(f"fcos_fast: FCOS_FAST_BUILD=cuda, but {reason}")
    return (None, reason) if reason else (home, "")


def listed_architectures(text: str) -> list[str]:
    """The entries of TORCH_CUDA_ARCH_LIST as numbers, such as 8.0 and 9.0+PTX, each once."""
    numbers: list[str] = []
    for entry in filter(None, re.split(r"[;,\s]+", text)):
        if entry == "native":
            numbers += of_these_gpus()
        elif re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", entry):
            numbers.append(entry)
        elif (family := FAMILIES.get(entry) or FAMILIES.get(entry.removesuffix("+PTX"))) is not None:
            with_ptx = family if family.endswith("+PTX") or not entry.endswith("+PTX") else f"{family}+PTX"
            numbers += with_ptx.split(";")
        else:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST: {entry!r}; expected numbers such as 8.0;9.0+PTX, native, or "
                f"{', '.join(FAMILIES)}, also with +PTX"
            )
    # Like torch, keep each number once, with PTX if listed both ways.
    return [n for n in dict.fromkeys(numbers) if f"{n}+PTX" not in numbers]


def of_these_gpus() -> list[str]:
    """Compute capabilities of the GPUs in this machine, the newest with PTX."""
    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    if not found:
        raise SystemExit(
            "TORCH_CUDA_ARCH_LIST=native: torch finds no GPU on this machine; set the compute capability of the target "
            "GPU, such as 9.0"
        )
    numbers = [f"{major}.{minor}" for major, minor in sorted(found)]
    return [*numbers[:-1], f"{numbers[-1]}+PTX"]


def cuda_architectures(home: Path) -> list[str]:
    """Targets such as sm_90 and compute_90, from TORCH_CUDA_ARCH_LIST. Default: torch's, one per major, and PTX."""
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        entries = listed_architectures(listed)
        numbers = [entry.removesuffix("+PTX").replace(".", "") for entry in entries]
        ptx = [number for number, entry in zip(numbers, entries, strict=True) if entry.endswith("+PTX")]
    else:
        known = re.findall(r"compute_(\d+)\b", run(str(home / "bin" / "nvcc"), "--list-gpu-arch"))
        of_torch = re.findall(r"sm_(\d+)\b", torch._C._cuda_getArchFlags() or "")
        numbers = one_per_major([number for number in of_torch if number in known] or ["80", "90"])
        ptx = numbers[-1:]
    return [f"sm_{number}" for number in numbers] + [f"compute_{number}" for number in ptx]


def one_per_major(numbers: list[str]) -> list[str]:
    """The lowest minor version of each major version; its machine code also runs on higher ones."""
    first: dict[str, str] = {}
    for number in sorted(numbers, key=int):
        first.setdefault(number[:-1], number)
    return list(first.values())


def gencode(target: str) -> str:
    """The nvcc flag for a target."""
    return f"-gencode=arch=compute_{target.split('_')[1]},code={target}"


def limit_jobs(kind: str) -> None:
    """Unless MAX_JOBS is set, limit the number of compilers by cores and free memory."""
    free_gib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not os.environ.get("MAX_JOBS"):
        os.environ["MAX_JOBS"] = str(max(1, min(cores, int(free_gib / GIB_PER_JOB[kind]))))


def sources(*patterns: str) -> list[str]:
    """Paths below csrc, relative to this file as setuptools requires."""
    return sorted(
        path.relative_to(ROOT).as_posix() for pattern in patterns for path in (ROOT / "csrc").glob(pattern)
    )


def write_build_facts(cuda_home: Path | None) -> Path:
    """Write build_facts.h and return its folder. Only module.cpp includes it, so that changes recompile one file."""
    facts = {
        "SOURCE_HASH": runpy.run_path(str(ROOT / "fcos_fast" / "_source_hash.py"))["source_hash"](),
        "BUILD_TORCH": torch.__version__,
        "CUDA_TARGETS": " ".join(cuda_architectures(cuda_home) if cuda_home else []),
    }
    text = "".join(f'#define FCOS_FAST_{name} "{value}"\n' for name, value in facts.items())
    header = ROOT / "build" / "generated" / "build_facts.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    if not header.exists() or header.read_text() != text:
        header.write_text(text)
    return header.parent


def cpu_extension(cuda_home: Path | None) -> Extension:
    """fcos_fast._C, which also records the targets of fcos_fast._C_cuda."""
    import pybind11

    return Extension(
        "fcos_fast._C",
        sources("*.cpp", "cpu/*.cpp"),
        include_dirs=[
            pybind11.get_include(),
            *cpp_extension.include_paths(),
            str(write_build_facts(cuda_home)),
        ],
        library_dirs=cpp_extension.library_paths(),
        libraries=["c10", "torch", "torch_cpu"],
        define_macros=[("TORCH_TARGET_VERSION", STABLE_ABI)],
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
                # Only explicit fused multiply-adds, so that thresholds and ties are resolved identically everywhere.
                "-ffp-contract=off",
                # Needed to vectorize comparisons; they do not change results.
                *("-fno-math-errno", "-fno-trapping-math"),
            ]
        },
        language="c++",
    )


def cuda_extension(home: Path) -> Extension:
    """fcos_fast._C_cuda, which is not a Python module but loaded with torch.ops.load_library."""
    return Extension(
        "fcos_fast._C_cuda",
        sources("cuda/*.cu", "cuda/*.cpp"),
        include_dirs=[*cpp_extension.include_paths(), str(home / "include")],
        library_dirs=[*cpp_extension.library_paths(), str(home / "lib64"), str(home / "lib")],
        libraries=["c10", "torch_cpu", "cudart_static", "rt", "dl", "pthread"],
        define_macros=[("TORCH_TARGET_VERSION", STABLE_ABI), ("USE_CUDA", None)],
        extra_compile_args={
            "cxx": ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wall"],
            "nvcc": [
                *(
                    "-std=c++17",
                    "-O3",
                    "-lineinfo",
                    "-fmad=false",
                    "--expt-relaxed-constexpr",
                    "-Xcompiler=-fvisibility=hidden",
                ),
                # Undo torch's flags, which disable conversions of 16-bit types.
                *("-U__CUDA_NO_HALF_CONVERSIONS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__"),
                *map(gencode, cuda_architectures(home)),
            ],
        },
        # libtorch.so only exists to load libtorch_cuda.so; without this flag, the linker drops it as unused.
        extra_link_args=["-Wl,--no-as-needed", "-ltorch"],
        language="c++",
    )


def print_summary(home: Path | None, reason: str) -> None:
    """Print a summary: what is built, for which targets, and what is skipped and why."""
    lines = [
        f"fcos_fast: building with torch {torch.__version__}, Python {platform.python_version()}, "
        f"{os.environ['MAX_JOBS']} jobs"
    ]
    lines.append("CPU operators   yes: SIMD chosen at run time (baseline, and on x86-64 AVX2 and AVX-512)")
    if home is None:
        lines.append(f"CUDA operators  NO: {reason}")
    else:
        lines.append(f"CUDA operators  yes: nvcc of {home}, {' '.join(cuda_architectures(home))}")
    width = max(map(len, lines))
    print("\n".join(["=" * width, *lines, "=" * width]), file=sys.stderr, flush=True)


try:
    import torch
except ImportError:
    raise SystemExit(
        "fcos_fast: building needs torch >= 2.10; use build isolation (pip install .), or run pip install torch first"
    ) from None

cuda_home, why_not = choose_backend()
if cuda_home is not None:
    os.environ["CUDA_HOME"] = str(cuda_home)  # read when torch.utils.cpp_extension is imported
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "")
from torch.utils import cpp_extension  # noqa: E402

limit_jobs("cuda" if cuda_home else "cpp")
extensions = [cpu_extension(cuda_home)] + ([cuda_extension(cuda_home)] if cuda_home else [])
if {"build_ext", "bdist_wheel", "editable_wheel", "develop", "install"} & set(sys.argv):
    print_summary(cuda_home, why_not)


class Build(cpp_extension.BuildExtension):
    """Keeps object files in build/ for incremental builds, even after an editable install."""

    def finalize_options(self) -> None:
        """Use one folder per Python version; ninja detects changed flags and headers."""
        super().finalize_options()
        self.build_temp = str(ROOT / "build" / f"temp-{sys.implementation.cache_tag}")

    def run(self) -> None:
        """Build, then remove a stale _C_cuda if this build is without CUDA."""
        super().run()
        if self.inplace and cuda_home is None:
            for binary in (ROOT / "fcos_fast").glob("_C_cuda.*"):
                binary.unlink()


setup(ext_modules=extensions, cmdclass={"build_ext": Build.with_options(use_ninja=True)})
