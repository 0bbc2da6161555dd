"""Many Python threads at once, forks, and where the number of threads comes from."""

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from oracle import Case, _core, check, make_case, needs_core, setting

import pyconv
import pyconv.nn.functional as F

TIMEOUT = 120  # seconds after which something hangs
can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def big_case(seed=0, dtype=np.float32, **arguments):
    """Some 40 million multiply-adds: several threads share them. NumPy alone gets a tenth of that."""
    size = 34 if _core is not None else 11
    return make_case(np.random.default_rng(seed), (4, 32, size, size), (32, 32, 3, 3), dtype, padding=1, **arguments)


def in_threads(count, job):
    """Run job(0) ... job(count - 1) at the same time; errors are raised here."""
    start = threading.Barrier(count)

    def run(number):
        start.wait(TIMEOUT)
        return job(number)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return [future.result(TIMEOUT) for future in [pool.submit(run, number) for number in range(count)]]


# --------------------------------------------------------------------------------------------- threads at once


@pytest.mark.parametrize("frozen", [False, True])
def test_one_layer_in_many_threads(frozen):
    """Images of several sizes, so that the layer's plans are made and dropped while others run."""
    weights = big_case().w
    layer = pyconv.nn.Conv2d(32, 32, 3, padding=1, bias=False)
    layer.weight = weights
    if frozen:
        layer.eval()
    rng = np.random.default_rng(1)
    images = [rng.standard_normal((1, 32, 8 + size % 7, 9)).astype(np.float32) for size in range(7)]
    expected = [Case(x, weights, padding=1) for x in images]
    first = [layer(x) for x in images]
    for y, case in zip(first, expected):
        check(y, case)

    def job(number):
        for step in range(60):
            index = (number + step) % len(images)
            np.testing.assert_array_equal(layer(images[index]), first[index])

    in_threads(8, job)


def test_functional_calls_in_many_threads():
    cases = [big_case(seed, dtype) for seed in range(2) for dtype in (np.float32, np.float64)]
    expected = [case.run() for case in cases]
    check(expected[0], cases[0])
    rest = [(number, step % len(cases)) for number in range(6) for step in range(6)]

    def job(number):
        for owner, index in rest:
            if owner == number:
                np.testing.assert_array_equal(cases[index].run(), expected[index])

    in_threads(6, job)


def test_results_of_threads_do_not_mix():
    """Each thread has an input of its own and must get its own result, out= included."""
    cases = [big_case(seed) for seed in range(5)]
    expected = [case.run() for case in cases]

    def job(number):
        out = np.empty_like(expected[number])
        for _ in range(6):
            cases[number].run(out=out)
            np.testing.assert_array_equal(out, expected[number])
            out[...] = np.nan

    in_threads(5, job)


@pytest.mark.parametrize("frozen", [False, True])
def test_eval_and_train_while_others_compute(frozen):
    """Switching modes never gives a result of half-packed or stale weights."""
    x = np.random.default_rng(2).standard_normal((1, 8, 12, 12)).astype(np.float32)
    layer = pyconv.nn.Conv2d(8, 8, 3, bias=False)
    layer.train(not frozen)
    expected = layer(x)
    stop = threading.Event()

    def job(number):
        if number == 0:
            try:
                for _ in range(300):
                    layer.eval()
                    layer.train()
            finally:
                stop.set()
        while not stop.is_set():
            np.testing.assert_array_equal(layer(x), expected)

    in_threads(4, job)


def test_settings_change_while_others_compute():
    case = big_case()
    expected = case.run(accuracy="exact")
    stop = threading.Event()

    def job(number):
        if number == 0:
            try:
                for step in range(200):
                    pyconv.set_num_threads(1 + step % 4)
                    pyconv.set_accuracy(("fast", "exact")[step % 2])
            finally:
                stop.set()
        for _ in range(5):
            np.testing.assert_array_equal(case.run(accuracy="exact"), expected)
            check(case.run(), case, "fast")

    before = pyconv.get_num_threads(), pyconv.get_accuracy()
    try:
        in_threads(3, job)
    finally:
        pyconv.set_num_threads(before[0])
        pyconv.set_accuracy(before[1])


def ticks_during(case):
    """When another Python thread woke up, and when a convolution on one thread began and ended meanwhile."""
    ticks = []
    computing = threading.Event()
    computing.set()

    def tick():
        while computing.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        with setting(threads=1):
            start = time.perf_counter()
            case.run()
            end = time.perf_counter()
    finally:
        computing.clear()
        thread.join()
    return ticks, start, end


@needs_core
def test_the_interpreter_lock_is_released():
    """Another Python thread goes on while a convolution computes."""
    case = make_case(np.random.default_rng(3), (8, 64, 64, 64), (64, 64, 3, 3), np.float32, padding=1)
    for _ in range(50):  # on a busy machine the other thread may miss a call of some milliseconds
        ticks, start, end = ticks_during(case)
        inside = [t for t in ticks if start + 0.2 * (end - start) < t < start + 0.8 * (end - start)]
        if len(inside) >= 3:
            return
    raise AssertionError(f"no call of 50 let another thread go on; the last took {end - start:.3f} s")


