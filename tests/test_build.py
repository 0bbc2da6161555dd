"""The build: what a wheel holds, which instructions its objects hold, and what happens on a poorer machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import REFERENCE_RUN

from pyconv import config

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["LICENSE", "README.md", "pyproject.toml", "setup.py", "pyconv", "src_c"]
COMPILER = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
ISAS, DTYPES = ("sse2", "avx2", "avx512"), ("f32", "f64", "i32", "i64")
ROWS = {f"{isa}_{dtype}" for isa in ISAS for dtype in DTYPES}
X86_LINUX = sys.platform.startswith("linux") and platform.machine() == "x86_64"

# The example of the README and of torch's documentation in miniature: what every build must compute.
SMOKE = """
import numpy as np, pyconv
x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
y = pyconv.conv2d(x, np.ones((1, 1, 2, 2), np.float32), np.float32([1]))
assert y.tolist() == [[[[11, 15, 19], [27, 31, 35]]]], y
from pyconv import config
print(config.isa(), *config.isas_available(), config.core.OPENMP if config.core else "", pyconv.__file__)
"""

# Instructions that baseline x86-64 (SSE2) lacks: all VEX and EVEX ones, SSE3 to SSE4.2, and the bit manipulations.
# tzcnt is not among them: older CPUs run it as bsf, and compilers use it where the two agree.
NEWER_THAN_SSE2 = re.compile(
    r"v|andn |bextr|bls|bzhi|mulx|pdep|pext |rorx|sarx|shlx|shrx|lzcnt|popcnt|movbe|crc32"
    r"|k(add|and|mov|not|or|shift|test|un|xn|xo)"
    r"|addsub|h(add|sub)p|movddup|movs[hl]dup|lddqu|ph(add|sub)|pabs|psign|pshufb|pmulhrsw|palignr|p?blend"
    r"|pm(in|ax)(sb|sd|uw|ud)|pmov[sz]x|ptest|round[ps]|dpp|insertp|extractp|p(insr|extr)[bdq]|pcmp(eqq|gtq|[ei]str)"
    r"|mpsad|packusdw|pmul(dq|ld)|phminpos|movntdqa"
)
# What an AVX2 row must not hold: 512-bit registers, masks, registers 16 to 31, and names that only AVX-512 has.
NEWER_THAN_AVX2 = re.compile(r".*(zmm|%k[0-7]|[xy]mm(1[6-9]|2\d|3[01]))|vmovdq[au]\d|vpternlog|vperm[it]2|vrndscale")


def environment(**extra):
    """This process's environment without what would decide what is built or imported."""
    names = "CFLAGS LDFLAGS LDSHARED PYTHONPATH PYTHONWARNINGS PYCONV_REQUIRE_CORE PYCONV_WERROR PYCONV_ISA".split()
    kept = {name: value for name, value in os.environ.items() if name not in names and not name.startswith("PIP_")}
    return {**kept, "CC": COMPILER, **extra}


def command(*arguments, check=True, **options):
    """Run a command; its stdout and stderr are one text."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run([str(argument) for argument in arguments], check=False, timeout=600, **streams, **options)
    assert done.returncode == 0 or not check, f"{arguments}\n{done.stdout}"
    return done


def tool(name):
    path = shutil.which(name)
    return path or pytest.skip(f"{name} is not installed")


def copy_of_the_sources(folder):
    """A tree to build in, so that the checkout stays as it is."""
    for package in ("setuptools", "Cython", "pip"):
        if not list(importlib.metadata.distributions(name=package)):  # find_spec may import and warn
            pytest.skip(f"building again needs {package}: install pyconv-cpu[test]")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        elif source.exists():
            shutil.copy(source, folder)
        else:
            pytest.skip(f"{source} is missing: these are not pyconv's sources")
    return folder


def pip(action, tree, *arguments, **extra):
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check", "-v"]
    line = [sys.executable, "-m", "pip", action, *options, *arguments, tree]
    return command(*line, env=environment(**extra), cwd=tree).stdout


def smoke(target, *options):
    """Import and compute from a folder of installed packages, outside the checkout.

    -S, since the finder of an editable install would supply the checkout's core where this folder has none.
    """
    path = os.pathsep.join([str(target), str(Path(np.__file__).parents[1])])
    run = command(sys.executable, "-S", *options, "-c", SMOKE, cwd=target, env=environment(PYTHONPATH=path))
    assert str(target / "pyconv") in run.stdout
    return run.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel built from a copy of the sources, the tree with the objects it was linked from."""
    if REFERENCE_RUN:
        pytest.skip("this run tests the reference path")
    tool(COMPILER.split()[0])
    tree = copy_of_the_sources(tmp_path_factory.mktemp("build"))
    pip("wheel", tree, "-w", tree / "dist", PYCONV_REQUIRE_CORE="1")
    return tree


