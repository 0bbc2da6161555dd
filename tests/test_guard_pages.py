"""No byte beyond an array is read or written: every buffer ends, or begins, at a page that must not be touched.

Sanitizers miss masked and tile loads of hand-written SIMD code; a protected page does not. Each row of the kernel table
runs in a process of its own, since a wrong access ends it.
"""

import contextlib
import ctypes
import faulthandler
import mmap
import subprocess
import sys

import numpy as np
import pytest
from oracle import KINDS, make_case, needs_core, random_case, rows, setting, takes_nothing

CASES = 40  # random ones, per row, place and process
ROWS = [*rows(), ("", "reference", "float32")]
PLACES = ("end", "start")


@contextlib.contextmanager
def guarded(shape, dtype, place):
    """An array whose last byte (or first) lies beside a page that neither reads nor writes may touch."""
    page, dtype = mmap.PAGESIZE, np.dtype(dtype)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    room = max(-(-nbytes // page), 1) * page
    memory = mmap.mmap(-1, room + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for edge in (address, address + page + room):
        assert protect(edge, page, 0) == 0, ctypes.get_errno()  # PROT_NONE
    start = page if place == "start" else page + room - nbytes
    array = np.frombuffer(memory, dtype, int(np.prod(shape)), start).reshape(shape)
    try:
        yield array
    finally:
        for edge in (address, address + page + room):
            protect(edge, page, mmap.PROT_READ | mmap.PROT_WRITE)


def compute(case, **extra):
    """By the function, or, for what only layers have arguments for, by the layer."""
    return case.run(**extra) if case.padding_mode == "zeros" else case.module(**extra).eval()(case.x)


def run_guarded(case, place, **extra):
    """The case's result from, and into, guarded arrays; the output held NaN before."""
    expected = compute(case, **extra)  # test_kernels.py compares such results with the oracle
    assert np.isfinite(expected).all()
    with contextlib.ExitStack() as stack:

        def guard(a):
            inside = stack.enter_context(guarded(a.shape, a.dtype, place))
            inside[...] = a
            return inside

        bias = None if case.bias is None else guard(case.bias)
        inside = case.with_arrays(x=guard(case.x), w=guard(case.w), bias=bias)
        np.testing.assert_array_equal(compute(inside, **extra), expected, err_msg=str(case))
        backwards = inside.with_arrays(x=guard(case.x[..., ::-1])[..., ::-1])
        np.testing.assert_array_equal(compute(backwards, **extra), expected, err_msg=str(case))
        if case.padding_mode == "zeros":
            out = guard(np.full_like(expected, np.nan if expected.dtype.kind == "f" else 77))
            assert inside.run(out=out, **extra) is out
            np.testing.assert_array_equal(out, expected, err_msg=str(case))


def fixed_cases(dtype):
    """Sizes around the widths of vectors and tiles: each remainder once."""
    rng = np.random.default_rng(0)
    for n in range(1, 36):
        yield make_case(rng, (1, 3, n), (n, 3, 1), dtype)
        yield make_case(rng, (1, n, 5, n), (5, n, 1, 1), dtype)
        yield make_case(rng, (2, 2, 3, n + 2), (n, 2, 3, 3), dtype, bool(n % 2), padding=(1, 0))
        yield make_case(rng, (1, n, 1, 2 * n), (n, 1, 1, 2), dtype, stride=(1, 2), groups=n)
    yield make_case(rng, (1, 140, 7, 9), (31, 140, 3, 3), dtype, padding=1)
    yield make_case(rng, (1, 300, 3, 3), (3, 300, 3, 3), dtype)
    mode = "replicate" if np.dtype(dtype).kind == "f" else "zeros"  # rows above the image that are read again
    for n in range(3, 40, 3):
        yield make_case(rng, (1, 83, 3, n), (8, 83, 1, 1), dtype, padding=(1, 0), stride=(1, 2), padding_mode=mode)
        yield make_case(rng, (1, 3, 9, 2 * n), (17, 3, 4, 4), dtype, stride=(2, 3 + n % 3), padding=n % 3)
    for n in (16, 18, 19, 33):
        yield make_case(rng, (1, 64, n, n + 1), (64 + n % 3, 64, 3, 3), dtype, padding=n % 2)
        yield make_case(rng, (1, 90, 2 * n + 1), (80 + n, 90, 3), dtype, padding=n % 3, dilation=1 + n % 3)
        yield make_case(rng, (1, 40, 7, n), (70 + n % 3, 40, 3, 3), dtype, padding=1, stride=(1 + n % 2, 1))
        yield make_case(rng, (2, 20, 3, 4, n), (80, 20, 3, 2, 3), dtype, padding=n % 2)


def main(isa, algorithm, kind, place):
    """Run one row's cases: what the child process does."""
    faulthandler.enable()
    dtype = np.dtype(kind).type
    rng = np.random.default_rng(len(algorithm))
    modes = ("zeros", "zeros", "reflect", "replicate", "circular")
    modes = modes if np.dtype(kind).kind == "f" else ("zeros",)  # the others are the layers', which hold no integers
    ran = 0
    with setting(isa=isa or None):
        for case in (*fixed_cases(dtype), *(random_case(rng, dtype, modes=modes) for _ in range(CASES))):
            try:
                compute(case, algorithm=algorithm)
            except ValueError as error:
                if "algorithm" not in str(error):
                    raise
                continue  # not a problem for this algorithm
            run_guarded(case, place, algorithm=algorithm)
            ran += 1
    print(f"{ran} cases")


def child(*arguments):
    """This file in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


posix = pytest.mark.skipif(not hasattr(mmap, "PROT_READ"), reason="needs mprotect")


@posix
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(part for part in row if part))
def test_row_stays_inside_its_arrays(row, place):
    run = child(*row, place)
    assert run.returncode == 0, f"exit code {run.returncode}\n{run.stdout[-500:]}\n{run.stderr[-4000:]}"
    assert (int(run.stdout.split()[0]) == 0) == takes_nothing(row), run.stdout


@posix
@pytest.mark.parametrize("place", PLACES)
def test_a_guard_page_is_deadly(place):
    """The test of the test: one element too far ends the process."""
    run = child("", "trespass", "float32", place)
    assert run.returncode != 0
    assert "0 bytes too far: fine" in run.stdout
    assert "survived" not in run.stdout


def trespass(place):
    """Read the first and last element of a guarded array, then the one beyond."""
    with guarded((5, 3), np.float32, place) as array:
        array[...] = 1
        step = array.nbytes if place == "end" else -4
        print("0 bytes too far: fine", array.sum(), flush=True)
        print("survived", ctypes.c_float.from_address(array.ctypes.data + step).value, flush=True)


@needs_core
def test_all_rows_are_listed():
    assert {row[2] for row in ROWS} == set(KINDS)
    assert len(ROWS) == len(rows()) + 1


if __name__ == "__main__":
    if sys.argv[2] == "trespass":
        trespass(sys.argv[4])
    else:
        main(*sys.argv[1:])
