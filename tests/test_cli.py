"""The command line: info, demo, bench. The demo's picture is read back and compared with the photo."""

from __future__ import annotations

import io
import os
import re
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

import pyconv
from pyconv import demo
from pyconv.__main__ import main

HOME = Path(pyconv.__file__).parents[1]
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")
FULL = Path("/dev/full")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def pillow():
    pytest.importorskip("matplotlib", reason="the demo needs matplotlib")
    return pytest.importorskip("PIL.Image", reason="the demo needs pillow")


@pytest.fixture
def photo_file(tmp_path, pillow):
    """Draw 40 discs: edges of every direction and contrast, whether matplotlib comes with its photo or not."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:150, 0:200]
    pixels = np.full((150, 200, 3), (60, 90, 140), np.uint8)
    for colour in rng.integers(0, 256, (40, 3)):
        row, column, radius = rng.integers(150), rng.integers(200), rng.integers(4, 30)
        pixels[(x - column) ** 2 + (y - row) ** 2 < radius**2] = colour
    path = tmp_path / "photo.png"
    pillow.fromarray(pixels).save(path)
    return path


def environment(**more):
    """Variables for a process that imports this same pyconv, and says nothing if the compiled core is missing."""
    path = os.pathsep.join(filter(None, (str(HOME), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore::RuntimeWarning", **more}


def process(*arguments, stdout=subprocess.PIPE, cwd=HOME, **variables):
    streams = {"stdout": stdout, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "pyconv", *map(str, arguments)]
    return subprocess.run(command, **streams, cwd=cwd, env=environment(**variables), timeout=120, check=False)


def refusal(capsys, *arguments):
    """Return the one line on stderr of a command that fails."""
    assert main([str(argument) for argument in arguments]) == 1
    message = capsys.readouterr().err
    assert re.fullmatch(r"pyconv .*\n", message)  # a dot does not match the end of a line
    return message


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def gradient(plane):
    return np.hypot(*np.gradient(np.asarray(plane, np.float64)))


def cross_correlate(plane, kernel, stride, mode):
    """One channel, float64, padded to keep its size: what a Conv2d of one channel computes."""
    pad = kernel.shape[0] // 2
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(plane.astype(np.float64), pad, mode=mode), kernel.shape)
    return np.einsum("hwij,ij->hw", windows[::stride, ::stride], kernel.astype(np.float64))


def test_no_command_prints_the_help_and_fails(capsys):
    assert main([]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert all(command in streams.err for command in ("info", "demo", "bench"))


STOPS = {"nonsense": 2, "info more": 2, "demo a b": 2, "demo --seed -1": 2, "demo --seed x": 2, "--what": 2}
STOPS |= {"--help": 0, "info --help": 0, "demo --help": 0}


@pytest.mark.parametrize("command", STOPS)
def test_help_and_wrong_command_lines(capsys, command):
    with pytest.raises(SystemExit, match=f"^{STOPS[command]}$"):
        main(command.split())
    streams = capsys.readouterr()
    assert (streams.err if STOPS[command] else streams.out).startswith("usage: pyconv")


def test_version_of_the_module_run_as_a_program():
    done = process("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pyconv {pyconv.__version__}\n", "")


def test_info_prints_the_configuration(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    pyconv.show_config()
    assert printed == capsys.readouterr().out
    for word in (pyconv.__version__, np.__version__, pyconv.config.isa(), pyconv.get_accuracy()):
        assert word in printed
    assert re.search(rf"threads +{pyconv.config.config()['threads']}\n", printed)


@POSIX
@pytest.mark.parametrize("command", ["info", "--help"])
def test_a_reader_that_leaves_early_is_no_error(command):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = process(command, stdout=writing)
    finally:
        os.close(writing)
    assert done.returncode in {0, 1}  # 0: argparse itself has swallowed the error, when stdout is not buffered
    assert done.stderr == ""


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line():
    with FULL.open("w") as full:
        done = process("info", stdout=full)
    assert re.fullmatch(r"pyconv: .*\n", done.stderr)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Stand in for a clone, and return the function that writes its benchmarks' program."""
    for name in ("benchmarks/__init__.py", "src_c/conv.h"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return (tmp_path / "benchmarks" / "__main__.py").write_text


@pytest.mark.parametrize("arguments", [["bench"], ["bench", "--help"], ["bench", "--threads", "1"]])
def test_bench_outside_a_clone_says_where_to_run_it(capsys, clone, arguments):
    assert "clone" in refusal(capsys, *arguments)
    clone("print('another project')")
    Path("src_c/conv.h").unlink()
    assert "clone" in refusal(capsys, *arguments)


@pytest.mark.parametrize("status", [0, 3])
def test_bench_hands_its_arguments_over(clone, capfd, status):
    clone(f"import sys\nprint(sys.argv[1:])\nsys.exit({status})\n")
    assert main(["bench", "--threads", "1", "--help"]) == status
    assert capfd.readouterr().out == "['--threads', '1', '--help']\n"


@POSIX
def test_ctrl_c_leaves_no_traceback(clone):
    quiet = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL)"
    clone(f"{quiet}\nprint('up', flush=True)\ntime.sleep(60)\n")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, "-m", "pyconv", "bench"], **streams, env=environment(), start_new_session=True
    ) as running:
        assert running.stdout.readline() == "up\n"
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(30) == 130
        assert running.stderr.read() == ""


