"""Whatever is passed: a right result, or an error that names the function and the argument. Never a crash or a hang."""

import contextlib
import itertools
import os
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from oracle import CONV, MODULE, Case, _core, check, convolve, make_case

import pyconv
from pyconv import config

try:
    import resource
except ImportError:  # no limits to set on Windows
    resource = None

SIZES = {1: (9,), 2: (4, 5), 3: (3, 2, 4)}
DIMENSIONS = tuple(CONV)
needs_a_limit = pytest.mark.skipif(
    resource is None or not sys.platform.startswith("linux"), reason="without a limit on memory a machine may be filled"
)
GEOMETRY = ("stride", "padding", "dilation", "groups")
NOT_INTEGERS = {
    "True": True, "np.True_": np.True_, "1.0": 1.0, "np.float32": np.float32(1), "'3'": "3", "None": None, "1j": 1j,
    "object": object(), "nested": ((1,), (1,)), "set": {1}, "dict": {1: 1}, "array of floats": np.ones(2),
    "bytes": b"1", "NaN": float("nan"), "type": int,
}  # fmt: skip
TOO_SMALL = [-1, -(2**31), -(2**63), -(2**64)]
LARGE = [2**15, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**30]
REFUSED = (ValueError, TypeError)
CALLABLES = [(form, nd) for form in ("functional", "layer") for nd in DIMENSIONS]


@contextlib.contextmanager
def little_memory(room=2**30):
    """An address space in which a result that is too large fails at once instead of filling the machine."""
    if resource is None or not sys.platform.startswith("linux"):
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def small_case(nd, dtype=np.float32, bias=True):
    return make_case(np.random.default_rng(0), (1, 2, *SIZES[nd]), (4, 2, *[2] * nd), dtype, bias)


def attempt(form, nd, **arguments):
    """The result of a call on small arrays, or the error that it raises."""
    case = small_case(nd)
    with little_memory():
        try:
            if form == "functional":
                return CONV[nd](case.x, case.w, case.bias, **arguments)
            layer = MODULE[nd](2, 4, 2, **arguments)
            layer.load_state_dict({"weight": case.w, "bias": case.bias})
            return layer(case.x)
        except Exception as error:  # whatever it is: the tests look at it
            return error


def assert_refused(outcome, nd, argument=r"\w+", kinds=REFUSED):
    """An error of the right kind whose message names the function and the argument."""
    assert isinstance(outcome, Exception), f"it was accepted: {outcome!r}"
    assert isinstance(outcome, kinds), repr(outcome)
    assert not isinstance(outcome, NotImplementedError)
    assert re.match(rf"(conv|Conv){nd}d: argument '{argument}' ", str(outcome)), repr(outcome)
    assert len(str(outcome)) < 500


def assert_right_or_refused(outcome, nd, arguments, memory=False):
    """A result is the oracle's; an error is one of the two kinds, or, where `memory`, says that there is not enough."""
    if isinstance(outcome, MemoryError) and memory:
        return
    if isinstance(outcome, Exception):
        assert_refused(outcome, nd)
        return
    case = small_case(nd)
    dilation = [min(int(d), 10**6) for d in np.atleast_1d(np.array(arguments.get("dilation", 1), object))]
    assert all(d < 10**6 for d in dilation), f"no kernel of 2 fits with a dilation of {arguments['dilation']}"
    check(outcome, Case(case.x, case.w, case.bias, **{**arguments, "dilation": dilation}))


# ------------------------------------------------------------------------------- stride, padding, dilation, groups


@pytest.mark.parametrize("argument", GEOMETRY)
@pytest.mark.parametrize(("form", "nd"), CALLABLES)
def test_not_an_integer(form, nd, argument):
    for name, value in NOT_INTEGERS.items():
        kinds = REFUSED if name in ("nested", "'3'", "array of floats") else TypeError
        assert_refused(attempt(form, nd, **{argument: value}), nd, argument, kinds)
        if argument != "groups":
            mixed = (1,) * (nd - 1) + (value,)
            assert_refused(attempt(form, nd, **{argument: mixed}), nd, argument)


@pytest.mark.parametrize("argument", GEOMETRY)
@pytest.mark.parametrize(("form", "nd"), CALLABLES)
def test_too_small(form, nd, argument):
    for value in TOO_SMALL if argument == "padding" else [0, *TOO_SMALL]:
        assert_refused(attempt(form, nd, **{argument: value}), nd, argument, ValueError)
        if argument != "groups":
            for place in range(nd):
                values = [1] * nd
                values[place] = value
                assert_refused(attempt(form, nd, **{argument: values}), nd, argument, ValueError)


