"""torch as the oracle of transposed convolutions: its samples, its error inputs, its layers, and random calls."""

import inspect
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import DTYPES, fill
from transposed import LAYERS, TRANSPOSED, TransposedCase, build_transposed

with warnings.catch_warnings():  # torch's imports warn of other packages' ages
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="torch is the oracle here")
    pytest.importorskip("expecttest", reason="torch.testing's internals need expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

OPERATORS = {op.name: op for op in op_db if op.name in {f"nn.functional.conv_transpose{nd}d" for nd in TRANSPOSED}}
LEAST_SAMPLES = {1: 8, 2: 8, 3: 8}  # of torch 2.13; each dtype


def operator(nd):
    return OPERATORS[f"nn.functional.conv_transpose{nd}d"]


def plain(value):
    """Tensors as arrays, torch's sizes as tuples; everything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().resolve_conj().numpy()
    return tuple(value) if isinstance(value, tuple) else value


def call_of(sample):
    return [plain(v) for v in (sample.input, *sample.args)], {name: plain(v) for name, v in sample.kwargs.items()}


def assert_as_torch(y, expected, case):
    """Both are within their own rounding errors of the same sum."""
    assert y.shape == tuple(expected.shape)
    limit = 64 * np.finfo(y.dtype).eps * (case.expected()[1] + 1e-30)
    assert (np.abs(y - expected.numpy()) <= limit).all(), case


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("nd", TRANSPOSED)
def test_samples(nd, dtype):
    ran = 0
    for sample in operator(nd).sample_inputs("cpu", dtype):
        args, kwargs = call_of(sample)
        expected = operator(nd).op(sample.input, *sample.args, **sample.kwargs).detach()
        case = TransposedCase(*args, **kwargs)
        for algorithm in (None, "reference"):
            assert_as_torch(TRANSPOSED[nd](*args, **kwargs, algorithm=algorithm), expected, case)
        assert_as_torch(case.module().eval()(case.x), expected, case)
        ran += 1
    assert ran >= LEAST_SAMPLES[nd]


@pytest.mark.parametrize("nd", TRANSPOSED)
def test_error_inputs(nd):
    """torch 2.13 has none; those below are refused by both."""
    for error in operator(nd).error_inputs("cpu") if operator(nd).error_inputs_func is not None else ():
        args, kwargs = call_of(error.sample_input)
        with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
            TRANSPOSED[nd](*args, **kwargs)
        assert str(caught.value).startswith(f"conv_transpose{nd}d: argument '"), caught.value


REFUSED = [
    {"stride": 0}, {"stride": -1}, {"stride": (1, 1, 1)}, {"stride": 1.5}, {"padding": -1}, {"padding": "same"},
    {"padding": 9}, {"output_padding": 1}, {"output_padding": 2, "stride": 2}, {"output_padding": -1, "stride": 2},
    {"dilation": 0}, {"groups": 0}, {"groups": 3}, {"groups": 2.0}, {"bias": torch.zeros(3)},
    {"weight": torch.zeros(4, 2, 3)}, {"weight": torch.zeros(3, 2, 3, 3)}, {"weight": torch.zeros(4, 2, 0, 3)},
    {"input": torch.zeros(4, 5)}, {"input": torch.zeros(1, 3, 5, 5)}, {"input": torch.zeros(1, 4, 0, 5)},
    {"weight": torch.zeros(4, 2, 3, 3, dtype=torch.float64)},
]  # fmt: skip


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_torch_refuses_is_refused(arguments):
    arguments = {"input": torch.zeros(1, 4, 5, 5), "weight": torch.zeros(4, 2, 3, 3), **arguments}
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        torch.nn.functional.conv_transpose2d(**arguments)
    with pytest.raises((ValueError, TypeError)):
        TRANSPOSED[2](**{name: plain(value) for name, value in arguments.items()})


@st.composite
def cases(draw):
    dtype = draw(st.sampled_from(DTYPES))
    return build_transposed(lambda low, high: draw(st.integers(low, high)), dtype)


@given(case=cases())
def test_random_calls(case):
    tensors = [None if a is None else torch.from_numpy(a) for a in (case.x, case.w, case.bias)]
    arguments = [tuple(int(i) for i in np.atleast_1d(v)) for v in case.arguments]
    arguments[3] = arguments[3][0]
    assert_as_torch(case.run(), operator(case.nd).op(*tensors, *arguments), case)


def test_arguments_have_torchs_names_order_and_defaults():
    for nd, ours in LAYERS.items():
        theirs = inspect.signature(getattr(torch.nn, f"ConvTranspose{nd}d")).parameters.values()
        parameters = list(inspect.signature(ours).parameters.values())
        assert [(p.name, p.default) for p in parameters[: len(theirs)]] == [(p.name, p.default) for p in theirs]
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters[len(theirs) :])


FORMS = [
    (1, (4, 6, 3), {}),
    (2, (4, 6, 3), {}),
    (3, (4, 6, 3), {}),
    (2, (16, 33, (3, 5)), {"stride": (2, 1), "padding": (4, 2), "dilation": (3, 1), "output_padding": (2, 0)}),
    (2, (4, 6, 4, 2, 1), {"groups": 2, "bias": False}),
    (1, (4, 4, 3, 2, 1, 1, 2, True, 1, "zeros"), {}),
    (3, (2, 4, (1, 2, 3)), {"padding": (0, 1, 1), "bias": None, "stride": 2, "output_padding": 1}),
    (2, (4, 4, [3, 1]), {"stride": [3, 2], "device": "cpu"}),
]


@pytest.mark.parametrize(("nd", "args", "kwargs"), FORMS)
def test_layers(nd, args, kwargs):
    theirs = getattr(torch.nn, f"ConvTranspose{nd}d")(*args, **kwargs)
    ours = LAYERS[nd](*args, **kwargs)
    assert repr(ours) == repr(theirs)
    for name in "in_channels out_channels kernel_size stride padding output_padding dilation groups transposed".split():
        assert getattr(ours, name) == getattr(theirs, name)
        assert type(getattr(ours, name)) is type(getattr(theirs, name))
    assert repr(ours.load_state_dict(theirs.state_dict())) == repr(theirs.load_state_dict(theirs.state_dict()))
    x = fill(np.random.default_rng(0), (2, args[0], 7, 8, 5)[: nd + 2], np.float32)
    for array in (x, x[0]):
        with torch.no_grad():
            plain_result = theirs(torch.from_numpy(array)).numpy()
            size = [n + s - 1 for n, s in zip(plain_result.shape[-nd:], ours.stride)]
            larger = theirs(torch.from_numpy(array), output_size=size).numpy() if not any(ours.output_padding) else None
        for layer in (ours.train(), ours.eval()):
            np.testing.assert_allclose(layer(array), plain_result, rtol=1e-4, atol=1e-5)
            if larger is not None:
                np.testing.assert_allclose(layer(array, output_size=size), larger, rtol=1e-4, atol=1e-5)


def test_parameters_are_drawn_as_torch_draws_them():
    theirs, ours = torch.nn.ConvTranspose2d(300, 40, 5, groups=4), LAYERS[2](300, 40, 5, groups=4)
    for name, array in ours.state_dict().items():
        other = getattr(theirs, name).detach().numpy()
        assert array.shape == other.shape
        assert abs(np.abs(array).max() / np.abs(other).max() - 1) < 0.15
