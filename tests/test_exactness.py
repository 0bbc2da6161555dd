"""The last bits: the same for any thread count, batch and alignment; accuracy, subnormals, floating-point state."""

import contextlib
import ctypes
import ctypes.util
import platform
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import DTYPES, FACTOR, Case, build_case, check, fill, make_case, native, needs_core, relayout, setting

import pyconv

CONTROL_BITS = ~0x3F & 0xFFFF  # of MXCSR: all but the sticky exception flags
FLUSH_TO_ZERO, DENORMALS_ARE_ZERO, ROUND_DOWN = 0x8000, 0x0040, 0x2000
ACCURACIES = tuple(FACTOR)


@contextlib.contextmanager
def mxcsr(set_bits=0):
    """Set bits of the x86 control register, and give a function that reads it."""
    if platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
        pytest.skip("reads MXCSR through the C library of x86-64 Linux")
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    state = (ctypes.c_uint32 * 8)()  # fenv_t: seven words of the x87 unit, then MXCSR

    def read():
        libm.fegetenv(state)
        return state[7]

    before = read()
    state[7] = before | set_bits
    try:
        libm.fesetenv(state)
        yield read
    finally:
        state[7] = before
        libm.fesetenv(state)


def medium_case(dtype, seed=0, **arguments):
    """Enough work for several threads."""
    return make_case(np.random.default_rng(seed), (5, 24, 40, 41), (20, 12, 3, 3), dtype, groups=2, **arguments)


# ------------------------------------------------------------------------------------------------- the same bits


@needs_core
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_thread_count_and_batch(dtype):
    case = medium_case(dtype, stride=(1, 2), padding=2)
    expected = case.run()
    check(expected, case)
    for threads in (1, 2, 3, 4):
        with setting(threads=threads):
            for _ in range(5):
                np.testing.assert_array_equal(case.run(), expected)
            for first, last in ((0, 1), (4, 5), (1, 4), (3, 5)):
                part = case.with_arrays(x=case.x[first:last])
                np.testing.assert_array_equal(part.run(), expected[first:last])
            np.testing.assert_array_equal(case.with_arrays(x=case.x[2]).run(), expected[2])
            np.testing.assert_array_equal(case.with_arrays(x=case.x[::-1]).run(), expected[::-1])


@needs_core
def test_same_bits_for_1_to_64_threads():
    case = make_case(np.random.default_rng(5), (16, 24, 20, 21), (20, 12, 3, 3), np.float32, groups=2, padding=1)
    plain, layer = case.run(), case.module().eval()
    for threads in range(1, 65):
        with setting(threads=threads):
            np.testing.assert_array_equal(case.run(), plain)
            np.testing.assert_array_equal(layer(case.x), plain)


