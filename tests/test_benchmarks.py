"""The benchmark: its arithmetic, its checks, one tiny layer through a real worker process; never how fast it is."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from oracle import needs_core

from pyconv import config

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is in the repository, not in the package
family, layers, measure, results, sweep, timing, workers, main = (
    importlib.import_module(f"benchmarks.{name}")
    for name in ("family", "layers", "measure", "results", "sweep", "timing", "workers", "__main__")
)
Options = measure.Options

TINY = layers.Layer("tiny", 1, 16, 8, 8, 16, 3, 3, pad_h=1, pad_w=1)
FORCED = "reference" if config.core is None else None  # without a core the benchmark wants to be told so
PYCONV = measure.Subject("pyconv", "pyconv", "pyconv")
QUICK = measure.Plan(rounds=1, budget_ms=0.1)


@pytest.fixture(autouse=True)
def _own_oracle(monkeypatch):
    """A worker that imports torch takes seconds to start; pyconv's reference path can check results, too."""
    monkeypatch.setattr(measure, "ORACLES", ("pyconv",))


needs_rich = pytest.mark.skipif(
    importlib.util.find_spec("rich") is None, reason="the report needs rich: pip install 'pyconv-cpu[bench]'"
)


def made_up_row(name="a", threads=1, groups=1, error=1.0, **times):
    """A row of a layer of 2 * 64 * 64 * 9 * 28 * 28 operations, times in microseconds."""
    layer = layers.Layer(name, 1, 64, 28, 28, 64, 3, 3, pad_h=1, pad_w=1, groups=groups)
    entries = {
        key.replace("_", " "): {"us": us, "median_us": us, "error": error, "limit": 16} for key, us in times.items()
    }
    return {"layer": layer.to_dict(), "threads": threads, "times": entries, "skipped": {}}


def made_up_report(*rows):
    about = {"version": "0", "isa": "avx2", "core": "core.so", "package": "pyconv", "accuracy": "fast"}
    return {
        "machine": {"cpu": "a CPU", "cpus": 2, "system": "Linux", "python": "3"},
        "settings": {"dtype": "float32", "raw": False},
        "libraries": {"pyconv": about, "torch": {"version": "2"}},
        "notes": [],
        "peak_gflops": {"1": 100.0},
        "rows": list(rows),
    }


def test_doctests():
    for module in (timing, sweep):
        assert doctest.testmod(module).failed == 0


def test_the_layer_table_is_sound():
    table = layers.read_layers()
    assert len(table) == len({layer.name for layer in table}) >= 31
    by_name = {layer.name: layer for layer in table}
    assert by_name["rn50.conv1"].y_shape == (1, 64, 112, 112)
    assert by_name["seed.nonsq_pad"].y_shape == (20, 33, 28, 100)
    assert [by_name[name].ndim for name in ("wav2vec.c1d_k10s5", "tiny.8x8")] == [1, 2]
    assert all(any(belongs(layer) for name, belongs in layers.CLASSES.items() if name != "all") for layer in table)


def test_flop_counts_two_per_product():
    assert TINY.flop == 2 * 16 * 8 * 8 * 16 * 9
    grouped = layers.Layer("g", 2, 8, 10, 10, 16, 3, 5, 2, 1, groups=4)
    assert grouped.y_shape == (2, 16, 4, 6)
    assert grouped.flop == 2 * 2 * 16 * 4 * 6 * (2 * 15)
    assert grouped.dense_twin().flop == 4 * grouped.flop


@pytest.mark.parametrize(
    "text", ["name,n\na,1", "name,n,c_in,h_in,w_in,c_out,kernel_h,kernel_w\na,1,1,2,2,1,3,3", "name,n\na,one"]
)
def test_a_broken_layer_table_is_refused(tmp_path, text):
    path = tmp_path / "layers.csv"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match="row 'a'"):
        layers.read_layers(path)


def test_selection_by_patterns():
    table = layers.read_layers()
    assert layers.select(table, []) == table
    chosen = layers.select(table, ["mbv2.*", "tiny.8x8"])
    assert {layer.name.split(".")[0] for layer in chosen} == {"mbv2", "tiny"}
    with pytest.raises(ValueError, match=r"no layer matches 'nosuch\*'"):
        layers.select(table, ["nosuch*"])


def test_data_is_the_same_in_every_process():
    x, w, b = TINY.data("float64", bias=True)
    assert (x.shape, w.shape, b.shape) == ((1, 16, 8, 8), (16, 16, 3, 3), (16,))
    assert all(np.array_equal(one, two) for one, two in zip((x, w, b), TINY.data("float64", bias=True), strict=True))
    assert TINY.data()[2] is None


