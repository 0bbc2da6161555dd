"""clang's AddressSanitizer and UndefinedBehaviorSanitizer over the checker, the Python tests and libFuzzer's problems.

Each job plants bugs first, in a copy of the sources or by a switch of the checker, and fails if its tool does not find
them. Everything is compiled with -O0: with optimisation the instrumented kernels take clang-14 an hour.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from importlib.util import find_spec

from proofs.job import ROOT

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O0")
# What planted bugs are found as; the names are those of the checker's --unsound.
FOUND = {"stack": "stack-buffer-overflow", "heap": "heap-buffer-overflow", "overflow": "signed integer overflow"}
# In a copy of src_c/run.c: text, what stands in its place, and what is found.
PLANTED = (
    ("aligned_alloc(align, (rounded + align - 1) / align * align);", "aligned_alloc(CONV_ALIGN, 2 * CONV_ALIGN);",
     "heap-buffer-overflow"),
    ("    fp_write(before);\n", "    fp_write(before);\n    volatile int bits = 40;\n    bits = 1 << bits;\n",
     "shift exponent"),
)  # fmt: skip


def rows(job):
    """Return PYCONV_BUILD_ISAS: what this CPU cannot run would take minutes to compile and prove nothing."""
    return ",".join(isa for isa in job.available() if isa != "reference")


def checker(job):
    clang = job.clang()
    if clang is None:
        return
    program = job.build_checker(*SANITIZE, CC=clang, PYCONV_BUILD_ISAS=rows(job))
    for name, report in FOUND.items():
        job.run(program, "--unsound", name, finds=report)
    job.run(program, "--count", max(job.count // 20, 500), "--seed", job.seed, ASAN_OPTIONS="detect_leaks=1")


def fuzz(job):
    """Count runs of libFuzzer, whose bytes choose the problems; a bug that few of them show must be found first."""
    clang = job.clang()
    if clang is None:
        return
    flags = ("-fsanitize=fuzzer,address,undefined", *SANITIZE[1:], "-DCHECKER_FUZZ")
    program = job.build_checker(*flags, CC=clang, PYCONV_BUILD_ISAS=rows(job))
    corpus = job.folder / "corpus"
    corpus.mkdir()
    # Failures come back from the checker's own handler of signals; the alarm is the checker's, too.
    options = (
        f"-seed={job.seed}",
        "-handle_alrm=0",
        "-max_len=200",
        "-len_control=0",
        f"-artifact_prefix={job.folder}/",
    )
    job.run(program, *options, "-runs=20000", corpus, finds="deadly signal", CHECKER_FUZZ_PLANT="1")
    job.run(program, *options, f"-runs={job.count}", "-print_final_stats=1", corpus)


def suite(job):
    """Run the Python tests on a core compiled with both sanitizers, on one thread where clang has no OpenMP."""
    clang = job.clang()
    if clang is None:
        return
    library = subprocess.run(
        [clang, "-print-file-name=libclang_rt.asan-x86_64.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not os.path.isabs(library):  # noqa: PTH117 - the compiler's answer, the bare name if it has none
        job.skip("clang's shared AddressSanitizer not installed")
        return
    if find_spec("pytest") is None:
        job.skip("pytest not installed")
        return
    tree = job.folder / "tree"
    skipped = shutil.ignore_patterns("build", ".git", "*.so", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=skipped)
    variables = {
        "CC": str(compiler(job, clang)), "PYTHONPATH": str(tree), "LD_PRELOAD": "",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc", "PYCONV_BUILD_ISAS": rows(job),
    }  # fmt: skip
    build = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    source = tree / "src_c" / "run.c"
    sound = source.read_text()
    test = (sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-W", "error")
    for text, bug, report in PLANTED:
        assert sound.count(text) == 1, text
        source.write_text(sound.replace(text, bug))
        job.run(*build, cwd=tree, **variables)
        one = (*test, "tests/test_exactness.py")
        job.run(*one, cwd=tree, finds=report, **{**variables, "LD_PRELOAD": library})
    source.write_text(sound)
    job.run(*build, cwd=tree, **variables)
    # What builds programs of its own, measures, or limits and watches memory is for cores without a sanitizer.
    others = [
        f"--ignore=tests/test_{name}.py" for name in ("allocations", "benchmarks", "build", "checker", "guard_pages")
    ]
    job.run(*test, "--hypothesis-profile=quick", *others, "tests", cwd=tree, **{**variables, "LD_PRELOAD": library})


def compiler(job, clang):
    """Return a compiler that puts its options after setup.py's."""
    script = job.folder / "compiler"
    script.write_text(f'#!/bin/sh\nexec {clang} "$@" {" ".join(SANITIZE)} -shared-libasan\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script
