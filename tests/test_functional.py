"""What conv1d, conv2d and conv3d mean: any parameters, any array, against the oracle."""

import inspect
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import (
    CONV,
    DTYPES,
    LAYOUTS,
    MODULE,
    Case,
    build_case,
    check,
    convolve,
    fill,
    make_case,
    native,
    needs_core,
    relayout,
)

import pyconv

DIMENSIONS = (1, 2, 3)
SIZES = {1: (17,), 2: (9, 8), 3: (6, 5, 7)}


@st.composite
def cases(draw, **options):
    """A call with any parameters."""
    dtype = draw(st.sampled_from(DTYPES))
    return build_case(lambda low, high: draw(st.integers(low, high)), dtype, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("arrays")


def small_case(nd, dtype=np.float32, batch=(2,), seed=0, **arguments):
    """Four channels to six, a kernel of 3."""
    rng = np.random.default_rng(seed)
    return make_case(rng, (*batch, 4, *SIZES[nd]), (6, 4, *[3] * nd), dtype, **arguments)


# ---------------------------------------------------------------------------------------------- any parameters


@given(case=cases())
def test_any_parameters(case):
    check(case.run(), case)


@given(case=cases(modes=("zeros", "reflect", "replicate", "circular")), frozen=st.booleans())
def test_layers_with_any_parameters_and_padding_mode(case, frozen):
    layer = case.module()
    if frozen:
        layer.eval()
    check(layer(case.x), case)
    check(layer(case.x), case)  # from the weights that the first call packed


@given(case=cases(integers=True))
def test_whole_numbers_are_exact(case):
    np.testing.assert_array_equal(case.run(accuracy="exact"), case.expected()[0])


@given(case=cases(), layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 3))
def test_any_layout(folder, case, layouts):
    x, w = relayout(case.x, layouts[0], folder), relayout(case.w, layouts[1], folder)
    bias = None if case.bias is None else relayout(case.bias, layouts[2], folder)
    case = case.with_arrays(x=x, w=w, bias=bias)
    before = [None if a is None else (a.tobytes(), a.strides, a.flags.writeable) for a in (x, w, bias)]
    y = case.run()
    check(y, case)
    assert before == [None if a is None else (a.tobytes(), a.strides, a.flags.writeable) for a in (x, w, bias)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nd", DIMENSIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout(folder, layout, nd, dtype):
    case = small_case(nd, dtype, padding=1)
    case = case.with_arrays(x=relayout(case.x, layout, folder))
    check(case.module()(case.x), case)
    check(case.module().eval()(case.x), case)
    case = case.with_arrays(w=relayout(case.w, layout, folder), bias=relayout(case.bias, layout, folder))
    check(case.run(), case)
    check(case.run(algorithm="reference"), case)


@given(data=st.data(), nd=st.sampled_from(DIMENSIONS))
def test_windows_of_a_larger_array(data, nd):
    """Slices with any start and step, axes in any order: the kernels must follow the strides."""
    axes = data.draw(st.permutations(range(nd + 2)))
    steps = data.draw(st.lists(st.sampled_from([-3, -2, -1, 1, 2, 3]), min_size=nd + 2, max_size=nd + 2))
    shape = (2, 3, *[data.draw(st.integers(3, 9)) for _ in range(nd)])
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    roomy = np.full([3 * shape[axis] + 2 for axis in axes], np.nan, np.float32)
    view = np.transpose(roomy, np.argsort(axes))
    view = view[tuple(slice(1, 3 * n + 1) for n in shape)]
    view = view[tuple(slice(None, None, step) for step in steps)][tuple(slice(0, n) for n in shape)]
    assert view.shape == shape
    view[...] = fill(rng, shape, np.float32)
    case = Case(view, fill(rng, (4, 3, *[3] * nd), np.float32), stride=data.draw(st.integers(1, 2)), padding=1)
    check(case.run(), case)


# --------------------------------------------------------------------------------------------------- special cases


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nd", DIMENSIONS)
def test_unbatched_input_is_a_batch_of_one(nd, dtype):
    case = small_case(nd, dtype, batch=())
    y = case.run()
    check(y, case)
    assert y.ndim == nd + 1
    np.testing.assert_array_equal(y, case.with_arrays(x=case.x[None]).run()[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nd", DIMENSIONS)
def test_empty_batch(nd, dtype):
    case = small_case(nd, dtype, batch=(0,), stride=2, padding=1)
    y = case.run()
    assert y.shape == (0, *case.expected()[0].shape[1:])
    assert y.dtype == dtype
    assert case.module()(case.x).shape == y.shape
    assert case.module(algorithm="reference")(case.x).shape == y.shape


@pytest.mark.parametrize("algorithm", [None, "reference"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nd", DIMENSIONS)
def test_no_input_channels_leave_the_bias(nd, bias, algorithm):
    """torch loses the bias and gives zero output channels: the sum over nothing, plus the bias, is meant."""
    case = make_case(np.random.default_rng(3), (2, 0, *SIZES[nd]), (6, 0, *[3] * nd), np.float32, bias)
    np.testing.assert_array_equal(case.run(algorithm=algorithm), case.expected()[0])


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_padding_far_beyond_the_input(nd):
    """Most outputs lie wholly in the padding and are the bias."""
    case = small_case(nd, padding=20 if nd < 3 else 9, stride=2, dilation=3)
    y = case.run()
    check(y, case)
    corner = (slice(None), slice(None), *[0] * nd)
    np.testing.assert_array_equal(y[corner], np.broadcast_to(case.bias, (2, 6)))


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_same_padding_puts_the_odd_element_after(nd):
    x, w = np.zeros((1, 1, *SIZES[nd]), np.float32), np.zeros((1, 1, *[4] * nd), np.float32)
    x.flat[0] = 1
    w.flat[:] = np.arange(1, w.size + 1)
    y = CONV[nd](x, w, padding="same")
    assert y.shape == x.shape
    assert y.flat[0] == w[(0, 0, *[1] * nd)]  # one element of padding before, two after


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_cross_correlation_does_not_flip_the_kernel(nd):
    x = np.zeros((1, 1, *[3] * nd), np.float64)
    x[(0, 0, *[2] * nd)] = 1
    w = np.arange(3.0**nd).reshape(1, 1, *[3] * nd)
    assert CONV[nd](x, w).item() == w.flat[-1]


@pytest.mark.parametrize("kind", "bBhHiIlLqQeFD")
@pytest.mark.parametrize("nd", DIMENSIONS)
def test_other_number_types(nd, kind):
    """Half precision, whole and complex numbers: one type in, the same type out."""
    dtype, rng = np.dtype(kind), np.random.default_rng(1)
    x, w, bias = (rng.integers(0, 3, shape) for shape in ((2, 2, *SIZES[nd]), (4, 1, *[2] * nd), 4))
    if dtype.kind == "c":
        x, w = x * (1 - 2j), w * (2 + 1j)
    case = Case(x.astype(dtype), w.astype(dtype), bias.astype(dtype), stride=2, padding=1, groups=2)
    y = case.run()
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, case.expected()[0])


@given(case=cases())
def test_half_precision_rounds_once(case):
    """Sums are made in a wider type: only the result is rounded to half precision."""
    half = [None if a is None else (a / 4).astype(np.float16) for a in (case.x, case.w, case.bias)]
    case = case.with_arrays(x=half[0], w=half[1], bias=half[2])
    expected = case.expected()[0]
    y = case.run()
    assert y.dtype == np.float16
    limit = 2.0**-11 * (1 + 2.0**-8) * np.abs(expected) + 2.0**-18 * case.expected()[1] + 2.0**-24
    assert (np.abs(y.astype(np.float64) - expected) <= limit).all(), case


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_arguments_are_torchs_in_names_and_order(nd):
    parameters = inspect.signature(CONV[nd]).parameters
    assert list(parameters)[:7] == ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    assert [p.default for p in parameters.values()][2:7] == [None, 1, 0, 1, 1]
    assert CONV[nd] is getattr(pyconv, f"conv{nd}d")
    names = "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode device dtype".split()
    assert list(inspect.signature(MODULE[nd]).parameters)[: len(names)] == names
    case = small_case(nd)
    y = CONV[nd](bias=case.bias, groups=1, input=case.x, padding=[1] * nd, weight=case.w, dilation=1, stride=(1,))
    np.testing.assert_array_equal(y, CONV[nd](case.x, case.w, case.bias, 1, 1))


# --------------------------------------------------------------------------------------------- results and arguments


@pytest.mark.parametrize("dtype", [*DTYPES, np.float16, np.int64])
@pytest.mark.parametrize("nd", DIMENSIONS)
def test_result_is_fresh_contiguous_and_writable(nd, dtype):
    case = Case(*((a * 4).astype(dtype) for a in (lambda c: (c.x, c.w, c.bias))(small_case(nd))))
    one = Case(case.x, np.ones((4, 1, *[1] * nd), dtype), groups=4)  # the identity: no excuse to hand back the input
    for call in (case.run, one.run, lambda: case.module()(case.x) if dtype in DTYPES else case.run()):
        y, again = call(), call()
        assert y.flags.c_contiguous
        assert y.flags.writeable
        assert y.flags.owndata or y.base is not None
        assert not any(np.shares_memory(y, other) for other in (case.x, case.w, case.bias, one.w, again))
        kept = again.copy()
        y[...] = 0
        np.testing.assert_array_equal(again, kept)
        np.testing.assert_array_equal(call(), kept)


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_a_changed_weight_is_seen(nd):
    """Plans are kept between calls, weights are not."""
    case = small_case(nd)
    layer = case.module()
    for step in range(3):
        for array in (case.w, case.bias, layer.weight, layer.bias):
            array += step
        fresh = case.with_arrays()
        check(case.run(), fresh)
        check(layer(case.x), fresh)


# ---------------------------------------------------------------------------------------------------------- memory


@needs_core
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layout", ["channels_last", "reversed", "sliced", "broadcast", "fortran", "readonly", "unaligned"]
)
def test_views_are_read_where_they_lie(layout, dtype):
    """No copy of the input, nor of an array to write into."""
    rng = np.random.default_rng(5)
    case = make_case(rng, (2, 16, 160, 150), (3, 16, 3, 3), dtype, padding=1)
    case = case.with_arrays(x=relayout(case.x, layout))
    out = None if layout in ("broadcast", "readonly") else relayout(np.zeros((2, 3, 160, 150), dtype), layout)
    case.run(out=out)  # what is kept for later calls is no copy
    tracemalloc.start()
    try:
        case.run(out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    result = 2 * 3 * 160 * 150 * case.x.itemsize
    assert peak < (result if out is None or layout == "unaligned" else 0) + 100_000


LARGE_CALLS = [
    ("conv1d", (1, 64, 2_000_000), (40, 64, 9), {"stride": 64}),
    ("conv2d", (1, 16, 3000, 3000), (40, 16, 31, 31), {"stride": 61}),
    ("conv2d", (1, 2048, 30, 30), (64, 2048, 1, 1), {}),
    ("conv2d", (1, 4096, 40, 40), (4096, 1, 3, 3), {"groups": 4096, "stride": 3}),
    ("conv2d", (1, 3, 20, 400_000), (8, 3, 3, 3), {"stride": (1, 40)}),
    ("conv3d", (1, 8, 60, 60, 60), (33, 8, 5, 5, 5), {"stride": 3}),
]


@needs_core
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory in /proc")
@pytest.mark.parametrize(("name", "x_shape", "w_shape", "arguments"), LARGE_CALLS)
def test_memory_of_a_call_is_bounded(name, x_shape, w_shape, arguments):
    """Whatever the shape: 1 MiB and 2 MiB per thread, beside the result and the packed weights."""
    code = f"""
import numpy as np, pyconv
def peak():  # of this process alone; getrusage begins with what its parent had
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
x, w = np.broadcast_to(np.float32(1), {x_shape}), np.ones({w_shape}, np.float32)
call = pyconv.{name}
pyconv.conv2d(np.ones((1, 16, 64, 64), np.float32), np.ones((16, 16, 3, 3), np.float32))  # starts the threads
before = peak()
y = call(x, w, **{arguments})
assert (y == {int(np.prod(w_shape[1:]))}).all()
print(peak() - before - y.nbytes - 2 * w.nbytes, pyconv.get_num_threads())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    grown, threads = map(int, run.stdout.split())
    assert grown <= 2**20 + threads * 2**21 + 2**20  # a last MiB for stacks and the interpreter


# ------------------------------------------------------------------------------------------------------------- out=


@pytest.mark.parametrize("layout", ["plain", "fortran", "channels_last", "reversed", "sliced", "unaligned", "field"])
@given(case=cases())
def test_out_of_any_layout(layout, case):
    expected = case.run()
    out = relayout(np.full_like(expected, np.nan), layout)
    room = out.base if layout == "sliced" else None
    assert case.run(out=out) is out
    np.testing.assert_array_equal(out, expected, err_msg=str(case))
    if room is not None:  # what lies between its elements stays as it was
        assert np.isnan(room).sum() == room.size - out.size


def _overlaps(nd, dtype):
    """Calls whose out= shares memory with an argument: the case, and the array to write into."""
    shape = (2, 4, *SIZES[nd])
    room = fill(np.random.default_rng(7), int(np.prod(shape)) + 400, dtype)
    size = int(np.prod(shape))
    weight = fill(np.random.default_rng(8), (4, 4, *[1] * nd), dtype)
    for shift in (0, 1, 7, 300):
        x, out = room[:size].reshape(shape), room[shift : shift + size].reshape(shape)
        yield Case(x, weight), out
        yield Case(x[..., ::-1], weight), out
        yield Case(out, weight), x
    wide = room[: 4 * 4 * 3**nd].reshape(4, 4, *[3] * nd)
    image = fill(np.random.default_rng(9), shape, dtype)
    yield Case(image, wide, padding=1), room[:size].reshape(shape)
    yield Case(image, weight, room[10:14]), room[:size].reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nd", DIMENSIONS)
def test_out_that_overlaps_an_argument_is_handled_or_refused(nd, dtype):
    for number in range(sum(1 for _ in _overlaps(nd, dtype))):
        case, out = list(_overlaps(nd, dtype))[number]
        arrays = [a for a in (case.x, case.w, case.bias) if a is not None]
        before = [a.copy() for a in (*arrays, out)]
        case.expected()  # from the values before the call
        try:
            assert case.run(out=out) is out
        except ValueError as error:
            assert "'out'" in str(error)
            assert all(np.array_equal(a, b) for a, b in zip((*arrays, out), before))
        else:
            check(native(out), case)


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_out_that_does_not_fit_is_refused_and_left_alone(nd):
    case = small_case(nd, padding=1)
    y = case.run()
    locked = np.full_like(y, 7)
    locked.flags.writeable = False
    shapes = [y.shape[:-1], (*y.shape, 1), (1, *y.shape[1:]), y.shape[1:], (*y.shape[:-1], y.shape[-1] + 1)]
    unfit = [(np.full(shape, 7, np.float32), ValueError) for shape in shapes if shape != y.shape]
    unfit += [(np.full(y.shape, 7, dtype), TypeError) for dtype in ("f8", "f2", "i4", "c8", "?", "O")]
    unfit += [(locked, ValueError), (np.ma.masked_array(np.full_like(y, 7)), TypeError), (y.tolist(), TypeError)]
    unfit += [(3, TypeError), ("out", TypeError), ((y,), TypeError)]
    unfit += [(np.broadcast_to(np.full_like(y, 7)[..., :1], y.shape), ValueError)]
    for out, kind in unfit:
        before = np.array(out)
        with pytest.raises(kind, match=f"conv{nd}d: argument 'out'"):
            case.run(out=out)
        assert np.array_equal(np.array(out), before)


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_oracle_by_hand(nd):
    """The oracle itself on a case that can be summed by hand: ones under a kernel of ones count the taps."""
    x, w = np.ones((1, 2, *[3] * nd)), np.ones((1, 2, *[3] * nd))
    y, magnitude = convolve(x, w, padding=1)
    assert y[(0, 0, *[1] * nd)] == 2 * 3**nd == magnitude.max()
    assert y.flat[0] == 2 * 2**nd
