"""From a ConvProblem to something that computes it: a row of the compiled table, or NumPy.

A plan knows no arrays. ``plan.pack(weight, bias)`` brings the parameters into the form that the plan reads, once for a
frozen module and in every call for weights that may change; ``plan.run(x, packed, y)`` writes the result into y.
"""

from __future__ import annotations

from functools import lru_cache

from . import config
from .complex_plan import PART, ComplexPlan
from .per_sample import PerSamplePlan
from .problem import ConvProblem, choice, fail
from .reference import ReferencePlan

# NumPy name: the row that computes it, and how its elements are stored (CONV_NATIVE ... of src_c/conv.h).
NATIVE_DTYPES = {
    "float32": ("f32", 0), "float64": ("f64", 0), "float16": ("f32", 1), "bfloat16": ("f32", 2),
    "int8": ("i32", 3), "uint8": ("i32", 4), "int16": ("i32", 5), "uint16": ("i32", 6),
    "int32": ("i32", 0), "uint32": ("i32", 0), "int64": ("i64", 0), "uint64": ("i64", 0),
}  # fmt: skip
INTEGER_ROWS = ("i32", "i64")


def plan_for(problem: ConvProblem, algorithm: str | None = None):
    """Return the plan for a problem on the instruction set in use.

    Parameters
    ----------
    problem : ConvProblem
    algorithm : str, optional
        A name of :func:`algorithms`. By default the first row of the table that accepts the problem, or 'reference'
        where the compiled core is missing or has no kernels for the dtype.

    Returns
    -------
    NativePlan, ComplexPlan or ReferencePlan

    Raises
    ------
    ValueError
        If there is no such algorithm for this dtype, or it cannot compute this problem.
    """
    if algorithm is not None:
        choice(f"conv{problem.rank}d", "algorithm", algorithm, algorithms(problem.dtype))
    return _plan(problem, algorithm, config.isa())


def per_sample_plan(problem: ConvProblem, algorithm: str | None = None) -> PerSamplePlan:
    """Return the plan for a problem whose weights have filters for each sample, in an axis before the others."""
    return PerSamplePlan(problem, lambda grouped: plan_for(grouped, algorithm))


@lru_cache(maxsize=1024)
def _plan(problem: ConvProblem, algorithm: str | None, isa: str):
    if config.REFERENCE in (algorithm, isa):
        return ReferencePlan(problem)
    if problem.dtype in PART and not problem.activation and not problem.pad_value:
        return ComplexPlan(problem, lambda part: _plan(part, algorithm, isa))
    if problem.dtype not in NATIVE_DTYPES:
        return ReferencePlan(problem)
    native, x_type = NATIVE_DTYPES[problem.dtype]
    if problem.activation and native in INTEGER_ROWS:  # they wrap, which an activation must not see
        return ReferencePlan(problem)
    y_type = NATIVE_DTYPES[problem.out_dtype][1]
    try:
        fields = problem._asdict() | {"x_type": x_type, "y_type": y_type}
        return config.core.NativePlan(fields, problem.rank, isa, native, algorithm)
    except LookupError:
        rule = f"must accept {problem.oc} output channels per group and these sizes; im2col_gemm accepts everything"
        fail(ValueError, f"conv{problem.rank}d", "algorithm", rule, algorithm)


def algorithms(dtype: str = "float32") -> tuple[str, ...]:
    """Return the names that ``algorithm=`` takes for a dtype, in order of preference; 'reference' is always the last.

    Examples
    --------
    >>> from pyconv.plan import algorithms
    >>> algorithms("longdouble")
    ('reference',)
    """
    dtype = PART.get(dtype, dtype)
    native = config.isa() != config.REFERENCE and dtype in NATIVE_DTYPES
    compiled = config.core.algorithms(config.isa(), NATIVE_DTYPES[dtype][0]) if native else ()
    return (*compiled, config.REFERENCE)
