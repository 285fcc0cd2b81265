"""Analyzes the machine code of kernels: parses the output of cuobjdump, finds loops and a path through the hot loop."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
ACCESSES = {
    "global": ("LDG", "STG", "LD", "ST", "LDGSTS", "RED", "ATOMG", "ATOM"),
    "shared": ("LDS", "STS", "ATOMS"),
}
FLOAT64 = ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX")


def find_cuobjdump() -> Path | None:
    """cuobjdump of the CUDA toolkit, on the PATH, or in Triton, which is installed with torch."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    candidates = [Path(home) / "bin" / "cuobjdump"]
    if on_path := shutil.which("cuobjdump"):
        candidates.append(Path(on_path))
    if triton := importlib.util.find_spec("triton"):
        candidates.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    return next(filter(Path.exists, candidates), None)


def run(cuobjdump: Path, *arguments: str | Path) -> str:
    """Output of cuobjdump."""
    return subprocess.run([cuobjdump, *arguments], capture_output=True, text=True, check=True).stdout


def demangled(mangled: str) -> str:
    """Short name, such as ``box_loss_kernel<bfloat16,2,0>``: without namespaces, enum types and parameters."""
    name = torch._C._demangle(mangled).replace("(anonymous namespace)::", "").removeprefix("void ")
    name = re.sub(r"\([\w:]+\)(?=-?\d)", "", name)
    name = re.sub(r"\w+::| ", "", name.partition("(")[0])
    return name.replace("__nv_bfloat16", "bfloat16").replace("__half", "float16")


@dataclass(frozen=True)
class Usage:
    """Resource usage of a kernel on one architecture: registers per thread; stack and memory in bytes."""

    source: str
    mangled: str
    architecture: str
    registers: int
    stack: int
    shared: int
    local: int

    @property
    def name(self) -> str:
        """Short demangled name."""
        return demangled(self.mangled)


