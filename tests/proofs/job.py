"""What the jobs of tests/deep.py have in common: commands that must end well, tools that may be missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLANGS = ("clang", *(f"clang-{version}" for version in range(21, 12, -1)))


class Job:
    """One job while it runs: a folder of its own, `count` problems from `seed`, and what came of it."""

    def __init__(self, folder, count, seed):
        self.folder, self.count, self.seed = folder, count, seed
        self.failures, self.skipped = [], []

    def do(self, function):
        """Call function(job); an exception is a failure like any other."""
        try:
            function(self)
        except Exception as error:
            traceback.print_exc(file=sys.stdout)
            self.fail(repr(error))

    def outcome(self):
        if self.failures:
            return f"FAILED: {'; '.join(self.failures)}"
        return f"SKIPPED: {'; '.join(self.skipped)}" if self.skipped else "passed"

    def fail(self, what):
        self.failures.append(what)
        print(f"FAILED: {what}", flush=True)

    def skip(self, why):
        self.skipped.append(why)
        print(f"SKIPPED: {why}", flush=True)

    def has(self, *tools):
        """Tell whether all the tools are here; the job counts as skipped if not."""
        missing = [tool for tool in tools if shutil.which(tool) is None]
        if missing:
            self.skip(f"{', '.join(missing)} not installed")
        return not missing

    def emulator(self, name):
        """Return the name of qemu-user's emulator, or of its static twin, or None: then the job counts as skipped."""
        found = next((tool for tool in (name, f"{name}-static") if shutil.which(tool)), None)
        if found is None:
            self.skip(f"{name} not installed")
        return found

    def clang(self):
        """Return clang's name, or None: then the job counts as skipped."""
        found = next((name for name in CLANGS if shutil.which(name)), None)
        if found is None:
            self.skip("clang not installed")
        return found

    def available(self):
        """The instruction sets of this CPU, asked in a process of their own: this one may have no pyconv."""
        code = "from pyconv import config; print(*config.isas_available())"
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()

    def run(self, *command, finds=None, cwd=None, **variables):
        """Run a command and return its output, both printed. It must end well, or where `finds` is a text, end badly
        and say that: so a planted bug is found.
        """
        words = [str(word) for word in command]
        shown = " ".join(Path(word).name if Path(word).is_absolute() else word for word in words)
        print("$", shown, flush=True)
        with subprocess.Popen(
            words, env={**os.environ, **variables}, cwd=cwd, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            lines = []
            for line in process.stdout:
                lines.append(line)
                if finds is None:
                    print(line, end="", flush=True)
        output = "".join(lines)
        if finds is None and process.returncode:
            self.fail(f"exit code {process.returncode} of {shown}")
        if finds is not None:
            found = process.returncode != 0 and finds in output
            print(f"{finds!r}: {'found, as it must be' if found else 'NOT FOUND'}", flush=True)
            if not found:
                print(output[-4000:])
                self.fail(f"a planted bug was not found by {shown}")
        return output

    def build_checker(self, *flags, **variables):
        """Compile tests/checker and return the program."""
        program = self.folder / f"checker{len(list(self.folder.iterdir()))}"
        script = ROOT / "tests" / "checker" / "build.py"
        subprocess.run([sys.executable, script, program, *flags], check=True, env={**os.environ, **variables})
        return program
