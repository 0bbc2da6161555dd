"""Every way to pad: pairs, words and modes of the functional calls and layers, against numpy.pad, torch and ONNX."""

import contextlib
import math
import tracemalloc

import numpy as np
import pytest
from ending import MODES, EndedCase, build_ended, pads_of
from hypothesis import given
from hypothesis import strategies as st
from oracle import CONV, DTYPES, MODULE, check, fill, needs_core, refusal_skips, relayout, rows, setting

from pyconv import nn
from pyconv.nn import functional as F
from pyconv.quantized import conv_integer

DIMENSIONS = (1, 2, 3)
SIZES = {1: (11,), 2: (7, 8), 3: (5, 6, 7)}
PAIRS = ((1, 2), (0, 3), (2, 0))
REFUSED = (ValueError, TypeError)


@st.composite
def cases(draw):
    return build_ended(lambda low, high: draw(st.integers(low, high)), draw(st.sampled_from(DTYPES)))


def make(nd, padding, mode="zeros", value=0, kernel=3, stride=1, dilation=1, dtype=np.float32, batch=(2,), **more):
    rng = np.random.default_rng(nd)
    x, w = fill(rng, (*batch, 4, *SIZES[nd]), dtype), fill(rng, (6, 4, *[kernel] * nd), dtype)
    bias = fill(rng, 6, dtype)
    return EndedCase(x, w, bias, stride, padding, dilation, padding_mode=mode, padding_value=value, **more)


# ---------------------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("nd", DIMENSIONS)
def test_pairs(nd, mode, dtype):
    value = -1.5 if mode == "constant" else 0
    for stride in (1, 2):
        case = make(nd, PAIRS[:nd], mode, value, stride=stride, dtype=dtype)
        y = case.run()
        check(y, case)
        check(case.run(algorithm="reference"), case)
        pairs = [[np.int64(before), np.int8(after)] for before, after in PAIRS[:nd]]
        np.testing.assert_array_equal(case.run(), case.with_arrays(padding=pairs).run())
        unbatched = case.with_arrays(x=case.x[0])
        check(unbatched.run(), unbatched)
        channels_last = case.with_arrays(x=relayout(case.x, "channels_last"))
        check(channels_last.run(), channels_last)


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_one_pair_serves_every_axis(nd):
    np.testing.assert_array_equal(make(nd, ((1, 2),)).run(), make(nd, ((1, 2),) * nd).run())
    np.testing.assert_array_equal(make(nd, ((2, 2),) * nd).run(), make(nd, 2).run())
    np.testing.assert_array_equal(make(nd, ((0, 0),)).run(), make(nd, "valid").run())


@pytest.mark.parametrize(("isa", "algorithm", "kind"), rows())
def test_every_row_of_the_table(isa, algorithm, kind):
    rng = np.random.default_rng(9)
    channels = 8 if algorithm == "depthwise" else 40
    with setting(isa=isa):
        x, w = fill(rng, (1, channels, 14, 18), kind), fill(rng, (channels, channels, 3, 3), kind)
        for mode in MODES:
            value = 3 if mode == "constant" else 0
            case = EndedCase(x, w, padding=((3, 0), (1, 4)), padding_mode=mode, padding_value=value)
            with refusal_skips(algorithm):
                y = case.run(algorithm=algorithm)
            check(y, case)


@needs_core
@pytest.mark.parametrize("mode", MODES)
def test_no_padded_copy_is_made(mode):
    rng = np.random.default_rng(5)
    x, w = fill(rng, (2, 16, 150, 150), np.float32), fill(rng, (2, 16, 3, 3), np.float32)
    case = EndedCase(x, w, padding=((1, 2), (2, 1)), padding_mode=mode, padding_value=2 if mode == "constant" else 0)
    case.run()
    tracemalloc.start()
    try:
        y = case.run()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < y.nbytes + 100_000


# ---------------------------------------------------------------------------------------------------------- words


