"""torch as the oracle: its own samples for conv1d, conv2d and conv3d, its error inputs, and random calls."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import CONV, DTYPES, MODULE, build_case, convolve

with warnings.catch_warnings():  # torch's imports warn of other packages' ages
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="torch is the oracle here")
    pytest.importorskip("expecttest", reason="torch.testing's internals need expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

OPERATORS = {op.name: op for op in op_db if op.name in {f"nn.functional.conv{nd}d" for nd in CONV}}
LEAST_SAMPLES = {1: 10, 2: 30, 3: 20}  # of torch 2.13; each dtype
TOLERANCE = {torch.float32: {"rtol": 1.3e-6, "atol": 1e-5}, torch.float64: {"rtol": 1e-7, "atol": 1e-7}}  # assert_close
FORMS = ("functional", "layer")


def operator(nd):
    return OPERATORS[f"nn.functional.conv{nd}d"]


def plain(value):
    """Tensors as arrays, torch's sizes as tuples; everything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().resolve_conj().numpy()
    return tuple(value) if isinstance(value, tuple) else value


def call_of(sample):
    """A sample's (positional, keyword) arguments for pyconv."""
    return [plain(v) for v in (sample.input, *sample.args)], {name: plain(v) for name, v in sample.kwargs.items()}


def samples(nd, dtype):
    """torch's samples and, in versions where they are others, its reference inputs."""
    op = operator(nd)
    kinds = [op.sample_inputs] + ([op.reference_inputs] if op.reference_inputs_func is not None else [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [sample for kind in kinds for sample in kind("cpu", dtype)]


def torch_result(nd, args, kwargs):
    with warnings.catch_warnings():  # of 'same' padding with even kernels: a copy is made
        warnings.simplefilter("ignore")
        return operator(nd).op(*args, **kwargs)


def layer_call(nd, x, weight, bias=None, **arguments):
    """The same through the layer."""
    groups = arguments.get("groups", 1)
    channels = (weight.shape[1] * groups, weight.shape[0])
    layer = MODULE[nd](*channels, weight.shape[2:], **arguments, bias=bias is not None, dtype=weight.dtype)
    parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    layer.load_state_dict(parameters)
    return layer.eval()(x)


def assert_as_torch_tests(y, expected, args, kwargs):
    """Within torch.testing's tolerance of torch's result.

    Where terms cancel, torch's own rounding may exceed that: an output in a hundred may be a better sum than torch's.
    """
    assert y.shape == tuple(expected.shape)
    close = torch.isclose(torch.from_numpy(y), expected, **TOLERANCE[expected.dtype]).numpy()
    assert (~close).mean() <= 0.01, kwargs
    exact, magnitude = convolve(*args, **kwargs)
    assert (np.abs(y - exact) <= 4 * np.finfo(y.dtype).eps / 2 * magnitude)[~close].all(), kwargs


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("nd", CONV)
def test_samples(nd, dtype, form):
    ran = 0
    for sample in samples(nd, dtype):
        args, kwargs = call_of(sample)
        expected = torch_result(nd, (sample.input, *sample.args), sample.kwargs)
        y = CONV[nd](*args, **kwargs) if form == "functional" else layer_call(nd, *args, **kwargs)
        assert_as_torch_tests(y, expected, args, kwargs)
        ran += 1
    assert ran >= LEAST_SAMPLES[nd]


@pytest.mark.parametrize("nd", CONV)
def test_error_inputs(nd):
    """What torch refuses is refused, as something that code written for torch or for NumPy catches."""
    errors = list(operator(nd).error_inputs("cpu"))
    assert len(errors) >= 10
    for error in errors:
        args, kwargs = call_of(error.sample_input)
        with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
            CONV[nd](*args, **kwargs)
        assert not isinstance(caught.value, NotImplementedError)
        assert str(caught.value).startswith(f"conv{nd}d: argument '"), caught.value


@st.composite
def calls(draw, modes):
    dtype = draw(st.sampled_from(DTYPES))
    return build_case(lambda low, high: draw(st.integers(low, high)), dtype, modes=modes)


def as_torch(value):
    """torch takes no NumPy integers in tuples."""
    return tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else value


@given(case=calls(modes=("zeros",)))
def test_random_calls(case):
    tensors = [None if a is None else torch.from_numpy(a) for a in (case.x, case.w, case.bias)]
    arguments = [as_torch(v) for v in (case.stride, case.padding, case.dilation)]
    arguments = [v if isinstance(v, (tuple, str)) else int(v) for v in arguments]
    expected = torch_result(case.nd, (*tensors, *arguments, int(case.groups)), {})
    assert_as_torch(case.run(), expected.numpy(), case)


@given(case=calls(modes=("reflect", "replicate", "circular")))
def test_random_layers_with_a_padding_mode(case):
    ours = case.module()
    torch_layer = getattr(torch.nn, f"Conv{case.nd}d")(
        ours.in_channels, ours.out_channels, ours.kernel_size, ours.stride, ours.padding, ours.dilation, ours.groups,
        case.bias is not None, ours.padding_mode, dtype=torch.from_numpy(case.w).dtype,
    )  # fmt: skip
    torch_layer.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in ours.state_dict().items()})
    assert repr(ours) == repr(torch_layer)
    with torch.no_grad():
        expected = torch_layer(torch.from_numpy(case.x)).numpy()
    assert_as_torch(ours(case.x), expected, case)


def assert_as_torch(y, expected, case):
    """Both are within their own rounding errors of the same sum."""
    assert y.shape == expected.shape
    limit = 64 * np.finfo(y.dtype).eps * (case.expected()[1] + 1e-30)
    assert (np.abs(y - expected) <= limit).all(), case