def test_demo_of_the_shipped_photo(pillow, tmp_path):
    """The whole job in a process of its own, as a person runs it."""
    try:
        demo._sample_photo()
    except demo.DemoError as error:
        pytest.skip(str(error))
    done = process("demo", "--output", tmp_path / "picture.png")
    assert (done.returncode, done.stderr) == (0, "")
    shapes = ("(1, 3, 224, 224)", "(6, 1, 7, 7)", "(1, 6, 112, 112)", "(1, 2, 224, 224)")
    for text in ("grace_hopper.jpg", *shapes, "kernel_size=(7, 7)", pyconv.config.isa(), "picture.png"):
        assert text in done.stdout
    assert len(re.findall(r"\d+\.\d+ [um]s per call", done.stdout)) == 2
    with pillow.open(tmp_path / "picture.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (demo.WIDTH, demo.HEIGHT))
        assert np.asarray(picture.convert("L")).std() > 20


def test_the_picture_shows_what_a_plain_convolution_gives(pillow, tmp_path, monkeypatch, photo_file):
    """Every panel, cut out of the PNG: its grey levels follow the values, its edges lie where the photo has them."""
    monkeypatch.chdir(tmp_path)
    assert main(["demo", str(photo_file)]) == 0
    with pillow.open("pyconv-demo.png") as file:
        picture = np.asarray(file.convert("RGB")).astype(np.float64)
    photo, *described = demo.load_photo(photo_file)
    assert (photo.shape, photo.dtype, *described) == ((224, 224, 3), np.uint8, (200, 150), "RGB")
    inner = (slice(4, -4), slice(4, -4))  # without the frame
    np.testing.assert_allclose(panel(picture, 0, 0, 2)[inner], photo[inner], atol=1)
    grey = (photo / 255) @ [0.299, 0.587, 0.114]
    across = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    sobel = np.hypot(*(cross_correlate(grey, kernel, 1, "edge") for kernel in (across, across.T)))
    assert correlation(255 - panel(picture, 1, 0, 2)[inner].mean(axis=-1), sobel[inner]) > 0.95
    inner = (slice(4, 84), slice(4, -4))  # without the filter in the corner, too
    for i, kernel in enumerate(demo.random_filters(0).weight[:, 0]):
        shown = panel(picture, i % 2, 1 + i // 2, 4)[inner]
        assert np.ptp(shown, axis=-1).max() <= 1, "grey"
        shown = shown.mean(axis=-1)
        channel = photo[..., i // 2] / 255
        assert correlation(shown, cross_correlate(channel, kernel, 2, "constant")[inner]) > 0.95
        source = channel.reshape(112, 2, 112, 2).mean(axis=(1, 3))[inner]
        assert correlation(gradient(shown), gradient(source)) > 0.3
        assert abs(correlation(gradient(shown), gradient(source[::-1]))) < 0.2, "not those of the photo upside down"


def test_the_numbers_are_those_of_a_plain_convolution(photo_file):
    x = demo.to_nchw(demo.load_photo(photo_file)[0])
    assert (x.shape, x.dtype, x.strides[1]) == ((1, 3, 224, 224), np.float32, 4), "channels last in memory"
    for i, kernel in enumerate((conv := demo.random_filters(1)).weight[:, 0]):
        expected = cross_correlate(x[0, i // 2], kernel, 2, "constant")
        np.testing.assert_allclose(conv(x)[0, i], expected, rtol=1e-4, atol=1e-4)
    grey = demo.to_grey(x)
    for i, kernel in enumerate((conv := demo.sobel_filters()).weight[:, 0]):
        expected = cross_correlate(grey[0, 0], kernel, 1, "edge")
        np.testing.assert_allclose(conv(grey)[0, i], expected, rtol=1e-4, atol=1e-4)


def panel(picture, row, column, zoom):
    """Cut one panel out of the picture, at one pixel for each of its image's."""
    top = demo.HEAD + row * (demo.PANEL + demo.TITLE)
    left = demo.GAP + column * (demo.PANEL + demo.GAP)
    return picture[top : top + demo.PANEL, left : left + demo.PANEL][zoom // 2 :: zoom, zoom // 2 :: zoom]


def test_the_same_seed_gives_the_same_filters():
    first, same, other = (demo.random_filters(seed).weight.tolist() for seed in (3, 3, 4))
    assert first == same != other


def ramp_of_mode(pillow, mode):
    """Make a ramp from black (left) to white (right) in a Pillow mode, and name a format that keeps the mode."""
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    deep = {"I;16": (np.uint16, 257, "PNG"), "I": (np.int32, 1000, "TIFF"), "F": (np.float32, 1 / 255, "TIFF")}
    if mode in deep:
        dtype, scale, kind = deep[mode]
        return pillow.fromarray((ramp * np.float64(scale)).astype(dtype)), kind
    if mode == "P":
        return pillow.fromarray(ramp).convert("RGB").quantize(64), "PNG"
    return pillow.fromarray(ramp).convert(mode), "JPEG" if mode in {"CMYK", "YCbCr"} else "PNG"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_pixel_format(pillow, tmp_path, mode):
    image, kind = ramp_of_mode(pillow, mode)
    image.save(tmp_path / "image", kind)
    photo = demo.load_photo(tmp_path / "image")[0]
    assert (photo.shape, photo.dtype) == ((224, 224, 3), np.uint8)
    dithering = 60 if mode == "1" else 8
    np.testing.assert_allclose(photo.mean(axis=(0, 2)), np.linspace(0, 255, 224), atol=dithering)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_is_white(pillow, tmp_path, mode):
    image = pillow.new(mode, (5, 5), 0 if mode == "P" else (0,) * len(mode))
    image.save(tmp_path / "clear.png", **({"transparency": 0} if mode == "P" else {}))
    assert demo.load_photo(tmp_path / "clear.png")[0].min() == 255


@pytest.mark.parametrize(("mode", "size"), [("RGB", (1, 1)), ("I;16", (1, 300)), ("F", (500, 2))])
def test_tiny_and_plain_images(pillow, tmp_path, capsys, mode, size):
    pillow.new(mode, size, 0).save(tmp_path / "plain.tiff")
    assert main(["demo", str(tmp_path / "plain.tiff"), "-o", str(tmp_path / "picture.png")]) == 0
    assert capsys.readouterr().err == ""


def test_values_without_a_known_range_are_stretched(pillow, tmp_path):
    for top in (1e30, np.finfo(np.float32).max, np.inf):
        values = np.tile(np.array([-top, np.nan, top], np.float32), (3, 1))
        pillow.fromarray(values).save(tmp_path / "deep.tiff")
        photo = demo.load_photo(tmp_path / "deep.tiff")[0]
        np.testing.assert_allclose(photo[0, [0, 112, -1], 0].astype(int), [0, 128, 255], atol=1)


def test_a_photo_taken_sideways_is_upright(pillow, tmp_path):
    exif = pillow.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    pillow.linear_gradient("L").resize((40, 20)).save(tmp_path / "sideways.png", exif=exif)  # dark at the top
    photo, size, _ = demo.load_photo(tmp_path / "sideways.png")
    assert size == (20, 40)
    assert photo[:, 0].min() > photo[:, -1].max() + 150


def test_any_name_on_a_terminal_that_cannot_print_it(tmp_path, photo_file):
    name = "-\u732b $b$ {c}\n%d.png"
    photo_file.rename(tmp_path / name)
    done = process("demo", "--", name, cwd=tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert ascii(name) in done.stdout


@pytest.mark.usefixtures("pillow")
@pytest.mark.parametrize(("name", "shown"), [("no.jpg", "no.jpg"), ("no\nsuch", r"no\nsuch"), ("a\0b", r"a\x00b")])
def test_missing_image(tmp_path, capsys, name, shown):
    assert shown in refusal(capsys, "demo", tmp_path / name)


@pytest.mark.usefixtures("pillow")
def test_no_regular_file(tmp_path, capsys):
    assert f"{str(tmp_path)!r} is a directory" in refusal(capsys, "demo", tmp_path)
    if hasattr(os, "mkfifo"):  # reading it would wait for ever
        os.mkfifo(tmp_path / "pipe")
        assert "pipe' is not a regular file" in refusal(capsys, "demo", tmp_path / "pipe")


@pytest.mark.usefixtures("pillow")
@pytest.mark.parametrize("content", [b"", b"\n", b"plain text, no image", bytes(1000), PNG, b"BM"])
def test_no_image(tmp_path, capsys, content):
    (tmp_path / "x.png").write_bytes(content)
    message = refusal(capsys, "demo", tmp_path / "x.png")
    assert ("x.png' is not an image" if content else "x.png' is empty") in message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_truncated_image(pillow, tmp_path, capsys, photo_file, kind):
    stream = io.BytesIO()
    with pillow.open(photo_file) as image:
        try:
            image.save(stream, kind)
        except (KeyError, OSError):
            pytest.skip(f"this pillow writes no {kind}")
    for part in (0.1, 0.3, 0.6, 0.9):
        (tmp_path / "half").write_bytes(stream.getvalue()[: int(part * len(stream.getvalue()))])
        assert "half" in refusal(capsys, "demo", tmp_path / "half", "-o", tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()


def test_damaged_images_never_raise(tmp_path, photo_file):
    """Bytes overwritten at random: an array, or the one error that is meant for it."""
    original, damaged = photo_file.read_bytes(), tmp_path / "damaged.png"
    rng, refused = np.random.default_rng(0), []
    for _ in range(100):
        content = np.frombuffer(original, np.uint8).copy()
        content[rng.integers(0, 200, 3)] = rng.integers(256, size=3)
        damaged.write_bytes(content.tobytes())
        try:
            assert demo.load_photo(damaged)[0].shape == (224, 224, 3)
        except demo.DemoError as error:
            refused.append(str(error))
    assert refused
    assert all("damaged.png" in message and "\n" not in message for message in refused)


@pytest.mark.usefixtures("pillow")
@pytest.mark.parametrize("side", [10_000, 60_000, 2**31 - 1])
def test_decompression_bomb(tmp_path, capsys, side):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(PNG + header + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b""))
    assert "bomb.png' is too large" in refusal(capsys, "demo", tmp_path / "bomb.png")


@POSIX
def test_permissions(photo_file, tmp_path, capsys):
    (tmp_path / "locked").mkdir(0o500)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("root may read and write everything")
    assert "p.png': Permission denied" in refusal(capsys, "demo", photo_file, "-o", tmp_path / "locked" / "p.png")
    photo_file.chmod(0)
    assert "photo.png': Permission denied" in refusal(capsys, "demo", photo_file)


def test_unwritable_output(photo_file, tmp_path, capsys):
    (tmp_path / "folder.png").mkdir()
    for output in (tmp_path / "folder.png", tmp_path / "no" / "p.png", *([FULL] if FULL.exists() else [])):
        assert f"cannot write {str(output)!r}: " in refusal(capsys, "demo", photo_file, "-o", output)


def test_outputs_that_are_refused(photo_file, tmp_path, capsys):
    before = photo_file.read_bytes()
    assert "would overwrite the photo" in refusal(capsys, "demo", photo_file, "-o", photo_file)
    assert photo_file.read_bytes() == before
    assert "must end in .png, got" in refusal(capsys, "demo", photo_file, "-o", tmp_path / "p.jpg")


@pytest.mark.parametrize("missing", ["matplotlib", "PIL"])
def test_without_matplotlib_or_pillow(capsys, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)  # its import raises ModuleNotFoundError
    assert refusal(capsys, "demo") == "pyconv demo needs matplotlib and pillow: pip install 'pyconv-cpu[demo]'\n"


def test_importing_pyconv_loads_neither():
    code = "import sys, pyconv.demo; print([m for m in ('matplotlib', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout == "[]\n"
