"""Transposed convolutions and gradients as ordinary convolutions: no kernels of their own, no zeros put in.

Input gradient, which is the transposed convolution. Along one axis, with stride s, dilation d and padding p,

    y[o] = sum over all taps k and positions i with  i s + k d = o + p  of  w[k] x[i]

so the outputs of one *phase*, those with the same (o + p) mod s, meet the same taps: every (s / g)-th, g = gcd(s, d),
and from one of them to the next i falls by d / g. That is a convolution of stride 1 and dilation d / g with these taps
in reverse order, written to every s-th element of y. There is one for each combination of the axes' phases that have
taps at all; the other outputs are the bias. Where the last axis has more phases than a group has channels (an inverse
STFT has one channel and 256 phases), phases that read the same positions become the channels of one convolution. Where
there are few channels but many to sum over, taps become channels and are added later (transposed_columns.py).

Weight gradient. dw[m, c, k] = sum over n and o of dy[n, m, o] x[n, c, o s - p + k d] is a convolution of x with filters
dy whose channels are the images n, whose stride is d and whose dilation is s. The channels c would be its images, but
an image has as few pixels as the kernel has taps, so unless they are few they become one more spatial axis. In three
dimensions there is none left: each tap of one axis is a gradient in two, whose images are the slices that it meets.

Both are described by the ConvProblem that they belong to (transposed_problem.py). Dumoulin and Visin, "A guide to
convolution arithmetic for deep learning", 2016; Shi et al., "Is the deconvolution layer the same as a convolutional
layer?", 2016.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from . import config, transposed_columns
from .activation import activate
from .fold_problem import met
from .plan import algorithms, plan_for
from .problem import ConvProblem, choice, fail, plain_problem, sizes_by_kind
from .reference import ACCUMULATORS, sums_dtype
from .transposed_columns import MOST_CHANNELS, ColumnsPlan, channels_swapped

GEMM = "im2col_gemm"


class Phase(NamedTuple):
    """The outputs of one axis that meet the same taps."""

    first: int  # position of the first in y
    step: int  # from one to the next
    count: int
    start: int  # position in x that the first output's first tap meets; below 0 in the padding
    dilation: int
    length: int  # how many taps
    taps: slice  # which ones of the kernel

    @property
    def reading(self) -> tuple[int, int, int]:
        """What phases have in common that can be the channels of one convolution."""
        return self.count, self.start, self.length


def phases_of_axis(x_size: int, y_size: int, kernel: int, stride: int, dilation: int, pad: int) -> list[Phase]:
    """Return the phases that meet x at all, by their first output."""
    if x_size == 1:
        stride = dilation * (kernel - 1) + 1  # any does, and with this one no output meets two taps
    common = gcd(stride, dilation)
    apart, step = stride // common, dilation // common
    phases = []
    for tap in range(min(kernel, apart)):
        first = (tap * dilation - pad) % stride
        count = -((first - y_size) // stride)
        last = tap + (kernel - 1 - tap) // apart * apart  # the tap that is met first
        start = (first + pad - last * dilation) // stride
        # Taps before `low` and from `high` on meet nothing but padding.
        low = max(0, -((start + count - 1) // step))
        high = min((last - tap) // apart + 1, -((start - x_size) // step))
        if count > 0 and low < high:
            stop = last - high * apart
            taps = slice(last - low * apart, stop if stop >= 0 else None, -apart)
            phases.append(Phase(first, stride, count, start + low * step, step, high - low, taps))
    return sorted(phases)


def runs_of_phases(phases: list[Phase]) -> list[list[Phase]]:
    """Return the phases in runs that can be channels of one convolution: they read alike and are evenly spaced."""
    runs: list[list[Phase]] = []
    for phase in phases:
        run = runs[-1] if runs else []
        alike = bool(run) and run[0].reading == phase.reading
        if alike and (len(run) == 1 or phase.first - run[-1].first == run[1].first - run[0].first):
            run.append(phase)
        else:
            runs.append([phase])
    return runs


class Piece:
    """One ordinary convolution of those that make up a transposed one: one phase on every axis."""

    def __init__(self, whole: ConvProblem, phases: tuple[Phase, ...], x_size: list[int]):
        self.phases = phases
        self.x_where = tuple(slice(max(phase.start, 0), None) for phase in phases)
        self.y_where = tuple(slice(phase.first, None, phase.step) for phase in phases)
        self.taps = tuple(phase.taps for phase in phases)
        self.axes = [
            (size - max(p.start, 0), p.count, p.length, 1, p.dilation, max(-p.start, 0))
            for size, p in zip(x_size, phases, strict=True)
        ]
        self.whole = whole
        self.problem = self.problem_of(whole.groups, whole.ic)

    def problem_of(self, groups: int, channels: int) -> ConvProblem:
        """Return the convolution that gives `channels` outputs for each group."""
        p = self.whole
        counts = p.n, groups, p.oc, channels
        problem = plain_problem(p.rank, np.dtype(p.dtype), counts, self.axes, 0, bool(p.exact))
        return problem._replace(activation=p.activation, activation_a=p.activation_a, activation_b=p.activation_b)

    def x_view(self, x: np.ndarray) -> np.ndarray:
        """Return what of x it reads."""
        return x[(..., *self.x_where)]

    def y_view(self, y: np.ndarray) -> np.ndarray:
        """Return what of y it writes."""
        return y[(..., *self.y_where)]

    def weight(self, weight: np.ndarray) -> np.ndarray:
        """Return its filters, from a weight of shape (groups, oc, ic, *kernel)."""
        return channels_swapped(weight[(..., *self.taps)])

    def bias(self, bias: np.ndarray | None) -> np.ndarray | None:
        """Return its bias."""
        return bias


class RunPiece(Piece):
    """One channel of the result, where a run of phases of the last axis are the channels of the convolution."""

    def __init__(
        self, whole: ConvProblem, phases: tuple[Phase, ...], x_size: list[int], run: list[Phase], channel: int
    ):
        super().__init__(whole, (*phases, run[0]), x_size)
        self.run = run
        self.channel = channel
        self.group, self.channel_of_group = divmod(channel, whole.ic)
        self.problem = self.problem_of(1, len(run))

    def x_view(self, x: np.ndarray) -> np.ndarray:
        """Return what of x it reads: the channels of one group."""
        first = self.group * self.whole.oc
        rank = self.whole.rank
        return x[(..., slice(first, first + self.whole.oc), *self.x_where[-rank:])]

    def y_view(self, y: np.ndarray) -> np.ndarray:
        """Return what of y it writes: the phases' first outputs side by side are the axis of channels."""
        first, step, count = self.run[0].first, self.run[0].step, self.run[0].count
        spacing = self.run[1].first - first if len(self.run) > 1 else 0
        y = y[(..., self.channel, *self.y_where[:-1], slice(first, None))]
        batch, along = y.ndim - self.whole.rank, y.strides[-1]
        shape = (*y.shape[:batch], len(self.run), *y.shape[batch:-1], count)
        return as_strided(y, shape, (*y.strides[:batch], spacing * along, *y.strides[batch:-1], step * along))

    def weight(self, weight: np.ndarray) -> np.ndarray:
        """Return its filters, one for each phase of the run."""
        one = weight[(self.group, slice(None), self.channel_of_group, *self.taps[:-1])]
        firsts = np.array([phase.taps.start for phase in self.run])
        if len(firsts) > 1 and (np.diff(firsts) != firsts[1] - firsts[0]).any():  # with some dilations
            return np.stack([one[..., phase.taps] for phase in self.run])
        taps = one[..., self.taps[-1]]
        spacing = int(firsts[1] - firsts[0]) * one.strides[-1] if len(firsts) > 1 else 0
        shape = (1, len(one), len(firsts), *taps.shape[1:])
        return channels_swapped(as_strided(taps, shape, (0, one.strides[0], spacing, *taps.strides[1:])))

    def bias(self, bias: np.ndarray | None) -> np.ndarray | None:
        """Return its bias: one channel's for all."""
        return None if bias is None else np.full(len(self.run), bias[self.channel])


