"""torch as the oracle of number formats: its own samples for all six convolutions in each, and their gradients."""

import warnings

import numpy as np
import pytest
from oracle import CONV
from transposed import TRANSPOSED

from pyconv import nn

with warnings.catch_warnings():  # torch's imports warn of other packages' ages
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="torch is the oracle here")
    pytest.importorskip("expecttest", reason="torch.testing's internals need expecttest")
    from torch.testing import make_tensor
    from torch.testing._internal.common_methods_invocations import op_db

OURS = {f"conv{nd}d": call for nd, call in CONV.items()} | {f"conv_transpose{nd}d": f for nd, f in TRANSPOSED.items()}
OPERATORS = {name: op for op in op_db for name in OURS if op.name == f"nn.functional.{name}"}
LEAST_SAMPLES = 10  # of torch 2.13, each operator and dtype
FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32]  # what conv has beside int64; conv_transpose has not
TOLERANCE = {  # torch.testing.assert_close: relative, absolute
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
    torch.complex64: (1.3e-6, 1e-5),
    torch.complex128: (1e-7, 1e-7),
}


def samples(name, dtype, requires_grad=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(OPERATORS[name].sample_inputs("cpu", dtype, requires_grad=requires_grad))


def changed(value, change):
    """A sample's argument with its tensor, if it is one, changed."""
    return change(value) if isinstance(value, torch.Tensor) else value


def array_of(tensor):
    """The tensor as an array that shares its memory."""
    tensor = tensor.detach().resolve_conj()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(pytest.importorskip("ml_dtypes").bfloat16)
    return tensor.numpy()


def wide(tensor):
    """In the precision of which a result is as good as exact."""
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)


def call(function, sample, change=lambda tensor: tensor):
    """The function's result for the sample's arguments."""
    with warnings.catch_warnings():  # of 'same' padding with even kernels: a copy is made; of imaginary parts lost
        warnings.simplefilter("ignore")
        arguments = [changed(value, change) for value in (sample.input, *sample.args)]
        named = {name: changed(value, change) for name, value in sample.kwargs.items()}
        return function(*arguments, **named)


def magnitude(tensor):
    """Absolute values, wide: what the function makes of them is the sum of its terms' magnitudes."""
    return wide(tensor.detach().abs())


def assert_as_torch(y, expected, exact, terms):
    """Within torch.testing's tolerance of torch's result, or nearer to the exact one than that is, or within our bound.

    The bound is the README's: 16 units in the last place of the sums' format, single at least, of the terms' magnitudes
    and one rounding to the result's; a complex product has two terms in each part.
    """
    assert y.shape == tuple(expected.shape)
    assert y.dtype == array_of(expected).dtype
    rtol, atol = TOLERANCE[expected.dtype]
    y, theirs, exact = (np.asarray(a).astype(array_of(exact).dtype) for a in (y, array_of(expected), array_of(exact)))
    error = np.abs(y - exact)
    unit = torch.finfo(expected.dtype).eps / 2
    bound = 16 * min(unit, 2.0**-24) * (1 + expected.is_complex()) * array_of(terms) + unit * np.abs(exact)
    right = np.abs(y - theirs) <= atol + rtol * np.abs(theirs)
    assert (right | (error <= np.abs(theirs - exact)) | (error <= bound)).all()


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_samples(name, dtype):
    ran = samples(name, dtype)
    for sample in ran:
        exact, terms = (call(OPERATORS[name].op, sample, change) for change in (wide, magnitude))
        assert_as_torch(call(OURS[name], sample, array_of), call(OPERATORS[name].op, sample), exact, terms)
    assert len(ran) >= LEAST_SAMPLES


@pytest.mark.parametrize("dtype", [torch.int64, *INTEGERS], ids=str)
@pytest.mark.parametrize("name", OURS)
def test_samples_of_whole_numbers(name, dtype):
    if dtype in INTEGERS and "transpose" in name:
        pytest.skip("torch has no such transposed convolution")
    ran = samples(name, torch.int64)
    known = 0
    for sample in ran:
        try:
            expected = call(OPERATORS[name].op, sample, lambda tensor: tensor.to(dtype))
        except NotImplementedError:  # in torch, some dilations
            continue
        known += 1
        y = call(OURS[name], sample, lambda tensor: array_of(tensor.to(dtype)))
        assert y.dtype == array_of(expected).dtype
        np.testing.assert_array_equal(y, array_of(expected))
    assert known >= (LEAST_SAMPLES if dtype == torch.int64 else 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.int64], ids=str)
