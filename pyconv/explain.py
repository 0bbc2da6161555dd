"""pyconv.explain: which row of the table computes a layer, in which blocks, and what bounds its speed.

What a row does it tells itself (``conv_facts`` of src_c/conv.h). The time is a lower bound, that of the roofline model:
the longer of two, that of the arithmetic at the peak of the multiply-adds and that of moving each byte of input, packed
weights and result once. Both speeds are measured when they are first asked for. Williams, Waterman and Patterson,
"Roofline: an insightful visual performance model for multicore architectures", CACM 52(4), 2009.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from . import config
from .nn.modules import _ConvNd
from .plan import plan_for
from .problem import AXES, ConvProblem, checked_shape, fail

__all__ = ["Explanation", "Part", "explain"]

LEAST_COPY, MOST_COPY = 2**18, 2**27  # bytes: less is the call, more is memory whatever its size


class Part(NamedTuple):
    """One convolution by one row of the table: all of an ordinary layer, a part of a transposed one.

    Attributes
    ----------
    algorithm, isa, dtype : str
        The row, its instruction set, and NumPy's name of the elements of the input.
    others : tuple of str
        The other rows that accept the problem, in order of preference; 'reference' always does.
    input_shape, output_shape : tuple of int
        (N, C, D, H, W).
    tile : tuple of int
        The register tile: (pixels, output channels).
    block : tuple of int
        Outputs of the largest task: (groups, output channels of a group, depth, rows, columns). Columns may be pixels
        that are numbered through the image.
    terms : int
        Terms of every sum for which the input is in scratch at a time.
    tasks, threads : int
        Independent tasks, and the threads that a call gives them to.
    scratch_bytes, packed_bytes : int
        Scratch memory of one thread; the packed weights.
    flop : int
        Multiplications and additions of the formula: 2 per weight and output.
    operations : float
        Those the row does: unused lanes and transforms count, and Winograd's algorithm needs fewer. 0 for 'reference'.
    bytes_moved : int
        Of the input (but for rows that no filter reads), the packed weights and the result, each once.
    peak : float
        FLOP/s of multiply-adds in registers on `threads` cores: one core's, measured, times `threads`.
    bandwidth : float
        Bytes/s, read and written, of a copy that moves about as many bytes, so from the cache that holds them: one
        core's, measured with NumPy, times `threads`. Memory that cores share gives less.
    times : int
        How often the layer computes such a part.
    """

    algorithm: str
    isa: str
    dtype: str
    others: tuple[str, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    tile: tuple[int, int]
    block: tuple[int, int, int, int, int]
    terms: int
    tasks: int
    threads: int
    scratch_bytes: int
    packed_bytes: int
    flop: int
    operations: float
    bytes_moved: int
    peak: float
    bandwidth: float
    times: int = 1

    @property
    def intensity(self) -> float:
        """Operations per byte moved."""
        return self.operations / max(self.bytes_moved, 1)

    @property
    def bound(self) -> str:
        """What takes longer at the least: 'FMA peak' or 'bandwidth'."""
        return "FMA peak" if self.operations / self.peak > self.bytes_moved / self.bandwidth else "bandwidth"

    @property
    def seconds(self) -> float:
        """The least time of all `times` of it."""
        return self.times * max(self.operations / self.peak, self.bytes_moved / self.bandwidth)

    def __str__(self) -> str:
        times = f"{self.times} times " if self.times > 1 else ""
        lines = {"also possible": ", ".join(self.others) or "nothing"}
        if self.terms:
            lines |= self._lines()
        else:
            lines["work"] = f"{_amount(self.flop, 'FLOP')} in NumPy"
        head = f"{times}{self.algorithm}, {self.isa}, {self.dtype}: {self.input_shape} -> {self.output_shape}"
        return "\n".join((head, *(f"  {label:14} {text}" for label, text in lines.items())))

    def _lines(self) -> dict[str, str]:
        """Return what there is to say of a compiled row."""
        groups, channels, depth, rows, columns = self.block
        each = f"{depth} x " * (depth > 1) + f"{rows} x {columns} outputs x {channels} channels"
        each += f" of {groups} groups" * (groups > 1)
        compute, move = self.operations / self.peak, self.bytes_moved / self.bandwidth
        at_peak = f"{_amount(compute, 's')} at {_amount(self.peak, 'FLOP/s')}"
        at_bandwidth = f"{_amount(move, 's')} at {_amount(self.bandwidth, 'B/s')}"
        scratch, packed = _amount(self.scratch_bytes, "B"), _amount(self.packed_bytes, "B")
        done, moved = _amount(self.operations, "FLOP"), _amount(self.bytes_moved, "B")
        return {
            "register tile": f"{self.tile[0]} pixels x {self.tile[1]} channels",
            "tasks": f"{self.tasks} on {self.threads} thread(s), each {each}, {self.terms} terms of the sums at a time",
            "memory": f"{scratch} of scratch a thread, {packed} of packed weights",
            "work": f"{_amount(self.flop, 'FLOP')}, done with {done}; {moved} moved, {self.intensity:.1f} FLOP a byte",
            "bound": f"{self.bound}: {at_peak}, {at_bandwidth}",
        }


class Explanation(NamedTuple):
    """What :func:`explain` returns.

    Attributes
    ----------
    what : str
        The layer or problem.
    parts : tuple of Part
        The convolutions it is computed by, one after the other.
    """

    what: str
    parts: tuple[Part, ...]

    @property
    def flop(self) -> int:
        """Multiplications and additions of all parts, by the formula."""
        return sum(part.times * part.flop for part in self.parts)

    @property
    def seconds(self) -> float:
        """The least time of all parts: no computation with these rows can take less."""
        return sum(part.seconds for part in self.parts)

    def __str__(self) -> str:
        whole = f"{self.what}: {_amount(self.flop, 'FLOP')}, at least {_amount(self.seconds, 's')}"
        return "\n".join((whole, *map(str, self.parts)))


def explain(layer: Any, x_shape: Sequence[int] | None = None) -> Explanation:
    """Tell how a layer is computed for inputs of a shape, and what bounds its speed. Nothing is computed.

    Parameters
    ----------
    layer : module of pyconv.nn, or ConvProblem
        In train mode a call packs the weights itself, which counts in the choice of the row. A problem is what
        :func:`pyconv.problem.conv_problem` returns.
    x_shape : sequence of ints
        Shape of the input, (N, C, ...) or (C, ...). A problem has its own.

    Returns
    -------
    Explanation
        Its text is made for reading; its parts have the numbers: one for an ordinary layer, several for most
        transposed ones.

    Raises
    ------
    TypeError
        If `layer` or `x_shape` is of the wrong kind.
    ValueError
        If the shape does not fit the layer.

    Notes
    -----
    The peak is that of `fma_burn` of src_c/isa/table.c, a loop of multiply-adds on registers alone, best of 20 runs of
    about 1 ms; the bandwidth that of ``numpy.copyto``, best of 5 ms at least. Each is measured once and then kept.
    The copies that NumPy makes of complex arrays and adds up for some transposed layers are not part of the estimate.

    Examples
    --------
    >>> import pyconv
    >>> conv = pyconv.nn.Conv2d(64, 64, 3, padding=1, bias=False).eval()
    >>> explanation = pyconv.explain(conv, (1, 64, 56, 56))
    >>> explanation.flop == 2 * 64 * 56 * 56 * 64 * 3 * 3
    True
    >>> print(explanation)
    Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False): 231.2 MFLOP, at least ...
    """
    if isinstance(layer, ConvProblem):
        if x_shape is not None:
            fail(TypeError, "explain", "x_shape", "must be left out with a problem, which has its own", x_shape)
        plan, what = plan_for(layer), f"{layer.input_shape} -> {layer.output_shape}"
    elif isinstance(layer, _ConvNd):
        plan, what = layer._plan_of(_like_input(layer, x_shape)), repr(layer)
    else:
        fail(TypeError, "explain", "layer", "must be a layer of pyconv.nn or a ConvProblem", type(layer))
    counts: Counter[Part] = Counter()
    for one, times in _leaves(plan):
        counts[_part(one)] += times
    return Explanation(what, tuple(part._replace(times=times) for part, times in counts.items()))


def _like_input(layer: Any, x_shape: Any) -> np.ndarray:
    """Return an array of that shape, and of the layer's dtype, that takes no memory."""
    rank = len(layer.kernel_size)
    shape = checked_shape("explain", "x_shape", x_shape, (rank + 1, rank + 2))
    return np.broadcast_to(np.zeros((), layer.weight.dtype), shape)


