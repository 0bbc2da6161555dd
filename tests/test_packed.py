"""pyconv.pack: packed weights compute what arrays do, bit by bit, are never stale, and are kept within bounds."""

import copy
import pickle
import re
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import CONV, Case, check, make_case, needs_core, random_case, relayout, rows, setting

import pyconv
from pyconv import packed as packed_module
from pyconv import plan
from pyconv.nn import functional as F
from pyconv.problem import conv_problem

TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
SHAPES = [
    ((2, 64, 20, 20), (64, 64, 3, 3), {"padding": 1}), ((2, 30, 14, 14), (70, 30, 1, 1), {}),
    ((2, 24, 15, 15), (24, 1, 3, 3), {"padding": 1, "groups": 24}), ((2, 3, 40, 40), (33, 3, 7, 7), {"stride": 2}),
    ((2, 8, 300), (16, 4, 5), {"groups": 2}), ((2, 6, 7, 8, 9), (5, 6, 2, 3, 2), {"dilation": 2}),
]  # fmt: skip


def geometry(case):
    return {"stride": case.stride, "padding": case.padding, "dilation": case.dilation, "groups": case.groups}


@given(seed=st.integers(0, 2**31), dtype=st.sampled_from(["f2", "f4", "f8", "i2", "i8"]), eager=st.booleans())
def test_against_the_oracle(seed, dtype, eager):
    case = random_case(np.random.default_rng(seed), np.dtype(dtype).type)
    shape = case.x.shape if case.x.ndim == case.nd + 2 else (1, *case.x.shape)
    ahead = {"input_shape": shape, **geometry(case)} if eager else {}
    packed = pyconv.pack(case.w, case.bias, **ahead)
    for _ in range(2):
        check(CONV[case.nd](case.x, packed, **geometry(case)), case)
    assert len(packed._packs) == 1


@pytest.mark.parametrize("row", [row for row in rows() if "i" not in row[2]], ids="-".join)
def test_every_row_packs_once_for_every_batch(row):
    """The same bits as with an array, and what is packed for one image serves any batch."""
    isa, algorithm, kind = row
    rng = np.random.default_rng(0)
    for x_shape, w_shape, arguments in SHAPES:
        case = make_case(rng, x_shape, w_shape, np.dtype(kind).type, **arguments)
        with setting(isa=isa):
            packed = pyconv.pack(case.w, case.bias)
            try:
                expected = case.run(algorithm=algorithm)
            except ValueError as error:
                assert "argument 'algorithm'" in str(error)
                continue
            function = CONV[case.nd]
            for x, y in ((case.x[:1], expected[:1]), (case.x, expected), (case.x[0], expected[0])):
                np.testing.assert_array_equal(function(x, packed, **geometry(case), algorithm=algorithm), y)
            assert len(packed._packs) == 1
            sizes = set()
            for n in (1, 2, 7, 1000):
                x = np.broadcast_to(case.x[:1], (n, *case.x.shape[1:]))
                arguments = (case.stride, case.padding, case.dilation, case.groups, "zeros", False)
                problem = conv_problem("test", case.nd, x, case.w, *arguments)
                sizes.add(plan.plan_for(problem, algorithm).pack(case.w, case.bias).nbytes)
            assert len(sizes) == 1


def test_transposed():
    rng = np.random.default_rng(1)
    for nd in (1, 2, 3):
        x, w, b = rng.standard_normal((2, 4, *[5] * nd)), rng.standard_normal((4, 3, *[4] * nd)), rng.standard_normal(6)
        sizes = {"stride": 2, "padding": 1, "groups": 2, "output_padding": 1}
        expected = TRANSPOSED[nd](x, w, b, **sizes)
        packed = pyconv.pack(w, b, x.shape, transposed=True, **sizes)
        for images in (slice(None), slice(1)):
            np.testing.assert_array_equal(TRANSPOSED[nd](x[images], packed, **sizes), expected[images])
        assert len(packed._packs) == 1


def test_one_weight_for_both_directions():
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((1, 5, 9, 9)), rng.standard_normal((5, 5, 3, 3))
    packed = pyconv.pack(w)
    for _ in range(2):
        np.testing.assert_array_equal(F.conv2d(x, packed), F.conv2d(x, w))
        np.testing.assert_array_equal(F.conv_transpose2d(x, packed), F.conv_transpose2d(x, w))