def read_usage(text: str) -> list[Usage]:
    """Parse ``cuobjdump -res-usage``: usage of every kernel on every architecture."""
    found, source, architecture = [], "", ""
    pattern = (
        r"arch = (\S+)|identifier = (\S+)|Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    )
    for match in re.finditer(pattern, text):
        architecture = match[1] or architecture
        source = Path(match[2]).name if match[2] else source
        if match[3]:
            found.append(Usage(source, match[3], architecture, *map(int, match.groups()[3:])))
    return found


@dataclass(frozen=True)
class Instruction:
    """A machine instruction; ``text`` is without the predicate."""

    address: int
    predicate: str
    text: str

    @property
    def opcode(self) -> str:
        """Such as ``LDG`` for ``LDG.E.128 R4, [R2]``."""
        return re.split(r"[.\s]", self.text)[0]

    @property
    def width(self) -> int:
        """Bytes per thread of a memory access."""
        kinds = self.text.split()[0].split(".")
        return next((WIDTHS[kind] for kind in kinds if kind in WIDTHS), 4)

    @property
    def address_in_text(self) -> int | None:
        """The target of a branch, a call or a barrier."""
        address = re.search(r" 0x([0-9a-f]+)$", self.text)
        return int(address[1], 16) if address else None

    @property
    def branches(self) -> bool:
        """Whether it branches to address_in_text. Not for diverging warps (BRA.DIV), which are rare."""
        return self.opcode == "BRA" and not self.text.startswith("BRA.DIV")

    @property
    def is_float64(self) -> bool:
        """Whether it is a float64 arithmetic instruction or conversion."""
        return self.opcode in FLOAT64 or re.search(r"\.(F64|RCP64H|RSQ64H)\b", self.text) is not None

    @property
    def ends(self) -> bool:
        """Whether no thread continues with the next instruction."""
        always = not self.predicate and (self.opcode != "BRA" or re.match(r"BRA(\.INC)? 0x", self.text))
        return bool(always) and self.opcode in ("BRA", "EXIT", "RET", "BRX", "JMP")


@dataclass(frozen=True)
class Trace:
    """The instructions on a path, in the order in which a thread executes them."""

    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Memory:
    """A kind of memory access: to ``global`` or ``shared`` memory, ``width`` bytes per thread."""

    where: str
    width: int

    def has(self, instruction: Instruction) -> bool:
        """Whether the instruction is such an access."""
        return instruction.opcode in ACCESSES[self.where] and instruction.width == self.width

    def count(self, trace: Trace) -> int:
        """Number of such accesses."""
        return sum(map(self.has, trace.instructions))


@dataclass(frozen=True)
class Hot:
    """The hot loop of a kernel."""

    loop: tuple[Instruction, ...]
    trace: Trace
    """One iteration: the longest path with the most accesses, or the shortest."""

    @property
    def float64(self) -> list[str]:
        """float64 instructions, including those on rare paths."""
        return [i.text for i in self.loop if i.is_float64]


class Code:
    """Control flow graph of a kernel's instructions."""

    def __init__(self, instructions: list[Instruction]):
        self.instructions = instructions
        place = {instruction.address: k for k, instruction in enumerate(instructions)}
        named = {place.get(i.address_in_text) for i in instructions}
        after_ends = [k + 1 for k, i in enumerate(instructions[:-1]) if i.ends]
        tables = [
            k for k in after_ends if k not in named
        ]  # possible targets of a switch: not the target of any branch
        self.next: list[list[int]] = []
        for k, instruction in enumerate(instructions):
            following = [] if instruction.ends or k + 1 == len(instructions) else [k + 1]
            if instruction.branches:
                following.append(place[instruction.address_in_text])
            self.next.append(tables if instruction.opcode == "BRX" else following)

    @cached_property
    def _reached(self) -> set[int]:
        """Instructions reachable from the entry, except subroutines and code for diverged lanes."""
        return set(self._in_order(0, len(self.instructions) - 1, back=()))

    @cached_property
    def _back(self) -> set[tuple[int, int]]:
        """Back edges: branches (from, to) to an instruction that dominates them."""
        return {
            (k, first)
            for k, following in enumerate(self.next)
            for first in following
            if first <= k and k in self._reached and self._passes(first, k)
        }

    @cached_property
    def loops(self) -> list[tuple[int, int]]:
        """First and last instruction of every loop.

        Excludes code that the compiler moved behind the last back edge because it expects it to be rare.
        """
        ends: dict[int, int] = {}
        for k, first in self._back:
            ends[first] = max(k, ends.get(first, 0))
        return sorted(ends.items())

    def _passes(self, through: int, to: int) -> bool:
        """Whether ``through`` dominates ``to``: it is on every path from the entry."""
        seen, open_ends = {0}, [0]
        while open_ends and through not in (0, to):
            for k in self.next[open_ends.pop()]:
                if k == to:
                    return False
                if k != through and k not in seen:
                    seen.add(k)
                    open_ends.append(k)
        return True

    def _in_order(self, first: int, last: int, back: Container[tuple[int, int]]) -> list[int]:
        """Instructions reachable from ``first`` up to ``last``, in topological order."""
        order: list[int] = []
        seen = {first}
        stack = [(first, iter(self.next[first]))]
        while stack:
            k, following = stack[-1]
            step = next((f for f in following if first < f <= last and f not in seen), None)
            if step is None:
                order.append(k)
                stack.pop()
            elif (k, step) not in back:
                seen.add(step)
                stack.append((step, iter(self.next[step])))
        return order[::-1]

    def trace(self, first: int, last: int, end: int, kind: Memory, shortest: bool) -> Trace:
        """The longest (or shortest) path with the most accesses from first to end, within first to last."""
        cost = -1 if shortest else 1
        best: dict[int, tuple[int, int]] = {first: (0, 0)}  # accesses, cost
        came: dict[int, int] = {}
        order = self._in_order(first, last, self._back)
        rank = {
            k: i for i, k in enumerate(order)
        }  # only forward, since the targets of a switch are overestimated
        for k in order:
            if k not in best:
                continue
            here = best[k][0] + kind.has(self.instructions[k]), best[k][1] + cost
            for following in self.next[k]:
                if rank.get(following, -1) > rank[k] and (following not in best or here > best[following]):
                    best[following], came[following] = here, k
        places = [end]
        while places[-1] != first:
            places.append(came[places[-1]])
        return Trace(tuple(self.instructions[k] for k in reversed(places)))

    def hot(self, memory: Memory, shortest: bool = False) -> Hot:
        """The innermost loop with the most accesses of this kind, and a path through it.

        Loops without such accesses are ignored; a path passes through them once. If no loop has such an access, the
        whole kernel is hot.
        """
        touching = [loop for loop in self.loops if any(map(memory.has, self._between(*loop)))]
        hot = [
            Hot(self._between(first, last), self.trace(first, last, last, memory, shortest))
            for first, last in touching
            if not any(first <= f and to <= last and (f, to) != (first, last) for f, to in touching)
        ]
        if not hot:
            last = len(self.instructions) - 1
            ends = [k for k in sorted(self._reached) if self.instructions[k].opcode == "EXIT"]
            hot = [Hot(tuple(self.instructions), self.trace(0, last, end, memory, shortest)) for end in ends]
        most = max(memory.count(h.trace) for h in hot)
        best = [h for h in hot if memory.count(h.trace) == most]
        return max(best, key=lambda h: len(h.trace.instructions))

    def _between(self, first: int, last: int) -> tuple[Instruction, ...]:
        return tuple(self.instructions[first : last + 1])


def read_code(text: str, mangled: Container[str]) -> dict[str, Code]:
    """Parse ``cuobjdump -sass`` of one architecture: mangled name -> code, for these kernels."""
    found = {}
    for part in text.split("Function : ")[1:]:
        name = part[: part.index("\n")]
        if name in mangled:
            lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@(!?U?P\w+) )?(\S.*?)\s*;", part)
            found[name] = Code([Instruction(int(at, 16), predicate, text) for at, predicate, text in lines])
    return found


@dataclass(frozen=True)
class Multiprocessor:
    """The resources that the blocks on a multiprocessor share."""

    threads: int
    blocks: int
    registers: int = 65536
    shared: int = 0

    def resident(self, threads: int, registers: int, shared: int) -> int:
        """Number of concurrent blocks."""
        warps = -(-threads // 32)
        of_warp = -(-registers * 32 // 256) * 256
        resident_warps = 4 * (
            self.registers // 4 // of_warp
        )  # each quarter of the multiprocessor has its own registers
        most = [self.blocks, self.threads // (warps * 32), resident_warps // warps]
        reserved = 1024  # per block
        return min([*most, *([self.shared // (shared + reserved)] if shared else [])])


MULTIPROCESSORS = {
    "sm_75": Multiprocessor(threads=1024, blocks=16, shared=64 << 10),
    "sm_80": Multiprocessor(threads=2048, blocks=32, shared=164 << 10),
    "sm_86": Multiprocessor(threads=1536, blocks=16, shared=100 << 10),
    "sm_89": Multiprocessor(threads=1536, blocks=24, shared=100 << 10),
    "sm_90": Multiprocessor(threads=2048, blocks=32, shared=228 << 10),
    "sm_100": Multiprocessor(threads=2048, blocks=32, shared=228 << 10),
    "sm_120": Multiprocessor(threads=1536, blocks=24, shared=100 << 10),
}
