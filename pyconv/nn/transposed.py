"""torch.nn's transposed convolution layers: what differs from the ordinary ones in modules.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import config
from ..activation import activation_fields
from ..arrays import check_arrays
from ..problem import choice, fail, per_axis
from ..transposed import transposed_plan
from ..transposed_problem import output_padding_for, transposed_problem
from ._calls import conv_transposend
from .modules import _ConvNd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike

    from .modules import Activation, Ints


class _ConvTransposeNd(_ConvNd):
    """What the three layers share."""

    transposed: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Ints = 1,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: DTypeLike = None,
        *,
        activation: Activation = None,
        algorithm: str | None = None,
        accuracy: str | None = None,
    ) -> None:
        self.output_padding = output_padding
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, activation=activation, algorithm=algorithm, accuracy=accuracy,
        )  # fmt: skip

    def __setattr__(self, name: str, value: Any) -> None:
        layer = type(self).__name__
        if name == "padding" and isinstance(value, str):
            fail(TypeError, layer, name, "must be an int or a tuple of ints", value)
        if name == "output_padding":
            value = per_axis(layer, name, value, self._rank, 0)
        if name == "padding_mode":
            choice(layer, name, value, ("zeros",))
        super().__setattr__(name, value)

    def forward(
        self,
        input: np.ndarray,
        output_size: Sequence[int] | None = None,
        *,
        residual: np.ndarray | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the transposed convolution of the input, a fresh array or `out`.

        Parameters
        ----------
        input : ndarray
            Shape (N, in_channels, ...) or, unbatched, (in_channels, ...), of the layer's dtype; any strides.
        output_size : sequence of ints, optional
            The spatial size, or the shape, that the result is to have, instead of what the layer's `output_padding`
            gives: one of `stride` sizes per axis is possible.
        residual, out : ndarray, optional
            As in :func:`pyconv.nn.functional.conv2d`.

        Raises
        ------
        TypeError, ValueError, MemoryError
            As :func:`pyconv.nn.functional.conv_transpose2d`, and for an `output_size` that is out of range.
        """
        if output_size is None:
            return super().forward(input, residual=residual, out=out)
        geometry = self.kernel_size, self.stride, self.padding, self.dilation
        output_padding = output_padding_for(type(self).__name__, output_size, input, *geometry)
        return self._plan_and_run(input, residual, out, output_padding)

    def _call_function(
        self,
        input: np.ndarray,
        residual: np.ndarray | None,
        out: np.ndarray | None,
        output_padding: Ints | None = None,
    ) -> np.ndarray:
        return conv_transposend(
            self._function, self._rank, input, self.weight, self.bias, self.stride, self.padding,
            self.output_padding if output_padding is None else output_padding, self.groups, self.dilation,
            self.activation, residual, False, out, self.algorithm, self.accuracy,
        )  # fmt: skip

    def _planned(
        self, input: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, output_padding: Ints | None = None
    ):
        function, rank, groups = self._function, self._rank, self.groups
        x, weight, bias = check_arrays(function, rank, input, weight, bias, transposed_groups=groups)
        problem = transposed_problem(
            function, rank, x, weight, self.stride, self.padding,
            self.output_padding if output_padding is None else output_padding, groups, self.dilation,
            config.is_exact(function, self.accuracy), activation_fields(function, self.activation, x.dtype),
        )  # fmt: skip
        shape = problem.input_shape[x.ndim < rank + 2 :]
        return x, weight, bias, transposed_plan(function, problem, self.algorithm), shape

    def _parameter_shape(self, name: str) -> tuple[int, ...]:
        if name == "bias":
            return (self.out_channels,)
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)


class ConvTranspose1d(_ConvTransposeNd):
    """Apply a 1-D transposed convolution over signals of shape (N, in_channels, L) or (in_channels, L).

    Parameters, attributes, errors and modes as :class:`ConvTranspose2d`, with one axis instead of two. Like
    torch.nn.ConvTranspose1d.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> nn.ConvTranspose1d(16, 33, 3, stride=2)(np.zeros((20, 16, 50), np.float32)).shape
    (20, 33, 101)
    """

    _rank = 1
    _function = "conv_transpose1d"


class ConvTranspose2d(_ConvTransposeNd):
    """Apply a 2-D transposed convolution over images of shape (N, in_channels, H, W) or (in_channels, H, W).

    Parameters
    ----------
    in_channels, out_channels : int
        Both divisible by `groups`.
    kernel_size : int or tuple of ints
        Size of the filters, one for all axes or one per axis.
    stride, dilation : int or tuple of ints
        Distance in the output of what neighbours in the input are spread to; distance of the filters' taps.
    padding : int or tuple of ints
        What is cut off from both sides of every axis of the output.
    output_padding : int or tuple of ints
        What is added to the end of every axis of the output, less than stride or dilation.
    groups : int
        Blocks of channels that are convolved separately.
    bias : bool
        Whether there is a bias.
    padding_mode : {'zeros'}
        For torch's sake.
    device : None or 'cpu'
        For torch's sake.
    dtype : dtype
        Of the parameters and of the inputs: a floating-point or complex one, float32 if not given.
    activation : str or tuple, optional
        What is applied to the result: see :func:`pyconv.nn.functional.conv2d`.
    algorithm : str, optional
        A row of the table of algorithms; by default the first that accepts each part of the problem.
    accuracy : {'fast', 'exact'}, optional
        By default what :func:`pyconv.set_accuracy` says.

    Attributes
    ----------
    weight : ndarray
        Shape (in_channels, out_channels / groups, *kernel_size).
    bias : ndarray or None
        Shape (out_channels,).
    training : bool
        As in :class:`Conv2d`.

    Raises
    ------
    ValueError, TypeError
        If a value is out of range or of the wrong kind, also when an attribute is assigned.

    Notes
    -----
    Like torch.nn.ConvTranspose2d, initialisation included, without hooks, children and gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> x = np.zeros((1, 16, 12, 12), np.float32)
    >>> h = nn.Conv2d(16, 16, 3, stride=2, padding=1)(x)
    >>> up = nn.ConvTranspose2d(16, 16, 3, stride=2, padding=1)
    >>> up
    ConvTranspose2d(16, 16, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    >>> up(h).shape, up(h, output_size=x.shape).shape
    ((1, 16, 11, 11), (1, 16, 12, 12))
    """

    _rank = 2
    _function = "conv_transpose2d"


class ConvTranspose3d(_ConvTransposeNd):
    """Apply a 3-D transposed convolution over volumes of shape (N, in_channels, D, H, W) or (in_channels, D, H, W).

    Parameters, attributes, errors and modes as :class:`ConvTranspose2d`, with three axes instead of two. Like
    torch.nn.ConvTranspose3d.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> nn.ConvTranspose3d(2, 4, 3, stride=2, output_padding=1)(np.zeros((2, 5, 6, 7), np.float32)).shape
    (4, 12, 14, 16)
    """

    _rank = 3
    _function = "conv_transpose3d"
