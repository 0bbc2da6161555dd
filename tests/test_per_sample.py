"""Filters of each sample's own: each sample against the oracle, and torch.vmap; what does not fit is refused."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import CONV, LAYOUTS, Case, check, fill, native, random_case, relayout

from pyconv.nn import functional as F

DIMENSIONS = tuple(CONV)


def samples_of(case, count, of_samples):
    """A case's arrays, `count` samples of each; of the bias where `of_samples`."""
    rng = np.random.default_rng(case.seed)
    x = fill(rng, (count, *case.x.shape[-case.nd - 1 :]), case.x.dtype)
    w = fill(rng, (count, *case.w.shape), case.x.dtype)
    bias = case.bias
    if bias is not None and of_samples:
        bias = fill(rng, (count, *bias.shape), case.x.dtype)
    return x, w, bias


def geometry(case):
    return {"stride": case.stride, "padding": case.padding, "dilation": case.dilation, "groups": case.groups}


@given(
    seed=st.integers(0, 2**31), count=st.integers(0, 4), dtype=st.sampled_from(["f2", "f4", "f8", "i2", "i8"]),
    layout=st.sampled_from(LAYOUTS), bias=st.booleans(),
)  # fmt: skip
def test_each_sample_against_the_oracle(seed, count, dtype, layout, bias):
    case = random_case(np.random.default_rng(seed), np.dtype(dtype).type)
    x, w, b = samples_of(case, count, bias)
    if dtype[0] == "f" or layout != "sliced":  # which has NaN round it
        x, w = relayout(x, layout), relayout(w, layout)
    y = CONV[case.nd](x, w, b, **geometry(case))
    assert y.shape[0] == count
    assert y.flags.c_contiguous
    for i in range(count):
        of_one = b[i] if b is not None and b.ndim == 2 else b
        one = case.with_arrays(x=native(x[i : i + 1]), w=native(w[i]), bias=of_one)
        check(y[i : i + 1].copy(), one)


@pytest.mark.parametrize("nd", DIMENSIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_as_torch_vmap(nd, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(nd)
    x, w, b = (
        (rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if dtype == "complex64" else 0)).astype(dtype)
        for shape in ((3, 4, *[9] * nd), (3, 6, 2, *[3] * nd), (3, 6))
    )
    arguments = {"stride": 2, "padding": 1, "groups": 2}
    of_torch = getattr(torch.nn.functional, f"conv{nd}d")
    expected = torch.vmap(lambda *one: of_torch(*one, **arguments))(*map(torch.from_numpy, (x, w, b))).numpy()
    np.testing.assert_allclose(CONV[nd](x, w, b, **arguments), expected, rtol=0, atol=1e-4)


def test_large_layers_take_the_kernels_of_large_layers():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 64, 28, 28), np.float32), rng.standard_normal((2, 64, 64, 3, 3), np.float32)
    y = F.conv2d(x, w, padding=1)
    for i in range(2):
        check(y[i : i + 1].copy(), Case(x[i : i + 1], w[i], padding=1))


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("layout", ["plain", "channels_last", "reversed", "sliced", "unaligned"])
def test_out_and_residual(layout, accumulate):
    rng = np.random.default_rng(1)
    x, w, b = rng.standard_normal((3, 4, 8, 9)), rng.standard_normal((3, 6, 2, 3, 3)), rng.standard_normal((3, 6))
    before = rng.standard_normal((3, 6, 6, 7))
    plain = F.conv2d(x, w, b, groups=2)
    out = relayout(before, layout)
    if accumulate:
        assert F.conv2d(x, w, b, groups=2, out=out, accumulate=True) is out
    else:
        residual = relayout(before, "channels_last")
        assert F.conv2d(x, w, b, groups=2, out=out, residual=residual, activation="relu") is out
    total = plain + before
    np.testing.assert_allclose(out, total if accumulate else np.maximum(total, 0), rtol=0, atol=1e-12)
    sums = out.sum(axis=1, keepdims=True)
    F.conv2d(out, np.ones((3, 1, 6, 1, 1)), out=out[:, :1])
    np.testing.assert_allclose(out[:, :1], sums, rtol=0, atol=1e-12)


def test_options_reach_the_plan():
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((2, 3, 8)), rng.standard_normal((2, 5, 3, 3))
    y = F.conv1d(x, w, padding=((2, 1),), padding_mode="reflect", algorithm="reference", accuracy="exact")
    for i in range(2):
        one = F.conv1d(x[i], w[i], padding=((2, 1),), padding_mode="reflect")
        np.testing.assert_allclose(y[i], one, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"^conv1d: argument 'algorithm' must be one of"):
        F.conv1d(x, w, algorithm="nosuch")


def test_every_call_sees_the_weights():
    x, w, b = np.ones((2, 1, 3)), np.ones((2, 1, 1, 1)), np.zeros((2, 1))
    for value in (1, 2, 3):
        w[1], b[0] = value, -value
        np.testing.assert_array_equal(F.conv1d(x, w, b)[:, 0, 0], [1 - value, value])


X, W = np.zeros((2, 4, 6), np.float32), np.zeros((2, 6, 2, 3), np.float32)
REFUSED = [
    (X[:1], W, {}, "input", "must have a batch of weight.shape[0] = 2 samples, one for each set of filters, got"),
    (X[0], W, {}, "input", "must have a batch of weight.shape[0] = 2 samples"),
    (X, W[None], {}, "weight", "must have 3 dimensions, or 4 with filters for each sample, got 'shape (1, 2, 6,"),
    (X, W, {"groups": 1}, "input", "must have 2 channels (weight.shape[1] 2 x groups 1), got 4"),
    (X, W, {"groups": 4}, "groups", "must divide the 6 output channels, got 4"),
    (X, W[..., :0], {"groups": 2}, "weight", "must not have an empty kernel axis"),
    (X, W, {"groups": 2, "bias": np.zeros(5, "f4")}, "bias", "must have shape (6,) or (2, 6), one value per output"),
    (X, W, {"groups": 2, "bias": np.zeros((1, 6), "f4")}, "bias", "must have shape (6,) or (2, 6)"),
    (X, W[0], {"groups": 2, "bias": np.zeros((2, 6), "f4")}, "bias", "must have shape (6,), one value"),
    (X, W, {"groups": 2, "dilation": 3}, "weight", "must not exceed the padded input: dilation 3 x (kernel 3 - 1)"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refusals(number):
    x, w, arguments, argument, rule = REFUSED[number]
    with pytest.raises(ValueError, match=rf"^conv1d: argument '{argument}' {re.escape(rule)}"):
        F.conv1d(x, w, **arguments)


def test_transposed_ones_have_none():
    with pytest.raises(ValueError, match=r"^conv_transpose1d: argument 'weight' must have 3 dimensions, got"):
        F.conv_transpose1d(X, W)
