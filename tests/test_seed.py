"""The tutorial that pyconv began with: its numbers, its three layers, its size formula, its statements about groups."""

import numpy as np
import pytest
from oracle import Case, check, convolve, output_size

from pyconv import nn
from pyconv.nn import functional as F

PRINTED_X = "[[[  0.,   1.,   2.,   3.,   4.,   5.,   6.,   7.,   8.,   9.,  10.,  11.,  12.,  13.,  14.,  15.]]]"
PRINTED_W = "[[[ 0.1000,  0.2000,  0.3000]]]"
PRINTED_Y = (
    "[[[ 0.8000,  1.4000,  2.0000,  2.6000,  3.2000,  3.8000,  4.4000,  5.0000,  5.6000,  6.2000,  6.8000,  7.4000,  "
    "8.0000,  8.6000]]]"
)
# The arguments of the three layers, and the spatial size of what they make of 50 x 100.
DEMO_LAYERS = [
    (((16, 33, 3), {"stride": 2}), (24, 49)),
    (((16, 33, (3, 5)), {"stride": (2, 1), "padding": (4, 2)}), (28, 100)),
    (((16, 33, (3, 5)), {"stride": (2, 1), "padding": (4, 2), "dilation": (3, 1)}), (26, 100)),
]


def printed(y):
    """A (1, 1, n) array as torch 0.4 printed it."""
    return "[[[ " + ",  ".join(f"{v:.4f}" for v in y.ravel()) + "]]]"


