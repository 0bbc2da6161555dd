"""What a convolution can end with: an activation, a residual, `out` that is added to. Any of them with any padding."""

import numpy as np
import pytest
from ending import ACTIVATIONS, EndedCase, EndedTransposed, build_ended, build_ended_transposed, finish
from hypothesis import given
from hypothesis import strategies as st
from oracle import CONV, DTYPES, MODULE, check, fill, native, refusal_skips, relayout, rows, setting
from transposed import LAYERS, TRANSPOSED

from pyconv import nn

DIMENSIONS = (1, 2, 3)
SIZES = {1: (19,), 2: (7, 9), 3: (4, 5, 6)}
LAYOUTS = ("plain", "fortran", "channels_last", "reversed", "sliced", "unaligned", "swapped", "readonly")


@st.composite
def cases(draw, build):
    dtype = draw(st.sampled_from([*DTYPES, *DTYPES, np.float16]))
    return build(lambda low, high: draw(st.integers(low, high)), dtype)


def small_case(nd, dtype=np.float32, batch=(2,), **arguments):
    rng = np.random.default_rng(nd)
    x, w = fill(rng, (*batch, 4, *SIZES[nd]), dtype), fill(rng, (6, 4, *[3] * nd), dtype)
    case = EndedCase(x, w, fill(rng, 6, dtype), padding=1, stride=2, **arguments)
    return case.with_arrays(residual=fill(rng, case.expected()[0].shape, dtype))


def small_transposed(nd, dtype=np.float32, batch=(2,), **arguments):
    """Stride beyond the kernel: there are outputs that no tap reaches."""
    rng = np.random.default_rng(nd)
    x, w = fill(rng, (*batch, 4, *SIZES[nd]), dtype), fill(rng, (4, 6, *[2] * nd), dtype)
    options = {"padding": 1, "stride": 3, "output_padding": 1, **arguments}
    case = EndedTransposed(x, w, fill(rng, 6, dtype), **options)
    return case.with_arrays(residual=fill(rng, case.expected()[0].shape, dtype))


SMALL = {"conv": small_case, "conv_transpose": small_transposed}


# ---------------------------------------------------------------------------------------------- any parameters


@given(case=cases(build_ended))
def test_any_parameters(case):
    check(case.run(), case)


@given(case=cases(build_ended_transposed))
def test_any_transposed_parameters(case):
    check(case.run(), case)


@given(case=st.one_of(cases(build_ended), cases(build_ended_transposed)), frozen=st.booleans())
def test_any_layer(case, frozen):
    if case.padding_mode == "constant":
        case = case.with_arrays(padding_mode="zeros", padding_value=0)
    layer = case.module()
    if frozen:
        layer.eval()
    for _ in range(2):  # the second call finds what the first packed
        check(layer(case.x, residual=case.residual), case)


@given(
    case=st.one_of(cases(build_ended), cases(build_ended_transposed)),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
)
def test_residual_and_out_of_any_layout(case, layouts):
    plain = case.run()
    out = relayout(np.full_like(plain, np.nan), layouts[0]) if layouts[0] not in ("swapped", "readonly") else None
    residual = None if case.residual is None else relayout(case.residual, layouts[1])
    before = None if residual is None else (residual.tobytes(), residual.flags.writeable)
    room = out.base if layouts[0] == "sliced" else None
    y = case.run(out=out, residual=residual)
    np.testing.assert_array_equal(y, plain, err_msg=str(case))
    assert out is None or y is out
    assert before == (None if residual is None else (residual.tobytes(), residual.flags.writeable))
    if room is not None:
        assert np.isnan(room).sum() == room.size - out.size
    if case.residual is not None and out is not None:  # the same sums, from out itself
        out[...] = case.residual
        assert case.run(out=out, residual=None, accumulate=True) is out
        np.testing.assert_array_equal(out, plain, err_msg=str(case))


# --------------------------------------------------------------------------------------------- every kind and row


@pytest.mark.parametrize("dtype", [*DTYPES, np.float16])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("kind", SMALL)
def test_every_activation(kind, activation, dtype):
    for nd in DIMENSIONS:
        case = SMALL[kind](nd, dtype).with_arrays(activation=activation)
        check(case.run(), case)
        check(case.run(algorithm="reference"), case)
        check(case.with_arrays(residual=None).run(), case.with_arrays(residual=None))
        check(case.module().eval()(case.x, residual=case.residual), case)


