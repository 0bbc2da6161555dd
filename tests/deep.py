"""Proofs that take longer than a test may, or tools that a machine may lack: python tests/deep.py [NAME ...]

All jobs of the table without a name. Each ends as passed, FAILED or, where a tool or memory was missing, SKIPPED: then
what could not be proven stands beside it, and nothing counts as passed. On Debian the tools are in qemu-user,
gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, clang-14 and libclang-rt-14-dev.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from proofs import kernels, levels, memory, sanitizers
from proofs.job import Job

# name: what is proven, and the function that proves it with a Job
JOBS = {
    "checker": ("--count different problems per instruction set of this CPU, planted bugs first", kernels.checker),
    "emulated": ("the checker on other CPUs: x86-64 and arm64 ones, by qemu-user", kernels.emulated),
    "sanitized": ("the checker compiled by clang with Address- and UndefinedBehaviorSanitizer", sanitizers.checker),
    "fuzz": ("--count runs of libFuzzer on the checker, with the same sanitizers", sanitizers.fuzz),
    "shapes": ("10,000 shapes: memory stays flat", memory.shapes),
    "large": ("tensors of more than 2**31 elements, in 8 GiB", memory.large),
    "suite": ("the Python tests on a core with the same sanitizers", sanitizers.suite),
    "forced": ("a part of the Python tests under PYCONV_ISA=each of this CPU's instruction sets", levels.forced),
    "levels": ("that part on emulated x86-64 CPUs: Nehalem, SandyBridge, Haswell", levels.emulated),
    "arm64": ("that part on emulated arm64 CPUs, with arm64's Python, which is downloaded", levels.arm64),
}


def main():
    table = "\n".join(f"    {name:12} {what}" for name, (what, _) in JOBS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{table}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument(
        "--count", type=int, default=100_000, help="problems; jobs with slow tools take a share of them"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if set(options.names) - set(JOBS):
        parser.error(f"NAME is one of {', '.join(JOBS)}")
    results = []
    for name in options.names or JOBS:
        print(f"##### {name}", flush=True)
        start = time.monotonic()
        with TemporaryDirectory() as folder:
            job = Job(Path(folder), options.count, options.seed)
            job.do(JOBS[name][1])
        results.append((name, job.outcome(), time.monotonic() - start))
    for name, outcome, seconds in results:
        print(f"{name:12} {outcome} ({seconds:.0f} s)")
    counts = {
        word: sum(outcome.startswith(word) for _, outcome, _ in results) for word in ("passed", "FAILED", "SKIPPED")
    }
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return bool(counts["FAILED"])


if __name__ == "__main__":
    sys.exit(main())
