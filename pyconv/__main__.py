"""The command line: ``pyconv info``, ``pyconv demo [IMAGE]``, ``pyconv bench``; also ``python -m pyconv``."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pyconv


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    Parameters
    ----------
    argv : list of str, optional
        The arguments after the program's name; those of the process when not given.

    Returns
    -------
    int
        0, or 1 after a one-line message, or 130 after Ctrl-C.

    Raises
    ------
    SystemExit
        From argparse: 0 after ``--help`` and ``--version``, 2 for a wrong command line.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    with contextlib.suppress(AttributeError):  # a replaced stdout may be any object
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may not fit the terminal's encoding
    try:
        try:
            return _dispatch(argv)
        finally:
            _flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has seen enough: `pyconv info | head -1`
        _silence_stdout()
        return 1
    except OSError as error:  # stdout once more: a full disk
        _silence_stdout()
        print(f"pyconv: {error}", file=sys.stderr)
        return 1


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["bench"]:  # its arguments, --help among them, belong to benchmarks
        return _bench(argv[1:])
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    if arguments.command == "info":
        pyconv.show_config()
        return 0
    return _demo(arguments)


def _demo(arguments: argparse.Namespace) -> int:
    from pyconv import demo

    try:
        demo.run(arguments.image, arguments.output, arguments.seed)
    except demo.DemoError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _bench(arguments: list[str]) -> int:
    """Hand over to the benchmarks of a clone, which are not part of the installed package."""
    clone = ("benchmarks/__main__.py", "src_c/conv.h")  # both: other projects have a benchmarks folder, too
    if not all(Path(name).is_file() for name in clone):
        print("pyconv bench: run it from the top folder of a clone of pyconv, which holds benchmarks/", file=sys.stderr)
        return 1
    status = subprocess.run([sys.executable, "-m", "benchmarks", *arguments], check=False).returncode
    return status if status >= 0 else 128 - status  # ended by a signal: what a shell would say


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyconv",
        description="Convolutions of NumPy arrays on the CPU, with the names and results of torch.nn.Conv*.",
        epilog="Each command has its own --help.",
    )
    parser.add_argument("--version", action="version", version=f"pyconv {pyconv.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands.add_parser(
        "info",
        help="what pyconv runs on: CPU, instruction sets, threads, caches, versions",
        description="Print the CPU, the instruction sets, threads, caches, accuracy and versions.",
    )
    demo = commands.add_parser(
        "demo",
        help="a photo through a convolution: prints shapes and times, writes a picture",
        description="Resize a photo to 224 x 224, convolve each of R, G and B with two random 7x7 filters, find its "
        "edges, print shapes and times and write one picture of it all. Needs matplotlib and pillow.",
    )
    demo.add_argument("image", nargs="?", metavar="IMAGE", help="any image file (default: the photo matplotlib ships)")
    demo.add_argument(
        "-o", "--output", default="pyconv-demo.png", metavar="PNG", help="the picture to write (default: %(default)s)"
    )
    demo.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of the filters (default: %(default)s)")
    commands.add_parser("bench", help="time pyconv against other libraries; only in a clone of the repository")
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number >= 0, got {text!r}")
    return int(text)


def _flush() -> None:
    if sys.stdout is not None:  # None under pythonw and with a closed descriptor
        sys.stdout.flush()


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not fail once more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
