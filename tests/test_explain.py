"""pyconv.explain: the row that a call takes, facts that fit together, and the roofline's arithmetic."""

import sys
from math import prod

import numpy as np
import pytest
from oracle import CONV, needs_core, setting

import pyconv
from pyconv import nn
from pyconv.plan import algorithms, plan_for
from pyconv.problem import conv_problem

LAYERS = [
    (nn.Conv2d(64, 64, 3, padding=1), (2, 64, 30, 31)), (nn.Conv2d(16, 33, (3, 5), 2), (3, 16, 50, 100)),
    (nn.Conv2d(24, 24, 3, padding=1, groups=24), (1, 24, 20, 20)), (nn.Conv1d(40, 300, 1), (1, 40, 1000)),
    (nn.Conv3d(3, 5, 3, dilation=2), (1, 3, 9, 8, 7)), (nn.Conv2d(512, 512, 3, padding=1), (1, 512, 7, 7)),
    (nn.Conv1d(8, 8, 4, padding=3, groups=8, dtype=np.float64), (2, 8, 5000)),
]  # fmt: skip


@pytest.fixture(autouse=True)
def speeds(monkeypatch):
    """Speeds that need no measurement: 100 GFLOP/s and 10 GB/s of one core."""
    module = sys.modules["pyconv.explain"]  # the attribute of that name is the function
    monkeypatch.setattr(module, "_fma_peak", lambda isa, dtype: 1e11)
    monkeypatch.setattr(module, "_copy_bandwidth", lambda size: 1e10)


def problem_of(layer, shape, **changes):
    x = np.broadcast_to(np.zeros((), layer.weight.dtype), shape)
    rank = len(layer.kernel_size)
    geometry = layer.stride, layer.padding, layer.dilation, layer.groups
    return conv_problem("conv", rank, x, layer.weight, *geometry, "zeros", False)._replace(**changes)


def products_inside(layer, shape):
    """Count the products that don't meet padding."""
    ones = _forced(layer, "im2col_gemm").train()
    ones.weight[...], ones.bias = 1, None
    return ones(np.ones(shape, layer.weight.dtype)).astype(float).sum()


@needs_core
@pytest.mark.parametrize("isa", pyconv.config.isas_available())
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value).replace(" ", ""))
def test_the_facts_of_every_row_fit_together(isa, layer, shape):
    with setting(isa=isa):
        for name in algorithms(layer.weight.dtype.name)[:-1]:
            problem = problem_of(layer, shape)
            try:
                plan_for(problem, name)
            except ValueError:
                continue
            (part,) = pyconv.explain(_forced(layer, name), shape).parts
            assert (part.algorithm, part.isa) == (name, isa)
            y = layer(np.zeros(shape, layer.weight.dtype)).shape
            assert prod(part.output_shape) == prod(y)
            assert part.flop == 2 * prod(y) * prod(layer.weight.shape[1:])
            assert part.tasks * prod(part.block) >= prod(y)
            assert part.block[0] * part.block[1] <= layer.out_channels
            assert part.block[-1] >= 1 <= part.terms
            assert min(part.tile) >= 1
            assert part.packed_bytes >= layer.weight.nbytes * {"winograd": 4, "winograd_1d": 2}.get(name, 1)
            least = products_inside(layer, shape) if name == "direct" else prod(y) * prod(layer.weight.shape[1:])
            assert part.operations >= 2 * least / {"winograd": 4, "winograd_1d": 2}.get(name, 1)
            assert part.operations <= part.flop * (6 if layer.kernel_size[-1] > 1 else 1.5)


def _forced(layer, name):
    """Return the same layer with another row."""
    kind = type(layer)
    made = kind(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        layer.groups, dtype=layer.weight.dtype, algorithm=name,
    )  # fmt: skip
    return made.eval()


@needs_core
def test_the_row_is_the_one_that_a_call_takes():
    layer, shape = nn.Conv2d(64, 64, 3, padding=1), (1, 64, 10, 10)
    raw, frozen = (pyconv.explain(mode(), shape).parts[0] for mode in (layer.train, layer.eval))
    assert (raw.algorithm, frozen.algorithm) == ("direct", "winograd")  # packing is worth it for many calls alone
    assert frozen.others == ("winograd_1d", "direct", "im2col_gemm", "reference")
    exact = nn.Conv2d(64, 64, 3, padding=1, accuracy="exact").eval()
    assert pyconv.explain(exact, shape).parts[0].algorithm == "direct"
    assert pyconv.explain(layer, shape[1:]).parts[0] == frozen


@needs_core
def test_a_problem_has_its_own_shape():
    layer, shape = LAYERS[0]
    problem = problem_of(layer, shape)
    explanation = pyconv.explain(problem)
    assert explanation.parts == pyconv.explain(layer.eval(), shape).parts
    assert explanation.what == "(2, 64, 30, 31) -> (2, 64, 30, 31)"
    layer.train()


def test_the_bound_is_the_slower_of_arithmetic_and_memory():
    layer = nn.Conv2d(3, 8, 1, stride=2, bias=False)
    (part,) = pyconv.explain(layer, (2, 3, 64, 64)).parts
    assert part.flop == 2 * (2 * 8 * 32 * 32) * 3
    assert part.bytes_moved == 4 * (2 * 3 * 32 * 64 + 2 * 8 * 32 * 32) + part.packed_bytes  # every other row is read
    assert part.bound == "bandwidth"
    assert part.seconds == part.bytes_moved / (1e10 * part.threads)
    assert part.intensity == part.operations / part.bytes_moved
    arithmetic = part._replace(operations=1e9, threads=1, peak=1e11, times=3)
    assert (arithmetic.bound, arithmetic.seconds) == ("FMA peak", pytest.approx(0.03))


