"""The part of torch.nn.utils that pyconv offers."""

from . import fusion

__all__ = ["fusion"]
