"""torch.nn's convolution layers: parameters and, while frozen, the plans and packed weights that belong to them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import config
from ..activation import activation_fields
from ..arrays import as_array, check_arrays
from ..plan import plan_for
from ..problem import check_memory, checked_padding, choice, conv_problem, fail, kind_of, per_axis, positive_int
from ..result import channels_last_result, compute
from . import init
from ._calls import convnd
from ._layer import Layer

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    Ints = int | tuple[int, ...]
    Paddings = Ints | tuple[tuple[int, int], ...] | str
    Activation = str | tuple[Any, ...] | None

# A frozen layer keeps plans for this many shapes and, so that large weights are not packed into very many forms,
# for as many as this many bytes of plain weights make up. What exceeds it drops them all.
MOST_SHAPES = 64
MOST_BYTES = 2**28
PAD_MODES = ("zeros", "reflect", "replicate", "circular")  # torch's: the functional calls have one more


def checked_attribute(layer: str, name: str, value: Any, rank: int) -> Any:
    """Return what a layer keeps as its attribute `name`: ints and tuples with one int per axis."""
    if name == "in_channels" and type(value) is int and value == 0:
        return value  # torch makes such layers, with a warning, and so do we
    if name in ("in_channels", "out_channels", "groups"):
        return positive_int(layer, name, value)
    if name in ("kernel_size", "stride", "dilation"):
        return per_axis(layer, name, value, rank, 1)
    if name == "padding":
        return checked_padding(layer, value, rank)
    if name == "padding_mode":
        return choice(layer, name, value, PAD_MODES)
    if name == "algorithm" and not (value is None or isinstance(value, str)):
        fail(TypeError, layer, name, "must be a name or None", value)
    if name == "accuracy":
        config.is_exact(layer, value)
    return value


def parameter_dtype(layer: str, dtype: DTypeLike) -> np.dtype:
    """Return the dtype that a layer's parameters have."""
    try:
        dtype = np.dtype(np.float32 if dtype is None else dtype).newbyteorder("=")
    except Exception:  # noqa: BLE001 - NumPy asks the object, which may raise anything
        fail(TypeError, layer, "dtype", "must be a NumPy dtype", dtype)
    if kind_of(dtype) not in "fc":
        fail(TypeError, layer, "dtype", "must be a floating-point or complex dtype", dtype)
    return dtype


