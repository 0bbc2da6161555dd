"""What follows from the rows that `measure.Bench.measure` returns: ratios, geometric means, failures."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, TypedDict

from .family import Call, described
from .family_libraries import YARDSTICKS
from .layers import Layer
from .libraries import EAGER
from .measure import Row
from .suites import classes
from .timing import geometric_mean

SCALING_FLOP = 20e6  # thread counts are compared on layers of at least this many operations


class Summary(TypedDict):
    """One class of layers: geometric means of the ratios, the least of each kind and whose it is; None if unknown."""

    name: str
    layers: int
    eager: float | None
    eager_least: tuple[float, str] | None
    best: float | None
    best_least: tuple[float, str] | None
    yardstick: float | None
    yardstick_least: tuple[float, str] | None
    peak: float | None  # per cent
    peak_least: float | None


def layer_of(row: Row) -> Layer | Call:
    """Make the row's columns a Layer or a Call again."""
    return described(row["layer"])


def gflops(row: Row, key: str = "pyconv") -> float | None:
    """GFLOP/s of one library, or None."""
    return layer_of(row).flop / row["times"][key]["us"] / 1e3 or None if key in row["times"] else None


def ratio(row: Row, peer: str | None) -> float | None:
    """Divide the peer's time by pyconv's (above 1: pyconv is faster); None where one of the two is missing."""
    times = row["times"]
    return times[peer]["us"] / times["pyconv"]["us"] if peer in times and "pyconv" in times else None


def best_peer(row: Row) -> str | None:
    """Name of the fastest peer, or None."""
    peers = {key: time["us"] for key, time in row["times"].items() if key != "pyconv" and key not in YARDSTICKS}
    return min(peers, key=peers.get) if peers else None


def best_ratio(row: Row) -> float | None:
    """`ratio` to the fastest peer, or None."""
    return ratio(row, best_peer(row))


def yardstick_ratio(row: Row) -> float | None:
    """`ratio` to the row's yardstick (family_libraries.py), or None."""
    return next((ratio(row, key) for key in YARDSTICKS if key in row["times"]), None)


def by_threads(rows: Iterable[Row]) -> list[tuple[int, list[Row]]]:
    """Split into (threads, rows) per thread count, ascending."""
    ordered = sorted(rows, key=lambda row: row["threads"])
    return [(threads, list(group)) for threads, group in groupby(ordered, key=lambda row: row["threads"])]


def wrong(rows: Iterable[Row]) -> list[str]:
    """One line for each result that is further from float64 than allowed."""
    lines = []
    for row in rows:
        for key, time in row["times"].items():
            if time["error"] is not None and not time["error"] <= time["limit"]:
                where = f"{row['layer']['name']}, {row['threads']} thread(s), {key}"
                error = f"max |error| {time['error']:.3g} u*sum|x*w|, allowed are {time['limit']}"
                lines.append(f"WRONG RESULT: {where}: {error}")
    return lines


def summary(rows: Sequence[Row], peak: float | None = None) -> list[Summary]:
    """Sum up per class of layers; `rows` of one thread count, `peak` its FMA peak in GFLOP/s."""
    lines = []
    for name, belongs in classes(map(layer_of, rows)).items():
        chosen = [row for row in rows if not layer_of(row).is_twin and belongs(layer_of(row))]
        if chosen:
            eager = {row["layer"]["name"]: value for row in chosen if (value := ratio(row, EAGER))}
            best = {row["layer"]["name"]: value for row in chosen if (value := best_ratio(row))}
            yard = {row["layer"]["name"]: value for row in chosen if (value := yardstick_ratio(row))}
            shares = [100 * speed / peak for row in chosen if peak and (speed := gflops(row))]
            line: Summary = {
                "name": name,
                "layers": len(chosen),
                "eager": geometric_mean(eager.values()),
                "eager_least": _least(eager),
                "best": geometric_mean(best.values()),
                "best_least": _least(best),
                "yardstick": geometric_mean(yard.values()),
                "yardstick_least": _least(yard),
                "peak": geometric_mean(shares),
                "peak_least": min(shares, default=None),
            }
            lines.append(line)
    return lines


def _least(named: dict[str, float]) -> tuple[float, str] | None:
    return min(((value, name) for name, value in named.items()), default=None)


def losses(rows: Iterable[Row]) -> list[Row]:
    """Rows that a peer wins, worst first; the dense twins aside."""
    return sorted((row for row in rows if (best_ratio(row) or 1) < 1 and not layer_of(row).is_twin), key=best_ratio)


def twin_ratios(rows: Iterable[Row]) -> dict[str, float]:
    """Grouped layer -> time of the dense layer of the same size over its own (below 1: grouping made it slower)."""
    times = {row["layer"]["name"]: row["times"]["pyconv"]["us"] for row in rows if "pyconv" in row["times"]}
    return {name: times[name + ".dense"] / time for name, time in times.items() if name + ".dense" in times}


def thread_speedups(rows: Iterable[Row]) -> dict[int, dict[str, float]]:
    """Threads -> layer -> time of one thread over time of that many, for layers that are large enough."""
    timed = [row for row in rows if "pyconv" in row["times"] and layer_of(row).flop >= SCALING_FLOP]
    single = {row["layer"]["name"]: row["times"]["pyconv"]["us"] for row in timed if row["threads"] == 1}
    speedups: dict[int, dict[str, float]] = {}
    for row in timed:
        name = row["layer"]["name"]
        if row["threads"] > 1 and name in single:
            speedups.setdefault(row["threads"], {})[name] = single[name] / row["times"]["pyconv"]["us"]
    return speedups


def cpu_model() -> str:
    """Name of the CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Facts about the machine for the head of a report."""
    return {
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def save(path: str, report: dict[str, Any]) -> None:
    """Write a report, as `commands.run` makes it, as JSON."""
    Path(path).write_text(json.dumps(_finite(report), indent=1) + "\n", encoding="utf-8")


def load(path: str) -> dict[str, Any]:
    """Read what `save` wrote.

    Raises
    ------
    ValueError
        It's another file.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        report = None
    if not isinstance(report, dict) or not {"rows", "machine", "libraries", "settings"} <= report.keys():
        raise ValueError(f"{path}: not a report of this benchmark")
    return report


def _finite(value: object) -> object:
    """JSON has no infinity: the error of a result with NaNs becomes a huge number."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return 1e300 if isinstance(value, float) and not math.isfinite(value) else value
