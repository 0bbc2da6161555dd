"""The part of torch.nn that pyconv offers: convolution layers, functions, gradients, initialisers, and fusion.

>>> from pyconv import nn
>>> nn.Conv2d(3, 6, 7, stride=2, padding=3, groups=3, bias=False)
Conv2d(3, 6, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), groups=3, bias=False)
"""

from . import functional, grad, init, utils
from .fold import Fold, Unfold
from .modules import Conv1d, Conv2d, Conv3d
from .transposed import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from .utils.fusion import fuse_conv_bn, fuse_conv_bn_weights

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Fold",
    "Unfold",
    "functional",
    "fuse_conv_bn",
    "fuse_conv_bn_weights",
    "grad",
    "init",
    "utils",
]
