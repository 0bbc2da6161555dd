"""Weights that are packed once for many functional calls: an immutable copy, and what plans made of it.

Nobody can write to the copy (nn/_layer.py tells why), so what was packed is never stale.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from .arrays import as_array, same_dtype
from .problem import fail
from .result import is_channels_last

# As many forms of it are kept as make up so many bytes, for large weights fewer than for small ones (nn/modules.py).
MOST_FORMS = 64
MOST_BYTES = 2**28


def frozen(array: np.ndarray) -> np.ndarray:
    """Return a copy that nobody can make writable."""
    return np.ndarray(array.shape, array.dtype, buffer=array.tobytes())


class PackedWeight:
    """A weight, and a bias if there is one, as :func:`pyconv.pack` returns them; see there.

    Attributes
    ----------
    weight : ndarray
        The immutable copy.
    bias : ndarray or None
        The same of the bias.
    shape, dtype, ndim
        Those of the weight.
    """

    __slots__ = ("_bias", "_packs", "_weight", "channels_last")

    def __init__(self, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
        weight = as_array("pack", "weight", weight)
        if not 3 <= weight.ndim <= 6:
            fail(ValueError, "pack", "weight", "must have 3 to 5 dimensions, or one more", f"shape {weight.shape}")
        if bias is not None:
            bias = as_array("pack", "bias", bias)
            same_dtype("pack", "bias", bias, weight)
            if bias.ndim not in (1, 2):
                rule = "must have 1 dimension, or 2 with values for each sample"
                fail(ValueError, "pack", "bias", rule, f"shape {bias.shape}")
        self.channels_last = is_channels_last(weight, weight.ndim - 2)  # which results follow
        self._weight = frozen(weight)
        self._bias = None if bias is None else frozen(bias)
        self._packs: dict[Hashable, Any] = {}

    @property
    def weight(self) -> np.ndarray:
        """The immutable copy of the weight."""
        return self._weight

    @property
    def bias(self) -> np.ndarray | None:
        """The immutable copy of the bias."""
        return self._bias

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self._weight.shape

    @property
    def ndim(self) -> int:
        """The weight's number of axes."""
        return self._weight.ndim

    @property
    def dtype(self) -> np.dtype:
        """The weight's dtype."""
        return self._weight.dtype

    def packed_for(self, call: Any) -> Any:
        """Return what the plan of a call (nn/_calls.py) makes of weight and bias, or made for this form before.

        None where there is nothing to compute.
        """
        packs = self._packs
        packed = packs.get(call.form)
        if packed is None and 0 not in call.shape:
            packed = call.plan.pack(self._weight, self._bias)
            if len(packs) >= max(1, min(MOST_FORMS, MOST_BYTES // max(1, self._weight.nbytes))):
                self._packs = packs = {}
            packs[call.form] = packed
        return packed

    def __repr__(self) -> str:
        bias = "" if self._bias is None else ", bias"
        return f"PackedWeight({self.dtype} {self.shape}{bias}, packed for {len(self._packs)} problems)"

    def __reduce__(self) -> tuple:
        bias = None if self._bias is None else np.array(self._bias)
        return _unpickled, (np.array(self._weight), bias, self.channels_last)

    def __copy__(self) -> PackedWeight:
        return self

    def __deepcopy__(self, memo: object) -> PackedWeight:
        return self


def _unpickled(weight: np.ndarray, bias: np.ndarray | None, channels_last: bool) -> PackedWeight:
    packed = PackedWeight(weight, bias)
    packed.channels_last = channels_last
    return packed


def taken_apart(
    function: str, packing: PackedWeight, bias: Any
) -> tuple[PackedWeight, np.ndarray, np.ndarray | None, str]:
    """Return a packed weight, its arrays, and what it means for plans and results in a word."""
    if bias is not None:
        rule = "must be None with a PackedWeight, which has its own: pyconv.pack(weight, bias)"
        fail(ValueError, function, "bias", rule, type(bias))
    return packing, packing.weight, packing.bias, "channels last" if packing.channels_last else "packed"
