"""pyconv.quantized: against the definitions written out in int64 and float64, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import LAYOUTS, build_case, convolve, relayout, rows, setting

from pyconv import config, plan, quantized
from pyconv.quantized import conv_integer, qlinear_conv

ISAS = [*sorted({isa for isa, *_ in rows()}), config.REFERENCE]
PROBLEMS = [
    ((2, 6, 40), (8, 3, 5), {"groups": 2, "padding": 4, "dilation": 2}),
    ((1, 5, 19, 23), (33, 5, 3, 3), {"stride": (2, 1), "padding": 1}),
    ((5, 9, 8), (4, 5, 3, 2), {"padding": "same"}),
    ((2, 40, 9, 9), (40, 1, 3, 3), {"groups": 40, "padding": (2, 0)}),
    ((1, 1100, 3, 4), (7, 1100, 1, 1), {}),
    ((1, 2, 5, 6, 7), (3, 2, 2, 3, 2), {"padding": 1}),
]


def whole_numbers(rng, shape, dtype):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


@pytest.fixture
def on_isa(isa, monkeypatch):
    """The calls of a test run on this instruction set, or on the reference path."""
    if isa == config.REFERENCE:
        monkeypatch.setattr(quantized, "plan_for", lambda problem: plan.plan_for(problem, config.REFERENCE))
    with setting(isa=None if isa == config.REFERENCE else isa):
        yield


def expected_sums(x, w, x_zero, w_zero, padding=0, **arguments):
    """Zero points taken off first, then padded with zeros: ONNX's definition."""
    w_zero = np.reshape(np.asarray(w_zero, np.int64), (-1, *[1] * (w.ndim - 1)))
    return convolve(x.astype(np.int64) - x_zero, w.astype(np.int64) - w_zero, padding=padding, **arguments)[0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("w_kind", ["int8", "uint8"])
@pytest.mark.parametrize("x_kind", ["int8", "uint8"])
@pytest.mark.usefixtures("on_isa")
def test_conv_integer(x_kind, w_kind):
    rng = np.random.default_rng(0)
    for x_shape, w_shape, arguments in PROBLEMS:
        x, w = whole_numbers(rng, x_shape, x_kind), whole_numbers(rng, w_shape, w_kind)
        of_channels = whole_numbers(rng, w_shape[0], w_kind)
        for x_zero, w_zero in (
            (0, 0),
            (np.iinfo(x_kind).max, w.flat[0]),
            (x.flat[0], of_channels),
            (x[:1].flat[:1], 5),
        ):
            y = conv_integer(x, w, x_zero, w_zero, **arguments)
            assert y.dtype == np.int32
            np.testing.assert_array_equal(y, expected_sums(x, w, np.int64(x_zero), w_zero, **arguments))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("y_kind", ["int8", "uint8"])
@pytest.mark.usefixtures("on_isa")
def test_qlinear_conv(y_kind):
    """One scale or one per channel; results on both sides of what the type holds, and ties."""
    rng = np.random.default_rng(1)
    limits = np.iinfo(y_kind)
    for x_shape, w_shape, arguments in PROBLEMS:
        x, w = whole_numbers(rng, x_shape, "uint8"), whole_numbers(rng, w_shape, "int8")
        bias = rng.integers(-9999, 9999, w_shape[0], np.int32)
        column = (-1, *[1] * (w.ndim - 2))
        for w_scale, y_zero in ((0.5, 3), (rng.uniform(0.001, 0.1, w_shape[0]).astype(np.float32), -3)):
            zero = np.array(y_zero).astype(y_kind)
            sums = expected_sums(x, w, 100, 7, **arguments) + bias.reshape(column).astype(np.int64)
            real = sums * (0.25 * np.asarray(w_scale, np.float64) / 2).reshape(column)
            expected = np.clip(np.rint(real) + zero, limits.min, limits.max)
            y = qlinear_conv(x, 0.25, 100, w, w_scale, 7, 2.0, zero, bias, **arguments)
            assert y.dtype == y_kind
            np.testing.assert_array_equal(y, expected)


@given(data=st.data(), kinds=st.tuples(*[st.sampled_from(["int8", "uint8"])] * 3), layout=st.sampled_from(LAYOUTS))
def test_any_parameters(data, kinds, layout):
    """Both functions on random geometry, types, zero points, scales and layouts of x."""
    x_kind, w_kind, y_kind = kinds
    case = build_case(lambda low, high: data.draw(st.integers(low, high)), np.dtype(x_kind))
    rng = np.random.default_rng(case.seed)
    x, w = relayout(case.x, layout), whole_numbers(rng, case.w.shape, w_kind)
    per_channel = data.draw(st.booleans())
    x_zero, w_zero = whole_numbers(rng, (), x_kind), whole_numbers(rng, len(w) if per_channel else (), w_kind)
    geometry = {name: getattr(case, name) for name in ("stride", "padding", "dilation", "groups")}
    sums = expected_sums(x, w, np.int64(x_zero), w_zero, **geometry)
    y = conv_integer(x, w, x_zero, w_zero, **geometry)
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, sums, err_msg=str(case))
    bias = None if case.bias is None else rng.integers(-9999, 9999, len(w), np.int32)
    w_scale, y_zero = rng.uniform(0.001, 0.1, len(w) if per_channel else ()), whole_numbers(rng, (), y_kind)
    column = (-1, *[1] * case.nd)
    real = sums if bias is None else sums + bias.astype(np.int64).reshape(column)
    real = np.rint(real * (0.25 * np.asarray(w_scale) / 2).reshape(column)) + y_zero
    limits = np.iinfo(y_kind)
    y = qlinear_conv(x, 0.25, x_zero, w, w_scale, w_zero, 2.0, y_zero, bias, **geometry)
    assert y.dtype == y_kind
    np.testing.assert_array_equal(y, np.clip(real, limits.min, limits.max), err_msg=str(case))


