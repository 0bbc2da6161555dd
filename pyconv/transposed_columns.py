"""Transposed convolutions of few output channels as one matrix product, and sums of its rows.

    columns[m, k, i] = sum over c of  w[c, m, k] x[c, i]        a convolution with one tap, of oc = channels x taps
    y[m, o]          = sum over taps and positions with  i s + k d = o + p  of  columns[m, k, i]

A phase (transposed.py) of 3 channels fills 3 rows of a register tile and reads every pixel for each of them; here the
taps are rows too, and each sum of `oc` products costs one more addition. For DCGAN's last layer (128 to 3 channels,
4x4, stride 2; AVX-512, one thread) that takes a quarter of the phases' time, with 8 channels 0.4 and with 15 0.6 of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

import numpy as np

from . import config
from .activation import GELU, activate
from .arrays import COMPILED_DTYPES
from .fold_problem import met
from .plan import plan_for
from .problem import ConvProblem, plain_problem, sizes_by_kind
from .reference import sums_dtype

MOST_CHANNELS = 15  # a vector of 16 floats is full with more
LEAST_DEPTH = 32  # products for each of the additions, which NumPy does
DTYPES = ("float16", "bfloat16", "float32", "float64")
# Elements of columns at a time: 1 MiB of floats, half of the L2 cache that the measurements were made with.
BLOCK = 2**18


def accepts(p: ConvProblem) -> bool:
    """Tell whether the transposed convolution of a problem had better be computed here; by its shape alone."""
    taps = p.kernel_d * p.kernel_h * p.kernel_w
    few = p.ic <= MOST_CHANNELS and p.oc >= LEAST_DEPTH and taps > 1
    # Of one row of an image at least, which must not take much memory.
    columns = p.groups * p.ic * taps * (p.out_h if p.rank > 2 else 1) * (p.out_w if p.rank > 1 else 1)
    return few and p.dtype in DTYPES and columns <= 16 * BLOCK and p.activation != GELU


def channels_swapped(weight: np.ndarray) -> np.ndarray:
    """Return (groups, oc, ic, ...) as a new (groups * ic, oc, ...)."""
    groups, oc, ic, *kernel = weight.shape
    swapped = np.empty((groups, ic, oc, *kernel), weight.dtype)
    if config.core is not None and weight.dtype in COMPILED_DTYPES:
        axes = (slice(None), slice(None), slice(None), *[None] * (3 - len(kernel)))
        config.core.copy_swapped(weight[axes], swapped[axes])
    else:
        swapped[...] = weight.swapaxes(1, 2)
    return swapped.reshape(groups * ic, oc, *kernel)


def pieces(total: int, size: int) -> list[tuple[int, int]]:
    """Return the sizes of the pieces that a total is cut into, and how many there are of each."""
    return [(one, count) for one, count in ((size, total // size), (total % size, 1)) if one and count]


class ColumnsPlan:
    """The plan (see plan.py) of a transposed convolution: the input gradient of `problem`, plus a bias."""

    def __init__(self, problem: ConvProblem, algorithm: str | None):
        self.problem = p = problem
        self.algorithm, self.isa = algorithm, config.isa()
        self.x_size, self.y_size, self.kernel, self.stride, self.dilation, self.pad = sizes_by_kind(
            p, "out", "in", "kernel", "stride", "dilation", "pad"
        )
        self.sums = sums_dtype(p.dtype)
        self.channels = p.groups * p.ic
        row = self.channels * prod(self.kernel) * prod(self.x_size[1:])
        # Whole images, or some rows of one.
        self.rows = max(1, min(self.x_size[0], BLOCK // row))
        most = max(1, BLOCK // (row * self.x_size[0])) if self.rows == self.x_size[0] else 1
        self.images = max(1, min(most, p.n))
        self.rest = self.x_size[0] % self.rows
        blocks = product({self.images, p.n % self.images} - {0}, {self.rows, self.rest} - {0})
        self.plans = {block: self.product_plan(*block) for block in blocks}

    def product_plan(self, images: int, rows: int):
        """Return the plan of the matrix product for some rows of some images."""
        p = self.problem
        axes = [(size, size, 1, 1, 1, 0) for size in (rows, *self.x_size[1:])]
        counts = images, p.groups, p.oc, p.ic * prod(self.kernel)
        problem = plain_problem(p.rank, np.dtype(p.dtype), counts, axes, 0, bool(p.exact))
        return plan_for(problem._replace(out_dtype=self.sums.name), self.algorithm)

    def pack(self, weight: np.ndarray, bias: np.ndarray | None):
        """Return the parameters as the product reads them; the bias is added later."""
        p = self.problem
        filters = channels_swapped(weight.reshape(p.groups, p.oc, p.ic * prod(self.kernel)))
        filters = filters.reshape(*filters.shape, *[1] * p.rank)
        packed = self.plans[self.images, self.rows].pack(filters, None)
        of_rest = self.plans[self.images, self.rest].pack(filters, None) if self.rest else None
        return packed, of_rest, bias

    def parts(self) -> list[tuple[Any, int]]:
        """Return the plans of the matrix products, and how often each is run."""
        blocks = product(pieces(self.problem.n, self.images), pieces(self.x_size[0], self.rows))
        return [(self.product_plan(images, rows), times * more) for (images, times), (rows, more) in blocks]

    def run(self, x: np.ndarray, packed, y: np.ndarray, residual: np.ndarray | None = None) -> None:
        """Write activation(transposed convolution of x + residual) into y; all with or without the batch axis."""
        p = self.problem
        if x.ndim == p.rank + 1:
            x, y, residual = x[None], y[None], None if residual is None else residual[None]
        with np.errstate(all="ignore"):  # Inf * 0 is NaN, as in the kernels
            for first in range(0, len(x), self.images):
                some = slice(first, first + self.images)
                self.run_images(x[some], packed, y[some], None if residual is None else residual[some])

    def run_images(self, x: np.ndarray, packed, y: np.ndarray, residual: np.ndarray | None) -> None:
        """Do what `run` does for a few images."""
        p = self.problem
        whole, of_rest, bias = packed
        total = y if y.dtype == self.sums else np.empty(y.shape, self.sums)
        if residual is None:
            total[...] = 0
        elif residual is not total:
            total[...] = residual
        if bias is not None:
            total += bias.astype(self.sums).reshape(-1, *[1] * p.rank)
        for row in range(0, self.x_size[0], self.rows):
            rows = min(self.rows, self.x_size[0] - row)
            columns = np.empty((len(x), self.channels * prod(self.kernel), rows, *self.x_size[1:]), self.sums)
            part = whole if rows == self.rows else of_rest
            self.plans[len(x), rows].run(x[:, :, row : row + rows], part, columns)
            columns = columns.reshape(len(x), self.channels, *self.kernel, rows, *self.x_size[1:])
            for tap, where, target in self.taps(row, rows):
                sums = total[(..., *target)]
                sums += columns[(slice(None), slice(None), *tap, *where)]
        if p.activation:
            total[...] = activate(p.activation, p.activation_a, p.activation_b, total)
        if total is not y:
            y[...] = total.astype(y.dtype)

    def taps(self, row: int, rows: int) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
        """Yield, for each tap, its place, which of the positions from `row` on meet the result with it, and where."""
        counts, firsts = (rows, *self.x_size[1:]), (row, *[0] * (self.problem.rank - 1))
        axes = [
            [(k, *met(count, size, stride, first * stride + k * dilation - pad)) for k in range(kernel)]
            for count, first, size, kernel, stride, dilation, pad in zip(
                counts, firsts, self.y_size, self.kernel, self.stride, self.dilation, self.pad, strict=True
            )
        ]
        for one in product(*axes):
            yield tuple(a[0] for a in one), tuple(a[1] for a in one), tuple(a[2] for a in one)
