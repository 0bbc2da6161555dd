"""pyconv.nn.ConvTranspose1d, 2d, 3d: what differs from the ordinary layers."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import DTYPES, check, fill
from transposed import LAYERS, TRANSPOSED, build_transposed

from pyconv import nn

DIMENSIONS = (1, 2, 3)


@st.composite
def cases(draw):
    dtype = draw(st.sampled_from(DTYPES))
    return build_transposed(lambda low, high: draw(st.integers(low, high)), dtype)


@given(case=cases(), frozen=st.booleans())
def test_layers_with_any_parameters(case, frozen):
    layer = case.module()
    if frozen:
        layer.eval()
    check(layer(case.x), case)
    check(layer(case.x), case)  # from the weights that the first call packed


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_output_size(nd):
    layer = LAYERS[nd](2, 3, 3, stride=3, padding=1)
    x = fill(np.random.default_rng(1), (2, 2, *[4] * nd), np.float32)
    for mode in (True, False):
        layer.train(mode)
        for size in (10, 11, 12):
            expected = TRANSPOSED[nd](x, layer.weight, layer.bias, 3, 1, size - 10)
            for form in ([size] * nd, (size,) * nd, (7, 7, *[size] * nd), tuple(np.int64(size) for _ in range(nd))):
                np.testing.assert_array_equal(layer(x, output_size=form), expected)
            np.testing.assert_array_equal(layer(x[0], (9, *[size] * nd)), layer(x, [size] * nd)[0])
        np.testing.assert_array_equal(layer(x), layer(x, [10] * nd))
        for kind, wrong in [
            (ValueError, [9] * nd), (ValueError, [13] * nd), (ValueError, [10] * (nd + 1)), (ValueError, []),
            (TypeError, 10), (TypeError, [10.0] * nd), (TypeError, [True] * nd), (TypeError, "10"),
            (ValueError, [2**64] * nd), (ValueError, [-1] * nd),
        ]:  # fmt: skip
            with pytest.raises(kind, match=rf"ConvTranspose{nd}d: argument 'output_size' must"):
                layer(x, output_size=wrong)
        with pytest.raises(TypeError, match="argument 'input' must"):
            layer(x.tolist(), output_size=[10] * nd)
        with pytest.raises(ValueError, match="argument 'input' must"):
            layer(x[0, 0], output_size=[10] * nd)


CONSTRUCTOR_ERRORS = [
    (ValueError, "padding_mode", {"padding_mode": "reflect"}),
    (TypeError, "padding", {"padding": "same"}),
    (ValueError, "padding", {"padding": -1}),
    (ValueError, "output_padding", {"output_padding": -1}),
    (TypeError, "output_padding", {"output_padding": 0.5}),
    (ValueError, "output_padding", {"output_padding": (0, 0, 0)}),
    (ValueError, "groups", {"groups": 0}),
    (ValueError, "in_channels", {"groups": 3}),
    (ValueError, "out_channels", {"groups": 4}),
    (ValueError, "kernel_size", {"kernel_size": 0}),
    (ValueError, "device", {"device": "cuda"}),
    (TypeError, "dtype", {"dtype": "int8"}),
]


@pytest.mark.parametrize(("kind", "argument", "arguments"), CONSTRUCTOR_ERRORS)
def test_constructor_errors(kind, argument, arguments):
    with pytest.raises(kind, match=rf"^ConvTranspose2d: argument '{argument}' "):
        nn.ConvTranspose2d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **arguments})


def test_attributes_and_state():
    layer = nn.ConvTranspose2d(4, 6, (3, 2), 2, 1, 1, 2)
    assert layer.weight.shape == (4, 3, 3, 2)
    assert layer.bias.shape == (6,)
    assert (layer.transposed, layer.output_padding, nn.Conv2d(1, 1, 1).transposed) == (True, (1, 1), False)
    text = "ConvTranspose2d(4, 6, kernel_size=(3, 2), stride=(2, 2), padding=(1, 1), output_padding=(1, 1), groups=2)"
    assert repr(layer) == text
    x = fill(np.random.default_rng(1), (2, 4, 5, 6), np.float32)
    y = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer.eval())):
        assert repr(other) == text
        np.testing.assert_array_equal(other(x), y)
    fresh = nn.ConvTranspose2d(4, 6, (3, 2), 2, 1, 1, 2)
    assert str(fresh.load_state_dict(layer.state_dict())) == "<All keys matched successfully>"
    np.testing.assert_array_equal(fresh(x), y)
    layer.output_padding = 0
    assert layer(x).shape == (2, 6, 9, 10)
    layer.train().weight = np.zeros_like(layer.weight)
    np.testing.assert_array_equal(layer.eval()(x)[0, :, 0, 0], layer.bias)
    with pytest.raises(ValueError, match="'padding_mode'"):
        layer.padding_mode = "circular"


def test_default_initialisation():
    """As torch: the fan is that of the weight's second axis, the output channels."""
    nn.init.manual_seed(3)
    layer = nn.ConvTranspose2d(500, 20, (3, 4))
    bound = 1 / np.sqrt(20 * 3 * 4)
    assert 0.99 * bound < np.abs(layer.weight).max() <= np.float32(bound)
    assert np.abs(layer.bias).max() <= np.float32(bound)
    nn.init.manual_seed(3)
    np.testing.assert_array_equal(nn.ConvTranspose2d(500, 20, (3, 4)).weight, layer.weight)
    assert (nn.ConvTranspose2d(500, 20, (3, 4)).weight == layer.weight).mean() < 1e-3
