"""Transposed convolutions whose taps become channels: any parameters, in small blocks, and the layers it is for."""

import numpy as np
import pytest
from ending import build_ended_transposed
from hypothesis import given
from hypothesis import strategies as st
from oracle import DTYPES, check, needs_core, relayout, setting
from transposed import build_transposed, make_transposed
from transposed import gradients as both_gradients

from pyconv import nn, transposed_columns
from pyconv.nn import _calls
from pyconv.nn import functional as F
from pyconv.transposed import _plan, transposed_plan
from pyconv.transposed_columns import ColumnsPlan
from pyconv.transposed_problem import transposed_problem

pytestmark = needs_core


def forget_plans():
    _calls._known.clear()
    _plan.cache_clear()


@pytest.fixture
def small_blocks():
    """Every problem goes this way, in blocks of a few rows or images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transposed_columns, "LEAST_DEPTH", 1)
        patch.setattr(transposed_columns, "BLOCK", 900)
        forget_plans()
        yield
    forget_plans()


def plan_of(case):
    stride, padding, output_padding, groups, dilation = case.arguments
    sizes = stride, padding, output_padding, groups, dilation
    return transposed_plan("test", transposed_problem("test", case.nd, case.x, case.w, *sizes, exact=False))


@st.composite
def cases(draw, build=build_transposed, dtypes=DTYPES, **options):
    dtype = draw(st.sampled_from([*dtypes]))
    return build(lambda low, high: draw(st.integers(low, high)), dtype, **options)


@pytest.mark.usefixtures("small_blocks")
def test_any_parameters():
    @given(case=cases(dtypes=(*DTYPES, np.float16)), frozen=st.booleans())
    def run(case, frozen):
        check(case.run(), case)
        if frozen:
            check(case.module().eval()(case.x), case)

    run()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "images", "rows"),
    [
        ((5, 3, 4, 5), (3, 2, 2, 2), 5, 4),  # 160 columns an image: all of them
        ((7, 3, 4, 5), (3, 2, 3, 2), 3, 4),  # 240: three images, three, and the last
        ((2, 3, 6, 8), (3, 5, 2, 3), 1, 3),  # 240 a row: three rows, twice
        ((2, 3, 7, 8), (3, 5, 2, 3), 1, 3),  # and a seventh row
        ((2, 3, 3, 40), (3, 5, 2, 3), 1, 1),  # 1200 a row: more than a block
    ],
)
def test_blocks(x_shape, w_shape, images, rows):
    case = make_transposed(np.random.default_rng(2), x_shape, w_shape, np.float32, stride=2, padding=1)
    plan = plan_of(case)
    assert (type(plan), min(plan.images, x_shape[0]), plan.rows) == (ColumnsPlan, images, rows)
    check(case.run(), case)
    check(case.module().eval()(case.x), case)


@pytest.mark.usefixtures("small_blocks")
def test_any_ending():
    @given(case=cases(build_ended_transposed, (*DTYPES, np.float16)))
    def run(case):
        check(case.run(), case)

    run()


@pytest.mark.usefixtures("small_blocks")
def test_whole_numbers_are_exact():
    @given(case=cases(integers=True))
    def run(case):
        np.testing.assert_array_equal(case.run(), case.expected()[0])

    run()


LAYERS = [
    ((2, 128, 32, 32), (128, 3, 4, 4), {"stride": 2, "padding": 1}),  # DCGAN's last
    ((1, 56, 40, 41), (56, 1, 9, 9), {"stride": 4, "padding": 4, "output_padding": 3}),  # FSRCNN's
    ((3, 64, 5, 7), (64, 3, 3, 3), {"groups": 2, "dilation": 2}),
    ((2, 40, 700), (40, 2, 16), {"stride": 3}),
    ((1, 33, 4, 5, 6), (33, 5, 3, 2, 3), {"stride": (2, 1, 2)}),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(("x_shape", "w_shape", "arguments"), LAYERS)
def test_layers(x_shape, w_shape, arguments, dtype):
    case = make_transposed(np.random.default_rng(0), x_shape, w_shape, dtype, **arguments)
    assert type(plan_of(case)) is ColumnsPlan
    y = case.run()
    check(y, case)
    check(case.run(accuracy="exact"), case, "exact")
    out = relayout(np.full_like(y, np.nan), "channels_last")
    assert case.run(out=out) is out
    np.testing.assert_array_equal(out, y)
    for threads in (1, 2, 3):
        with setting(threads=threads):
            np.testing.assert_array_equal(case.run(), y)
            np.testing.assert_array_equal(case.with_arrays(x=case.x[-1:]).run()[0], y[-1])
            np.testing.assert_array_equal(case.with_arrays(x=case.x[-1]).run(), y[-1])


def test_bfloat16():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    rng = np.random.default_rng(1)
    x, w = rng.integers(-3, 4, (2, 40, 9, 8)), rng.integers(-3, 4, (40, 3, 4, 4))
    y = F.conv_transpose2d(x.astype(bfloat16), w.astype(bfloat16), None, 2, 1)
    exact = F.conv_transpose2d(x.astype(np.float64), w.astype(np.float64), None, 2, 1)
    np.testing.assert_array_equal(y.astype(np.float64), exact.astype(np.float32).astype(bfloat16).astype(np.float64))


def test_values_that_are_not_finite_stay_in_their_place():
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((1, 40, 12, 12), np.float32), rng.standard_normal((40, 2, 4, 4), np.float32)
    x[0, 3, 5, 6], x[0, 7, 0, 11] = np.nan, np.inf
    y = F.conv_transpose2d(x, w, None, 2, 1)
    expected = np.zeros((24, 24), bool)
    expected[9:13, 11:15] = expected[0:3, 21:24] = True
    np.testing.assert_array_equal(~np.isfinite(y[0, 0]), expected)


def test_what_has_another_way():
    rng = np.random.default_rng(3)
    for x_shape, w_shape, stride in (
        ((1, 128, 8, 8), (128, 16, 4, 4), 2), ((1, 31, 8, 8), (31, 3, 4, 4), 2), ((1, 64, 8, 8), (64, 3, 1, 1), 1),
        ((1, 513, 20), (513, 1, 1024), 256),
    ):  # fmt: skip
        case = make_transposed(rng, x_shape, w_shape, stride=stride)
        assert type(plan_of(case)) is not ColumnsPlan
    for dtype in (np.int32, np.longdouble, np.complex64):
        case = make_transposed(rng, (1, 64, 8, 8), (64, 3, 4, 4), dtype)
        assert type(plan_of(case)) is not ColumnsPlan
    case = make_transposed(rng, (1, 64, 8, 8), (64, 3, 4, 4))
    check(case.run(algorithm="im2col_gemm"), case)


def test_input_gradient_of_a_first_layer():
    rng = np.random.default_rng(4)
    w, dy = rng.standard_normal((64, 3, 7, 7), np.float32), rng.standard_normal((2, 64, 12, 13), np.float32)
    got = nn.grad.conv2d_input((2, 3, 24, 26), w, dy, 2, 3)
    (expected, magnitude), _ = both_gradients(np.zeros((2, 3, 24, 26)), w, dy, 2, 3, 1, 1)
    assert (np.abs(got - expected) <= 16 * 2.0**-24 * magnitude + 1e-30).all()
