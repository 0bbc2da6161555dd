"""What ``python -m benchmarks`` does once its arguments are parsed; each command returns the exit status."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import family, measure, report, results, sweep
from . import layers as layer_table
from .libraries import Options
from .measure import Bench, Plan, StopError, Subject
from .suites import libraries

QUICK = Plan(rounds=2, budget_ms=8.0)
SWEEP = Plan(rounds=2, budget_ms=4.0)
SHOWN_CLIFFS = 30
LOOKS_AT_CLIFFS = 2


def run(arguments: argparse.Namespace) -> int:
    """Time the layer table."""
    out = report.console()
    chosen = _layers(arguments)
    subjects, notes = _subjects(arguments)
    plan = (QUICK if arguments.quick else Plan())._replace(bias=arguments.bias, clock=arguments.clock)
    plan = plan._replace(rounds=arguments.rounds or plan.rounds)
    settings = {
        name: getattr(arguments, name)
        for name in ("family", "dtype", "isa", "algorithm", "accuracy", "raw", "bias", "clock")
    }
    whole: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": results.machine(),
        "settings": settings | {"rounds": plan.rounds, "budget_ms": plan.budget_ms},
        "libraries": {},
        "notes": notes,
        "peak_gflops": {},
        "rows": [],
    }
    with _progress(out) as progress:
        task = progress.add_task("starting the libraries", total=len(chosen) * len(arguments.threads))
        for threads in arguments.threads:
            with Bench(subjects, _options(arguments, threads), plan) as bench:
                whole["libraries"] |= bench.about
                whole["peak_gflops"][str(threads)] = bench.peak_gflops()
                for layer in chosen:
                    progress.update(task, description=f"{threads} thread(s): {layer.name}")
                    whole["rows"].append(bench.measure(layer))
                    progress.advance(task)
    skipped = [row["skipped"]["pyconv"] for row in whole["rows"] if "pyconv" in row["skipped"]]
    if skipped and len(skipped) == len(whole["rows"]):
        raise StopError(f"pyconv can't do any of these layers: {skipped[0]}")
    return _output(out, whole, arguments)


def show(arguments: argparse.Namespace) -> int:
    """Print a saved report again."""
    return _output(report.console(), results.load(arguments.file), arguments)


def overhead(arguments: argparse.Namespace) -> int:
    """Time calls that have next to no arithmetic, and the import."""
    plan = QUICK if arguments.quick else Plan(rounds=10)
    row, about = measure.overhead(plan._replace(clock=arguments.clock))
    milliseconds = measure.import_milliseconds()
    return 1 if report.show_overhead(report.console(), row, about, milliseconds) else 0


def run_stress(arguments: argparse.Namespace) -> int:
    """Time pyconv alone under bad conditions."""
    out = report.console()
    stress = importlib.import_module(".stress", __package__)
    rounds, budget_ms = (1, 4.0) if arguments.quick else (5, 40.0)
    out.print(
        stress.table("subnormal numbers: x time with normal ones, 1 thread", stress.subnormals(rounds, budget_ms))
    )
    out.print(stress.table("as many busy programs as CPUs: x speed of 1 thread", stress.neighbours(rounds, budget_ms)))
    return 0


def run_sweep(arguments: argparse.Namespace) -> int:
    """Time pyconv alone over a grid."""
    texts, limit = (sweep.FULL, sweep.FULL_MAX_FLOP) if arguments.full else (sweep.DEFAULT, sweep.MAX_FLOP)
    axes = {name: getattr(arguments, name) or sweep.parse_axis(texts[name]) for name in sweep.AXES}
    layers = sweep.grid(axes, limit)
    out = report.console()
    subjects, _ = measure.installed_subjects(["pyconv"], raw=arguments.raw)
    rows: list[measure.Row] = []
    cells: dict[sweep.Key, float] = {}

    def visit(key: sweep.Key) -> None:
        rows.append(bench.measure(layers[key]))
        speed = results.gflops(rows[-1])
        if speed is not None:
            cells[key] = max(speed, cells.get(key, 0.0))

    plan = SWEEP._replace(check=arguments.check, clock=arguments.clock)
    with Bench(subjects, _options(arguments, arguments.threads), plan) as bench, _progress(out) as progress:
        about, peak = bench.about["pyconv"], bench.peak_gflops()
        for key in progress.track(layers, description="sweep"):
            visit(key)
        for _ in range(LOOKS_AT_CLIFFS):  # most were another program's fault
            for _, key, _ in progress.track(sweep.cliffs(cells), description="looking at cliffs again"):
                visit(key)
    if not cells:
        raise StopError("nothing was timed: every layer is impossible, too large or refused by the algorithm")
    title = f"{results.cpu_model()}, {arguments.dtype}, {arguments.threads} thread(s)"
    title += f", FMA peak {peak:.0f} GFLOP/s" if peak else ""
    core = report.core_line(about)
    if arguments.plot:
        importlib.import_module(".chart", __package__).sweep(
            cells, arguments.plot, f"{core.partition(', core')[0]}\n{title}"
        )
    found = sweep.cliffs(cells)
    out.print(
        f"{core}\n{title}\n{len(cells)} points, {len(found)} of them below {sweep.CLIFF:.0%} of both neighbours",
        markup=False,
    )
    for share, key, axis in found[:SHOWN_CLIFFS]:
        out.print(f"  {share:.0%} along {axis}: {layers[key].name}, {cells[key]:.1f} GFLOP/s", markup=False)
    return 1 if report.failures(out, rows) else 0


def _options(arguments: argparse.Namespace, threads: int) -> Options:
    chosen = arguments.dtype, arguments.isa, arguments.algorithm, arguments.accuracy
    return Options(threads, *chosen, family=getattr(arguments, "family", False))


def _progress(out: Console) -> Progress:
    text = TextColumn("{task.description:40.40}", markup=False)
    bar = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(text, *bar, console=out, transient=True, disable=not out.is_terminal)


def _layers(arguments: argparse.Namespace) -> list[layer_table.Layer | family.Call]:
    if arguments.family:
        has_bfloat16 = importlib.util.find_spec("ml_dtypes") is not None
        calls = [call for call in family.calls() if call.dtype != "bfloat16" or has_bfloat16]
        return layer_table.select(calls, arguments.layers)
    chosen = layer_table.select(layer_table.read_layers(arguments.layers_file), arguments.layers)
    twins = [layer.dense_twin() for layer in chosen if layer.groups > 1] if arguments.dense_twins else []
    return chosen + twins


def _subjects(arguments: argparse.Namespace) -> tuple[list[Subject], list[str]]:
    """Choose the subjects, with notes on those that are left out."""
    known = libraries(_options(arguments, 1))
    names = list(known) if arguments.peers is None else ["pyconv", *arguments.peers]
    names = [name for name in names if name != "none" and not (name == "pyconv" and arguments.no_pyconv)]
    subjects, notes = measure.installed_subjects(names, raw=arguments.raw, known=known)
    if not subjects:
        raise StopError("nothing to time: no pyconv and no peers")
    if arguments.isa and arguments.peers is None and _is_lowered(arguments.isa):
        uncapped = [subject for subject in subjects if not known[subject.library].capped]
        subjects = [subject for subject in subjects if subject not in uncapped]
        why = "can't be held to a lower instruction set (name it in --peers to time it all the same)"
        notes += [f"{subject.key} is left out: it {why}" for subject in uncapped]
    return subjects, notes


def _is_lowered(isa: str) -> bool:
    """Whether the machine has a better instruction set than `isa`."""
    subjects, _ = measure.installed_subjects(["pyconv"])
    with Bench(subjects, Options(), Plan(check=False)) as bench:
        isas = bench.about["pyconv"]["isas"]
    if isa not in isas:
        raise StopError(f"unknown or unavailable instruction set {isa!r}; here are: {', '.join(isas)}")
    return isas[0] != isa


def _output(out: Console, whole: dict[str, Any], arguments: argparse.Namespace) -> int:
    if arguments.json:
        results.save(arguments.json, whole)
    wrong = report.show(out, whole)
    if arguments.plot and not importlib.import_module(".chart", __package__).ratios(whole, arguments.plot):
        out.print("no chart: no layer was timed on both pyconv and a peer")
    if arguments.markdown == "-":
        sys.stdout.write(report.markdown(whole))
    elif arguments.markdown:
        Path(arguments.markdown).write_text(report.markdown(whole), encoding="utf-8")
    return 1 if wrong else 0
