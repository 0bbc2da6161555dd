"""pyconv under bad conditions: subnormal numbers, and programs that keep every core busy."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from .layers import Layer, read_layers, select
from .timing import time_turn

# One layer of each algorithm, and a small one of each for the neighbours.
LAYERS = ("rn50.2.3x3", "rn50.5.3x3", "rn50.3.3x3s2", "rn50.2.1x1a", "mbv2.dw3x3_144", "wave.c1d_k3_d4")
SMALL_LAYERS = ("rn50.2.1x1a", "mbv2.pw_320_1280", "mbv2.dw3x3_144", "mbv2.dw3x3_576", "tiny.8x8")
# Products of the last are subnormal: factors are not.
SCALES = {"x": (1e-40, 1.0), "weights": (1.0, 1e-40), "both": (1e-40, 1e-40), "products": (1e-20, 1e-20)}
BUSY = "while True: pass"


class Ratio(NamedTuple):
    """One line: a layer, and times by the time under good conditions."""

    layer: str
    us: float
    ratios: dict[str, float]


def _module(layer: Layer, scale: float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
    from pyconv import nn

    padding = layer.pad_h, layer.pad_w
    shape = layer.c_in, layer.c_out, layer.kernel, layer.stride, padding, layer.dilation, layer.groups
    module = nn.Conv2d(*shape, bias=False)
    module.weight[:] = layer.data()[1] * np.float32(scale)
    return module.eval()


def _turns(calls: dict[str, Callable[[], object]], rounds: int, budget_ms: float, clock: str) -> dict[str, list[float]]:
    """Microseconds of every call, in turns."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name] += time_turn(call, budget_ms, clock)
    return samples


def subnormals(rounds: int, budget_ms: float) -> list[Ratio]:
    """Time layers on one thread with numbers below 1.2e-38: times by that with normal numbers, least of all samples."""
    import pyconv

    before = pyconv.get_num_threads()
    pyconv.set_num_threads(1)
    lines = []
    for layer in select(read_layers(), LAYERS):
        x = layer.data()[0]
        good = _module(layer)
        calls: dict[str, Callable[[], object]] = {"": lambda x=x, good=good: good(x)}
        for name, (of_x, of_w) in SCALES.items():
            small, module = x * np.float32(of_x), _module(layer, of_w)
            calls[name] = lambda small=small, module=module: module(small)
        least = {name: min(samples) for name, samples in _turns(calls, rounds, budget_ms, "cpu").items()}
        lines.append(Ratio(layer.name, least[""], {name: least[name] / least[""] for name in SCALES}))
    pyconv.set_num_threads(before)
    return lines


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many other processes computing."""
    programs = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def neighbours(rounds: int, budget_ms: float) -> list[Ratio]:
    """Time small layers while every CPU has another program: speed of all threads by that of one, means."""
    import pyconv

    before, cpus = pyconv.get_num_threads(), os.cpu_count() or 1
    lines = []
    with busy(cpus):
        for layer in select(read_layers(), SMALL_LAYERS):
            x, module = layer.data()[0], _module(layer)

            def call(threads: int, x: np.ndarray = x, module: Callable[[np.ndarray], np.ndarray] = module) -> None:
                pyconv.set_num_threads(threads)
                module(x)

            calls = {"one": lambda call=call: call(1), "all": lambda call=call: call(cpus)}
            # The scheduler takes a core away for milliseconds: what a user waits for is the mean over many of those.
            means = {k: statistics.fmean(v) for k, v in _turns(calls, rounds, 10 * budget_ms, "wall").items()}
            lines.append(Ratio(layer.name, means["one"], {f"{cpus} threads": means["one"] / means["all"]}))
    pyconv.set_num_threads(before)
    return lines


def table(title: str, lines: list[Ratio]) -> Table:
    """Show the lines."""
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    shown.add_column("layer")
    for heading in ("us", *lines[0].ratios):
        shown.add_column(heading, justify="right")
    for line in lines:
        shown.add_row(line.layer, f"{line.us:.1f}", *(f"{ratio:.2f}" for ratio in line.ratios.values()))
    return shown