def takes_runs(problem: ConvProblem, phases: list[Phase]) -> bool:
    """Tell whether the last axis has so many more phases than there are channels that runs of them become channels."""
    return 2 * len(runs_of_phases(phases)) * problem.groups * problem.ic <= len(phases)


class TransposedPlan:
    """The plan (see plan.py) of a transposed convolution: the input gradient of `problem`, plus a bias."""

    def __init__(self, problem: ConvProblem, algorithm: str | None):
        self.problem = problem
        self.algorithm, self.isa = algorithm, config.isa()
        sizes = sizes_by_kind(problem, "out", "in", "kernel", "stride", "dilation", "pad")
        x_size, y_size, self.kernel, *_ = sizes
        axes = [phases_of_axis(*one) for one in zip(*sizes, strict=True)]
        channels, runs = problem.groups * problem.ic, runs_of_phases(axes[-1])
        if takes_runs(problem, axes[-1]):
            pieces = [
                RunPiece(problem, phases, x_size, run, channel)
                for *phases, run in product(*axes[:-1], runs)
                for channel in range(channels)
            ]
        else:
            pieces = [Piece(problem, phases, x_size) for phases in product(*axes)]
        self.pieces = [(piece, plan_for(piece.problem, algorithm)) for piece in pieces]
        self.axes = axes
        # Whether there are outputs that no piece writes.
        self.has_gaps = prod(sum(phase.count for phase in phases) for phases in axes) < prod(y_size)

    def pack(self, weight: np.ndarray, bias: np.ndarray | None):
        """Return the parameters as the pieces read them, and the bias for what no piece writes."""
        p = self.problem
        w = weight.reshape(p.groups, p.oc, p.ic, *self.kernel)
        packed = [plan.pack(piece.weight(w), piece.bias(bias)) for piece, plan in self.pieces]
        return packed, np.zeros(1, weight.dtype) if bias is None else bias

    def parts(self) -> list[tuple[Any, int]]:
        """Return the plans of the pieces, each of which is run once."""
        return [(plan, 1) for _, plan in self.pieces]

    def run(self, x: np.ndarray, packed, y: np.ndarray, residual: np.ndarray | None = None) -> None:
        """Write activation(transposed convolution of x + residual) into y; all with or without the batch axis.

        The residual has the strides of y, or is y.
        """
        parts, bias = packed
        if self.has_gaps:
            self.fill_gaps(bias, y, residual)
        for (piece, plan), part in zip(self.pieces, parts, strict=True):
            added = None if residual is None else piece.y_view(residual)
            plan.run(piece.x_view(x), part, piece.y_view(y), added)

    def fill_gaps(self, bias: np.ndarray, y: np.ndarray, residual: np.ndarray | None) -> None:
        """Write activation(bias + residual) to the outputs that no piece writes, and to others if there is no residual.

        The residual may be y, and pieces want theirs as it is.
        """
        p = self.problem
        total = bias.astype(ACCUMULATORS.get(p.dtype, y.dtype))
        if residual is None:
            where, total = ..., total.reshape(-1, *[1] * p.rank)
        else:
            gaps = np.ones(y.shape[-p.rank :], bool)
            for phases in product(*self.axes):
                gaps[tuple(slice(q.first, q.first + q.count * q.step, q.step) for q in phases)] = False
            where = (..., gaps)
            total = total.reshape(-1, 1) + residual[where]
        with np.errstate(all="ignore"):
            if p.activation:
                total = activate(p.activation, p.activation_a, p.activation_b, total)
            y[where] = total.astype(y.dtype)


