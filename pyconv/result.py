"""Where a result goes: a new array in the layout that torch gives it, or `out`; and what is added to it.

y = activation(convolution + bias + residual), where `accumulate` makes `out` the residual. The kernels read a residual
with y's strides, which may be y itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import as_array, same_dtype
from .problem import fail


def is_channels_last(array: np.ndarray, rank: int) -> bool:
    """Tell whether torch calls a batched array channels-last: where strides say so and don't say 'contiguous' as well.

    This is c10's is_channels_last_strides, word for word: channels vary fastest, then the last axis, up to the batch,
    and an axis of length 1 counts with the stride it happens to have. Of one spatial axis there is no such layout.
    """
    if rank == 1 or array.ndim != rank + 2:
        return False
    shape, strides, least = array.shape, array.strides, 0
    if strides[1] == 0 or 0 in shape:
        return False
    for axis in (1, *range(rank + 1, 1, -1), 0):
        # N, 1, 1, 1 with strides that fit both layouts is contiguous.
        if strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * shape[axis]
    return True


def channels_last_result(x: np.ndarray, weight: np.ndarray, rank: int) -> bool:
    """Tell whether a new result is channels-last: if there is a batch and input or weight is."""
    return x.ndim == rank + 2 and (is_channels_last(x, rank) or is_channels_last(weight, rank))


def new_array(shape: tuple[int, ...], dtype: np.dtype, channels_last: bool) -> np.ndarray:
    """Return an array for a result, not filled."""
    if not channels_last:
        return np.empty(shape, dtype)
    last = len(shape) - 1
    return np.empty((shape[0], *shape[2:], shape[1]), dtype).transpose(0, last, *range(1, last))


def output_array(function: str, out: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Check an array that results are to be written to."""
    if type(out) is not np.ndarray:
        fail(TypeError, function, "out", "must be a numpy.ndarray", type(out))
    if out.dtype != dtype or not out.dtype.isnative:
        fail(TypeError, function, "out", f"must have the input's dtype {dtype}", out.dtype)
    if out.shape != shape:
        fail(ValueError, function, "out", f"must have shape {shape}", out.shape)
    if not out.flags.writeable:
        fail(ValueError, function, "out", "must be writable", "a read-only array")
    extents = sorted((abs(s), n) for s, n in zip(out.strides, shape) if n > 1)
    reach = out.itemsize
    for step, n in extents if out.size else ():
        if step < reach:
            fail(ValueError, function, "out", "must not have elements that overlap", f"strides {out.strides}")
        reach = step * (n - 1) + reach
    return out


def residual_array(function: str, residual: Any, shape: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    """Check an array that is to be added to a result."""
    residual = as_array(function, "residual", residual)
    same_dtype(function, "residual", residual, x)
    if residual.shape != shape:
        fail(ValueError, function, "residual", f"must have the result's shape {shape}", residual.shape)
    return residual


def can_write_directly(out: np.ndarray, arguments) -> bool:
    """Tell whether the kernels may write to `out`: aligned, and apart from everything they read."""
    if not out.flags.aligned or any(stride % out.itemsize for stride in out.strides):
        return False
    return not any(np.may_share_memory(out, a) for a in arguments if a is not None)


def lie_alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Tell whether arrays of one shape have one set of strides, where an axis is longer than 1."""
    return all(s == t for s, t, n in zip(a.strides, b.strides, a.shape) if n > 1)


def is_same(a: np.ndarray, b: np.ndarray) -> bool:
    """Tell whether arrays of one shape and dtype are the same elements in the same places."""
    return a.__array_interface__["data"][0] == b.__array_interface__["data"][0] and lie_alike(a, b)


def destination(function, shape, x, channels_last, out, residual, accumulate, arguments):
    """Check `out`, `residual` and `accumulate` of a call and return where it writes and what it adds.

    Returns
    -------
    y : ndarray
        What the kernels are to write: `out` itself if that can be.
    residual : ndarray or None
        What they add: an array with the strides of y that shares no other memory with it, or y.
    """
    if type(accumulate) is not bool:
        fail(TypeError, function, "accumulate", "must be a bool", accumulate)
    if accumulate and out is None:
        fail(ValueError, function, "accumulate", "needs out=, the array to add to", accumulate)
    if accumulate and residual is not None:
        fail(ValueError, function, "residual", "must be None if accumulate is True: out is what is added", "an array")
    if out is not None:
        out = output_array(function, out, shape, x.dtype)
    residual = out if accumulate else residual
    if residual is not None and residual is not out:
        residual = residual_array(function, residual, shape, x)
        if out is not None and is_same(residual, out):
            residual = out
    reads = arguments if residual is None or residual is out else (*arguments, residual)
    y = out if out is not None and can_write_directly(out, reads) else new_array(shape, x.dtype, channels_last)
    if residual is None or residual is y:
        return y, residual
    if residual.flags.aligned and lie_alike(residual, y) and not np.may_share_memory(residual, y):
        return y, residual
    y[...] = residual
    return y, y


def compute(
    function, plan, x, weight, bias, shape, channels_last, out=None, residual=None, accumulate=False, packed=None
):
    """Run a plan on arrays that were checked, into a new array or into `out`, which is checked here.

    Weight and bias are packed here unless `packed` is what came of it.
    """
    if out is None and residual is None and accumulate is False:
        y, added = new_array(shape, x.dtype, channels_last), None
    else:
        arguments = (x, weight, bias)
        y, added = destination(function, shape, x, channels_last, out, residual, accumulate, arguments)
    if y.size:
        plan.run(x, plan.pack(weight, bias) if packed is None else packed, y, added)
    if out is None or y is out:
        return y
    out[...] = y
    return out
