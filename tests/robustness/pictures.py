"""Seeded pictures, odd and damaged: read as what they show, or refused with a reason; never quietly something else.

rng = random.Random(0)
for _ in range(40_000):
    campaign(rng, folder)
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from grains_ref.data.images import PIXEL_CAP, PictureError, picture_digest, read_picture


class Made(NamedTuple):
    """A file, and what must be read from it: a picture to within a tolerance, a refusal, or (None) either."""

    content: bytes
    shows: np.ndarray | None = None
    refused: bool = False
    tolerance: int = 0


BEGINNINGS = (
    b"", b"\0", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"RIFF0000WEBP", b"<svg>", b"%PDF-1.7",
    b"version https://git-lfs", b"P6 0 0 255\n", b"II*\0\0\0\0\0",
)  # fmt: skip
ORIENTATION = 0x0112
# How a reader turns the stored picture upright, by EXIF's own table: orientation -> what to do with rows and columns.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}


def pixels(rng: random.Random, channels: int = 3) -> np.ndarray:
    height, width = rng.randint(1, 24), rng.randint(1, 24)
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(rng.getrandbits(32)).integers(0, 256, shape, dtype=np.uint8)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def over_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.float64) / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


# --- right pictures of every kind


def lossless(rng: random.Random) -> Made:
    shows = pixels(rng)
    kind = rng.choice(["PNG", "BMP", "TIFF", "PPM", "WEBP"])
    return Made(encoded(Image.fromarray(shows), kind, **({"lossless": True} if kind == "WEBP" else {})), shows)


def grey(rng: random.Random) -> Made:
    values = pixels(rng, 1)
    return Made(encoded(Image.fromarray(values), rng.choice(["PNG", "BMP", "TIFF", "PPM", "GIF"])), as_rgb(values))


def one_bit(rng: random.Random) -> Made:
    values = np.where(pixels(rng, 1) > 127, 255, 0).astype(np.uint8)
    picture = Image.fromarray(values).convert("1", dither=Image.Dither.NONE)
    return Made(encoded(picture, rng.choice(["PNG", "BMP", "TIFF"])), as_rgb(values))


def sixteen_bits(rng: random.Random) -> Made:
    values = np.random.default_rng(rng.getrandbits(32)).integers(0, 65536, (5, 7), dtype=np.uint16)
    picture = Image.fromarray(values)
    return Made(
        encoded(picture, rng.choice(["PNG", "TIFF"])), as_rgb(((values.astype(int) + 128) // 257).astype(np.uint8))
    )


def palette(rng: random.Random) -> Made:
    picture = Image.fromarray(pixels(rng)).quantize(rng.randint(2, 64))
    return Made(encoded(picture, rng.choice(["PNG", "GIF", "BMP", "TIFF"])), np.asarray(picture.convert("RGB")))


def palette_with_a_clear_colour(rng: random.Random) -> Made:
    picture = Image.fromarray(pixels(rng)).quantize(8)
    clear = int(np.asarray(picture)[0, 0])
    shows = np.asarray(picture.convert("RGB")).copy()
    shows[np.asarray(picture) == clear] = 255
    return Made(encoded(picture, rng.choice(["PNG", "GIF"]), transparency=clear), shows)


def transparent(rng: random.Random) -> Made:
    rgba = pixels(rng, 4)
    kind = rng.choice(["PNG", "TIFF", "WEBP"])
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    return Made(encoded(Image.fromarray(rgba, "RGBA"), kind, **options), over_white(rgba), tolerance=1)


def grey_and_transparent(rng: random.Random) -> Made:
    values = pixels(rng, 2)
    rgba = np.concatenate([np.repeat(values[..., :1], 3, axis=2), values[..., 1:]], axis=2)
    return Made(encoded(Image.fromarray(values, "LA"), "PNG"), over_white(rgba), tolerance=1)


def cmyk(rng: random.Random) -> Made:
    picture = Image.fromarray(pixels(rng, 4), "CMYK")
    return Made(encoded(picture, "TIFF"), np.asarray(picture.convert("RGB")))


def rotated(rng: random.Random) -> Made:
    stored, orientation = pixels(rng), rng.randint(1, 8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return Made(encoded(Image.fromarray(stored), "PNG", exif=exif), UPRIGHT[orientation](stored))


def jpeg(rng: random.Random) -> Made:
    level = rng.randrange(256)
    shows = np.full((rng.randint(1, 40), rng.randint(1, 40), 3), level, np.uint8)
    picture = Image.fromarray(shows).convert(rng.choice(["RGB", "L"]))
    return Made(encoded(picture, "JPEG", quality=95, progressive=rng.random() < 0.5), shows, tolerance=2)


# --- what is no single picture, or too large to be one


def several_frames(rng: random.Random) -> Made:
    levels = rng.sample(range(0, 256, 32), rng.randint(2, 4))  # frames that are nearly equal WebP stores as one
    frames = [Image.fromarray(np.full((6, 6, 3), level, np.uint8)) for level in levels]
    kind = rng.choice(["GIF", "TIFF", "WEBP", "PNG"])
    return Made(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), refused=True)


def decimals(rng: random.Random) -> Made:
    values = np.random.default_rng(rng.getrandbits(32)).random((4, 4), dtype=np.float32)
    return Made(encoded(Image.fromarray(values), "TIFF"), refused=True)


def bomb(rng: random.Random) -> Made:
    """A PNG whose header claims more pixels than are read, and whose data would unpack to them or to anything."""
    side = rng.choice([8_000, 20_000, 60_000, 2**31 - 1])
    header = struct.pack(">IIBBBBB", side, side, 8, rng.choice([0, 2]), 0, 0, 0)
    data = zlib.compress(bytes(rng.choice([0, 10, 1_000_000])))
    assert side * side > PIXEL_CAP
    return Made(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""), refused=True
    )


def text_bomb(rng: random.Random) -> Made:
    """A PNG with a compressed comment of many megabytes beside a small picture."""
    whole = encoded(Image.fromarray(pixels(rng)), "PNG")
    comment = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(rng.choice([1 << 10, 1 << 24]))))
    return Made(whole[:33] + comment + whole[33:])


def nothing(rng: random.Random) -> Made:
    return Made(rng.choice(BEGINNINGS), refused=True)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


WHOLE: tuple[Callable[[random.Random], Made], ...] = (
    lossless, grey, one_bit, sixteen_bits, palette, palette_with_a_clear_colour, transparent, grey_and_transparent,
    cmyk, rotated, jpeg,
)  # fmt: skip
OTHERS = (several_frames, decimals, bomb, text_bomb, nothing)


# --- damage, of which either a refusal or a picture of the size in the header may come


def damaged(rng: random.Random) -> Made:
    content = bytearray(rng.choice(WHOLE)(rng).content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content)) if content else 0
        kind = rng.choice(["flip", "cut", "splice", "zero", "insert", "number"])
        if not content:
            break
        if kind == "flip":
            content[place] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del content[place:]
        elif kind == "splice":
            del content[place : place + rng.randint(1, 40)]
        elif kind == "zero":
            content[place : place + 8] = bytes(len(content[place : place + 8]))
        elif kind == "insert":
            content[place:place] = rng.randbytes(rng.randint(1, 20))
        else:  # a size, a count, an offset
            content[place : place + 4] = struct.pack(
                rng.choice("<>") + "I", rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 65536])
            )
    return Made(bytes(content))


def cut_png(rng: random.Random) -> Made:
    """Without its end a PNG is half a picture: the lower rows must not come out black or white."""
    noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "PNG")
    return Made(whole[: rng.randint(1, len(whole) - 30)], refused=True)


def campaign(rng: random.Random, folder: Path) -> str:
    """One picture; "accepted" or "refused". A wrong or silent outcome raises AssertionError."""
    make = rng.choice([*WHOLE, *OTHERS, damaged, damaged, damaged, damaged, cut_png])
    made = make(rng)
    path = folder / rng.choice(["picture.png", "picture.jpg", "picture", "\x1b[2J.png"])
    path.write_bytes(made.content)
    try:
        picture = read_picture(path)
    except PictureError as error:
        _check_refusal(str(error), path.name, make.__name__, made)
        return "refused"
    finally:
        path.unlink()
    assert not made.refused, f"{make.__name__} was read as a picture of {picture.size}"
    _check(picture, made)
    return "accepted"


def _check_refusal(message: str, name: str, make: str, made: Made) -> None:
    assert made.shows is None, f"{make} was refused: {message}"
    assert "\x1b" not in message, "a raw control character is in the message"
    assert name.removeprefix("\x1b") in message, f"the message does not name the file: {message}"


def _check(picture: Image.Image, made: Made) -> None:
    assert picture.mode == "RGB"
    assert 0 < picture.width * picture.height <= PIXEL_CAP
    assert not picture.info, "something of the file came along"
    assert not picture.getexif(), "EXIF data came along"
    if picture.width * picture.height < 1_000_000:  # a second large one would count as the reader's memory
        again = read_picture(picture)
        assert picture_digest(again) == picture_digest(picture), "reading the result once more changes it"
    if made.shows is not None:
        got = np.asarray(picture).astype(int)
        assert got.shape == made.shows.shape, f"{got.shape} instead of {made.shows.shape}"
        assert np.abs(got - made.shows).max() <= made.tolerance, "other pixels"
