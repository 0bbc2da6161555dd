"""Proofs that take longer than a test may, or tools that a machine may lack: python tests/deep.py [NAME ...]

    checker    --count different problems per instruction set of this CPU (default 100,000), planted bugs first
    emulated   the checker on other CPUs: x86-64 and arm64 ones, by qemu-user and a cross compiler
    sanitized  the checker compiled by clang with AddressSanitizer and UndefinedBehaviorSanitizer

All three without a name. What needs a tool that is missing says SKIPPED. On Debian the tools are in qemu-user,
gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, clang-14 and libclang-rt-14-dev.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

BUILD = Path(__file__).resolve().parent / "checker" / "build.py"
CROSS = "aarch64-linux-gnu-gcc"
CPUS = {  # the instruction sets that the emulator of each of these can run
    "qemu-x86_64": {"Nehalem": "sse2", "SandyBridge": "sse2", "Haswell": "avx2 sse2", "max": "avx2 sse2"},
    "qemu-aarch64": {"cortex-a53": "neon", "cortex-a72": "neon", "neoverse-n1": "neon", "max": "neon"},
}


def build(folder, *flags, **variables):
    program = folder / f"checker{len(list(folder.iterdir()))}"
    subprocess.run([sys.executable, BUILD, program, *flags], check=True, env={**os.environ, **variables})
    return program


def run(*command, **variables):
    """Whether the command ended well, its last lines printed either way."""
    words = [str(word) for word in command]
    print("$", *(Path(word).name if Path(word).is_absolute() else word for word in words), flush=True)
    return subprocess.run(words, check=False, env={**os.environ, **variables}).returncode == 0


def has(*tools):
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        print(f"SKIPPED, not installed: {', '.join(missing)}", flush=True)
    return not missing


def checker(folder, count, seed):
    program = build(folder)
    return run(program, "--plants") & run(program, "--count", count, "--seed", seed)


def emulated(folder, count, seed):
    good = True
    for emulator, cpus in CPUS.items():
        cross = emulator == "qemu-aarch64"
        if not has(emulator, *([CROSS] if cross else [])):
            continue
        program = build(folder, "-static", **({"CC": CROSS} if cross else {"PYCONV_BUILD_ISAS": "sse2,avx2"}))
        for cpu, isas in cpus.items():
            for isa in isas.split():
                arguments = (emulator, "-cpu", cpu, program, "--isa", isa)
                good &= run(*arguments, "--count", max(count // 100, 500), "--seed", seed)
        good &= run(emulator, "-cpu", "max", program, "--plants")
    return good


def sanitized(folder, count, seed):
    """Wrong accesses must end in the sanitizer's report, not in the checker's own handler: no plants here."""
    clang = next((name for name in ("clang", "clang-14", "clang-15", "clang-16") if shutil.which(name)), None)
    if clang is None:
        return has("clang")
    program = build(folder, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", CC=clang)
    return run(program, "--count", max(count // 20, 500), "--seed", seed, ASAN_OPTIONS="detect_leaks=1")


PROOFS = {"checker": checker, "emulated": emulated, "sanitized": sanitized}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--count", type=int, default=100_000, help="problems; other proofs take a share of them")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if set(options.names) - set(PROOFS):
        parser.error(f"NAME is one of {', '.join(PROOFS)}")
    failed = []
    for name in options.names or PROOFS:
        print(f"##### {name}", flush=True)
        with TemporaryDirectory() as folder:
            if not PROOFS[name](Path(folder), options.count, options.seed):
                failed.append(name)
    print(f"FAILED: {', '.join(failed)}" if failed else "passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
