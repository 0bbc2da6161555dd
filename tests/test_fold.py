"""F.unfold, F.fold and their layers: against torch, against loops, and as each other's adjoint."""

import copy
import itertools
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import LAYOUTS, native, relayout

from pyconv import nn
from pyconv.nn import functional as F


@st.composite
def geometries(draw):
    """Shape of an image, and the arguments of unfold for it."""
    kernel, dilation, padding, stride = (
        tuple(draw(st.integers(low, high)) for _ in range(2)) for low, high in ((1, 4), (1, 3), (0, 5), (1, 4))
    )
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding)]
    size = [n + draw(st.integers(0, 6)) for n in least]
    if draw(st.integers(0, 3)) == 0:  # patches that tile the image
        dilation, padding, stride = (1, 1), (0, 0), kernel
        size = [k * draw(st.integers(1, 4)) for k in kernel]
    batch = draw(st.sampled_from([(), (1,), (3,), (0,)]))
    arguments = {"kernel_size": kernel, "dilation": dilation, "padding": padding, "stride": stride}
    named = {name: v[0] if v[0] == v[1] and draw(st.booleans()) else v for name, v in arguments.items()}
    return (*batch, draw(st.integers(1, 3)), *size), named


def both(value):
    return value if isinstance(value, tuple) else (value, value)


def unfolded(x, kernel_size, dilation=1, padding=0, stride=1):
    """The definition, window by window."""
    (kh, kw), (dh, dw), (ph, pw), (sh, sw) = map(both, (kernel_size, dilation, padding, stride))
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(ph, ph), (pw, pw)])
    windows = [
        padded[..., top : top + dh * (kh - 1) + 1 : dh, left : left + dw * (kw - 1) + 1 : dw]
        for top in range(0, padded.shape[-2] - dh * (kh - 1), sh)
        for left in range(0, padded.shape[-1] - dw * (kw - 1), sw)
    ]
    return np.stack([w.reshape(*x.shape[:-3], -1) for w in windows], axis=-1) if x.size else None


@given(geometry=geometries(), layout=st.sampled_from(LAYOUTS), dtype=st.sampled_from(["f2", "f4", "f8", "c8", "i2"]))
def test_unfold_is_the_definition(geometry, layout, dtype):
    shape, arguments = geometry
    x = np.random.default_rng(1).integers(-99, 99, shape).astype(dtype)
    x = relayout(x, layout)
    before = native(x)
    y = F.unfold(x, **arguments)
    assert y.dtype == native(x).dtype
    assert y.flags.c_contiguous
    assert y.flags.writeable
    np.testing.assert_array_equal(native(x), before)
    if x.size:
        np.testing.assert_array_equal(y, unfolded(before, **arguments))
    assert y.shape[:-2] == shape[:-3]
    assert y.shape[-2] == shape[-3] * np.prod([both(arguments["kernel_size"])])


@given(geometry=geometries(), layout=st.sampled_from(LAYOUTS))
def test_fold_is_the_adjoint(geometry, layout):
    """<unfold(x), c> = <x, fold(c)> for whole numbers, which are exact."""
    shape, arguments = geometry
    rng = np.random.default_rng(2)
    x = rng.integers(-9, 9, shape).astype(np.float64)
    of_x = F.unfold(x, **arguments)
    columns = native(relayout(rng.integers(-9, 9, of_x.shape).astype(np.float64), layout))
    folded = F.fold(columns, shape[-2:], **arguments)
    assert folded.shape == shape
    assert (of_x * columns).sum() == (x * folded).sum()