@needs_a_limit
@pytest.mark.parametrize("value", LARGE)
@pytest.mark.parametrize("argument", GEOMETRY)
@pytest.mark.parametrize(("form", "nd"), CALLABLES)
def test_large(form, nd, argument, value):
    """A stride beyond the input leaves one output per axis; a padding of 2**15 is fine in one axis."""
    other = [0 if argument == "padding" else 1] * (nd - 1)
    choices = [value] if argument == "groups" else [value, (*other, value), [value, *other]]
    for choice in choices:
        arguments = {argument: choice}
        outcome = attempt(form, nd, **arguments)
        assert_right_or_refused(outcome, nd, arguments, memory=argument == "padding")
        if argument == "stride" and value < 2**63:
            assert isinstance(outcome, np.ndarray), repr(outcome)
        if argument == "groups":
            assert_refused(outcome, nd)
        if argument == "padding" and value == 2**15 and choice != value:
            assert isinstance(outcome, np.ndarray), repr(outcome)


@needs_a_limit
@pytest.mark.parametrize(("form", "nd"), CALLABLES)
def test_large_values_together(form, nd):
    """Sums and products of them must not wrap around to something small."""
    large = [1, 2**31, 2**32, 2**61, 2**62, 2**63 - 1, 2**63]
    for stride, padding, dilation in itertools.product(large, repeat=3):
        if padding == 1 and dilation == 1:
            continue
        arguments = {"stride": stride, "padding": padding, "dilation": dilation}
        outcome = attempt(form, nd, **arguments)
        if isinstance(outcome, np.ndarray):  # few outputs, far apart: which taps they see is computed by hand
            size = {(n + 2 * padding - dilation - 1) // stride + 1 for n in SIZES[nd]}
            assert set(outcome.shape[2:]) == size, arguments
            assert outcome.size < 10**6
        elif not isinstance(outcome, MemoryError):
            assert_refused(outcome, nd)


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_far_apart_taps_read_the_right_elements(nd):
    """Dilation, padding and stride near 2**40, where the two taps hit the input and the padding by turns."""
    far = 2**40
    x, w = np.arange(1.0, 5.0).reshape(1, 1, 4), np.array([[[1.0, 10.0]]])
    shape = (1, 1, *[1] * (nd - 1), 4)
    kernel = (1, 1, *[1] * (nd - 1), 2)
    ones, zeros = (1,) * (nd - 1), (0,) * (nd - 1)
    y = CONV[nd](x.reshape(shape), w.reshape(kernel), None, (*ones, far), (*zeros, far), (*ones, far))
    np.testing.assert_array_equal(y.ravel(), [10.0, 1.0])  # outputs at -far and 0; the next one would end at far + 4
    y = CONV[nd](x.reshape(shape), w.reshape(kernel), None, (*ones, far + 3), (*zeros, far), (*ones, far))
    np.testing.assert_array_equal(y.ravel(), [10.0, 4.0])


@pytest.mark.parametrize("argument", ["stride", "padding", "dilation"])
@pytest.mark.parametrize(("form", "nd"), CALLABLES)
def test_wrong_number_of_values(form, nd, argument):
    for count in {0, 2, 3, 4, 5} - {nd}:
        for kind in (tuple, list):
            assert_refused(attempt(form, nd, **{argument: kind([1] * count)}), nd, argument)


@pytest.mark.parametrize(("form", "nd"), CALLABLES)
def test_forms_that_are_fine(form, nd):
    case = small_case(nd)
    expected = convolve(case.x, case.w, case.bias, 2, 1, 1, 1)[0]
    for two in (2, np.int64(2), np.uint8(2), (2,), [2], (2,) * nd, [2] * nd, (np.int32(2),) * nd):
        y = attempt(form, nd, stride=two, padding=np.int16(1), dilation=[np.int64(1)], groups=np.int8(1))
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("form", "nd"), CALLABLES)
def test_words_for_the_padding(form, nd):
    for word in ("SAME", "full", "", "zeros", "same ", "valid\0"):
        assert_refused(attempt(form, nd, padding=word), nd, "padding", ValueError)
    assert_refused(attempt(form, nd, padding="same", stride=2), nd, "padding", ValueError)
    assert attempt(form, nd, padding="same", stride=1).shape == (1, 4, *SIZES[nd])


# --------------------------------------------------------------------------------------------------------- arrays


