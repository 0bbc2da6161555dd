"""pyconv.nn.init: torch's names, arguments, formulas and errors; distributions by their moments and quantiles."""

from __future__ import annotations

import inspect
import math
from statistics import NormalDist

import numpy as np
import pytest

import pyconv
from pyconv import nn
from pyconv.nn import init

NONLINEARITIES = [
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "sigmoid",
    "tanh", "relu", "leaky_relu", "selu",
]  # fmt: skip
RANDOM = {
    "uniform_": init.uniform_,
    "normal_": init.normal_,
    "trunc_normal_": init.trunc_normal_,
    "xavier_uniform_": init.xavier_uniform_,
    "xavier_normal_": init.xavier_normal_,
    "kaiming_uniform_": init.kaiming_uniform_,
    "kaiming_normal_": init.kaiming_normal_,
    "orthogonal_": init.orthogonal_,
}
CONSTANT = {
    "constant_": lambda array: init.constant_(array, 0.5),
    "ones_": init.ones_,
    "zeros_": init.zeros_,
    "dirac_": init.dirac_,
}
SHAPE = (8, 6, 3, 5)  # fan_in 90, fan_out 120


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", [*RANDOM, *CONSTANT, "calculate_gain"])
def test_arguments_have_torchs_names_order_and_defaults(name):
    torch = pytest.importorskip("torch")
    theirs = inspect.signature(getattr(torch.nn.init, name)).parameters.values()
    ours = inspect.signature(getattr(init, name)).parameters.values()
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]


@pytest.mark.parametrize("param", [None, 0, 0.2, -1, 3, np.float64(0.5)])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_gain_is_torchs(nonlinearity, param):
    torch = pytest.importorskip("torch")
    assert init.calculate_gain(nonlinearity, param) == torch.nn.init.calculate_gain(nonlinearity, param)


def test_gain_without_torch():
    expected = {"tanh": 5 / 3, "relu": math.sqrt(2), "leaky_relu": math.sqrt(2 / (1 + 0.01**2)), "selu": 0.75}
    assert {name: init.calculate_gain(name) for name in NONLINEARITIES} == {
        n: expected.get(n, 1) for n in NONLINEARITIES
    }
    assert init.calculate_gain("leaky_relu", np.float32(0.5)) == math.sqrt(2 / 1.25)


@pytest.mark.parametrize("param", [True, "0.1", [0.1], 1j])
def test_gain_refuses_slopes_that_are_no_numbers(param):
    with pytest.raises(ValueError, match="calculate_gain: argument 'param' must be a number"):
        init.calculate_gain("leaky_relu", param)


@pytest.mark.parametrize("nonlinearity", ["gelu", "", None, 1, [], "RELU"])
def test_gain_refuses_what_it_does_not_know(nonlinearity):
    with pytest.raises(ValueError, match="'nonlinearity' must be one of linear, "):
        init.calculate_gain(nonlinearity)


@pytest.mark.parametrize("function", [*RANDOM.values(), *CONSTANT.values()], ids=[*RANDOM, *CONSTANT])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_fills_in_place_and_returns_its_argument(function, dtype):
    for array in (np.full(SHAPE, 7, dtype), np.full((*SHAPE, 2), 7, dtype)[::-1, ..., 0], np.full(SHAPE, 7, dtype).T):
        assert function(array) is array
        assert not (array == 7).any()
    array = np.full(SHAPE, 7, "float32")
    returned = function(array.data)
    assert isinstance(returned, np.ndarray)
    assert np.shares_memory(returned, array)
    assert not (array == 7).any()


def test_fills_a_torch_tensor():
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(3, 4)
    init.ones_(tensor)
    assert (tensor == 1).all()


def test_fills_the_weight_of_a_layer():
    conv = nn.Conv2d(in_channels=3, out_channels=6, kernel_size=7, stride=2, padding=3, groups=3, bias=False)
    before = conv.weight.copy()
    nn.init.xavier_uniform_(conv.weight.data, gain=nn.init.calculate_gain("relu"))
    bound = math.sqrt(2) * math.sqrt(6 / (49 + 6 * 49))
    assert (conv.weight == before).mean() < 1e-3
    assert 0.9 * bound < np.abs(conv.weight).max() <= bound
    with pytest.raises(ValueError, match=r"must be writable .*train\(\)"):
        nn.init.zeros_(conv.eval().weight.data)
    nn.init.zeros_(conv.train().weight)
    assert not conv.weight.any()


