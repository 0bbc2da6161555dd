"""The activations of the kernels against their formulas in float64, through whole convolutions with weights of one."""

import math

import numpy as np
import pytest
from oracle import needs_core, rows, setting

from pyconv import activation, nn
from pyconv.nn import functional as F
from pyconv.plan import plan_for
from pyconv.problem import plain_problem

LIMITS = {activation.CLAMP: (-1.5, 2.5), activation.LEAKY_RELU: (0.01, 0.0)}
TOLERANCE = {"float32": 1e-6, "float64": 1e-14}
# The rounding of a large exponent is multiplied by it, in the formula in float64 as well.
GELU_TANH_TOLERANCE = {"float32": 1e-5, "float64": 5e-13}
WIDTH = 29  # pixels of an image: tails, and few enough for every algorithm but Winograd's
CURVES = sorted(activation.FORMULAS)


def logistic(u):
    """exp only of what it cannot overflow on."""
    return 1 / (1 + math.exp(-u)) if u >= 0 else math.exp(u) / (1 + math.exp(u))


EXACT = {
    activation.CLAMP: lambda s: min(max(s, -1.5), 2.5),
    activation.LEAKY_RELU: lambda s: 0.01 * s if s < 0 else s,
    activation.HARDSWISH: lambda s: s * (min(max(s + 3, 0), 6) / 6),
    activation.SIGMOID: logistic,
    activation.SILU: lambda s: s * logistic(s),
    activation.TANH: math.tanh,
    activation.GELU: lambda s: s * math.erfc(-s * math.sqrt(0.5)) / 2,
    activation.GELU_TANH: lambda s: s * logistic(2 * math.sqrt(2 / math.pi) * (s + 0.044715 * s**3)),
}


def special_values(dtype):
    """NaN first; zeros, subnormals, huge ones; dense between and around where something changes."""
    info = np.finfo(dtype)
    edges = [0.0, -0.0, info.tiny, -info.tiny, info.smallest_subnormal, -info.smallest_subnormal, 3, -3, 1e-30, -1e-30]
    huge = [1e10, -1e10, 1e12, -1e12, 89, -89, 104, -104, 710, -710, 750, -750]
    dense = np.concatenate([np.linspace(-30, 30, 6001), np.linspace(-2, 2, 4001), np.geomspace(1e-20, 1, 500)])
    values = np.array([np.nan, *edges, *huge, *dense, *-dense[-500:]], dtype)
    return np.append(values, np.zeros(-values.size % WIDTH, dtype))


def activated(isa, algorithm, number, values, out):
    """Every output channel is the activation of `values`; None where the algorithm does not take the shape."""
    groups, ic, oc = (16, 1, 1) if algorithm == "depthwise" else (1, 1, 16)
    axes = [(1, 1, 1, 1, 1, 0), (WIDTH, WIDTH, 1, 1, 1, 0)]
    problem = plain_problem(2, values.dtype, (values.size // WIDTH, groups, ic, oc), axes, 0, True)
    a, b = LIMITS.get(number, (0.0, 0.0))
    problem = problem._replace(activation=number, activation_a=a, activation_b=b)
    with setting(isa=isa):
        try:
            plan = plan_for(problem, algorithm)
        except ValueError:
            return None
        x = np.ascontiguousarray(np.broadcast_to(values.reshape(-1, 1, 1, WIDTH), problem.input_shape))
        plan.run(x, plan.pack(np.ones(problem.weight_shape, values.dtype), None), out)
    return out


def layouts(shape, dtype):
    """Channels first, channels last, pixels apart."""
    n, c, h, w = shape
    yield np.full(shape, np.nan, dtype)
    yield np.moveaxis(np.full((n, h, w, c), np.nan, dtype), -1, 1)
    yield np.full((n, c, h, 2 * w), np.nan, dtype)[..., ::2]


@needs_core
@pytest.mark.parametrize("number", CURVES)
@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
@pytest.mark.parametrize(("isa", "algorithm"), sorted({row[:2] for row in rows()}))
def test_curve_is_exact_to_a_few_last_bits(isa, algorithm, dtype, number):
    values = special_values(dtype)
    expected = np.array([EXACT[number](float(s)) for s in values])
    expected[0] = np.nan
    ran = 0
    for out in layouts((values.size // WIDTH, 16, 1, WIDTH), np.dtype(dtype)):
        got = activated(isa, algorithm, number, values, out)
        if got is None:
            continue
        ran += 1
        rtol = (GELU_TANH_TOLERANCE if number == activation.GELU_TANH else TOLERANCE)[dtype]
        # A result below the smallest normal number may be 0, and so may s times one.
        np.testing.assert_allclose(got[:, 0, 0].ravel(), expected, rtol=rtol, atol=1000 * np.finfo(dtype).tiny)
        for channel in range(1, 16):
            np.testing.assert_array_equal(got[:, channel], got[:, 0])
    if not ran:
        pytest.skip(f"{algorithm} does not take this shape")


@needs_core
@pytest.mark.parametrize("number", CURVES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("isa", sorted({row[0] for row in rows()}))
def test_infinities_are_the_formulas(isa, sign, number):
    """As torch has them: 0 times infinity is a NaN."""
    values = np.full(WIDTH, sign * np.inf, np.float32)
    a, b = LIMITS.get(number, (0.0, 0.0))
    with np.errstate(all="ignore"):
        expected = activation.activate(number, a, b, values)
    out = np.empty((1, 16, 1, WIDTH), np.float32)
    np.testing.assert_array_equal(activated(isa, "direct", number, values, out)[0, 3, 0], expected)


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose1d])
def test_complex_numbers_have_none(layer):
    """Refused by name where the layer is made or changed, and by the functions."""
    rule = "argument 'activation' must be None for complex64: it needs floating-point numbers, got 'silu'"
    with pytest.raises(TypeError, match=f"^{layer.__name__}: {rule}"):
        layer(2, 3, 1, dtype=np.complex64, activation="silu")
    made = layer(2, 3, 1, dtype=np.complex64)
    with pytest.raises(TypeError, match=f"^{layer.__name__}: {rule}"):
        made.activation = "silu"
    assert made.activation is None
    x = np.ones((1, 2, 4), np.complex64)
    with pytest.raises(TypeError, match=f"^conv1d: {rule}"):
        F.conv1d(x, x, activation="silu")
    with pytest.raises(TypeError, match=f"^conv_transpose1d: {rule}"):
        F.conv_transpose1d(x, np.ones((2, 3, 1), np.complex64), activation="silu")