def hostile_arrays(nd):
    """(argument, what stands in for it, kind): no arrays of numbers that can be computed with."""
    case = small_case(nd)
    record = np.dtype([("value", np.float32)])
    for argument, a in (("input", case.x), ("weight", case.w), ("bias", case.bias)):
        yield argument, a.tolist(), TypeError
        yield argument, memoryview(a), TypeError
        yield argument, np.float32(1), TypeError
        yield argument, 1.0, TypeError
        yield argument, "array", TypeError
        yield argument, np.array(1, np.float32), ValueError
        yield argument, np.ma.masked_array(a), TypeError
        for dtype in (object, bool, "U3", "S3", "V4", "M8[s]", "m8[s]"):
            yield argument, np.zeros(a.shape, dtype), TypeError
        yield argument, a.astype(record), TypeError
        for dtype in (np.float64, np.float16, np.int32, np.int64, np.uint8, np.complex64):
            yield argument, a.astype(dtype), TypeError
        yield argument, a[None, None, None], ValueError
        if argument != "bias":
            yield argument, None, TypeError
            yield argument, a[0, 0], ValueError
            yield argument, a[:, :1].copy(), ValueError  # a channel too few
            yield argument, a[..., :0], ValueError  # an empty spatial axis, or a kernel of 0
        else:
            yield argument, a[:3], ValueError
            yield argument, a[:0], ValueError
            yield argument, np.zeros((4, 1), np.float32), ValueError
    yield "weight", case.w[:0], ValueError  # no output channels


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_arrays_that_do_not_fit(nd):
    case = small_case(nd)
    arrays = {"input": case.x, "weight": case.w, "bias": case.bias}
    for argument, value, kind in hostile_arrays(nd):
        with pytest.raises(kind) as caught:
            CONV[nd](**{**arrays, argument: value})
        # Of two arrays that do not fit together, either may be the one to blame.
        assert re.match(rf"conv{nd}d: argument '(input|weight|bias)' ", str(caught.value)), caught.value
        if argument == "input" and not isinstance(value, np.ndarray):
            with pytest.raises(kind, match=rf"conv{nd}d: argument 'input'"):
                case.module()(value)


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_an_array_is_asked_for_by_name(nd):
    case = small_case(nd)
    with pytest.raises(TypeError, match=rf"conv{nd}d: argument 'input' must be .*array"):
        CONV[nd](case.x.tolist(), case.w)
    with pytest.raises(TypeError, match=r"float32.*astype.*float64|float64.*float32.*astype|astype.*float"):
        CONV[nd](case.x, case.w.astype(np.float64))


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_groups_and_channels(nd):
    x, w = np.zeros((1, 6, *SIZES[nd]), np.float32), np.zeros((4, 3, *[2] * nd), np.float32)
    assert CONV[nd](x, w, groups=2).shape[1] == 4
    for groups in (1, 3, 4, 5, 6, 7):
        with pytest.raises(ValueError, match=rf"conv{nd}d: argument '(groups|input|weight)'"):
            CONV[nd](x, w, groups=groups)


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_kernel_larger_than_the_padded_input(nd):
    for axis in range(nd):
        kernel = [1] * nd
        kernel[axis] = SIZES[nd][axis] + 1
        w = np.zeros((1, 2, *kernel), np.float32)
        with pytest.raises(ValueError, match=rf"conv{nd}d: argument '\w+' .*{kernel[axis]}"):
            CONV[nd](small_case(nd).x, w)
        assert CONV[nd](small_case(nd).x, w, padding=1).shape[0] == 1


@needs_a_limit
@pytest.mark.parametrize("nd", DIMENSIONS)
def test_arrays_of_enormous_shape(nd):
    """Shapes that zero strides make possible: refused, or out of memory, before anything is computed."""
    case = small_case(nd)
    for huge in (2**31, 2**40, 2**58):
        shapes = [(huge, 2, *SIZES[nd]), (1, 2, *SIZES[nd][:-1], huge)]
        for shape in shapes:
            with little_memory(), pytest.raises((ValueError, MemoryError)):
                CONV[nd](np.broadcast_to(np.float32(0), shape), case.w)
        for shape in ((huge, 2, *[2] * nd), (4, 2, *[2] * (nd - 1), huge), (4, huge, *[2] * nd)):
            with little_memory(), pytest.raises((ValueError, MemoryError)):
                CONV[nd](case.x, np.broadcast_to(np.float32(0), shape))


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_a_refusal_allocates_nothing(nd):
    """The checks come before the memory."""
    case = small_case(nd)
    image = np.zeros((8, 2, *[{1: 2**17, 2: 400, 3: 54}[nd]] * nd), np.float32)  # about 10 MB
    for hostile in ({"stride": 0}, {"padding": -1}, {"dilation": 2**62}, {"groups": 3}, {"padding": 2**62}, {"out": 1}):
        tracemalloc.start()
        try:
            with pytest.raises(REFUSED):
                CONV[nd](image, case.w, **hostile)
            assert tracemalloc.get_traced_memory()[1] < 10**6, hostile
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_the_named_options(nd):
    case = small_case(nd)
    for hostile in ("winograd9", "", 3, None.__class__, ["reference"], np.zeros(2)):
        with pytest.raises(REFUSED, match=rf"conv{nd}d: argument 'algorithm'.*reference"):
            case.run(algorithm=hostile)
    for hostile in ("slow", "", 3, True, ["fast"], np.zeros(2)):
        with pytest.raises(REFUSED, match=r"argument 'accuracy'.*fast.*exact"):
            case.run(accuracy=hostile)


