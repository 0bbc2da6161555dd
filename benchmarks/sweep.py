"""pyconv alone over a grid of shapes, to find the cliffs: points far slower than both of their neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from .layers import Layer

AXES = ("kernel", "stride", "size", "c", "k")  # the order of the keys of a sweep's cells
DEFAULT = {"kernel": "1,3,5", "stride": "1,2", "size": "7,14,28,56", "c": "3,16,64,128,256", "k": "6,16,32,33,64,128"}
FULL = {
    "kernel": "1,2,3,4,5,7,11,1x3,3x1,1x7",
    "stride": "1,2,3",
    "size": "7,8,13,14,27,28,55,56,112,224,7x56,1x1000",
    "c": "1,2,3,4,8,15,16,17,31,32,48,64,96,128,192,256,512,1024",
    "k": "1:34,40,48,64,96,128,192,256,512,1024",
}
MAX_FLOP, FULL_MAX_FLOP = 1e9, 4e9  # larger layers are left out
CLIFF = 0.7  # below this share of the slower one of its two neighbours, a point is a cliff

Value = int | tuple[int, int]
Key = tuple[str, str, str, int, int]


def parse_axis(text: str) -> list[Value]:
    """Values of one axis: numbers, ranges ``first:end[:step]`` and pairs ``heightxwidth``, separated by commas.

    >>> parse_axis("1:4,8,7x56")
    [1, 2, 3, 8, (7, 56)]

    Raises
    ------
    ValueError
        Something else, or a number below 1.
    """
    values: list[Value] = []
    for part in text.split(","):
        if "x" in part:
            height, width = map(int, part.split("x"))
            values.append((height, width))
        elif ":" in part:
            values += range(*map(int, part.split(":")))
        else:
            values.append(int(part))
    if not values or min(min(_pair(value)) for value in values) < 1:
        raise ValueError(f"an axis needs numbers of at least 1, got {text!r}")
    return values


def _pair(value: Value) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _label(value: Value) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def grid(axes: Mapping[str, list[Value]], max_flop: float = MAX_FLOP) -> dict[Key, Layer]:
    """Make the layers of a grid: half padding, so that odd kernels with stride 1 keep the size.

    Parameters
    ----------
    axes : dict
        Each of AXES -> its values, see `parse_axis`.
    max_flop : float
        Layers of more than this are left out.
    """
    layers = {}
    for kernel, stride, size, c, k in product(*(axes[name] for name in AXES)):
        labels = _label(kernel), _label(stride), _label(size)
        name = "kernel {} stride {} image {}".format(*labels) + f" C {c} K {k}"
        padding = (extent // 2 for extent in _pair(kernel))
        layer = Layer(name, 1, c, *_pair(size), k, *_pair(kernel), *_pair(stride), *padding)
        if min(layer.y_shape) >= 1 and layer.flop <= max_flop:
            layers[(*labels, c, k)] = layer
    return layers


def cliffs(cells: Mapping[Key, float]) -> list[tuple[float, Key, str]]:
    """Find points much slower than both neighbours along an axis.

    Parameters
    ----------
    cells : dict
        (kernel, stride, size, c, k) -> GFLOP/s, in the order of `grid`.

    Returns
    -------
    list of (float, tuple, str)
        Share of the slower neighbour's GFLOP/s, the point's key, and the axis; worst first, each point once.
    """
    found: dict[Key, tuple[float, str]] = {}
    for index, axis in enumerate(AXES):
        lines: dict[tuple, list[Key]] = {}
        for key in cells:
            lines.setdefault(key[:index] + key[index + 1 :], []).append(key)
        for line in lines.values():
            for before, key, after in zip(line, line[1:], line[2:], strict=False):
                share = cells[key] / min(cells[before], cells[after])
                if share < CLIFF and share < found.get(key, (1.0, ""))[0]:
                    found[key] = share, axis
    return sorted((share, key, axis) for key, (share, axis) in found.items())
