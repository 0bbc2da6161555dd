"""torch.nn.grad's functions on NumPy arrays: gradients of convolutions with respect to input and weight.

Both are ordinary convolutions (pyconv/transposed.py) and run on the same kernels. Batches only, as in torch. Of complex
convolutions they are torch.autograd's: what the gradient is multiplied by is conjugated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import config
from ..transposed import transposed_plan, weight_gradient_plan
from ..transposed_problem import gradient_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .modules import Ints

__all__ = ["conv1d_input", "conv1d_weight", "conv2d_input", "conv2d_weight", "conv3d_input", "conv3d_weight"]


def _input_gradient(
    function, rank, input_size, weight, grad_output, stride, padding, dilation, groups, algorithm, accuracy
):
    exact = config.is_exact(function, accuracy)
    problem, weight, grad_output = gradient_problem(
        function, rank, input_size, weight, grad_output, stride, padding, dilation, groups, exact
    )
    plan = transposed_plan(function, problem, algorithm)
    y = np.empty(problem.input_shape, weight.dtype)
    if y.size:
        plan.run(grad_output, plan.pack(_conjugated(weight), None), y)
    return y


def _weight_gradient(
    function, rank, input, weight_size, grad_output, stride, padding, dilation, groups, algorithm, accuracy
):
    exact = config.is_exact(function, accuracy)
    problem, x, grad_output = gradient_problem(
        function, rank, input, weight_size, grad_output, stride, padding, dilation, groups, exact
    )
    plan = weight_gradient_plan(function, problem, algorithm)
    y = np.empty(problem.weight_shape, x.dtype)
    if y.size:
        plan.run(_conjugated(x), grad_output, y)
    return y


def _conjugated(array):
    return array.conj() if array.dtype.kind == "c" else array


def conv1d_input(
    input_size: Sequence[int],
    weight: np.ndarray,
    grad_output: np.ndarray,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    algorithm: str | None = None,
    accuracy: str | None = None,
) -> np.ndarray:
    """Return the gradient of :func:`~pyconv.nn.functional.conv1d` with respect to its input.

    Arguments, result and errors as :func:`conv2d_input`, with one axis instead of two. Like
    torch.nn.grad.conv1d_input.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> nn.grad.conv1d_input((1, 1, 4), np.float32([[[1, 10]]]), np.float32([[[1, 2, 3]]]))
    array([[[ 1., 12., 23., 30.]]], dtype=float32)
    """
    return _input_gradient(
        "conv1d_input", 1, input_size, weight, grad_output, stride, padding, dilation, groups, algorithm, accuracy
    )


def conv1d_weight(
    input: np.ndarray,
    weight_size: Sequence[int],
    grad_output: np.ndarray,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    algorithm: str | None = None,
    accuracy: str | None = None,
) -> np.ndarray:
    """Return the gradient of :func:`~pyconv.nn.functional.conv1d` with respect to its weight.

    Arguments, result and errors as :func:`conv2d_weight`, with one axis instead of two. Like
    torch.nn.grad.conv1d_weight.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> nn.grad.conv1d_weight(np.float32([[[1, 2, 3]]]), (1, 1, 2), np.float32([[[1, 10]]]))
    array([[[21., 32.]]], dtype=float32)
    """
    return _weight_gradient(
        "conv1d_weight", 1, input, weight_size, grad_output, stride, padding, dilation, groups, algorithm, accuracy
    )


def conv2d_input(
    input_size: Sequence[int],
    weight: np.ndarray,
    grad_output: np.ndarray,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    algorithm: str | None = None,
    accuracy: str | None = None,
) -> np.ndarray:
    """Return the gradient of :func:`~pyconv.nn.functional.conv2d` with respect to its input.

    Parameters
    ----------
    input_size : sequence of ints
        The input's shape (N, C, H, W).
    weight : ndarray
        Filters of shape (out_channels, C / groups, kernel_h, kernel_w), of any of conv2d's dtypes; complex ones are
        conjugated, as torch.autograd does.
    grad_output : ndarray
        The gradient with respect to the convolution's output: that output's shape, the weight's dtype, any strides.
    stride, padding, dilation : int or tuple of ints
        What the convolution was called with.
    groups : int
        The same.
    algorithm, accuracy
        See :func:`~pyconv.nn.functional.conv2d`.

    Returns
    -------
    ndarray
        Shape `input_size`; a new array in C order.

    Raises
    ------
    ValueError
        If sizes, channels or values do not fit together, or there is no batch axis.
    TypeError
        If an argument is of the wrong kind: lists as arrays, mixed dtypes, padding='same'.
    MemoryError
        If there is no memory for the result.

    See Also
    --------
    torch.nn.grad.conv2d_input : the function this one follows.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> nn.grad.conv2d_input((1, 1, 3, 3), np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2)))
    array([[[[1., 2., 1.],
             [2., 4., 2.],
             [1., 2., 1.]]]])
    """
    return _input_gradient(
        "conv2d_input", 2, input_size, weight, grad_output, stride, padding, dilation, groups, algorithm, accuracy
    )


def conv2d_weight(
    input: np.ndarray,
    weight_size: Sequence[int],
    grad_output: np.ndarray,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    algorithm: str | None = None,
    accuracy: str | None = None,
) -> np.ndarray:
    """Return the gradient of :func:`~pyconv.nn.functional.conv2d` with respect to its weight.

    Parameters
    ----------
    input : ndarray
        The convolution's input, shape (N, C, H, W), of any of conv2d's dtypes; complex ones are conjugated, as
        torch.autograd does.
    weight_size : sequence of ints
        The weight's shape (out_channels, C / groups, kernel_h, kernel_w).
    grad_output : ndarray
        The gradient with respect to the convolution's output: that output's shape, the input's dtype, any strides.
    stride, padding, dilation, groups, algorithm, accuracy
        See :func:`conv2d_input`.

    Returns
    -------
    ndarray
        Shape `weight_size`; a new array in C order.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As :func:`conv2d_input`.

    See Also
    --------
    torch.nn.grad.conv2d_weight : the function this one follows.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> nn.grad.conv2d_weight(x, (1, 1, 2, 2), np.ones((1, 1, 2, 2)))
    array([[[[ 8., 12.],
             [20., 24.]]]])
    """
    return _weight_gradient(
        "conv2d_weight", 2, input, weight_size, grad_output, stride, padding, dilation, groups, algorithm, accuracy
    )


def conv3d_input(
    input_size: Sequence[int],
    weight: np.ndarray,
    grad_output: np.ndarray,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    algorithm: str | None = None,
    accuracy: str | None = None,
) -> np.ndarray:
    """Return the gradient of :func:`~pyconv.nn.functional.conv3d` with respect to its input.

    Arguments, result and errors as :func:`conv2d_input`, with three axes instead of two. Like
    torch.nn.grad.conv3d_input.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> nn.grad.conv3d_input((2, 4, 5, 6, 7), np.ones((8, 4, 3, 3, 3)), np.ones((2, 8, 3, 4, 5))).shape
    (2, 4, 5, 6, 7)
    """
    return _input_gradient(
        "conv3d_input", 3, input_size, weight, grad_output, stride, padding, dilation, groups, algorithm, accuracy
    )


def conv3d_weight(
    input: np.ndarray,
    weight_size: Sequence[int],
    grad_output: np.ndarray,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    algorithm: str | None = None,
    accuracy: str | None = None,
) -> np.ndarray:
    """Return the gradient of :func:`~pyconv.nn.functional.conv3d` with respect to its weight.

    Arguments, result and errors as :func:`conv2d_weight`, with three axes instead of two. Like
    torch.nn.grad.conv3d_weight.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> nn.grad.conv3d_weight(np.ones((2, 4, 5, 6, 7)), (8, 4, 3, 3, 3), np.ones((2, 8, 3, 4, 5))).shape
    (8, 4, 3, 3, 3)
    """
    return _weight_gradient(
        "conv3d_weight", 3, input, weight_size, grad_output, stride, padding, dilation, groups, algorithm, accuracy
    )
