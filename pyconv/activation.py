"""The activations that a convolution can end with: their numbers in src_c/conv.h, and what they compute."""

from __future__ import annotations

import math

import numpy as np

IDENTITY, CLAMP, LEAKY_RELU, HARDSWISH, SIGMOID, SILU, TANH, GELU, GELU_TANH = range(9)

_erf = np.frompyfunc(math.erf, 1, 1)


def activate(number: int, a: float, b: float, s: np.ndarray) -> np.ndarray:
    """Return activation `number` of the sums `s`, in their dtype; a and b as in src_c/conv.h."""
    if number == CLAMP:
        return np.minimum(np.maximum(s, s.dtype.type(a)), s.dtype.type(b))
    if number == LEAKY_RELU:
        return np.where(s < 0, s.dtype.type(a) * s, s)
    if number == HARDSWISH:
        return s * np.clip(s + 3, 0, 6) / 6
    if number == SIGMOID:
        return 1 / (1 + np.exp(-s))
    if number == SILU:
        return s / (1 + np.exp(-s))
    if number == TANH:
        return np.tanh(s)
    if number == GELU:
        return s * (1 + _erf(s * math.sqrt(0.5)).astype(s.dtype)) / 2
    if number == GELU_TANH:
        return s * (1 + np.tanh(math.sqrt(2 / math.pi) * (s + 0.044715 * s**3))) / 2
    return s