def test_geometric_mean():
    assert timing.geometric_mean([2, 8]) == pytest.approx(4)
    assert timing.geometric_mean([]) is None


@pytest.mark.parametrize("clock", timing.CLOCKS)
def test_samples_are_microseconds_per_call(clock):
    calls = []
    samples = timing.time_turn(lambda: calls.append(None), 0.1, clock)
    assert len(samples) >= timing.MIN_SAMPLES
    assert all(0 < value < 1e5 for value in samples)
    assert len(calls) > len(samples)


def test_ratios_and_summary():
    rows = [
        made_up_row("a", pyconv=10, torch=20, onnxruntime=5),
        made_up_row("b", pyconv=10, torch=80, onnxruntime=40, groups=64),
        made_up_row("b.dense", pyconv=30, torch=10),
    ]
    assert results.ratio(rows[0], "torch") == 2
    assert results.best_peer(rows[0]) == "onnxruntime"
    assert results.best_ratio(rows[0]) == 0.5
    assert results.gflops(rows[0]) == pytest.approx(2 * 64 * 64 * 9 * 784 / 10 / 1e3)
    everything = results.summary(rows, peak=1000.0)[0]
    assert everything["layers"] == 2  # twins are no layers of the table
    assert everything["eager"] == pytest.approx(4)
    assert everything["best"] == pytest.approx(math.sqrt(0.5 * 4))
    assert everything["best_least"] == (0.5, "a")
    assert [results.layer_of(row).name for row in results.losses(rows)] == ["a"]
    assert results.twin_ratios(rows) == {"b": 3}


IMAGE, FILTERS = (2, 4, 6, 7), (8, 4, 3, 3)
CALLS = [  # one of each kind that family_libraries.py tells apart
    family.Call("a.plain", "conv2d", {"input": IMAGE, "weight": FILTERS}, {"padding": 1}, channels_last=True),
    family.Call("a.transposed", "conv_transpose1d", {"input": (1, 3, 9), "weight": (3, 2, 4)}, {"stride": 2}),
    family.Call(
        "a.input", "grad.conv2d_input", {"weight": FILTERS, "grad_output": (2, 8, 3, 4)},
        {"input_size": IMAGE, "stride": 2, "padding": 1},
    ),
    family.Call(
        "a.weight", "grad.conv2d_weight", {"input": IMAGE, "grad_output": (2, 8, 4, 5)}, {"weight_size": FILTERS}
    ),
    family.Call("a.half", "conv2d", {"input": IMAGE, "weight": FILTERS}, dtype="float16"),
    family.Call("a.complex", "conv2d", {"input": IMAGE, "weight": FILTERS}, dtype="complex64"),
    family.Call("a.bytes", "conv2d", {"input": IMAGE, "weight": FILTERS}, dtype="int8"),
    family.Call("a.mode", "conv2d", {"input": IMAGE, "weight": FILTERS}, {"padding": 2, "padding_mode": "reflect"}),
    family.Call("a.same", "conv2d", {"input": IMAGE, "weight": FILTERS}, {"stride": 2, "padding": "same_upper"}),
    family.Call("a.causal", "conv1d", {"input": (1, 4, 9), "weight": (2, 4, 3)}, {"padding": "causal"}),
    family.Call(
        "a.sum", "conv2d", {"input": IMAGE, "weight": FILTERS, "out": (2, 8, 4, 5)}, {"accumulate": True}
    ),
    family.Call("a.per_sample", "conv2d", {"input": IMAGE, "weight": (2, *FILTERS)}),
    family.Call("a.unfold", "unfold", {"input": IMAGE}, {"kernel_size": 3}),
    family.Call("a.fold", "fold", {"input": (2, 36, 20)}, {"output_size": (6, 7), "kernel_size": 3}),
    family.Call(
        "a.conv_integer", "quantized.conv_integer", {"x": IMAGE, "w": FILTERS},
        {"x_zero_point": 128, "w_zero_point": 120, "padding": 1}, "uint8",
    ),
    family.Call(
        "a.qlinear_conv", "quantized.qlinear_conv", {"x": IMAGE, "w": FILTERS},
        {"x_zero_point": 3, "w_zero_point": 9, "x_scale": 0.5, "w_scale": 0.25, "y_scale": 8.0, "y_zero_point": 7},
        "uint8",
    ),
]  # fmt: skip


