"""The Python tests on every CPU level: forced instruction sets, and emulated CPUs, arm64 ones included."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from proofs.job import ROOT
from proofs.kernels import CPUS, CROSS

# Tests that start no other process: that one would run on the real CPU.
PART = [f"tests/test_{name}.py" for name in "kernels seed exactness layout padding dtypes packed quantized".split()]
# A test takes minutes on an emulated CPU: no tracebacks of what merely takes long.
PYTEST = "-m pytest -W error -p no:cacheprovider -o faulthandler_timeout=0 --hypothesis-profile=quick".split()
# Compares with /proc/cpuinfo, which under qemu-user is that of the real CPU; `emulated` compares with CPUS instead.
REAL_CPU = "--deselect=tests/test_kernels.py::test_table_has_the_rows_of_this_cpu"
LEVELS = {"x86_64": ("sse2", "avx2", "avx512"), "aarch64": ("neon",)}
AVX2 = """
#include <immintrin.h>
int main(int argc, char **argv) {
    (void)argv;
    return _mm256_extract_epi32(_mm256_add_epi32(_mm256_set1_epi32(argc), _mm256_set1_epi32(-1)), 0);
}
"""
# Debian 12's Python for arm64, and NumPy's wheels: unpacked into a folder, nothing is installed.
DEBIAN = "deb [arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} bookworm main\n"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = "python3.11-minimal libpython3.11-stdlib libgomp1 libstdc++6".split()
WHEELS = "numpy pytest hypothesis".split()


def forced(job):
    """The part under PYCONV_ISA=each that this machine has; what it lacks is skipped by name."""
    here = job.available()
    for isa in LEVELS.get(os.uname().machine, here):
        if isa in here:
            passed(job, job.run(sys.executable, *PYTEST, *PART, cwd=ROOT, PYCONV_ISA=isa), isa)
        else:
            job.skip(f"this CPU has no {isa}")
    job.run(sys.executable, *PYTEST, *PART, cwd=ROOT, PYCONV_ISA="none", finds="PYCONV_ISA")


def passed(job, output, isa):
    """Note how many tests passed, if they ran on the instruction set that was asked for."""
    count = re.search(r"(\d+) passed", output)
    if f"ISA in use: {isa}\n" not in output or count is None:
        job.fail(f"no tests passed on {isa}")
    else:
        print(f"##### {count[1]} tests passed on {isa}", flush=True)


def emulated(job):
    """The part on x86-64 CPUs that qemu-user emulates: what leaks from a row into the baseline dies there."""
    emulator = job.emulator("qemu-x86_64")
    if emulator is None or os.uname().machine != "x86_64":
        job.skip("emulates x86-64 CPUs for this machine's own Python")
        return
    source = job.folder / "avx2.c"
    source.write_text(AVX2)
    subprocess.run([os.environ.get("CC", "cc").split()[-1], "-mavx2", source, "-o", job.folder / "avx2"], check=True)
    job.run(emulator, "-cpu", "Nehalem", job.folder / "avx2", finds="Illegal instruction")
    for cpu, isas in CPUS["qemu-x86_64"].items():
        if cpu == "max":
            continue
        for isa in isas.split():
            arguments = (emulator, "-cpu", cpu, sys.executable, *PYTEST, REAL_CPU, *PART)
            output = job.run(*arguments, cwd=ROOT, PYCONV_ISA=isa)
            passed(job, output, isa)
            if f"ISA available: {', '.join(isas.split())}\n" not in output:
                job.fail(f"{cpu} was given other instruction sets than {isas}")


def arm64(job):
    """The extension cross-compiled for arm64, with arm64's Python and NumPy, on emulated CPUs."""
    emulator = job.emulator("qemu-aarch64")
    if emulator is None or not job.has(CROSS, "apt-get", "dpkg-deb"):
        return
    if sys.version_info[:2] != (3, 11):
        job.skip("Debian 12's Python for arm64 is 3.11, whose headers are this Python's own where it is 3.11 too")
        return
    root = arm64_root(job)
    if root is None:
        return
    build = job.folder / "build"
    command = [sys.executable, "setup.py", "-q", "build_ext", "--force", "--build-lib", build, "--build-temp"]
    variables = {"CC": CROSS, "LDSHARED": f"{CROSS} -shared", "PYCONV_REQUIRE_CORE": "1"}
    subprocess.run([*command, job.folder / "objects"], cwd=ROOT, check=True, env={**os.environ, **variables})
    package = job.folder / "site" / "pyconv"
    shutil.copytree(ROOT / "pyconv", package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (core,) = build.glob("pyconv/_core*.so")
    shutil.copy(core, package / "_core.cpython-311-aarch64-linux-gnu.so")
    python = (root / "usr/bin/python3.11", "-P", *PYTEST, *PART)  # -P: not the pyconv of the folder that it runs in
    path = {"PYTHONPATH": str(package.parent), "PYTHONHOME": str(root / "usr"), "PYTHONDONTWRITEBYTECODE": "1"}
    for cpu in CPUS["qemu-aarch64"]:
        # The folder of the C library is the emulator's own -L; what Python loads itself is found through this one.
        libraries = f"LD_LIBRARY_PATH={root}/usr/lib/aarch64-linux-gnu:{root}/lib/aarch64-linux-gnu"
        passed(job, job.run(emulator, "-cpu", cpu, "-L", root, "-E", libraries, *python, cwd=ROOT, **path), "neon")


def arm64_root(job):
    """A folder with arm64's Python and libraries, and the wheels in job.folder/site; None where they cannot be had."""
    apt, root = job.folder / "apt", job.folder / "root"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "sources.list").write_text(DEBIAN.format(mirror=MIRROR))
    (apt / "status").write_text("")
    settings = {
        "Dir::State": apt / "state", "Dir::State::status": apt / "status", "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": apt / "sources.list", "Dir::Etc::sourceparts": "/dev/null",
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "APT::Sandbox::User": "root",
    }  # fmt: skip
    options = [f"-o{name}={value}" for name, value in settings.items()]
    get = ["apt-get", *options, "-q"]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:", "--python-version", "3.11"]
    pip += [word for glibc in (17, 27, 28) for word in ("--platform", f"manylinux_2_{glibc}_aarch64")]
    try:
        subprocess.run([*get, "update"], check=True)
        subprocess.run([*get, "install", "-y", "--no-install-recommends", "--download-only", *PACKAGES], check=True)
        subprocess.run([*pip, "--target", job.folder / "site", *WHEELS], check=True)
    except subprocess.CalledProcessError as error:
        job.skip(f"arm64's Python could not be downloaded: {Path(error.cmd[0]).name} ended with {error.returncode}")
        return None
    for package in (apt / "cache" / "archives").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    return root
