"""Compile the checker of the kernels: python tests/checker/build.py OUTPUT [compiler flags for every file]

CC names the compiler (a cross compiler will do: the program needs no Python), PYCONV_BUILD_ISAS the rows. Rows, flags
and sources are setup.py's own.
"""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def lists_of_setup():
    """The module-level names of setup.py, without a build."""
    with mock.patch("setuptools.setup"):
        return runpy.run_path(str(ROOT / "setup.py"), run_name="lists")


def newest(files):
    return max(file.stat().st_mtime for file in files)


def commands(compiler, folder, extra):
    """(object, command, source) for every object of the checker."""
    machine = subprocess.run([*compiler, "-dumpmachine"], check=True, capture_output=True, text=True).stdout
    names = lists_of_setup()
    architecture = next((a for a in names["ROWS"] if a.replace("-", "_") in machine.split("-")[0]), "other")
    baseline = [*names["C_FLAGS"], *names["BASELINE"][architecture], *extra, f"-I{ROOT / 'src_c'}", f"-I{HERE}"]
    isas = {isa: flags for isa, flags in names["ROWS"][architecture].items() if isa in (names["BUILD_ISAS"] or [isa])}
    macros = [f"-DCONV_ROW_{isa.upper()}=1" for isa in isas]
    jobs = [(source, baseline + macros, "baseline") for source in [*ROOT.glob("src_c/*.c"), *HERE.glob("*.c")]]
    for isa, flags in isas.items():
        for dtype, sources in names["DTYPES"].items():
            own = [*flags, *names["DTYPE_FLAGS"].get(dtype, []), f"-DCONV_ISA={isa}", f"-DCONV_DTYPE={dtype}"]
            jobs += [(ROOT / source, baseline + own, f"{isa}_{dtype}") for source in sources]
    for source, flags, row in jobs:
        target = folder / f"{row}-{source.stem}.o"
        yield target, [*compiler, *flags, "-c", str(source), "-o", str(target)], source


def build(output, *extra):
    """Make the program `output`; objects go to a folder beside it, for one compiler and one set of flags."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    folder = output.with_name(output.name + ".objects")
    folder.mkdir(parents=True, exist_ok=True)
    jobs = list(commands(compiler, folder, extra))
    headers = newest([*ROOT.glob("src_c/**/*.h"), *HERE.glob("*.h"), ROOT / "setup.py"])

    def make(job):
        target, command, source = job
        if not target.exists() or target.stat().st_mtime <= max(headers, source.stat().st_mtime):
            subprocess.run(command, check=True, cwd=ROOT)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, jobs))
    link = [*compiler, *extra, *(str(target) for target, *_ in jobs), "-o", str(output), "-lm", "-lpthread"]
    subprocess.run(link, check=True)


if __name__ == "__main__":
    os.chdir(ROOT)  # setup.py's paths are relative
    build(Path(sys.argv[1]).resolve(), *sys.argv[2:])