@pytest.mark.parametrize(("isa", "algorithm", "kind"), rows())
def test_every_row_of_the_table(isa, algorithm, kind):
    rng = np.random.default_rng(6)
    whole = np.dtype(kind).kind != "f"
    channels = 8 if algorithm == "depthwise" else 40
    with setting(isa=isa):
        x, w = fill(rng, (2, channels, 16, 15), kind), fill(rng, (channels, channels, 3, 3), kind)
        for activation in (None,) if whole else (None, "relu", "silu", ("clamp", -1, 2.5)):
            case = EndedCase(x, w, fill(rng, channels, kind), padding=((1, 2), (0, 1)), activation=activation)
            case = case.with_arrays(residual=fill(rng, case.expected()[0].shape, kind))
            with refusal_skips(algorithm):
                y = case.run(algorithm=algorithm)
            check(y, case)
            out = relayout(case.residual, "channels_last")
            np.testing.assert_array_equal(
                case.run(algorithm=algorithm, residual=None, accumulate=True, out=out), y, err_msg=algorithm
            )


@pytest.mark.parametrize("kind", "bBhHiIlLqQFD")
@pytest.mark.parametrize("name", SMALL)
def test_residuals_of_other_numbers(name, kind):
    dtype, rng = np.dtype(kind), np.random.default_rng(4)

    def draw(shape):
        a = rng.integers(0, 9, shape)
        return (a * (1 - 2j) if dtype.kind == "c" else a).astype(dtype)

    case = SMALL[name](2)
    case = case.with_arrays(
        x=draw(case.x.shape), w=draw(case.w.shape), bias=draw(6), residual=draw(case.residual.shape)
    )
    expected = case.expected()[0].astype(dtype)
    np.testing.assert_array_equal(case.run(), expected)
    out = case.residual.copy()
    np.testing.assert_array_equal(case.run(residual=None, out=out, accumulate=True), expected)


def test_bfloat16():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    for make in SMALL.values():
        case = make(2, activation="silu")
        arrays = {name: getattr(case, name).astype(bfloat16) for name in ("x", "w", "bias", "residual")}
        narrow, wide = case.with_arrays(**arrays), case.with_arrays(**{k: v.astype("f4") for k, v in arrays.items()})
        y, expected = narrow.run(), wide.expected()[0]
        assert y.dtype == bfloat16
        np.testing.assert_allclose(y.astype(np.float64), expected, rtol=2**-8, atol=1e-4)
        out = relayout(narrow.residual, "channels_last")
        np.testing.assert_array_equal(narrow.run(residual=None, out=out, accumulate=True).astype("f4"), y.astype("f4"))


def test_a_nan_stays_one():
    x, w = np.float32([[[np.nan, -1, 2]]]), np.ones((1, 1, 1), np.float32)
    for activation in ACTIVATIONS:
        y = CONV[1](x, w, activation=activation)
        assert np.isnan(y[0, 0, 0])
        assert np.isfinite(y[0, 0, 1:]).all()


@pytest.mark.parametrize("algorithm", [None, "reference"])
def test_no_input_channels_leave_bias_and_residual(algorithm):
    residual = fill(np.random.default_rng(1), (2, 3, 5), np.float32)
    bias = np.float32([1, 2, 3])
    x, w = np.zeros((2, 0, 5), np.float32), np.zeros((3, 0, 1), np.float32)
    y = CONV[1](x, w, bias, residual=residual, activation="relu", algorithm=algorithm)
    np.testing.assert_array_equal(y, (residual + bias[:, None]).clip(0))


# --------------------------------------------------------------------------------------- arrays that share memory


@pytest.mark.parametrize("kind", SMALL)
def test_residual_that_overlaps_out(kind):
    case = SMALL[kind](2)
    expected, size = case.run(), case.residual.size
    for shift in (0, 1, 8, 50):
        room = np.empty(size + shift, np.float32)
        residual, out = room[:size].reshape(expected.shape), room[shift:].reshape(expected.shape)
        residual[...] = case.residual
        assert case.run(residual=residual, out=out) is out
        np.testing.assert_array_equal(out, expected)
    square = np.float32([[[[1, 2], [3, 4]]]])
    one = np.ones((1, 1, 1, 1), np.float32)
    out = square.copy()
    CONV[2](square * 10, one, residual=out.swapaxes(2, 3), out=out)
    np.testing.assert_array_equal(out, [[[[11, 23], [32, 44]]]])


