"""The layers that are timed: their geometry, arithmetic and random data, and the classes they are summed up in."""

from __future__ import annotations

import csv
import fnmatch
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

LAYERS_CSV = Path(__file__).with_name("layers.csv")
TEXT_COLUMNS = ("name", "op")

Tensors = tuple[np.ndarray, np.ndarray, "np.ndarray | None"]  # x, w, b


@dataclass(frozen=True)
class Layer:
    """One convolution: the columns of ``layers.csv``; channel counts are those of the whole layer, not of a group.

    ``op`` names the method of a library class that computes it.
    """

    name: str
    n: int
    c_in: int
    h_in: int
    w_in: int
    c_out: int
    kernel_h: int
    kernel_w: int
    stride_h: int = 1
    stride_w: int = 1
    pad_h: int = 0
    pad_w: int = 0
    dil_h: int = 1
    dil_w: int = 1
    groups: int = 1
    op: str = "conv"

    @property
    def kernel(self) -> tuple[int, int]:
        """Its height and width."""
        return self.kernel_h, self.kernel_w

    @property
    def stride(self) -> tuple[int, int]:
        """Down and to the right."""
        return self.stride_h, self.stride_w

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros above and below, left and right."""
        return self.pad_h, self.pad_w

    @property
    def dilation(self) -> tuple[int, int]:
        """Distance of the kernel's taps."""
        return self.dil_h, self.dil_w

    @property
    def ndim(self) -> int:
        """1 where the height is idle, so that a user would write Conv1d; else 2."""
        return 1 if self.h_in == self.kernel_h == 1 and self.pad_h == 0 else 2

    @property
    def kd(self) -> int:
        """Products per output element."""
        return self.c_in // self.groups * self.kernel_h * self.kernel_w

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the input, NCHW."""
        return self.n, self.c_in, self.h_in, self.w_in

    @property
    def w_shape(self) -> tuple[int, ...]:
        """Shape of the weights."""
        return self.c_out, self.c_in // self.groups, self.kernel_h, self.kernel_w

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of the output, NCHW."""
        out_h = (self.h_in + 2 * self.pad_h - self.dil_h * (self.kernel_h - 1) - 1) // self.stride_h + 1
        out_w = (self.w_in + 2 * self.pad_w - self.dil_w * (self.kernel_w - 1) - 1) // self.stride_w + 1
        return self.n, self.c_out, out_h, out_w

    @property
    def flop(self) -> int:
        """Additions and multiplications of the definition; whatever an algorithm saves (Winograd) counts as speed."""
        n, c_out, out_h, out_w = self.y_shape
        return 2 * n * c_out * out_h * out_w * self.kd

    @property
    def is_3x3s1(self) -> bool:
        """Dense, 3x3, stride and dilation 1: what Winograd's algorithm is for."""
        return (self.groups, self.kernel, self.stride, self.dilation) == (1, (3, 3), (1, 1), (1, 1))

    @property
    def is_twin(self) -> bool:
        """Whether `dense_twin` made it."""
        return self.name.endswith(".dense")

    def dense_twin(self) -> Layer:
        """The dense layer of the same size, to compare a grouped one with."""
        return replace(self, name=self.name + ".dense", groups=1)

    def data(self, dtype: str = "float32", *, bias: bool = False) -> Tensors:
        """Normal random x, w and b (None without bias), the same in every process."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        x, w = (rng.standard_normal(shape, np.float32).astype(dtype) for shape in (self.x_shape, self.w_shape))
        return x, w, rng.standard_normal(self.c_out, np.float32).astype(dtype) if bias else None

    def to_dict(self) -> dict[str, str | int]:
        """Its columns, ``Layer(**columns)`` being the way back."""
        return asdict(self)


def read_layers(path: str | Path = LAYERS_CSV) -> list[Layer]:
    """Read a layer table; columns that a Layer doesn't have are ignored.

    Raises
    ------
    ValueError
        A column is missing, a number is none, or the geometry gives no output.
    """
    layers = []
    names = {field.name for field in fields(Layer)}
    with Path(path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cells = {key: value for key, value in row.items() if key in names and value}
            try:
                layer = Layer(**{key: cell if key in TEXT_COLUMNS else int(cell) for key, cell in cells.items()})
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: row {row.get('name')!r}: {error}") from None
            if min(*layer.y_shape, layer.kd) < 1 or layer.c_in % layer.groups or layer.c_out % layer.groups:
                raise ValueError(f"{path}: row {layer.name!r}: impossible geometry, output shape {layer.y_shape}")
            layers.append(layer)
    return layers


def select(layers: Iterable[Layer], patterns: Sequence[str]) -> list[Layer]:
    """Those layers whose name matches one of the shell patterns, in the table's order; all of them without a pattern.

    Raises
    ------
    ValueError
        A pattern matches no layer.
    """
    layers = list(layers)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(layer.name, pattern) for layer in layers):
            raise ValueError(f"no layer matches {pattern!r}; there are: {', '.join(layer.name for layer in layers)}")
    return [x for x in layers if not patterns or any(fnmatch.fnmatchcase(x.name, pattern) for pattern in patterns)]


def _large_3x3(layer: Layer) -> bool:
    return layer.is_3x3s1 and min(layer.c_in, layer.c_out) >= 64 and min(layer.y_shape[2:]) >= 14


def _dense_other(layer: Layer) -> bool:
    return layer.groups == 1 and not layer.is_3x3s1


# The classes that the summary gives geometric means of; a layer may be in several.
CLASSES: dict[str, Callable[[Layer], bool]] = {
    "all": lambda _: True,
    "dense": lambda layer: layer.groups == 1,
    "dense 3x3 stride 1": lambda layer: layer.is_3x3s1,
    "- C, K >= 64, output >= 14, batch 1": lambda layer: _large_3x3(layer) and layer.n == 1,
    "- C, K >= 64, output >= 14, batch > 1": lambda layer: _large_3x3(layer) and layer.n > 1,
    "dense, all others": _dense_other,
    "- Kd >= 144, K >= 64": lambda layer: _dense_other(layer) and layer.kd >= 144 and layer.c_out >= 64,
    "- dilated": lambda layer: _dense_other(layer) and max(layer.dilation) > 1,
    "depthwise and grouped": lambda layer: layer.groups > 1,
}
