"""What conv_transpose1d, 2d and 3d mean, against zeros put in between and an ordinary convolution."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import DTYPES, LAYOUTS, check, fill, native, refusal_skips, relayout, rows, setting
from test_errors import little_memory
from transposed import TRANSPOSED, TransposedCase, build_transposed, convolve_transposed, make_transposed

import pyconv
from pyconv.transposed import phases_of_axis, transposed_plan
from pyconv.transposed_problem import transposed_problem

DIMENSIONS = (1, 2, 3)
SIZES = {1: (17,), 2: (9, 8), 3: (3, 5, 4)}


@st.composite
def cases(draw, **options):
    dtype = draw(st.sampled_from(DTYPES))
    return build_transposed(lambda low, high: draw(st.integers(low, high)), dtype, **options)


def small_case(nd, dtype=np.float32, batch=(2,), **arguments):
    return make_transposed(np.random.default_rng(0), (*batch, 4, *SIZES[nd]), (4, 6, *[3] * nd), dtype, **arguments)


def plan_of(case):
    """The plan that a functional call uses."""
    stride, padding, output_padding, groups, dilation = case.arguments
    return transposed_plan(
        "test",
        transposed_problem(
            "test", case.nd, case.x, case.w, stride, padding, output_padding, groups, dilation, exact=False
        ),
    )


# ---------------------------------------------------------------------------------------------- any parameters


@given(case=cases())
def test_any_parameters(case):
    check(case.run(), case)


@given(case=cases(integers=True))
def test_whole_numbers_are_exact(case):
    np.testing.assert_array_equal(case.run(accuracy="exact"), case.expected()[0])
    np.testing.assert_array_equal(case.run(algorithm="reference"), case.expected()[0])


@given(case=cases(), layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 3))
def test_any_layout(case, layouts):
    arrays = (case.x, case.w, case.bias)
    x, w, bias = (None if a is None else relayout(a, layout) for a, layout in zip(arrays, layouts))
    case = case.with_arrays(x=x, w=w, bias=bias)
    before = [None if a is None else (a.tobytes(), a.strides, a.flags.writeable) for a in (x, w, bias)]
    check(case.run(), case)
    assert before == [None if a is None else (a.tobytes(), a.strides, a.flags.writeable) for a in (x, w, bias)]


@pytest.mark.parametrize("layout", ["plain", "fortran", "channels_last", "reversed", "sliced", "unaligned"])
@given(case=cases())
def test_out_of_any_layout(layout, case):
    expected = case.run()
    out = relayout(np.full_like(expected, np.nan), layout)
    room = out.base if layout == "sliced" else None
    assert case.run(out=out) is out
    np.testing.assert_array_equal(out, expected, err_msg=str(case))
    if room is not None:  # what lies between its elements stays as it was
        assert np.isnan(room).sum() == room.size - out.size


@pytest.mark.parametrize(("isa", "algorithm", "kind"), rows())
def test_every_row_of_the_table(isa, algorithm, kind):
    rng = np.random.default_rng(5)
    with setting(isa=isa):
        for arguments in ({"stride": 2, "padding": 1}, {"stride": (3, 2), "dilation": (2, 3), "output_padding": 1}):
            case = make_transposed(rng, (2, 6, 7, 5), (6, 40, 4, 3), kind, **arguments)
            with refusal_skips(algorithm):
                y = case.run(algorithm=algorithm)
            check(y, case)


@given(
    size=st.integers(1, 30), kernel=st.integers(1, 12), stride=st.integers(1, 40), dilation=st.integers(1, 12),
    pad=st.integers(0, 40), data=st.data(),
)  # fmt: skip
def test_phases_meet_each_pair_of_tap_and_position_once(size, kernel, stride, dilation, pad, data):
    extent = (size - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1
    extent += data.draw(st.integers(0, max(stride, dilation) - 1))
    if extent < 1:
        return
    met = []
    for phase in phases_of_axis(size, extent, kernel, stride, dilation, pad):
        taps = range(kernel)[phase.taps]
        assert len(taps) == phase.length
        for q in range(phase.count):
            positions = [(k, phase.start + q + m * phase.dilation) for m, k in enumerate(taps)]
            met += [(phase.first + q * phase.step, k, i) for k, i in positions if 0 <= i < size]
    outputs = {(k, i): i * stride - pad + k * dilation for k in range(kernel) for i in range(size)}
    assert sorted(met) == sorted((o, k, i) for (k, i), o in outputs.items() if 0 <= o < extent)


# --------------------------------------------------------------------------------------------------- special cases


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("arguments", [
    {"stride": 64}, {"stride": 64, "padding": 100}, {"stride": 48, "padding": 7, "output_padding": 5},
    {"stride": 30, "dilation": 7}, {"stride": 16, "groups": 2}, {"stride": 40, "dilation": 20, "output_padding": 39},
])  # fmt: skip
def test_phases_as_channels(dtype, bias, arguments):
    """Few channels and many phases, as an inverse short-time Fourier transform has them."""
    groups = arguments.get("groups", 1)
    case = make_transposed(np.random.default_rng(2), (2, 6, 9), (6, 1, 256), dtype, bias, **arguments)
    check(case.run(), case)
    pieces = plan_of(case).pieces
    assert len(pieces) <= (4 * groups if case.dilation == 1 else arguments["stride"])
    check(case.module().eval()(case.x[0]), case.with_arrays(x=case.x[0]))
    out = relayout(np.full_like(case.run(), np.nan), "sliced")
    np.testing.assert_array_equal(case.run(out=out), case.run())


def test_phases_as_channels_in_two_and_three_dimensions():
    rng = np.random.default_rng(3)
    for nd, kernel in ((2, (3, 32)), (3, (2, 1, 32))):
        case = make_transposed(
            rng, (2, 5, *[3] * nd), (5, 2, *kernel), padding=1, stride=kernel, output_padding=[0] * (nd - 1) + [1]
        )
        assert len(plan_of(case).pieces) < np.prod(kernel)
        check(case.run(), case)


def test_one_input_position_has_one_tap_per_output():
    case = make_transposed(np.random.default_rng(4), (2, 8, 1, 1), (8, 16, 4, 4))
    assert all(piece.problem.kernel_h == piece.problem.kernel_w == 1 for piece, _ in plan_of(case).pieces)
    check(case.run(), case)


def test_no_taps_beside_the_input_are_multiplied():
    """Taps that meet nothing but padding are left out, and so are phases that have no others."""
    assert phases_of_axis(1, 1, 101, 1, 1, 50)[0].length == 1
    assert sum(phase.length for phase in phases_of_axis(3, 5, 1001, 1, 1, 499)) <= 7
    x, w = np.ones((1, 1, 2), np.float32), np.full((1, 1, 9), np.inf, np.float32)
    w[0, 0, 4] = 1
    assert np.isfinite(TRANSPOSED[1](x, w, stride=9, padding=4)[0, 0, [0, 9]]).all()


def test_stride_beyond_the_kernel_leaves_the_bias():
    case = make_transposed(np.random.default_rng(5), (1, 2, 3, 3), (2, 3, 2, 2), stride=(5, 3), output_padding=(4, 2))
    y = case.run()
    check(y, case)
    np.testing.assert_array_equal(y[0, :, 2:5], np.broadcast_to(case.bias[:, None, None], (3, 3, y.shape[3])))
    y = case.with_arrays(bias=None).run()
    assert (y[0, :, 2:5] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nd", DIMENSIONS)
def test_batches(nd, dtype):
    case = small_case(nd, dtype, batch=(), stride=2, padding=1)
    y = case.run()
    check(y, case)
    assert y.ndim == nd + 1
    np.testing.assert_array_equal(y, case.with_arrays(x=case.x[None]).run()[0])
    empty = case.with_arrays(x=case.x[None][:0])
    assert empty.run().shape == (0, *y.shape)
    assert empty.module().eval()(empty.x).shape == (0, *y.shape)


@pytest.mark.parametrize("nd", DIMENSIONS)
@pytest.mark.parametrize("algorithm", [None, "reference"])
def test_no_input_channels_leave_the_bias(nd, algorithm):
    case = make_transposed(np.random.default_rng(3), (2, 0, *SIZES[nd]), (0, 3, *[2] * nd), stride=2)
    y = case.run(algorithm=algorithm)
    np.testing.assert_array_equal(y, np.broadcast_to(case.bias.reshape(-1, *[1] * nd), y.shape))


@pytest.mark.parametrize("kind", "bBhHiIlLqQeFD")
@pytest.mark.parametrize("nd", DIMENSIONS)
def test_other_number_types(nd, kind):
    dtype, rng = np.dtype(kind), np.random.default_rng(1)
    x, w, bias = (rng.integers(0, 3, shape) for shape in ((2, 4, *SIZES[nd]), (4, 1, *[2] * nd), 2))
    if dtype.kind == "c":
        x, w = x * (1 - 2j), w * (2 + 1j)
    case = TransposedCase(x.astype(dtype), w.astype(dtype), bias.astype(dtype), stride=2, padding=1, groups=2)
    y = case.run()
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, case.expected()[0])


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_it_is_the_adjoint(nd):
    """<conv(x), y> = <x, conv_transpose(y)> with the same weight."""
    rng = np.random.default_rng(6)
    x, w = fill(rng, (2, 4, *[9] * nd), np.float64), fill(rng, (6, 2, *[3] * nd), np.float64)
    arguments = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    y = getattr(pyconv, f"conv{nd}d")(x, w, **arguments)
    g = fill(rng, y.shape, np.float64)
    back = TRANSPOSED[nd](g, w, **arguments)
    extra = [a - b for a, b in zip(x.shape[2:], back.shape[2:])]
    back = TRANSPOSED[nd](g, w, output_padding=extra, **arguments)
    np.testing.assert_allclose((y * g).sum(), (x * back).sum(), rtol=1e-12)


def test_threads_and_batch_do_not_change_bits():
    case = make_transposed(np.random.default_rng(7), (3, 32, 20, 20), (32, 48, 4, 4), stride=2, padding=1)
    with setting(threads=1):
        y = case.run()
        np.testing.assert_array_equal(case.with_arrays(x=case.x[1:2]).run(), y[1:2])
    with setting(threads=2):
        np.testing.assert_array_equal(case.run(), y)


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_arguments_are_torchs_in_names_and_order(nd):
    parameters = inspect.signature(TRANSPOSED[nd]).parameters
    names = "input weight bias stride padding output_padding groups dilation".split()
    assert list(parameters)[:8] == names
    assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[8:])
    assert [p.default for p in parameters.values()][2:8] == [None, 1, 0, 0, 1, 1]
    assert TRANSPOSED[nd] is getattr(pyconv, f"conv_transpose{nd}d")
    case = small_case(nd)
    y = TRANSPOSED[nd](bias=case.bias, groups=1, input=case.x, padding=[1] * nd, weight=case.w, dilation=1, stride=(2,))
    np.testing.assert_array_equal(y, TRANSPOSED[nd](case.x, case.w, case.bias, 2, 1))


def test_out_that_overlaps_the_input_is_computed_aside():
    room = fill(np.random.default_rng(8), 2000, np.float32)
    x = room[:600].reshape(1, 6, 10, 10)
    out = room[50 : 50 + 4 * 441].reshape(1, 4, 21, 21)
    case = TransposedCase(x, fill(np.random.default_rng(9), (6, 4, 3, 3), np.float32), stride=2)
    case.expected()
    assert case.run(out=out) is out
    check(native(out), case)


# ---------------------------------------------------------------------------------------------------------- errors

X, W = np.ones((1, 4, 5, 5), np.float32), np.ones((4, 2, 3, 3), np.float32)
ERRORS = [
    (ValueError, "input", {"input": X[0, 0]}),
    (ValueError, "input", {"input": X[:, :3]}),
    (ValueError, "input", {"input": X[..., :0]}),
    (TypeError, "input", {"input": X.tolist()}),
    (TypeError, "weight", {"weight": W.astype("f8")}),
    (ValueError, "weight", {"weight": W[0]}),
    (ValueError, "weight", {"weight": W[..., :0]}),
    (ValueError, "weight", {"weight": W[:, :0]}),
    (ValueError, "bias", {"bias": np.ones(3, "f4")}),
    (ValueError, "bias", {"bias": np.ones(2, "f4"), "groups": 2}),
    (TypeError, "bias", {"bias": np.ones(2)}),
    (ValueError, "groups", {"groups": 3}),
    (ValueError, "groups", {"groups": 0}),
    (TypeError, "groups", {"groups": 1.0}),
    (TypeError, "padding", {"padding": "same"}),
    (ValueError, "padding", {"padding": -1}),
    (ValueError, "padding", {"padding": 4}),
    (ValueError, "padding", {"padding": (1, 2, 3)}),
    (ValueError, "stride", {"stride": 0}),
    (TypeError, "stride", {"stride": True}),
    (ValueError, "dilation", {"dilation": 0}),
    (ValueError, "output_padding", {"output_padding": 1}),
    (ValueError, "output_padding", {"output_padding": -1, "stride": 2}),
    (ValueError, "output_padding", {"output_padding": (1, 2), "stride": 2}),
    (TypeError, "output_padding", {"output_padding": 1.0, "stride": 2}),
    (ValueError, "algorithm", {"algorithm": "magic"}),
    (ValueError, "accuracy", {"accuracy": "good"}),
    (ValueError, "out", {"out": np.empty((1, 2, 6, 7), "f4")}),
    (TypeError, "out", {"out": np.empty((1, 2, 7, 7))}),
]


@pytest.mark.parametrize(("kind", "argument", "arguments"), ERRORS)
def test_errors(kind, argument, arguments):
    with pytest.raises(kind, match=rf"^conv_transpose2d: argument '{argument}' .*, got "):
        TRANSPOSED[2](**{"input": X, "weight": W, **arguments})


def scattered(x, w, shape, stride=1, padding=0, dilation=1, output_padding=0, groups=1):
    """The transposed convolution by its definition, product by product: for steps of any size."""
    nd = w.ndim - 2
    assert groups == 1
    assert shape[2:] == tuple(
        (n - 1) * int(stride) - 2 * int(padding) + int(dilation) * (k - 1) + int(output_padding) + 1
        for n, k in zip(x.shape[2:], w.shape[2:])
    )
    y = np.zeros(shape)
    for position in np.ndindex(x.shape[2:]):
        for tap in np.ndindex(w.shape[2:]):
            place = [i * int(stride) + k * int(dilation) - int(padding) for i, k in zip(position, tap)]
            if all(0 <= p < size for p, size in zip(place, shape[-nd:])):
                y[(..., *place)] += x[(..., *position)] @ w[(..., *tap)]
    return y


@pytest.mark.parametrize("nd", DIMENSIONS)
@pytest.mark.parametrize("argument", ["stride", "padding", "output_padding", "dilation", "groups"])
def test_hostile_numbers(nd, argument):
    """A right result, or an error that names the function: never a crash, a hang or a wrong size."""
    case = make_transposed(np.random.default_rng(0), (1, 2, *[2] * nd), (2, 1, *[2] * nd))
    values = [0, 1, -1, 2**15, 2**31 - 1, 2**31, 2**32, 2**59, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)]
    values += [True, np.True_, 1.0, "3", None, (1, 1, 1, 1), (), np.int64(1), float("nan")]
    for value in values:
        for other in ({}, {"stride": 2**40}, {"dilation": 2**40, "padding": 2**39}):
            if nd > 1 and max(other.values(), default=0) >= 2**39 and argument != "padding":
                continue  # a huge result on each axis
            arguments = {**other, argument: value}
            try:
                with little_memory(2**25):
                    y = TRANSPOSED[nd](case.x, case.w, None, **arguments)
            except (ValueError, TypeError) as error:
                assert str(error).startswith(f"conv_transpose{nd}d: argument '"), error
            except MemoryError:
                pass
            else:
                np.testing.assert_allclose(y, scattered(case.x, case.w, y.shape, **arguments), rtol=1e-6, atol=1e-6)


def test_huge_steps_within_a_small_result():
    """Steps of 2**40 that the padding takes back: nothing may be allocated or walked through in their size."""
    x, w = np.float32([[[1, 2]]]), np.float32([[[1, 10, 100]]])
    huge = 2**40
    y = TRANSPOSED[1](x, w, stride=huge, dilation=huge, padding=(3 * huge) // 2 - 2)
    assert y.tolist() == [[[0, 0, 0, 0, 0]]]
    y = TRANSPOSED[1](x[..., :1], w, dilation=huge, padding=huge - 2)
    assert y.tolist() == [[[0, 0, 10, 0, 0]]]


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_oracle_by_hand(nd):
    """The oracle itself on a case that can be summed by hand: kernels of 3 ones overlap in one element at stride 2."""
    y, magnitude = convolve_transposed(np.ones((1, 2, *[2] * nd)), np.ones((2, 1, *[3] * nd)), stride=2)
    assert y.shape == (1, 1, *[5] * nd)
    assert y[(0, 0, *[2] * nd)] == 2 * 2**nd == magnitude.max()
    assert y.flat[0] == 2
