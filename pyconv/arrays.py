"""The arrays of a call: what may be one, as the plain native arrays that problem.py and the kernels take."""

from __future__ import annotations

from typing import Any

import numpy as np

from .problem import fail, kind_of

COMPILED_DTYPES = frozenset({np.dtype(np.float32), np.dtype(np.float64)})  # native byte order only


def as_array(function: str, argument: str, value: Any, kinds: str = "fciu") -> np.ndarray:
    """Return `value` as a plain native array whose strides are whole elements: itself, unless that takes a copy.

    `kinds` are those of :func:`kind_of` that it may hold.
    """
    if type(value) is np.ndarray and value.dtype in COMPILED_DTYPES and value.flags.c_contiguous:
        return value  # nearly always; the checks below take longer than a small convolution
    if not isinstance(value, np.ndarray):
        rule = "must be a numpy.ndarray (numpy.asarray(...) makes one)"
        fail(TypeError, function, argument, rule, value if np.isscalar(value) else type(value))
    if isinstance(value, np.ma.MaskedArray):
        fail(TypeError, function, argument, "must not be masked: fill it first, e.g. .filled(0)", type(value))
    dtype = value.dtype
    if kind_of(dtype) not in kinds:
        fail(TypeError, function, argument, "must hold floating-point, complex or integer numbers", dtype)
    array = value if type(value) is np.ndarray else np.asarray(value).view(np.ndarray)
    if not dtype.isnative:
        return array.astype(dtype.newbyteorder("="))
    if array.size and any(stride % dtype.itemsize for stride in array.strides):
        return array.copy()
    return array


def check_arrays(
    function: str, rank: int, x: Any, weight: Any, bias: Any, transposed_groups: int = 0, per_sample: bool = False
):
    """Return input, weight and bias as plain arrays of one dtype and the right ranks; the last two contiguous.

    `transposed_groups` are the groups of a transposed convolution, whose weight counts output channels in its second
    axis; 0 for others. `per_sample` says that weight and bias may have a leading axis like the input's batch.
    """
    x = as_array(function, "input", x)
    if x.ndim not in (rank + 1, rank + 2):
        rule = f"must have {rank + 1} (unbatched) or {rank + 2} (batched) dimensions"
        fail(ValueError, function, "input", rule, f"shape {x.shape}")
    weight = contiguous(as_array(function, "weight", weight))
    same_dtype(function, "weight", weight, x)
    of_samples = per_sample and weight.ndim == rank + 3
    if weight.ndim != rank + 2 and not of_samples:
        more = f", or {rank + 3} with filters for each sample" if per_sample else ""
        fail(ValueError, function, "weight", f"must have {rank + 2} dimensions{more}", f"shape {weight.shape}")
    if of_samples and x.shape[: -rank - 1] != weight.shape[:1]:
        rule = f"must have a batch of weight.shape[0] = {len(weight)} samples, one for each set of filters"
        fail(ValueError, function, "input", rule, f"shape {x.shape}")
    if bias is not None:
        bias = contiguous(as_array(function, "bias", bias))
        same_dtype(function, "bias", bias, x)
        channels = weight.shape[1] * transposed_groups if transposed_groups else weight.shape[-rank - 2]
        if bias.shape != (channels,) and not (of_samples and bias.shape == (len(x), channels)):
            more = f" or ({len(x)}, {channels})" if of_samples else ""
            rule = f"must have shape ({channels},){more}, one value per output channel"
            fail(ValueError, function, "bias", rule, f"shape {bias.shape}")
    return x, weight, bias


def contiguous(array: np.ndarray) -> np.ndarray:
    """Return the array in C order and aligned: itself if it is."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else array.copy(order="C")


def same_dtype(function: str, argument: str, array: np.ndarray, x: np.ndarray) -> None:
    """Torch promotes nothing, and neither do we: a silent float64 would be twice as slow."""
    if array.dtype != x.dtype:
        rule = f"must have the input's dtype {x.dtype}; convert one of them with .astype"
        fail(TypeError, function, argument, rule, array.dtype)