def test_the_calls_are_sound():
    calls = family.calls()
    by_name = {call.name: call for call in calls}
    assert len(by_name) == len(calls)
    assert {call.function for call in calls} | {"conv3d"} >= {call.function for call in CALLS}
    assert all(family.described(json.loads(json.dumps(call.to_dict()))).flop == call.flop for call in calls)
    assert by_name["transposed.istft_1024_256"].flop == 2 * 1026 * 1024 * 256
    layer = next(layer for layer in layers.read_layers() if layer.name == "rn50.3.3x3")
    assert by_name["float16.rn50.3.3x3"].flop == layer.flop
    assert by_name["weight gradient rn50.3x3s1_128_128"].flop == 16 * layer.flop
    assert by_name["windows.unfold_3x3"].flop == 0
    assert by_name["padding.same_upper_dw"].extents == [56, 56]


def assert_calls(rows, key):
    for row in rows:
        time = row["times"].get(key)
        assert time is not None or row["skipped"][key], row
        assert time is None or 0 <= time["error"] <= time["limit"], row
    return sum(key in row["times"] for row in rows)


def test_calls_end_to_end():
    subjects = [PYCONV, measure.Subject("pyconv float32", "pyconv", "pyconv float32")]
    with measure.Bench(subjects, Options(algorithm=FORCED, family=True), QUICK) as bench:
        rows = [bench.measure(call) for call in CALLS]
    assert assert_calls(rows, "pyconv") == (len(CALLS) if FORCED is None else len(CALLS) - 4)
    assert assert_calls(rows, "pyconv float32") == 1
    assert results.wrong(rows) == []


@pytest.mark.parametrize("library", ["torch", "onnxruntime", "numpy"])
def test_peers_make_the_same_calls(library):
    missing = measure.libraries(Options(family=True))[library].missing()  # imported in its own process alone
    if missing:
        pytest.skip(f"not installed: {missing}")
    variant = "numpy product" if library == "numpy" else library
    with measure.Bench([measure.Subject(library, library, variant)], Options(family=True), QUICK) as bench:
        rows = [bench.measure(call) for call in CALLS]
    if library == "numpy":
        assert [row["times"] for row in rows] == [{}] * len(CALLS)  # for the class "transposed"
    else:
        assert assert_calls(rows, library) >= (len(CALLS) - 2 if library == "torch" else 4)


def test_yardsticks_are_no_peers():
    row = made_up_row(pyconv=10, torch=20, pyconv_float32=5) | {"layer": CALLS[4].to_dict()}
    assert results.best_peer(row) == "torch"
    assert results.yardstick_ratio(row) == 0.5
    (line,) = results.summary([row])
    assert (line["name"], line["best"], line["yardstick"]) == ("a", 2, 0.5)


def test_speedup_by_threads_leaves_small_layers_out():
    rows = [made_up_row("a", threads=threads, pyconv=30 / threads) for threads in (1, 2)]
    small = [{**row, "layer": TINY.to_dict()} for row in rows]
    assert results.thread_speedups(rows + small) == {2: {"a": 2}}


def test_errors_are_in_units_of_the_sum(tmp_path):
    path = tmp_path / "reference.npz"
    y = np.ones((1, 2, 1, 3))
    np.savez(path, y=y, unit=np.full(y.shape, 0.25))
    assert workers.error_of(y.astype("float32"), str(path)) == 0
    assert workers.error_of(y + np.array([0, 0.5, 0]), str(path)) == 2
    assert workers.error_of(y[:, :, 0], str(path)) == math.inf
    assert workers.error_of(y * math.nan, str(path)) == math.inf


def test_one_layer_end_to_end():
    with measure.Bench([PYCONV], Options(algorithm=FORCED), QUICK) as bench:
        row = bench.measure(TINY)
        one_dimensional = bench.measure(layers.Layer("c1d", 1, 4, 1, 50, 6, 1, 3, stride_w=2))
        assert bench.about["pyconv"]["threads"] == 1
        with pytest.raises(workers.WorkerError, match="nosuch"):
            bench._workers["pyconv"].ask("nosuch")
    for result in (row, one_dimensional):
        time = result["times"]["pyconv"]
        assert 0 < time["us"] <= time["median_us"]
        assert 0 <= time["error"] <= time["limit"]
    assert results.wrong([row, one_dimensional]) == []


