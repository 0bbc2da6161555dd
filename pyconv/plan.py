"""From a ConvProblem to something that computes it: a row of the compiled table, or NumPy.

A plan knows no arrays. ``plan.pack(weight, bias)`` brings the parameters into the form that the plan reads, once for a
frozen module and in every call for weights that may change; ``plan.run(x, packed, y)`` writes the result into y.
"""

from __future__ import annotations

from functools import lru_cache

from . import config
from .problem import ConvProblem, choice, fail
from .reference import ReferencePlan

NATIVE_DTYPES = {"float32": "f32", "float64": "f64"}


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
    NativePlan or ReferencePlan

    Raises
    ------
    ValueError
        If there is no such algorithm for this dtype, or it cannot compute this problem.
    """
    if algorithm is not None:
        choice(f"conv{problem.rank}d", "algorithm", algorithm, algorithms(problem.dtype))
    return _plan(problem, algorithm, config.isa())


@lru_cache(maxsize=1024)
def _plan(problem: ConvProblem, algorithm: str | None, isa: str):
    native = NATIVE_DTYPES.get(problem.dtype) if isa != config.REFERENCE else None
    if algorithm == config.REFERENCE or (algorithm is None and native is None):
        return ReferencePlan(problem)
    try:
        return config.core.NativePlan(problem._asdict(), problem.rank, isa, native, algorithm)
    except LookupError:
        rule = f"must accept {problem.oc} output channels per group and these sizes; im2col_gemm accepts everything"
        fail(ValueError, f"conv{problem.rank}d", "algorithm", rule, algorithm)


def algorithms(dtype: str = "float32") -> tuple[str, ...]:
    """Return the names that ``algorithm=`` takes for a dtype, in order of preference; 'reference' is always the last.

    Examples
    --------
    >>> from pyconv.plan import algorithms
    >>> algorithms("int32")
    ('reference',)
    """
    native = NATIVE_DTYPES.get(dtype) if config.isa() != config.REFERENCE else None
    compiled = config.core.algorithms(config.isa(), native) if native else ()
    return (*compiled, config.REFERENCE)
