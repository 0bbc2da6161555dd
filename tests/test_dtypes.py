"""Number formats: conversions of every half-precision value, integers that wrap around, complex numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import CONV, build_case, convolve, needs_core, per_axis, rows, setting
from transposed import GRADIENTS, build_transposed

from pyconv import nn
from pyconv.nn import functional as F
from pyconv.plan import plan_for
from pyconv.problem import conv_problem

HALVES = ["float16", "bfloat16"]
INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
ISAS = sorted({isa for isa, *_ in rows()})


def half(kind):
    """The dtype, where there is one."""
    return np.dtype(kind) if kind == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


def every_value(dtype):
    return np.arange(1 << 16, dtype=np.uint16).view(dtype)


def scaled(x, factor, step, accuracy):
    """What a convolution with one tap makes of a row of numbers, read and written `step` apart."""
    room = np.zeros((1, 1, step * x.size), x.dtype)
    room[..., ::step] = x
    out = np.zeros_like(room)[..., ::step]
    F.conv1d(room[..., ::step], np.full((1, 1, 1), factor, x.dtype), out=out, accuracy=accuracy)
    return out[0, 0]


def assert_same_numbers(y, expected):
    """Equal, the sign of a zero aside, and NaN at the same places; zeros may have either sign."""
    with np.errstate(invalid="ignore"):  # arm64's instruction raises that flag for a signalling NaN
        wide = y.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_array_equal(*wide)


def without_tiny(x):
    """Values that are subnormal in single precision are flushed to zero by default."""
    return np.where(np.abs(x.astype(np.float32)) < np.finfo(np.float32).tiny, x.dtype.type(0), x)


@needs_core
@pytest.mark.parametrize("accuracy", ["fast", "exact"])
@pytest.mark.parametrize("step", [1, 2, 3, -1])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", HALVES)
def test_every_half_is_widened_and_narrowed(kind, isa, step, accuracy):
    """Through single precision and back each of the 65536 is itself, and a half's subnormals are never flushed."""
    x = every_value(half(kind))
    with setting(isa=isa):
        y = scaled(x, 1, step, accuracy) if step > 0 else scaled(x[::-1], 1, 1, accuracy)[::-1]
    assert_same_numbers(y, without_tiny(x) if (kind, accuracy) == ("bfloat16", "fast") else x)


@needs_core
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", HALVES)
def test_every_half_is_rounded_once_to_nearest_even(kind, isa):
    """Products of two halves are exact in single precision: ties, carries, subnormals, overflow on the way back."""
    x = every_value(half(kind))
    factors = [1 + 2.0**-7, 1 + 2.0**-10, 1.5, 1.25, 3, 0.1, -7.7, 2.0**-3, 2.0**-9, 2.0**-14, 5.3e-6, 999, 2.0**10]
    with setting(isa=isa), np.errstate(all="ignore"):
        for factor in factors:
            for step in (1, 3):
                expected = (x.astype(np.float32) * x.dtype.type(factor).astype(np.float32)).astype(x.dtype)
                assert_same_numbers(scaled(x, factor, step, "exact"), expected)


@needs_core
@pytest.mark.parametrize("width", [*range(1, 37), 64, 65])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", HALVES)
def test_depthwise_halves_are_rounded_single_precision(kind, isa, width):
    """To the bit, NaN and infinity included: rows as vectors, as pairs of them, in pieces, read beyond their ends."""
    rng = np.random.default_rng(width)
    x = rng.integers(0, 1 << 16, (2, 5, 6, width), dtype=np.uint16).view(half(kind))
    x[0] = rng.standard_normal(x[0].shape)
    for kernel, stride, padding in (((1, 1), 1, 0), ((1, 4), 1, (0, 3)), ((3, 3), 1, 1), ((3, 3), (2, 1), (1, 2))):
        w = rng.standard_normal((5, 1, *kernel)).astype(x.dtype)
        if width + 2 * per_axis(padding, 2)[1] < kernel[1]:
            continue
        with setting(isa=isa), np.errstate(all="ignore"):
            more = {"stride": stride, "padding": padding, "groups": 5, "accuracy": "exact"}
            wide = F.conv2d(x.astype(np.float32), w.astype(np.float32), **more)
            assert_same_numbers(F.conv2d(x, w, **more), wide.astype(x.dtype))


