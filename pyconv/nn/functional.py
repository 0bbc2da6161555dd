"""torch.nn.functional's convolutions on NumPy arrays: arguments -> ConvProblem -> plan -> result."""

from __future__ import annotations

import numpy as np

from .. import config
from ..plan import plan_for
from ..problem import check_arrays, conv_problem, output_array, positive_int
from ..transposed import transposed_plan
from ..transposed_problem import transposed_problem

__all__ = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]


def convnd(
    function, rank, input, weight, bias, stride, padding, dilation, groups,
    padding_mode="zeros", out=None, algorithm=None, accuracy=None,
):  # fmt: skip
    """Compute what conv1d, conv2d and conv3d document; `function` names the caller in messages."""
    x, weight, bias = check_arrays(function, rank, input, weight, bias)
    exact = config.is_exact(function, accuracy)
    raw = algorithm is None  # an algorithm that was asked for need not be worth its packing
    problem = conv_problem(function, rank, x, weight, stride, padding, dilation, groups, padding_mode, exact, raw)
    plan = plan_for(problem, algorithm)
    shape = problem.output_shape if x.ndim == rank + 2 else problem.output_shape[1:]
    return compute(function, plan, x, weight, bias, shape, out)


def conv_transposend(
    function, rank, input, weight, bias, stride, padding, output_padding, groups, dilation,
    out=None, algorithm=None, accuracy=None,
):  # fmt: skip
    """Compute what conv_transpose1d, 2d and 3d document; `function` names the caller in messages."""
    groups = positive_int(function, "groups", groups)
    x, weight, bias = check_arrays(function, rank, input, weight, bias, transposed_groups=groups)
    exact = config.is_exact(function, accuracy)
    problem = transposed_problem(function, rank, x, weight, stride, padding, output_padding, groups, dilation, exact)
    plan = transposed_plan(function, problem, algorithm)
    shape = problem.input_shape if x.ndim == rank + 2 else problem.input_shape[1:]
    return compute(function, plan, x, weight, bias, shape, out)


def compute(function, plan, x, weight, bias, shape, out=None):
    """Run a plan on arrays that were checked, into a new array or into `out`, which is checked here."""
    if out is None:
        y = np.empty(shape, x.dtype)
        if y.size:
            plan.run(x, plan.pack(weight, bias), y)
        return y
    out = output_array(function, out, shape, x.dtype)
    y = out if can_write_directly(out, (x, weight, bias)) else np.empty(shape, x.dtype)
    if y.size:
        plan.run(x, plan.pack(weight, bias), y)
    if y is not out:
        out[...] = y
    return out


def can_write_directly(out, arguments) -> bool:
    """Tell whether the kernels may write to `out`: aligned, and apart from everything they read."""
    if not out.flags.aligned or any(stride % out.itemsize for stride in out.strides):
        return False
    return not any(np.may_share_memory(out, a) for a in arguments if a is not None)


def conv1d(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, out=None, algorithm=None, accuracy=None
):
    """Apply a 1-D convolution (cross-correlation) over an input of several channels.

    Parameters
    ----------
    input : ndarray
        Shape (N, C, L) or, unbatched, (C, L). float16, bfloat16 (ml_dtypes'), float32,
        float64, complex numbers, or integers, which wrap around. Any strides: views are read where they lie.
    weight : ndarray
        Filters of shape (out_channels, C / groups, kernel_w), of the input's dtype.
    bias : ndarray, optional
        Shape (out_channels,), of the input's dtype.
    stride : int or tuple of ints
        Step of the filter, one for all axes or one per axis.
    padding : int, tuple of ints, 'valid' or 'same'
        Zeros added on both sides of every axis. 'valid' is none; 'same' keeps the size (stride 1 only), where an
        odd total puts the extra zero after, as torch does.
    dilation : int or tuple of ints
        Distance of the filter's taps.
    groups : int
        Blocks of channels that are convolved separately; C means depthwise.
    out : ndarray, optional
        Where to write: the result's shape and dtype, any strides without overlapping elements. It may overlap an
        argument; the result is then computed aside first.
    algorithm : str, optional
        A row of the table of algorithms; by default the first that accepts the problem.
    accuracy : {'fast', 'exact'}, optional
        By default what :func:`pyconv.set_accuracy` says.

    Returns
    -------
    ndarray
        Shape (N, out_channels, L_out), each extent
        floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1; a new array in C order, or `out`.

    Raises
    ------
    ValueError
        If sizes, channels or values do not fit together.
    TypeError
        If an argument is of the wrong kind: lists, mixed dtypes, masked arrays, stride=1.5 or True.
    MemoryError
        If there is no memory for the result.

    See Also
    --------
    torch.nn.functional.conv1d : the function this one follows.

    Examples
    --------
    >>> import numpy as np, pyconv.nn.functional as F
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 1, 16)
    >>> w = np.array([0.1, 0.2, 0.3], np.float32).reshape(1, 1, 3)
    >>> F.conv1d(x, w).round(4)[0, 0, :5].tolist() == np.float32([0.8, 1.4, 2.0, 2.6, 3.2]).tolist()
    True
    """
    return convnd(
        "conv1d", 1, input, weight, bias, stride, padding, dilation, groups,
        out=out, algorithm=algorithm, accuracy=accuracy,
    )  # fmt: skip


