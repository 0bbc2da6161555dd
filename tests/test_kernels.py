"""Every row of the kernel table that runs here, x every algorithm x dtype, against the oracle.

The reference path goes through the same problems. The last test asserts that no row was left out.
"""

import functools
import itertools
import platform
from collections import Counter

import numpy as np
import pytest
from oracle import (
    KINDS,
    _core,
    algorithms,
    bound,
    check,
    cpu_flags,
    make_case,
    native,
    needs_core,
    random_case,
    rows,
    setting,
    takes_nothing,
)

from pyconv import config

ROWS = [*rows(), *(("", "reference", kind) for kind in KINDS)]
MODES = ("reflect", "replicate", "circular")
TAKE_EVERYTHING = ("im2col_gemm", "reference")  # the other algorithms may refuse a problem
WINOGRAD = ("winograd", "winograd_1d")
VECTOR_BYTES = {"sse2": 16, "avx2": 32, "avx512": 64, "neon": 16}
UNTOUCHED = {"f": np.nan, "i": 77}  # what no row may change
RAN = Counter()  # problems that each row has computed

# (x, w, arguments): tile and block edges of a blocked GEMM, and the shapes of well-known layers in small.
PROBLEMS = [
    ((1, 1, 1), (1, 1, 1), {}),
    ((2, 3, 31), (5, 3, 4), {"stride": 3, "padding": 5}),
    ((1, 16, 200), (17, 16, 3), {"dilation": 4, "padding": 4}),
    ((1, 1, 640), (24, 1, 10), {"stride": 5}),
    ((1, 48, 37), (48, 1, 4), {"groups": 48, "padding": 3}),
    ((1, 64, 7, 7), (33, 64, 1, 1), {}),
    ((1, 300, 5, 9), (7, 300, 1, 1), {}),
    ((1, 1100, 3, 3), (19, 1100, 1, 1), {}),
    ((2, 31, 9, 8), (70, 31, 1, 1), {"stride": 2}),
    ((1, 3, 30, 30), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    ((1, 3, 28, 28), (6, 1, 7, 7), {"stride": 2, "padding": 3, "groups": 3}),
    ((3, 16, 14, 14), (16, 16, 3, 3), {"padding": 1}),
    ((1, 130, 7, 7), (40, 130, 3, 3), {"padding": 1}),
    ((1, 9, 15, 17), (8, 9, 3, 5), {"stride": (2, 1), "padding": (4, 2), "dilation": (3, 1)}),
    ((1, 64, 12, 12), (64, 2, 3, 3), {"padding": 1, "groups": 32}),
    ((1, 32, 20, 20), (32, 1, 3, 3), {"padding": 1, "groups": 32}),
    ((1, 10, 9, 9), (30, 1, 5, 5), {"padding": "same", "groups": 10}),
    ((1, 12, 16, 3), (11, 12, 4, 2), {"padding": "same"}),
    ((1, 2, 4, 4), (3, 2, 9, 9), {"padding": 7}),
    ((1, 5, 1, 97), (6, 5, 1, 31), {"padding": (0, 15)}),
    ((1, 4, 64, 1), (9, 4, 6, 1), {"stride": (5, 1)}),
    ((2, 4, 5, 6, 7), (6, 4, 3, 3, 3), {"padding": 1}),
    ((1, 6, 7, 5, 9), (4, 3, 2, 3, 1), {"stride": (2, 1, 3), "dilation": (2, 2, 1), "groups": 2, "padding": (0, 3, 1)}),
    ((4, 513, 2), (1, 513, 2), {}),
    ((1, 1, 300, 3), (1, 1, 2, 3), {}),
    ((1, 5, 1100), (20, 5, 3), {"padding": 1}),
    ((1, 6, 5, 6), (300, 6, 3, 3), {"padding": 2}),
    ((1, 300, 9, 8), (18, 300, 3, 3), {"padding": 1}),
    ((2, 68, 11, 13), (68, 34, 3, 3), {"groups": 2, "padding": 1, "dilation": 2}),
    ((1, 10, 9, 8, 7), (35, 10, 2, 3, 3), {"padding": (1, 0, 1), "stride": (1, 2, 1)}),
    ((1, 8, 60, 70), (33, 8, 3, 3), {"stride": (3, 2), "padding": (1, 4)}),
    ((1, 64, 16, 16), (64, 64, 3, 3), {"padding": 1}),
    ((1, 40, 21, 33), (50, 40, 3, 3), {"padding": (12, 18), "dilation": (12, 18)}),
    ((2, 24, 3, 9, 12), (40, 24, 3, 3, 5), {"padding": (2, 1, 8), "dilation": (2, 1, 4)}),
    ((1, 3, 20, 26), (37, 3, 13, 13), {"padding": 6}),
    ((2, 70, 18, 27), (67, 70, 3, 3), {}),
    ((1, 96, 33, 19), (64, 96, 3, 3), {"padding": (0, 1)}),
    ((1, 64, 26, 29), (65, 64, 3, 3), {"padding": 2, "dilation": 2}),
    ((1, 128, 20, 23), (128, 64, 3, 3), {"padding": 1, "groups": 2}),
    ((1, 64, 28, 28), (96, 64, 3, 3), {"padding": "same"}),
    ((1, 3, 700), (3, 1, 4), {"groups": 3, "padding": 3}),
    ((1, 2, 1500), (4, 1, 150), {"groups": 2, "padding": 75}),
    ((2, 5, 7, 7), (5, 1, 5, 5), {"groups": 5, "padding": 2}),
    ((2, 6, 70, 41), (12, 1, 3, 3), {"groups": 6, "padding": 1, "stride": 2}),
    ((1, 5, 66, 70), (5, 1, 3, 3), {"groups": 5, "padding": (1, 2), "stride": (1, 2)}),
    ((1, 7, 9, 200), (7, 1, 3, 3), {"groups": 7, "padding": 1}),
    ((2, 9, 61), (9, 1, 4), {"groups": 9, "padding": 3}),
    ((1, 5, 7, 40), (5, 1, 1, 7), {"groups": 5, "padding": (0, 2), "stride": (2, 1)}),
    ((1, 64, 100), (64, 64, 3), {"padding": 1}),
    ((2, 72, 41), (64, 72, 3), {}),
    ((1, 100, 48), (128, 100, 3), {"padding": 2, "dilation": 2}),
    ((1, 96, 160), (95, 96, 3), {"padding": 4, "dilation": 4}),
    ((1, 128, 63), (64, 128, 3), {"padding": 1}),
    ((2, 160, 48), (192, 80, 3), {"groups": 2, "padding": 1}),
    ((1, 96, 3, 20), (128, 96, 1, 3), {"padding": (0, 1)}),
    ((1, 130, 48), (127, 130, 3), {"padding": 3, "dilation": 3}),
    ((1, 200, 33), (128, 200, 3), {"padding": "same"}),
    ((3, 64, 60), (64, 64, 3), {"padding": 1}),
    ((1, 300, 7, 7), (128, 300, 3, 3), {"padding": 1}),
    ((3, 70, 7, 8), (67, 70, 3, 3), {"padding": 1}),
    ((1, 33, 4, 7, 16), (64, 33, 3, 3, 3), {"padding": 1}),
    ((2, 12, 3, 5, 28), (80, 12, 2, 3, 3), {"stride": (2, 1, 1), "dilation": (1, 2, 1)}),
    ((1, 40, 11, 32), (64, 40, 5, 3), {"padding": (2, 1)}),
    ((1, 64, 13, 28), (65, 64, 3, 3), {"stride": (2, 1), "padding": 1}),
    ((2, 80, 12, 24), (128, 40, 3, 3), {"groups": 2, "dilation": (3, 1), "padding": (3, 1)}),
    ((1, 48, 9, 40), (96, 48, 2, 3), {"dilation": (1, 2), "padding": (1, 2)}),
    ((1, 36, 5, 60), (96, 36, 4, 3), {"dilation": (1, 4), "stride": (3, 1), "padding": (2, 4)}),
    ((1, 1, 40, 32), (64, 1, 33, 3), {"padding": (0, 1)}),
]


@functools.cache
def problem(index, kind, data="zero mean"):
    """A problem of the list, or a random one, whose oracle is computed once for all rows."""
    dtype = np.dtype(kind).type
    rng = np.random.default_rng(index)
    if index >= len(PROBLEMS):
        return random_case(rng, dtype, integers=data == "integers")
    x_shape, w_shape, arguments = PROBLEMS[index]
    case = make_case(rng, x_shape, w_shape, dtype, bool(index % 2), data == "integers", **arguments)
    if data == "one sign":  # of the least integer there is no magnitude: that one stays
        return case.with_arrays(x=np.abs(case.x), w=np.abs(case.w))
    if data == "not finite":
        case.x.flat[rng.integers(0, case.x.size, 2)] = np.nan, np.inf
    return case


def run_row(row, case, **extra):
    """The row's result, or None where the algorithm does not take the problem."""
    isa, algorithm, _ = row
    with setting(isa=isa or None):
        try:
            y = case.run(algorithm=algorithm, **extra)
        except ValueError as error:
            if algorithm in TAKE_EVERYTHING or "algorithm" not in str(error):
                raise
            return None
    RAN[row] += 1
    return y


def name_of(row):
    return "-".join(part for part in row if part)


@pytest.mark.parametrize("accuracy", ["fast", "exact"])
@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_row_against_the_oracle(row, accuracy):
    for index in range(len(PROBLEMS) + 30):
        case = problem(index, row[2])
        y = run_row(row, case, accuracy=accuracy)
        if y is not None:
            check(y, case, accuracy)


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_row_on_data_of_one_sign(row):
    """Rounding errors pile up where all terms have one sign: the wider of the two bounds, for 'exact' too."""
    for index, accuracy in itertools.product(range(len(PROBLEMS)), ("fast", "exact")):
        case = problem(index, row[2], "one sign")
        y = run_row(row, case, accuracy=accuracy)
        if y is not None:
            check(y, case, factor=16)


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_row_is_exact_on_whole_numbers(row):
    if row[1] in WINOGRAD:
        pytest.skip("Winograd's transforms multiply by fractions")
    for index in range(len(PROBLEMS) + 10):
        case = problem(index, row[2], "integers")
        y = run_row(row, case)
        if y is not None:
            np.testing.assert_array_equal(y, case.expected()[0].astype(y.dtype), err_msg=str(case))


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_row_on_views_and_into_an_array(row):
    """Strided input is read, and strided output written, by the kernels themselves."""
    for index in range(0, len(PROBLEMS), 2):
        case = problem(index, row[2])
        flip = (slice(None),) + (slice(None, None, -1),) * (case.x.ndim - 1)
        view = np.moveaxis(np.ascontiguousarray(np.moveaxis(case.x[flip], 1, -1)), -1, 1)[flip]
        assert np.array_equal(view, case.x)
        y = run_row(row, case)
        if y is None:
            continue
        roomy = np.full([2 * n + 1 for n in y.shape], UNTOUCHED[y.dtype.kind], y.dtype)
        out = roomy[tuple(slice(1, None, 2) for _ in y.shape)]
        assert run_row(row, case.with_arrays(x=view), out=out) is out
        check(native(out), case)
        if row[1] != "reference":  # BLAS may take another order of additions for another layout
            np.testing.assert_array_equal(out, y, err_msg=str(case))
        out[...] = UNTOUCHED[y.dtype.kind]
        np.testing.assert_array_equal(roomy, np.full_like(roomy, UNTOUCHED[y.dtype.kind]))


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_row_with_padding_modes(row):
    """Through the layers, which have the argument for it, unfrozen and frozen."""
    isa, algorithm, kind = row
    if np.dtype(kind).kind == "i":
        pytest.skip("layers hold no integers: test_dtypes.py")
    rng = np.random.default_rng(11)
    wide = (
        ((1, 64, 30, 29), (64, 64, 3, 3)),
        ((1, 9, 12, 11), (40, 9, 3, 5)),
        ((2, 8, 30), (33, 8, 7)),
        ((1, 96, 70), (96, 96, 3)),
        ((1, 4, 5, 4, 6), (36, 4, 3, 3, 3)),
        ((1, 40, 3, 5, 16), (64, 40, 3, 3, 3)),
        ((1, 150, 7, 7), (80, 150, 3, 3)),
    )
    cases = [random_case(rng, np.dtype(kind).type, modes=(mode,)) for mode in MODES for _ in range(10)]
    for x_shape, w_shape in wide:
        padding = [n // 2 for n in w_shape[2:]]
        named = [{"padding": padding, "padding_mode": mode} for mode in MODES]
        cases += [make_case(rng, x_shape, w_shape, np.dtype(kind).type, **arguments) for arguments in named]
    with setting(isa=isa or None):
        for case in cases:
            layer = case.module(algorithm=algorithm)
            try:
                y = layer(case.x)
            except ValueError as error:
                if algorithm in TAKE_EVERYTHING or "algorithm" not in str(error):
                    raise
                continue
            check(y, case)
            np.testing.assert_array_equal(layer.eval()(case.x), y, err_msg=str(case))
            RAN[row] += 1


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_row_keeps_not_a_number_in_its_place(row):
    """Values that are not finite reach the outputs that read them, and no others."""
    if np.dtype(row[2]).kind == "i":
        pytest.skip("integers are finite")
    if row[1] in WINOGRAD:
        pytest.skip("one infinity reaches a whole tile of Winograd's algorithm")
    for index in range(len(PROBLEMS)):
        case = problem(index, row[2], "not finite")
        y = run_row(row, case)
        if y is None:
            continue
        with np.errstate(invalid="ignore"):
            expected = case.expected()[0]
        np.testing.assert_array_equal(np.isnan(y), np.isnan(expected), err_msg=str(case))
        np.testing.assert_array_equal(np.isinf(y), np.isinf(expected), err_msg=str(case))
        finite = np.isfinite(expected)
        assert (np.abs(y[finite] - expected[finite]) <= bound(case, 16)[finite]).all(), case


@needs_core
@pytest.mark.parametrize("isa", config.isas_available())
@pytest.mark.parametrize("dilation", [1, 5])
def test_direct_leaves_out_filter_rows_in_the_padding(isa, dilation):
    """As torch does: nothing becomes NaN where all that meets an infinity are the zeros around the image."""
    case = make_case(np.random.default_rng(0), (1, 40, 6, 9), (35, 40, 3, 3), padding=dilation, dilation=dilation)
    case.w[:, :, 0] = np.inf
    with setting(isa=isa):
        y = case.run(algorithm="direct")
    assert np.isfinite(y[:, :, :dilation]).all()  # the outputs that the filter's first row lies above the image for
    assert not np.isfinite(y[:, :, dilation:]).any()


@pytest.mark.parametrize("row", [row for row in ROWS if row[0]], ids=name_of)
def test_row_gives_the_same_bits_for_any_thread_count_and_batch(row):
    rng = np.random.default_rng(5)
    for x_shape, w_shape, arguments in (
        ((5, 24, 30, 31), (20, 24, 3, 3), {"padding": 1}),
        ((5, 40, 33, 20), (66, 40, 1, 1), {}),
        ((5, 8, 26, 40), (16, 4, 5, 3), {"groups": 2, "stride": (2, 1), "padding": 3}),
        ((5, 64, 700), (30, 64, 5), {"dilation": 2}),
        ((5, 64, 40, 40), (64, 1, 3, 3), {"groups": 64, "padding": 1}),
        ((5, 130, 7, 7), (200, 130, 3, 3), {"padding": 1}),
        ((5, 40, 3, 9, 28), (70, 40, 3, 3, 3), {"stride": (1, 2, 1)}),
    ):
        case = make_case(rng, x_shape, w_shape, np.dtype(row[2]).type, **arguments)
        y = run_row(row, case)
        if y is None:
            continue
        for threads in (1, 2, 3, 4):
            with setting(threads=threads):
                assert np.array_equal(run_row(row, case), y), f"{threads} threads: {case}"
                for image in (0, 4):
                    one = case.with_arrays(x=case.x[image : image + 1])
                    assert np.array_equal(run_row(row, one)[0], y[image]), f"image {image}, {threads} threads: {case}"


@needs_core
def test_table_has_the_rows_of_this_cpu():
    """The table is not asked which rows ought to be there: the processor is."""
    isas = set(config.isas_available())
    if platform.machine() in ("x86_64", "AMD64"):
        v3 = {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}
        v4 = v3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
        wanted = {"sse2"} | ({"avx2"} if v3 <= cpu_flags() else set()) | ({"avx512"} if v4 <= cpu_flags() else set())
        assert isas == wanted or not cpu_flags()
        assert "sse2" in isas
    elif platform.machine() in ("aarch64", "arm64"):
        assert isas == {"neon"}
    assert set(_core.isas()) == isas
    for isa in isas:
        for kind in KINDS:
            assert "im2col_gemm" in algorithms(isa, kind)
        assert _core.vector_bytes(isa) == VECTOR_BYTES.get(isa, 16)  # each name stands for kernels of its own


def test_every_row_that_can_run_here_did_run(request):
    """No gap: each (isa, algorithm, dtype) computed problems of its own, the ones that take everything all of them."""
    names = {item.originalname for item in request.session.items if item.fspath == request.fspath}
    if not {"test_row_against_the_oracle", "test_row_is_exact_on_whole_numbers"} <= names:
        pytest.skip("the tests of the rows were not selected")
    assert set(rows()) <= set(ROWS)
    for row in ROWS:
        if takes_nothing(row):
            assert RAN[row] == 0
            continue
        least = 2 * (len(PROBLEMS) + 30) if row[1] in TAKE_EVERYTHING else 20
        assert RAN[row] >= least, f"{name_of(row)} computed {RAN[row]} problems, not {least}"
