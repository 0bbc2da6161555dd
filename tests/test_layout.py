"""How new results lie in memory: channels-last where torch's are."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import CONV, LAYOUTS, MODULE, fill, make_case, relayout
from transposed import LAYERS, TRANSPOSED, make_transposed

from pyconv import nn
from pyconv.nn import functional as F
from pyconv.result import is_channels_last

DIMENSIONS = (1, 2, 3)
# (n, c, k, size, kernel): ambiguous ones, with axes of length 1, among them.
SHAPES = list(itertools.product((1, 2), (1, 3), (1, 4), (1, 3, 5), (1, 3)))


def channels_last(a):
    return relayout(a, "channels_last")


def steps(array):
    """Strides in elements; 0 where there is one element, whose stride means nothing."""
    return tuple(s // array.itemsize if n > 1 else 0 for s, n in zip(array.strides, array.shape))


def in_layout(a, last):
    return channels_last(a) if last else a


@pytest.mark.parametrize(("n", "c", "k", "size", "kernel"), SHAPES)
def test_two_dimensional_results_lie_as_torchs(n, c, k, size, kernel):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, w = fill(rng, (n, c, size, size), np.float32), fill(rng, (k, c, kernel, kernel), np.float32)
    for x_last, w_last in itertools.product((False, True), repeat=2):
        a, b = in_layout(x, x_last), in_layout(w, w_last)
        t = in_layout(w.swapaxes(0, 1).copy(), w_last)
        for function, theirs, weight in (
            (F.conv2d, torch.nn.functional.conv2d, b),
            (F.conv_transpose2d, torch.nn.functional.conv_transpose2d, t),
        ):
            if function is F.conv2d and size < kernel:
                continue
            # from_numpy keeps the strides, those of axes of length 1 too.
            expected = theirs(torch.from_numpy(a), torch.from_numpy(weight)).numpy()
            y = function(a, weight)
            assert steps(y) == steps(expected)
            np.testing.assert_allclose(y, expected, atol=1e-4)
            assert y.flags.writeable


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("n", [1, 2])
def test_the_rule_is_torchs(n, c, size):
    torch = pytest.importorskip("torch")
    for nd, order in ((2, torch.channels_last), (3, torch.channels_last_3d)):
        shape = (n, c, *[size] * nd)
        for axes in itertools.permutations(range(nd + 2)):
            a = np.zeros([shape[axis] for axis in axes], np.float32).transpose(np.argsort(axes))
            for view in (a, a[:, :, ::2], a[..., ::2], np.broadcast_to(a[:, :1], shape), a[0][None], a[:, :1]):
                strides = [s // 4 for s in view.strides]
                theirs = torch.as_strided(torch.zeros(a.size), view.shape, strides)
                expected = torch._prims_common.suggest_memory_format(theirs) == order
                assert is_channels_last(view, nd) == expected, (view.shape, view.strides)


def test_reversed_and_empty_arrays_are_not_channels_last():
    a = channels_last(np.zeros((2, 3, 4, 5)))
    assert is_channels_last(a, 2)
    for view in (a[:, ::-1], a[..., ::-1], a[::-1], a[:0], a[:, :0]):
        assert not is_channels_last(view, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32, np.complex64])
@pytest.mark.parametrize("nd", [2, 3])
def test_channels_last_in_channels_last_out(nd, dtype):
    rng = np.random.default_rng(1)
    x, w = fill(rng, (2, 4, *[6] * nd), np.int32) % 5, fill(rng, (3, 4, *[3] * nd), np.int32) % 5
    x, w = x.astype(dtype), w.astype(dtype)
    t = w.swapaxes(0, 1).copy()
    for function, weight in ((CONV[nd], w), (TRANSPOSED[nd], t)):
        expected = function(x, weight)
        assert expected.flags.c_contiguous
        for a, b in ((channels_last(x), weight), (x, channels_last(weight)), (channels_last(x), channels_last(weight))):
            y = function(a, b)
            assert np.moveaxis(y, 1, -1).flags.c_contiguous
            np.testing.assert_array_equal(y, expected)
            out = np.empty_like(expected, order="C")
            assert function(a, b, out=out) is out
            np.testing.assert_array_equal(out, expected)
            residual = np.ones_like(expected, order="C")
            y = function(a, b, residual=residual)
            assert np.moveaxis(y, 1, -1).flags.c_contiguous
            np.testing.assert_array_equal(y, expected + 1)
            unbatched = function(a[0], b)
            assert unbatched.flags.c_contiguous
            np.testing.assert_array_equal(unbatched, expected[0])
        assert function(channels_last(x)[:0], weight).shape == (0, *expected.shape[1:])


def test_three_dimensional_results_lie_as_onednns():
    """Torch has other kernels for one image and for a kernel of 1, and they make contiguous results."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    x, w = fill(rng, (2, 3, 5, 6, 7), np.float32), fill(rng, (4, 3, 3, 3, 3), np.float32)
    for x_last, w_last in itertools.product((False, True), repeat=2):
        a, b = in_layout(x, x_last), in_layout(w, w_last)
        expected = torch.nn.functional.conv3d(torch.from_numpy(a), torch.from_numpy(b)).numpy()
        assert steps(F.conv3d(a, b)) == steps(expected)


