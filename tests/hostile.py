"""What nobody should pass and somebody will: numbers, objects and arrays, each made anew whenever it is drawn."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.lib.stride_tricks import as_strided
from oracle import Tagged


class Raises:
    """Whatever one asks it for, it raises."""

    def __index__(self):
        raise ZeroDivisionError("__index__")

    def __float__(self):
        raise ZeroDivisionError("__float__")

    def __array__(self, dtype=None, copy=None):
        raise ZeroDivisionError("__array__")

    def __fspath__(self):
        raise ZeroDivisionError("__fspath__")

    def __repr__(self):
        raise ZeroDivisionError("__repr__")


class Lies:
    """It says another number each time, and that it is a word."""

    def __init__(self, first=1):
        self.next = first

    def __index__(self):
        self.next *= -3
        return self.next // -3

    def __float__(self):
        return "0.5"

    def __fspath__(self):
        return 3

    def __array__(self, dtype=None, copy=None):
        return [1, 2, 3]


class LyingInt(int):
    """It is 1 for C and everything else for whoever asks."""

    def __eq__(self, other):
        return True

    def __lt__(self, other):
        return False

    def __hash__(self):
        return 0


INTEGERS = [0, 1, -1, 2, 3, 2**15, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63), 2**64, 10**400]
VALUES = {
    **{f"{value:.9g}" if value < 10**300 else "10**400": (lambda value=value: value) for value in INTEGERS},
    "np.int64": lambda: np.int64(2),
    "np.uint64": lambda: np.uint64(2**64 - 1),
    "True": lambda: True,
    "np.False_": lambda: np.False_,
    "1.0": lambda: 1.0,
    "1e308": lambda: 1e308,
    "-1e308": lambda: -1e308,
    "1e-320": lambda: 1e-320,
    "inf": lambda: float("inf"),
    "nan": lambda: float("nan"),
    "np.float32(nan)": lambda: np.float32("nan"),
    "np.float16(2)": lambda: np.float16(2),
    "1j": lambda: 1j,
    "Fraction": lambda: Fraction(1, 3),
    "'3'": lambda: "3",
    "'\\0'": lambda: "a\0.npz",
    "surrogate": lambda: "\udcff.npz",
    "b'3'": lambda: b"3",
    "None": lambda: None,
    "()": lambda: (),
    "[]": list,
    "[1]": lambda: [1],
    "(2, 2)": lambda: (2, 2),
    "(2**62,) * 4": lambda: (2**62,) * 4,
    "((1, 1),)": lambda: ((1, 1),),
    "((2**62, 2**62),)": lambda: ((2**62, 2**62),),
    "ragged": lambda: [[1], [1, [2, 2]]],
    "deep": lambda: nested(200),
    "('clamp', nan, 10**400)": lambda: ("clamp", float("nan"), 10**400),
    "('leaky_relu', 10**400)": lambda: ("leaky_relu", 10**400),
    "('relu', [])": lambda: ("relu", []),
    "{}": dict,
    "{0: 1}": lambda: {0: 1},
    "object": object,
    "type": lambda: int,
    "function": lambda: len,
    "Ellipsis": lambda: Ellipsis,
    "raises": Raises,
    "[raises]": lambda: [Raises()],
    "lies": Lies,
    "[lies, lies]": lambda: [Lies(), Lies(2)],
    "LyingInt(-5)": lambda: LyingInt(-5),
    "np.array(2)": lambda: np.array(2),
    "np.array([1, 1])": lambda: np.array([1, 1]),
    "masked constant": lambda: np.ma.masked,
    "array of objects": lambda: holding(Raises()),
    "np.generic": lambda: np.datetime64("NaT"),
}


def holding(thing):
    array = np.empty(1, object)
    array[0] = thing
    return array


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def flat(a, extra=64):
    """A new 1-D array that begins with the elements of `a`."""
    return np.concatenate([a.ravel(), np.ones(extra, a.dtype)])


def masked(a):
    mask = np.zeros(a.shape, bool)
    mask.reshape(-1)[:1] = True
    return np.ma.masked_array(a, mask)


def field(a):
    """A column of packed records: no stride is a multiple of the element."""
    records = np.zeros(a.shape, np.dtype([("byte", np.uint8), ("value", a.dtype)]))
    records["value"] = a
    return records["value"]


def unaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    raw[...] = a
    return raw


def locked(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def on_disk(a):
    """In the working directory."""
    np.memmap("array", a.dtype, "w+", shape=a.shape)[...] = a
    return np.memmap("array", a.dtype, "r", shape=a.shape)


def steps(a, step):
    """`a` with this stride, in elements, on every axis: all of them read the same few elements."""
    return as_strided(flat(a, 4096), a.shape, [step * a.itemsize] * a.ndim)


def huge_stride(a):
    """A stride of 2**62 bytes where there is nothing to step to."""
    return as_strided(a.copy(), a.shape, [2**62 if n == 1 else s for s, n in zip(a.strides, a.shape)])


# From an array that is fine: what stands in for it.
ARRAYS = {
    "empty": lambda a: a[:0],
    "empty at last": lambda a: a[..., :0],
    "empty in all": lambda a: np.empty((0,) * a.ndim, a.dtype),
    "empty, huge strides": lambda a: as_strided(a, (0, *a.shape[1:]), [2**61] * a.ndim),
    "0-d": lambda a: np.array(1, a.dtype),
    "scalar": lambda a: a.dtype.type(1),
    "one more axis": lambda a: a[None],
    "one less axis": lambda a: a[0],
    "32 axes": lambda a: a.reshape(-1)[:1].reshape((1,) * 32),
    "reversed": lambda a: np.ascontiguousarray(a[(slice(None, None, -1),) * a.ndim])[(slice(None, None, -1),) * a.ndim],
    "sliced": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "zero strides": lambda a: steps(a, 0),
    "read-only zero strides": lambda a: np.broadcast_to(a[..., :1], a.shape),
    "sliding": lambda a: steps(a, 1),
    "huge stride": huge_stride,
    "unaligned": unaligned,
    "field": field,
    "read-only": locked,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "fortran": np.asfortranarray,
    "channels last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, a.ndim > 1, -1)), -1, a.ndim > 1),
    "structured": lambda a: a.astype([("value", a.dtype)]),
    "object": lambda a: a.astype(object),
    "text": lambda a: a.astype("U9"),
    "bool": lambda a: a.astype(bool),
    "time": lambda a: np.zeros(a.shape, "m8[s]"),
    "raw": lambda a: np.zeros(a.shape, "V2"),
    "masked": masked,
    "matrix": lambda a: a.reshape(a.shape[0], -1).view(np.matrix),
    "memmap": on_disk,
    "subclass": lambda a: a.copy().view(Tagged),
    "list": lambda a: a.tolist(),
    "memoryview": memoryview,
    "huge": lambda a: np.broadcast_to(a[..., :1], (*a.shape[:-1], 2**40)),
    "huge batch": lambda a: np.broadcast_to(a[:1], (2**45, *a.shape[1:])),
    "nan": lambda a: np.full_like(a, "nan") if a.dtype.kind == "f" else a,
    **{name: lambda a, name=name: a.astype(name) for name in ("f2", "f4", "f8", "g", "c8", "i1", "u2", "i8")},
}  # fmt: skip


def plain(value):
    """The same as somebody sensible would pass it: arrays in C order and native, ints as such."""
    if isinstance(value, np.ndarray):
        if value.nbytes > 2**24 or value.dtype.hasobject or isinstance(value, np.ma.MaskedArray):
            return value  # too large for a copy where elements repeat, or refused anyway
        return np.array(value, value.dtype.newbyteorder("="), order="C", subok=False)
    if isinstance(value, (tuple, list)):
        return type(value)(plain(v) for v in value)
    if isinstance(value, Lies):
        return value.next
    return int.__int__(value) if isinstance(value, LyingInt) else value
