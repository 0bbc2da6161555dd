"""The activations that a convolution can end with: their numbers in src_c/conv.h, and what they compute."""

from __future__ import annotations

import math

import numpy as np

IDENTITY, CLAMP, LEAKY_RELU, HARDSWISH, SIGMOID, SILU, TANH, GELU, GELU_TANH = range(9)

_erf = np.frompyfunc(math.erf, 1, 1)


FORMULAS = {
    CLAMP: lambda s, a, b: np.minimum(np.maximum(s, limit(a, s.dtype)), limit(b, s.dtype)),
    LEAKY_RELU: lambda s, a, _: np.where(s < 0, s.dtype.type(a) * s, s),
    HARDSWISH: lambda s, *_: s * np.clip(s + 3, 0, 6) / 6,
    SIGMOID: lambda s, *_: 1 / (1 + np.exp(-s)),
    SILU: lambda s, *_: s / (1 + np.exp(-s)),
    TANH: lambda s, *_: np.tanh(s),
    GELU: lambda s, *_: s * (1 + _erf(s * math.sqrt(0.5)).astype(s.dtype)) / 2,
    GELU_TANH: lambda s, *_: s * (1 + np.tanh(math.sqrt(2 / math.pi) * (s + 0.044715 * s**3))) / 2,
}


def limit(value: float, dtype: np.dtype):
    """Return a number, which may be infinite, as the nearest of a dtype."""
    if dtype.kind not in "iu":
        return dtype.type(value)
    info = np.iinfo(dtype)
    return dtype.type(int(min(max(value, info.min), info.max)))


def activate(number: int, a: float, b: float, s: np.ndarray) -> np.ndarray:
    """Return activation `number` of the sums `s`, in their dtype; a and b as in src_c/conv.h."""
    return FORMULAS[number](s, a, b)