@pytest.mark.skipif(config.core is None, reason="without the compiled core there is but one algorithm")
def test_an_algorithm_that_refuses_a_layer_is_no_failure():
    with measure.Bench([PYCONV], Options(algorithm="nosuch"), QUICK) as bench:
        row = bench.measure(TINY)
    assert row["times"] == {}
    assert "nosuch" in row["skipped"]["pyconv"]


def test_a_worker_that_dies_is_reported():
    with workers.Worker("pyconv", Options(algorithm=FORCED)) as worker:
        worker._process.kill()
        with pytest.raises(workers.WorkerError, match="pyconv: died"):
            worker.ask("release")


def test_a_missing_core_stops_the_benchmark():
    bench = measure.Bench([PYCONV], Options())
    bench.about = {"pyconv": {"core": None, "package": "somewhere", "isa": None}}
    with pytest.raises(measure.StopError, match="no compiled core"):
        bench._require_core()
    bench.options = Options(algorithm="reference")
    bench._require_core()


def test_sweep_grid_and_cliffs():
    axes = {name: sweep.parse_axis(text) for name, text in sweep.DEFAULT.items()}
    grid = sweep.grid(axes)
    assert all(layer.flop <= sweep.MAX_FLOP for layer in grid.values())
    cells = dict.fromkeys(grid, 50.0)
    assert sweep.cliffs(cells) == []
    key = ("3", "1", "14", 64, 33)
    cells[key] = 10.0
    assert sweep.cliffs(cells)[0][:2] == (0.2, key)
    with pytest.raises(ValueError, match="at least 1"):
        sweep.parse_axis("0:3")


@needs_rich
def test_command_line_end_to_end(tmp_path, capsys):
    file = tmp_path / "report.json"
    options = ["--algorithm", FORCED] if FORCED else []
    command = ["--peers", "none", "--quick", "--rounds", "1", "--layers", "tiny.*", "--json", str(file), "--markdown"]
    assert main.main(command + options) == 0
    printed = capsys.readouterr().out
    assert "| tiny.8x8 |" in printed
    assert [row["layer"]["name"] for row in json.loads(file.read_text())["rows"]] == ["tiny.8x8"]
    assert main.main(["show", str(file)]) == 0


@needs_rich
def test_command_line_of_calls(capsys):
    options = ["--algorithm", FORCED] if FORCED else []
    command = ["--family", "--peers", "pyconv float32", "--quick", "--rounds", "1", "--layers", "float16.tiny.8x8"]
    assert main.main([*command, "--markdown", *options]) == 0
    printed = capsys.readouterr().out
    assert "| float16.tiny.8x8 |" in printed
    assert "x yardstick" in printed


@needs_rich
@needs_core
def test_stress_has_a_line_for_each_layer(capsys):
    stress = importlib.import_module("benchmarks.stress")
    threads = config.get_num_threads()
    assert main.main(["stress", "--quick"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*stress.LAYERS, *stress.SMALL_LAYERS, *stress.SCALES))
    assert config.get_num_threads() == threads


@needs_rich
def test_a_wrong_result_is_a_failure(tmp_path, capsys):
    file = tmp_path / "report.json"
    results.save(file, made_up_report(made_up_row(pyconv=1, torch=2, error=math.inf)))
    assert main.main(["show", str(file)]) == 1
    assert "WRONG RESULT: a, 1 thread(s), pyconv" in capsys.readouterr().out


@needs_rich
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--layers", "nosuch"], "no layer matches 'nosuch'"),
        (["--peers", "nosuch"], "unknown peer 'nosuch'"),
        (["--peers", "none", "--no-pyconv"], "nothing to time"),
        (["--peers", "none", "--clock", "cpu", "--threads", "2"], "needs --threads 1"),
        (["show", __file__], "not a report of this benchmark"),
    ],
)
def test_mistakes_get_one_line(command, message, capsys):
    assert main.main(command) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@needs_rich
def test_charts_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="the charts need matplotlib: pip install 'pyconv-cpu[bench]'")
    chart = importlib.import_module("benchmarks.chart")
    rows = [made_up_row(name, threads, pyconv=2, torch=3, torch_prepacked=1) for name in "ab" for threads in (1, 2)]
    assert chart.ratios(made_up_report(*rows), tmp_path / "ratios.png")
    chart.sweep({("3", "1", "14", 8, 8): 1.0, ("3", "1", "7", 8, 16): 2.0}, tmp_path / "sweep.png", "a title")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("ratios.png", "sweep.png"))
    assert not chart.ratios(made_up_report(), tmp_path / "nothing.png")