@needs_core
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", HALVES)
def test_sums_are_single_precision(kind, isa):
    """4097 ones are no half: summed as halves they would stop at 2048, or 256."""
    one = np.ones((1, 4097, 3), half(kind))
    with setting(isa=isa):
        y = F.conv1d(one, one[..., :1], np.float32([-4000]).astype(one.dtype))
    assert_same_numbers(y, np.full((1, 1, 3), np.float32(4097) - one.dtype.type(4000).astype(np.float32), one.dtype))


@needs_core
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_wrap_around(kind, isa):
    """Compiled and in NumPy: sums modulo two to the power of the number of bits."""
    rng, info = np.random.default_rng(0), np.iinfo(kind)
    for nd, x_shape, w_shape, arguments in (
        (1, (2, 9, 50), (7, 9, 5), {"stride": 2, "padding": 4}),
        (2, (1, 8, 9, 33), (20, 4, 3, 3), {"groups": 2, "padding": (1, 0)}),
        (2, (1, 300, 5, 5), (3, 300, 1, 1), {}),
        (3, (2, 2, 4, 5, 6), (5, 2, 3, 2, 1), {"dilation": (1, 2, 1)}),
    ):
        arrays = [
            rng.integers(info.min, info.max, shape, kind, endpoint=True) for shape in (x_shape, w_shape, w_shape[0])
        ]
        with setting(isa=isa):
            y = CONV[nd](*arrays, **arguments)
        assert y.dtype == kind
        np.testing.assert_array_equal(y, CONV[nd](*arrays, **arguments, algorithm="reference"))


FORMATS = [*HALVES, *INTEGERS, "complex64", "complex128"]
CALLS = ["convolution", "transposed", "input gradient", "weight gradient"]


def in_format(case, dtype):
    """The same call on numbers of a format that hypothesis' cases are not drawn in."""
    arrays = {"x": case.x, "w": case.w, "bias": case.bias}
    if dtype.kind == "c":
        arrays = {name: a if a is None else a + 1j * a[..., ::-1] for name, a in arrays.items()}
    return case.with_arrays(**{name: a if a is None else a.astype(dtype) for name, a in arrays.items()})


def gradient_call(case, kind):
    """One of the gradients of a case, as a function of the keyword arguments."""
    x = case.x if case.x.ndim == case.nd + 2 else case.x[None]
    dilation, kernel = per_axis(case.dilation, case.nd), case.w.shape[2:]
    padding = case.padding
    if isinstance(padding, str):  # torch's gradients take numbers only
        padding = [d * (k - 1) for d, k in zip(dilation, kernel)]
    arguments = {"stride": case.stride, "padding": padding, "dilation": dilation, "groups": case.groups}
    dy = CONV[case.nd](x, case.w, None, **arguments)
    of_input, of_weight = GRADIENTS[case.nd]
    if kind == "input gradient":
        return lambda **extra: of_input(x.shape, case.w, dy, **arguments, **extra)
    return lambda **extra: of_weight(x, case.w.shape, dy, **arguments, **extra)


@given(data=st.data())
@pytest.mark.parametrize("kind", FORMATS)
def test_any_call_is_what_numpy_makes_of_it(kind, data):
    """Random arguments in every format: compiled and reference path agree, exactly where numbers are whole."""
    dtype = half(kind) if kind in HALVES else np.dtype(kind)
    whole = dtype.kind in "iu"
    what = data.draw(st.sampled_from(CALLS))
    build = build_transposed if what == "transposed" else build_case
    case = build(lambda low, high: data.draw(st.integers(low, high)), dtype if whole else np.float32)
    case = case if whole else in_format(case, dtype)
    call = gradient_call(case, what) if what.endswith("gradient") else case.run
    y, expected = call(), call(algorithm="reference")
    assert y.dtype == expected.dtype == dtype
    if whole:
        np.testing.assert_array_equal(y, expected, err_msg=f"{what} {case}")
        return
    y, expected = (a.astype(np.complex128 if dtype.kind == "c" else np.float64) for a in (y, expected))
    unit = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "complex64": 2.0**-20, "complex128": 2.0**-49}[kind]
    size = np.abs(expected).max(initial=1)
    assert np.abs(y - expected).max(initial=0) <= unit * size, f"{what} {case}"