def conv2d(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, out=None, algorithm=None, accuracy=None
):
    """Apply a 2-D convolution (cross-correlation) over an input of several channels.

    Parameters
    ----------
    input : ndarray
        Shape (N, C, H, W) or, unbatched, (C, H, W). float16, bfloat16 (ml_dtypes'), float32,
        float64, complex numbers, or integers, which wrap around. Any strides: views are read where they lie.
    weight : ndarray
        Filters of shape (out_channels, C / groups, kernel_h, kernel_w), of the input's dtype.
    bias : ndarray, optional
        Shape (out_channels,), of the input's dtype.
    stride : int or tuple of ints
        Step of the filter, one for all axes or one per axis.
    padding : int, tuple of ints, 'valid' or 'same'
        Zeros added on both sides of every axis. 'valid' is none; 'same' keeps the size (stride 1 only), where an
        odd total puts the extra zero after, as torch does.
    dilation : int or tuple of ints
        Distance of the filter's taps.
    groups : int
        Blocks of channels that are convolved separately; C means depthwise.
    out : ndarray, optional
        Where to write: the result's shape and dtype, any strides without overlapping elements. It may overlap an
        argument; the result is then computed aside first.
    algorithm : str, optional
        A row of the table of algorithms; by default the first that accepts the problem.
    accuracy : {'fast', 'exact'}, optional
        By default what :func:`pyconv.set_accuracy` says.

    Returns
    -------
    ndarray
        Shape (N, out_channels, H_out, W_out), each extent
        floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1; a new array in C order, or `out`.

    Raises
    ------
    ValueError
        If sizes, channels or values do not fit together.
    TypeError
        If an argument is of the wrong kind: lists, mixed dtypes, masked arrays, stride=1.5 or True.
    MemoryError
        If there is no memory for the result.

    See Also
    --------
    torch.nn.functional.conv2d : the function this one follows.

    Examples
    --------
    >>> import numpy as np, pyconv.nn.functional as F
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    >>> F.conv2d(x, np.ones((1, 1, 3, 3), np.float32), bias=np.float32([0.5]))
    array([[[[45.5, 54.5],
             [81.5, 90.5]]]], dtype=float32)
    """
    return convnd(
        "conv2d", 2, input, weight, bias, stride, padding, dilation, groups,
        out=out, algorithm=algorithm, accuracy=accuracy,
    )  # fmt: skip


def conv3d(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, out=None, algorithm=None, accuracy=None
):
    """Apply a 3-D convolution (cross-correlation) over an input of several channels.

    Parameters
    ----------
    input : ndarray
        Shape (N, C, D, H, W) or, unbatched, (C, D, H, W). float16, bfloat16 (ml_dtypes'), float32,
        float64, complex numbers, or integers, which wrap around. Any strides: views are read where they lie.
    weight : ndarray
        Filters of shape (out_channels, C / groups, kernel_d, kernel_h, kernel_w), of the input's dtype.
    bias : ndarray, optional
        Shape (out_channels,), of the input's dtype.
    stride : int or tuple of ints
        Step of the filter, one for all axes or one per axis.
    padding : int, tuple of ints, 'valid' or 'same'
        Zeros added on both sides of every axis. 'valid' is none; 'same' keeps the size (stride 1 only), where an
        odd total puts the extra zero after, as torch does.
    dilation : int or tuple of ints
        Distance of the filter's taps.
    groups : int
        Blocks of channels that are convolved separately; C means depthwise.
    out : ndarray, optional
        Where to write: the result's shape and dtype, any strides without overlapping elements. It may overlap an
        argument; the result is then computed aside first.
    algorithm : str, optional
        A row of the table of algorithms; by default the first that accepts the problem.
    accuracy : {'fast', 'exact'}, optional
        By default what :func:`pyconv.set_accuracy` says.

    Returns
    -------
    ndarray
        Shape (N, out_channels, D_out, H_out, W_out), each extent
        floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1; a new array in C order, or `out`.

    Raises
    ------
    ValueError
        If sizes, channels or values do not fit together.
    TypeError
        If an argument is of the wrong kind: lists, mixed dtypes, masked arrays, stride=1.5 or True.
    MemoryError
        If there is no memory for the result.

    See Also
    --------
    torch.nn.functional.conv3d : the function this one follows.

    Examples
    --------
    >>> import numpy as np, pyconv.nn.functional as F
    >>> x = np.ones((1, 2, 4, 4, 4))
    >>> F.conv3d(x, np.ones((3, 2, 3, 3, 3)), stride=2, padding=1).shape
    (1, 3, 2, 2, 2)
    """
    return convnd(
        "conv3d", 3, input, weight, bias, stride, padding, dilation, groups,
        out=out, algorithm=algorithm, accuracy=accuracy,
    )  # fmt: skip