def test_ties_go_to_even_before_the_zero_point():
    x = np.uint8([[[1, 3, 5, 7, 255]]])
    y = qlinear_conv(x, 0.5, 0, np.int8([[[1]]]), 1.0, 0, 1.0, np.uint8(1))
    assert y.ravel().tolist() == [1, 3, 3, 5, 129]
    y = qlinear_conv(x, 0.5, 0, np.int8([[[-1]]]), 1.0, 0, 1.0, np.int8(0))
    assert y.ravel().tolist() == [0, -2, -2, -4, -128]


def test_sums_wrap_around_at_32_bits():
    x, w = np.full((1, 40000, 1), 255, np.uint8), np.full((1, 40000, 1), 255, np.uint8)
    assert conv_integer(x, w).item() == np.int64(255 * 255 * 40000).astype(np.int32)


def test_arguments_stay_as_they_were_and_results_are_new():
    x, w = np.ones((1, 2, 4), np.uint8), np.ones((3, 2, 2), np.int8)
    x.flags.writeable = w.flags.writeable = False
    y = conv_integer(x[..., ::-1], w, 1, np.int8([0, 1, 2]), padding=1)
    assert y.flags.writeable
    assert y.flags.c_contiguous
    assert conv_integer(x[:0], w).shape == (0, 3, 3)


X, W = np.zeros((1, 2, 5), np.uint8), np.zeros((3, 2, 2), np.int8)


@pytest.mark.parametrize(
    ("kind", "argument", "arguments"),
    [
        (TypeError, "x", {"x": X.astype(np.int16)}),
        (TypeError, "x", {"x": X.tolist()}),
        (TypeError, "w", {"w": W.astype(np.float32)}),
        (ValueError, "x", {"x": X[0, 0]}),
        (ValueError, "w", {"w": W[0]}),
        (ValueError, "x_zero_point", {"x_zero_point": 256}),
        (ValueError, "x_zero_point", {"x_zero_point": -1}),
        (ValueError, "x_zero_point", {"x_zero_point": np.uint8([1, 2, 3])}),
        (TypeError, "x_zero_point", {"x_zero_point": 1.0}),
        (TypeError, "x_zero_point", {"x_zero_point": True}),
        (ValueError, "w_zero_point", {"w_zero_point": 128}),
        (ValueError, "w_zero_point", {"w_zero_point": np.int8([1, 2])}),
        (TypeError, "w_zero_point", {"w_zero_point": None}),
        (ValueError, "stride", {"stride": 0}),
        (TypeError, "dilation", {"dilation": 1.5}),
        (ValueError, "groups", {"groups": 2}),
        (ValueError, "x", {"x": X[:, :1]}),
        (ValueError, "x", {"x": X[..., :0]}),
        (ValueError, "w", {"w": W[..., :0]}),
        (ValueError, "w", {"w": W[:0]}),
        (ValueError, "w", {"dilation": 5}),
        (ValueError, "padding", {"padding": 2**62}),
    ],
)
def test_what_conv_integer_refuses(kind, argument, arguments):
    with pytest.raises(kind, match=f"conv_integer: argument '{argument}' "):
        conv_integer(**{"x": X, "w": W, **arguments})


@pytest.mark.parametrize(
    ("kind", "argument", "value"),
    [
        (ValueError, "x_scale", 0.0),
        (ValueError, "x_scale", np.float32([1, 2, 3])),
        (TypeError, "x_scale", 1),
        (ValueError, "w_scale", np.float32([1, -2, 3])),
        (ValueError, "w_scale", np.float32([1, 2])),
        (ValueError, "y_scale", float("nan")),
        (TypeError, "y_zero_point", np.int32(1)),
        (ValueError, "y_zero_point", 300),
        (TypeError, "bias", np.zeros(3, np.int64)),
        (ValueError, "bias", np.zeros(2, np.int32)),
    ],
)
def test_what_qlinear_conv_refuses(kind, argument, value):
    arguments = {"x": X, "x_scale": 1.0, "x_zero_point": 0, "w": W, "w_scale": 1.0, "w_zero_point": 0}
    arguments |= {"y_scale": 1.0, "y_zero_point": 0, argument: value}
    with pytest.raises(kind, match=f"qlinear_conv: argument '{argument}' "):
        qlinear_conv(**arguments)
