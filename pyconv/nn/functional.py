"""torch.nn.functional's convolutions on NumPy arrays."""

from __future__ import annotations

from ..columns import fold as fold_columns
from ..columns import gather
from ..fold_problem import fold_problem, unfold_problem
from ._calls import conv_transposend, convnd

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "fold",
    "unfold",
]


def conv1d(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1,
    *, padding_mode="zeros", padding_value=0, activation=None, residual=None, accumulate=False, out=None,
    algorithm=None, accuracy=None,
):  # fmt: skip
    """Apply a 1-D convolution (cross-correlation) over an input of several channels.

    Parameters, result and errors as :func:`conv2d`, with inputs (N, C, L) or (C, L) and weights
    (out_channels, C / groups, kernel_w). Here `padding` may also be 'causal': all of it, dilation (kernel - 1), comes
    before the input, so that no output depends on later elements. Like torch.nn.functional.conv1d.

    Examples
    --------
    >>> import numpy as np, pyconv.nn.functional as F
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 1, 16)
    >>> w = np.array([0.1, 0.2, 0.3], np.float32).reshape(1, 1, 3)
    >>> F.conv1d(x, w).round(4)[0, 0, :5].tolist() == np.float32([0.8, 1.4, 2.0, 2.6, 3.2]).tolist()
    True
    >>> F.conv1d(np.float32([[[1, 2, 3]]]), np.float32([[[10, 1]]]), padding="causal")
    array([[[ 1., 12., 23.]]], dtype=float32)
    """
    return convnd(
        "conv1d", 1, input, weight, bias, stride, padding, dilation, groups, padding_mode, padding_value, activation,
        residual, accumulate, out, algorithm, accuracy,
    )  # fmt: skip


def conv2d(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1,
    *, padding_mode="zeros", padding_value=0, activation=None, residual=None, accumulate=False, out=None,
    algorithm=None, accuracy=None,
):  # fmt: skip
    """Apply a 2-D convolution (cross-correlation) over an input of several channels.

    Parameters
    ----------
    input : ndarray
        Shape (N, C, H, W) or, unbatched, (C, H, W). float16, bfloat16 (ml_dtypes'), float32, float64, complex numbers,
        or integers, which wrap around. Any strides: views are read where they lie.
    weight : ndarray or PackedWeight
        Filters of shape (out_channels, C / groups, kernel_h, kernel_w), of the input's dtype; or of shape
        (N, out_channels, C / groups, kernel_h, kernel_w), where each sample has its own. :func:`pyconv.pack`
        saves packing them in every call.
    bias : ndarray, optional
        Shape (out_channels,), of the input's dtype; where each sample has its own filters, also (N, out_channels).
    stride : int or tuple of ints
        Step of the filter, one for all axes or one per axis.
    padding : int, tuple of ints or of pairs, or str
        What is added to both sides of every axis; ((top, bottom), (left, right)) for each side. 'valid' is none; 'same'
        keeps the size and takes stride 1 only, as in torch. 'same_upper' and 'same_lower' give ceil(size / stride)
        outputs, as ONNX's auto_pad; the first is TensorFlow's SAME. An odd total puts one more after, 'same_lower'
        before. No padded copy is made.
    dilation : int or tuple of ints
        Distance of the filter's taps.
    groups : int
        Blocks of channels that are convolved separately; C means depthwise.
    padding_mode : {'zeros', 'constant', 'reflect', 'replicate', 'circular'}
        What the padding holds. 'reflect' takes less than the size on each side, 'circular' the size at most.
    padding_value : number
        What it holds with 'constant', in the input's dtype.
    activation : str or tuple, optional
        What is applied to the sums before they are stored: 'relu', 'relu6', 'leaky_relu' (slope 0.01) or
        ('leaky_relu', slope), 'silu', 'hardswish', 'gelu', 'gelu_tanh' or ('gelu', 'tanh'), 'sigmoid', 'tanh',
        ('clamp', min, max), None standing for no limit. Of torch.nn.functional; for floating-point numbers only.
    residual : ndarray, optional
        What is added to the convolution before the activation: the result's shape and dtype, any strides.
    accumulate : bool
        Whether `out` is the residual: what it holds is added to.
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
        floor((size + padding before and after - dilation (kernel - 1) - 1) / stride) + 1; `out`, or a new array: in
        C order, but channels-last if there is a batch and the strides of input or weight are channels-last.

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
    >>> w = np.ones((1, 1, 3, 3), np.float32)
    >>> F.conv2d(x, w, bias=np.float32([0.5]))
    array([[[[45.5, 54.5],
             [81.5, 90.5]]]], dtype=float32)
    >>> F.conv2d(x, w, padding=((0, 0), (1, 0)), padding_mode="replicate", activation=("clamp", 40, 80))
    array([[[[40., 45., 54.],
             [75., 80., 80.]]]], dtype=float32)

    Filters for each of two samples:

    >>> both = np.stack([w, 2 * w])
    >>> F.conv2d(np.concatenate([x, x]), both)[:, 0, 0, 0]
    array([45., 90.], dtype=float32)
    """
    return convnd(
        "conv2d", 2, input, weight, bias, stride, padding, dilation, groups, padding_mode, padding_value, activation,
        residual, accumulate, out, algorithm, accuracy,
    )  # fmt: skip


