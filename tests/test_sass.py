"""Tests of the machine code analysis, on a few recorded lines."""

import pytest

from tests.sass import MULTIPROCESSORS, Memory, Usage, demangled, read_code, read_usage

USAGE = """\
Fatbin elf code:
================
arch = sm_75
identifier = /src/csrc/cuda/some.cu

Resource usage:
 Common:
  GLOBAL:28 CONSTANT[4]:224
 Function _ZN9fcos_fast11some_kernelIfEEvPKT_:
  REG:33 STACK:16 SHARED:1792 LOCAL:8 CONSTANT[0]:1408 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90
identifier = /src/csrc/cuda/some.cu

Resource usage:
 Function _ZN9fcos_fast11some_kernelIfEEvPKT_:
  REG:24 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:1408 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

# A loop over vectors, with code inside for rare elements that are stored separately; a second loop over single
# elements; a block that the compiler moved to the end; a shuffle of diverged threads.
CODE = """\
\t\tFunction : vectors
        /*0000*/                   S2R R0, SR_TID.X ;                        /* 0x00000a00ff017b82 */
                                                                             /* 0x000fe20000000800 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;          /* 0x0000000c02067981 */
        /*0020*/                   FADD R8, R4, R5 ;                         /* 0x000fe20000000800 */
        /*0030*/              @!P1 BRA 0x60 ;                                /* 0x000fe20000000800 */
        /*0040*/                   DADD R8, R8, R8 ;                         /* 0x000fe20000000800 */
        /*0050*/                   STG.E desc[UR4][R2.64], R8 ;              /* 0x000fe20000000800 */
        /*0060*/               @P2 BRA 0xf0 ;                                /* 0x000fe20000000800 */
        /*0070*/                   STG.E.128 desc[UR4][R6.64], R4 ;          /* 0x000fe20000000800 */
        /*0080*/               @P0 BRA 0x10 ;                                /* 0x000fe20000000800 */
        /*0090*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;          /* 0x000fe20000000800 */
        /*00a0*/                   BRA.DIV UR4, 0x110 ;                      /* 0x000fe20000000800 */
        /*00b0*/                   SHFL.DOWN PT, R17, R7, 0x10, 0x1f ;       /* 0x000fe20000000800 */
        /*00c0*/                   LDS.64 R4, [R0] ;                         /* 0x000fe20000000800 */
        /*00d0*/               @P0 BRA 0x90 ;                                /* 0x000fe20000000800 */
        /*00e0*/                   EXIT ;                                    /* 0x000fe20000000800 */
        /*00f0*/                   STG.E.128 desc[UR4][R6.64], RZ ;          /* 0x000fe20000000800 */
        /*0100*/                   BRA 0x80 ;                                /* 0x000fe20000000800 */
        /*0110*/                   WARPSYNC.COLLECTIVE R10, 0x120 ;          /* 0x000fe20000000800 */
        /*0120*/                   BRA 0xc0 ;                                /* 0x000fe20000000800 */
        /*0130*/                   BRA 0x130;                                /* 0x000fe20000000800 */
\t\tFunction : straight
        /*0000*/                   LDG.E R4, desc[UR4][R2.64] ;              /* 0x000fe20000000800 */
        /*0010*/               @P0 EXIT ;                                    /* 0x000fe20000000800 */
        /*0020*/                   STG.E desc[UR4][R2.64], R4 ;              /* 0x000fe20000000800 */
        /*0030*/                   EXIT ;                                    /* 0x000fe20000000800 */
        /*0040*/                   BRA 0x40;                                 /* 0x000fe20000000800 */
\t\tFunction : nested
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;          /* 0x000fe20000000800 */
        /*0010*/                   LDG.E R4, desc[UR4][R2.64] ;              /* 0x000fe20000000800 */
        /*0020*/               @P0 BRA 0x10 ;                                /* 0x000fe20000000800 */
        /*0030*/               @P1 BRA 0x0 ;                                 /* 0x000fe20000000800 */
        /*0040*/                   EXIT ;                                    /* 0x000fe20000000800 */
\t\tFunction : unasked
"""


VECTORS = Memory("global", 16)


@pytest.fixture(scope="module")
def code():
    return read_code(CODE, ["vectors", "straight", "nested"])


def opcodes(instructions):
    return [i.opcode for i in instructions]


def test_usage_of_every_architecture():
    mangled = "_ZN9fcos_fast11some_kernelIfEEvPKT_"
    assert read_usage(USAGE) == [
        Usage("some.cu", mangled, "sm_75", registers=33, stack=16, shared=1792, local=8),
        Usage("some.cu", mangled, "sm_90", registers=24, stack=0, shared=0, local=0),
    ]


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("_ZN9fcos_fast11some_kernelIfEEvPKT_", "some_kernel<float>"),
        (
            "_ZN9fcos_fast12_GLOBAL__N_115box_loss_kernelI13__nv_bfloat16LNS_4math11BoxLossKindE2ELb1EEEvi",
            "box_loss_kernel<bfloat16,2,true>",
        ),
        ("_ZN9fcos_fast11walk_kernelEPKl", "walk_kernel"),
    ],
)
def test_demangled_names(mangled, name):
    assert demangled(mangled) == name


def test_only_the_requested_kernels_are_parsed(code):
    assert list(code) == ["vectors", "straight", "nested"]


def test_loops_end_at_the_last_reachable_back_edge(code):
    assert code["vectors"].loops == [(1, 8), (9, 13)]
    assert code["straight"].loops == []


def test_the_path_around_the_hot_loop(code):
    hot = code["vectors"].hot(VECTORS)
    assert opcodes(hot.trace.instructions) == ["LDG", "FADD", "BRA", "DADD", "STG", "BRA", "STG", "BRA"]
    assert hot.float64 == ["DADD R8, R8, R8"]


def test_the_shortest_path_has_the_accesses_but_not_the_rare_element(code):
    hot = code["vectors"].hot(VECTORS, shortest=True)
    assert opcodes(hot.trace.instructions) == ["LDG", "FADD", "BRA", "BRA", "STG", "BRA"]
    assert hot.float64, "float64 instructions on rare paths count"


@pytest.mark.parametrize("memory", [Memory("global", 2), Memory("shared", 8)])
def test_another_kind_of_access_is_another_loop(code, memory):
    assert opcodes(code["vectors"].hot(memory).trace.instructions) == ["LDG", "BRA", "SHFL", "LDS", "BRA"]


@pytest.mark.parametrize(("width", "is_outer"), [(16, True), (4, False)])
def test_a_loop_inside_counts_only_with_its_own_accesses(code, width, is_outer):
    loop = code["nested"].hot(Memory("global", width)).loop
    assert opcodes(loop) == ["LDG", "LDG", "BRA", "BRA"][0 if is_outer else 1 : 4 if is_outer else 3]


def test_without_a_loop_the_whole_kernel(code):
    whole = code["straight"].hot(Memory("global", 4)).trace
    assert opcodes(whole.instructions) == ["LDG", "EXIT", "STG", "EXIT"]


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks"),
    [
        (256, 64, 0, 4),  # registers
        (256, 32, 0, 8),  # threads
        (256, 33, 0, 6),  # registers, allocated to warps in units of 256
        (64, 38, 0, 24),  # registers, split into quarters
        (32, 16, 0, 32),  # blocks
        (256, 32, 48 << 10, 4),  # shared memory, plus 1 KiB per block
    ],
)
def test_blocks_of_a_multiprocessor(threads, registers, shared, blocks):
    assert MULTIPROCESSORS["sm_90"].resident(threads, registers, shared) == blocks