# Positions of the output whose gradients are one convolution's depth, at least: fewer images at a time stay in the
# caches while they are packed and copied, but each convolution adds to the whole gradient. ResNet-50's layers at batch
# 16 (AVX-512, one thread): 1x1 from 56x56 take 0.4 and 3x3 ones 0.8 of the time that all images at once take; 1x1 from
# 7x7 take 1.4 times it with one image at a time, 3x3 ones 2.5 times.
LEAST_DEPTH, LEAST_DEPTH_OF_TAPS = 784, 3136
# Up to so many channels of a group are images, for the row `depthwise`, rather than pixels that are far apart in x.
# 16 images of 56x56, 3x3 (Zen 3): 144 groups of one channel take 23 ms, not 150, and 32 groups of four 60, not 85.
FEW_CHANNELS = 4


class WeightGradientPlan:
    """The weight gradient of a convolution in one or two dimensions: a few images at a time, added up."""

    def __init__(self, problem: ConvProblem, algorithm: str | None):
        self.problem = p = problem
        taps, outputs = p.kernel_d * p.kernel_h * p.kernel_w, p.out_d * p.out_h * p.out_w
        # One tap means pixels without neighbours, and so nothing that `direct` could use twice.
        if algorithm is None and taps == 1 and GEMM in algorithms(p.dtype):
            algorithm = GEMM
        self.algorithm = algorithm
        least = LEAST_DEPTH if taps == 1 else LEAST_DEPTH_OF_TAPS
        self.images = max(1, min(p.n, -(-least // outputs)))
        self.sums = sums_dtype(p.dtype) if self.images < p.n else np.dtype(p.dtype)
        self.channels_are_pixels = p.ic > FEW_CHANNELS
        self.plans = {n: self.plan_of(n) for n in (self.images, p.n % self.images) if n or not p.n}

    def plan_of(self, n: int):
        """Return the plan of the convolution for n images."""
        p = self.problem
        # As the convolution of x with dy has them: in, out, kernel, stride, dilation, pad.
        axes = list(zip(*sizes_by_kind(p, "in", "kernel", "out", "dilation", "stride", "pad"), strict=True))
        if self.channels_are_pixels:
            axes.append((p.ic, p.ic, 1, 1, 1, 0))
        counts = (1 if self.channels_are_pixels else p.ic, p.groups, n, p.oc)
        problem = plain_problem(len(axes), np.dtype(p.dtype), counts, axes, 0, bool(p.exact))
        return plan_for(problem._replace(out_dtype=self.sums.name), self.algorithm)

    def run(self, x: np.ndarray, grad_output: np.ndarray, y: np.ndarray) -> None:
        """Write the gradient into y, which has the weight's shape."""
        p = self.problem
        total = y if y.dtype == self.sums else np.empty(y.shape, self.sums)
        place = -1 if self.channels_are_pixels else 0
        result = np.moveaxis(total, 1, place)
        for first in range(0, max(p.n, 1), self.images):
            some = slice(first, first + self.images)
            plan = self.plans[len(x[some])]
            # The filters are the output's gradient with channels and images in each other's places.
            packed = plan.pack(np.ascontiguousarray(grad_output[some].swapaxes(0, 1)), None)
            plan.run(self.input_of(x[some]), packed, result, result if first else None)
        if total is not y:
            y[...] = total

    def input_of(self, x: np.ndarray) -> np.ndarray:
        """Return what the convolution reads of some images."""
        p = self.problem
        x = x.reshape(len(x), p.groups, p.ic, *x.shape[2:]).swapaxes(0, 1)  # (groups, n, ic, ...)
        x = np.moveaxis(x, 2, -1 if self.channels_are_pixels else 0)
        first = 0 if self.channels_are_pixels else 1
        return x.reshape(*x.shape[:first], x.shape[first] * x.shape[first + 1], *x.shape[first + 2 :])


class SlicesGradientPlan:
    """The weight gradient of a convolution in three dimensions: in two, for each tap of the axis with fewest."""

    def __init__(self, problem: ConvProblem, algorithm: str | None):
        self.problem = p = problem
        axes = list(zip(*sizes_by_kind(p, "in", "out", "kernel", "stride", "dilation", "pad"), strict=True))
        self.axis = min(range(3), key=lambda axis: axes[axis][2])
        size, out, kernel, stride, dilation, pad = axes.pop(self.axis)
        self.met = [met(out, size, stride, tap * dilation - pad) for tap in range(kernel)]
        flat = plain_problem(2, np.dtype(p.dtype), (p.n, p.groups, p.ic, p.oc), axes, 0, bool(p.exact))
        counts = {p.n * (where.stop - where.start) for where, _ in self.met}
        self.plans = {n: WeightGradientPlan(flat._replace(n=n), algorithm) for n in counts}

    def run(self, x: np.ndarray, grad_output: np.ndarray, y: np.ndarray) -> None:
        """Write the gradient into y, which has the weight's shape."""
        x, grad_output = (np.moveaxis(a, 2 + self.axis, 1) for a in (x, grad_output))
        for result, (where, source) in zip(np.moveaxis(y, 2 + self.axis, 0), self.met, strict=True):
            slices = [a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]) for a in (x[:, source], grad_output[:, where])]
            self.plans[len(slices[0])].run(*slices, result)


def transposed_plan(function: str, problem: ConvProblem, algorithm: str | None = None) -> TransposedPlan | ColumnsPlan:
    """Return the plan for the transposed convolution that is the input gradient of `problem`."""
    if algorithm is None and transposed_columns.accepts(problem) and config.isa() != config.REFERENCE:
        p = problem
        last = phases_of_axis(p.out_w, p.in_w, p.kernel_w, p.stride_w, p.dilation_w, p.pad_w)
        # Long runs of phases are as many channels, and need no additions.
        if not takes_runs(p, last) or len(last) <= MOST_CHANNELS * len(runs_of_phases(last)):
            return _plan(ColumnsPlan, problem, None, config.isa())
    return _checked_plan(TransposedPlan, function, problem, algorithm)


def weight_gradient_plan(
    function: str, problem: ConvProblem, algorithm: str | None = None
) -> WeightGradientPlan | SlicesGradientPlan:
    """Return the plan for the weight gradient of `problem`."""
    kind = WeightGradientPlan if problem.rank < 3 else SlicesGradientPlan
    return _checked_plan(kind, function, problem, algorithm)


def _checked_plan(kind: type, function: str, problem: ConvProblem, algorithm: str | None):
    if algorithm is None:
        return _plan(kind, problem, None, config.isa())
    choice(function, "algorithm", algorithm, algorithms(problem.dtype))
    try:
        return _plan(kind, problem, algorithm, config.isa())
    except ValueError:
        rule = "must accept each of the convolutions that this one is made of; im2col_gemm accepts everything"
        fail(ValueError, function, "algorithm", rule, algorithm)


@lru_cache(maxsize=256)
def _plan(kind: type, problem: ConvProblem, algorithm: str | None, isa: str):
    del isa  # plan_for asks for it again: here it belongs to the key
    return kind(problem, algorithm)
