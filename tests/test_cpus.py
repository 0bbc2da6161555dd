"""Which rows a CPU gets: the pure function of CPUID and XGETBV, on CPUs that were never made and on some that were."""

import pytest
from oracle import _core, needs_core

# Bits of CPUID (Intel's SDM, volume 2) by name; what a level of the x86-64 psABI asks for.
LEAF1 = {
    "sse3": 0, "ssse3": 9, "fma": 12, "cx16": 13, "sse41": 19, "sse42": 20, "movbe": 22, "popcnt": 23, "osxsave": 27,
    "avx": 28, "f16c": 29,
}  # fmt: skip
LEAF7 = {
    "bmi1": 3, "avx2": 5, "bmi2": 8, "avx512f": 16, "avx512dq": 17, "avx512ifma": 21, "avx512pf": 26, "avx512er": 27,
    "avx512cd": 28, "avx512bw": 30, "avx512vl": 31,
}  # fmt: skip
EXTENDED = {"lahf": 0, "lzcnt": 5, "sse4a": 6, "xop": 11, "fma4": 16}

V2 = set("sse3 ssse3 cx16 sse41 sse42 popcnt lahf".split())
V3 = V2 | set("fma movbe osxsave avx f16c bmi1 avx2 bmi2 lzcnt".split())
V4 = V3 | set("avx512f avx512dq avx512cd avx512bw avx512vl".split())
NONE, SSE, YMM, ZMM = 0, 0x3, 0x7, 0xE7  # XCR0: x87 and SSE; and the upper halves; and AVX-512's three states
BASELINE, AVX2, AVX512 = 1, 3, 7

MADE = [
    ("486", set(), NONE, BASELINE),
    ("Athlon 64", {"sse3", "lahf"}, NONE, BASELINE),
    ("Core 2", V2 - {"sse42", "popcnt", "sse41"}, NONE, BASELINE),
    ("Nehalem", V2, NONE, BASELINE),
    ("Sandy Bridge", V2 | {"avx", "osxsave"}, YMM, BASELINE),
    ("Ivy Bridge", V2 | {"avx", "osxsave", "f16c"}, YMM, BASELINE),
    ("Bulldozer", V2 | {"avx", "osxsave", "sse4a", "xop", "fma4", "lzcnt"}, YMM, BASELINE),
    ("Piledriver", V2 | {"avx", "osxsave", "f16c", "fma", "bmi1", "lzcnt", "fma4", "xop"}, YMM, BASELINE),
    ("Excavator", V3 | {"xop", "fma4", "sse4a"}, YMM, AVX2),
    ("Haswell", V3, YMM, AVX2),
    ("Haswell Pentium, AVX fused off", V3 - {"avx", "avx2", "fma", "f16c", "bmi1", "bmi2"}, SSE, BASELINE),
    ("Zen", V3 | {"sse4a"}, YMM, AVX2),
    ("Zen 3", V3 | {"sse4a"}, 0x207, AVX2),
    ("Zen 4", V4 | {"sse4a", "avx512ifma"}, 0x2E7, AVX512),
    ("Alder Lake", V3, 0x207, AVX2),
    ("Gracemont", V3, YMM, AVX2),
    ("Goldmont", V2 | {"movbe", "osxsave"}, SSE, BASELINE),
    ("Skylake-X", V4, 0x2FF, AVX512),
    ("Sapphire Rapids, AMX allowed", V4 | {"avx512ifma"}, 0x602E7, AVX512),
    ("Knights Landing", V3 | {"avx512f", "avx512cd", "avx512er", "avx512pf"}, ZMM, AVX2),
    ("Cannon Lake", V4 | {"avx512ifma"}, ZMM, AVX512),
    ("AVX-512, but the system saves YMM alone", V4, YMM, AVX2),
    ("AVX-512, ZMM16 to 31 not saved", V4, 0x67, AVX2),
    ("AVX-512, upper halves of ZMM not saved", V4, 0xA7, AVX2),
    ("AVX-512, masks not saved", V4, 0xC7, AVX2),
    ("AVX-512's states without YMM's", V4, 0xE3, BASELINE),
    ("AVX-512's states without XMM's", V4, 0xE5, BASELINE),
    ("AVX2, the system saves nothing", V3, NONE, BASELINE),
    ("AVX2, the system saves SSE alone", V3, SSE, BASELINE),
    ("AVX-512, the system saves SSE alone", V4, SSE, BASELINE),
    ("XCR0 read without OSXSAVE", V4 - {"osxsave"}, ZMM, BASELINE),
    ("AVX2 without AVX", V3 - {"avx"}, YMM, BASELINE),
    ("AVX-512 F without AVX2, under a hypervisor", V4 - {"avx2"}, ZMM, BASELINE),
    ("AVX-512 F alone", {"avx512f", "osxsave"}, ZMM, BASELINE),
    ("AVX-512 without FMA", V4 - {"fma"}, ZMM, BASELINE),
    ("every bit", {*LEAF1, *LEAF7, *EXTENDED}, 2**64 - 1, AVX512),
    ("every bit but XCR0's", {*LEAF1, *LEAF7, *EXTENDED}, NONE, BASELINE),
    *((f"AVX2 without {name}", V3 - {name}, YMM, BASELINE) for name in sorted(V3)),
    *((f"AVX-512 without {name}", V4 - {name}, ZMM, AVX2) for name in sorted(V4 - V3)),
]


def register(bits, names):
    return sum(1 << bit for name, bit in bits.items() if name in names)


@needs_core
@pytest.mark.parametrize(("names", "xcr0", "levels"), [row[1:] for row in MADE], ids=[row[0] for row in MADE])
def test_level_of_a_made_up_cpu(names, xcr0, levels):
    features = {"leaf1_ecx": register(LEAF1, names), "leaf7_ebx": register(LEAF7, names)}
    assert _core.levels({**features, "extended1_ecx": register(EXTENDED, names), "xcr0": xcr0}) == levels


def test_there_are_fifty_different_ones():
    assert len({(frozenset(names), xcr0) for _, names, xcr0, _ in MADE}) >= 50
