"""torch.nn's Unfold and Fold: layers without parameters round the functions of these names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..problem import per_axis
from . import functional
from ._layer import Layer

if TYPE_CHECKING:
    import numpy as np

    from .modules import Ints

LEAST = {"output_size": 1, "kernel_size": 1, "dilation": 1, "padding": 0, "stride": 1}


class _Windows(Layer):
    """What the two have in common: sizes that are checked when they are assigned, and kept as they came."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in LEAST:
            per_axis(type(self).__name__, name, value, 2, LEAST[name])
            value = tuple(value) if isinstance(value, list) else value
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of `repr`, as torch prints it."""
        return ", ".join(f"{name}={getattr(self, name)}" for name in LEAST if hasattr(self, name))


class Unfold(_Windows):
    """Take the windows that a filter sees of an image, each as a column.

    Parameters
    ----------
    kernel_size, dilation, padding, stride : int or tuple of ints
        As in :func:`pyconv.nn.functional.unfold`, which the layer calls; also what it takes and returns.

    Raises
    ------
    ValueError, TypeError
        If a value is out of range or of the wrong kind, also when an attribute is assigned.

    See Also
    --------
    torch.nn.Unfold : the layer this one follows.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> nn.Unfold((2, 3))(np.zeros((2, 5, 3, 4), np.float32)).shape
    (2, 30, 4)
    """

    def __init__(self, kernel_size: Ints, dilation: Ints = 1, padding: Ints = 0, stride: Ints = 1) -> None:
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.padding = padding
        self.stride = stride

    def forward(self, input: np.ndarray) -> np.ndarray:
        """Return the windows of the input: see :func:`pyconv.nn.functional.unfold`."""
        return functional.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)


class Fold(_Windows):
    """Add windows up to the image they are of.

    Parameters
    ----------
    output_size : int or tuple of ints
        Height and width of the image.
    kernel_size, dilation, padding, stride : int or tuple of ints
        As in :func:`pyconv.nn.functional.fold`, which the layer calls; also what it takes and returns.

    Raises
    ------
    ValueError, TypeError
        If a value is out of range or of the wrong kind, also when an attribute is assigned.

    See Also
    --------
    torch.nn.Fold : the layer this one follows.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> fold = nn.Fold(output_size=(4, 5), kernel_size=(2, 2))
    >>> fold
    Fold(output_size=(4, 5), kernel_size=(2, 2), dilation=1, padding=0, stride=1)
    >>> fold(np.zeros((1, 3 * 2 * 2, 12), np.float32)).shape
    (1, 3, 4, 5)
    """

    def __init__(
        self, output_size: Ints, kernel_size: Ints, dilation: Ints = 1, padding: Ints = 0, stride: Ints = 1
    ) -> None:
        self.output_size = output_size
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.padding = padding
        self.stride = stride

    def forward(self, input: np.ndarray) -> np.ndarray:
        """Return the image that the input's windows add up to: see :func:`pyconv.nn.functional.fold`."""
        return functional.fold(input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride)