@pytest.fixture(scope="module")
def objects(built):
    """The row, or the file compiled for every CPU -> its object files, of a compiled core for this x86-64 machine."""
    if not X86_LINUX:
        pytest.skip("these instructions are looked for on x86-64 Linux only")
    found = {}
    (temporary,) = built.glob("build/temp*")
    for path in temporary.glob("*-*/**/*.o"):
        folder, _ = path.relative_to(temporary).parts[0].rsplit("-", 1)
        found.setdefault(path.name if folder == "baseline" else folder, []).append(path)
    assert set(found) == {*ROWS, "_core.o", "cpu.o", "run.o"}
    return found


def instructions(paths):
    """Every instruction of some objects, its bytes left away."""
    lines = command(tool("objdump"), "-d", "--no-show-raw-insn", *paths).stdout.splitlines()
    found = [line.split("\t", 1)[1].strip() for line in lines if "\t" in line]
    assert len(found) > 50, f"{paths} hold {len(found)} instructions: is objdump reading them right?"
    return found


def test_compiled_core_is_used_from_the_repository_root():
    """Python finds the source folder there before any installed pyconv, so the core must lie in it."""
    code = "import warnings; warnings.simplefilter('ignore', RuntimeWarning)\n" + SMOKE
    isa, *_, package = command(sys.executable, "-c", code, cwd=ROOT, env=environment()).stdout.split()
    assert Path(package).resolve() == ROOT / "pyconv" / "__init__.py"
    assert (isa == "reference") == REFERENCE_RUN
    if not REFERENCE_RUN:
        assert Path(config.core.__file__).resolve().parent == ROOT / "pyconv"