def test_input_that_is_the_residual_and_out():
    """A residual block that computes in place."""
    rng = np.random.default_rng(3)
    x, w = fill(rng, (2, 5, 8, 8), np.float32), fill(rng, (5, 5, 3, 3), np.float32)
    expected = CONV[2](x, w, padding=1) + x
    for extra in ({"residual": x}, {"residual": x, "out": x.copy()}):
        np.testing.assert_allclose(CONV[2](x, w, padding=1, **extra), expected, atol=1e-5)
    for extra in ({"residual": x}, {"accumulate": True}):
        out = x.copy()
        extra = {"residual": out} if "residual" in extra else extra
        assert CONV[2](out, w, padding=1, out=out, **extra) is out
        np.testing.assert_allclose(out, expected, atol=1e-5)


def test_arguments_stay_as_they_are():
    for make in SMALL.values():
        case = make(2)
        before = [a.copy() for a in (case.x, case.w, case.bias, case.residual)]
        y = case.run()
        assert not np.shares_memory(y, case.residual)
        for array, old in zip((case.x, case.w, case.bias, case.residual), before):
            np.testing.assert_array_equal(array, old)


# ------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_layers_take_out_and_residual(nd):
    for case in (small_case(nd, activation="relu"), small_transposed(nd, activation="relu")):
        layer = case.module()
        for mode in (True, False, False):
            layer.train(mode)
            y = layer(case.x, residual=case.residual)
            check(y, case)
            for out in (np.full_like(y, np.nan), relayout(np.full_like(y, np.nan), "channels_last")):
                assert layer(case.x, residual=case.residual, out=out) is out
                np.testing.assert_array_equal(out, y)
            plain = case.with_arrays(residual=None)
            check(layer(case.x, out=out), plain)
            check(layer(case.x), plain)


def test_activation_is_an_attribute():
    layer = nn.Conv2d(2, 3, 3, activation="relu").eval()
    assert repr(layer) == "Conv2d(2, 3, kernel_size=(3, 3), stride=(1, 1), activation='relu')"
    x = fill(np.random.default_rng(0), (1, 2, 5, 5), np.float32)
    y = layer(x)
    layer.activation = None
    assert repr(layer) == "Conv2d(2, 3, kernel_size=(3, 3), stride=(1, 1))"
    np.testing.assert_array_equal(layer(x).clip(0), y)
    layer.activation = ("clamp", 0, None)
    np.testing.assert_array_equal(layer(x), y)
    with pytest.raises(ValueError, match="Conv2d: argument 'activation' must be None, 'relu'"):
        layer.activation = "rely"


def test_output_size_with_a_residual():
    layer = nn.ConvTranspose2d(2, 3, 3, stride=2)
    x = fill(np.random.default_rng(0), (1, 2, 5, 5), np.float32)
    residual = fill(np.random.default_rng(1), (1, 3, 12, 12), np.float32)
    expected = layer(x, (12, 12)) + residual
    for mode in (True, False):
        np.testing.assert_allclose(layer.train(mode)(x, (12, 12), residual=residual), expected, atol=1e-6)


# -------------------------------------------------------------------------------------------------------- errors

WRONG_ACTIVATIONS = [
    (ValueError, "rely"), (ValueError, ""), (ValueError, "clamp"), (ValueError, ("clamp", 1)),
    (ValueError, ("relu", 1)),
    (ValueError, ("clamp", 2, 1)), (ValueError, ("clamp", float("nan"), 1)), (ValueError, ("leaky_relu", 1, 2)),
    (ValueError, ("leaky_relu", float("inf"))), (ValueError, ("gelu", "erf")), (TypeError, 1), (TypeError, True),
    (TypeError, ()), (TypeError, [1]), (TypeError, np.tanh), (TypeError, ("clamp", "0", 1)), (TypeError, b"relu"),
    (TypeError, ("clamp", True, 1)), (TypeError, ("leaky_relu", None)), (TypeError, ("leaky_relu", 1j)),
    (TypeError, ("leaky_relu", np.ones(2))),
]  # fmt: skip


@pytest.mark.parametrize(("error", "activation"), WRONG_ACTIVATIONS, ids=str)
def test_wrong_activations(error, activation):
    for nd in DIMENSIONS:
        for name, functions, layers in (("conv", CONV, MODULE), ("conv_transpose", TRANSPOSED, LAYERS)):
            case = SMALL[name](nd)
            functions[nd](case.x, case.w, activation=("clamp", 1, 1))  # what equals a wrong one may be known already
            with pytest.raises(error, match=rf"^{name}{nd}d: argument 'activation' must"):
                functions[nd](case.x, case.w, activation=activation)
            with pytest.raises(error, match=rf"^{layers[nd].__name__}: argument 'activation' must"):
                layers[nd](4, 6, 3, activation=activation)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "u8", "c8", "c16"])
