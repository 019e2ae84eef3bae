"""Turn the figures' files into pictures that lie within the page."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

COLOURS = 256
CSS_DPI = 96  # pixels of the page per inch
NEARLY_WHITE = 250  # the mean of a palette's colour that holds white
LARGEST = 4000  # pixels of a side; larger pictures are scaled down


@dataclass(frozen=True)
class Picture:
    """A picture: its data: URI, and its width and height in pixels of the page."""

    uri: str
    width: int
    height: int


def pictures(paths: Sequence[str | Path], threads: int) -> list[Picture]:
    """The pictures of PNG files, each with a palette of its own."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(picture, paths))


def picture(path: str | Path) -> Picture:
    """The picture of a PNG file, with a palette of 256 colours if that makes it smaller."""
    with Image.open(path) as image:
        dots = image.info.get("dpi", (CSS_DPI, CSS_DPI))[0] or CSS_DPI
        width, height = (max(1, round(side * CSS_DPI / dots)) for side in image.size)
        image.load()
        image = image.convert("RGB") if image.mode in ("P", "L", "1") else image
        if image.mode == "RGBA":
            opaque = image.getchannel("A").getextrema()[0] == 255
            image = image if opaque else Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
        if max(image.size) > LARGEST:
            image.thumbnail((LARGEST, LARGEST))
    written = BytesIO()
    image = image.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.putpalette([255 if value > NEARLY_WHITE else value for value in image.getpalette()])
    image.save(written, "png", compress_level=4)
    data, given = written.getvalue(), Path(path).read_bytes()
    return Picture(data_uri(given if len(given) < len(data) else data, "image/png"), width, height)


def logo(path: str | Path) -> str:
    """The data: URI of a picture of any kind, as it is."""
    return data_uri(Path(path).read_bytes(), mimetypes.guess_type(path)[0] or "image/png")


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as a data: URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
