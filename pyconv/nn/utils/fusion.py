"""torch.nn.utils.fusion on NumPy arrays: a batch normalisation becomes part of the convolution before it.

    s = weight / sqrt(running_var + eps)        conv_w[m] s[m],  (conv_b[m] - running_mean[m]) s[m] + bias[m]

There is no batch normalisation in pyconv: whatever has torch's attributes serves, or a mapping of their names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...arrays import as_array
from ...problem import fail, kind_of, plain_float
from ..modules import _ConvNd

__all__ = ["fuse_conv_bn", "fuse_conv_bn_eval", "fuse_conv_bn_weights"]


def fuse_conv_bn_weights(
    conv_w: np.ndarray,
    conv_b: np.ndarray | None,
    bn_rm: np.ndarray,
    bn_rv: np.ndarray,
    bn_eps: float,
    bn_w: np.ndarray | None,
    bn_b: np.ndarray | None,
    transpose: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias of a convolution that does what one and a batch normalisation after it do.

    Parameters
    ----------
    conv_w : ndarray
        The convolution's weight; its first axis are the output channels, or its second with `transpose`.
    conv_b : ndarray or None
        Its bias.
    bn_rm, bn_rv : ndarray
        Running mean and variance, one value per output channel.
    bn_eps : float
        What is added to the variance.
    bn_w, bn_b : ndarray or None
        Weight and bias of the normalisation, 1 and 0 if there are none.
    transpose : bool
        Whether it is a transposed convolution. With groups its weight has fewer channels on the second axis than come
        out; they are taken to be the groups of the first axis.

    Returns
    -------
    weight, bias : ndarray
        New arrays of the dtypes of `conv_w` and `conv_b`.

    Raises
    ------
    ValueError
        If sizes do not fit together, or running_var + eps is negative.
    TypeError
        If an argument is no array of floating-point numbers, or `bn_eps` no number.

    See Also
    --------
    torch.nn.utils.fusion.fuse_conv_bn_weights : the function this one follows.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> w, b = nn.fuse_conv_bn_weights(np.ones((1, 1, 3)), None, np.ones(1), np.full(1, 4.0), 0.0, None, None)
    >>> w, b
    (array([[[0.5, 0.5, 0.5]]]), array([-0.5]))
    """
    return _fused("fuse_conv_bn_weights", conv_w, conv_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, transpose)


def fuse_conv_bn_eval(conv: _ConvNd, bn: Any, transpose: bool = False) -> _ConvNd:
    """Return a copy of a layer that does what it and a batch normalisation after it do, both in eval mode.

    Parameters
    ----------
    conv : Conv1d, Conv2d, ... ConvTranspose3d
        In eval mode, without an activation.
    bn : object or mapping
        With running_mean, running_var, eps (1e-5 if there is none), weight and bias (which may be None), as arrays or
        torch tensors: a torch.nn.BatchNorm2d in eval mode, or a state_dict.
    transpose : bool
        Whether `conv` is a transposed convolution.

    Returns
    -------
    layer
        Of the same class, in eval mode, with a bias.

    Raises
    ------
    ValueError
        If one of them is in train mode, `conv` has an activation, or sizes do not fit together.
    TypeError
        If `conv` is no layer, or `bn` lacks an attribute or has no arrays.

    See Also
    --------
    torch.nn.utils.fusion.fuse_conv_bn_eval : the function this one follows.
    fuse_conv_bn : the same for layers in either mode, which knows by itself what is transposed.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> conv = nn.Conv1d(1, 1, 3, bias=False).eval()
    >>> statistics = {"running_mean": np.ones(1), "running_var": np.ones(1), "weight": None, "bias": None, "eps": 0}
    >>> fused = nn.utils.fusion.fuse_conv_bn_eval(conv, statistics)
    >>> x = np.ones((1, 1, 3), np.float32)
    >>> bool(np.isclose(fused(x), conv(x) - 1).all())
    True
    """
    function = "fuse_conv_bn_eval"
    _check_layer(function, conv)
    if conv.training:
        fail(ValueError, function, "conv", "must be in eval mode: call .eval()", "a layer in train mode")
    if transpose is not conv.transposed:
        rule = f"must be {conv.transposed} for {type(conv).__name__}"
        fail(ValueError, function, "transpose", rule, transpose)
    return _fuse(function, conv, bn)


def fuse_conv_bn(conv: _ConvNd, bn: Any) -> _ConvNd:
    """Return a copy of a layer, in the mode it is in, that does what it and a batch normalisation after it do.

    Parameters, result and errors as :func:`~pyconv.nn.utils.fusion.fuse_conv_bn_eval`, but that `conv` may be in train
    mode.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> statistics = {name: np.ones(4) for name in ("running_mean", "running_var", "weight", "bias")}
    >>> nn.fuse_conv_bn(nn.ConvTranspose2d(2, 4, 3, stride=2, bias=False), statistics)
    ConvTranspose2d(2, 4, kernel_size=(3, 3), stride=(2, 2))
    """
    _check_layer("fuse_conv_bn", conv)
    return _fuse("fuse_conv_bn", conv, bn)