def test_activations_need_floating_point_numbers(dtype):
    for name, functions in (("conv", CONV), ("conv_transpose", TRANSPOSED)):
        case = SMALL[name](2)
        with pytest.raises(TypeError, match=rf"^{name}2d: argument 'activation' must be None for {np.dtype(dtype)}"):
            functions[2](case.x.astype(dtype), case.w.astype(dtype), activation="relu")
    with pytest.raises(TypeError, match="argument 'activation'"):
        nn.Conv1d(1, 1, 1, dtype=np.complex64, activation="relu")(np.zeros((1, 1, 1), np.complex64))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("nd", DIMENSIONS)
def test_wrong_residuals(nd, name):
    case = SMALL[name](nd)
    y = case.residual
    wrong = [(ValueError, y[:1]), (ValueError, y[0]), (ValueError, y[None]), (ValueError, y[..., :-1])]
    wrong += [(TypeError, y.astype(dtype)) for dtype in ("f8", "f2", "i4", "c8", "?", "O")]
    wrong += [(TypeError, y.tolist()), (TypeError, 1.0), (TypeError, np.ma.masked_array(y)), (TypeError, "residual")]
    layer = case.module().eval()
    layer(case.x)
    for kind, residual in wrong:
        with pytest.raises(kind, match=rf"^{name}{nd}d: argument 'residual' must"):
            case.run(residual=residual)
        with pytest.raises(kind, match=rf"^{name}{nd}d: argument 'residual' must"):
            layer(case.x, residual=residual)
    out = np.full_like(y, 7)
    for kind, argument, arguments in [
        (ValueError, "accumulate", {"residual": None, "accumulate": True}),
        (ValueError, "residual", {"accumulate": True, "out": out}),
        (TypeError, "accumulate", {"accumulate": 1, "out": out}),
        (TypeError, "accumulate", {"accumulate": None}),
        (TypeError, "accumulate", {"accumulate": np.ones(2)}),
        (TypeError, "out", {"residual": None, "accumulate": True, "out": out.tolist()}),
    ]:
        with pytest.raises(kind, match=rf"^{name}{nd}d: argument '{argument}' "):
            case.run(**arguments)
    assert (out == 7).all()


# --------------------------------------------------------------------------------------------------------- torch


def torch_activations(torch):
    f = torch.nn.functional
    return {
        "relu": f.relu, "relu6": f.relu6, "leaky_relu": f.leaky_relu, "silu": f.silu, "hardswish": f.hardswish,
        ("leaky_relu", 0.25): lambda s: f.leaky_relu(s, 0.25), "gelu": f.gelu, "sigmoid": torch.sigmoid,
        "gelu_tanh": lambda s: f.gelu(s, approximate="tanh"), ("gelu", "tanh"): lambda s: f.gelu(s, approximate="tanh"),
        "tanh": torch.tanh, ("clamp", -1, 2.5): lambda s: torch.clamp(s, -1, 2.5),
        ("clamp", None, 0.5): lambda s: torch.clamp(s, None, 0.5),
    }  # fmt: skip


def test_results_are_torchs():
    torch = pytest.importorskip("torch")
    for name, make in SMALL.items():
        case = make(2)
        x, w, bias, residual = (torch.from_numpy(a) for a in (case.x, case.w, case.bias, case.residual))
        function = getattr(torch.nn.functional, f"{name}2d")
        options = {"stride": case.stride, "padding": case.padding}
        if name == "conv_transpose":
            options["output_padding"] = case.output_padding
        total = function(x, w, bias, **options) + residual
        for activation, theirs in torch_activations(torch).items():
            y = case.run(activation=activation)
            np.testing.assert_allclose(y, theirs(total).numpy(), rtol=1e-5, atol=1e-5, err_msg=str(activation))


def test_the_formulas_by_hand():
    s = np.float64([-4, -1, 0, 1, 8])
    for activation, expected in {
        "relu6": [0, 0, 0, 1, 6], "hardswish": [0, -1 / 3, 0, 2 / 3, 8], "leaky_relu": [-0.04, -0.01, 0, 1, 8],
        "silu": [-4 / (1 + np.e**4), -1 / (1 + np.e), 0, np.e / (1 + np.e), 8 / (1 + np.e**-8)],
    }.items():  # fmt: skip
        np.testing.assert_allclose(finish(s, s, activation, None)[0], expected, rtol=1e-12)
        y = CONV[1](s.reshape(1, 1, 5), np.ones((1, 1, 1)), activation=activation)
        np.testing.assert_allclose(native(y)[0, 0], expected, rtol=1e-12)
