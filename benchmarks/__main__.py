"""``python -m benchmarks``, in the repository's top folder: pyconv's speed beside its peers', see ``--help``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys

from .layers import LAYERS_CSV
from .measure import StopError
from .sweep import AXES, DEFAULT, Value, parse_axis
from .timing import CLOCKS
from .workers import WorkerError

EXTRAS = "pip install 'pyconv-cpu[bench]'"
# Functions in commands.py; "run" without a word.
COMMANDS = {"overhead": "overhead", "stress": "run_stress", "sweep": "run_sweep", "show": "show"}


def _threads(text: str) -> list[int]:
    threads = [int(part) for part in text.split(",")]
    if min(threads) < 1:
        raise argparse.ArgumentTypeError(f"threads must be at least 1, got {text}")
    return threads


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _axis(text: str) -> list[Value]:
    try:
        return parse_axis(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time pyconv layer by layer beside other libraries, in turns, and check every result.",
        epilog="Other commands: 'overhead' (cost of a call and of the import), 'stress' (subnormal numbers, busy "
        "neighbours), 'sweep' (pyconv alone over a grid of shapes), 'show FILE.json' (print a saved report again); "
        "each has its own --help.",
    )
    add = parser.add_argument
    add("--threads", type=_threads, default=[1], metavar="1,2", help="thread counts, one after the other (default 1)")
    add("--family", action="store_true", help="the other table: transposed, gradients, number formats and more")
    add("--layers", type=_words, action="extend", default=[], metavar="GLOB,...", help="layer names or patterns")
    add("--layers-file", default=LAYERS_CSV, metavar="CSV", help="another layer table")
    add("--dense-twins", action="store_true", help="also time the dense layer of the same size of each grouped one")
    add("--peers", type=_words, metavar="NAME,...", help="libraries or variants, or 'none' (default: all installed)")
    add("--no-pyconv", action="store_true", help="the peers alone")
    add("--rounds", type=int, metavar="N", help="turns of each library per layer (default 5)")
    add("--quick", action="store_true", help="2 short rounds")
    add("--bias", action="store_true", help="give the layers a bias")
    _add_pyconv_options(parser)
    _add_outputs(parser)
    return parser


def _add_pyconv_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--isa", metavar="NAME", help="lower pyconv's instruction set (PYCONV_ISA); caps torch and OpenVINO likewise")
    add("--algorithm", metavar="NAME", help="force one of pyconv's algorithms; layers that it refuses are n/a")
    add("--accuracy", choices=("fast", "exact"), help="pyconv's accuracy")
    add("--dtype", choices=("float32", "float64"), default="float32")
    add("--raw", action="store_true", help="functional call with raw weights in place of a frozen module")
    _add_clock(parser)


def _add_clock(parser: argparse.ArgumentParser) -> None:
    what = "what to measure (default wall); cpu leaves out the time that other programs take, for one thread only"
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help=what)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--json", metavar="FILE", help="write everything as JSON")
    add("--plot", metavar="FILE.png", help="write a chart of the ratios")
    add("--markdown", metavar="FILE", nargs="?", const="-", help="write the README's tables (to stdout without FILE)")


def _overhead_parser() -> argparse.ArgumentParser:
    about = "Time calls that have next to no arithmetic, and the import."
    parser = argparse.ArgumentParser(prog="python -m benchmarks overhead", description=about)
    parser.add_argument("--quick", action="store_true", help="2 short rounds")
    _add_clock(parser)
    return parser


def _stress_parser() -> argparse.ArgumentParser:
    about = "Time pyconv with subnormal numbers, and with as many busy programs as there are CPUs."
    parser = argparse.ArgumentParser(prog="python -m benchmarks stress", description=about)
    parser.add_argument("--quick", action="store_true", help="one short round")
    return parser


def _sweep_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks sweep",
        description="GFLOP/s of pyconv over a grid of shapes, and the points much slower than their neighbours. "
        "LIST is numbers, ranges first:end[:step] and heightxwidth, separated by commas.",
    )
    add = parser.add_argument
    for name in AXES:
        add(f"--{name}", type=_axis, metavar="LIST", help=f"default {DEFAULT[name]}")
    add("--full", action="store_true", help="a far larger grid: hours")
    add("--threads", type=int, default=1)
    add("--check", action="store_true", help="check every result, too")
    _add_pyconv_options(parser)
    add("--plot", metavar="FILE.png", help="write a map of GFLOP/s")
    return parser


def _show_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks show", description="Print a saved report again.")
    parser.add_argument("file", metavar="FILE.json")
    _add_outputs(parser)
    return parser


def _need(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise StopError(f"{module} is not installed: {EXTRAS}")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 1 after a wrong result or anything that stops the benchmark."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parsers = {
        "overhead": _overhead_parser,
        "stress": _stress_parser,
        "sweep": _sweep_parser,
        "show": _show_parser,
    }
    name = argv.pop(0) if argv and argv[0] in COMMANDS else ""
    arguments = parsers.get(name, _run_parser)().parse_args(argv)
    try:
        _need("rich", *(["matplotlib"] if getattr(arguments, "plot", None) else []))
        commands = importlib.import_module(".commands", __package__)
        return getattr(commands, COMMANDS.get(name, "run"))(arguments)
    except (StopError, WorkerError, ValueError, OSError) as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
