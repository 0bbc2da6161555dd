"""pyconv.pack: weights that functional calls need not pack again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .nn._calls import conv_call, conv_transpose_call
from .packed import PackedWeight
from .problem import checked_shape, fail

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PackedWeight", "pack"]


def pack(
    weight: np.ndarray, bias: np.ndarray | None = None, input_shape: Sequence[int] | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1, *, transposed: bool = False, output_padding: Any = 0,
    padding_mode: str = "zeros", padding_value: Any = 0, activation: Any = None, algorithm: str | None = None,
    accuracy: str | None = None,
) -> PackedWeight:  # fmt: skip
    """Return a weight that the functional calls take in place of an array, and pack only once.

    What an algorithm reads depends on the problem, so it is packed in the first call with each size of images and
    each set of other arguments, or here, if these are given, on all threads. At most 64 forms are kept (fewer of
    weights over 4 MiB: 256 MiB of weights altogether), and packed again when they are needed again.

    Parameters
    ----------
    weight : ndarray
        What any of the functional calls takes; copied, so that later changes of the array have no effect.
    bias : ndarray, optional
        The same. Calls with the packed weight take no other.
    input_shape : sequence of ints, optional
        Shape (N, C, ...) of an input to pack for now. N does not matter, unless there are filters for each sample.
    stride, padding, dilation, groups, padding_mode, padding_value, activation, algorithm, accuracy
        What the calls with this input will be given: see :func:`pyconv.nn.functional.conv2d`.
    transposed : bool
        Whether to pack for :func:`pyconv.nn.functional.conv_transpose2d` and its like.
    output_padding : int or tuple of ints
        For them.

    Returns
    -------
    PackedWeight

    Raises
    ------
    ValueError, TypeError
        As the functional calls, for these arguments.
    MemoryError
        If there is no memory for the copy.

    See Also
    --------
    pyconv.nn.Conv2d.eval : the same for a layer.

    Examples
    --------
    >>> import numpy as np, pyconv, pyconv.nn.functional as F
    >>> w = np.ones((8, 3, 3, 3), np.float32)
    >>> packed = pyconv.pack(w, np.zeros(8, np.float32), input_shape=(1, 3, 32, 32), padding=1)
    >>> packed
    PackedWeight(float32 (8, 3, 3, 3), bias, packed for 1 problems)
    >>> x = np.ones((4, 3, 32, 32), np.float32)
    >>> bool((F.conv2d(x, packed, padding=1) == F.conv2d(x, w, padding=1)).all())
    True
    """
    packed = PackedWeight(weight, bias)
    if input_shape is None:
        return packed
    lengths = [n for n in (packed.ndim - 1, packed.ndim) if 3 <= n <= 5]  # one less with filters for each sample
    shape = checked_shape("pack", "input_shape", input_shape, lengths)
    if not isinstance(transposed, bool):
        fail(TypeError, "pack", "transposed", "must be a bool", transposed)
    x = np.broadcast_to(np.zeros((), packed.dtype), shape)
    given = x, packed.weight, packed.bias
    if transposed:
        sizes, options = (stride, padding, output_padding, groups, dilation), (activation, algorithm, accuracy)
        call, _ = conv_transpose_call("pack", len(shape) - 2, given, sizes, (*options, "packed"))
    else:
        sizes, options = (stride, padding, dilation, groups), (padding_mode, padding_value, activation)
        call, _ = conv_call("pack", len(shape) - 2, given, sizes, (*options, algorithm, accuracy, "packed"))
    packed.packed_for(call)
    return packed
