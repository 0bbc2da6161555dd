"""Build of pyconv._core; everything else about the package is in pyproject.toml.

The files of src_c/isa/ are compiled once per row = instruction set x number format, each row with its own flags and its
own object folder (setuptools names objects by source alone: a second row in the same folder would silently be the first
one's object). The other sources stay at the baseline, so that they run on every CPU.

Nothing here may stop an installation: without a compiler, Python's headers, or GCC's vector extensions there is no
core, the build says so, and pyconv computes with NumPy. Two variables for CI and for wheels change that, and one is for
whoever knows the CPU, or wants a shorter build while working on a kernel:

    PYCONV_REQUIRE_CORE=1   a core that cannot be built, or lacks a row, is an error
    PYCONV_WERROR=1         the same, and so is every compiler warning
    PYCONV_BUILD_ISAS=avx2  only these instruction sets, separated by commas
"""

import os
import platform
import sys
import sysconfig
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError, LinkError, PlatformError

# One row of the table is an instruction set and the flags that the baseline lacks. The lists are the levels of the
# x86-64 psABI spelt out, because -march=x86-64-v3 needs gcc 11 or clang 12; src_c/cpu.c tests for exactly these.
X86_64_V3 = "-mcx16 -msahf -mpopcnt -mavx -mavx2 -mbmi -mbmi2 -mf16c -mfma -mlzcnt -mmovbe -mxsave".split()
X86_64_V4 = [*X86_64_V3, *"-mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl -mprefer-vector-width=512".split()]
ROWS = {
    "x86-64": {"sse2": [], "avx2": X86_64_V3, "avx512": X86_64_V4},
    "aarch64": {"neon": []},
    "other": {"generic": []},
}
# The slowest to compile first. Integers have what algorithm.h lists for them, and wrap around.
KERNELS = sorted((path.as_posix() for path in Path("src_c/isa").glob("*.c")), key=lambda k: "depthwise" not in k)
INTEGER_KERNELS = ["src_c/isa/im2col_gemm.c", "src_c/isa/table.c"]
DTYPES = {"f32": KERNELS, "f64": KERNELS, "i32": INTEGER_KERNELS, "i64": INTEGER_KERNELS}
DTYPE_FLAGS = {"i32": ["-fwrapv"], "i64": ["-fwrapv"]}
# The baseline whatever CFLAGS or the flags Python was built with ask for: they may name the builder's own CPU.
BASELINE = {"x86-64": ["-march=x86-64"], "aarch64": [], "other": []}

WERROR = os.environ.get("PYCONV_WERROR", "0") not in ("", "0")
BUILD_ISAS = [isa for isa in os.environ.get("PYCONV_BUILD_ISAS", "").split(",") if isa]
REQUIRE_CORE = WERROR or os.environ.get("PYCONV_REQUIRE_CORE", "0") not in ("", "0")

# gnu11, because -std=c11 turns contraction off and with it every fused multiply-add; contraction is spelt out because
# clang before 14 has it off. No link-time optimisation: it would move code of one instruction set into another's.
C_FLAGS = "-O3 -std=gnu11 -fvisibility=hidden -ffp-contract=fast -fno-lto -Wall -Wextra".split()
C_FLAGS += ["-Werror"] if WERROR else []
# Python's own flags ask for debug information, which takes a third more time to compile; CFLAGS=-g keeps it.
C_FLAGS += [] if "-g" in os.environ.get("CFLAGS", "").split() else ["-g0"]
# No loop of Cython's C is worth -O3, which takes twice the time; for a prange it copies variables that gcc cannot see
# to be set, and clang does not know that warning.
CORE_FLAGS = ["-O2", "-Wno-unknown-warning-option", "-Wno-maybe-uninitialized"]
LINK_FLAGS = ["-fno-lto"]
if sys.platform.startswith("linux"):
    LINK_FLAGS += ["-Wl,-z,relro,-z,now"]
HELP = "a C compiler (gcc or clang) and Python's headers are needed; on Debian and Ubuntu: apt install gcc python3-dev"

# Stands in an object file, where it can be read without running anything: a cross compiler's answer counts, not
# this machine's, and a compiler for two architectures at once (macOS) gives both answers.
PROBE_ARCHITECTURE = """
#if defined(__x86_64__)
const char architecture[] = "architecture is x86-64.";
#elif defined(__aarch64__)
const char architecture[] = "architecture is aarch64.";
#else
const char architecture[] = "architecture is other.";
#endif
"""
PROBE_OPENMP = """
#include <omp.h>
int threads(void);
int threads(void) { return omp_get_max_threads(); }
"""


def say(text):
    """Print to stderr, since pip shows stdout of a build with -vv only."""
    print(f"pyconv: {text}", file=sys.stderr, flush=True)


def newest(files):
    return max(file.stat().st_mtime for file in files)


def row_name(isa):
    """The macro that tells the baseline files and _core that the rows of this instruction set are linked in."""
    return (f"CONV_ROW_{isa.upper()}", "1")


