"""pyconv and the process it lives in: limits on threads and CPUs, Ctrl-C, subinterpreters."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import REFERENCE_RUN
from oracle import make_case, needs_core, setting

from pyconv import config

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's limits")
CONVOLVE = """
import os, numpy as np, pyconv, pyconv.nn.functional as F
rng = np.random.default_rng(0)
x = rng.standard_normal((4, 32, 34, 34)).astype("f4")
w = rng.standard_normal((32, 32, 3, 3)).astype("f4")
pyconv.set_num_threads(1)
serial = F.conv2d(x, w)
"""


def in_a_new_process(code, first=()):
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [*first, sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip()


@needs_core
@pytest.mark.parametrize(
    ("variable", "value"), [(None, None), ("GOMP_SPINCOUNT", "77"), ("OMP_WAIT_POLICY", "PASSIVE")]
)
def test_idle_threads_spin_briefly_unless_the_user_says_otherwise(monkeypatch, variable, value):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")  # libgomp says what it was told
    code = "import os, pyconv; print([os.environ.get(name) for name in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    if "GOMP_SPINCOUNT" not in run.stderr:
        pytest.skip("not built with gcc's OpenMP")
    spins = {None: config.SPINS, "GOMP_SPINCOUNT": value, "OMP_WAIT_POLICY": "0"}[variable]
    assert f"GOMP_SPINCOUNT = '{spins}'" in run.stderr
    kept = [value if variable == name else None for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")]
    assert run.stdout.strip() == str(kept)


@pytest.fixture(scope="module")
def late_reaper(tmp_path_factory, c_compiler):
    program = tmp_path_factory.mktemp("late_reaper") / "late_reaper"
    source = Path(__file__).with_name("late_reaper.c")
    subprocess.run([c_compiler, "-O1", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(program)], check=True)
    if subprocess.run([program, "true"], check=False).returncode == 77:
        pytest.skip("no program may be traced here")
    return [str(program)]


def threads_at_a_limit(more, first=()):
    """The threads of a process that wants 8 and may have 1 + more."""
    code = f"""{CONVOLVE}
import resource
os.setuid(54321 + {more})  # the limit is one of users, and root has none: one that has no other process
resource.setrlimit(resource.RLIMIT_NPROC, (1 + {more}, 1 + {more}))
pyconv.set_num_threads(8)
for _ in range(3):
    assert np.array_equal(F.conv2d(x, w), serial)
print(len(os.listdir("/proc/self/task")))
"""
    if os.getuid() != 0:
        pytest.skip("counts the threads of a user without other processes: only root can become one")
    return int(in_a_new_process(code, first))


@needs_core
@LINUX
@pytest.mark.parametrize("more", [0, 2])
def test_threads_that_cannot_be_started(more):
    """OpenMP's library would end the process: where no thread starts, or two of seven, those that there are compute."""
    assert threads_at_a_limit(more) == 1 + more


@needs_core
@LINUX
def test_threads_that_end_late(late_reaper):
    """One that was started to see whether it can be counts for a moment after it was joined."""
    assert threads_at_a_limit(2, late_reaper) == 3


@needs_core
@LINUX
def test_a_limit_ends_what_starts_threads():
    """Else the test above could not fail: the limit does hold for Python's own threads."""
    if os.getuid() != 0:
        pytest.skip("only root can become a user without other processes")
    code = """
import os, resource, threading
os.setuid(54320)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    threading.Thread(target=print).start()
except RuntimeError as error:
    print("refused")
"""
    assert in_a_new_process(code) == "refused"


@pytest.mark.parametrize(("lines", "files", "cpus"), [
    (["0::/"], {}, None),
    (["0::/a/b"], {"a/b/cpu.max": "max 100000", "a/cpu.max": "max 100000"}, None),
    (["0::/a/b"], {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 3),
    (["0::/a/b"], {"a/b/cpu.max": "50000 100000", "a/cpu.max": "250000 100000"}, 1),
    (["0::/"], {"cpu.max": "400000 100000"}, 4),
    (["0::/a:b"], {"a:b/cpu.max": "200000 100000"}, 2),
    (["0::/"], {"cpu.max": "nonsense"}, None),
    (["4:memory:/m", "3:cpuset:/c", "1:cpu,cpuacct:/a", "0::/"], {
        "cpu/a/cpu.cfs_quota_us": "150000", "cpu/a/cpu.cfs_period_us": "100000"}, 2),
    (["1:cpu:/a"], {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
    (["3:cpuset:/a"], {"cpu/a/cpu.cfs_quota_us": "1000", "cpu/a/cpu.cfs_period_us": "1000"}, None),
    ([], {}, None),
])  # fmt: skip
def test_quota_of_the_cgroup(tmp_path, lines, files, cpus):
    own = tmp_path / "cgroup"
    own.write_text("".join(f"{line}\n" for line in lines))
    for name, content in files.items():
        file = tmp_path / "mount" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    assert config._cgroup_cpus(own, tmp_path / "mount") == cpus
    assert config._cgroup_cpus(tmp_path / "none", tmp_path / "mount") is None


def call_for_ever(case, out):
    while True:
        case.run(out=out)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal as a terminal does")
@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_during_calls(threads):
    """It is noticed when the call under way ends; layers, plans and threads are as good as before."""
    case = make_case(np.random.default_rng(0), (4, 32, 34, 34), (32, 32, 3, 3), np.float32, padding=1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with setting(threads=threads):
            expected = case.run()
            for _ in range(3):
                timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
                out = np.empty_like(expected)
                timer.start()
                with pytest.raises(KeyboardInterrupt):
                    call_for_ever(case, out)
                timer.join()
                np.testing.assert_array_equal(case.run(), expected)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(REFERENCE_RUN, reason="the compiled core is what cannot be loaded twice")
def test_a_subinterpreter_gets_an_import_error_at_worst():
    names = "_interpreters", "_xxsubinterpreters", "_testcapi"
    code = f"""
import importlib, pyconv._core
for name in {names}:
    try:
        module = importlib.import_module(name)
        break
    except ImportError:
        pass
script = '''
try:
    import pyconv._core
    print("imported")
except ImportError as error:
    print("ImportError")
'''
if hasattr(module, "create"):
    module.run_string(module.create(), script)
else:
    module.run_in_subinterp(script)
print("goes on", pyconv._core.isas()[-1] != "")
"""
    first, last = in_a_new_process(code).splitlines()
    assert first in ("imported", "ImportError")
    assert last == "goes on True"