def conv3d(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1,
    *, padding_mode="zeros", padding_value=0, activation=None, residual=None, accumulate=False, out=None,
    algorithm=None, accuracy=None,
):  # fmt: skip
    """Apply a 3-D convolution (cross-correlation) over an input of several channels.

    Parameters, result and errors as :func:`conv2d`, with inputs (N, C, D, H, W) or (C, D, H, W) and weights
    (out_channels, C / groups, kernel_d, kernel_h, kernel_w). Like torch.nn.functional.conv3d.

    Examples
    --------
    >>> import numpy as np, pyconv.nn.functional as F
    >>> x = np.ones((1, 2, 4, 4, 4))
    >>> F.conv3d(x, np.ones((3, 2, 3, 3, 3)), stride=2, padding=1).shape
    (1, 3, 2, 2, 2)
    """
    return convnd(
        "conv3d", 3, input, weight, bias, stride, padding, dilation, groups, padding_mode, padding_value, activation,
        residual, accumulate, out, algorithm, accuracy,
    )  # fmt: skip


def conv_transpose1d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1,
    *, activation=None, residual=None, accumulate=False, out=None, algorithm=None, accuracy=None,
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
        activation, residual, accumulate, out, algorithm, accuracy,
    )  # fmt: skip


def conv_transpose2d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1,
    *, activation=None, residual=None, accumulate=False, out=None, algorithm=None, accuracy=None,
):  # fmt: skip
    """Apply a 2-D transposed convolution, the gradient of :func:`conv2d` with respect to its input.

    Also known as a fractionally strided convolution or, wrongly, a deconvolution. It is computed as one convolution
    for each of the stride_h x stride_w phases of the output, which meet different taps; no zeros are put into the
    input.

    Parameters
    ----------
    input : ndarray
        Shape (N, C, H, W) or, unbatched, (C, H, W). float16, bfloat16 (ml_dtypes'), float32, float64, complex numbers,
        or integers, which wrap around. Any strides: views are read where they lie.
    weight : ndarray or PackedWeight
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
    activation, residual, accumulate, out, algorithm, accuracy
        See :func:`conv2d`; an algorithm is used for all phases.

    Returns
    -------
    ndarray
        Shape (N, out_channels, H_out, W_out), each extent
        (size - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1; laid out as by :func:`conv2d`.

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
        activation, residual, accumulate, out, algorithm, accuracy,
    )  # fmt: skip


def conv_transpose3d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1,
    *, activation=None, residual=None, accumulate=False, out=None, algorithm=None, accuracy=None,
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
        activation, residual, accumulate, out, algorithm, accuracy,
    )  # fmt: skip


def unfold(input, kernel_size, dilation=1, padding=0, stride=1):
    """Return the windows that a filter sees of an image, each as a column (im2col).

    Parameters
    ----------
    input : ndarray
        Shape (N, C, H, W) or, unbatched, (C, H, W), of any number type or bool; any strides.
    kernel_size : int or tuple of ints
        Size of the windows, one for both axes or one per axis.
    dilation : int or tuple of ints
        Distance of a window's elements.
    padding : int or tuple of ints
        Zeros that are added to both sides of either axis.
    stride : int or tuple of ints
        Distance of the windows.

    Returns
    -------
    ndarray
        Shape (N, C kernel_h kernel_w, L) or (C kernel_h kernel_w, L), a new array in C order. The L windows are those
        of :func:`conv2d`, row by row; rows are channels, and within them the elements of the window.

    Raises
    ------
    ValueError
        If sizes do not fit together, or an axis other than the batch is empty.
    TypeError
        If an argument is of the wrong kind.
    MemoryError
        If there is no memory for the result.

    See Also
    --------
    fold : adds windows up to an image.
    torch.nn.functional.unfold : the function this one follows.

    Examples
    --------
    >>> import numpy as np, pyconv.nn.functional as F
    >>> x = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    >>> F.unfold(x, (2, 2))
    array([[0., 1.],
           [1., 2.],
           [3., 4.],
           [4., 5.]], dtype=float32)

    A convolution is a matrix product with the windows:

    >>> rng = np.random.default_rng(0)
    >>> x, w = rng.standard_normal((2, 3, 9, 8)), rng.standard_normal((5, 3, 3, 3))
    >>> y = w.reshape(5, -1) @ F.unfold(x, 3, padding=1)
    >>> bool(np.allclose(y.reshape(2, 5, 9, 8), F.conv2d(x, w, padding=1)))
    True
    """
    x, windows = unfold_problem("unfold", input, kernel_size, dilation, padding, stride)
    columns = gather(x, windows)
    (high, wide), (rows, cols) = windows.kernel, windows.positions
    return columns.reshape(*x.shape[:-3], x.shape[-3] * high * wide, rows * cols)


def fold(input, output_size, kernel_size, dilation=1, padding=0, stride=1):
    """Add windows up to the image they are of (col2im), the adjoint of :func:`unfold`.

    Parameters
    ----------
    input : ndarray
        Shape (N, C kernel_h kernel_w, L) or, unbatched, (C kernel_h kernel_w, L), of any number type or bool: what
        :func:`unfold` makes of an image of size `output_size` with the other arguments.
    output_size : int or tuple of ints
        Height and width of the image, one for both axes or one per axis.
    kernel_size, dilation, padding, stride : int or tuple of ints
        As in :func:`unfold`; what falls into the padding is dropped.

    Returns
    -------
    ndarray
        Shape (N, C, *output_size) or (C, *output_size), a new array in C order. float16 and bfloat16 are added in
        float32 and rounded once, where torch rounds every sum; bools are joined by 'or'.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As :func:`unfold`.

    See Also
    --------
    unfold : takes the windows of an image.
    torch.nn.functional.fold : the function this one follows.

    Examples
    --------
    >>> import numpy as np, pyconv.nn.functional as F
    >>> F.fold(np.ones((4, 4), np.float32), (3, 3), 2)
    array([[[1., 2., 1.],
            [2., 4., 2.],
            [1., 2., 1.]]], dtype=float32)
    """
    x, windows = fold_problem("fold", input, output_size, kernel_size, dilation, padding, stride)
    high, wide = windows.kernel
    return fold_columns(x.reshape(*x.shape[:-2], x.shape[-2] // (high * wide), high, wide, *windows.positions), windows)
