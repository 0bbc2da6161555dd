"""Checks and shape arithmetic of transposed convolutions and gradients: problem.py for what runs the other way.

All of them are described by the ordinary ConvProblem that they are the adjoint of. The transposed convolution of x is
the gradient, with respect to its input, of the convolution whose output has x's shape: in that problem ``in_*`` is the
size of the transposed convolution's result, ``out_*`` that of its input, and ``ic`` and ``oc`` have changed places too.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from .arrays import as_array, same_dtype
from .problem import LIMIT, ConvProblem, fail, per_axis, plain_problem, positive_int


def transposed_problem(
    function: str, rank: int, x: np.ndarray, weight: np.ndarray, stride: Any, padding: Any, output_padding: Any,
    groups: int, dilation: Any, exact: bool, activation: tuple[int, float, float] = (0, 0.0, 0.0),
) -> ConvProblem:  # fmt: skip
    """Check the geometry of a transposed convolution of arrays that :func:`check_arrays` returned.

    `activation` is what :func:`~pyconv.activation.activation_fields` returned.
    """
    stride = per_axis(function, "stride", stride, rank, 1)
    padding = per_axis(function, "padding", padding, rank, 0)
    output_padding = per_axis(function, "output_padding", output_padding, rank, 0)
    dilation = per_axis(function, "dilation", dilation, rank, 1)
    problem = _transposed_geometry(
        function, rank, x.shape, weight.shape, x.dtype, stride, padding, output_padding, groups, dilation, exact
    )
    number, a, b = activation
    return problem._replace(activation=number, activation_a=a, activation_b=b) if number else problem


@lru_cache(maxsize=1024)
def _transposed_geometry(
    function, rank, x_shape, weight_shape, dtype, stride, padding, output_padding, groups, dilation, exact
) -> ConvProblem:
    """Do the shape arithmetic of :func:`transposed_problem`; raises on what does not fit together."""
    n, channels, *size = x_shape if len(x_shape) == rank + 2 else (1, *x_shape)
    in_channels, oc, *kernel = weight_shape
    if 0 in size:
        fail(ValueError, function, "input", "must not have an empty spatial axis", f"shape {x_shape}")
    if 0 in kernel:
        fail(ValueError, function, "weight", "must not have an empty kernel axis", f"shape {weight_shape}")
    if oc == 0:
        fail(ValueError, function, "weight", "must have at least one output channel", f"shape {weight_shape}")
    if in_channels % groups:
        fail(ValueError, function, "groups", f"must divide the {in_channels} input channels of the weight", groups)
    if channels != in_channels:
        fail(ValueError, function, "input", f"must have {in_channels} channels (weight.shape[0])", channels)
    out = [
        transposed_extent(function, *one)
        for one in zip(size, kernel, stride, padding, output_padding, dilation, strict=True)
    ]
    if oc * groups * prod(out) * max(n, 1) >= LIMIT:
        fail(ValueError, function, "stride", "makes the output larger than any memory", f"output size {tuple(out)}")
    axes = list(zip(out, size, kernel, stride, dilation, padding, strict=True))
    return plain_problem(rank, dtype, (n, groups, oc, in_channels // groups), axes, 0, exact)


def transposed_extent(
    function: str, size: int, kernel: int, stride: int, padding: int, output_padding: int, dilation: int
) -> int:
    """Return (size - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1, checked."""
    if output_padding >= max(stride, dilation):
        rule = f"must be smaller than stride {stride} or dilation {dilation}"
        fail(ValueError, function, "output_padding", rule, output_padding)
    for argument, value, reach in (
        ("stride", stride, (size - 1) * stride),
        ("dilation", dilation, (kernel - 1) * dilation),
        ("padding", padding, 2 * padding),
        ("output_padding", output_padding, output_padding),
    ):
        if reach >= LIMIT // 8:
            fail(ValueError, function, argument, f"must keep all positions below {LIMIT // 8}", value)
    out = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
    if out < 1:
        rule = (
            f"must leave at least one output: ({size} - 1) x stride {stride} + dilation {dilation} x "
            f"(kernel {kernel} - 1) + output_padding {output_padding} + 1 - 2 x padding = {out}"
        )
        fail(ValueError, function, "padding", rule, padding)
    return out


def output_padding_for(
    layer: str, output_size: Any, x: np.ndarray, kernel, stride, padding, dilation
) -> tuple[int, ...]:
    """Return the output_padding that makes a transposed layer's result have the spatial size `output_size`.

    `output_size` has one int per spatial axis, or as many as the result has axes: then the first are not looked at.
    """
    rank = len(kernel)
    if not isinstance(output_size, (tuple, list)):
        fail(TypeError, layer, "output_size", "must be a tuple or list of ints", output_size)
    if not isinstance(x, np.ndarray) or x.ndim not in (rank + 1, rank + 2):
        return (0,) * rank  # check_arrays will tell
    if len(output_size) not in (rank, x.ndim):
        fail(
            ValueError, layer, "output_size", f"must have {rank} or {x.ndim} elements for {x.ndim}-D input", output_size
        )
    wanted = per_axis(layer, "output_size", tuple(output_size[-rank:]), rank, 1)
    least = [
        (n - 1) * s - 2 * p + d * (k - 1) + 1
        for n, k, s, p, d in zip(x.shape[-rank:], kernel, stride, padding, dilation, strict=True)
    ]
    most = [size + s - 1 for size, s in zip(least, stride, strict=True)]
    if not all(low <= size <= high for low, size, high in zip(least, wanted, most, strict=True)):
        fail(ValueError, layer, "output_size", f"must be from {tuple(least)} to {tuple(most)}", output_size)
    return tuple(size - low for size, low in zip(wanted, least, strict=True))


def gradient_array(function: str, argument: str, rank: int, value: Any) -> np.ndarray:
    """Return an array argument of pyconv.nn.grad, which takes batches only."""
    array = as_array(function, argument, value)
    if array.ndim != rank + 2:
        fail(ValueError, function, argument, f"must have {rank + 2} dimensions", f"shape {array.shape}")
    return array


def gradient_size(function: str, argument: str, rank: int, value: Any) -> tuple[int, ...]:
    """Return `input_size` or `weight_size` as a tuple of ints."""
    if not isinstance(value, (tuple, list)):
        fail(TypeError, function, argument, "must be a tuple or list of ints", value)
    if len(value) != rank + 2:
        fail(ValueError, function, argument, f"must have {rank + 2} elements", value)
    return per_axis(function, argument, tuple(value), rank + 2, 0)


def gradient_problem(
    function: str, rank: int, x: Any, weight: Any, grad_output: Any, stride: Any, padding: Any, dilation: Any,
    groups: Any, exact: bool,
):  # fmt: skip
    """Check the arguments of a gradient; one of x and weight is an array, the other one a shape.

    Returns
    -------
    problem : ConvProblem
        The convolution whose gradient is asked for.
    array : ndarray
        The one of x and weight that came as an array.
    grad_output : ndarray
    """
    of_input = function.endswith("_input")
    names = ("input_size", "weight") if of_input else ("input", "weight_size")
    array = gradient_array(function, names[of_input], rank, weight if of_input else x)
    shape = gradient_size(function, names[not of_input], rank, x if of_input else weight)
    grad_output = gradient_array(function, "grad_output", rank, grad_output)
    same_dtype(function, "grad_output", grad_output, array)
    x_shape, weight_shape = (shape, array.shape) if of_input else (array.shape, shape)
    stride = per_axis(function, "stride", stride, rank, 1)
    padding = per_axis(function, "padding", padding, rank, 0)
    dilation = per_axis(function, "dilation", dilation, rank, 1)
    groups = positive_int(function, "groups", groups)
    problem = _gradient_geometry(
        function, names, rank, x_shape, weight_shape, array.dtype, stride, padding, dilation, groups, exact
    )
    if grad_output.shape != problem.output_shape:
        rule = f"must have shape {problem.output_shape}, that of the convolution's output"
        fail(ValueError, function, "grad_output", rule, grad_output.shape)
    return problem, array, grad_output


def _gradient_geometry(
    function, names, rank, x_shape, weight_shape, dtype, stride, padding, dilation, groups, exact
) -> ConvProblem:
    """Do the shape arithmetic of :func:`gradient_problem`; `names` are what the caller calls input and weight."""
    n, channels, *size = x_shape
    out_channels, ic, *kernel = weight_shape
    for name, shape in zip(names, (size, (out_channels, *kernel)), strict=True):
        if 0 in shape:
            fail(ValueError, function, name, "must not have an empty axis but the batch and input channels", shape)
    for name, shape in zip(names, (x_shape, weight_shape), strict=True):
        if prod(shape) >= LIMIT:
            fail(ValueError, function, name, "must not be larger than any memory", shape)
    if out_channels % groups:
        fail(ValueError, function, "groups", f"must divide the {out_channels} output channels", groups)
    if channels != ic * groups:
        rule = f"must have {ic * groups} channels (the weight's {ic} x groups {groups})"
        fail(ValueError, function, names[0], rule, channels)
    out = []
    for axis in range(rank):
        span, padded = dilation[axis] * (kernel[axis] - 1) + 1, size[axis] + 2 * padding[axis]
        if padded >= LIMIT:
            fail(ValueError, function, "padding", f"must keep the padded input below {LIMIT} positions", padding)
        if span > padded:
            rule = f"must not exceed the padded input: dilation {dilation[axis]} x (kernel - 1) + 1 = {span} > {padded}"
            fail(ValueError, function, names[1], rule, f"kernel size {kernel[axis]}")
        out.append((padded - span) // stride[axis] + 1)
    axes = list(zip(size, out, kernel, stride, dilation, padding, strict=True))
    return plain_problem(rank, dtype, (n, groups, ic, out_channels // groups), axes, 0, exact)