def test_per_sample():
    rng = np.random.default_rng(3)
    x, w, b = rng.standard_normal((3, 4, 9)), rng.standard_normal((3, 5, 4, 3)), rng.standard_normal((3, 5))
    packed = pyconv.pack(w, b, (3, 4, 9))
    np.testing.assert_array_equal(F.conv1d(x, packed), F.conv1d(x, w, b))
    assert len(packed._packs) == 1
    assert F.conv1d(x[:0], pyconv.pack(w[:0], b[:0])).shape == (0, 5, 7)


def test_formats_and_options():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(4)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.complex64, np.longdouble, ">f4"):
        x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((1, 3, 8, 8), (4, 3, 3, 3)))
        y = F.conv2d(x, pyconv.pack(w), padding=1)
        assert y.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(y, F.conv2d(x, w, padding=1))
    x, w = rng.standard_normal((1, 3, 8, 8), np.float32), rng.standard_normal((4, 3, 3, 3), np.float32)
    options = {"padding": ((1, 0), (2, 1)), "padding_mode": "reflect", "activation": "relu", "accuracy": "exact"}
    packed = pyconv.pack(w, None, x.shape, **options)
    out = np.empty((1, 4, 7, 9), np.float32)
    assert F.conv2d(x, packed, out=out, **options) is out
    np.testing.assert_array_equal(out, F.conv2d(x, w, **options))
    assert len(packed._packs) == 1


def test_never_stale():
    x, w, b = np.ones((1, 1, 3)), np.ones((2, 1, 2)), np.zeros(2)
    packed = pyconv.pack(w, b)
    before = F.conv1d(x, packed)
    w[...], b[...] = 9, 9
    np.testing.assert_array_equal(F.conv1d(x, packed), before)
    np.testing.assert_array_equal(packed.weight, 1)
    for array in (packed.weight, packed.bias):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 2
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
    for name in ("weight", "bias", "shape", "dtype", "ndim"):
        with pytest.raises(AttributeError):
            setattr(packed, name, None)


def test_settings_take_another_form():
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((1, 64, 20, 20), np.float32), rng.standard_normal((64, 64, 3, 3), np.float32)
    packed = pyconv.pack(w)
    for accuracy in ("fast", "exact", "fast"):
        with setting(accuracy=accuracy):
            check(F.conv2d(x, packed), Case(x, w), accuracy)


def test_layout_follows_the_weight():
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal((2, 3, 8, 8)), rng.standard_normal((4, 3, 3, 3))
    for layout in ("plain", "channels_last"):
        laid = relayout(w, layout)
        for packed in (pyconv.pack(laid), pickle.loads(pickle.dumps(pyconv.pack(laid)))):
            assert F.conv2d(x, packed).strides == F.conv2d(x, laid).strides


def test_copies():
    packed = pyconv.pack(np.ones((2, 1, 3)), np.zeros(2))
    assert copy.copy(packed) is packed
    assert copy.deepcopy(packed) is packed
    again = pickle.loads(pickle.dumps(packed))
    np.testing.assert_array_equal(again.weight, packed.weight)
    np.testing.assert_array_equal(again.bias, packed.bias)
    assert repr(again) == "PackedWeight(float64 (2, 1, 3), bias, packed for 0 problems)"
    assert (again.shape, again.ndim, again.dtype) == ((2, 1, 3), 3, np.float64)


def test_few_forms_are_kept(monkeypatch):
    packed = pyconv.pack(np.ones((1, 1, 2)))
    for size in range(3, 200):
        assert F.conv1d(np.ones((1, 1, size)), packed).shape == (1, 1, size - 1)
        assert 0 < len(packed._packs) <= packed_module.MOST_FORMS
    monkeypatch.setattr(packed_module, "MOST_BYTES", 40)
    for size in range(3, 9):
        F.conv1d(np.ones((1, 1, size)), packed)
        assert len(packed._packs) <= 2


