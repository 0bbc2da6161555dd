"""Whose turn it is: every library times every layer several times, in turns, so that drift hits all alike."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from .family import Call
from .layers import Layer
from .libraries import LIBRARIES, ORACLES, Library, Options, UnsupportedError
from .suites import libraries
from .workers import PATH, Worker

if TYPE_CHECKING:
    from typing_extensions import Self

# The error a result may have at most, in u*sum|x*w|: pyconv's promises, and what shows that a peer was called wrongly.
FAST_LIMIT, EXACT_LIMIT, PEER_LIMIT = 16, 4, 64


class Subject(NamedTuple):
    """One column of the report: a library, used in one way."""

    key: str
    library: str
    variant: str


class Plan(NamedTuple):
    """How thoroughly to measure."""

    rounds: int = 5
    budget_ms: float = 40.0
    bias: bool = False
    check: bool = True
    clock: str = "wall"  # see timing.CLOCKS


class Time(TypedDict):
    """One library on one layer: best and median over all samples of all rounds, the largest error and its limit."""

    us: float
    median_us: float
    error: float | None  # in u*sum|x*w|; None: not checked
    limit: int


class Row(TypedDict):
    """One layer at one thread count: `times` by Subject.key, and why others are missing."""

    layer: dict[str, str | int]
    threads: int
    times: dict[str, Time]
    skipped: dict[str, str]


class StopError(Exception):
    """A reason, one line long, why the benchmark can't go on."""


def installed_subjects(
    names: Iterable[str], *, raw: bool = False, known: dict[str, type[Library]] = LIBRARIES
) -> tuple[list[Subject], list[str]]:
    """Subjects for names of libraries (all of their variants) or variants.

    Returns
    -------
    subjects : list of Subject
    missing : list of str
        Why libraries are left out, one line each.

    Raises
    ------
    StopError
        A name is unknown.
    """
    owners = {variant: library for library in known.values() for variant in library.variants}
    wanted: dict[str, None] = {}
    for name in names:
        if name not in known and name not in owners:
            raise StopError(f"unknown peer {name!r}; there are: {', '.join(owners)}")
        wanted |= dict.fromkeys(known[name].variants if name in known else [name])
    subjects, missing = [], {}
    for variant in wanted:
        library = owners[variant]
        if library.missing():
            missing[library.name] = f"{library.name} is left out, not installed: {', '.join(library.missing())}"
        else:
            subjects.append(Subject(variant, library.name, "pyconv raw" if variant == "pyconv" and raw else variant))
    return subjects, list(missing.values())