@given(geometry=geometries())
def test_fold_counts_the_windows(geometry):
    shape, arguments = geometry
    ones = F.unfold(np.ones(shape, np.int64), **arguments)
    counts = F.fold(ones, shape[-2:], **arguments)
    taps = itertools.product(*(range(k) for k in both(arguments["kernel_size"])))
    expected = np.zeros(shape[-2:], np.int64)
    (dh, dw), (ph, pw), (sh, sw) = (both(arguments[name]) for name in ("dilation", "padding", "stride"))
    rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(
        shape[-2:], (ph, pw), (dh, dw), both(arguments["kernel_size"]), (sh, sw)
    ))  # fmt: skip
    for kh, kw in taps:
        for row, column in itertools.product(range(rows), range(columns)):
            i, j = row * sh - ph + kh * dh, column * sw - pw + kw * dw
            if 0 <= i < shape[-2] and 0 <= j < shape[-1]:
                expected[i, j] += 1
    np.testing.assert_array_equal(counts, np.broadcast_to(expected, shape))


@given(geometry=geometries(), dtype=st.sampled_from("float16 float32 float64 complex64 complex128 bool".split()))
def test_as_torch(geometry, dtype):
    torch = pytest.importorskip("torch")
    shape, arguments = geometry
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape)
    x = (x > 0.5) if dtype == "bool" else x.astype(dtype)
    y = F.unfold(x, **arguments)
    expected = torch.nn.functional.unfold(torch.from_numpy(x), **arguments).numpy()
    assert y.dtype == expected.dtype
    np.testing.assert_array_equal(y, expected)
    image = F.fold(y, shape[-2:], **arguments)
    expected = torch.nn.functional.fold(torch.from_numpy(y), shape[-2:], **arguments).numpy()
    assert image.dtype == expected.dtype
    if dtype == "bool":
        np.testing.assert_array_equal(image, expected)
    else:
        eps = float(np.finfo(dtype).eps)
        magnitude = F.fold(np.abs(y.astype(np.complex128)).real, shape[-2:], **arguments)
        assert (np.abs(image.astype(np.complex128) - expected) <= 16 * eps * magnitude).all()
    layer = nn.Unfold(**arguments)
    np.testing.assert_array_equal(layer(x), y)
    np.testing.assert_array_equal(nn.Fold(shape[-2:], **arguments)(y), image)


def test_bfloat16():
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    x = np.random.default_rng(4).standard_normal((2, 3, 9, 8)).astype(dtype)
    y = F.unfold(x, 3, padding=1)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(np.float32), F.unfold(x.astype(np.float32), 3, padding=1))
    single = F.fold(y.astype(np.float32), (9, 8), 3, padding=1)
    np.testing.assert_array_equal(F.fold(y, (9, 8), 3, padding=1).view("u2"), single.astype(dtype).view("u2"))


def test_halves_are_rounded_once():
    columns = np.random.default_rng(5).standard_normal((1, 25 * 4, 36)).astype(np.float16)
    exact = F.fold(columns.astype(np.float64), 10, 5)
    np.testing.assert_array_equal(F.fold(columns, 10, 5), exact.astype(np.float32).astype(np.float16))


def test_layers_are_layers():
    layer = nn.Fold([4, 5], [2, 2], stride=1)
    assert repr(layer) == "Fold(output_size=(4, 5), kernel_size=(2, 2), dilation=1, padding=0, stride=1)"
    assert repr(nn.Unfold(2, stride=(3, 1))) == "Unfold(kernel_size=2, dilation=1, padding=0, stride=(3, 1))"
    x = np.random.default_rng(6).standard_normal((1, 8, 12))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.eval()):
        np.testing.assert_array_equal(other(x), F.fold(x, (4, 5), 2))
    assert layer.state_dict() == {}
    layer.stride = (3, 3)
    with pytest.raises(ValueError, match=r"fold: argument 'input' must have 1 x 2 = 2 columns"):
        layer(x)