@given(case=cases())
def test_words_are_pairs(case):
    size, kernel = case.x.shape[-case.nd :], case.w.shape[2:]
    pads = tuple(pads_of(case.padding, size, kernel, case.stride, case.dilation))
    np.testing.assert_array_equal(case.run(), case.with_arrays(padding=pads).run())
    if case.padding in ("same", "same_upper", "same_lower"):
        assert case.run().shape[-case.nd :] == tuple(-(-n // s) for n, s in zip(size, case.stride))


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_where_the_odd_one_goes(nd):
    """A kernel of 4 needs three more: one and two. The first output tells how many came before."""
    x, w = np.zeros((1, 1, *SIZES[nd]), np.float32), np.zeros((1, 1, *[4] * nd), np.float32)
    x.flat[0] = 1
    w.flat[:] = np.arange(1, w.size + 1)
    for word, before in (("same", 1), ("same_upper", 1), ("same_lower", 2)):
        y = CONV[nd](x, w, padding=word)
        assert y.shape == x.shape
        assert y.flat[0] == w[(0, 0, *[before] * nd)]


@pytest.mark.parametrize(("size", "kernel", "stride", "dilation", "upper"), [
    (5, 3, 2, 1, (1, 1)), (6, 3, 2, 1, (0, 1)), (7, 2, 2, 1, (0, 1)), (4, 1, 3, 1, (0, 0)), (10, 3, 4, 2, (1, 2)),
    (3, 5, 7, 1, (1, 1)), (224, 7, 2, 1, (2, 3)),
])  # fmt: skip
def test_same_with_a_stride_by_hand(size, kernel, stride, dilation, upper):
    """The last is the first layer of TensorFlow's ResNets."""
    x = np.random.default_rng(1).standard_normal((1, 1, size))
    w = np.random.default_rng(2).standard_normal((1, 1, kernel))
    for word, pair in (("same_upper", upper), ("same_lower", upper[::-1])):
        y = F.conv1d(x, w, stride=stride, dilation=dilation, padding=word)
        assert y.shape[2] == math.ceil(size / stride)
        np.testing.assert_array_equal(y, F.conv1d(x, w, stride=stride, dilation=dilation, padding=(pair,)))


def test_causal_outputs_depend_on_nothing_later():
    rng = np.random.default_rng(3)
    x, w = fill(rng, (1, 3, 20), np.float32), fill(rng, (5, 3, 4), np.float32)
    layer = nn.Conv1d(3, 5, 4, dilation=2, padding="causal", bias=False)
    layer.weight = w
    y = F.conv1d(x, w, padding="causal", dilation=2)
    assert y.shape == (1, 5, 20)
    for mode in (True, False):
        np.testing.assert_array_equal(layer.train(mode)(x), y)
    for t in (1, 7, 19):
        changed = x.copy()
        changed[..., t:] = 9
        np.testing.assert_array_equal(F.conv1d(changed, w, padding="causal", dilation=2)[..., :t], y[..., :t])
    strided = F.conv1d(x, w, padding="causal", dilation=2, stride=3)
    np.testing.assert_allclose(strided, y[..., ::3], rtol=1e-4, atol=1e-5)  # another algorithm may be taken
    replicated = F.conv1d(x, w, padding="causal", padding_mode="replicate")
    np.testing.assert_allclose(replicated[0, :, 0], np.einsum("oik,i->o", w, x[0, :, 0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_layers(nd):
    for padding in (PAIRS[:nd], "same_upper", "same_lower", "valid", *(["causal"] if nd == 1 else [])):
        for mode in MODES[:1] + MODES[2:]:
            case = make(nd, padding, mode, stride=2)
            layer = case.module()
            assert layer.padding == padding
            assert f"padding={padding}" in repr(layer)
            check(layer(case.x), case)
            check(layer.eval()(case.x), case)
            layer.padding = ((1, 1),)
            assert layer.padding == ((1, 1),) * nd
            layer.padding = [[0, 1]] * nd
            assert layer.padding == ((0, 1),) * nd
            check(layer(case.x), case.with_arrays(padding=((0, 1),)))


def test_quantized_calls_pad_alike():
    x, w = np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4), np.ones((1, 1, 2, 2), np.int8)
    wide = np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 2)), constant_values=3)
    y = conv_integer(x, w, 3, padding=((1, 0), (0, 2)))
    np.testing.assert_array_equal(y, conv_integer(wide, w, 3))
    np.testing.assert_array_equal(conv_integer(x, w, 3, padding="same_upper").shape, x.shape)


# --------------------------------------------------------------------------------------------------- modes, values


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_modes_have_limits_on_each_side(nd):
    size = SIZES[nd]
    for mode, most in (("reflect", [n - 1 for n in size]), ("circular", list(size))):
        fits = tuple((0, n) if axis % 2 else (n, 0) for axis, n in enumerate(most))
        case = make(nd, fits, mode)
        check(case.run(), case)
        for axis in range(nd):
            for side in (0, 1):
                pads = [[0, 0] for _ in size]
                pads[axis][side] = most[axis] + 1
                with pytest.raises(ValueError, match=rf"^conv{nd}d: argument 'padding' must be at most {most[axis]} "):
                    make(nd, pads, mode).run()
    case = make(nd, [[2 * n, 3 * n] for n in size], "replicate")
    check(case.run(), case)


@pytest.mark.parametrize("dtype", [*"bBhHiIlLqQefdFD"])
def test_values_of_every_dtype(dtype):
    dtype = np.dtype(dtype)
    values = {"f": [0.1, -2, np.inf, np.nan, np.float64(3)], "c": [2, 0.1, 1 - 2j, np.complex64(1j)]}.get(dtype.kind)
    if values is None:
        info = np.iinfo(dtype)
        values = [3, 7.0, np.uint8(5), info.min, info.max // 2**20 * 2**20 or info.max]
    x, w = np.ones((1, 1, 2), dtype), np.array([[[1, 2]]], dtype)
    for value in values:
        y = F.conv1d(x, w, padding=((1, 0),), padding_mode="constant", padding_value=value)
        with np.errstate(all="ignore"):
            first = np.array([value]).astype(dtype) + dtype.type(2)
        np.testing.assert_array_equal(y[0, 0, :1], first)
        assert y[0, 0, 1] == 3
    for value in (0, 0.0, -0.0, np.int8(0)):
        zeros = F.conv1d(x, w, padding=1, padding_mode="constant", padding_value=value)
        np.testing.assert_array_equal(zeros, F.conv1d(x, w, padding=1, padding_value=value))


def test_bfloat16_values():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x, w = np.ones((1, 1, 2), bfloat16), np.ones((1, 1, 1), bfloat16)
    for value in (1.5, 2.001, bfloat16(3), 3e38):
        y = F.conv1d(x, w, padding=((0, 1),), padding_mode="constant", padding_value=value)
        assert y[0, 0, 2] == bfloat16(value)
    with pytest.raises(ValueError, match="argument 'padding_value' must be in the range of bfloat16"):
        F.conv1d(x, w, padding=1, padding_mode="constant", padding_value=1e39)


@pytest.mark.parametrize(("kind", "dtype", "value", "mode"), [
    (ValueError, "f4", 1e39, "constant"), (ValueError, "f2", 70000, "constant"), (ValueError, "i1", 128, "constant"),
    (ValueError, "u1", -1, "constant"), (ValueError, "i4", 0.5, "constant"), (ValueError, "i4", np.nan, "constant"),
    (ValueError, "i4", np.inf, "constant"), (ValueError, "i8", 2**53 + 1, "constant"),
    (ValueError, "i8", np.int64(2**53 + 1), "constant"), (ValueError, "u8", np.uint64(2**64 - 1), "constant"),
    (ValueError, "u8", 2**64, "constant"), (ValueError, "u1", 256.0, "constant"),
    (ValueError, "f8", 10**400, "constant"), (ValueError, "i8", 10**400, "constant"),
    (ValueError, "c8", 1e39, "constant"), (TypeError, "f4", 1j, "constant"), (TypeError, "i4", 1j, "constant"),
    (TypeError, "f4", True, "constant"), (TypeError, "f4", "1", "constant"), (TypeError, "f4", None, "constant"),
    (TypeError, "f4", np.ones(1), "constant"), (TypeError, "f4", [1], "constant"), (TypeError, "f4", False, "zeros"),
    (ValueError, "f4", 1, "zeros"), (ValueError, "f4", 0.5, "reflect"), (ValueError, "f4", np.nan, "circular"),
], ids=lambda value: str(value)[:12])  # fmt: skip
def test_wrong_values(kind, dtype, value, mode):
    for nd in DIMENSIONS:
        x, w = np.ones((1, 1, *[3] * nd), dtype), np.ones((1, 1, *[1] * nd), dtype)
        CONV[nd](x, w, padding_value=0)  # what equals a wrong one may be known already
        if dtype != "c8":
            CONV[nd](x, w, padding_mode="constant", padding_value=1)
        with pytest.raises(kind, match=rf"^conv{nd}d: argument 'padding_value' must .*, got "):
            CONV[nd](x, w, padding=1, padding_mode=mode, padding_value=value)


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_wrong_paddings(nd):
    wrong = [
        ((1, 2),) * (nd + 1), ((1, 2, 3),) * nd, ((1,),) * nd, ((),) * nd, ((1, -1),) * nd, ((1, True),) * nd,
        ((1, 1.0),) * nd, ((1, None),) * nd, (((1, 1), (1, 1)),) * nd, ((1, 2**62),) * nd, ((1, "1"),) * nd,
        (*[1] * nd, (1, 1)), ("same",) * nd, "SAME_UPPER", "same_", "causal ", "full", np.ones((nd, 2), int),
        {(1, 2)}, ((1, 2), None),
    ]  # fmt: skip
    if nd > 1:
        wrong += ["causal", (1, (1, 1), *[1] * (nd - 2)), [(1, 1), *[1] * (nd - 1)]]
    for padding in wrong:
        with pytest.raises(REFUSED, match=rf"^conv{nd}d: argument 'padding' "):
            make(nd, padding).run()
        if repr(padding) != repr(((1, 2**62),) * nd):  # that depends on the input
            with pytest.raises(REFUSED, match=rf"^Conv{nd}d: argument 'padding' "):
                MODULE[nd](4, 6, 3, padding=padding)
    with pytest.raises(ValueError, match="cannot be 'same' with a stride other than 1"):
        make(nd, "same", stride=2).run()
    for mode in ("zero", "symmetric", "edge", "", None, 0, ["zeros"]):
        with pytest.raises(REFUSED, match=rf"^conv{nd}d: argument 'padding_mode' must be one of 'zeros'"):
            make(nd, 1, mode).run()


# --------------------------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_torch_pads_alike(nd):
    """F.pad and a convolution without padding."""
    torch = pytest.importorskip("torch")
    function = getattr(torch.nn.functional, f"conv{nd}d")
    for mode in MODES:
        theirs = "constant" if mode == "zeros" else mode
        for value in (0.75,) if mode == "constant" else (0,):
            case = make(nd, PAIRS[:nd], mode, value, stride=2)
            flat = [p for pair in reversed(PAIRS[:nd]) for p in pair]
            padded = torch.nn.functional.pad(
                torch.from_numpy(case.x), flat, theirs, value if theirs == "constant" else None
            )
            expected = function(padded, torch.from_numpy(case.w), torch.from_numpy(case.bias), stride=2)
            np.testing.assert_allclose(case.run(), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_torch_has_the_same_limits():
    torch = pytest.importorskip("torch")
    for mode, most in (("reflect", 10), ("circular", 11)):
        for pads in ([most, 0], [0, most], [most + 1, 0], [0, most + 1]):
            fits = max(pads) == most
            x, w = np.zeros((1, 1, 11), np.float32), np.zeros((1, 1, 3), np.float32)
            with contextlib.nullcontext() if fits else pytest.raises(RuntimeError):
                torch.nn.functional.pad(torch.from_numpy(x), pads, mode)
            with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="padding"):
                F.conv1d(x, w, padding=(pads,), padding_mode=mode)


@pytest.mark.parametrize("word", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_onnx_pads_alike(word):
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    rng = np.random.default_rng(0)
    for nd in (1, 2):
        for kernel, stride in ((3, 2), (4, 1), (4, 3), (2, 2)):
            x, w = fill(rng, (1, 2, *SIZES[nd]), np.float32), fill(rng, (3, 2, *[kernel] * nd), np.float32)
            node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], auto_pad=word, strides=[stride] * nd)
            make_info = onnx.helper.make_tensor_value_info
            infos = [make_info(name, onnx.TensorProto.FLOAT, None) for name in "xwy"]
            model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", infos[:2], infos[2:]))
            (expected,) = reference.ReferenceEvaluator(model).run(None, {"x": x, "w": w})
            y = CONV[nd](x, w, stride=stride, padding=word.lower())
            assert y.shape == expected.shape
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5, err_msg=f"{nd} {kernel} {stride}")
