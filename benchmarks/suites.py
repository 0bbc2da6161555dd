"""The two tables of the benchmark: which libraries can time their rows, and how the rows are summed up."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .family import Call
from .family_libraries import FAMILY
from .layers import CLASSES, Layer
from .libraries import LIBRARIES, Library, Options


def libraries(options: Options) -> dict[str, type[Library]]:
    """Return the library classes by name."""
    return FAMILY if options.family else LIBRARIES


def classes(rows: Iterable[Layer | Call]) -> dict[str, Callable[[Layer | Call], bool]]:
    """Return a test for each class that rows of one table may belong to."""
    groups = dict.fromkeys(row.group for row in rows if isinstance(row, Call))
    return {group: lambda call, group=group: call.group == group for group in groups} or CLASSES