@needs_core
@given(data=st.data())
def test_same_bits_for_any_image_of_a_batch(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    case = build_case(lambda low, high: data.draw(st.integers(low, high)), dtype)
    batch = case.x if case.x.ndim == case.nd + 2 else case.x[None]
    other = fill(np.random.default_rng(0), (3, *batch.shape[1:]), dtype)
    place = data.draw(st.integers(0, 3))
    filled = np.concatenate([other[:place], batch[:1], other[place:]])
    alone = case.with_arrays(x=batch[:1]).run()
    np.testing.assert_array_equal(case.with_arrays(x=filled).run()[place], alone[0], err_msg=str(case))


@needs_core
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_alignment(dtype):
    case = make_case(np.random.default_rng(1), (1, 5, 11, 13), (7, 5, 3, 3), dtype, padding=1)
    expected = case.run()

    def shifted(a, offset):
        raw = np.empty(a.nbytes + 128, np.uint8)
        start = -raw.ctypes.data % 64 + offset
        view = raw[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
        view[...] = a
        return view

    for offset in range(64):
        moved = [shifted(a, (offset * factor) % 64) for a, factor in ((case.x, 1), (case.w, 3), (case.bias, 5))]
        np.testing.assert_array_equal(case.with_arrays(x=moved[0], w=moved[1], bias=moved[2]).run(), expected)
        np.testing.assert_array_equal(case.run(out=shifted(expected * np.nan, offset)), expected)


@needs_core
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_layout_and_for_the_layer(dtype):
    case = medium_case(dtype, padding=1)
    expected = case.run()
    for layout in ("fortran", "channels_last", "reversed", "sliced", "unaligned", "swapped"):
        moved = case.with_arrays(x=relayout(case.x, layout), w=relayout(case.w, layout), bias=case.bias)
        np.testing.assert_array_equal(moved.run(), expected, err_msg=layout)
    np.testing.assert_array_equal(case.module()(case.x), expected)
    np.testing.assert_array_equal(case.module().eval()(case.x), expected)


# ------------------------------------------------------------------------------------------------------ accuracy


@pytest.mark.parametrize("accuracy", ACCURACIES)
@given(data=st.data())
def test_error_bound_on_zero_mean_data(accuracy, data):
    dtype = data.draw(st.sampled_from(DTYPES))
    case = build_case(lambda low, high: data.draw(st.integers(low, high)), dtype)
    check(case.run(accuracy=accuracy), case, accuracy)
    check(case.module(accuracy=accuracy)(case.x), case, accuracy)
    with setting(accuracy=accuracy):
        check(case.run(), case, accuracy)


@pytest.mark.parametrize("accuracy", ACCURACIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_bound_on_long_sums(dtype, accuracy):
    """Over ten thousand terms: a sum in one piece would miss the bound on data of one sign."""
    rng = np.random.default_rng(2)
    case = make_case(rng, (1, 1300, 6, 7), (5, 1300, 3, 3), dtype)
    check(case.run(accuracy=accuracy), case, accuracy)
    case = case.with_arrays(x=np.abs(case.x), w=np.abs(case.w))
    check(case.run(accuracy=accuracy), case, factor=16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_bound_on_data_of_many_magnitudes(dtype):
    """The bound holds per output, not relative to the largest one."""
    rng = np.random.default_rng(3)
    case = make_case(rng, (2, 20, 12, 12), (9, 20, 3, 3), dtype, padding=1)
    scale = 10.0 ** rng.uniform(-8, 8, case.x.shape)
    case = case.with_arrays(x=(case.x * scale).astype(dtype))
    for accuracy in ACCURACIES:
        check(case.run(accuracy=accuracy), case, factor=16)


def test_setting_the_accuracy():
    before = pyconv.get_accuracy()
    try:
        for accuracy in ACCURACIES:
            pyconv.set_accuracy(accuracy)
            assert pyconv.get_accuracy() == accuracy
    finally:
        pyconv.set_accuracy(before)


# ---------------------------------------------------------------------------------------------------- subnormals


def subnormal_case(dtype):
    """Half of the input is subnormal, and every product of it, too."""
    rng = np.random.default_rng(4)
    case = make_case(rng, (1, 6, 10, 10), (5, 6, 3, 3), dtype, bias=False, padding=1)
    tiny = np.finfo(dtype).tiny
    x = case.x * tiny * np.where(rng.random(case.x.shape) < 0.5, 2.0**-6, 4).astype(dtype)
    w = np.round(case.w * 4) / 4
    assert (np.abs(x[x != 0]) < tiny).any()
    return Case(x.astype(dtype), w.astype(dtype), padding=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_keeps_subnormals(dtype):
    case = subnormal_case(dtype)
    check(case.run(accuracy="exact"), case, "exact")
    one = Case(case.x, np.eye(6, dtype=dtype).reshape(6, 6, 1, 1))
    np.testing.assert_array_equal(one.run(accuracy="exact"), case.x)
    np.testing.assert_array_equal(one.module(accuracy="exact")(case.x), case.x)
    with setting(accuracy="exact"):
        np.testing.assert_array_equal(one.run(), case.x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fast_loses_no_more_than_the_subnormals(dtype):
    """Each subnormal input is read as zero at worst: an error of tiny * |w| per tap, and tiny per sum."""
    case = subnormal_case(dtype)
    tiny = float(np.finfo(dtype).tiny)
    limit = tiny * (np.abs(native(case.w).astype(np.float64)).sum(axis=(1, 2, 3)) + 60).reshape(1, -1, 1, 1)
    error = np.abs(case.run(accuracy="fast").astype(np.float64) - case.expected()[0])
    assert (error <= limit + 16 * np.finfo(dtype).eps * case.expected()[1]).all()


@pytest.mark.parametrize("accuracy", ACCURACIES)
@pytest.mark.parametrize("threads", [1, 4])
def test_numpy_keeps_its_subnormals(accuracy, threads):
    """Before and after a call, in this thread and in another one."""
    smallest = np.full(64, np.finfo(np.float32).smallest_subnormal)
    seen = []

    def compute():
        with setting(threads=threads):
            medium_case(np.float32).run(accuracy=accuracy)
        seen.append(((smallest * np.float32(3)) / smallest).tolist())

    compute()
    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert seen == [[3.0] * 64] * 2


@pytest.mark.parametrize("bits", [0, FLUSH_TO_ZERO | DENORMALS_ARE_ZERO, ROUND_DOWN], ids=["default", "flush", "down"])
@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_floating_point_state_stays_as_it_was(accuracy, bits):
    case = medium_case(np.float32)
    case.run(accuracy=accuracy)  # what NumPy sets up in a first call is not ours
    with mxcsr(bits) as read:
        before = read() & CONTROL_BITS
        for threads in (1, 2):
            with setting(threads=threads):
                case.run(accuracy=accuracy)
                case.module().eval()(case.x)
            assert read() & CONTROL_BITS == before
    assert before & bits == bits


@needs_core
def test_exact_keeps_subnormals_even_where_the_caller_flushes_them():
    x = np.full((1, 1, 64), np.float32(1e-40))
    one = Case(x, np.ones((1, 1, 1), np.float32))
    bits = x.view(np.uint32).copy()
    with mxcsr(FLUSH_TO_ZERO | DENORMALS_ARE_ZERO):
        y = one.run(accuracy="exact")
    np.testing.assert_array_equal(y.view(np.uint32), bits)
