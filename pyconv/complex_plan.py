"""A complex convolution as one real convolution of twice as many channels.

    [y.real]   [w.real  -w.imag]   [x.real]
    [y.imag] = [w.imag   w.real] * [x.imag]     for each group: 2 oc channels of 2 ic

x is taken apart into a copy in which the parts are channels, and y put together from one: the kernels read and write
neighbours, which costs less than four convolutions over elements two apart. An infinite or NaN part makes both parts
of the results that read it infinite or NaN, as these formulas say; C's complex product, which repairs some of them, is
not followed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .problem import ConvProblem

PART = {"complex64": "float32", "complex128": "float64"}


class ComplexPlan:
    """The plan (see plan.py) of a complex problem: `plan_for` gives the one of the real problem it becomes."""

    def __init__(self, problem: ConvProblem, plan_for: Callable):
        self.problem = problem
        part = PART[problem.dtype]
        self.plan = plan_for(problem._replace(ic=2 * problem.ic, oc=2 * problem.oc, dtype=part, out_dtype=part))
        self.algorithm, self.isa = self.plan.algorithm, self.plan.isa

    def pack(self, weight: np.ndarray, bias: np.ndarray | None):
        """Return the parameters as the real plan reads them."""
        p = self.problem
        w = weight.reshape(p.groups, p.oc, p.ic, p.kernel_d, p.kernel_h, p.kernel_w)
        both = np.empty((p.groups, 2, p.oc, 2, *w.shape[2:]), PART[p.dtype])
        both[:, 0, :, 0] = both[:, 1, :, 1] = w.real
        both[:, 1, :, 0] = w.imag
        np.negative(w.imag, out=both[:, 0, :, 1])
        if bias is not None:
            bias = self.apart(bias, p.oc).reshape(-1)
        return self.plan.pack(both.reshape(2 * p.groups * p.oc, 2 * p.ic, *w.shape[3:]), bias)

    def parts(self) -> tuple[tuple[Any, int], ...]:
        """Return the plan that computes it, once."""
        return ((self.plan, 1),)

    def run(self, x: np.ndarray, packed, y: np.ndarray, residual: np.ndarray | None = None) -> None:
        """Write the convolution of x, plus the residual, into y; the residual may be y."""
        p = self.problem
        axis = x.ndim - p.rank - 1  # of channels
        x = self.apart(x, p.ic, axis)
        if residual is not None:
            total = self.apart(residual, p.oc, axis)
            self.plan.run(x, packed, total, total)
        else:
            total = np.empty((*y.shape[:axis], 2 * y.shape[axis], *y.shape[axis + 1 :]), x.dtype)
            self.plan.run(x, packed, total)
        total = total.reshape(*y.shape[:axis], p.groups, 2, p.oc, *y.shape[axis + 1 :])
        before = (slice(None),) * (axis + 1)
        y = y.reshape(*y.shape[:axis], p.groups, p.oc, *y.shape[axis + 1 :])
        y.real = total[(*before, 0)]
        y.imag = total[(*before, 1)]

    def apart(self, array: np.ndarray, channels: int, axis: int = 0) -> np.ndarray:
        """Return a real copy with each group's real parts before its imaginary ones along the axis of channels."""
        shape = array.shape
        array = array.reshape(*shape[:axis], self.problem.groups, channels, *shape[axis + 1 :])
        parts = np.stack((array.real, array.imag), axis=axis + 1)
        return parts.reshape(*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])
