"""The report on the terminal, and as Markdown for the README."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import results
from .libraries import EAGER
from .measure import Row
from .results import Summary
from .timing import geometric_mean

SHORT = {
    "torch channels_last": "torch ch.last",
    "torch prepacked": "torch prepack",
    "onnxruntime": "ORT",
    "openvino": "OpenVINO",
    "pyconv float32": "float32",
    "numpy product": "product",
}
MISSING = "n/a"
WRONG = "bold red"
SUMMARY_RATIOS = {"x torch eager": "eager", "x best peer": "best", "x yardstick": "yardstick"}  # Summary's fields


def console() -> Console:
    """Make a console that is wide enough for the tables when the output goes to a file or a pipe."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=200)


def show(out: Console, report: dict[str, Any]) -> list[str]:
    """Print a whole report: head, table of layers, summary, losses, failures; returns the lines about wrong results."""
    head(out, report)
    for threads, rows in results.by_threads(report["rows"]):
        peak = report["peak_gflops"].get(str(threads))
        out.print(layer_table(rows, threads, peak))
        for line in sorted({f"{key}: {reason}" for row in rows for key, reason in row["skipped"].items()}):
            out.print(f"not timed on some layers: {line}", style="dim", markup=False)
        if any("pyconv" in row["times"] for row in rows):
            out.print(summary_table(rows, threads, peak))
            _notes(out, rows)
    for threads, speedups in results.thread_speedups(report["rows"]).items():
        least, name = min((value, name) for name, value in speedups.items())
        what = f"pyconv with {threads} threads over 1, layers of {results.SCALING_FLOP / 1e6:.0f} MFLOP and more"
        out.print(f"{what}: {geometric_mean(speedups.values()):.2f}, least {least:.2f} ({name})", markup=False)
    return failures(out, report["rows"])


def failures(out: Console, rows: Iterable[Row]) -> list[str]:
    """Print the lines about wrong results, and return them."""
    lines = results.wrong(rows)
    for line in lines:
        out.print(line, style=WRONG, markup=False)
    return lines


def head(out: Console, report: dict[str, Any]) -> None:
    """Print what was measured, and on what."""
    machine, libraries = report["machine"], report["libraries"]
    out.print(
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['system']}, Python {machine['python']}", markup=False
    )
    if "pyconv" in libraries:
        out.print(core_line(libraries["pyconv"]), style="bold", markup=False)
    out.print(", ".join(f"{name} {about['version']}" for name, about in libraries.items() if name != "pyconv"))
    peaks = (f"{_number(value, '.1f')} GFLOP/s, {count} thread(s)" for count, value in report["peak_gflops"].items())
    out.print(f"measured FMA peak, {report['settings']['dtype']}: {'; '.join(peaks)}")
    chosen = (f"{key}={value}" for key, value in report["settings"].items() if value not in (None, False))
    out.print(", ".join(chosen), style="dim", markup=False)
    for note in report["notes"]:
        out.print(note, style="yellow", markup=False)


def core_line(about: dict[str, Any]) -> str:
    """Tell which pyconv is timed."""
    where = f"core {about['core']}" if about["core"] else f"without a compiled core, {about['package']}"
    return f"pyconv {about['version']}, ISA {about['isa'] or MISSING}, accuracy {about['accuracy']}, {where}"


def _keys(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row["times"]))


def _number(value: float | None, form: str = ".0f") -> str:
    return MISSING if value is None else format(value, form)


def _ratio(value: float | None) -> str | Text:
    """Colour a ratio by who wins."""
    return MISSING if value is None else Text(f"{value:.2f}", style="green" if value >= 1 else WRONG)


def _error(row: Row, key: str) -> str | Text:
    time = row["times"].get(key)
    if time is None or time["error"] is None:
        return MISSING
    text = f"{time['error']:.2f}"
    return text if time["error"] <= time["limit"] else Text(text + " WRONG", style=WRONG)


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def layer_table(rows: Sequence[Row], threads: int, peak: float | None) -> Table:
    """Make the table of the layers."""
    keys = _keys(rows)
    title = f"{threads} thread(s): least us per call, ratios = peer's time / pyconv's, errors in u*sum|x*w|"
    columns = [SHORT.get(key, key) for key in keys]
    yardsticks = _has_yardsticks(rows)
    columns = ["GFLOP/s", "% peak", *columns, "median", "x torch", "x best", "best peer"]
    columns += [*(["x yardstick"] if yardsticks else []), "error", "torch's"]
    table = _table(title, ["layer"], columns)
    for row in rows:
        speed, best, times = results.gflops(row), results.best_peer(row), row["times"]
        table.add_row(
            str(row["layer"]["name"]),
            _number(speed, ".1f"),
            _number(100 * speed / peak if speed and peak else None),
            *(_number(times[key]["us"], ".1f") if key in times else MISSING for key in keys),
            _number(times["pyconv"]["median_us"], ".1f") if "pyconv" in times else MISSING,
            _ratio(results.ratio(row, EAGER)),
            _ratio(results.best_ratio(row)),
            SHORT.get(best, best or ""),
            *([_ratio(results.yardstick_ratio(row))] if yardsticks else []),
            _error(row, "pyconv"),
            _error(row, EAGER),
        )
    return table


