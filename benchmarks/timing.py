"""Timing one callable on a machine that others use too, and the few statistics that survive it."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable
from itertools import repeat

SAMPLE_NS = 2_000_000  # a sample lasts at least about this long (or is one call): far above the clock's resolution
MIN_SAMPLES, MAX_SAMPLES = 2, 200
IDLE_SHARE = 0.1  # a process that uses less than this of one CPU is idle


CLOCKS: dict[str, Callable[[], int]] = {
    "wall": time.perf_counter_ns,
    "cpu": time.process_time_ns,  # of all threads: what one thread would take if no other program ran
}


def sample(call: Callable[[], object], calls: int, clock: Callable[[], int]) -> float:
    """Mean nanoseconds per call over `calls` calls in a row."""
    start = clock()
    for _ in repeat(None, calls):
        call()
    return (clock() - start) / calls


def time_turn(call: Callable[[], object], budget_ms: float, clock: str = "wall") -> list[float]:
    """Warm up, choose the calls per sample, then sample for about `budget_ms`.

    Parameters
    ----------
    call : callable
        Takes no argument.
    budget_ms : float
        At least two samples are taken however long they are.
    clock : str
        A name in CLOCKS.

    Returns
    -------
    list of float
        Microseconds per call, one number per sample.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        now = CLOCKS[clock]
        call()
        calls, nanoseconds = 1, sample(call, 1, now)
        while nanoseconds * calls < SAMPLE_NS / 2:
            calls *= 4
            nanoseconds = sample(call, calls, now)
        calls = max(1, math.ceil(SAMPLE_NS / nanoseconds))
        end = time.perf_counter_ns() + budget_ms * 1e6
        samples: list[float] = []
        while len(samples) < MIN_SAMPLES or (time.perf_counter_ns() < end and len(samples) < MAX_SAMPLES):
            samples.append(sample(call, calls, now) / 1e3)
        return samples
    finally:
        if enabled:
            gc.enable()


def settle(limit_s: float = 0.5) -> None:
    """Sleep until this process is idle: threads that spin for their next job would slow down the next library."""
    end = time.monotonic() + limit_s
    pause = 0.005
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(pause)
        if time.process_time() - before < IDLE_SHARE * pause:
            return


def geometric_mean(values: Iterable[float]) -> float | None:
    """Geometric mean of positive numbers; None for no numbers.

    >>> geometric_mean([1, 4])
    2.0
    """
    values = list(values)
    return statistics.geometric_mean(values) if values else None
