"""What a run may use: the instruction set, threads, accuracy. The only reader of environment variables.

PYCONV_ISA           highest instruction set to use: avx512, avx2, sse2; neon; generic
PYCONV_NUM_THREADS   most threads of one call
PYCONV_ACCURACY      'fast' or 'exact'
"""

from __future__ import annotations

import os
import platform
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .problem import choice, fail, plain_int

# How often an idle thread of libgomp looks for work before it sleeps: about 0.1 ms, longer than what lies between two
# layers. By default it is milliseconds, which a busy machine takes from the thread that is waited for: beside two
# busy programs on two CPUs small layers ran at 0.01 to 0.17 of one thread's speed, now at 0.26 to 1.1 (Zen 5).
SPINS = "3000"


def _import_core() -> Any:
    """Import the core; libgomp reads its variables when it is loaded, and users' own come first."""
    unset = not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    if unset:
        os.environ["GOMP_SPINCOUNT"] = SPINS
    try:
        return import_module("pyconv._core")  # "from . import" would speak of circular imports where it is missing
    finally:
        if unset:
            del os.environ["GOMP_SPINCOUNT"]


try:
    core = _import_core()
except ImportError as error:
    core = None
    warnings.warn(
        f"pyconv's compiled core is missing ({error}): computing with NumPy, many times slower. "
        "Reinstall with a C compiler: pip install --force-reinstall --no-binary pyconv-cpu pyconv-cpu",
        RuntimeWarning,
        stacklevel=3,
    )
else:
    if not core.OPENMP:
        warnings.warn("pyconv was compiled without OpenMP: it computes on one thread", RuntimeWarning, stacklevel=3)

REFERENCE = "reference"
ACCURACIES = ("fast", "exact")
MOST_THREADS = 1024


def _choose_isa(name: str, origin: str) -> str:
    """Return the instruction set that a name stands for; the best one if it is empty."""
    available = isas_available()
    return choice("pyconv", origin, name, available) if name else available[0]


def isas_available() -> tuple[str, ...]:
    """Return the instruction sets that were compiled and that this CPU and operating system can run, best first."""
    return core.isas() if core else (REFERENCE,)


def isa() -> str:
    """Return the instruction set in use, or 'reference'."""
    return _state["isa"]


def generation() -> int:
    """Return a number that changes with the instruction set and the accuracy: whoever caches plans compares it."""
    return _state["generation"]


def _set_isa(name: str) -> None:
    """Change the instruction set of plans made from now on (tests walk all of them this way)."""
    _state["isa"] = _choose_isa(name, "isa")
    _state["generation"] += 1


def set_num_threads(num_threads: int) -> None:
    """Set how many threads one call may use. Results are the same bits for any number.

    Parameters
    ----------
    num_threads : int
        1 to 1024.

    Raises
    ------
    ValueError, TypeError
        If it is outside that range, or no int.

    See Also
    --------
    torch.set_num_threads

    Examples
    --------
    >>> import pyconv
    >>> before = pyconv.get_num_threads()
    >>> pyconv.set_num_threads(1)
    >>> pyconv.get_num_threads()
    1
    >>> pyconv.set_num_threads(before)
    """
    rule = f"must be an int from 1 to {MOST_THREADS}"
    try:
        threads = plain_int(num_threads)
    except TypeError:
        fail(TypeError, "set_num_threads", "num_threads", rule, num_threads)
    if isinstance(num_threads, bool):
        fail(TypeError, "set_num_threads", "num_threads", rule, num_threads)
    if not 1 <= threads <= MOST_THREADS:
        fail(ValueError, "set_num_threads", "num_threads", rule, num_threads)
    _state["threads"] = threads
    if core:
        core.set_threads(threads)


def get_num_threads() -> int:
    """Return how many threads one call may use: the least of the CPUs this process may run on, the cgroup's CPU quota,
    OMP_NUM_THREADS and PYCONV_NUM_THREADS, unless :func:`set_num_threads` set it.

    Examples
    --------
    >>> import pyconv
    >>> pyconv.get_num_threads() >= 1
    True
    """  # noqa: D205
    return _state["threads"]


def set_accuracy(accuracy: str) -> None:
    """Choose between speed and torch's last bits.

    Parameters
    ----------
    accuracy : {'fast', 'exact'}
        'fast' (the default) reads subnormal numbers as zero and writes zero for them, inside the kernels only, and may
        use algorithms with fewer multiplications: ``|error| <= 16 u sum |x w|`` per output, u = 2**-24 in float32.
        'exact' sums directly and keeps subnormals: ``|error| <= 4 u sum |x w|`` for data without a common sign.

    Raises
    ------
    ValueError
        If it is neither.

    Examples
    --------
    >>> import pyconv
    >>> pyconv.set_accuracy("exact")
    >>> pyconv.get_accuracy()
    'exact'
    >>> pyconv.set_accuracy("fast")
    """
    _state["accuracy"] = choice("set_accuracy", "accuracy", accuracy, ACCURACIES)
    _state["generation"] += 1


