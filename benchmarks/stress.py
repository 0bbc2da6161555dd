"""pyconv under bad conditions: subnormal numbers, and programs that keep every core busy."""

from __future__ import annotations

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
from .libraries import Options, Pyconv
from .results import machine
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


@contextmanager
def _one_thread() -> Iterator[Pyconv]:
    """Pyconv on one thread, and afterwards on as many as before."""
    import pyconv

    before = pyconv.get_num_threads()
    try:
        yield Pyconv(Options(threads=1))
    finally:
        pyconv.set_num_threads(before)


def _call(pyconv: Pyconv, layer: Layer, of_x: float = 1.0, of_w: float = 1.0) -> Callable[[], object]:
    x, w, _ = layer.data()
    return pyconv.conv("pyconv", layer, x * np.float32(of_x), w * np.float32(of_w), None).call


def _turns(calls: dict[str, Callable[[], object]], rounds: int, budget_ms: float, clock: str) -> dict[str, list[float]]:
    """Microseconds of every call, in turns."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name] += time_turn(call, budget_ms, clock)
    return samples


def subnormals(rounds: int, budget_ms: float) -> list[Ratio]:
    """Time layers on one thread with numbers below 1.2e-38: times by that with normal numbers, least of all samples."""
    lines = []
    with _one_thread() as pyconv:
        for layer in select(read_layers(), LAYERS):
            calls = {name: _call(pyconv, layer, *scales) for name, scales in {"": (1.0, 1.0), **SCALES}.items()}
            least = {name: min(samples) for name, samples in _turns(calls, rounds, budget_ms, "cpu").items()}
            lines.append(Ratio(layer.name, least[""], {name: least[name] / least[""] for name in SCALES}))
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
    cpus = machine()["cpus"]
    lines = []
    with _one_thread() as pyconv, busy(cpus):
        for layer in select(read_layers(), SMALL_LAYERS):
            convolve = _call(pyconv, layer)

            def call(threads: int, convolve: Callable[[], object] = convolve) -> None:
                pyconv.module.set_num_threads(threads)
                convolve()

            calls = {"one": lambda call=call: call(1), "all": lambda call=call: call(cpus)}
            # The scheduler takes a core away for milliseconds: what a user waits for is the mean over many of those.
            means = {k: statistics.fmean(v) for k, v in _turns(calls, rounds, 10 * budget_ms, "wall").items()}
            lines.append(Ratio(layer.name, means["one"], {f"{cpus} threads": means["one"] / means["all"]}))
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