class BuildCore(build_ext):
    """Compiles the rows side by side, leaves out the ones this compiler cannot build, and links the core."""

    def finalize_options(self):
        super().finalize_options()
        self.in_checkout = self.inplace  # setuptools clears that while it builds

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)  # an older build's core must not pass for this one's
        try:
            self.build_core(ext, target)
        except (BaseError, CCompilerError, OSError) as error:
            if REQUIRE_CORE:
                raise
            say(f"the compiled core could not be built: {error}\n{HELP}")
            say("installing WITHOUT the compiled core: pyconv will work, many times slower, with NumPy")

    def copy_extensions_to_source(self):
        """Remove the old core first: a process may have it loaded, and without a new one there must be none."""
        Path("pyconv", "_core" + sysconfig.get_config_var("EXT_SUFFIX")).unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def build_core(self, ext, target):
        """Rows first, since the rest is told which of them there are."""
        if self.compiler.compiler_type == "msvc":
            raise PlatformError("Microsoft's compiler has no vector extensions")
        architecture = self.probe_architecture()
        openmp = self.probe_openmp()
        baseline = C_FLAGS + BASELINE[architecture]
        pyx, *c_files = ext.sources
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            rows = {
                isa: [
                    pool.submit(self.compile_kernel, source, isa, dtype, baseline + flags)
                    for dtype, kernels in DTYPES.items()
                    for source in kernels
                ]
                for isa, flags in ROWS[architecture].items()
                if not BUILD_ISAS or isa in BUILD_ISAS
            }
            core = self.translate(pyx)
            objects, macros = self.collect_rows(rows)
            jobs = [pool.submit(self.compile_one, core, baseline + CORE_FLAGS + openmp, macros)]
            jobs += [pool.submit(self.compile_one, source, baseline, macros) for source in c_files]
            objects += [job.result() for job in jobs]
        link_flags = LINK_FLAGS + openmp
        if not self.in_checkout and not self.editable_mode and sys.platform.startswith("linux"):
            link_flags.append("-Wl,-s")  # a wheel needs no symbols; a developer's profiler does
        self.compiler.link_shared_object(objects, str(target), libraries=["m"], extra_postargs=link_flags)
        say(f"compiled core: {', '.join(name for name, _ in macros)}, {'OpenMP' if openmp else 'one thread'}")

    def compile_kernel(self, source, isa, dtype, flags):
        macros = [("CONV_ISA", isa), ("CONV_DTYPE", dtype)]
        return self.compile_one(source, flags + DTYPE_FLAGS.get(dtype, []), macros, folder=f"{isa}_{dtype}")

    def compile_one(self, source, flags, macros, folder="baseline"):
        """Return the object, which an earlier build may have left: same command, and nothing has changed since."""
        command = repr((self.compiler.compiler_so, os.environ.get("CFLAGS"), flags, macros))
        folder = Path(self.build_temp, f"{folder}-{zlib.crc32(command.encode()):08x}")
        (built,) = self.compiler.object_filenames([source], output_dir=str(folder))
        read = [Path(source), *Path("src_c").rglob("*.h")]
        if self.force or not Path(built).exists() or newest(read) >= Path(built).stat().st_mtime:
            self.compiler.compile([source], str(folder), macros, ["src_c"], extra_postargs=flags)
        return built

    def translate(self, pyx):
        """Cython to C, outside the source folder."""
        from Cython.Build import cythonize  # here, so that a source distribution can be made without it

        (extension,) = cythonize(
            [Extension("pyconv._core", [pyx])], build_dir=self.build_temp, force=bool(self.force), quiet=True
        )
        return extension.sources[0]

    def collect_rows(self, rows):
        """The objects of the rows, and a macro for each instruction set of which all rows could be compiled."""
        objects, macros = [], []
        for isa, jobs in rows.items():
            try:
                objects += [job.result() for job in jobs]
                macros.append(row_name(isa))
            except CompileError as error:
                if REQUIRE_CORE or not macros:  # the first one is the baseline
                    raise
                say(f"this compiler cannot build the kernels for {isa}, they are left out: {error}")
        return objects, macros

    def probe_architecture(self):
        with TemporaryDirectory() as folder:
            built = self.compile_probe(PROBE_ARCHITECTURE, folder, ["-fno-lto"]).read_bytes()
        found = [name for name in ROWS if f"architecture is {name}.".encode() in built]
        return found[0] if len(found) == 1 else "other"

    def probe_openmp(self):
        """The flags that turn OpenMP on, or none where it is missing: Apple's clang, clang without libomp."""
        flags = ["-fopenmp"]
        with TemporaryDirectory() as folder:
            try:
                built = self.compile_probe(PROBE_OPENMP, folder, flags)
                self.compiler.link_shared_object([str(built)], str(Path(folder, "probe.so")), extra_postargs=flags)
            except (CompileError, LinkError):
                say("this compiler has no OpenMP: the compiled core will use one thread")
                return []
        return flags

    def compile_probe(self, code, folder, flags):
        source = Path(folder, "probe.c")
        source.write_text(code)
        return Path(*self.compiler.compile([str(source)], folder, extra_postargs=flags))


if sys.platform == "darwin":
    # python.org's Python compiles for Intel and Arm at once unless told otherwise; the rows are one architecture's.
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")

setup(
    ext_modules=[
        # Optional: an installation goes on without the file that it would have made.
        Extension(
            "pyconv._core",
            ["pyconv/_core.pyx", *sorted(path.as_posix() for path in Path("src_c").glob("*.c"))],
            depends=sorted(path.as_posix() for path in Path("src_c").rglob("*.[ch]")),
            optional=not REQUIRE_CORE,
        )
    ],
    cmdclass={"build_ext": BuildCore},
)
