"""torch.nn.Conv* for CPU-only Python: NumPy arrays in, NumPy arrays out.

>>> import numpy as np
>>> import pyconv.nn as nn
>>> conv = nn.Conv2d(3, 6, 3, padding=1).eval()
>>> conv(np.zeros((1, 3, 32, 32), np.float32)).shape
(1, 6, 32, 32)
"""

__version__ = "0.1.0"

from . import nn
from .config import get_accuracy, get_num_threads, set_accuracy, set_num_threads, show_config
from .explain import explain
from .nn.functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from .nn.init import manual_seed
from .packing import PackedWeight, pack
from .weights import load_weights, save_weights

__all__ = [
    "PackedWeight",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "explain",
    "get_accuracy",
    "get_num_threads",
    "load_weights",
    "manual_seed",
    "nn",
    "pack",
    "save_weights",
    "set_accuracy",
    "set_num_threads",
    "show_config",
]
