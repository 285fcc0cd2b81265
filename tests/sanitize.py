"""The tests of the CPU operators on a build with AddressSanitizer and UndefinedBehaviorSanitizer: ``make sanitize``.

Builds a copy of the tree; the tree's own binaries stay as they are. A read or write outside a tensor, or undefined
behaviour, ends the run with a report. Needs GCC.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.tree import ROOT, copy_tree, package_environment

TREE = ROOT / "build" / "sanitize"
# Appended, because the last -O counts. Python's own -fwrapv would define the overflow of integers. Looking for uses
# after scope would make the SIMD files compile six times longer.
FLAGS = (
    "-O1 -g1 -fno-omit-frame-pointer -fno-wrapv -fsanitize=address,undefined -fno-sanitize-recover=undefined "
    "-fno-sanitize-address-use-after-scope"
)
OPTIONS = {
    # Python leaves much behind; and what asks for more memory than there is gets torch's error, as without a sanitizer.
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
# Everything that computes; what compiles, traces or repeats takes long and runs the same kernels.
TESTS = [
    "tests/fuzz",
    "tests/ops",
    "tests/test_simd.py",
    "-m",
    "not (gpu or slow or large)",
    "-k",
    "not compile and not opcheck and not hundred",
]


def compiler() -> str:
    """Path of a script that is the compiler with FLAGS."""
    original = shutil.which(os.environ.get("CXX", "g++"))
    if original is None:
        raise SystemExit("sanitize: no g++; install GCC or set CXX")
    script = TREE / "build" / "g++"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\nexec {original} "$@" {FLAGS}\n')
    script.chmod(0o755)
    return str(script)


def libraries(cxx: str) -> str:
    """The sanitizers' libraries, which must be loaded before Python's first allocation."""
    names = ("libasan.so", "libubsan.so")
    return " ".join(
        subprocess.check_output([cxx, f"-print-file-name={name}"], text=True).strip() for name in names
    )


def main() -> int:
    """The first exit status that is not 0."""
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
