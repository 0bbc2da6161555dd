"""For every run: which core is under test, said in pytest's header, and refused where it is not the one asked for.

PYCONV_TEST_REFERENCE=1 declares that a run tests the NumPy reference path, in a build without the compiled core.
`--hypothesis-profile=quick` tries few examples of each property, `thorough` many.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import hypothesis
import pytest

with warnings.catch_warnings():
    # A missing core, or one without OpenMP: the header says it, and an error here would hide that.
    warnings.simplefilter("ignore", RuntimeWarning)
    import pyconv
    from pyconv import config

PACKAGE = Path(pyconv.__file__).parent
REFERENCE_RUN = os.environ.get("PYCONV_TEST_REFERENCE", "0") not in ("", "0")

for profile, examples in {"pyconv": 100, "quick": 10, "thorough": 2000}.items():
    # No deadline, and no draw is too slow: a busy or emulated machine is not a wrong result.
    # The same examples in every run but the thorough one.
    options = {"deadline": None, "derandomize": profile != "thorough", "print_blob": True}
    options["suppress_health_check"] = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile(profile, max_examples=examples, **options)
hypothesis.settings.load_profile("pyconv")


def pytest_report_header():
    facts = config.config()
    names = ["pyconv", "compiled core", "OpenMP", "ISA available", "ISA in use", "threads", "NumPy"]
    return [f"testing {PACKAGE}", *(f"  {name}: {facts[name]}" for name in names)]


def pytest_configure():
    if config.core is None and not REFERENCE_RUN:
        raise pytest.UsageError(
            f"{PACKAGE} has no compiled core. Build one into it (pip install -e .), or set PYCONV_TEST_REFERENCE=1 to "
            "test the NumPy reference path on purpose"
        )
    if config.core is not None and REFERENCE_RUN:
        raise pytest.UsageError(f"PYCONV_TEST_REFERENCE=1, but there is a compiled core: {config.core.__file__}")


@pytest.fixture(scope="session")
def c_compiler():
    """The C compiler, for tests that build a program or a library of their own."""
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        pytest.skip("no C compiler")
    return found


@pytest.fixture(autouse=True)
def unchanged_settings():
    """Each test leaves threads, accuracy and instruction set as it found them; what it set is put back either way."""
    before = config.isa(), config.get_num_threads(), config.get_accuracy()
    yield
    after = config.isa(), config.get_num_threads(), config.get_accuracy()
    if after != before:
        config._set_isa(before[0])
        config.set_num_threads(before[1])
        config.set_accuracy(before[2])
    assert after == before, "a test changed the global settings"
