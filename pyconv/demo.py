"""The demo: a photo through a grouped convolution and an edge filter, into one picture.

``pyconv demo`` runs it. Matplotlib and Pillow are needed here and nowhere else, so they are imported when it runs.
"""

from __future__ import annotations

import io
import stat
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import pyconv
from pyconv import config, nn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

SIDE = 224  # pixels: the input of most image networks
CHANNELS = ("R", "G", "B")
CHANNEL_COLOURS = ("#c8322b", "#2b8a3e", "#2461c2")
INK = "#222222"
SLOW = 1000  # microseconds from which milliseconds read better

# The picture's layout in pixels: a panel shows a pixel of the photo as 2 x 2 and one of a map as 4 x 4.
DPI = 100
PANEL, GAP, TITLE, HEAD = 2 * SIDE, 28, 56, 164
WIDTH, HEIGHT = 4 * PANEL + 5 * GAP, HEAD + 2 * PANEL + TITLE + GAP


class DemoError(Exception):
    """What the user has to put right, in one line."""


def _error(text: str) -> DemoError:
    return DemoError(f"pyconv demo: {text}")


def run(image: str | Path | None = None, output: str | Path = "pyconv-demo.png", seed: int = 0) -> None:
    """Convolve a photo, print the shapes and times, write the picture.

    Parameters
    ----------
    image : str or Path, optional
        The photo; without one, the portrait that Matplotlib ships.
    output : str or Path
        The PNG to write.
    seed : int
        Seed of the six random filters: the same seed gives the same picture.

    Raises
    ------
    DemoError
        If Matplotlib or Pillow is missing, the image cannot be read or the picture cannot be written.
    """
    _require_drawing()
    image, output = Path(image) if image is not None else _sample_photo(), Path(output)
    _check_output(output, image)
    photo, (width, height), mode = load_photo(image)
    x = to_nchw(photo)
    conv = random_filters(seed)
    edges = sobel_filters()
    grey = to_grey(x)
    y, derivatives = conv(x), edges(grey)
    threads = pyconv.get_num_threads()
    print(f"pyconv  {pyconv.__version__}, ISA {config.isa()}, {threads} thread{'s' * (threads > 1)}")
    print(f"photo   {image.name!r}, {width} x {height}, {mode}, resized to {SIDE} x {SIDE}")
    print(f"layer   {conv!r}")
    print(f"input   {x.shape} {x.dtype}, read through np.moveaxis, not copied")
    print(f"weight  {conv.weight.shape} {conv.weight.dtype}")
    print(f"output  {y.shape} {y.dtype}")
    print(f"time    {best_time(conv, x)}")
    print(f"edges   {grey.shape} -> {derivatives.shape}, {best_time(edges, grey)}")
    _write(output, draw(photo, conv.weight, y[0], edge_strength(derivatives)))
    print(f"picture {str(output)!r}")


def load_photo(path: Path) -> tuple[np.ndarray, tuple[int, int], str]:
    """Read any image that Pillow can read.

    Parameters
    ----------
    path : Path
        A regular file.

    Returns
    -------
    photo : ndarray, shape (224, 224, 3), uint8
        The pixels as RGB; what is transparent is white.
    size : tuple of int
        Width and height in the file, held upright.
    mode : str
        Pillow's name of the pixel format in the file.

    Raises
    ------
    DemoError
        If there is no such file, or it is no image, or a broken or a far too large one.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = repr(str(path))
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise _error(f"{name} is a directory, not an image")
        if not stat.S_ISREG(status.st_mode):
            raise _error(f"{name} is not a regular file")
        if status.st_size == 0:
            raise _error(f"{name} is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                mode = file.mode
                upright = ImageOps.exif_transpose(file)
                resized = _to_rgb(upright).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
                return np.asarray(resized), upright.size, mode
    except DemoError:
        raise
    except UnidentifiedImageError:
        raise _error(f"{name} is not an image that Pillow can read") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _error(f"{name} is too large, the limit is {Image.MAX_IMAGE_PIXELS} pixels: resize it first") from None
    except Exception as error:  # noqa: BLE001 - Pillow's decoders meet a broken file with errors of any class
        raise _error(f"cannot read {name}: {_reason(error)}") from None


def _to_rgb(image: Image) -> Image:
    """Convert from any Pillow mode to RGB, transparency to white."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_bytes(np.asarray(image), image.mode))
    elif "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_bytes(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Scale deep grey pixels to uint8 from their range, where Pillow's convert would cut at 255."""
    pixels = np.nan_to_num(pixels.astype(np.float64))
    low, high = 0.0, 1.0 if mode == "F" else 65535.0
    if pixels.min() < low or pixels.max() > high:  # no range by convention: the one it fills
        low, high = pixels.min(), pixels.max()
    return np.rint((pixels / 2 - low / 2) / (high / 2 - low / 2) * 255).astype(np.uint8)  # halves: no overflow