def test_wheel_is_small_and_holds_the_package_alone(built):
    (wheel,) = built.glob("dist/*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert wheel.stat().st_size < 3_000_000
    package = {name for name in names if ".dist-info/" not in name}
    modules = {path.relative_to(built).as_posix() for path in built.glob("pyconv/**/*.py")}
    assert package - modules - {"pyconv/py.typed"} == {f"pyconv/_core{SUFFIX}"}
    assert modules <= package
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the ELF format is Linux's")
def test_core_exports_its_init_function_alone(built):
    (library,) = built.glob(f"build/lib*/pyconv/_core{SUFFIX}")
    for path in (library, config.core.__file__):
        lines = command(tool("nm"), "-D", "--defined-only", path).stdout.splitlines()
        assert [line.split()[-1] for line in lines] == ["PyInit__core"], path
    assert "no symbols" in command(tool("nm"), library).stdout, "the wheel's core is not stripped"


def test_rows_hold_the_instructions_they_are_named_after(objects):
    for dtype, suffix in {"f32": "ps", "f64": "pd"}.items():
        code = {isa: instructions(objects[f"{isa}_{dtype}"]) for isa in ISAS}
        fused = {isa: [i for i in code[isa] if re.match(rf"vfmadd...{suffix} ", i)] for isa in code}
        assert not fused["sse2"]
        assert sum("ymm" in i for i in fused["avx2"]) > 10
        assert sum("zmm" in i for i in fused["avx512"]) > 10


def test_no_instruction_is_newer_than_its_row(objects):
    def newer(name, pattern):
        return [i for i in instructions(objects[name]) if pattern.match(i)]

    for name in objects:
        if not name.startswith("avx"):
            assert newer(name, NEWER_THAN_SSE2) == [], name
    for dtype in DTYPES:
        assert newer(f"avx2_{dtype}", NEWER_THAN_AVX2) == []
        # The search itself works: it finds what does belong to the rows above.
        assert newer(f"avx2_{dtype}", NEWER_THAN_SSE2)
        assert newer(f"avx512_{dtype}", NEWER_THAN_AVX2)


def test_rows_share_nothing_and_run_nothing_at_load_time(objects):
    """Each symbol that others see is named after its row: a weak or equal one could be another row's, for all CPUs."""
    for name, paths in objects.items():
        for path in paths:
            symbols = [line.split() for line in command(tool("nm"), path).stdout.splitlines()]
            kinds = {kind for *_, kind, _ in symbols}
            assert not kinds & set("WVu"), f"{name} has weak symbols: {symbols}"
            sections = command(tool("objdump"), "-h", path).stdout
            assert ".init_array" not in sections, name
            assert ".ctors" not in sections, name
            if name in ROWS:
                word = "conv_table" if path.stem == "table" else path.stem
                seen = [symbol for *_, kind, symbol in symbols if kind.isupper() and kind != "U"]
                assert seen == [f"{word}_{name}"], path


def test_floating_point_state_is_written_by_the_task_runner_alone(objects):
    writes = re.compile("v?ldmxcsr|fldcw|fxrstor|xrstor")
    assert {name for name in objects if any(map(writes.match, instructions(objects[name])))} == {"run.o"}


def test_without_a_compiler_it_installs_says_so_and_computes(tmp_path):
    tree = copy_of_the_sources(tmp_path)
    target = tmp_path / "target"
    output = pip("install", tree, "--target", target, CC="/bin/false")
    assert "pyconv: installing WITHOUT the compiled core" in output
    assert not list(target.rglob("_core*.so"))
    output = smoke(target, "-W", "default")
    assert output.count("RuntimeWarning: pyconv's compiled core is missing") == 1
    assert "\nreference reference" in output


def test_without_a_compiler_the_build_fails_where_the_core_is_required(tmp_path):
    tree = copy_of_the_sources(tmp_path)
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    for variable in ("PYCONV_REQUIRE_CORE", "PYCONV_WERROR"):
        done = command(*build, cwd=tree, check=False, env=environment(**{variable: "1", "CC": "/bin/false"}))
        assert done.returncode != 0, done.stdout
    stale = tree / "pyconv" / f"_core{SUFFIX}"
    stale.write_bytes(b"the core of an earlier build")
    command(*build, cwd=tree, env=environment(CC="/bin/false"))
    assert not stale.exists(), "a build without the core left an old one to be imported"


@pytest.mark.skipif(not X86_LINUX, reason="the rows left out are those of x86-64 Linux")
@pytest.mark.skipif(REFERENCE_RUN, reason="this run tests the reference path")
def test_old_compiler_without_avx512_and_openmp_still_makes_a_core(tmp_path):
    tree = copy_of_the_sources(tmp_path)
    compiler = tmp_path / "old-cc"
    compiler.write_text(
        '#!/bin/sh\ncase " $* " in *" -mavx512f "*|*" -fopenmp "*) echo "old-cc: unknown option" >&2; exit 1;; esac\n'
        f'exec {COMPILER} "$@" -O1\n'
    )
    compiler.chmod(0o755)
    output = pip("install", tree, "--target", tmp_path / "target", CC=str(compiler))
    assert "pyconv: this compiler cannot build the kernels for avx512" in output
    assert "pyconv: this compiler has no OpenMP" in output
    output = smoke(tmp_path / "target", "-W", "default")
    assert "compiled without OpenMP" in output
    _, *available, openmp, _ = output.splitlines()[-1].split()
    assert openmp == "False"
    assert "sse2" in available
    assert "avx512" not in available