@needs_core
def test_threads_are_those_of_a_call():
    layer, shape = LAYERS[0]
    with setting(threads=2):
        (part,) = pyconv.explain(layer, shape).parts
        threads = 2 if pyconv.config.core.OPENMP else 1
        assert (part.threads, part.peak, part.bandwidth) == (threads, threads * 1e11, threads * 1e10)
        assert pyconv.explain(layer, (1, 64, 1, 1)).parts[0].threads == 1  # too little work, whatever the instructions


@needs_core
def test_transposed_layers_list_their_parts():
    phases = pyconv.explain(nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1), (1, 64, 14, 14))
    assert phases.flop == 2 * 4 * 4 * 64 * 32 * 14 * 14
    assert [part.times for part in phases.parts] == [4]  # the four phases of a stride of 2 are alike
    assert phases.seconds == phases.parts[0].seconds == 4 * phases.parts[0]._replace(times=1).seconds
    unlike = pyconv.explain(nn.ConvTranspose2d(64, 32, 3, stride=2), (1, 64, 14, 14)).parts
    assert sorted(part.flop // (2 * 64 * 32) for part in unlike) == [14 * 14, 2 * 14 * 15, 2 * 14 * 15, 4 * 15 * 15]


@needs_core
def test_transposed_layers_of_few_channels_are_products():
    layer = nn.ConvTranspose2d(128, 3, 4, stride=2, padding=1)
    small = pyconv.explain(layer, (3, 128, 32, 32)).parts
    assert [(part.times, part.output_shape) for part in small] == [(1, (3, 48, 1, 32, 32))]
    parts = pyconv.explain(layer, (13, 128, 32, 32)).parts  # five images at a time
    assert [(part.times, part.output_shape[0]) for part in parts] == [(2, 5), (1, 3)]
    rows = pyconv.explain(layer, (2, 128, 200, 100)).parts
    assert sum(part.times * part.output_shape[0] * part.output_shape[3] for part in rows) == 2 * 200


@needs_core
def test_complex_layers_are_real_ones_of_twice_the_channels():
    (part,) = pyconv.explain(nn.Conv2d(20, 30, 3, dtype=np.complex64), (1, 20, 9, 9)).parts
    assert (part.input_shape[1], part.output_shape[1], part.dtype) == (40, 60, "float32")


def test_reference_has_no_blocks():
    (part,) = pyconv.explain(nn.Conv2d(4, 8, 3, algorithm="reference"), (1, 4, 9, 9)).parts
    assert (part.algorithm, part.tile, part.operations, part.others) == ("reference", (0, 0), 0, ())
    assert part.flop == 2 * 8 * 49 * 4 * 9
    assert str(part).splitlines()[-1] == "  work           28.2 kFLOP in NumPy"


@needs_core
def test_text():
    explanation = pyconv.explain(nn.Conv2d(96, 96, 3, padding=1, groups=96, bias=False).eval(), (4, 96, 30, 30))
    head, row, *rest = str(explanation).splitlines()
    assert head.startswith(
        "Conv2d(96, 96, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=96, bias=False): 6.2 M"
    )
    assert row == f"depthwise, {pyconv.config.isa()}, float32: (4, 96, 1, 30, 30) -> (4, 96, 1, 30, 30)"
    assert [line[:16].strip() for line in rest] == [
        "also possible",
        "register tile",
        "tasks",
        "memory",
        "work",
        "bound",
    ]
    assert "bandwidth" in rest[-1]


def test_nothing_is_computed():
    conv = nn.Conv2d(16, 16, 3)
    explanation = pyconv.explain(conv, (1000, 16, 10**6, 10**6))
    assert explanation.flop == 2 * 1000 * 16 * (10**6 - 2) ** 2 * 16 * 9


def test_no_images():
    assert pyconv.explain(nn.Conv1d(16, 16, 3), (0, 16, 20)).flop == 0
    assert pyconv.explain(nn.ConvTranspose1d(16, 16, 3), (0, 16, 20)).flop == 0


CONVOLUTION = nn.Conv2d(4, 4, 3)
BAD = [
    (CONVOLUTION, None, TypeError, "explain: argument 'x_shape' must be a tuple or list of ints, got None"),
    (CONVOLUTION, (4, 9), ValueError, "explain: argument 'x_shape' must have 3 or 4 of them, got (4, 9)"),
    (CONVOLUTION, (1, 4, 9.0, 9), TypeError, "explain: argument 'x_shape' must be an int"),
    (CONVOLUTION, (1, 4, -9, 9), ValueError, "explain: argument 'x_shape' must be >= 0"),
    (CONVOLUTION, (1, 4, 2**40, 2**40), ValueError, "explain: argument 'x_shape' makes an array"),
    (CONVOLUTION, (1, 5, 9, 9), ValueError, "conv2d: argument 'input' must have 4 channels"),
    (CONVOLUTION, (1, 4, 2, 2), ValueError, "conv2d: argument 'weight' must not exceed the padded input"),
    (CONV[2], (1, 4, 9, 9), TypeError, "explain: argument 'layer' must be a layer of pyconv.nn or a ConvProblem"),
    (problem_of(CONVOLUTION, (1, 4, 9, 9)), (1, 4, 9, 9), TypeError, "explain: argument 'x_shape' must be left out"),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "shape", "error", "message"), BAD, ids=lambda value: str(value)[:40])
def test_errors(layer, shape, error, message):
    with pytest.raises(error) as caught:
        pyconv.explain(layer, shape)
    assert str(caught.value).startswith(message)
