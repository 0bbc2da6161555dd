"""The checker of the kernels (tests/checker): compiled without Python's headers, run for some hundred problems.

.ci/run lets it compute 20,000 for each instruction set; `tests/deep.py checker` as many as one likes.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REFERENCE_RUN

from pyconv import config

BUILD = Path(__file__).parent / "checker" / "build.py"
pytestmark = pytest.mark.skipif(REFERENCE_RUN, reason="this run tests the reference path")


@pytest.fixture(scope="module")
def checker(tmp_path_factory):
    # Not imported: setuptools refuses to be where the standard library's distutils already is.
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("the lists of sources and flags are setup.py's: setuptools is missing")
    if not BUILD.exists() or not (BUILD.parents[2] / "setup.py").exists():
        pytest.skip("these are not pyconv's sources")
    program = tmp_path_factory.mktemp("checker") / "checker"
    # The best row here and the lowest: what takes the time is compiling.
    isas = ",".join({config.isas_available()[0], config.isas_available()[-1]})
    command = [sys.executable, str(BUILD), str(program)]
    built = subprocess.run(
        command, env={**os.environ, "PYCONV_BUILD_ISAS": isas}, capture_output=True, text=True, check=False, timeout=600
    )
    assert built.returncode == 0, built.stderr
    return program


def run(checker, *arguments):
    return subprocess.run([str(checker), *arguments], capture_output=True, text=True, check=False, timeout=300)


def test_kernels_compute_the_formula(checker):
    done = run(checker, "--count", "1500", "--seed", "7")
    assert done.returncode == 0, done.stdout
    assert "1500 different problems" in done.stdout
    assert " 0 failures" in done.stdout


def test_each_planted_bug_is_found(checker):
    done = run(checker, "--plants")
    assert done.returncode == 0, done.stdout
    assert "WRONG" not in done.stdout
    assert done.stdout.count("as it must be") >= 11


def test_a_failure_can_be_replayed(checker):
    done = run(checker, "--replay", "f32:0123456789abcdef")
    assert done.returncode == 0, done.stdout
    assert "kernel" in done.stdout
    assert run(checker, "--isa", "none").returncode == 2
    assert run(checker, "--nonsense").returncode == 2


def test_scratch_memory_is_bounded(checker):
    """2 MiB a thread, whatever the shape; and for every one an algorithm plans its blocks and comes to an end."""
    done = run(checker, "--scratch", "--count", "100000")
    assert done.returncode == 0, done.stdout
    assert " 0 over 2097152 bytes" in done.stdout
