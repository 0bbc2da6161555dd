"""NumPy twin of the kernels: serves where the compiled core cannot, and says most plainly what they compute.

    y[n, g, m, p] = activation(residual[n, g, m, p] + bias[g, m]
                    + sum over taps k and channels c of w[g, m, c, k] * x[n, g, c, p * stride - pad + k * dilation])

One matrix product per filter tap; float32 and float16 are summed in float64 and float32 and rounded once.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np

from . import activation
from .problem import PAD_MODES, ConvProblem

ACCUMULATORS = {"float16": np.float32, "bfloat16": np.float32, "float32": np.float64, "complex64": np.complex128}
# Channels whose products are summed before they join the total: a matrix product of NumPy may add all of them in a row,
# and float64 has nothing wider to hide 1,100 roundings in.
CHAIN = 128


def sums_dtype(dtype: np.dtype | str) -> np.dtype:
    """Return the dtype in which several results of a dtype are added up: float32 for halves, else itself.

    >>> sums_dtype("float16")
    dtype('float32')
    """
    dtype = np.dtype(dtype)
    return np.dtype(ACCUMULATORS[dtype.name]) if dtype.name in ("float16", "bfloat16") else dtype


class ReferencePlan:
    """The plan (see plan.py) that computes with NumPy alone."""

    algorithm = "reference"
    isa = "reference"
    fields = property(lambda self: self.problem._asdict())

    def __init__(self, problem: ConvProblem):
        self.problem = problem
        dtype = np.dtype(problem.dtype)
        self.accumulator = np.dtype(np.int64) if dtype.kind in "iu" else ACCUMULATORS.get(problem.dtype, dtype)

    def pack(self, weight: np.ndarray, bias: np.ndarray | None):
        """Return the parameters in the accumulator's dtype, weights as (taps..., groups, oc, ic)."""
        p = self.problem
        kernel = (p.kernel_d, p.kernel_h, p.kernel_w)
        w = weight.reshape(p.groups, p.oc, p.ic, *kernel).astype(self.accumulator)
        return np.moveaxis(w, (3, 4, 5), (0, 1, 2)), None if bias is None else bias.astype(self.accumulator)

    def run(self, x: np.ndarray, packed, y: np.ndarray, residual: np.ndarray | None = None) -> None:
        """Write activation(convolution of x + residual) into y; all with or without the batch axis."""
        p = self.problem
        w, bias = packed
        size, out = (p.in_d, p.in_h, p.in_w), (p.out_d, p.out_h, p.out_w)
        x = x.reshape(p.n, p.groups, p.ic, *size)
        total = np.zeros((p.n, p.groups, p.oc, out[0] * out[1] * out[2]), self.accumulator)
        with np.errstate(all="ignore"):  # Inf * 0 is NaN, as in the kernels; a warning would be one path's alone
            for tap in product(range(p.kernel_d), range(p.kernel_h), range(p.kernel_w)):
                columns = self.columns(x, tap).astype(self.accumulator).reshape(p.n, p.groups, p.ic, total.shape[-1])
                for c in range(0, p.ic, CHAIN):
                    total += w[tap][..., c : c + CHAIN] @ columns[:, :, c : c + CHAIN]
            if bias is not None:
                total += bias.reshape(p.groups, p.oc, 1)
            if residual is not None:
                total += residual.reshape(total.shape).astype(self.accumulator)
            if p.activation:
                total = activation.activate(p.activation, p.activation_a, p.activation_b, total)
            y[...] = total.reshape(y.shape).astype(y.dtype)

    def parts(self) -> tuple[tuple[ReferencePlan, int], ...]:
        """Return the plans that compute something, and how often: this one."""
        return ((self, 1),)

    def facts(self) -> dict[str, Any]:
        """Return what NativePlan tells of itself, as far as it means something here."""
        names = "tile_pixels tile_channels groups channels depth rows cols terms operations scratch_bytes".split()
        packed = prod(self.problem.weight_shape) * np.dtype(self.accumulator).itemsize
        return dict.fromkeys(names, 0) | {"tasks": 1, "threads": 1, "packed_bytes": packed, "accepting": ()}

    def columns(self, x: np.ndarray, tap: tuple[int, int, int]) -> np.ndarray:
        """Return what every output reads of x through one filter tap: (n, groups, ic, out_d, out_h, out_w)."""
        p = self.problem
        inside = []
        for axis, k in zip("dhw", tap, strict=True):
            size, stride, dilation, pad, out = (
                getattr(p, f"{name}_{axis}") for name in ("in", "stride", "dilation", "pad", "out")
            )
            where = source_index(np.arange(out) * stride + (k * dilation - pad), size, p.pad_mode)
            inside.append(where >= 0)
            x = x.take(np.maximum(where, 0), axis=3 + "dhw".index(axis))
        mask = inside[0][:, None, None] & inside[1][:, None] & inside[2]
        return x if mask.all() else np.where(mask, x, x.dtype.type(p.pad_value))


def source_index(position: np.ndarray, size: int, pad_mode: int) -> np.ndarray:
    """Return where positions on an axis of `size` elements come from, -1 where the padding is zero."""
    if pad_mode == PAD_MODES["reflect"]:
        position = np.abs(position)
        return np.where(position >= size, 2 * (size - 1) - position, position)
    if pad_mode == PAD_MODES["replicate"]:
        return position.clip(0, size - 1)
    if pad_mode == PAD_MODES["circular"]:
        return position % size
    return np.where((position >= 0) & (position < size), position, -1)