def _summary(rows: Sequence[Row], peak: float | None) -> tuple[list[str], list[list[str]]]:
    """Make titles and lines of the summary; of yardsticks only where there are any."""
    lines = results.summary(rows, peak)
    ratios = {title: key for title, key in SUMMARY_RATIOS.items() if key != "yardstick" or _has_yardsticks(rows)}
    titles = ["layers", *(word for title in ratios for word in (title, "least")), "% of peak", "least"]
    return titles, [_summary_cells(line, ratios.values()) for line in lines]


def _summary_cells(line: Summary, ratios: Iterable[str]) -> list[str]:
    cells = [line["name"], str(line["layers"])]
    for key in ratios:
        least = line[f"{key}_least"]
        cells += [_number(line[key], ".2f"), f"{least[0]:.2f} {least[1]}" if least else MISSING]
    return [*cells, _number(line["peak"]), _number(line["peak_least"])]


def _has_yardsticks(rows: Iterable[Row]) -> bool:
    return any(results.yardstick_ratio(row) for row in rows)


def summary_table(rows: Sequence[Row], threads: int, peak: float | None) -> Table:
    """Make the table of geometric means and least values per class."""
    titles, lines = _summary(rows, peak)
    table = _table(f"{threads} thread(s): geometric means", ["class of layers"], titles)
    for line in lines:
        table.add_row(*line)
    return table


def _notes(out: Console, rows: Sequence[Row]) -> None:
    lost = [
        f"{row['layer']['name']} {results.best_ratio(row):.2f} ({results.best_peer(row)})"
        for row in results.losses(rows)
    ]
    if lost:
        out.print(f"slower than the best peer: {', '.join(lost)}", markup=False)
    elif any(results.best_peer(row) for row in rows):
        out.print("no layer is slower than the best peer")
    twins = sorted((value, name) for name, value in results.twin_ratios(rows).items())
    if twins:
        text = ", ".join(f"{name} {value:.2f}" for value, name in twins)
        out.print(f"times faster than the dense layer of the same size: {text}", markup=False)


def markdown(report: dict[str, Any]) -> str:
    """Make the README's tables: times and ratios of the layers, then the geometric means."""
    machine, libraries, settings = report["machine"], report["libraries"], report["settings"]
    versions = ", ".join(f"{name} {about['version']}" for name, about in libraries.items())
    weights = "raw weights" if settings["raw"] else "weights packed beforehand"
    isa = libraries.get("pyconv", {}).get("isa") or MISSING
    lines = [f"{machine['cpu']}, ISA {isa}, {settings['dtype']}, {weights}; {versions}."]
    for threads, rows in results.by_threads(report["rows"]):
        peak = report["peak_gflops"].get(str(threads))
        keys = _keys(rows)
        titles = ["layer", "GFLOP/s", "% of peak", *(f"{key}, us" for key in keys)]
        yardsticks = _has_yardsticks(rows)
        titles += ["x torch eager", "x best peer", "best peer", *(["x yardstick"] if yardsticks else []), "error"]
        lines += ["", f"{threads} thread{'s' * (threads > 1)}, FMA peak {_number(peak)} GFLOP/s:", ""]
        lines += _heading(titles)
        for row in rows:
            speed, times = results.gflops(row), row["times"]
            cells = [str(row["layer"]["name"]), _number(speed, ".1f")]
            cells += [_number(100 * speed / peak if speed and peak else None)]
            cells += [_number(times[key]["us"], ".1f") if key in times else MISSING for key in keys]
            cells += [_number(results.ratio(row, EAGER), ".2f"), _number(results.best_ratio(row), ".2f")]
            cells += [results.best_peer(row) or ""]
            cells += [_number(results.yardstick_ratio(row), ".2f")] if yardsticks else []
            lines.append(_cells([*cells, str(_error(row, "pyconv"))]))
        summary_titles, summary_lines = _summary(rows, peak)
        lines += ["", *_heading(["geometric means", *summary_titles]), *map(_cells, summary_lines)]
    return "\n".join(lines) + "\n"


def _heading(titles: Sequence[str]) -> list[str]:
    return [_cells(titles), "|---|" + "---:|" * (len(titles) - 1)]


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def show_overhead(out: Console, row: Row, about: dict[str, Any], milliseconds: Sequence[float]) -> list[str]:
    """Print the cost of a call with next to no arithmetic, and of the import; returns the lines about wrong results."""
    out.print(f"{results.cpu_model()}\n{core_line(about)}", markup=False)
    table = _table(f"{row['layer']['name']} on 1x16x8x8, 1 thread", ["call"], ["us", "median us", "error"])
    for key, time in row["times"].items():
        table.add_row(key, f"{time['us']:.2f}", f"{time['median_us']:.2f}", _error(row, key))
    out.print(table)
    ordered = sorted(milliseconds)
    text = f"import pyconv, after import numpy: {ordered[0]:.1f} ms, median {ordered[len(ordered) // 2]:.1f} ms"
    out.print(f"{text}, of {len(ordered)} fresh processes")
    return failures(out, [row])