@pytest.mark.parametrize("nd", CONV)
def test_error_inputs(nd, dtype):
    """What torch refuses is refused in other formats as well."""
    errors = list(OPERATORS[f"conv{nd}d"].error_inputs("cpu"))
    refused = 0
    for error in errors:
        try:
            call(OPERATORS[f"conv{nd}d"].op, error.sample_input, lambda tensor: tensor.to(dtype))
        except (RuntimeError, ValueError, TypeError):
            refused += 1
        else:
            continue  # mixed formats, which are one now
        with pytest.raises((ValueError, TypeError), match=f"conv{nd}d: argument '"):
            call(CONV[nd], error.sample_input, lambda tensor: array_of(tensor.to(dtype)))
    assert refused >= 8


def with_numbers(x, w, stride=1, padding=0, dilation=1, groups=1):
    """The arguments as torch.nn.grad's can be: a batch, padding in numbers. 'same' may want a zero more at the end."""
    nd = w.ndim - 2
    x = x if x.ndim == w.ndim else x[None]
    if isinstance(padding, str):
        steps = np.broadcast_to(dilation, nd)
        totals = [int(d) * (k - 1) if padding == "same" else 0 for d, k in zip(steps, w.shape[2:])]
        x = np.pad(x, [(0, 0), (0, 0), *((0, total % 2) for total in totals)])
        padding = [total // 2 for total in totals]
    return x, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


def conv_gradients(nd, x, w, dy, **arguments):
    """pyconv's gradients of a convolution with respect to input and weight."""
    of_input, of_weight = (getattr(nn.grad, f"conv{nd}d_{what}") for what in ("input", "weight"))
    batch, arguments = with_numbers(x, w, **arguments)
    dy = dy.reshape(len(batch), *dy.shape[-nd - 1 :])
    dx = of_input(batch.shape, w, dy, **arguments)
    inside = tuple(slice(0, n) for n in x.shape[-nd:])
    return dx[(..., *inside)].reshape(x.shape), of_weight(batch, w.shape, dy, **arguments)


def transposed_gradients(nd, x, w, dy, output_padding=0, **arguments):  # noqa: ARG001 (dy's shape has it)
    """The same of a transposed one: a convolution, and the weight's gradient with dy in the input's place.

    output_padding of a stride or more makes room for more elements of x, which are zeros.
    """
    of_weight = getattr(nn.grad, f"conv{nd}d_weight")
    batch = x if x.ndim == nd + 2 else x[None]
    dy = dy.reshape(len(batch), *dy.shape[-nd - 1 :])
    dx = CONV[nd](dy, w.conj() if w.dtype.kind == "c" else w, None, **arguments)
    batch = np.pad(batch, [(0, more - n) for more, n in zip((*batch.shape[:2], *dx.shape[2:]), batch.shape)])
    dw = of_weight(dy, w.shape, batch, **arguments)  # it conjugates dy, not x
    inside = tuple(slice(0, n) for n in x.shape[-nd:])
    return dx[(..., *inside)].reshape(x.shape), dw.conj() if dw.dtype.kind == "c" else dw


def gradients_of(name, change, tensors, arguments):
    """torch.autograd's gradients of input and weight, all changed."""
    x, w, dy = (change(tensor) for tensor in tensors)
    y = OPERATORS[name].op(x.requires_grad_(), w.requires_grad_(), None, **arguments)
    return torch.autograd.grad(y, (x, w), dy)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_gradients_of_the_samples(name, dtype):
    """torch.autograd's, of every sample of all six convolutions."""
    nd, transposed = int(name[-2]), "transpose" in name
    names = ["weight", "bias", "stride", "padding", "dilation", "groups"]
    if transposed:
        names[4:] = ["output_padding", "groups", "dilation"]
    ran = samples(name, dtype, requires_grad=True)
    for sample in ran:
        arguments = {**dict(zip(names, sample.args)), **sample.kwargs}
        x, w = sample.input, arguments.pop("weight")
        arguments.pop("bias", None)
        with warnings.catch_warnings():  # of 'same' padding with even kernels: a copy is made
            warnings.simplefilter("ignore")
            y = OPERATORS[name].op(x, w, None, **arguments)
            dy = make_tensor(y.shape, dtype=dtype, device="cpu")
            theirs = torch.autograd.grad(y, (x, w), dy)
            exact, terms = (gradients_of(name, change, (x, w, dy), arguments) for change in (wide, magnitude))
        made = transposed_gradients if transposed else conv_gradients
        ours = made(nd, *map(array_of, (x, w, dy)), **arguments)
        for gradient, expected, truth, magnitudes in zip(ours, theirs, exact, terms):
            assert_as_torch(gradient, expected, truth, magnitudes)
    assert len(ran) >= LEAST_SAMPLES
