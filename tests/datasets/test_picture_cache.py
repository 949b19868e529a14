"""Pictures from inside the data, kept as files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from grains_ref.data.images import PictureError
from grains_ref.datasets.picture_cache import keep_picture

pytestmark = pytest.mark.cpu


def test_a_pillow_picture_is_kept_as_a_png(tmp_path: Path) -> None:
    picture = Image.new("RGB", (5, 4), (1, 2, 3))
    path = keep_picture(picture, cache=tmp_path / "new", folder=tmp_path)
    assert path.suffix == ".png"
    with Image.open(path) as kept:
        assert (kept.size, kept.getpixel((4, 3))) == ((5, 4), (1, 2, 3))
    with pytest.raises(PictureError, match="no picture Pillow can read"):
        keep_picture({"bytes": b"<svg/>", "path": None}, cache=tmp_path, folder=tmp_path)
    with pytest.raises(PictureError, match="neither bytes nor a path"):
        keep_picture({"bytes": None, "path": None}, cache=tmp_path, folder=tmp_path)


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError("no space left on the device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        keep_picture(Image.new("RGB", (5, 4)), cache=tmp_path, folder=tmp_path)
    assert not list(tmp_path.iterdir())