def get_accuracy() -> str:
    """Return 'fast' or 'exact'; see :func:`set_accuracy`."""
    return _state["accuracy"]


def is_exact(function: str, accuracy: str | None) -> bool:
    """Resolve the ``accuracy=`` argument of `function`: None stands for :func:`get_accuracy`."""
    return (_state["accuracy"] if accuracy is None else choice(function, "accuracy", accuracy, ACCURACIES)) == "exact"


def thread_limits() -> dict[str, int]:
    """Return every limit on threads that is set, by its name."""
    affinity = getattr(os, "sched_getaffinity", None)
    limits = {"CPUs": len(affinity(0)) if affinity else os.cpu_count() or 1}
    quota = _cgroup_cpus()
    if quota:
        limits["cgroup quota"] = quota
    openmp = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if openmp.isdigit() and int(openmp) > 0:  # what OpenMP itself does not understand is not ours to refuse
        limits["OMP_NUM_THREADS"] = int(openmp)
    own = os.environ.get("PYCONV_NUM_THREADS", "").strip()
    if own:
        if not (own.isascii() and own.isdigit() and 1 <= int(own) <= MOST_THREADS):
            fail(ValueError, "pyconv", "PYCONV_NUM_THREADS", f"must be an int from 1 to {MOST_THREADS}", own)
        limits["PYCONV_NUM_THREADS"] = int(own)
    return limits


def _cgroup_cpus(own: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the CPUs that the quota of this process's cgroup, or of a group around it, pays for, rounded up."""
    quotas = []
    try:
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = mount / "cpu" if controllers else mount  # version 1 has a tree for each controller, version 2 has one
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                quota = _cgroup_quota(folder)
                if quota:
                    quotas.append(quota)
    except (OSError, ValueError):
        return None  # no Linux, or not readable from here: no limit is known
    return min(quotas, default=None)


def _cgroup_quota(folder: Path) -> int | None:
    """Return the CPUs of one folder's quota: "max 100000" and -1 are none."""
    one, two = folder / "cpu.max", folder / "cpu.cfs_quota_us"
    if one.is_file():
        quota, period = one.read_text().split()
    elif two.is_file():
        quota, period = two.read_text().strip(), (folder / "cpu.cfs_period_us").read_text()
    else:
        return None
    return None if quota in ("max", "-1") else max(-(-int(quota) // int(period)), 1)


def config() -> dict[str, object]:
    """Return what :func:`show_config` prints, as a dict.

    Examples
    --------
    >>> import pyconv.config
    >>> pyconv.config.config()["accuracy"]
    'fast'
    """
    from . import __version__

    compiled = core is not None
    caches = core.cache_sizes() if compiled else (0, 0)
    limits = [f"{name} {n}" for name, n in thread_limits().items()]
    return {
        "pyconv": __version__,
        "compiled core": core.__file__ if compiled else "missing: computing with NumPy, many times slower",
        "OpenMP": "yes" if compiled and core.OPENMP else "no: one thread",
        "CPU": (core.cpu() if compiled else "") or platform.processor() or platform.machine(),
        "ISA compiled": ", ".join(core.isas_compiled()) if compiled else "none",
        "ISA available": ", ".join(isas_available()),
        "ISA in use": isa(),
        "threads": get_num_threads() if not compiled or core.OPENMP else 1,
        "thread limits": ", ".join(limits) + "; set_num_threads overrides them",
        "L1 data cache": f"{caches[0] // 1024} KiB" if compiled else "unknown",
        "L2 cache": f"{caches[1] // 1024} KiB" if compiled else "unknown",
        "accuracy": get_accuracy(),
        "NumPy": np.__version__,
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
    }


def show_config() -> None:
    """Print CPU, instruction set, threads, caches, accuracy and versions, one per line.

    See Also
    --------
    numpy.show_config, torch.__config__.show
    """
    entries = config()
    width = max(map(len, entries))
    for name, value in entries.items():
        print(f"{name:{width}}  {value}")


_state: dict = {"generation": 0}
_state["isa"] = _choose_isa(os.environ.get("PYCONV_ISA", "").strip().lower(), "PYCONV_ISA")
_state["accuracy"] = choice(
    "pyconv", "PYCONV_ACCURACY", os.environ.get("PYCONV_ACCURACY", "").strip().lower() or "fast", ACCURACIES
)
_state["threads"] = min(*thread_limits().values(), MOST_THREADS)
if core:
    core.set_threads(_state["threads"])