def conv_transpose1d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1,
    *, out=None, algorithm=None, accuracy=None,
):  # fmt: skip
    """Apply a 1-D transposed convolution, the gradient of :func:`conv1d` with respect to its input.

    Parameters, result and errors as :func:`conv_transpose2d`, with inputs (N, C, L) or (C, L) and weights
    (C, out_channels / groups, kernel_w). Like torch.nn.functional.conv_transpose1d.

    Examples
    --------
    >>> import numpy as np, pyconv.nn.functional as F
    >>> F.conv_transpose1d(np.float32([[[1, 2]]]), np.float32([[[1, 10, 100]]]), stride=2)
    array([[[  1.,  10., 102.,  20., 200.]]], dtype=float32)
    """
    return conv_transposend(
        "conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation,
        out=out, algorithm=algorithm, accuracy=accuracy,
    )  # fmt: skip


def conv_transpose2d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1,
    *, out=None, algorithm=None, accuracy=None,
):  # fmt: skip
    """Apply a 2-D transposed convolution, the gradient of :func:`conv2d` with respect to its input.

    Also known as a fractionally strided convolution or, wrongly, a deconvolution. It is computed as one convolution
    for each of the stride_h x stride_w phases of the output, which meet different taps; no zeros are put into the
    input.

    Parameters
    ----------
    input : ndarray
        Shape (N, C, H, W) or, unbatched, (C, H, W). float16, bfloat16 (ml_dtypes'), float32,
        float64, complex numbers, or integers, which wrap around. Any strides: views are read where they lie.
    weight : ndarray
        Filters of shape (C, out_channels / groups, kernel_h, kernel_w), of the input's dtype.
    bias : ndarray, optional
        Shape (out_channels,), of the input's dtype.
    stride : int or tuple of ints
        Distance in the output of what neighbours in the input are spread to, one for all axes or one per axis.
    padding : int or tuple of ints
        What is cut off from both sides of every axis of the output.
    output_padding : int or tuple of ints
        What is added to the end of every axis of the output, less than stride or dilation: a convolution with a
        stride has the same output size for several input sizes, and this tells which of them is wanted.
    groups : int
        Blocks of channels that are convolved separately.
    dilation : int or tuple of ints
        Distance of the filter's taps.
    out, algorithm, accuracy
        See :func:`conv2d`; an algorithm is used for all phases.

    Returns
    -------
    ndarray
        Shape (N, out_channels, H_out, W_out), each extent
        (size - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1; a new array in C order, or `out`.

    Raises
    ------
    ValueError
        If sizes, channels or values do not fit together.
    TypeError
        If an argument is of the wrong kind: lists, mixed dtypes, masked arrays, stride=1.5, padding='same'.
    MemoryError
        If there is no memory for the result.

    See Also
    --------
    torch.nn.functional.conv_transpose2d : the function this one follows.

    Examples
    --------
    >>> import numpy as np, pyconv.nn.functional as F
    >>> x = np.float32([[[[1, 2], [3, 4]]]])
    >>> F.conv_transpose2d(x, np.ones((1, 1, 2, 2), np.float32), stride=2)
    array([[[[1., 1., 2., 2.],
             [1., 1., 2., 2.],
             [3., 3., 4., 4.],
             [3., 3., 4., 4.]]]], dtype=float32)
    """
    return conv_transposend(
        "conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation,
        out=out, algorithm=algorithm, accuracy=accuracy,
    )  # fmt: skip


def conv_transpose3d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1,
    *, out=None, algorithm=None, accuracy=None,
):  # fmt: skip
    """Apply a 3-D transposed convolution, the gradient of :func:`conv3d` with respect to its input.

    Parameters, result and errors as :func:`conv_transpose2d`, with inputs (N, C, D, H, W) or (C, D, H, W) and weights
    (C, out_channels / groups, kernel_d, kernel_h, kernel_w). Like torch.nn.functional.conv_transpose3d.

    Examples
    --------
    >>> import numpy as np, pyconv.nn.functional as F
    >>> F.conv_transpose3d(np.ones((1, 2, 4, 4, 4)), np.ones((2, 3, 3, 3, 3)), stride=2, output_padding=1).shape
    (1, 3, 10, 10, 10)
    """
    return conv_transposend(
        "conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups, dilation,
        out=out, algorithm=algorithm, accuracy=accuracy,
    )  # fmt: skip