@pytest.mark.parametrize("function", RANDOM.values(), ids=RANDOM)
def test_a_seed_repeats_the_weights_in_every_dtype(function):
    reference = function(np.empty(SHAPE), generator=rng(5))
    assert (function(np.empty(SHAPE), generator=rng(5)) == reference).all()
    assert (function(np.empty(SHAPE), generator=rng(6)) != reference).any()
    assert (function(np.empty(SHAPE, "f4"), generator=rng(5)) == reference.astype("f4")).all()
    generator = rng(5)
    assert (function(np.empty(SHAPE), generator=generator) == reference).all()
    assert (function(np.empty(SHAPE), generator=generator) != reference).any()


def test_manual_seed_governs_functions_and_layers():
    def draw():
        return init.normal_(np.empty(5)), nn.Conv1d(3, 4, 5).weight, nn.Conv1d(3, 4, 5).bias

    pyconv.manual_seed(11)
    first, second = draw(), draw()
    assert isinstance(pyconv.manual_seed(11), np.random.Generator)
    again = draw()
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not any((a == b).any() for a, b in zip(first, second, strict=True))
    assert pyconv.manual_seed(-1).random() == pyconv.manual_seed(2**64 - 1).random()
    assert pyconv.manual_seed(np.int64(3)).random() == pyconv.manual_seed(3).random()
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match="manual_seed: argument 'seed' must be from"):
            pyconv.manual_seed(seed)
    for seed in (1.0, "1", None):
        with pytest.raises(TypeError, match="'seed' must be an integer"):
            pyconv.manual_seed(seed)


def check_quantiles(values: np.ndarray, distribution) -> None:
    """Kolmogorov and Smirnov's test at 200 points: a right sample exceeds the bound with probability 0.001."""
    values = np.sort(values.ravel())
    for q in np.linspace(0, 1, 200):
        x = values[min(int(q * len(values)), len(values) - 1)]
        assert abs(np.searchsorted(values, x) / len(values) - distribution(x)) < 1.95 / math.sqrt(len(values)) + 1e-9


def uniform(a: float, b: float):
    return lambda x: (x - a) / (b - a)


BIG = (300, 20, 3, 7)  # fan_in 420, fan_out 6300
LEAKY = math.sqrt(2 / (1 + 0.5**2))


