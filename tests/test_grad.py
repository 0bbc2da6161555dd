"""pyconv.nn.grad: gradients of convolutions, against the chain rule, finite differences and torch.autograd."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import (
    CONV,
    DTYPES,
    Case,
    build_case,
    check,
    fill,
    make_case,
    native,
    refusal_skips,
    relayout,
    rows,
    setting,
)
from transposed import GRADIENTS, gradients

from pyconv import nn
from pyconv.transposed import weight_gradient_plan
from pyconv.transposed_problem import gradient_problem

X, W, DY = np.ones((2, 4, 5, 6), np.float32), np.ones((6, 2, 3, 3), np.float32), np.ones((2, 6, 3, 4), np.float32)


@st.composite
def cases(draw, **options):
    dtype = draw(st.sampled_from(DTYPES))
    case = build_case(lambda low, high: draw(st.integers(low, high)), dtype, **options)
    if isinstance(case.padding, str):  # torch's gradients take numbers only
        case.padding = draw(st.integers(0, 3))
        fits = [n + 2 * case.padding > 3 * (k - 1) for n, k in zip(case.x.shape[-case.nd :], case.w.shape[2:])]
        case.padding = case.padding if all(fits) else 12
    return case.with_arrays(x=case.x if case.x.ndim == case.nd + 2 else case.x[None], bias=None)


def gradient_of_output(case, dtype=None, integers=False):
    """Some gradient with respect to the result of the case."""
    return fill(np.random.default_rng(case.seed), case.run().shape, dtype or case.x.dtype, integers)


def arguments_of(case):
    return case.stride, case.padding, case.dilation, case.groups


def both(case, dy, x=None, w=None, **extra):
    """The gradients with respect to input and weight."""
    x, w = case.x if x is None else x, case.w if w is None else w
    of_input, of_weight = GRADIENTS[case.nd]
    return (
        of_input(x.shape, w, dy, *arguments_of(case), **extra),
        of_weight(x, w.shape, dy, *arguments_of(case), **extra),
    )


def assert_gradients(got, case, dy, factor=16):
    """Within factor * u * sum |terms| of the chain rule's; a subnormal per term, since 'fast' flushes them.

    Integers are equal.
    """
    whole = native(case.x).dtype.kind in "iu"
    for y, array, (expected, magnitude) in zip(
        got, (case.x, case.w), gradients(native(case.x), native(case.w), native(dy), *arguments_of(case))
    ):
        assert type(y) is np.ndarray
        assert y.dtype == native(array).dtype
        assert y.shape == array.shape
        assert y.flags.c_contiguous
        if whole:
            np.testing.assert_array_equal(y, expected.astype(y.dtype), err_msg=str(case))
            continue
        info = np.finfo(y.dtype)
        # float64: the expected value is rounded as well
        limit = (factor + (32 if y.dtype == np.float64 else 0)) * float(info.eps) / 2 * magnitude
        assert (np.abs(y - expected) <= limit + dy.size * float(info.tiny)).all(), case


# ---------------------------------------------------------------------------------------------------- right results


@given(case=cases())
def test_any_parameters(case):
    dy = gradient_of_output(case)
    assert_gradients(both(case, dy), case, dy)


@given(case=cases(integers=True))
def test_whole_numbers_are_exact(case):
    dy = gradient_of_output(case, integers=True)
    expected = gradients(case.x, case.w, dy, *arguments_of(case))
    for algorithm in (None, "reference"):
        for y, (value, _) in zip(both(case, dy, accuracy="exact", algorithm=algorithm), expected):
            np.testing.assert_array_equal(y, value)


@pytest.mark.parametrize(
    "layout", ["fortran", "channels_last", "reversed", "sliced", "broadcast", "unaligned", "swapped"]
)
@given(case=cases())
def test_any_layout(layout, case):
    dy = relayout(gradient_of_output(case), layout)
    case = case.with_arrays(x=relayout(case.x, layout), w=relayout(case.w, layout))
    before = [a.tobytes() for a in (case.x, case.w, dy)]
    assert_gradients(both(case, dy), case, dy)
    assert before == [a.tobytes() for a in (case.x, case.w, dy)]


@pytest.mark.parametrize(("isa", "algorithm", "kind"), rows())
@pytest.mark.parametrize("kernel", [1, 3])
def test_every_row_of_the_table(isa, algorithm, kind, kernel):
    rng = np.random.default_rng(5)
    small = kind.startswith("int")  # the oracle's sums do not wrap around
    case = make_case(rng, (3, 48, 9, 8), (40, 48, kernel, kernel), kind, False, small, stride=2, padding=1, seed=1)
    with setting(isa=isa):
        dy = gradient_of_output(case, integers=small)
        with refusal_skips(algorithm):
            gradients = both(case, dy, algorithm=algorithm)
        assert_gradients(gradients, case, dy)


@given(case=cases(), data=st.data())
def test_finite_differences(case, data):
    """A convolution is linear in each argument, so that a difference quotient has rounding errors alone."""
    case = case.with_arrays(x=case.x.astype(np.float64), w=case.w.astype(np.float64))
    dy = gradient_of_output(case)
    of_x, of_w = both(case, dy)
    y = case.run()
    scale = np.abs(dy).sum() * (1 + np.abs(y).max())
    for gradient, name in ((of_x, "x"), (of_w, "w")):
        array = getattr(case, name)
        for _ in range(4):
            place = tuple(data.draw(st.integers(0, n - 1)) for n in array.shape)
            moved = array.copy()
            moved[place] += 1
            change = ((case.with_arrays(**{name: moved}).run() - y) * dy).sum()
            assert abs(change - gradient[place]) <= 1e-12 * scale, (case, name, place)


@given(case=cases())
def test_torchs_gradients(case):
    torch = pytest.importorskip("torch")
    dy = gradient_of_output(case)
    x, w = (torch.from_numpy(a).requires_grad_() for a in (case.x, case.w))
    numbers = [tuple(int(i) for i in np.atleast_1d(v)) for v in arguments_of(case)]
    y = getattr(torch.nn.functional, f"conv{case.nd}d")(x, w, None, *numbers[:3], numbers[3][0])
    assert dy.shape == tuple(y.shape)
    known = gradients(case.x, case.w, dy, *arguments_of(case))
    for ours, theirs, (_, magnitude) in zip(
        both(case, dy), torch.autograd.grad(y, (x, w), torch.from_numpy(dy)), known
    ):
        assert (np.abs(ours - theirs.numpy()) <= 128 * np.finfo(ours.dtype).eps * magnitude + 1e-30).all(), case


@pytest.mark.parametrize("nd", CONV)
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_torchs_samples(nd, kind):
    torch = pytest.importorskip("torch")
    pytest.importorskip("expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    op = next(op for op in op_db if op.name == f"nn.functional.conv{nd}d")
    ran = 0
    for sample in op.sample_inputs("cpu", getattr(torch, kind)):
        names = ("weight", "bias", "stride", "padding", "dilation", "groups")
        given_ = {**dict(zip(names, sample.args)), **sample.kwargs}
        x, w = sample.input.detach(), given_.pop("weight").detach()
        given_.pop("bias", None)
        if x.dim() == nd + 1 or isinstance(given_.get("padding"), str):
            continue  # neither torch nor pyconv takes them here
        dy = torch.randn_like(getattr(torch.nn.functional, f"conv{nd}d")(x, w, None, **given_))
        for ours, theirs in (
            (
                GRADIENTS[nd][0](tuple(x.shape), w.numpy(), dy.numpy(), **given_),
                getattr(torch.nn.grad, f"conv{nd}d_input")(x.shape, w, dy, **given_),
            ),
            (
                GRADIENTS[nd][1](x.numpy(), tuple(w.shape), dy.numpy(), **given_),
                getattr(torch.nn.grad, f"conv{nd}d_weight")(x, w.shape, dy, **given_),
            ),
        ):
            assert ours.shape == tuple(theirs.shape)
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4)
        ran += 1
    assert ran >= 3


@pytest.mark.parametrize("nd", CONV)
@pytest.mark.parametrize("groups", [1, 2])
def test_empty_batch(nd, groups):
    x, w = np.zeros((0, 4, *[5] * nd), np.float32), np.ones((6, 4 // groups, *[3] * nd), np.float32)
    dy = np.zeros((0, 6, *[3] * nd), np.float32)
    assert GRADIENTS[nd][0](x.shape, w, dy, groups=groups).shape == x.shape
    gradient = GRADIENTS[nd][1](x, w.shape, dy, groups=groups)
    assert gradient.shape == w.shape
    assert (gradient == 0).all()


@pytest.mark.parametrize("nd", CONV)
@pytest.mark.parametrize("kind", "eiD")
def test_other_number_types(nd, kind):
    rng, dtype = np.random.default_rng(1), np.dtype(kind)
    x, w, dy = (
        rng.integers(0, 3, shape).astype(dtype) for shape in ((2, 4, *[5] * nd), (2, 2, *[2] * nd), (2, 2, *[2] * nd))
    )
    case = Case(x, w, stride=3, groups=2, dilation=1, padding=0)
    for y, (expected, _) in zip(both(case, dy), gradients(x.real, w.real, dy.real, 3, 0, 1, 2)):
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, expected)


def test_threads_do_not_change_bits():
    case = make_case(np.random.default_rng(7), (4, 32, 20, 20), (48, 32, 3, 3), padding=1, bias=False, seed=2)
    dy = gradient_of_output(case)
    with setting(threads=1):
        one = both(case, dy)
    with setting(threads=2):
        for a, b in zip(one, both(case, dy)):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("nd", CONV)
def test_of_a_layer(nd):
    """A step down the gradient makes the squared error of a layer smaller."""
    layer = getattr(nn, f"Conv{nd}d")(3, 4, 3, padding=1)
    x = fill(np.random.default_rng(1), (2, 3, *[6] * nd), np.float32)
    before = layer(x)
    layer.weight -= 1e-3 * GRADIENTS[nd][1](x, layer.weight.shape, before, padding=layer.padding)
    assert (layer(x) ** 2).sum() < (before**2).sum()
    check(layer(x), Case(x, layer.weight, layer.bias, padding=1))


# ---------------------------------------------------------------------------------------------------------- errors

INPUT_ERRORS = [
    (ValueError, "input_size", {"input_size": (4, 5, 6)}),
    (ValueError, "input_size", {"input_size": (2, 3, 5, 6)}),
    (ValueError, "input_size", {"input_size": (2, 4, 0, 6)}),
    (ValueError, "input_size", {"input_size": (2, 4, -5, 6)}),
    (ValueError, "input_size", {"input_size": (2**62, 4, 5, 6)}),
    (TypeError, "input_size", {"input_size": 5}),
    (TypeError, "input_size", {"input_size": X}),
    (TypeError, "input_size", {"input_size": (2, 4, 5.0, 6)}),
    (ValueError, "weight", {"weight": W[0]}),
    (ValueError, "weight", {"weight": W[..., :0]}),
    (ValueError, "weight", {"input_size": (2, 4, 2, 6)}),
    (TypeError, "weight", {"weight": W.tolist()}),
]
WEIGHT_ERRORS = [
    (ValueError, "weight_size", {"weight_size": (6, 2, 3)}),
    (ValueError, "weight_size", {"weight_size": (6, 2, 0, 3)}),
    (ValueError, "weight_size", {"weight_size": (0, 2, 3, 3)}),
    (ValueError, "weight_size", {"weight_size": (6, 2, 3, 2**62)}),
    (ValueError, "weight_size", {"weight_size": (6, 2, 7, 3)}),
    (TypeError, "weight_size", {"weight_size": W}),
    (ValueError, "input", {"input": X[0]}),
    (ValueError, "input", {"input": X[:, :3]}),
    (ValueError, "input", {"input": X[..., :0]}),
    (TypeError, "input", {"input": None}),
]
ERRORS = [
    (ValueError, "grad_output", {"grad_output": DY[0]}),
    (ValueError, "grad_output", {"grad_output": DY[:1]}),
    (ValueError, "grad_output", {"grad_output": DY[:, :5]}),
    (ValueError, "grad_output", {"grad_output": DY[..., :3]}),
    (TypeError, "grad_output", {"grad_output": DY.astype("f8")}),
    (TypeError, "grad_output", {"grad_output": DY.astype(bool)}),
    (ValueError, "dilation", {"dilation": 0}),
    (ValueError, "stride", {"stride": 0}),
    (TypeError, "stride", {"stride": 1.0}),
    (TypeError, "padding", {"padding": "same"}),
    (ValueError, "padding", {"padding": -1}),
    (ValueError, "padding", {"padding": 2**62}),
    (ValueError, "groups", {"groups": 0}),
    (ValueError, "groups", {"groups": 4}),
    (ValueError, "algorithm", {"algorithm": "magic"}),
    (ValueError, "accuracy", {"accuracy": "good"}),
]


@pytest.mark.parametrize(("kind", "argument", "arguments"), INPUT_ERRORS + ERRORS)
def test_input_errors(kind, argument, arguments):
    arguments = {"input_size": X.shape, "weight": W, "grad_output": DY, "groups": 2, **arguments}
    with pytest.raises(kind, match=rf"^conv2d_input: argument '{argument}' .*, got "):
        nn.grad.conv2d_input(**arguments)


@pytest.mark.parametrize(("kind", "argument", "arguments"), WEIGHT_ERRORS + ERRORS)
def test_weight_errors(kind, argument, arguments):
    arguments = {"input": X, "weight_size": W.shape, "grad_output": DY, "groups": 2, **arguments}
    with pytest.raises(kind, match=rf"^conv2d_weight: argument '{argument}' .*, got "):
        nn.grad.conv2d_weight(**arguments)


@pytest.mark.parametrize("nd", CONV)
def test_arguments_are_torchs_in_names_and_order(nd):
    torch = pytest.importorskip("torch")
    for ours, what in zip(GRADIENTS[nd], ("input", "weight")):
        theirs = inspect.signature(getattr(torch.nn.grad, f"conv{nd}d_{what}")).parameters.values()
        parameters = list(inspect.signature(ours).parameters.values())
        assert [(p.name, p.default) for p in parameters[: len(theirs)]] == [(p.name, p.default) for p in theirs]
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters[len(theirs) :])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int8", "int64", "complex64"])
@pytest.mark.parametrize(("x_shape", "w_shape", "stride"), [
    ((5, 6, 30, 30), (10, 3, 1, 1), 1), ((5, 4, 60, 60), (6, 2, 3, 2), 1), ((5, 4, 900), (6, 2, 1), 1),
    ((3, 4, 9, 10, 11), (6, 2, 1, 1, 1), 1), ((5, 4, 30, 31), (6, 2, 1, 1), (1, 2)),
    ((5, 12, 30, 30), (10, 6, 1, 1), 1), ((5, 12, 60, 60), (6, 6, 3, 2), 1),
])  # fmt: skip
def test_a_few_images_at_a_time(x_shape, w_shape, stride, dtype):
    """Shapes whose images are not all taken at once: their sums are added, and halves rounded once."""
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    dtype, nd = np.dtype(dtype), len(w_shape) - 2
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, x_shape).astype(dtype)
    out = CONV[nd](x, rng.integers(-3, 4, w_shape).astype(dtype), stride=stride, groups=2)
    dy = rng.integers(-3, 4, out.shape).astype(dtype)
    problem = gradient_problem("test", nd, x, w_shape, dy, stride, 0, 1, 2, False)[0]
    plan = weight_gradient_plan("test", problem)
    (plan,) = plan.plans.values() if nd == 3 else (plan,)
    assert 1 <= plan.images < plan.problem.n
    got = GRADIENTS[nd][1](x, w_shape, dy, stride, groups=2)
    wide = np.complex128 if dtype.kind == "c" else np.float64
    exact = gradients(x.astype(wide).real, np.zeros(w_shape), dy.astype(wide).real, stride, 0, 1, 2)[1][0]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(wide), exact.astype(np.int64).astype(dtype).astype(wide))
    if dtype.kind in "fc" and dtype.itemsize > 2:
        x, dy = (fill(rng, a.shape, np.float64).astype(dtype) for a in (x, dy))
        got = GRADIENTS[nd][1](x, w_shape, dy, stride, groups=2)
        parts = [GRADIENTS[nd][1](x[i : i + 1], w_shape, dy[i : i + 1], stride, groups=2) for i in range(len(x))]
        scale = 1000 * np.finfo(dtype).eps * np.abs(got).max()
        np.testing.assert_allclose(got, np.sum(parts, axis=0), rtol=0, atol=scale)
