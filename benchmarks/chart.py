"""The pictures: ratios per layer, and the sweep's map of GFLOP/s."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from . import results
from .family_libraries import YARDSTICKS
from .measure import Row

mpl.use("Agg")

STYLES = {  # colours that colour-blind people tell apart
    "torch": ("#d55e00", "o"),
    "torch channels_last": ("#e69f00", "s"),
    "torch prepacked": ("#cc79a7", "D"),
    "onnxruntime": ("#0072b2", "^"),
    "openvino": ("#009e73", "v"),
}


def ratios(report: dict[str, Any], path: str) -> bool:
    """Draw every peer's time over pyconv's, layer by layer, sorted by the best peer's, a panel per thread count.

    Returns
    -------
    bool
        Whether there was anything to draw.
    """
    panels = [
        (threads, [row for row in rows if results.best_ratio(row) and not results.layer_of(row).is_twin])
        for threads, rows in results.by_threads(report["rows"])
    ]
    panels = [(threads, sorted(rows, key=results.best_ratio)) for threads, rows in panels if rows]
    if not panels:
        return False
    size = 1 + 7 * len(panels), 2 + 0.25 * max(len(rows) for _, rows in panels)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharex=True, layout="constrained")
    for axis, (threads, rows) in zip(axes[0], panels, strict=True):
        _ratio_panel(axis, rows)
        isa, dtype = report["libraries"]["pyconv"]["isa"], report["settings"]["dtype"]
        axis.set_title(f"{threads} thread{'s' * (threads > 1)}, {isa}, {dtype}", fontsize=10)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=6)
    figure.suptitle(f"Time of other libraries / time of pyconv, {report['machine']['cpu']}", fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _ratio_panel(axis: Axes, rows: Sequence[Row]) -> None:
    best = [results.best_ratio(row) for row in rows]
    colours = ["#b7d7b0" if value >= 1 else "#f0b0a8" for value in best]
    axis.barh(range(len(rows)), [value - 1 for value in best], left=1, color=colours, height=0.8, label="best peer")
    everything = []
    for peer in dict.fromkeys(key for row in rows for key in row["times"] if key not in ("pyconv", *YARDSTICKS)):
        points = [(results.ratio(row, peer), index) for index, row in enumerate(rows) if peer in row["times"]]
        colour, marker = STYLES.get(peer, ("#555555", "x"))
        axis.scatter(*zip(*points, strict=True), s=20, color=colour, marker=marker, label=peer, zorder=3)
        everything += [value for value, _ in points]
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}"))
    least, most = min(0.9, *everything), max(1.1, *everything)
    axis.set_xlim(2 ** (math.floor(4 * math.log2(least)) / 4), 2 ** (math.ceil(4 * math.log2(most)) / 4))
    axis.set_yticks(range(len(rows)), [row["layer"]["name"] for row in rows], fontsize=8)
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_xlabel("to the right of 1 pyconv is faster (logarithmic)", fontsize=9)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)


def sweep(cells: Mapping[tuple, float], path: str, title: str) -> None:
    """Draw a map of GFLOP/s: a panel per (kernel, stride) and image size, K to the right and C upwards.

    Parameters
    ----------
    cells : dict
        (kernel, stride, size, c, k) -> GFLOP/s; what is missing stays white.
    path, title : str
    """
    rows = list(dict.fromkeys(key[:2] for key in cells))
    columns = list(dict.fromkeys(key[2] for key in cells))
    c_in, c_out = (sorted({key[index] for key in cells}) for index in (3, 4))
    width = 1.5 + len(columns) * max(2.6, 0.2 * len(c_out))
    height = 1.2 + len(rows) * max(1.9, 0.6 + 0.16 * len(c_in))
    figure, axes = plt.subplots(len(rows), len(columns), figsize=(width, height), squeeze=False, layout="constrained")
    for row, (kernel, stride) in enumerate(rows):
        for axis, size in zip(axes[row], columns, strict=True):
            grid = [[cells.get((kernel, stride, size, c, k), np.nan) for k in c_out] for c in c_in]
            image = axis.imshow(grid, origin="lower", aspect="auto", vmin=0, vmax=max(cells.values()), cmap="viridis")
            axis.set_title(f"kernel {kernel}, stride {stride}, image {size}", fontsize=8)
            axis.set_xticks(range(len(c_out)), c_out, fontsize=6, rotation=90)
            axis.set_yticks(range(len(c_in)), c_in, fontsize=6)
            axis.set_xlabel("K", fontsize=7, labelpad=0)
            axis.set_ylabel("C", fontsize=7, labelpad=0)
    figure.colorbar(image, ax=axes, label="GFLOP/s", shrink=0.6)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