@pytest.mark.parametrize(
    ("fill", "distribution"),
    [
        (lambda w, g: init.uniform_(w, generator=g), uniform(0, 1)),
        (lambda w, g: init.uniform_(w, -3, 0.5, g), uniform(-3, 0.5)),
        (lambda w, g: init.normal_(w, 2, 3, g), NormalDist(2, 3).cdf),
        (lambda w, g: init.xavier_uniform_(w, 2, g), uniform(-2 * math.sqrt(6 / 6720), 2 * math.sqrt(6 / 6720))),
        (lambda w, g: init.xavier_normal_(w, 2, g), NormalDist(0, 2 * math.sqrt(2 / 6720)).cdf),
        (
            lambda w, g: init.kaiming_uniform_(w, math.sqrt(5), generator=g),
            uniform(-1 / math.sqrt(420), 1 / math.sqrt(420)),
        ),
        (lambda w, g: init.kaiming_normal_(w, 0.5, "FAN_OUT", generator=g), NormalDist(0, LEAKY / math.sqrt(6300)).cdf),
        (lambda w, g: init.kaiming_normal_(w, 0, "fan_in", "tanh", g), NormalDist(0, 5 / 3 / math.sqrt(420)).cdf),
    ],
    ids=["unit", "uniform", "normal", "xavier_uniform", "xavier_normal", "kaiming_uniform", "fan_out", "tanh"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distribution(fill, distribution, dtype):
    check_quantiles(fill(np.empty(BIG, dtype), rng(1)), distribution)


def test_complex_parts_are_filled_as_torch_does():
    for dtype in ("complex64", "complex128"):
        w = init.uniform_(np.empty(50_000, dtype), -2, 1, rng(2))
        check_quantiles(w.real, uniform(-2, 1))
        check_quantiles(w.imag, uniform(-2, 1))
        w = init.normal_(np.empty(50_000, dtype), 3, 2, rng(3))
        check_quantiles(w.real, NormalDist(3, math.sqrt(2)).cdf)
        check_quantiles(w.imag, NormalDist(0, math.sqrt(2)).cdf)
    assert (init.constant_(np.empty(2, "c8"), 1 + 2j) == 1 + 2j).all()


@pytest.mark.parametrize(
    ("mean", "std", "a", "b"),
    [
        (0, 1, -2, 2), (0.1, 0.02, 0.1, 0.2), (0, 1, -math.inf, math.inf), (1, 2, -math.inf, -1.5), (0, 1, 0.5, 0.6),
        (0, 1, -0.2, 0.3), (0, 1, 2, 100), (0, 1, -100, -2), (0, 1, 4, math.inf), (-3, 0.5, -1, 0), (0, 1, 0.6, 2.5),
    ],
)  # fmt: skip
def test_truncated_normal(mean, std, a, b):
    values = init.trunc_normal_(np.empty(40_000), mean, std, a, b, rng(4))
    assert a <= values.min()
    assert values.max() <= b
    normal = NormalDist()
    sign = -1 if a > mean else 1  # the upper tail's probabilities cancel out unless they are taken from below
    low, high = sorted((normal.cdf(sign * (a - mean) / std), normal.cdf(sign * (b - mean) / std)))

    def distribution(x):
        below = normal.cdf(sign * (x - mean) / std)
        return (below - low) / (high - low) if sign > 0 else (high - below) / (high - low)

    check_quantiles(values, distribution)


@pytest.mark.parametrize(
    ("mean", "std", "a", "b"),
    [(0, 1e-310, 1, 2), (0, 1, 50, 51), (0, 1, 1e9, math.inf), (0, 1, 1, 1), (5, 1e-3, -1, 1), (0, 1, -1e300, 1e300)],
)
def test_truncated_normal_ends_far_out(mean, std, a, b):
    values = init.trunc_normal_(np.empty(1000), mean, std, a, b, rng(5))
    assert ((values >= a) & (values <= b)).all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_truncated_normal_keeps_rounded_cuts(dtype):
    values = init.trunc_normal_(np.empty(20_000, dtype), 0, 1, -0.1, 0.3, rng(6))
    assert values.min() >= np.dtype(dtype).type(-0.1)
    assert values.max() <= np.dtype(dtype).type(0.3)


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6, 6), (1, 4), (4, 1), (6, 2, 3, 2), (20, 2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_orthogonal(shape, dtype):
    w = init.orthogonal_(np.empty(shape, dtype), 2, rng(7)).astype("f8").reshape(shape[0], -1) / 2
    product = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    assert np.abs(product - np.eye(len(product))).max() < (1e-6 if dtype == "float32" else 1e-14)


def test_orthogonal_is_uniform():
    draws = np.array([init.orthogonal_(np.empty((3, 3)), generator=rng(seed)) for seed in range(2000)])
    # Each entry has mean 0 and variance 1/3; QR alone would leave one sign on the diagonal.
    assert np.abs(draws.mean(0)).max() < 5 * math.sqrt(1 / 3 / 2000)
    assert np.abs((draws**2).mean(0) - 1 / 3).max() < 5 * math.sqrt(4 / 45 / 2000)


@pytest.mark.parametrize(
    ("shape", "groups"), [((3, 4, 5), 1), ((6, 2, 4), 3), ((4, 7, 2, 3), 2), ((8, 3, 1, 2, 3), 2), ((2, 2, 3), 2)]
)
def test_dirac_is_torchs(shape, groups):
    torch = pytest.importorskip("torch")
    ours = init.dirac_(np.full(shape, np.nan, "f4"), groups)
    assert (ours == torch.nn.init.dirac_(torch.empty(shape), groups).numpy()).all()


def test_dirac_keeps_the_input():
    conv = nn.Conv2d(4, 4, 3, padding="same", groups=2, bias=False)
    init.dirac_(conv.weight, groups=2)
    x = rng(8).standard_normal((2, 4, 5, 6)).astype("f4")
    assert (conv(x) == x).all()


def test_constants():
    assert (init.constant_(np.empty((2, 3), "f4"), 0.25) == 0.25).all()
    assert np.isnan(init.constant_(np.empty(2), math.nan)).all()
    assert (init.ones_(np.empty(3)) == 1).all()
    assert (init.zeros_(np.empty(3)) == 0).all()


def test_empty_arrays():
    for function in (
        init.uniform_,
        init.normal_,
        init.trunc_normal_,
        init.xavier_uniform_,
        init.orthogonal_,
        init.zeros_,
    ):
        assert function(np.empty((0, 3))).shape == (0, 3)
    for function in (init.kaiming_uniform_, init.kaiming_normal_):
        with pytest.warns(UserWarning, match="Initializing zero-element tensors is a no-op") as caught:
            function(np.empty((3, 0)))
        assert caught[0].filename == __file__
    assert init.dirac_(np.empty((2, 2, 0))).size == 0


W = np.zeros((4, 4))


@pytest.mark.parametrize(
    ("kind", "call", "argument"),
    [
        (TypeError, lambda: init.zeros_([1.0, 2.0]), "tensor"),
        (TypeError, lambda: init.zeros_([[1.0], [2.0, 3.0]]), "tensor"),
        (TypeError, lambda: init.ones_(3.0), "tensor"),
        (TypeError, lambda: init.ones_(None), "tensor"),
        (TypeError, lambda: init.uniform_(np.zeros(3, int)), "tensor"),
        (TypeError, lambda: init.zeros_(np.zeros(3, bool)), "tensor"),
        (TypeError, lambda: init.constant_(np.zeros(3, object), 1), "tensor"),
        (TypeError, lambda: init.trunc_normal_(np.zeros(3, "c8")), "tensor"),
        (TypeError, lambda: init.orthogonal_(np.zeros((3, 3), "c8")), "tensor"),
        (TypeError, lambda: init.constant_(W, "1"), "val"),
        (TypeError, lambda: init.constant_(W, 1j), "val"),
        (TypeError, lambda: init.uniform_(W, None), "a"),
        (ValueError, lambda: init.uniform_(W, 1, 0), "b"),
        (ValueError, lambda: init.uniform_(W, 0, math.inf), "b"),
        (ValueError, lambda: init.uniform_(W.astype("f4"), 0, 1e300), "b"),
        (ValueError, lambda: init.uniform_(W, -1.5e308, 1.5e308), "b"),
        (ValueError, lambda: init.uniform_(W, math.nan, 1), "a"),
        (ValueError, lambda: init.normal_(W, 0, -1), "std"),
        (ValueError, lambda: init.normal_(W, 0, math.nan), "std"),
        (ValueError, lambda: init.trunc_normal_(W, 0, 0), "std"),
        (ValueError, lambda: init.trunc_normal_(W, math.nan), "mean"),
        (ValueError, lambda: init.trunc_normal_(W, a=2, b=1), "b"),
        (ValueError, lambda: init.trunc_normal_(W, a=math.nan), "a"),
        (ValueError, lambda: init.trunc_normal_(W, a=math.inf, b=math.inf), "a"),
        (ValueError, lambda: init.trunc_normal_(W, a=-math.inf, b=-math.inf), "b"),
        (ValueError, lambda: init.xavier_uniform_(np.zeros(3)), "tensor"),
        (ValueError, lambda: init.xavier_normal_(np.zeros(())), "tensor"),
        (ValueError, lambda: init.xavier_uniform_(W, -1), "gain"),
        (ValueError, lambda: init.kaiming_uniform_(np.zeros(3)), "tensor"),
        (ValueError, lambda: init.kaiming_uniform_(W, mode="fan"), "mode"),
        (ValueError, lambda: init.kaiming_uniform_(W, mode=None), "mode"),
        (ValueError, lambda: init.kaiming_normal_(W, nonlinearity="gelu"), "nonlinearity"),
        (ValueError, lambda: init.kaiming_normal_(W, a="x"), "a"),
        (ValueError, lambda: init.orthogonal_(np.zeros(3)), "tensor"),
        (ValueError, lambda: init.dirac_(W), "tensor"),
        (ValueError, lambda: init.dirac_(np.zeros((1,) * 6)), "tensor"),
        (ValueError, lambda: init.dirac_(np.zeros((3, 2, 1)), 2), "groups"),
        (ValueError, lambda: init.dirac_(np.zeros((3, 2, 1)), 0), "groups"),
        (TypeError, lambda: init.dirac_(np.zeros((3, 2, 1)), 1.0), "groups"),
        (TypeError, lambda: init.normal_(W, generator=np.random), "generator"),
        (TypeError, lambda: init.kaiming_uniform_(W, generator=3), "generator"),
    ],
)
def test_errors(kind, call, argument):
    with pytest.raises(kind, match=rf"\w+_: argument '{argument}' .*, got "):
        call()
    assert not W.any()


@pytest.mark.parametrize("function", [*RANDOM.values(), *CONSTANT.values()], ids=[*RANDOM, *CONSTANT])
def test_read_only_arrays_are_refused(function):
    array = np.zeros(SHAPE)
    array.flags.writeable = False
    with pytest.raises(ValueError, match="argument 'tensor' must be writable"):
        function(array)
