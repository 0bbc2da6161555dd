"""What a layer is apart from its arithmetic: named parameters that freeze and thaw, state dicts, copies.

Why a packed weight is never stale
----------------------------------
In train mode a layer packs its arrays anew in every call, so it cannot miss a change. `eval()` copies them into memory
that nobody can write to, the inside of a bytes object, and packs that once per plan. NumPy refuses to make an array
over it writable, and views of the arrays from before do not reach it. Whatever is assigned later (parameters,
attributes, the mode) replaces the plans as a whole, *after* the new value is in place: a call that runs at that time in
another thread may still add to the old ones, which nobody sees any more. So calls need no lock; only changes take one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..problem import fail

if TYPE_CHECKING:
    from typing_extensions import Self

_writers = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child must not inherit a lock whose owner it does not have
    os.register_at_fork(before=_writers.acquire, after_in_parent=_writers.release, after_in_child=_writers.release)


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` returns."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"_IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"


def own_array(array: np.ndarray | None) -> np.ndarray | None:
    """Return the array, or a copy if nobody could write to it."""
    return array if array is None or array.flags.writeable else array.copy()


class Layer:
    """Base of all layers. A subclass has `forward` and enters its parameters, None for an absent one, in `_live`."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        """Make the private state that `__init__` and unpickling both start from."""
        self = super().__new__(cls)
        self.__dict__.update(
            _live={},  # name -> array or None: the parameters of train mode
            _writeable={},  # while frozen: which of them get their writeable flag back
            _frozen=None,  # in eval mode: name -> immutable array (replaced, never changed)
            # While frozen: (shape, strides, dtype) of an input -> (generation, shape of the result, run, packed),
            # and plan -> packed. One tuple, so that they are replaced together.
            _plans=({}, {}),
        )
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """Call `forward`."""
        return self.forward(*args, **kwargs)

    @property
    def training(self) -> bool:
        """True in train mode; assigning it is calling `train`."""
        return self._frozen is None

    @training.setter
    def training(self, mode: bool) -> None:
        self.train(mode)

    def train(self, mode: bool = True) -> Self:
        """Thaw the parameters (or freeze them, for False) and return the layer.

        The arrays from before `eval` come back, the same objects with what they hold by now.
        """
        if not isinstance(mode, bool):
            fail(ValueError, "train", "mode", "must be a bool", mode)
        with _writers:
            if mode and self._frozen is not None:
                self._set_frozen(None)
                for name in self._live:
                    self._thaw(name)
            elif not mode and self._frozen is None:
                try:
                    self._set_frozen({name: self._freeze(name) for name in self._live})
                except MemoryError:
                    for name in self._live:
                        self._thaw(name)
                    raise
        return self

    def eval(self) -> Self:
        """Freeze the parameters, to be packed once for each input shape, and return the layer.

        `weight` and `bias` are immutable until `train` is called. Replacing them is possible.
        """
        return self.train(False)

    def parameters(self, recurse: bool = True) -> Iterator[np.ndarray]:
        """Yield weight and, if there is one, bias. A layer has no children: `recurse` changes nothing."""
        return (array for _, array in self.named_parameters(recurse=recurse))

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, array) pairs, the names led by ``prefix.``. `recurse` changes nothing."""
        del recurse
        return iter([(f"{prefix}.{name}" if prefix else name, array) for name, array in self.state_dict().items()])

    def state_dict(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Return the parameters by name; in train mode they are the layer's own arrays, as in torch."""
        return {prefix + name: self._parameter(name) for name, array in self._live.items() if array is not None}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, *, prefix: str = ""
    ) -> IncompatibleKeys:
        """Copy parameters from a mapping of names to arrays into the layer, rounding them to its dtype.

        Parameters
        ----------
        state_dict : mapping
            NumPy arrays or what ``np.asarray`` reads, such as torch tensors: what :func:`pyconv.load_weights` or
            ``np.load`` of an .npz file returns or the state_dict() of a torch layer will do.
        strict : bool
            Whether missing and unexpected names are errors.
        prefix : str
            What the names of this layer begin with in the state dict of a network, such as "layer1.0.conv1."; all
            others are left alone.

        Returns
        -------
        IncompatibleKeys
            A named tuple (missing_keys, unexpected_keys).

        Raises
        ------
        TypeError
            If `state_dict` is no mapping.
        RuntimeError
            With torch's text, for wrong names and shapes; parameters that fit have been loaded then.
        """
        if not isinstance(state_dict, Mapping):
            fail(TypeError, "load_state_dict", "state_dict", "must be a mapping", type(state_dict))
        if not isinstance(prefix, str):
            fail(TypeError, "load_state_dict", "prefix", "must be a str", prefix)
        names = {prefix + name: name for name, array in self._live.items() if array is not None}
        missing = [key for key in names if key not in state_dict]
        unexpected = [key for key in state_dict if key not in names and str(key).startswith(prefix)]
        errors = []
        if strict and missing:
            errors.append("Missing key(s) in state_dict: {}. ".format(", ".join(f'"{key}"' for key in missing)))
        if strict and unexpected:
            errors.append("Unexpected key(s) in state_dict: {}. ".format(", ".join(f'"{key}"' for key in unexpected)))
        errors += filter(None, (self._load(name, state_dict[key]) for key, name in names.items() if key in state_dict))
        if errors:
            # torch's kind and text, which people search for; problem.fail has another form.
            raise RuntimeError(f"Error(s) in loading state_dict for {type(self).__name__}:\n\t" + "\n\t".join(errors))
        return IncompatibleKeys(missing, unexpected)

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of `repr`."""
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; whichever it is, the plans made before are dropped."""
        with _writers:
            object.__setattr__(self, name, value)
            self._drop_plans()

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy keep: the parameters in effect and the attributes, no caches."""
        private = ("_live", "_writeable", "_frozen", "_plans")
        with _writers:
            return {
                "attributes": {name: value for name, value in self.__dict__.items() if name not in private},
                "parameters": {name: self._parameter(name) for name in self._live},
                "training": self.training,
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["attributes"])
        self._live.update({name: own_array(array) for name, array in state["parameters"].items()})
        self.train(state["training"])

    def _parameter(self, name: str) -> np.ndarray | None:
        frozen = self._frozen
        if frozen is None:
            return self._live[name]
        array = frozen[name]
        # A new array over the same bytes, so that not even the shape of the layer's own one can be assigned to.
        return None if array is None else np.ndarray(array.shape, array.dtype, buffer=array.base)

    def _assign(self, name: str, value: np.ndarray | None) -> None:
        """Make a checked array the parameter."""
        with _writers:
            self._thaw(name)
            self._live[name] = own_array(value)
            if self._frozen is not None:
                self._set_frozen({**self._frozen, name: self._freeze(name)})

    def _overwrite(self, name: str, fill: Callable[[np.ndarray], object]) -> None:
        """Let `fill` change a parameter's own array, in either mode."""
        with _writers:
            self._thaw(name)
            try:
                fill(self._live[name])
            finally:
                if self._frozen is not None:
                    self._set_frozen({**self._frozen, name: self._freeze(name)})

    def _load(self, name: str, value: Any) -> str:
        """Copy one parameter from a state dict and return torch's text for what is wrong with it, or ''."""
        if not hasattr(value, "__array__"):
            expected = "expected numpy.ndarray or array-like object from checkpoint"
            return f'While copying the parameter named "{name}", {expected} but received {type(value)}'
        shape, array = self._live[name].shape, None
        try:
            array = np.asarray(value)
            if array.shape == shape:
                self._overwrite(name, lambda own: np.copyto(own, array, casting="same_kind"))
                return ""
        except Exception as error:  # noqa: BLE001 - what an object's own __array__ raises, too
            found = None if array is None else array.shape
            return (
                f'While copying the parameter named "{name}", whose dimensions in the model are {shape} and whose '
                f"dimensions in the checkpoint are {found}, an exception occurred : {error.args}."
            )
        return (
            f"size mismatch for {name}: copying a param with shape {array.shape} from checkpoint, "
            f"the shape in current model is {shape}."
        )

    def _freeze(self, name: str) -> np.ndarray | None:
        """Make a parameter's own array read-only and return its immutable copy."""
        array = self._live[name]
        if array is None:
            return None
        self._writeable[name] = array.flags.writeable
        array.flags.writeable = False
        return np.ndarray(array.shape, array.dtype, buffer=array.tobytes())

    def _thaw(self, name: str) -> None:
        """Undo what `_freeze` did to a parameter's own array."""
        if self._writeable.pop(name, False):
            # NumPy refuses if it is a view of an array that somebody made read-only in the meantime.
            with suppress(ValueError):
                self._live[name].flags.writeable = True

    def _set_frozen(self, frozen: dict[str, np.ndarray | None] | None) -> None:
        self.__dict__["_frozen"] = frozen
        self._drop_plans()

    def _drop_plans(self) -> None:
        self.__dict__["_plans"] = ({}, {})