# ------------------------------------------------------------------------------------------------------------ forks


def wait_for(pid):
    """The exit code of a child process, which is killed where it hangs."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "the child hangs"


def fork(job):
    """Run job() in a forked child; its exit code is 0 if nothing was raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: this process has threads. That is the point
        pid = os.fork()
    if pid:
        return wait_for(pid)
    code = 1
    try:
        job()
        code = 0
    finally:
        os._exit(code)


@can_fork
def test_a_forked_child_computes():
    """OpenMP's threads do not survive a fork: the child must neither wait for them nor get other bits."""
    case = big_case()
    with setting(threads=4):
        expected = case.run()
        layer = case.module().eval()

        def job():
            np.testing.assert_array_equal(case.run(), expected)
            np.testing.assert_array_equal(layer(case.x), expected)
            np.testing.assert_array_equal(case.module()(case.x), expected)
            pyconv.set_num_threads(3)
            np.testing.assert_array_equal(case.run(), expected)

        def grandchild():
            job()
            assert fork(job) == 0

        assert fork(job) == 0
        assert fork(lambda: in_threads(3, lambda number: job())) == 0
        assert fork(grandchild) == 0
        np.testing.assert_array_equal(case.run(), expected)  # the parent goes on in parallel


@needs_core  # NumPy's BLAS, behind the reference path, hangs when another thread forks while it multiplies
@can_fork
def test_a_child_forked_from_a_busy_process_computes():
    """Locks that another thread held at the fork stay locked in the child."""
    case = big_case()
    expected = case.run()
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            np.testing.assert_array_equal(case.run(), expected)

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert fork(lambda: np.testing.assert_array_equal(case.run(), expected)) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _work(seed):
    return seed, big_case(seed).run()


@can_fork
def test_multiprocessing_with_fork():
    expected = [big_case(seed).run() for seed in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            for seed, y in pool.map_async(_work, range(4)).get(TIMEOUT):
                np.testing.assert_array_equal(y, expected[seed])


def test_multiprocessing_with_spawn():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seed, y = pool.apply_async(_work, (1,)).get(TIMEOUT)
    check(y, big_case(seed))


# ---------------------------------------------------------------------------------------------- how many threads


def test_set_and_get():
    before = pyconv.get_num_threads()
    try:
        for number in (1, 2, 7, np.int64(3)):
            pyconv.set_num_threads(number)
            assert pyconv.get_num_threads() == number
            check(big_case().run(), big_case())
    finally:
        pyconv.set_num_threads(before)


def threads_in_a_new_process(before="", **variables):
    """What get_num_threads() gives at first, with these environment variables."""
    own = ("PYCONV_NUM_THREADS", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    code = f"{before}\nimport pyconv; print(pyconv.get_num_threads())"
    command = [sys.executable, "-W", "ignore", "-c", code]
    run = subprocess.run(
        command, env={**environment, **variables}, capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    return int(run.stdout)


def test_default_is_the_least_limit():
    free = threads_in_a_new_process()
    assert 1 <= free <= os.cpu_count()
    assert threads_in_a_new_process(PYCONV_NUM_THREADS="1") == 1
    assert threads_in_a_new_process(OMP_NUM_THREADS="1") == 1
    assert threads_in_a_new_process(OMP_NUM_THREADS="1,4") == 1
    assert threads_in_a_new_process(PYCONV_NUM_THREADS="2", OMP_NUM_THREADS="1") == 1
    assert threads_in_a_new_process(PYCONV_NUM_THREADS="1000", OMP_NUM_THREADS="1000") == free
    assert threads_in_a_new_process(PYCONV_NUM_THREADS="", OMP_NUM_THREADS="") == free


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_affinity_limits_the_threads():
    pin = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    assert threads_in_a_new_process(pin) == 1


@needs_core
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_no_more_threads_than_set():
    """A process that may use one thread starts none."""
    code = """
import os, numpy as np, pyconv.nn.functional as F
alone = len(os.listdir("/proc/self/task"))
x, w = np.ones((4, 32, 34, 34), np.float32), np.ones((32, 32, 3, 3), np.float32)
F.conv2d(x, w)
print(len(os.listdir("/proc/self/task")) - alone)
"""
    for threads in (1, 2):
        variables = {**os.environ, "PYCONV_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=TIMEOUT, check=True)
        assert int(run.stdout) <= threads - 1


def test_an_empty_call_in_every_thread():
    """The first call of a thread may be one with nothing to do."""
    w = np.ones((3, 2, 2), np.float32)
    for y in in_threads(8, lambda number: F.conv1d(np.ones((number % 2, 2, 5), np.float32), w)):
        assert y.shape[1:] == (3, 4)
        assert (y == 4).all()