# ---------------------------------------------------------------------------------------------- layers and settings


@needs_a_limit
@pytest.mark.parametrize("argument", ["in_channels", "out_channels", "kernel_size"])
@pytest.mark.parametrize("nd", DIMENSIONS)
def test_layer_sizes(nd, argument):
    sizes = {"in_channels": 2, "out_channels": 4, "kernel_size": 2}
    hostile = [0, *TOO_SMALL, True, 1.0, "3", None, [], (1, 1, 1, 1), 1j]
    for value in hostile:
        if (argument, value) == ("in_channels", 0):
            continue  # torch makes such a layer
        with pytest.raises(REFUSED, match=rf"Conv{nd}d: argument '{argument}'"):
            MODULE[nd](**{**sizes, argument: value})
    for value in LARGE[1:]:
        with little_memory(), pytest.raises((*REFUSED, MemoryError)):
            MODULE[nd](**{**sizes, argument: value})


@pytest.mark.parametrize("nd", DIMENSIONS)
def test_layer_options(nd):
    for name, values in {
        "padding_mode": ("", "zero", "constant", 1, None, ["zeros"]),
        "dtype": ("float31", np.int32, bool, object, "U3"),
        "device": ("cuda", "cuda:0", 0, "mps"),
        "algorithm": ("winograd9", 3),
        "accuracy": ("slow", 3),
    }.items():
        for value in values:
            with pytest.raises(REFUSED, match=rf"argument '{name}'"):
                MODULE[nd](2, 4, 2, **{name: value})(small_case(nd).x)


@pytest.mark.parametrize(("mode", "most"), [("reflect", 3), ("circular", 4)])
@pytest.mark.parametrize("nd", DIMENSIONS)
def test_padding_modes_have_a_limit(nd, mode, most):
    x = np.zeros((1, 1, *[4] * nd), np.float32)
    assert MODULE[nd](1, 1, 1, padding=most, padding_mode=mode)(x).shape[2:] == (4 + 2 * most,) * nd
    for padding in (most + 1, 2**40, 2**62):
        with pytest.raises(ValueError, match=rf"[cC]onv{nd}d: argument 'padding'"):
            MODULE[nd](1, 1, 1, padding=padding, padding_mode=mode)(x)


def test_settings():
    for value in (0, -1, 2**31, 2**63, 2**64):
        with pytest.raises(ValueError, match="set_num_threads: argument 'num_threads'"):
            pyconv.set_num_threads(value)
    for value in (True, 1.0, "2", None, []):
        with pytest.raises(TypeError, match="set_num_threads: argument 'num_threads'"):
            pyconv.set_num_threads(value)
    for value in ("", "FAST", "exakt", 1, None, True, ["fast"]):
        with pytest.raises(REFUSED, match=r"set_accuracy: argument 'accuracy' .*'fast'.*'exact'"):
            pyconv.set_accuracy(value)


ENVIRONMENT = [
    ("PYCONV_ISA", ("avx1024", "sse", "x86-64", "'", "avx2,sse2", "\N{SNOWMAN}"), "reference" if _core is None else ""),
    ("PYCONV_NUM_THREADS", ("0", "-1", "two", "1.5", "99999999999999999999", "1,2", "\N{SUPERSCRIPT TWO}"), "1 to"),
    ("PYCONV_ACCURACY", ("slow", "fastest", "0", "exact!"), "'exact'"),
]


@pytest.mark.parametrize(
    ("name", "value", "wanted"), [(name, value, wanted) for name, values, wanted in ENVIRONMENT for value in values]
)
def test_environment_variables(name, value, wanted):
    """A bad value is an error at import that names the good ones."""
    command = [sys.executable, "-W", "ignore", "-c", "import pyconv"]
    run = subprocess.run(
        command, env={**os.environ, name: value, "PYTHONUTF8": "1"}, capture_output=True, text=True, timeout=60,
        encoding="utf-8", check=False,
    )  # fmt: skip
    assert run.returncode != 0
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: ")
    assert name in last
    assert wanted in last
    if name == "PYCONV_ISA":
        assert all(isa in last for isa in config.isas_available())
