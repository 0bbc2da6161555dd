"""Convolutions of 8-bit integers as ONNX defines them: ConvInteger and QLinearConv.

    conv_integer   y = sum over taps of (w - w_zero_point) (x - x_zero_point), in int32
    qlinear_conv   y = saturate(round((conv_integer + bias) x_scale w_scale / y_scale) + y_zero_point)

Both are one convolution on the compiled rows for integers: w less its zero point is made when it is packed, x is read
as it lies and padded with its zero point, and what that adds, x_zero_point times the sum of the filter, is taken off
with the bias. All of it is exact modulo 2**32. What follows the sums is float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import as_array
from .plan import plan_for
from .problem import PAD_CONSTANT, conv_problem, fail

__all__ = ["conv_integer", "qlinear_conv"]

BYTES = (np.dtype(np.int8), np.dtype(np.uint8))


def conv_integer(
    x: np.ndarray,
    w: np.ndarray,
    x_zero_point: Any = 0,
    w_zero_point: Any = 0,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> np.ndarray:
    """Apply a convolution over integers of 8 bits, each less its zero point, with sums of 32 bits.

    Parameters
    ----------
    x : ndarray
        int8 or uint8, shape (N, C, ...) or, unbatched, (C, ...), with one to three spatial axes.
    w : ndarray
        Filters, int8 or uint8 whatever x is, of shape (out_channels, C / groups, ...).
    x_zero_point : int or 0-d array
        What stands for zero in x; padding has this value.
    w_zero_point : int or array
        What stands for zero in w: one for all, or one per output channel.
    stride, padding, dilation, groups
        See :func:`pyconv.nn.functional.conv2d`.

    Returns
    -------
    ndarray
        int32; sums beyond its range wrap around.

    Raises
    ------
    ValueError
        If sizes, channels or values do not fit together.
    TypeError
        If an argument is of the wrong kind.
    MemoryError
        If there is no memory for the result.

    See Also
    --------
    onnx ConvInteger : the operator this function follows.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv.quantized import conv_integer
    >>> x = np.arange(2, 11, dtype=np.uint8).reshape(1, 1, 3, 3)
    >>> conv_integer(x, np.ones((1, 1, 2, 2), np.uint8), x_zero_point=1)
    array([[[[12, 16],
             [24, 28]]]], dtype=int32)
    """
    x, w = _checked_arrays("conv_integer", x, w)
    zero = _zero_point("conv_integer", "x_zero_point", x_zero_point, x.dtype)
    w_zero = _zero_point("conv_integer", "w_zero_point", w_zero_point, w.dtype, len(w))
    return _sums("conv_integer", x, w, zero, w_zero, None, stride, padding, dilation, groups)


def qlinear_conv(
    x: np.ndarray,
    x_scale: Any,
    x_zero_point: Any,
    w: np.ndarray,
    w_scale: Any,
    w_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
    bias: np.ndarray | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> np.ndarray:
    """Apply a convolution over linearly quantised numbers: each stands for scale * (itself - zero point).

    Parameters
    ----------
    x, w, x_zero_point, w_zero_point, stride, padding, dilation, groups
        See :func:`conv_integer`.
    x_scale, y_scale : float or 0-d array
        Positive.
    w_scale : float or array
        Positive: one for all filters, or one per output channel.
    y_zero_point : int8 or uint8
        A NumPy scalar or 0-d array; the result has its dtype. A plain int stands for x's dtype.
    bias : ndarray, optional
        int32, shape (out_channels,), in units of x_scale * w_scale.

    Returns
    -------
    ndarray
        int8 or uint8: rounded half to even and saturated.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As :func:`conv_integer`.

    See Also
    --------
    onnx QLinearConv : the operator this function follows.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv.quantized import qlinear_conv
    >>> x = np.uint8([[[10, 20, 255]]])
    >>> qlinear_conv(x, 0.5, 0, np.int8([[[3]]]), 0.25, 0, 1.0, np.int8(-100))
    array([[[-96, -92,  -4]]], dtype=int8)
    """
    function = "qlinear_conv"
    x, w = _checked_arrays(function, x, w)
    zero = _zero_point(function, "x_zero_point", x_zero_point, x.dtype)
    w_zero = _zero_point(function, "w_zero_point", w_zero_point, w.dtype, len(w))
    dtype = y_zero_point.dtype if isinstance(y_zero_point, (np.generic, np.ndarray)) else x.dtype
    if dtype not in BYTES:
        fail(TypeError, function, "y_zero_point", "must be int8 or uint8", dtype)
    y_zero = _zero_point(function, "y_zero_point", y_zero_point, dtype)
    scales = _scale(function, "x_scale", x_scale), _scale(function, "w_scale", w_scale, len(w))
    with np.errstate(over="ignore"):
        factor = scales[0] * scales[1] / _scale(function, "y_scale", y_scale)
    if not np.isfinite(factor).all():
        fail(ValueError, function, "y_scale", "must leave x_scale w_scale / y_scale in the range of float64", y_scale)
    if bias is not None:
        bias = as_array(function, "bias", bias)
        if bias.dtype != np.int32:
            fail(TypeError, function, "bias", "must be int32", bias.dtype)
        if bias.shape != (len(w),):
            rule = f"must have shape ({len(w)},), one value per output channel"
            fail(ValueError, function, "bias", rule, f"shape {bias.shape}")
    sums = _sums(function, x, w, zero, w_zero, bias, stride, padding, dilation, groups)
    y, rank = np.empty(sums.shape, dtype), w.ndim - 2
    column = factor.reshape(-1, *[1] * rank)
    for image, whole in zip(y, sums, strict=True) if x.ndim > rank + 1 else [(y, sums)]:
        with np.errstate(over="ignore"):
            numbers = whole * column
        np.rint(numbers, out=numbers)
        numbers += y_zero
        np.clip(numbers, np.iinfo(dtype).min, np.iinfo(dtype).max, out=numbers)
        image[...] = numbers
    return y


def _sums(function, x, w, x_zero, w_zero, bias, stride, padding, dilation, groups) -> np.ndarray:
    """Return the int32 sums of checked arrays and zero points."""
    rank = w.ndim - 2
    problem = conv_problem(
        function, rank, x, w, stride, padding, dilation, groups, "zeros", exact=False, names=("x", "w")
    )
    problem = problem._replace(out_dtype="int32")
    if x_zero.any():
        problem = problem._replace(pad_mode=PAD_CONSTANT, pad_value=float(x_zero[0]))
    weight = w.astype(np.int32) - w_zero.astype(np.int32).reshape(-1, *[1] * (rank + 1))
    less = x_zero * weight.sum(axis=tuple(range(1, w.ndim)), dtype=np.int64)
    constant = (-less if bias is None else bias - less).astype(np.int32)
    y = np.empty(problem.output_shape if x.ndim == rank + 2 else problem.output_shape[1:], np.int32)
    if y.size:
        plan = plan_for(problem)
        plan.run(x, plan.pack(weight, constant), y)
    return y


def _checked_arrays(function: str, x: Any, w: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return x and w as plain arrays of bytes and of ranks that belong together."""
    x, w = as_array(function, "x", x), as_array(function, "w", w)
    for name, array in (("x", x), ("w", w)):
        if array.dtype not in BYTES:
            fail(TypeError, function, name, "must be int8 or uint8", array.dtype)
    if not 3 <= w.ndim <= 5:
        fail(ValueError, function, "w", "must have 3 to 5 dimensions", f"shape {w.shape}")
    if x.ndim not in (w.ndim - 1, w.ndim):
        rule = f"must have {w.ndim - 1} (unbatched) or {w.ndim} (batched) dimensions, as w has {w.ndim}"
        fail(ValueError, function, "x", rule, f"shape {x.shape}")
    return x, w


