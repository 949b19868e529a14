"""Pictures, read strictly: any file that Pillow decodes in full becomes one upright RGB picture, or is refused.

What is done, so that every model sees the same pixels:

| in the file | in the picture |
|---|---|
| EXIF orientation | applied: the picture is upright, and a "row" is what a person calls a row |
| transparency | laid over white |
| 16-bit greyscale | divided by 257 and rounded, so 0 stays 0 and 65535 becomes 255 |
| 16-bit colour | the high byte of each channel, as Pillow decodes it |
| greyscale, CMYK, YCbCr, HSV, LAB | Pillow's conversion to RGB; colour profiles are not applied |
| several frames or pages, a cut-off file, more than `PIXEL_CAP` pixels or `MAX_PICTURE_BYTES` bytes | refused |
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from grains_ref.files import MAX_PICTURE_BYTES, is_address, printable

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # of files; none of them runs another program
PIXEL_CAP = 50_000_000  # larger pictures are refused before they are decoded, from the size in the header

OPAQUE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")  # Pillow's modes, but for the 16-bit ones
TRANSPARENT = ("LA", "PA", "RGBA", "RGBa")
WRONG_KEY = ("L;2", "L;4", "RGB;16B", "I;16B")  # raw PNG modes whose transparent colour Pillow compares wrongly

FIRST_BYTES = {  # what files that are no picture begin with; only used to word a hint
    b"version https://git-lfs": "It is a Git LFS pointer; fetch the file itself with: git lfs pull",
    b"<svg": "It is an SVG drawing; export it as a PNG.",
    b"<": "It starts like a web page or XML; the download may have saved an error page.",
    b"%PDF": "It is a PDF; export the page as a PNG.",
}


class PictureError(ValueError):
    """A picture cannot be used; the message names the file and says what to do."""

    def __str__(self) -> str:
        return printable(super().__str__())


def read_picture(source: str | os.PathLike[str] | Image.Image) -> Image.Image:
    """An upright RGB picture in memory, from a file or from any Pillow picture.

    The result is new: it carries no EXIF data, no transparency and no open file, and the caller's picture keeps its
    pixels. Reading the result once more changes nothing.

    Convention: transparent pixels are laid over white, as a person sees them on a page.

    Raises:
        PictureError: missing, empty, cut-off or broken file, a directory, no picture at all, more than `PIXEL_CAP`
            pixels, several frames, or a pixel format without an agreed meaning in RGB.
        TypeError: `source` is neither a path nor a Pillow picture.
    """
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "")) or "the picture in memory"
        with _explained(name):
            _check_header(source, name)
            return _rgb(ImageOps.exif_transpose(source), name)  # turns a copy
    if not isinstance(source, (str, os.PathLike)):
        advice = "Wrap bytes in io.BytesIO for PIL.Image.open; turn an array into one with PIL.Image.fromarray."
        raise TypeError(f"expected a path or a PIL.Image.Image, found {type(source).__name__}. {advice}")
    name = os.fspath(source)
    _check_file(name)
    with _explained(name), open(name, "rb") as file, Image.open(file, formats=FORMATS) as picture:
        _check_header(picture, name)
        ImageOps.exif_transpose(picture, in_place=True)  # decodes the picture; a copy would cost as much memory again
        return _rgb(picture, name)


def picture_digest(picture: Image.Image) -> str:
    """SHA-256 (hex) of the size and the RGB bytes: the same pixels have one digest, from whatever file they came.

    Raises:
        PictureError: the picture is not RGB.
    """
    if picture.mode != "RGB":
        raise PictureError(f"expected an RGB picture, found mode {picture.mode!r}; pass it through read_picture first.")
    return hashlib.sha256(f"{picture.width}x{picture.height}:".encode() + picture.tobytes()).hexdigest()


def _rgb(upright: Image.Image, name: str) -> Image.Image:
    """A new RGB picture from an upright one of any mode."""
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        upright = _eight_bits(upright, name)
    elif upright.mode not in OPAQUE + TRANSPARENT:
        where = "decimal numbers have no agreed white" if upright.mode == "F" else "it has no agreed meaning in RGB"
        advice = "Scale the values to 0..255 and save them as an 8-bit PNG."
        raise PictureError(f"{name}: Pillow's mode {upright.mode!r} is not read: {where}. {advice}")
    page = Image.new("RGB", upright.size, "white")
    if _is_transparent(upright):
        layer = upright.convert("RGBA")
        page.paste(layer, mask=layer.getchannel("A"))
    else:
        page.paste(upright.convert("RGB"))
    return page


def _check_header(picture: Image.Image, name: str) -> None:
    """Refuse, before a pixel is decoded, what should not be decoded."""
    width, height = picture.size
    if width * height > PIXEL_CAP:
        size = f"{width} x {height} = {width * height:,} pixels"
        raise PictureError(f"{name}: {size}, at most {PIXEL_CAP:,} are read; scale it down, or cut out what matters.")
    if width * height == 0:
        raise PictureError(f"{name}: {width} x {height} has no pixel; expected at least 1 x 1.")
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # MPO: a phone's JPEG whose second frame is a preview or a depth map
        advice = "Save the one that is meant as a PNG: picture.seek(i), then picture.copy().save(...)."
        raise PictureError(f"{name}: holds {frames} frames, pages or layers; expected a single picture. {advice}")
    if isinstance(picture, ImageFile.ImageFile) and ImageFile.LOAD_TRUNCATED_IMAGES:
        problem = "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, with which half a picture reads like a whole one"
        raise PictureError(f"{name}: {problem}; some code in this process has set it. Set it to False.")
    if "transparency" in picture.info:
        raw_modes = {str(tile[3]) for tile in getattr(picture, "tile", ())}  # empty once the picture is decoded
        if raw_modes & set(WRONG_KEY) or picture.mode.startswith("I"):
            problem = "a transparent colour in a picture of 2, 4 or 16 bits per channel, which Pillow does not apply"
            raise PictureError(f"{name}: {problem}. Save it with an alpha channel, or without transparency.")


def _is_transparent(picture: Image.Image) -> bool:
    palette_has_alpha = picture.palette is not None and picture.palette.mode.endswith("A")
    return picture.mode in TRANSPARENT or "transparency" in picture.info or palette_has_alpha


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """16-bit greyscale as 8 bits: value / 257, rounded. Pillow's own conversion clips, and all above 255 is white."""
    values = np.asarray(picture)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        problem = f"values from {low} to {high} in 32-bit greyscale; expected 16-bit values, 0 to 65535"
        raise PictureError(f"{name}: {problem}. Scale them, and save the picture as an 8-bit PNG.")
    rounded = np.empty(values.shape, np.uint8)
    for row, of_row in zip(rounded, values, strict=True):  # all rows at once would need a gigabyte for a large picture
        row[:] = (of_row.astype(np.int32) + 128) // 257
    return Image.fromarray(rounded)