def test_of_one_spatial_axis_results_are_contiguous():
    rng = np.random.default_rng(1)
    x, w = fill(rng, (2, 3, 9), np.float32), fill(rng, (4, 3, 3), np.float32)
    assert F.conv1d(channels_last(x), channels_last(w)).flags.c_contiguous
    assert nn.Conv1d(3, 4, 3).eval()(channels_last(x)).flags.c_contiguous


@pytest.mark.parametrize("nd", [2, 3])
def test_layers(nd):
    rng = np.random.default_rng(2)
    x = fill(rng, (2, 4, *[6] * nd), np.float32)
    for layer in (MODULE[nd](4, 3, 3, padding=1), LAYERS[nd](4, 3, 3, stride=2)):
        for weight_last in (False, True):
            if weight_last:
                layer.train().weight = channels_last(layer.weight)
            for mode in (True, False, False):
                layer.train(mode)
                expected = layer(x)
                assert np.moveaxis(expected, 1, -1).flags.c_contiguous == weight_last
                for _ in range(2):
                    y = layer(channels_last(x))
                    assert np.moveaxis(y, 1, -1).flags.c_contiguous
                    np.testing.assert_array_equal(y, expected)
                    assert layer(channels_last(x)[1]).flags.c_contiguous
                    assert not np.shares_memory(y, layer(channels_last(x)))


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_values_depend_on_no_layout(layout, data):
    nd = data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    if layout == "broadcast":
        return
    for make in (make_case, make_transposed):
        case = make(rng, (2, 3, *[5] * nd), (3, 3, *[2] * nd), stride=data.draw(st.integers(1, 2)))
        moved = case.with_arrays(x=relayout(case.x, layout), w=relayout(case.w, layout))
        np.testing.assert_array_equal(moved.run(), case.run())


DEPTHWISE = [
    ((20,), (9, 11), (3, 3), {"padding": 1}),
    ((48,), (16, 33), (3, 3), {"padding": 1, "stride": 2}),
    ((33,), (7, 7), (5, 5), {"padding": 2}),
    ((64,), (14, 40), (7, 7), {"padding": (3, 5), "dilation": (1, 2)}),
    ((17,), (3, 2), (3, 2), {"padding": (2, 4), "stride": (3, 1)}),
    ((32,), (4, 5, 19), (2, 3, 3), {"padding": 1, "dilation": (2, 1, 1)}),
    ((1500,), (5, 6), (11, 11), {"padding": 5}),
]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(("channels", "size", "kernel", "arguments"), DEPTHWISE)
def test_depthwise_channels_in_lanes_have_the_bits_of_those_in_planes(
    channels, size, kernel, arguments, dtype, residual
):
    rng = np.random.default_rng(0)
    (c,), conv = channels, CONV[len(size)]
    x, w = fill(rng, (2, c, *size), dtype), fill(rng, (c, 1, *kernel), dtype)
    w[::3, ..., 0] = np.inf  # what lies outside is zeros, whose products are NaN in both
    arguments = dict(arguments, groups=c, activation="relu")
    plain = conv(x, w, **arguments)
    assert np.isnan(plain).any()
    assert np.isfinite(plain).any()
    if residual:
        arguments["residual"] = fill(rng, plain.shape, dtype)
        plain = conv(x, w, **arguments)
        arguments["residual"] = channels_last(arguments["residual"])
    y = conv(channels_last(x), w, **arguments, out=channels_last(np.full(plain.shape, np.nan, dtype)))
    np.testing.assert_array_equal(y, plain)
    if residual:
        arguments["residual"] = out = arguments["residual"].copy(order="K")
        np.testing.assert_array_equal(conv(channels_last(x), w, **arguments, out=out), plain)
