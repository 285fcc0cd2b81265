"""Runs the tests of the CPU operators with AddressSanitizer and UndefinedBehaviorSanitizer: ``make sanitize``.

Builds a copy of the tree and leaves the tree's own binaries alone. The run stops with a report at the first read or
write out of bounds, or undefined behavior. Needs GCC.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.tree import ROOT, copy_tree, package_environment

TREE = ROOT / "build" / "sanitize"
# Appended to the command, because the last -O wins. -fno-wrapv undoes Python's -fwrapv, which would hide integer
# overflow. Checking for use after scope would increase the compile time of the SIMD files six-fold.
FLAGS = (
    "-O1 -g1 -fno-omit-frame-pointer -fno-wrapv -fsanitize=address,undefined -fno-sanitize-recover=undefined "
    "-fno-sanitize-address-use-after-scope"
)
OPTIONS = {
    # Python itself leaks. Allocations that are too large must return null, to get torch's error as without a sanitizer.
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
# Everything that computes. Tests that compile, trace or repeat are slow and run the same kernels.
TESTS = [
    "tests/fuzz",
    "tests/ops",
    "benchmarks/tests/test_every_operator.py",
    "tests/test_simd.py",
    "-m",
    "not (gpu or slow or large)",
    "-k",
    "not compile and not opcheck and not hundred",
]


def compiler() -> str:
    """Path of a script that calls the compiler with FLAGS."""
    original = shutil.which(os.environ.get("CXX", "g++"))
    if original is None:
        raise SystemExit("sanitize: g++ not found; install GCC or set CXX")
    script = TREE / "build" / "g++"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\nexec {original} "$@" {FLAGS}\n')
    script.chmod(0o755)
    return str(script)


def libraries(cxx: str) -> str:
    """Paths of the sanitizer runtimes, which must be loaded before Python starts."""
    names = ("libasan.so", "libubsan.so")
    return " ".join(
        subprocess.check_output([cxx, f"-print-file-name={name}"], text=True).strip() for name in names
    )


def main() -> int:
    """Build and test; returns the first nonzero exit status."""
    copy_tree(TREE)
    cxx = compiler()
    build = package_environment(TREE, CXX=cxx, FCOS_FAST_BUILD="cpu")
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=TREE, env=build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        print(done.stdout)
        return done.returncode
    test = package_environment(TREE, LD_PRELOAD=libraries(cxx), **OPTIONS)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--capture=no", *TESTS], cwd=TREE, env=test
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