def _check_file(name: str) -> None:
    if os.path.isdir(name):
        raise PictureError(f"{name}: is a directory; name the picture in it.")
    if is_address(name):
        raise PictureError(f"{name[:80]}: is an address, not a file; download the picture and give its path.")
    if not os.path.exists(name):
        raise PictureError(f"{name}: no such file (looked in {os.path.dirname(os.path.abspath(name))})")
    if not os.path.isfile(name):  # a named pipe would block for ever
        raise PictureError(f"{name}: is not a regular file; save the picture as a file first.")
    size = os.path.getsize(name)
    if size == 0:
        raise PictureError(f"{name}: the file is empty (0 bytes); copy or download it again.")
    if size > MAX_PICTURE_BYTES:
        problem = f"the file has {size:,} bytes, and at most {MAX_PICTURE_BYTES:,} are read"
        raise PictureError(f"{name}: {problem}; a picture of at most {PIXEL_CAP:,} pixels has fewer.")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Every failure of Pillow as a `PictureError` that names the file and the next step."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        hint = _hint(name) if os.path.isfile(name) else "The stream it was opened from is broken."
        raise PictureError(f"{name}: not a picture that Pillow can read. {hint}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        problem = f"its header claims too many pixels to be decoded ({error})"
        raise PictureError(f"{name}: {problem}; at most {PIXEL_CAP:,} are read. Scale it down.") from error
    except PermissionError as error:
        raise PictureError(f"{name}: may not be read ({error.strerror}); check the file's permissions.") from error
    except Exception as error:  # fed broken bytes, decoders raise nearly anything
        problem = f"cannot be decoded: {str(error) or type(error).__name__}"
        advice = "The file is cut off or broken; copy or download it again, or save it anew as a PNG."
        raise PictureError(f"{name}: {problem}. {advice}") from error


def _hint(name: str) -> str:
    """What the file probably is instead, from its first bytes."""
    with open(name, "rb") as file:
        start = file.read(64).lstrip()
    for known, hint in FIRST_BYTES.items():
        if start.startswith(known):
            return hint
    if start[4:8] == b"ftyp":
        return "It may be a HEIC or AVIF photo, or a film; save it as a JPEG or PNG."
    if start.isascii() and b"\0" not in start:
        return f"It starts like a text file, with {start[:20].decode()!r}; give the path of the picture itself."
    return "Expected a PNG, JPEG or the like; the file may be broken, or of a format that Pillow lacks."
