"""A small layer with whole numbers in it, and what it has to return."""

from __future__ import annotations

import numpy as np

from pyconv import nn
from pyconv.nn import functional


def integers(shape, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """Small whole numbers, so that any order of summation gives the same result."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def layer(*args, seed: int = 0, **kwargs):
    conv = nn.Conv2d(*(args or (2, 3, 3)), **{"padding": 1, **kwargs})
    conv.weight[...] = integers(conv.weight.shape, seed)
    conv.bias[...] = integers(conv.bias.shape, seed + 1)
    return conv


def expected(conv, x: np.ndarray) -> np.ndarray:
    """What a layer has to return, from its visible state alone."""
    rank = len(conv.kernel_size)
    bias = None if conv.bias is None else np.array(conv.bias)
    call = getattr(functional, f"conv{rank}d")
    sizes = conv.stride, conv.padding, conv.dilation, conv.groups
    return call(x, np.array(conv.weight), bias, *sizes, padding_mode=conv.padding_mode)


def check(conv, x: np.ndarray) -> None:
    for _ in range(2):
        np.testing.assert_allclose(conv(x), expected(conv, x), rtol=1e-4, atol=1e-4)


X = integers((2, 2, 6, 7), 9)
