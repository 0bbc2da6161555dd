"""Checks and shape arithmetic of unfold and fold: problem.py for the matrix of a picture's windows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .arrays import as_array
from .problem import LIMIT, fail, per_axis

MOST_ELEMENTS = LIMIT // 16  # of 16 bytes at most: their size in bytes is still a number of 64 bits
KINDS = "bfciu"


class Windows(NamedTuple):
    """The windows that a filter of this geometry sees of an image; every field has one int per axis."""

    size: tuple[int, int]  # of the image
    positions: tuple[int, int]  # of the filter
    kernel: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    stride: tuple[int, int]

    @property
    def are_tiles(self) -> bool:
        """Whether every element is in one window: one copy does (16x16: unfold 0.2 of the time, fold 0.4)."""
        tiled = tuple(n * k for n, k in zip(self.positions, self.kernel, strict=True))
        return self.stride == self.kernel and self.padding == (0, 0) and self.dilation == (1, 1) and self.size == tiled

    def taps(self) -> Iterator[tuple[tuple[int, int], tuple[slice, slice], tuple[slice, slice]]]:
        """Yield, for each tap of the filter, its place, which positions meet the image with it, and where."""
        axes = [
            [(k, *met(*one[:2], one[2], k * one[3] - one[4])) for k in range(kernel)]
            for kernel, *one in zip(self.kernel, self.positions, self.size, self.stride, self.dilation, self.padding)
        ]
        for row, column in product(*axes):
            yield (row[0], column[0]), (row[1], column[1]), (row[2], column[2])


def met(positions: int, size: int, stride: int, offset: int) -> tuple[slice, slice]:
    """Return the positions p for which 0 <= p stride + offset < size, and these elements."""
    first = max(0, -(offset // stride))
    end = max(first, min(positions, (size - 1 - offset) // stride + 1))
    start = first * stride + offset
    return slice(first, end), slice(start, start + (end - first - 1) * stride + 1 if end > first else start, stride)


def checked_windows(function: str, size: tuple[int, int], kernel, dilation, padding, stride) -> Windows:
    """Check the geometry; the sizes of the image are positive already."""
    kernel = per_axis(function, "kernel_size", kernel, 2, 1)
    dilation = per_axis(function, "dilation", dilation, 2, 1)
    padding = per_axis(function, "padding", padding, 2, 0)
    stride = per_axis(function, "stride", stride, 2, 1)
    positions = []
    for n, k, d, p, s in zip(size, kernel, dilation, padding, stride, strict=True):
        padded, span = n + 2 * p, d * (k - 1) + 1
        if padded >= LIMIT:
            fail(ValueError, function, "padding", f"must keep the padded image below {LIMIT} positions", padding)
        if span > padded:
            rule = f"must not exceed the padded image: dilation {d} x (kernel {k} - 1) + 1 = {span} > {padded}"
            fail(ValueError, function, "kernel_size", rule, kernel)
        positions.append((padded - span) // s + 1)
    if prod(positions) * prod(kernel) >= MOST_ELEMENTS:
        rule = "makes more positions than any memory holds"
        fail(ValueError, function, "padding", rule, f"{positions[0]} x {positions[1]} positions")
    return Windows(size, tuple(positions), kernel, dilation, padding, stride)


def checked_input(function: str, value: Any, axes: int, names: str) -> np.ndarray:
    """Return an input of `axes` dimensions, or one more with a batch, none of them empty but the batch."""
    x = as_array(function, "input", value, KINDS)
    if x.ndim not in (axes, axes + 1):
        rule = f"must have {axes} dimensions, ({names}), or {axes + 1}, (N, {names})"
        fail(ValueError, function, "input", rule, f"shape {x.shape}")
    if 0 in x.shape[-axes:]:
        fail(ValueError, function, "input", "must not have an empty axis but the batch", f"shape {x.shape}")
    return x


def unfold_problem(function: str, x: Any, kernel, dilation, padding, stride) -> tuple[np.ndarray, Windows]:
    """Check the arguments of unfold; return its input and the windows."""
    x = checked_input(function, x, 3, "C, H, W")
    windows = checked_windows(function, x.shape[-2:], kernel, dilation, padding, stride)
    if prod(x.shape[:-2]) * prod(windows.positions) * prod(windows.kernel) >= MOST_ELEMENTS:
        fail(ValueError, function, "input", "has more windows than any memory holds", f"shape {x.shape}")
    return x, windows


def fold_problem(function: str, x: Any, output_size, kernel, dilation, padding, stride) -> tuple[np.ndarray, Windows]:
    """Check the arguments of fold; return its input and the windows of the image it makes."""
    x = checked_input(function, x, 2, "C x kernel_h x kernel_w, L")
    size = per_axis(function, "output_size", output_size, 2, 1)
    windows = checked_windows(function, size, kernel, dilation, padding, stride)
    rows, columns = x.shape[-2:]
    taps, positions = prod(windows.kernel), windows.positions
    if rows % taps:
        rule = f"must have rows for {windows.kernel[0]} x {windows.kernel[1]} taps: a multiple of {taps}"
        fail(ValueError, function, "input", rule, rows)
    if columns != prod(positions):
        rule = f"must have {positions[0]} x {positions[1]} = {prod(positions)} columns for output_size {size}"
        fail(ValueError, function, "input", rule, columns)
    if x.size // max(1, rows * columns) * (rows // taps) * prod(size) >= MOST_ELEMENTS:
        fail(ValueError, function, "output_size", "makes a larger image than any memory holds", output_size)
    return x, windows