def _numbers(function: str, argument: str, value: Any, channels: int, kinds: str, rule: str) -> np.ndarray:
    """Return numbers of the NumPy kinds `kinds` as an array of one, or of one per channel where there may be more."""
    if not isinstance(value, (int, float, np.generic, np.ndarray)) or isinstance(value, np.ma.MaskedArray):
        fail(TypeError, function, argument, rule, value)
    array = np.asarray(value)
    if array.dtype.kind not in kinds:
        fail(TypeError, function, argument, rule, value)
    if array.ndim > 1 or array.size not in (1, channels):
        shape = f"must be one number{f' or {channels}, one per output channel' if channels > 1 else ''}"
        fail(ValueError, function, argument, shape, f"shape {array.shape}")
    return array.reshape(-1)


def _zero_point(function: str, argument: str, value: Any, dtype: np.dtype, channels: int = 1) -> np.ndarray:
    """Return zero points as int64, checked to be numbers of `dtype`."""
    zeros = _numbers(function, argument, value, channels, "iu", "must be an int or an array of ints")
    limits = np.iinfo(dtype)
    if zeros.min() < limits.min or zeros.max() > limits.max:
        fail(ValueError, function, argument, f"must be from {limits.min} to {limits.max}, as {dtype} is", value)
    return zeros.astype(np.int64)


def _scale(function: str, argument: str, value: Any, channels: int = 1) -> np.ndarray:
    """Return scales as float64, checked to be positive."""
    scales = _numbers(function, argument, value, channels, "f", "must be a float or an array of floats")
    scales = scales.astype(np.float64)
    if not ((scales > 0) & (scales < np.inf)).all():
        fail(ValueError, function, argument, "must be positive and finite", value)
    return scales
