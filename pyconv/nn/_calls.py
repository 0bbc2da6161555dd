"""What the functional calls have in common: arguments -> ConvProblem -> plan -> result, and the short way there.

Checking arguments and finding the plan takes longer than a small convolution. So what came of it is kept, by everything
that it depends on: shapes, strides and dtypes of the arrays and the values of the other arguments. What the arrays hold
is not: weights are packed in every call.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import config
from ..activation import activation_fields
from ..arrays import check_arrays
from ..packed import PackedWeight, taken_apart
from ..per_sample import first_filters
from ..plan import per_sample_plan, plan_for
from ..problem import conv_problem, positive_int
from ..result import channels_last_result, compute
from ..transposed import transposed_plan
from ..transposed_problem import transposed_problem

MOST_CALLS = 1024
SIZES = frozenset((int, str))
OPTIONS = frozenset((int, float, str, type(None)))

_known: dict[tuple, Call] = {}


class Call(NamedTuple):
    """What a call comes down to."""

    generation: int  # of the settings it was made under
    plan: object
    shape: tuple[int, ...]
    channels_last: bool
    form: object  # of the packed weights: what they depend on beside their values


def convnd(
    function, rank, input, weight, bias, stride, padding, dilation, groups, padding_mode, padding_value, activation,
    residual, accumulate, out, algorithm, accuracy,
):  # fmt: skip
    """Compute what conv1d, conv2d and conv3d document; `function` names the caller in messages."""
    sizes = stride, padding, dilation, groups
    options = padding_mode, padding_value, activation, algorithm, accuracy
    return called(conv_call, function, rank, input, weight, bias, sizes, options, residual, accumulate, out)


def conv_call(function, rank, given, sizes, options, key=None) -> tuple[Call, tuple]:
    """Return what a call of conv1d, conv2d or conv3d comes down to, and its arrays, checked."""
    arrays = check_arrays(function, rank, *given, per_sample=True)
    padding_mode, padding_value, activation, algorithm, accuracy, form = options
    x, w = arrays[:2]
    generation, exact = config.generation(), config.is_exact(function, accuracy)
    of_samples = w.ndim == rank + 3
    problem = conv_problem(
        function, rank, x, first_filters(w) if of_samples else w, *sizes, padding_mode, exact,
        # An algorithm that was asked for need not be worth its packing, nor one that is packed for many calls.
        algorithm is None and form is None, padding_value, activation_fields(function, activation, x.dtype),
    )  # fmt: skip
    shape = problem.output_shape[x.ndim < rank + 2 :]
    plan = per_sample_plan(problem, algorithm) if of_samples else plan_for(problem, algorithm)
    layout = not of_samples and result_layout(x, given[1], rank, form)
    # Packed weights don't depend on the batch, unless they do themselves.
    of_form = problem if of_samples else problem._replace(n=1)
    call = Call(generation, plan, shape, layout, form and form_of(plan, of_form))
    remember(key, call, arrays, given)
    return call, arrays


def conv_transposend(
    function, rank, input, weight, bias, stride, padding, output_padding, groups, dilation, activation,
    residual, accumulate, out, algorithm, accuracy,
):  # fmt: skip
    """Compute what conv_transpose1d, 2d and 3d document; `function` names the caller in messages."""
    sizes, options = (stride, padding, output_padding, groups, dilation), (activation, algorithm, accuracy)
    return called(conv_transpose_call, function, rank, input, weight, bias, sizes, options, residual, accumulate, out)


def called(make, function, rank, input, weight, bias, sizes, options, residual, accumulate, out):
    """Compute a call: as the same arguments came to it before, or as `make` says."""
    packing, form = None, None
    if type(weight) is PackedWeight:
        packing, weight, bias, form = taken_apart(function, weight, bias)
    options = (*options, form)
    key = key_of(function, input, weight, bias, sizes, options)
    call, arrays = _known.get(key), (input, weight, bias)
    if call is None or call.generation != config.generation():
        call, arrays = make(function, rank, arrays, sizes, options, key)
    packed = None if packing is None else packing.packed_for(call)
    _, plan, shape, layout, _ = call
    return compute(function, plan, *arrays, shape, layout, out, residual, accumulate, packed)


def conv_transpose_call(function, rank, given, sizes, options, key=None) -> tuple[Call, tuple]:
    """Return for conv_transpose1d, 2d and 3d what :func:`conv_call` does."""
    stride, padding, output_padding, groups, dilation = sizes
    activation, algorithm, accuracy, form = options
    groups = positive_int(function, "groups", groups)
    arrays = check_arrays(function, rank, *given, transposed_groups=groups)
    x, w = arrays[:2]
    generation, exact = config.generation(), config.is_exact(function, accuracy)
    problem = transposed_problem(
        function, rank, x, w, stride, padding, output_padding, groups, dilation, exact,
        activation_fields(function, activation, x.dtype),
    )  # fmt: skip
    shape = problem.input_shape[x.ndim < rank + 2 :]
    plan = transposed_plan(function, problem, algorithm)
    layout = result_layout(x, given[1], rank, form)
    call = Call(generation, plan, shape, layout, form and form_of(plan, problem._replace(n=1)))
    remember(key, call, arrays, given)
    return call, arrays


def form_of(plan, problem) -> tuple:
    """Return what packed weights depend on: the plan's kind and choices, and the problem."""
    return type(plan), problem, plan.algorithm, plan.isa


def result_layout(x, weight, rank, form) -> bool:
    """Tell whether a new result is channels-last; `form` is what :func:`taken_apart` told of the weight."""
    return channels_last_result(x, weight, rank) or (form == "channels last" and x.ndim == rank + 2)


def key_of(function, input, weight, bias, sizes, options) -> tuple | None:
    """Return all that a call depends on but what the arrays hold; None where equal keys might mean different calls.

    True and 1.0 equal 1, but are no sizes, so these must be ints, words and tuples of them. A weight that is not
    aligned is copied for its call alone.
    """
    if type(input) is not np.ndarray or type(weight) is not np.ndarray or not weight.flags.aligned:
        return None
    for size in sizes:
        if type(size) is not int and not are_all(SIZES, size):
            return None
    for option in options:
        if option is not None and type(option) is not str and not are_all(OPTIONS, option):
            return None
    if bias is None:
        form = None
    elif type(bias) is np.ndarray:
        form = bias.shape, bias.strides, bias.dtype
    else:
        return None
    return (
        function, input.shape, input.strides, input.dtype, weight.shape, weight.strides, weight.dtype, form,
        sizes, options,
    )  # fmt: skip


def are_all(types: frozenset[type], value: object) -> bool:
    """Tell whether a value, or everything in a tuple and in the tuples in it, is of these types."""
    return type(value) in types or (type(value) is tuple and all(are_all(types, v) for v in value))


def remember(key: tuple | None, call: Call, checked: tuple, given: tuple) -> None:
    """Keep a call, if no array had to be converted for it."""
    if key is None or any(a is not b for a, b in zip(checked, given, strict=True)):
        return
    if len(_known) >= MOST_CALLS:
        _known.clear()
    _known[key] = call