def parsed(text):
    """The numbers of a printed (1, 1, n) tensor."""
    return np.array([float(v) for v in text.strip("[]").split(",")], np.float32).reshape(1, 1, -1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_conv1d_example_prints_the_same(dtype):
    x, w = parsed(PRINTED_X).astype(dtype), parsed(PRINTED_W).astype(dtype)
    assert x.shape == (1, 1, 16)
    y = F.conv1d(x, w, padding=0)
    assert y.shape == (1, 1, 14)
    assert printed(y) == PRINTED_Y


def test_conv1d_example_step_by_step():
    """0 x 0.1 + 1 x 0.2 + 2 x 0.3 = 0.8 and 1 x 0.1 + 2 x 0.2 + 3 x 0.3 = 1.4; 16 - 3 + 1 = 14 values."""
    x, w = np.arange(16.0).reshape(1, 1, 16), np.array([[[0.1, 0.2, 0.3]]])
    y = F.conv1d(x, w)[0, 0]
    assert y.size == 16 - 3 + 1
    assert y[0] == pytest.approx(0 * 0.1 + 1 * 0.2 + 2 * 0.3, abs=1e-15) == pytest.approx(0.8, abs=1e-15)
    assert y[1] == pytest.approx(1 * 0.1 + 2 * 0.2 + 3 * 0.3, abs=1e-15) == pytest.approx(1.4, abs=1e-15)


@pytest.mark.parametrize(("arguments", "size"), DEMO_LAYERS)
def test_demo_layers(arguments, size):
    x = np.random.default_rng(0).standard_normal((20, 16, 50, 100)).astype(np.float32)
    layer = nn.Conv2d(*arguments[0], **arguments[1])
    y = layer(x)
    assert y.shape == (20, 33, *size)
    some = [0, 7, 19]  # images that the oracle computes: it takes its time
    check(y[some], Case(x[some], layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation))
    np.testing.assert_array_equal(layer.eval()(x), y)


def test_size_formula():
    """H_out = floor((H_in + 2 padding - dilation (kernel - 1) - 1) / stride) + 1, over all small parameters."""
    for size in (1, 2, 5, 8, 11):
        x = np.zeros((1, 1, size), np.float32)
        for kernel in (1, 2, 3, 4):
            w = np.zeros((1, 1, kernel), np.float32)
            for padding in (0, 1, 3):
                for dilation in (1, 2, 3):
                    for stride in (1, 2, 3):
                        expected = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
                        options = {"stride": stride, "padding": padding, "dilation": dilation}
                        if expected < 1:
                            with pytest.raises(ValueError, match="conv1d: argument"):
                                F.conv1d(x, w, **options)
                        else:
                            assert F.conv1d(x, w, **options).shape == (1, 1, expected)


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_size_formula_takes_each_axis_by_itself(nd):
    size, kernel, stride, padding, dilation = (9, 12, 7)[:nd], (3, 1, 2)[:nd], (2, 3, 1)[:nd], (0, 2, 1)[:nd], (2, 1, 3)
    x, w = np.zeros((2, 4, *size), np.float32), np.zeros((6, 4, *kernel), np.float32)
    y = (F.conv1d, F.conv2d, F.conv3d)[nd - 1](x, w, None, stride, padding, dilation[:nd])
    expected = output_size(size, [(p, p) for p in padding], kernel, stride, dilation[:nd])
    assert y.shape == (2, 6, *expected)


def test_groups_1_lets_every_input_reach_every_output():
    x, w = np.ones((1, 6, 4, 4), np.float32), np.ones((5, 6, 1, 1), np.float32)
    np.testing.assert_array_equal(F.conv2d(x, w), np.full((1, 5, 4, 4), 6, np.float32))


@pytest.mark.parametrize("groups", [2, 3])
def test_groups_are_convolutions_side_by_side(groups):
    """groups=2: two convolutions, each of half the input channels, making half the outputs, then concatenated."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 6, 9, 10)).astype(np.float32)
    w = rng.standard_normal((12, 6 // groups, 3, 3)).astype(np.float32)
    bias = rng.standard_normal(12).astype(np.float32)
    y = F.conv2d(x, w, bias, padding=1, groups=groups)
    parts = zip(np.split(x, groups, 1), np.split(w, groups), np.split(bias, groups))
    apart = np.concatenate([F.conv2d(*part, padding=1) for part in parts], 1)
    check(y, Case(x, w, bias, padding=1, groups=groups))
    np.testing.assert_allclose(y, apart, rtol=0, atol=1e-5)


@pytest.mark.parametrize("multiplier", [1, 2, 5])
def test_groups_of_one_channel_are_a_depthwise_convolution(multiplier):
    """groups = in_channels, out_channels = K in_channels: filter k of channel c is output c K + k."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 4, 8, 7))
    layer = nn.Conv2d(4, 4 * multiplier, 3, groups=4, bias=False, dtype=np.float64)
    assert layer.weight.shape == (4 * multiplier, 1, 3, 3)
    y = layer(x)
    for channel in range(4):
        for k in range(multiplier):
            alone = convolve(x[:, channel : channel + 1], layer.weight[[channel * multiplier + k]])[0]
            np.testing.assert_allclose(y[:, [channel * multiplier + k]], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("channels", "groups"), [((4, 6), 3), ((6, 4), 3), ((5, 5), 2)])
def test_groups_must_divide_both_channel_counts(channels, groups):
    with pytest.raises(ValueError, match=r"Conv2d: argument '\w+' must be divisible by groups"):
        nn.Conv2d(*channels, 3, groups=groups)


def test_image_demo():
    """An image of HWC bytes through np.moveaxis, scaled to [0, 1]; 3 groups; Xavier's weights with ReLU's gain."""
    image = np.random.default_rng(3).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    inputs = np.moveaxis(image / 255.0, -1, 0).astype(np.float32)[np.newaxis]
    conv = nn.Conv2d(in_channels=3, out_channels=6, kernel_size=7, stride=2, padding=3, groups=3, bias=False)
    nn.init.xavier_uniform_(conv.weight, gain=nn.init.calculate_gain("relu"))
    assert conv.weight.shape == (6, 1, 7, 7)
    assert conv.bias is None
    limit = np.sqrt(2) * np.sqrt(6 / (1 * 49 + 6 * 49))  # gain * sqrt(6 / (fan_in + fan_out))
    assert 0.9 * limit < np.abs(conv.weight).max() <= limit
    output = conv(inputs)
    assert output.shape == (1, 6, 112, 112)
    check(output, Case(inputs, conv.weight, None, 2, 3, 1, 3))