def _check_layer(function: str, conv: Any) -> None:
    if not isinstance(conv, _ConvNd):
        fail(TypeError, function, "conv", "must be one of pyconv.nn's convolution layers", type(conv))
    if conv.activation is not None:
        fail(ValueError, function, "conv", "must have no activation: it would have to come last", conv.activation)


def _fuse(function: str, conv: _ConvNd, bn: Any) -> _ConvNd:
    if getattr(bn, "training", False):
        fail(ValueError, function, "bn", "must be in eval mode: in train mode it has other statistics", type(bn))
    mean, variance, weight, bias = (_of(function, bn, n) for n in ("running_mean", "running_var", "weight", "bias"))
    eps = bn.get("eps", 1e-5) if isinstance(bn, Mapping) else getattr(bn, "eps", 1e-5)
    fused = copy.deepcopy(conv)
    w, b = _fused(function, conv.weight, conv.bias, mean, variance, eps, weight, bias, conv.transposed, conv.groups)
    fused.weight, fused.bias = w, b
    return fused


def _of(function: str, bn: Any, name: str) -> Any:
    """Return an attribute of a normalisation, a torch tensor as the array it is."""
    try:
        value = bn[name] if isinstance(bn, Mapping) else getattr(bn, name)
    except (KeyError, AttributeError):
        fail(TypeError, function, "bn", f"must have running_mean, running_var, weight and bias: no {name}", type(bn))
    return value.detach().numpy() if hasattr(value, "detach") else value


def _fused(function, conv_w, conv_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, transpose, groups=None):
    """Do what :func:`fuse_conv_bn_weights` documents; `function` names the caller in messages."""
    conv_w = _numbers(function, "conv_w", conv_w, "fc")
    if conv_w.ndim < 2:
        fail(ValueError, function, "conv_w", "must have at least 2 dimensions", f"shape {conv_w.shape}")
    if not isinstance(transpose, bool):
        fail(TypeError, function, "transpose", "must be a bool", transpose)
    eps = _eps(function, bn_eps)
    mean = _numbers(function, "bn_rm", bn_rm)
    inputs, channels = conv_w.shape[:2] if transpose else (1, conv_w.shape[0])
    if groups is None or not transpose:
        groups = mean.size // channels if transpose and channels and mean.size % channels == 0 else 1
    if inputs % groups:
        fail(ValueError, function, "conv_w", f"must have input channels for {groups} groups", f"shape {conv_w.shape}")
    shape = (channels * groups,)
    new_bias = np.zeros(shape, conv_w.dtype) if conv_b is None else _numbers(function, "conv_b", conv_b, "fc")
    variance = _numbers(function, "bn_rv", bn_rv)
    weight = np.ones(shape, mean.dtype) if bn_w is None else _numbers(function, "bn_w", bn_w)
    bias = np.zeros(shape, mean.dtype) if bn_b is None else _numbers(function, "bn_b", bn_b)
    for name, array in (("conv_b", new_bias), ("bn_rm", mean), ("bn_rv", variance), ("bn_w", weight), ("bn_b", bias)):
        if array.shape != shape:
            fail(ValueError, function, name, f"must have shape {shape}", f"shape {array.shape}")
    with np.errstate(all="ignore"):  # a channel that never varied, and no eps: infinite, as in torch
        if (variance + eps < 0).any():
            fail(ValueError, function, "bn_rv", f"must be at least {-eps}", variance.min())
        scale = _wide(weight) / np.sqrt(_wide(variance) + eps)
        total = (_wide(new_bias) - _wide(mean)) * scale + _wide(bias)
        if transpose:  # (groups, inputs of one, outputs of one, ...)
            taps, columns = conv_w.reshape(groups, -1, *conv_w.shape[1:]), (groups, 1, channels)
        else:
            taps, columns = conv_w[None], (1, channels, 1)
        fused = taps * scale.reshape(*columns, *[1] * (conv_w.ndim - 2))
        return fused.reshape(conv_w.shape).astype(conv_w.dtype), total.astype(new_bias.dtype)


def _eps(function: str, bn_eps: Any) -> float:
    if not isinstance(bn_eps, (int, float, np.integer, np.floating)) or isinstance(bn_eps, bool):
        fail(TypeError, function, "bn_eps", "must be a number", bn_eps)
    try:
        return plain_float(bn_eps)
    except ValueError:
        fail(ValueError, function, "bn_eps", "must be in the range of float64", bn_eps)


def _numbers(function: str, name: str, value: Any, kinds: str = "f") -> np.ndarray:
    array = as_array(function, name, value)
    if kind_of(array.dtype) not in kinds:
        rule = "must hold floating-point numbers" if kinds == "f" else "must hold floating-point or complex numbers"
        fail(TypeError, function, name, rule, array.dtype)
    return array


def _wide(array: np.ndarray) -> np.ndarray:
    """Return an array in single precision at least."""
    return array.astype(np.promote_types(array.dtype, np.float32))
