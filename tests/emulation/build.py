"""Builds a library that runs the CUDA operators on the CPU, one thread at a time (see runtime.cpp)."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OPERATORS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
RUNTIME = [HERE / "runtime.cpp", HERE / "tensors.cpp"]
FRONTS = ROOT / "csrc" / "cuda" / "operators.cpp"
PTX = {"rcp.approx.ftz.f32": "1.0f / ({})", "ex2.approx.ftz.f32": "exp2f({})"}
FLAGS = [
    *("-std=c++17", "-O1", "-g1", "-fPIC", "-w", "-fvisibility=hidden", "-ffp-contract=off"),
    *("-U_FORTIFY_SOURCE", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{HERE}"),
    *(f"-I{path}" for path in cpp_extension.include_paths()),
]
WATCH = "-fsanitize=thread,alignment,bounds,shift,signed-integer-overflow,float-cast-overflow,integer-divide-by-zero"


def closing(text: str, at: int, opening: str = "([{", end: str = ")]}") -> int:
    """Position of the bracket that closes the one at ``at``."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] in opening) - (text[i] in end)
        if depth == 0:
            return i
    raise ValueError(f"unclosed bracket: {text[at : at + 40]}")


def kernel_before(text: str, at: int) -> int:
    """Position of the kernel name before the ``<<<`` at ``at``."""
    i = len(text[:at].rstrip())
    if text[i - 1] == ">":
        depth = 0
        while True:
            i -= 1
            depth += (text[i] == ">") - (text[i] == "<")
            if depth == 0:
                break
    return i - len(re.search(r"[\w:]*$", text[:i]).group())


def parameters(head: str) -> list[str]:
    """Parameter names of a kernel."""
    head = re.sub(r"//.*", "", head)  # shapes
    first = head.index("(")
    flat = re.sub(r"<[^<>]*>", "", head[first + 1 : closing(head, first)])
    return re.findall(r"(\w+)\s*(?:,|$)", flat)


def with_entrances(text: str) -> str:
    """Insert a call of emulation::enter_kernel into every kernel, with its parameter types and __launch_bounds__."""
    done = ""
    while (at := text.find("__global__")) >= 0:
        body = text.index("{", at) + 1
        head, bounds = text[at:body], ""
        if (found := head.find("__launch_bounds__(")) >= 0:
            last = closing(head, head.index("(", found))
            bounds = head[head.index("(", found) + 1 : last].split(",")[0]
            head = head[:found] + head[last + 1 :]
        types = ", ".join(f"decltype({name})" for name in parameters(head))
        done += f"{text[:at]}{head} emulation::enter_kernel<{types}>({bounds});"
        text = text[body:]
    return done + text


def with_launches(text: str) -> str:
    """Replace ``kernel<T><<<grid, block, shared, stream>>>(a)`` by a call of emulation::launch."""
    while (at := text.find("<<<")) >= 0:
        begin, end = kernel_before(text, at), text.index(">>>", at)
        last = closing(text, text.index("(", end))
        kernel, configuration = text[begin:at].strip(), text[at + 3 : end]
        arguments = text[text.index("(", end) + 1 : last]
        name = kernel.split("<")[0]
        call = f'emulation::launch("{name}", [&] {{ {kernel}({arguments}); }}, {configuration})'
        text = text[:begin] + call + text[last + 1 :]
    return text


def shared_variable(declaration: re.Match) -> str:
    """Replace a shared variable by a reference to the emulated memory of the block."""
    kind, name, dims = declaration.groups()
    return f"typedef {kind} {name}_shared{dims}; auto& {name} = emulation::shared_variable<{name}_shared>([] {{}});"


def ptx(statement: re.Match) -> str:
    """Replace an inline PTX instruction by C++."""
    instruction, result, operand = statement.groups()
    return f"{result} = {PTX[instruction].format(operand)};"


def translate(text: str) -> str:
    """Translate CUDA to C++, preserving line numbers."""
    text = re.sub(
        r"extern __shared__ (.+?) (\w+)\[\];",
        r"\1* \2 = static_cast<\1*>(emulation::dynamic_shared());",
        text,
    )
    text = re.sub(r"__shared__\s+([^;]+?)\s+(\w+)((?:\[[^;]*\])?);", shared_variable, text)
    text = re.sub(r'asm\("(\S+) %0, %1;" : "=f"\((\w+)\) : "f"\((.+)\)\);', ptx, text)
    text = text.replace("__CUDA_ARCH__", "EMULATED_CUDA_ARCH")
    return with_launches(with_entrances(text)).replace("(fcos_fast, CUDA, m)", "(fcos_fast, CPU, m)")


def library_in(folder: Path) -> Path:
    """Path of the library in the build folder."""
    return folder / "emulated_cuda.so"


def build(folder: Path, sources: list[Path]) -> Path:
    """Build the library of these CUDA files in the folder."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copy(HERE / "mistakes.cu", folder / "csrc" / "cuda")
    for path in [*(folder / "csrc" / "math").iterdir(), *(folder / "csrc" / "cuda").iterdir()]:
        path.write_text(translate(path.read_text()))

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        watch = ["-O2", "-UTORCH_TARGET_VERSION"]
        if source not in RUNTIME:
            watch = [WATCH] if source.suffix == ".cu" else ["-include", HERE / "cuda_runtime.h"]
            source = folder / "csrc" / "cuda" / source.name
        subprocess.run(["c++", *FLAGS, *watch, "-x", "c++", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*RUNTIME, *sources]))
    library = library_in(folder)
    paths = [f"-L{path}" for path in cpp_extension.library_paths()]
    command = ["c++", "-shared", *objects, *paths, "-lc10", "-ltorch", "-ltorch_cpu", "-ldl", "-o", library]
    subprocess.run(command, check=True)
    return library