def to_nchw(photo: np.ndarray) -> np.ndarray:
    """View a photo (H, W, 3) of uint8 as float32 (1, 3, H, W) in [0, 1]; the scaling is the only copy."""
    scaled = photo.astype(np.float32) / np.float32(255)
    return np.moveaxis(scaled, -1, 0)[np.newaxis]


def to_grey(x: np.ndarray) -> np.ndarray:
    """Weigh R, G and B of a batch (N, 3, H, W) into luma, shape (N, 1, H, W) (ITU-R BT.601)."""
    return np.einsum("nchw,c->nhw", x, np.array([0.299, 0.587, 0.114], x.dtype))[:, np.newaxis]


def random_filters(seed: int) -> nn.Conv2d:
    """Build the layer: two random 7x7 filters for each of R, G and B, at half the resolution."""
    pyconv.manual_seed(seed)
    conv = nn.Conv2d(3, 6, 7, stride=2, padding=3, groups=3, bias=False)
    nn.init.xavier_uniform_(conv.weight, gain=nn.init.calculate_gain("relu"))
    return conv.eval()


def sobel_filters() -> nn.Conv2d:
    """Build the Sobel filters: the horizontal and the vertical derivative of one channel."""
    conv = nn.Conv2d(1, 2, 3, padding=1, bias=False, padding_mode="replicate")
    across = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    conv.weight[:, 0] = across, across.T
    return conv.eval()


def edge_strength(derivatives: np.ndarray) -> np.ndarray:
    """Return the length of the gradient, shape (H, W), from derivatives of shape (1, 2, H, W)."""
    return np.hypot(derivatives[0, 0], derivatives[0, 1])


def best_time(conv: nn.Conv2d, x: np.ndarray, seconds: float = 0.2, least_calls: int = 3) -> str:
    """Time one call, the best of as many as fit into `seconds`, as text."""
    times: list[int] = []
    end = time.perf_counter() + seconds
    while len(times) < least_calls or time.perf_counter() < end:
        start = time.perf_counter_ns()
        conv(x)
        times.append(time.perf_counter_ns() - start)
    microseconds = min(times) / 1e3
    amount = f"{microseconds:.1f} us" if microseconds < SLOW else f"{microseconds / 1e3:.2f} ms"
    return f"{amount} per call (best of {len(times)})"


