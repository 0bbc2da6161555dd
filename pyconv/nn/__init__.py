"""The part of torch.nn that pyconv offers: convolution layers, their functions, gradients and initialisers.

>>> from pyconv import nn
>>> nn.Conv2d(3, 6, 7, stride=2, padding=3, groups=3, bias=False)
Conv2d(3, 6, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), groups=3, bias=False)
"""

from . import functional, grad, init
from .modules import Conv1d, Conv2d, Conv3d
from .transposed import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "functional",
    "grad",
    "init",
]