class _ConvNd(Layer):
    """What the layers share: everything but the number of spatial axes."""

    transposed: ClassVar[bool] = False
    _rank: ClassVar[int]
    _function: ClassVar[str]  # what the layer computes, in messages

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Paddings = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: DTypeLike = None,
        *,
        activation: Activation = None,
        algorithm: str | None = None,
        accuracy: str | None = None,
    ) -> None:
        name = type(self).__name__
        kind = getattr(device, "type", device)  # of a torch.device
        if device is not None and not (isinstance(kind, str) and kind == "cpu"):
            fail(ValueError, name, "device", "must be None or 'cpu'", device)
        if not isinstance(bias, (bool, np.bool_, int, type(None))):
            fail(TypeError, name, "bias", "must be a bool; assign an array to the layer's bias", type(bias))
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        self.padding_mode = padding_mode
        self.activation = activation
        self.algorithm = algorithm
        self.accuracy = accuracy
        for argument in ("in_channels", "out_channels"):
            if getattr(self, argument) % self.groups:
                fail(ValueError, name, argument, f"must be divisible by groups = {groups}", getattr(self, argument))
        if self.padding == "same" and self.stride != (1,) * self._rank:
            fail(ValueError, name, "padding", "cannot be 'same' with a stride other than 1", f"stride {stride}")
        self._dtype = parameter_dtype(name, dtype)
        activation_fields(name, activation, self._dtype)  # now that it is known
        check_memory(name, "out_channels", self._parameter_shape("weight"))
        self._live["weight"] = np.empty(self._parameter_shape("weight"), self._dtype)
        self._live["bias"] = np.empty(self._parameter_shape("bias"), self._dtype) if bias else None
        self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        layer = type(self).__name__
        value = checked_attribute(layer, name, value, self._rank)
        if name == "activation":
            activation_fields(layer, value, self.__dict__.get("_dtype"))
        super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Draw new parameters as torch does: kaiming_uniform_(a=sqrt(5)), and +-1/sqrt(fan_in) for the bias."""
        self._overwrite("weight", lambda weight: init.kaiming_uniform_(weight, a=math.sqrt(5)))
        fan_in = math.prod(self._live["weight"].shape[1:])
        if self._live["bias"] is not None:
            bound = 1 / math.sqrt(fan_in) if fan_in else 0
            self._overwrite("bias", lambda bias: init.uniform_(bias, -bound, bound))

    def forward(
        self, input: np.ndarray, *, residual: np.ndarray | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the convolution of the input, a fresh array or `out`.

        Parameters
        ----------
        input : ndarray
            Shape (N, in_channels, ...) or, unbatched, (in_channels, ...), of the layer's dtype; any strides.
        residual, out : ndarray, optional
            As in :func:`pyconv.nn.functional.conv2d`; that is also where the layout of a fresh array is told.

        Raises
        ------
        TypeError, ValueError, MemoryError
            As :func:`pyconv.nn.functional.conv2d`.
        """
        if type(input) is np.ndarray:
            call = self._plans[0].get((input.shape, input.strides, input.dtype))
            if call is not None and call[0] == config.generation():
                _, shape, channels_last, plan, run, packed = call
                if channels_last or residual is not None or out is not None:
                    return compute(
                        self._function, plan, input, None, None, shape, channels_last, out, residual, packed=packed
                    )
                y = np.empty(shape, input.dtype)
                run(input, packed, y)
                return y
        return self._plan_and_run(input, residual, out)

    def _plan_and_run(
        self, input: np.ndarray, residual: np.ndarray | None, out: np.ndarray | None, *options: Any
    ) -> np.ndarray:
        """Compute what `forward` has no plan for yet, and keep the plan if the layer is frozen."""
        # The caches come first: see the top of _layer.py.
        (calls, packs), frozen = self._plans, self._frozen
        generation = config.generation()
        if frozen is None:
            return self._call_function(input, residual, out, *options)
        weight, bias = frozen["weight"], frozen["bias"]
        x, weight, bias, plan, shape = self._planned(input, weight, bias, *options)
        # The frozen copy of the weight lies in C order, whatever the layer's own array does.
        channels_last = channels_last_result(x, self._live["weight"], self._rank)
        packed = packs.get(plan)
        if packed is None and x.size:
            packed = plan.pack(weight, bias)
            if len(packs) >= max(1, min(MOST_SHAPES, MOST_BYTES // max(1, weight.nbytes))):
                packs.clear()
                calls.clear()
            packs[plan] = packed
        if x is input and x.size and not options:  # not where a copy had to be made first
            if len(calls) >= MOST_SHAPES:
                calls.clear()
            calls[x.shape, x.strides, x.dtype] = generation, shape, channels_last, plan, plan.run, packed
        return compute(self._function, plan, x, weight, bias, shape, channels_last, out, residual, packed=packed)

    def _call_function(self, input: np.ndarray, residual: np.ndarray | None, out: np.ndarray | None) -> np.ndarray:
        """Compute what `forward` does in train mode: the function of this layer's name."""
        return convnd(
            self._function, self._rank, input, self.weight, self.bias, self.stride, self.padding, self.dilation,
            self.groups, self.padding_mode, 0, self.activation, residual, False, out, self.algorithm, self.accuracy,
        )  # fmt: skip

    def _plan_of(self, input: np.ndarray) -> Any:
        """Return the plan by which a call with this input is computed."""
        return self._planned(input, self.weight, self.bias)[3]

    def _planned(self, input: np.ndarray, weight: np.ndarray, bias: np.ndarray | None):
        """Return checked arrays (input, weight, bias), the plan for them and the shape of the result."""
        function, rank = self._function, self._rank
        x, weight, bias = check_arrays(function, rank, input, weight, bias)
        problem = conv_problem(
            function, rank, x, weight, self.stride, self.padding, self.dilation, self.groups, self.padding_mode,
            config.is_exact(function, self.accuracy), self.training and self.algorithm is None,  # raw: see _calls.py
            activation=activation_fields(function, self.activation, x.dtype),
        )  # fmt: skip
        return x, weight, bias, plan_for(problem, self.algorithm), problem.output_shape[x.ndim < rank + 2 :]

    @property
    def weight(self) -> np.ndarray:
        """Filters, (out_channels, in_channels / groups, *kernel_size); immutable in eval mode."""
        return self._parameter("weight")

    @weight.setter
    def weight(self, value: np.ndarray) -> None:
        self._assign("weight", self._checked_array("weight", value))

    @property
    def bias(self) -> np.ndarray | None:
        """One value per output channel, or None; immutable in eval mode."""
        return self._parameter("bias")

    @bias.setter
    def bias(self, value: np.ndarray | None) -> None:
        self._assign("bias", None if value is None else self._checked_array("bias", value))

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of `repr`, as torch prints it."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0,) * self._rank:
            text += f", padding={self.padding}"
        if self.dilation != (1,) * self._rank:
            text += f", dilation={self.dilation}"
        if self.transposed and self.output_padding != (0,) * self._rank:
            text += f", output_padding={self.output_padding}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        return text

    def _checked_array(self, name: str, value: Any) -> np.ndarray:
        layer, shape = type(self).__name__, self._parameter_shape(name)
        array = as_array(layer, name, value)
        if array.dtype != self._dtype:
            fail(TypeError, layer, name, f"must have the layer's dtype {self._dtype}: use .astype", array.dtype)
        if array.shape != shape:
            fail(ValueError, layer, name, f"must have shape {shape}", array.shape)
        return array

    def _parameter_shape(self, name: str) -> tuple[int, ...]:
        if name == "bias":
            return (self.out_channels,)
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)


class Conv1d(_ConvNd):
    """Apply a 1-D convolution over signals of shape (N, in_channels, L) or (in_channels, L).

    Parameters, attributes, errors and modes as :class:`Conv2d`, with one axis instead of two. Like torch.nn.Conv1d.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> nn.Conv1d(16, 33, 3, stride=2)(np.zeros((20, 16, 50), np.float32)).shape
    (20, 33, 24)
    """

    _rank = 1
    _function = "conv1d"


class Conv2d(_ConvNd):
    """Apply a 2-D convolution over images of shape (N, in_channels, H, W) or (in_channels, H, W).

    Parameters
    ----------
    in_channels, out_channels : int
        Both divisible by `groups`.
    kernel_size : int or tuple of ints
        Size of the filters, one for all axes or one per axis.
    stride, dilation : int or tuple of ints
        Step of the filters; distance of their taps.
    padding : int, tuple of ints or of pairs, or str
        What is added on both sides of every axis: all that :func:`pyconv.nn.functional.conv2d` takes.
    groups : int
        Blocks of channels that are convolved separately.
    bias : bool
        Whether there is a bias.
    padding_mode : {'zeros', 'reflect', 'replicate', 'circular'}
        What is added.
    device : None or 'cpu'
        For torch's sake.
    dtype : dtype
        Of the parameters and of the inputs: a floating-point or complex one, float32 if not given.
    activation : str or tuple, optional
        What is applied to the result: see :func:`pyconv.nn.functional.conv2d`.
    algorithm : str, optional
        A row of the table of algorithms; by default the first that accepts the problem.
    accuracy : {'fast', 'exact'}, optional
        By default what :func:`pyconv.set_accuracy` says.

    Attributes
    ----------
    weight : ndarray
        Shape (out_channels, in_channels / groups, *kernel_size).
    bias : ndarray or None
        Shape (out_channels,).
    training : bool
        A new layer is in train mode: every call sees what the two arrays hold by then. `eval()` makes them immutable
        and packs them once, which is faster; `train()` gives the arrays back.

    Raises
    ------
    ValueError, TypeError
        If a value is out of range or of the wrong kind, also when an attribute is assigned. An array assigned to
        `weight` or `bias` must have the layer's shape and dtype (first set out_channels, say, for another shape).

    Notes
    -----
    Like torch.nn.Conv2d, initialisation included, without hooks, children and gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> conv = nn.Conv2d(16, 33, (3, 5), stride=(2, 1), padding=(4, 2), dilation=(3, 1))
    >>> conv
    Conv2d(16, 33, kernel_size=(3, 5), stride=(2, 1), padding=(4, 2), dilation=(3, 1))
    >>> conv(np.zeros((20, 16, 50, 100), np.float32)).shape
    (20, 33, 26, 100)
    """

    _rank = 2
    _function = "conv2d"


class Conv3d(_ConvNd):
    """Apply a 3-D convolution over volumes of shape (N, in_channels, D, H, W) or (in_channels, D, H, W).

    Parameters, attributes, errors and modes as :class:`Conv2d`, with three axes instead of two. Like torch.nn.Conv3d.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> nn.Conv3d(2, 4, 3, padding="same")(np.zeros((2, 5, 6, 7), np.float32)).shape
    (4, 5, 6, 7)
    """

    _rank = 3
    _function = "conv3d"