# ------------------------------------------------------------------------------------------------------ complex


def complex_numbers(rng, shape, kind):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(kind)


@pytest.mark.parametrize("kind", ["complex64", "complex128"])
def test_complex_numbers(kind):
    """Any view of x, with and without a batch, into any array; against the products written out."""
    rng = np.random.default_rng(1)
    eps = np.finfo(kind).eps
    for nd, x_shape, w_shape, arguments in (
        (1, (3, 6, 40), (8, 3, 4), {"groups": 2, "padding": 2, "dilation": 2}),
        (2, (8, 19, 23), (33, 8, 3, 3), {"stride": (2, 1), "padding": 1}),
        (2, (1, 64, 20, 21), (64, 64, 3, 3), {"padding": 1}),
        (2, (2, 40, 9, 9), (40, 1, 3, 3), {"groups": 40}),
        (3, (2, 2, 5, 6, 7), (3, 2, 2, 3, 2), {}),
    ):
        x, w, bias = (complex_numbers(rng, shape, kind) for shape in (x_shape, w_shape, w_shape[0]))
        expected, magnitude = convolve(x, w, bias, **arguments)
        out = np.empty((*expected.shape[:-1], 2 * expected.shape[-1]), kind)[..., ::2]
        for view, to in ((x, None), (np.asfortranarray(x), out), (x[..., ::-1].copy()[..., ::-1], out)):
            y = CONV[nd](view, w, bias, out=to, **arguments)
            assert y.dtype == kind
            assert (np.abs(y - expected) <= 16 * eps * (magnitude + 1)).all()


def test_complex_plans_add_a_residual():
    """Before anything is written, so that it may be y itself."""
    rng = np.random.default_rng(2)
    x, w, y = (complex_numbers(rng, shape, "complex64") for shape in ((2, 3, 7, 8), (4, 3, 3, 3), (2, 4, 5, 6)))
    expected = convolve(x, w)[0] + y
    plan = plan_for(conv_problem("conv2d", 2, x, w, 1, 0, 1, 1, "zeros", exact=False))
    plan.run(x, plan.pack(w, None), y, y)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_complex_infinities_follow_the_formula():
    """(inf + 1i) (2 + 3i): both parts are infinite, since a product with a finite part stays out of it."""
    x, w = np.full((1, 1, 1), complex(np.inf, 1), "complex64"), np.full((1, 1, 1), 2 + 3j, "complex64")
    (y,) = F.conv1d(x, w).ravel()
    assert (y.real, y.imag) == (np.inf, np.inf)
    (y,) = F.conv1d(x, np.full((1, 1, 1), 2 + 0j, "complex64")).ravel()
    assert y.real == np.inf
    assert np.isnan(y.imag)


# ------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("kind", [*HALVES, "complex64"])
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_layers_of_any_format(layer, kind):
    """Drawn, trained, frozen, saved and loaded: parameters and results have the layer's dtype."""
    dtype = half(kind) if kind in HALVES else np.dtype(kind)
    conv = layer(8, 16, 3, padding=1, stride=2, dtype=dtype)
    wide = layer(8, 16, 3, padding=1, stride=2, dtype="complex64" if kind == "complex64" else "float32")
    assert conv.weight.dtype == conv.bias.dtype == dtype
    assert np.abs(conv.weight.astype(wide.weight.dtype)).max() > 0.05
    for name, array in conv.state_dict().items():
        getattr(wide, name)[...] = array
    x = np.random.default_rng(0).standard_normal((2, 8, 9, 9)).astype(dtype)
    y = conv(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(wide.weight.dtype), wide(x.astype(wide.weight.dtype)), rtol=1e-2, atol=1e-2)
    np.testing.assert_array_equal(conv.eval()(x), y)
    other = layer(8, 16, 3, padding=1, stride=2, dtype=dtype)
    other.load_state_dict(conv.state_dict())
    np.testing.assert_array_equal(other(x), y)
