"""Pictures are read whole and upright, or refused with a message that says what to do."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from grains_ref.data import images
from grains_ref.data.images import PIXEL_CAP, PictureError, picture_digest, read_picture

pytestmark = pytest.mark.cpu

RED, GREEN, BLUE, YELLOW = (220, 20, 20), (20, 180, 20), (20, 20, 220), (230, 220, 20)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def quarters(width: int = 48, height: int = 32) -> Image.Image:
    """Red | green over blue | yellow: no rotation or mirroring of it looks the same."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(GREEN, (width // 2, 0, width, height // 2))
    picture.paste(BLUE, (0, height // 2, width // 2, height))
    picture.paste(YELLOW, (width // 2, height // 2, width, height))
    return picture


def corners(picture: Image.Image) -> list[tuple[int, ...]]:
    """Top left, top right, bottom left, bottom right: each as the nearest of the four colours."""
    width, height = picture.size
    named = (RED, GREEN, BLUE, YELLOW)
    pixels = [picture.getpixel((x, y)) for y in (0, height - 1) for x in (0, width - 1)]
    return [min(named, key=lambda colour: sum((a - b) ** 2 for a, b in zip(colour, p, strict=True))) for p in pixels]


def png(width: int, height: int, bits: int, kind: int, pixels: bytes, transparent: bytes = b"") -> bytes:
    """A PNG byte by byte: `kind` 0 is grey, 2 is RGB; `pixels` are rows with their filter bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    middle = (chunk(b"tRNS", transparent) if transparent else b"") + chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + header + middle + chunk(b"IEND", b"")


def saved(folder: Path, name: str, picture: Image.Image, **options: object) -> Path:
    picture.save(folder / name, **options)
    return folder / name


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def rows(picture: Image.Image) -> list[list[tuple[int, ...]]]:
    return [[tuple(pixel) for pixel in row] for row in np.asarray(picture).tolist()]


def refused(source: str | os.PathLike[str] | Image.Image, *words: str) -> str:
    with pytest.raises(PictureError) as caught:
        read_picture(source)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- what is read


def test_a_plain_picture_keeps_its_pixels_from_path_string_and_memory(tmp_path: Path) -> None:
    path = saved(tmp_path, "plain.png", quarters())
    for source in (path, str(path), quarters(), Image.open(path)):
        picture = read_picture(source)
        assert (picture.mode, picture.size, picture.info) == ("RGB", (48, 32), {})
        assert picture.tobytes() == quarters().tobytes()


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [RED, GREEN, BLUE, YELLOW]),
        (2, [GREEN, RED, YELLOW, BLUE]),
        (3, [YELLOW, BLUE, GREEN, RED]),
        (4, [BLUE, YELLOW, RED, GREEN]),
        (5, [RED, BLUE, GREEN, YELLOW]),
        (6, [BLUE, RED, YELLOW, GREEN]),
        (7, [YELLOW, GREEN, BLUE, RED]),
        (8, [GREEN, YELLOW, RED, BLUE]),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, expected: list, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, f"turned.{suffix}", quarters(), exif=exif)
    picture = read_picture(path)
    assert picture.size == ((32, 48) if orientation >= 5 else (48, 32))
    assert corners(picture) == expected
    with Image.open(path) as opened:
        assert corners(read_picture(opened)) == expected
    assert corners(read_picture(picture)) == expected  # not a second time
    assert corners(ImageOps.exif_transpose(picture)) == expected  # nor by whoever gets the result


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (0, 0, 0, 51)])
    expected = [[(200, 0, 0), WHITE, (204, 204, 204)]]
    assert rows(read_picture(saved(tmp_path, "rgba.png", rgba))) == expected
    assert rows(read_picture(saved(tmp_path, "rgba.webp", rgba, lossless=True, exact=True))) == expected
    grey = Image.new("LA", (3, 1))
    grey.putdata([(90, 255), (90, 0), (0, 51)])
    assert rows(read_picture(saved(tmp_path, "la.png", grey))) == [[(90,) * 3, WHITE, (204,) * 3]]
    assert rows(read_picture(Image.new("PA", (1, 1), (0, 0)))) == [[WHITE]]
    assert rows(read_picture(Image.new("RGBa", (1, 1), (0, 0, 0, 0)))) == [[WHITE]]


@pytest.mark.parametrize(("transparency", "second"), [(1, WHITE), (bytes([255, 51]), (214, 254, 204))])
def test_a_palette_with_transparency_is_laid_over_white(
    tmp_path: Path, transparency: int | bytes, second: tuple[int, int, int]
) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 50, 250, 0])
    picture.putdata([0, 1])
    path = saved(tmp_path, "palette.png", picture, transparency=transparency)
    assert rows(read_picture(path)) == [[(10, 20, 30), second]]
    with Image.open(path) as opened:
        assert rows(read_picture(opened)) == [[(10, 20, 30), second]]


def test_a_palette_whose_own_colours_have_alpha_is_laid_over_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 255, 50, 250, 0, 0], "RGBA")
    picture.putdata([0, 1])
    assert rows(read_picture(picture)) == [[(10, 20, 30), WHITE]]


def test_a_transparent_colour_is_laid_over_white(tmp_path: Path) -> None:
    path = written(tmp_path, "key.png", png(2, 1, 8, 2, bytes([0, 1, 2, 3, 4, 5, 6]), struct.pack(">3H", 1, 2, 3)))
    assert rows(read_picture(path)) == [[WHITE, (4, 5, 6)]]


def test_greyscale_one_bit_and_cmyk_become_rgb(tmp_path: Path) -> None:
    grey = Image.new("L", (2, 1))
    grey.putdata([7, 250])
    assert rows(read_picture(saved(tmp_path, "grey.png", grey))) == [[(7, 7, 7), (250, 250, 250)]]
    assert rows(read_picture(saved(tmp_path, "bits.png", grey.convert("1", dither=0)))) == [[BLACK, WHITE]]
    cmyk = read_picture(saved(tmp_path, "print.jpg", quarters().convert("CMYK"), quality=95))
    assert np.abs(np.asarray(cmyk).astype(int) - np.asarray(quarters())).mean() < 8  # inverted it would be far off
    assert corners(cmyk) == [RED, GREEN, BLUE, YELLOW]


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "RGBX"])
def test_colour_spaces_are_converted_not_reinterpreted(mode: str) -> None:
    picture = read_picture(quarters().convert(mode))
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(quarters())).max() <= 10  # LAB rounds coarsely


def test_16_bit_greyscale_is_scaled_where_pillow_clips(tmp_path: Path) -> None:
    values = np.array([[0, 257, 1000, 32768, 65535]], dtype=np.uint16)
    expected = [[(v, v, v) for v in (0, 1, 4, 128, 255)]]
    path = saved(tmp_path, "deep.png", Image.fromarray(values))
    with Image.open(path) as opened:
        assert opened.mode.startswith("I")
    assert rows(read_picture(path)) == expected
    for same in (Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        assert rows(read_picture(same)) == expected
    big_endian = Image.frombytes("I;16", (5, 1), values.tobytes())
    assert rows(read_picture(saved(tmp_path, "deep.tiff", big_endian))) == expected
    clipped = Image.fromarray(values.astype(np.int32)).convert("L")
    assert np.asarray(clipped).tolist() == [[0, 255, 255, 255, 255]]  # why read_picture does not leave it to Pillow


def test_every_16_bit_value_is_rounded_to_the_nearest() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    got = np.asarray(read_picture(Image.fromarray(values)))[..., 0]
    assert np.abs(got.astype(float) - values / 257.0).max() <= 0.5


def test_a_single_pixel_is_a_picture(tmp_path: Path) -> None:
    assert rows(read_picture(saved(tmp_path, "dot.png", Image.new("RGB", (1, 1), BLUE)))) == [[BLUE]]


def test_a_gif_of_one_frame_is_no_animation(tmp_path: Path) -> None:
    path = saved(tmp_path, "still.gif", Image.new("RGB", (4, 4), RED))
    assert read_picture(path).size == (4, 4)


def test_the_callers_picture_is_left_alone_and_shares_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    quarters().save(stream, "JPEG", exif=exif)
    opened = Image.open(stream)
    before = (opened.size, opened.mode, dict(opened.info), opened.tobytes())
    read_picture(opened)
    assert (opened.size, opened.mode, dict(opened.info), opened.tobytes()) == before
    plain = quarters()
    read_picture(plain).putpixel((0, 0), WHITE)
    assert plain.getpixel((0, 0)) == RED


def test_no_file_stays_open(tmp_path: Path) -> None:
    path = saved(tmp_path, "whole.png", quarters())
    broken = written(tmp_path, "broken.png", path.read_bytes()[:-40])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
        kept = read_picture(path)
        refused(broken)
        if before is not None:
            assert len(os.listdir("/proc/self/fd")) == before
    path.unlink()
    assert kept.getpixel((0, 0)) == RED


# ---------------------------------------------------------------------------------------------- what is refused


def test_missing_empty_and_foreign_files_are_named_with_a_next_step(tmp_path: Path) -> None:
    refused(tmp_path, str(tmp_path), "is a directory")
    refused(tmp_path / "gone.png", "gone.png: no such file", str(tmp_path))
    refused(tmp_path / ("x" * 300), "no such file")
    refused("https://example.org/cat.png", "is an address", "download")
    refused(written(tmp_path, "empty.png", b""), "empty.png: the file is empty")
    refused(written(tmp_path, "text.png", b"A cat on a mat.\n"), "text.png", "text file", "A cat on a mat.")
    refused(written(tmp_path, "page.jpg", b"<!DOCTYPE html><p>404"), "web page")
    refused(written(tmp_path, "lfs.png", b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull")
    refused(written(tmp_path, "vector.png", b"<svg xmlns=''/>"), "SVG")
    refused(written(tmp_path, "noise.png", bytes(range(128, 256))), "not a picture that Pillow can read")
    refused(written(tmp_path, "photo.jpg", b"\0\0\0\x18ftypheic\0\0\0\0"), "HEIC")
    with pytest.raises(TypeError, match=r"found bytes\. Wrap"):
        read_picture(b"\x89PNG")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"found ndarray\..*fromarray"):
        read_picture(np.zeros((2, 2, 3)))  # type: ignore[arg-type]


def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "not a regular file")


def test_a_file_larger_than_any_picture_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.write(png(2, 1, 8, 0, bytes([0, 1, 2])))
        file.truncate(12 << 30)
    refused(tmp_path / "sparse.png", "12,884,901,888 bytes", "536,870,912 are read", "50,000,000 pixels")


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_picture(name: str) -> None:
    refused(name, f"{name}: is not a regular file")


@pytest.mark.parametrize(
    "name", ["data:image/png;base64,iVBORw0KGgo", "file:///a.png", "s3://bucket/a.png", "http:/a.org/b"]
)
def test_an_address_is_called_one(name: str) -> None:
    refused(name, "is an address, not a file; download the picture")


def test_control_characters_of_a_name_reach_no_message(tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\u202e.png"
    for source in (tmp_path / evil, written(tmp_path, f"a{evil}", b"\x1b[31mtext")):
        assert refused(source, "\\x1b[2J").isprintable()


def test_a_file_without_permission_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "secret.png", quarters())

    def no_access(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", no_access)
    refused(path, "secret.png: may not be read", "permissions")


@pytest.mark.parametrize(
    ("suffix", "options"), [("jpg", {}), ("jpg", {"progressive": True}), ("png", {}), ("gif", {}), ("bmp", {})]
)
def test_a_cut_off_file_is_refused_never_half_read(tmp_path: Path, suffix: str, options: dict) -> None:
    noise = random.Random(0).randbytes(24 * 20 * 3)
    whole = saved(tmp_path, f"whole.{suffix}", Image.frombytes("RGB", (24, 20), noise), **options)
    pixels, content = read_picture(whole).tobytes(), whole.read_bytes()
    closing = 24  # bytes; a file that lacks no more than its closing mark may still be whole in its pixels
    for length in [*range(1, len(content) - closing, 37), len(content) - closing]:
        refused(written(tmp_path, f"cut.{suffix}", content[:length]), f"cut.{suffix}: ")
    for length in range(len(content) - closing + 1, len(content)):
        with contextlib.suppress(PictureError):
            assert read_picture(written(tmp_path, f"cut.{suffix}", content[:length])).tobytes() == pixels
    message = refused(written(tmp_path, f"cut.{suffix}", content[: len(content) // 2]))
    assert "cannot be decoded" in message or "not a picture" in message
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_broken_byte_in_a_png_is_refused(tmp_path: Path) -> None:
    content = bytearray(saved(tmp_path, "whole.png", quarters()).read_bytes())
    content[content.index(b"IDAT") + 12] ^= 0xFF
    refused(written(tmp_path, "flipped.png", bytes(content)), "flipped.png: cannot be decoded", "broken")


@pytest.mark.parametrize("error", [SyntaxError("broken"), struct.error("too short"), EOFError(), IndexError("range")])
def test_whatever_a_decoder_raises_is_a_picture_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = saved(tmp_path, "odd.png", quarters())

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    refused(path, f"odd.png: cannot be decoded: {str(error) or 'EOFError'}.", "download it again")


def test_a_process_that_lets_half_pictures_pass_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "whole.jpg", quarters())
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    refused(path, "LOAD_TRUNCATED_IMAGES is on", "Set it to False")
    assert read_picture(quarters()).size == (48, 32)  # a picture made in memory cannot be half-read


@pytest.mark.parametrize("suffix", ["gif", "png", "tiff", "webp"])
def test_several_frames_are_refused_with_their_number(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    path = saved(tmp_path, f"film.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    refused(path, f"film.{suffix}: holds 3 frames", "picture.seek(i)")
    with Image.open(path) as opened:
        refused(opened, "holds 3 frames")
        opened.seek(1)
        assert corners(read_picture(opened.copy())) == [GREEN] * 4  # the advice works


def test_a_header_that_claims_too_much_is_refused_before_decoding(tmp_path: Path) -> None:
    old = Image.MAX_IMAGE_PIXELS
    pixels = f"{PIXEL_CAP:,}"
    bomb = png(20_000, 20_000, 8, 2, b"")  # beyond what Pillow itself refuses
    refused(written(tmp_path, "bomb.png", bomb), "bomb.png", "too many pixels", "400000000", pixels)
    wide = png(10_000, 10_000, 8, 2, b"")  # Pillow only warns
    refused(written(tmp_path, "wide.png", wide), "wide.png", "too many pixels", "100000000", pixels)
    large = png(10_000, 5_001, 8, 2, b"")  # Pillow says nothing
    refused(written(tmp_path, "large.png", large), "10000 x 5001 = 50,010,000 pixels", pixels, "scale it down")
    assert old == Image.MAX_IMAGE_PIXELS


def test_pillows_own_lower_limit_is_reported_as_a_picture_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    refused(saved(tmp_path, "plain.png", quarters()), "too many pixels", "1536")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(tmp_path / "plain.png", "too many pixels", "1536")


def test_the_cap_itself_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "PIXEL_CAP", 48 * 32)
    assert read_picture(quarters()).size == (48, 32)
    refused(quarters(49, 32), "49 x 32 = 1,568 pixels", "the picture in memory")
    refused(saved(tmp_path, "larger.png", quarters(48, 33)), "larger.png")


def test_values_without_an_agreed_white_are_refused(tmp_path: Path) -> None:
    for values in ([-1, 5], [0, 65536]):
        grey = Image.fromarray(np.array([values], dtype=np.int32))
        refused(grey, f"values from {values[0]} to {values[1]}", "0 to 65535")
    refused(saved(tmp_path, "deep.tiff", grey), "deep.tiff", "values from 0 to 65536")
    refused(Image.new("F", (2, 2), 0.5), "mode 'F'", "decimal numbers", "8-bit PNG")
    refused(saved(tmp_path, "float.tiff", Image.new("F", (2, 2), 0.5)), "float.tiff", "mode 'F'")
    refused(Image.new("La", (2, 2)), "mode 'La'")
    refused(Image.new("RGB", (0, 4)), "0 x 4 has no pixel")


@pytest.mark.parametrize(
    ("bits", "kind", "pixels", "key"),
    [
        (4, 0, bytes([0, 0x0F]), struct.pack(">H", 15)),
        (2, 0, bytes([0, 0b00100000]), struct.pack(">H", 2)),
        (16, 0, b"\0" + struct.pack(">2H", 1000, 2000), struct.pack(">H", 1000)),
        (16, 2, b"\0" + struct.pack(">6H", 1000, 2000, 3000, 1, 1, 1), struct.pack(">3H", 1000, 2000, 3000)),
    ],
)
def test_a_transparent_colour_that_pillow_would_miss_is_refused(
    tmp_path: Path, bits: int, kind: int, pixels: bytes, key: bytes
) -> None:
    refused(written(tmp_path, "key.png", png(2, 1, bits, kind, pixels, key)), "transparent colour", "alpha channel")
    assert read_picture(written(tmp_path, "plain.png", png(2, 1, bits, kind, pixels))).size == (2, 1)


# ---------------------------------------------------------------------------------------------- digests


def test_the_same_pixels_have_one_digest_and_others_another(tmp_path: Path) -> None:
    digest = picture_digest(quarters())
    assert len(digest) == 64
    for name in ("a.png", "b.bmp", "c.tiff"):
        assert picture_digest(read_picture(saved(tmp_path, name, quarters()))) == digest
    other = quarters()
    other.putpixel((5, 5), (220, 20, 21))
    assert picture_digest(other) != digest
    flat = [picture_digest(Image.new("RGB", size, RED)) for size in ((2, 6), (6, 2), (3, 4), (12, 1), (1, 12))]
    assert len(set(flat)) == len(flat)  # the bytes alone are the same for all of them


def test_the_digest_of_a_known_picture_does_not_drift() -> None:
    digest = "0c387648e50406c52c3aa8e3601e3b81a6e973081af15e446a9cdd59bc6f5f52"
    assert picture_digest(Image.new("RGB", (2, 1), (1, 2, 3))) == digest


def test_a_digest_is_of_rgb_pixels_only() -> None:
    with pytest.raises(PictureError, match=r"mode 'L'.*read_picture"):
        picture_digest(Image.new("L", (2, 2)))


def test_a_phones_jpeg_with_a_preview_behind_it_is_read(tmp_path: Path) -> None:
    picture, preview = Image.new("RGB", (40, 30), (200, 30, 60)), Image.new("RGB", (8, 6))
    picture.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[preview])
    with Image.open(tmp_path / "phone.jpg") as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)
    assert read_picture(tmp_path / "phone.jpg").size == (40, 30)


def test_a_format_that_would_run_another_program_is_no_picture(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "drawing.eps")
    with pytest.raises(PictureError, match=r"drawing\.eps"):
        read_picture(tmp_path / "drawing.eps")