def _leaves(plan: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Yield the plans that compute something themselves, and how often each is run."""
    for one, count in plan.parts():
        if one is plan:
            yield plan, times
        else:
            yield from _leaves(one, times * count)


def _part(plan: Any) -> Part:
    fields, facts = plan.fields, plan.facts()
    counts = fields["n"], fields["groups"]
    x_shape = (counts[0], counts[1] * fields["ic"], *(fields[f"in_{axis}"] for axis in AXES))
    y_shape = (counts[0], counts[1] * fields["oc"], *(fields[f"out_{axis}"] for axis in AXES))
    taps = prod(fields[f"kernel_{axis}"] for axis in AXES)
    moved = (
        prod(x_shape[:2]) * prod(min(fields[f"in_{a}"], fields[f"out_{a}"] * fields[f"kernel_{a}"]) for a in "dh")
        * fields["in_w"] * np.dtype(fields["dtype"]).itemsize
        + facts["packed_bytes"] + prod(y_shape) * np.dtype(fields["out_dtype"]).itemsize
    )  # fmt: skip
    native = plan.algorithm != config.REFERENCE
    return Part(
        plan.algorithm, plan.isa, fields["dtype"],
        (*(name for name in facts["accepting"] if name != plan.algorithm), *[config.REFERENCE] * native),
        x_shape, y_shape, (facts["tile_pixels"], facts["tile_channels"]),
        tuple(facts[name] for name in ("groups", "channels", "depth", "rows", "cols")), facts["terms"],
        facts["tasks"], facts["threads"], facts["scratch_bytes"], facts["packed_bytes"],
        2 * prod(y_shape) * fields["ic"] * taps, facts["operations"], moved,
        facts["threads"] * _fma_peak(plan.isa, plan.dtype) if native else np.inf,
        facts["threads"] * _copy_bandwidth(min(max(LEAST_COPY, 1 << moved.bit_length()), MOST_COPY)),
    )  # fmt: skip


@lru_cache
def _fma_peak(isa: str, dtype: str) -> float:
    """Return the FLOP/s of multiply-adds of one core."""
    return 1e9 * config.core.fma_peak_gflops(isa, dtype)


@lru_cache
def _copy_bandwidth(size: int) -> float:
    """Return the bytes/s, read and written, of copying half of `size` bytes to the other half, on one core."""
    halves = np.zeros((2, size // 2), np.uint8)
    best, end = np.inf, time.perf_counter() + 5e-3
    while best == np.inf or time.perf_counter() < end:
        start = time.perf_counter()
        np.copyto(halves[0], halves[1])
        best = min(best, time.perf_counter() - start)
    return size / best


def _amount(value: float, unit: str) -> str:
    """Return a number with its unit and the prefix that leaves 1 to 4 digits before the point."""
    if unit == "s":
        return f"{value * 1e6:.1f} us" if value < 0.1 else f"{value:.2f} s"
    power = min(max(len(f"{value:.0f}") - 1, 0) // 3, 4)
    return f"{value / 1000**power:.1f} {' kMGT'[power]}{unit}" if power else f"{value:.0f} {unit}"