def draw(photo: np.ndarray, weight: np.ndarray, maps: np.ndarray, edges: np.ndarray) -> Figure:
    """Draw the photo, its edges and its feature maps.

    Parameters
    ----------
    photo : ndarray, shape (H, W, 3), uint8
        What was convolved.
    weight : ndarray, shape (6, 1, 7, 7)
        The filters, two for each channel; drawn in the corners of their maps.
    maps : ndarray, shape (6, oh, ow)
        What the filters made of it.
    edges : ndarray, shape (H, W)
        The strength of its edges, drawn dark on light.

    Returns
    -------
    matplotlib.figure.Figure
        Its axes are the photo, the edges and the six maps.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context("default"):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
        layer = "Conv2d(3, 6, 7, stride=2, padding=3, groups=3, bias=False)"
        filters = (
            "R, G and B have two random filters each, drawn in the corners (red: positive, blue: negative weights)"
        )
        figure.text(GAP / WIDTH, 1 - 62 / HEIGHT, "A photo through pyconv", color=INK, fontsize=24, weight="bold")
        figure.text(GAP / WIDTH, 1 - 102 / HEIGHT, f"{layer}: {filters}", color=INK, fontsize=14)
        _panel(figure, (0, 0), photo, f"photo, {photo.shape[1]} x {photo.shape[0]}", INK)
        _panel(figure, (1, 0), 1 - _stretched(edges, 0, 99.5), "edges, two Sobel filters on grey", INK)
        for i, plane in enumerate(maps):
            channel, row = divmod(i, 2)
            title = f"{CHANNELS[channel]}, map {i}, {plane.shape[1]} x {plane.shape[0]}"
            axes = _panel(figure, (row, 1 + channel), _stretched(plane, 1, 99), title, CHANNEL_COLOURS[channel])
            _filter(axes, weight[i, 0])
    return figure


def _stretched(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale to [0, 1] between two percentiles, so that a few extreme pixels do not take the contrast of the others."""
    bottom, top = np.percentile(plane, (low, high))
    span = top - bottom if top > bottom else 1  # a plain image has no contrast
    return np.clip((plane - bottom) / span, 0, 1)


def _panel(figure: Figure, place: tuple[int, int], pixels: np.ndarray, title: str, colour: str) -> Axes:
    """Show one image, grey in [0, 1] or RGB, in a frame in the given row and column."""
    row, column = place
    left, top = GAP + column * (PANEL + GAP), HEAD + row * (PANEL + TITLE)
    axes = figure.add_axes((left / WIDTH, 1 - (top + PANEL) / HEIGHT, PANEL / WIDTH, PANEL / HEIGHT))
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=15, color=colour, loc="left")
    _frame(axes, colour)
    return axes


def _filter(axes: Axes, kernel: np.ndarray) -> None:
    """Show the weights of one filter in the lower left corner of its map."""
    corner = axes.inset_axes((0.02, 0.02, 0.1875, 0.1875))
    top = abs(kernel).max()
    corner.imshow(kernel, cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
    _frame(corner, "white")


def _frame(axes: Axes, colour: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=colour, linewidth=2)


def _require_drawing() -> None:
    advice = "pyconv demo needs matplotlib and pillow: pip install 'pyconv-cpu[demo]'"
    try:
        import matplotlib.figure  # noqa: F401
        import PIL.Image  # noqa: F401
    except ModuleNotFoundError:
        raise DemoError(advice) from None
    except ImportError as error:  # installed, but not in working order
        raise DemoError(f"{advice} ({_reason(error)})") from None


def _sample_photo() -> Path:
    from matplotlib import get_data_path

    path = Path(get_data_path(), "sample_data", "grace_hopper.jpg")
    if not path.exists():  # some distributions leave the sample data out
        raise _error("this matplotlib comes without its sample photo: name an image, pyconv demo IMAGE")
    return path


def _check_output(output: Path, image: Path) -> None:
    """Refuse what could be written but should not be: another format's name, the photo itself."""
    if output.suffix.lower() not in {"", ".png"}:
        raise _error(f"the picture is a PNG: --output must end in .png, got {str(output)!r}")
    if output.exists() and image.exists() and output.samefile(image):
        raise _error(f"--output would overwrite the photo {str(image)!r}")


def _write(path: Path, figure: Figure) -> None:
    """Draw in memory first, so that a failure to draw leaves no half a file."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    try:
        path.write_bytes(png.getbuffer())
    except (OSError, ValueError) as error:
        raise _error(f"cannot write {str(path)!r}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Say what went wrong in one line, without the path, which the message has named already."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
