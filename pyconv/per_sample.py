"""A filter of its own for every sample, as one convolution: the samples' channels are the groups of a single image.

y[n, g*oc + m] = sum over c of w[n, g*oc + m, c] * x[n, g*ic + c]     n * groups groups of ic and oc channels
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .problem import ConvProblem


def merged(array: np.ndarray) -> np.ndarray | None:
    """Return a view (n * channels, ...) of (n, channels, ...), or None where strides do not allow one."""
    n, channels, *rest = array.shape
    if n == 1 or channels == 1:
        return array[0] if n == 1 else array[:, 0]
    if array.strides[0] != channels * array.strides[1]:
        return None
    return as_strided(array, (n * channels, *rest), array.strides[1:])


def first_filters(weight: np.ndarray) -> np.ndarray:
    """Return one sample's filters, for their shape; there need not be any sample."""
    return weight[0] if len(weight) else np.empty(weight.shape[1:], weight.dtype)


class PerSamplePlan:
    """The plan (see plan.py) of `problem`, whose weights have a leading axis, one set of filters per sample.

    `plan_for` gives the one of the grouped problem it becomes.
    """

    def __init__(self, problem: ConvProblem, plan_for: Callable):
        self.problem = problem
        self.plan = plan_for(problem._replace(n=1, groups=max(problem.n, 1) * problem.groups))
        self.algorithm, self.isa = self.plan.algorithm, self.plan.isa

    def pack(self, weight: np.ndarray, bias: np.ndarray | None):
        """Return the parameters as the grouped plan reads them; `bias` has one value per channel, or per sample too."""
        n, out_channels, *rest = weight.shape
        if bias is not None:
            bias = np.ascontiguousarray(np.broadcast_to(bias, (n, out_channels))).reshape(-1)
        return self.plan.pack(weight.reshape(n * out_channels, *rest), bias)

    def parts(self) -> tuple[tuple[Any, int], ...]:
        """Return the plan that computes it, once."""
        return ((self.plan, 1),)

    def run(self, x: np.ndarray, packed, y: np.ndarray, residual: np.ndarray | None = None) -> None:
        """Write the convolution of x, plus the residual, into y, all with a batch; the residual may be y."""
        joined = merged(x)
        if joined is None:
            joined = x.reshape(-1, *x.shape[2:])
        result = merged(y)
        if result is not None:
            self.plan.run(joined, packed, result, None if residual is None else merged(residual))
            return
        aside = np.empty((y.shape[0] * y.shape[1], *y.shape[2:]), y.dtype)
        if residual is not None:
            aside.reshape(y.shape)[...] = residual
        self.plan.run(joined, packed, aside, None if residual is None else aside)
        y[...] = aside.reshape(y.shape)