class Bench:
    """The worker processes of one thread count, and the turns they take; a context manager.

    Parameters
    ----------
    subjects : sequence of Subject
    options : Options
    plan : Plan, optional

    Raises
    ------
    StopError
        On entering: pyconv has no compiled core although `options` don't force the reference path, or the plan's clock
        can't time that many threads.
    WorkerError
        On entering: a library doesn't start.
    """

    def __init__(self, subjects: Sequence[Subject], options: Options, plan: Plan | None = None) -> None:
        self.subjects, self.options, self.plan = subjects, options, plan or Plan()

    def __enter__(self) -> Self:
        if self.plan.clock == "cpu" and self.options.threads > 1:
            raise StopError(
                "the CPU time of several threads is not what a user waits for: --clock cpu needs --threads 1"
            )
        needed = dict.fromkeys(subject.library for subject in self.subjects)
        self._oracle = None
        if self.plan.check:
            known = libraries(self.options)
            self._oracle = next((name for name in ORACLES if not known[name].missing()), None)
            if self._oracle is None:
                raise StopError(f"no result can be checked: none of {', '.join(ORACLES)} is installed")
            needed[self._oracle] = None
        with ExitStack() as stack:
            self._folder = Path(tempfile.mkdtemp(prefix="benchmarks-"))
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._workers = {name: stack.enter_context(Worker(name, self.options)) for name in needed}
            self.about: dict[str, dict[str, Any]] = {name: worker.about for name, worker in self._workers.items()}
            if any(subject.library == "pyconv" for subject in self.subjects):
                self._require_core()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _require_core(self) -> None:
        about = self.about["pyconv"]
        if about["core"] is None and self.options.algorithm != "reference":
            raise StopError(
                f"the pyconv in {about['package']} has no compiled core, so there is nothing worth timing: "
                "install it (pip install .) with a C compiler, or pass --algorithm reference"
            )
        if about["core"] and self.options.isa and about["isa"] != self.options.isa:
            raise StopError(f"asked for the instruction set {self.options.isa!r}, but pyconv runs {about['isa']!r}")

    def peak_gflops(self) -> float | None:
        """Measure the FMA peak of all threads together; None without pyconv's core."""
        return self._workers["pyconv"].ask("peak") if "pyconv" in self._workers else None

    def measure(self, layer: Layer | Call) -> Row:
        """Time one layer in all libraries, in turns, and check what they computed."""
        facts = {"layer": layer.to_dict(), "bias": self.plan.bias}
        path = str(self._folder / "reference.npz") if self._oracle else None
        if path:
            self._workers[self._oracle].ask("reference", path=path, **facts)
        samples: dict[str, list[float]] = {}
        errors: dict[str, float] = {}
        skipped: dict[str, str] = {}
        for key, library, variant in self.subjects:
            try:
                self._workers[library].ask("prepare", key=key, variant=variant, reference=path, **facts)
                samples[key] = []
            except UnsupportedError as reason:
                skipped[key] = str(reason)
        for _ in range(self.plan.rounds):
            for key, library, _ in self.subjects:
                if key in samples:
                    pace = {"budget_ms": self.plan.budget_ms, "clock": self.plan.clock}
                    turn = self._workers[library].ask("turn", key=key, **pace)
                    samples[key] += turn["us"]
                    if turn["error"] is not None:
                        errors[key] = max(errors.get(key, 0.0), turn["error"])
        for worker in self._workers.values():
            worker.ask("release")
        owners = {subject.key: subject.library for subject in self.subjects}
        times: dict[str, Time] = {
            key: {
                "us": min(values),
                "median_us": statistics.median(values),
                "error": errors.get(key),
                "limit": self._limit(owners[key]),
            }
            for key, values in samples.items()
        }
        return {"layer": layer.to_dict(), "threads": self.options.threads, "times": times, "skipped": skipped}

    def _limit(self, library: str) -> int:
        if library != "pyconv":
            return PEER_LIMIT
        return EXACT_LIMIT if self.about["pyconv"]["accuracy"] == "exact" else FAST_LIMIT


TINY = Layer("nn.Conv2d(16, 16, 3, padding=1)", 1, 16, 8, 8, 16, 3, 3, pad_h=1, pad_w=1)
OVERHEAD = (
    Subject("pyconv: frozen module", "pyconv", "pyconv"),
    Subject("pyconv: module in train mode", "pyconv", "pyconv train"),
    Subject("pyconv: functional, raw weights", "pyconv", "pyconv raw"),
    Subject("torch: module", "torch", "torch module"),
    Subject("torch: functional", "torch", "torch"),
)
IMPORT_TIME = "; import time, numpy; start = time.perf_counter(); import pyconv; print(time.perf_counter() - start)"


def overhead(plan: Plan) -> tuple[Row, dict[str, Any]]:
    """Time a layer that has next to no arithmetic, one thread; the row, and what pyconv's worker says about itself."""
    subjects = [subject for subject in OVERHEAD if not LIBRARIES[subject.library].missing()]
    with Bench(subjects, Options(), plan._replace(bias=True)) as bench:
        return bench.measure(TINY), bench.about["pyconv"]


def import_milliseconds(processes: int = 10) -> list[float]:
    """Time what ``import pyconv`` adds to ``import numpy``, once per fresh process."""
    command = [sys.executable, "-W", "ignore", "-c", PATH + IMPORT_TIME]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(processes + 1)]
    return [1e3 * float(run.stdout) for run in runs[1:]]  # the first one may have compiled the bytecode