def test_many_threads_share_one():
    rng = np.random.default_rng(7)
    w = rng.standard_normal((32, 16, 3, 3), np.float32)
    packed, wrong = pyconv.pack(w), []
    images = [rng.standard_normal((1, 16, size, size), np.float32) for size in range(5, 13)]
    expected = [F.conv2d(x, w) for x in images]

    def work(seed):
        order = np.random.default_rng(seed).integers(0, len(images), 50)
        wrong.extend(i for i in order if not np.allclose(F.conv2d(images[i], packed), expected[i], atol=1e-4))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@needs_core
def test_any_number_of_threads_packs_the_same():
    rng = np.random.default_rng(8)
    x, w = rng.standard_normal((1, 256, 14, 14), np.float32), rng.standard_normal((256, 256, 3, 3), np.float32)
    results = []
    for threads in (1, 2, 3):
        with setting(threads=threads):
            results.append(F.conv2d(x, pyconv.pack(w, None, x.shape, padding=1), padding=1))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


W = np.zeros((4, 2, 3, 3), np.float32)
REFUSED = [
    (lambda: pyconv.pack(W.tolist()), TypeError, "pack", "weight", "must be a numpy.ndarray"),
    (lambda: pyconv.pack(W[0, 0]), ValueError, "pack", "weight", "must have 3 to 5 dimensions, or one more"),
    (lambda: pyconv.pack(W.astype(bool)), TypeError, "pack", "weight", "must hold floating-point"),
    (lambda: pyconv.pack(W, [0.0] * 4), TypeError, "pack", "bias", "must be a numpy.ndarray"),
    (lambda: pyconv.pack(W, np.zeros(4)), TypeError, "pack", "bias", "must have the input's dtype float32"),
    (lambda: pyconv.pack(W, W), ValueError, "pack", "bias", "must have 1 dimension"),
    (lambda: pyconv.pack(W, None, 3), TypeError, "pack", "input_shape", "must be a tuple or list of ints, got 3"),
    (lambda: pyconv.pack(W, None, (2, 8)), ValueError, "pack", "input_shape", "must have 3 or 4 of them"),
    (lambda: pyconv.pack(W, None, (2, 8, 8)), ValueError, "pack", "input", "must have a batch of weight.shape[0] = 4"),
    (lambda: pyconv.pack(W, None, (1, 2, 8.0, 8)), TypeError, "pack", "input_shape", "must be an int"),
    (lambda: pyconv.pack(W, None, (1, 2, -8, 8)), ValueError, "pack", "input_shape", "must be >= 0"),
    (lambda: pyconv.pack(W, None, (1, 3, 8, 8)), ValueError, "pack", "input", "must have 2 channels"),
    (lambda: pyconv.pack(W, np.zeros(3, "f4"), (1, 2, 8, 8)), ValueError, "pack", "bias", "must have shape (4,)"),
    (lambda: pyconv.pack(W, None, (1, 2, 8, 8), stride=0), ValueError, "pack", "stride", "must be >= 1"),
    (lambda: pyconv.pack(W, None, (1, 4, 8, 8), transposed=True, output_padding=1), ValueError, "pack",
     "output_padding", "must be smaller than stride 1"),
    (lambda: F.conv2d(np.zeros((1, 2, 8, 8), "f4"), pyconv.pack(W), np.zeros(4, "f4")), ValueError, "conv2d", "bias",
     "must be None with a PackedWeight, which has its own"),
    (lambda: F.conv2d(np.zeros((1, 2, 8, 8)), pyconv.pack(W)), TypeError, "conv2d", "weight", "input's dtype float64"),
    (lambda: F.conv1d(np.zeros((1, 2, 8), "f4"), pyconv.pack(W[0])), ValueError, "conv1d", "input", "must have 3 ch"),
    (lambda: F.conv1d(np.zeros((1, 2, 8), "f4"), pyconv.pack(W, np.zeros(3, "f4"))), ValueError, "conv1d", "input",
     "must have a batch of weight.shape[0] = 4"),
    (lambda: F.conv2d(pyconv.pack(W), W), TypeError, "conv2d", "input", "must be a numpy.ndarray"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refusals(number):
    call, kind, function, argument, rule = REFUSED[number]
    with pytest.raises(kind, match=rf"^{function}: argument '{argument}' .*{re.escape(rule)}"):
        call()
