"""Both ends of the pipe between the benchmark and its workers: one process per library, one JSON line each way.

A process per library, because two OpenMP runtimes in one process spin against each other; and because thread counts and
instruction set caps are environment variables that must be there before the library is.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import timing
from .family import described
from .libraries import Options, Timed, UnsupportedError
from .suites import libraries

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).resolve().parent.parent
UNIT_ROUNDOFF = {
    "float64": 2.0**-53,
    "complex128": 2.0**-53,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}  # and 2**-24 in all others; the integers' sums are exact in float64

# The repository's root goes to the end of the path: an installed pyconv, with its compiled core, is found before the
# source folder. What PYTHONPATH names still comes first.
PATH = f"import sys; sys.path[:] = [*filter(None, sys.path), {str(ROOT)!r}]"
CHILD = PATH + "; from benchmarks.workers import main; main()"


class WorkerError(Exception):
    """A worker process raised, died or hung."""


class Worker:
    """A worker process, seen from the benchmark: ``worker.ask("turn", key=...)`` returns what `Server.turn` returns.

    Parameters
    ----------
    library : str
        A name in LIBRARIES.
    options : Options
    timeout_s : float
        A question that takes longer ends the process and raises WorkerError.
    """

    def __init__(self, library: str, options: Options, timeout_s: float = 600) -> None:
        self.library, self.timeout_s = library, timeout_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | libraries(options)[library].environment(options),
            text=True,
            encoding="utf-8",
        )
        try:
            self.about = self.ask("start", library=library, options=options._asdict())
        except BaseException:
            self.close()
            raise

    def ask(self, what: str, **details: object) -> Any:
        """Ask one question and wait for the answer.

        Raises
        ------
        UnsupportedError
            The library can't do that.
        WorkerError
            It raised something else, died or hung.
        """
        timer = threading.Timer(self.timeout_s, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps({"what": what, **details}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise WorkerError(f"{self.library}: died (status {self._process.wait()}) at {what!r}\n{self._tail()}")
        kind, answer = json.loads(line)
        if kind == "unsupported":
            raise UnsupportedError(answer)
        if kind == "error":
            raise WorkerError(f"{self.library}: {what!r} failed\n{answer}")
        return answer

    def _tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace")

    def close(self) -> None:
        """End the process."""
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Server:
    """What a worker process can be asked: each public method is a question, its keywords the details."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[Timed, str | None]] = {}

    def start(self, library: str, options: dict[str, Any]) -> dict[str, Any]:
        """Import the library and tell about it."""
        self._options = Options(**options)
        self._library = libraries(self._options)[library](self._options)
        return self._library.about()

    def prepare(self, key: str, variant: str, layer: dict[str, Any], *, bias: bool, reference: str | None) -> None:
        """Make a layer ready for its turns as `key`; `reference` is the file to compare its results with."""
        wanted = described(layer)
        operation = getattr(self._library, wanted.op, None)
        if operation is None:
            raise UnsupportedError(f"no {wanted.op}")
        self._jobs[key] = operation(variant, wanted, *wanted.data(self._options.dtype, bias=bias)), reference

    def turn(self, key: str, budget_ms: float, clock: str) -> dict[str, Any]:
        """Time a prepared layer: microseconds per call of each sample, the error of a result (None: not checked)."""
        timed, reference = self._jobs[key]
        microseconds = timing.time_turn(timed.call, budget_ms, clock)
        checked = reference is not None and timed.result is not None
        error = error_of(timed.result(timed.call()), reference) if checked else None
        timing.settle()
        return {"us": microseconds, "error": error}

    def release(self) -> None:
        """Forget all layers."""
        self._jobs.clear()

    def reference(self, layer: dict[str, Any], path: str, *, bias: bool) -> None:
        """Write the layer's float64 result and its unit of error, u*(sum|x*w| + |b|), to `path` (.npz).

        For a float64 layer that is another float64 result, not a better one: errors are differences then.
        """
        wanted = described(layer)
        tensors = [a if a is None else widened(a) for a in wanted.data(self._options.dtype, bias=bias)]
        y = self._library.reference(wanted, *tensors)
        unit = self._library.reference(wanted, *(a if a is None else np.abs(a) for a in tensors))
        dtype = getattr(wanted, "dtype", self._options.dtype)
        np.savez(path, y=y, unit=UNIT_ROUNDOFF.get(dtype, 2.0**-24) * unit)

    def peak(self) -> float | None:
        """GFLOP/s of fused multiply-adds alone, or None."""
        return self._library.peak_gflops()


def widened(array: np.ndarray) -> np.ndarray:
    """Make float64 or complex128 of any numbers."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def error_of(y: np.ndarray, path: str) -> float:
    """Largest error in the units of `Server.reference`'s file; infinity for another shape and for NaN."""
    with np.load(path) as file:
        expected, unit = file["y"], file["unit"]
    if y.shape != expected.shape:
        return math.inf
    largest = float(np.max(np.abs(widened(y) - expected) / np.maximum(unit, np.finfo(np.float64).tiny)))
    return math.inf if math.isnan(largest) else largest


def main() -> None:
    """Answer questions in the worker process, on the first stdout; whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    server = Server()
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = "ok", getattr(server, question.pop("what"))(**question)
        except UnsupportedError as error:
            answer = "unsupported", str(error)
        except Exception:  # noqa: BLE001 (it's the asking process that has to know)
            answer = "error", traceback.format_exc()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