X = np.zeros((2, 3, 5, 6), np.float32)
Y = np.zeros((2, 12, 20), np.float32)
HOSTILE_SIZES = [
    (2.0, TypeError), (True, TypeError), ("2", TypeError), (None, TypeError), ((2, 2, 2), ValueError), ((), ValueError),
    (-1, ValueError), (-(2**63), ValueError), ((1, 2.0), TypeError),
]  # fmt: skip
REFUSED = [
    (lambda: F.unfold(X, 7), ValueError, "unfold", "kernel_size", "dilation 1 x (kernel 7 - 1) + 1 = 7 > 5"),
    (lambda: F.unfold(X, 2, 2**62), ValueError, "unfold", "kernel_size", f"{2**62 + 1} > 5, got (2, 2)"),
    (lambda: F.unfold(X, 2, 1, 2**60), ValueError, "unfold", "padding", f"below {2**60} positions"),
    (lambda: F.unfold(X, 2, 1, 2**40), ValueError, "unfold", "padding", "more positions than any memory"),
    (lambda: F.unfold(X[0, 0], 2), ValueError, "unfold", "input", "must have 3 dimensions, (C, H, W), or 4"),
    (lambda: F.unfold(X[:, :0], 2), ValueError, "unfold", "input", "must not have an empty axis but the batch"),
    (lambda: F.unfold(X[:, :, :0], 2), ValueError, "unfold", "input", "got 'shape (2, 3, 0, 6)'"),
    (lambda: F.unfold(X.tolist(), 2), TypeError, "unfold", "input", "must be a numpy.ndarray"),
    (lambda: F.unfold(np.ma.masked_array(X), 2), TypeError, "unfold", "input", "must not be masked"),
    (lambda: F.unfold(X.astype("M8[s]"), 2), TypeError, "unfold", "input", "must hold"),
    (lambda: F.fold(Y, (5, 7), 2), ValueError, "fold", "input", "must have 4 x 6 = 24 columns for output_size (5, 7)"),
    (lambda: F.fold(Y, (5, 6), 5), ValueError, "fold", "input", "must have rows for 5 x 5 taps: a multiple of 25"),
    (lambda: F.fold(Y, 1, 2), ValueError, "fold", "kernel_size", "= 2 > 1"),
    (lambda: F.fold(Y[0, 0], 5, 2), ValueError, "fold", "input", "must have 2 dimensions"),
    (lambda: F.fold(Y[:, :0], 5, 2), ValueError, "fold", "input", "must not have an empty axis"),
    (lambda: F.fold(Y[:, :4, :1], 2**31, 1, stride=2**32), ValueError, "fold", "output_size", "than any memory"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refusals(number):
    call, kind, function, argument, rule = REFUSED[number]
    with pytest.raises(kind, match=rf"^{function}: argument '{argument}' .*{re.escape(rule)}"):
        call()


@pytest.mark.parametrize("argument", ["kernel_size", "dilation", "padding", "stride", "output_size"])
def test_sizes_of_the_wrong_kind(argument):
    hostile = HOSTILE_SIZES if argument == "padding" else [(0, ValueError), *HOSTILE_SIZES]
    for value, kind in hostile:
        sizes = {"kernel_size": 2, argument: value}
        if argument != "output_size":
            with pytest.raises(kind, match=f"^unfold: argument '{argument}' "):
                F.unfold(X, **sizes)
            with pytest.raises(kind, match=f"^Unfold: argument '{argument}' "):
                nn.Unfold(**sizes)
        sizes = {"output_size": (5, 6), **sizes}
        with pytest.raises(kind, match=f"^fold: argument '{argument}' "):
            F.fold(Y, **sizes)
        with pytest.raises(kind, match=f"^Fold: argument '{argument}' "):
            nn.Fold(**sizes)


def test_an_empty_batch_costs_nothing():
    """Whatever the windows: 2**26 taps would take minutes."""
    assert F.unfold(np.empty((0, 1, 4, 4)), 2**13, padding=2**12).shape == (0, 2**26, 25)
    assert F.fold(np.empty((0, 2**26, 25)), 4, 2**13, padding=2**12).shape == (0, 1, 4, 4)
