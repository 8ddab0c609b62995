"""The claim that a photo keeps its colours in the video, looked at by decoding and in a real browser.

    Display P3 photo ─► read_image ─► write_video ─┬─► decoded by ITU-R BT.709
                                                   └─► <video> in Chromium, screenshot
    Display P3 photo ─► <img> in Chromium, which is a colour-managed viewer, screenshot

Whatever height a video has: players guess from it where a video does not say.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from flowportrait.media.image import read_image
from flowportrait.media.stream import write_video_stream
from flowportrait.media.write_video import write_video
from tests.media.test_write_video import decoded_with_bt709
from tests.study_browser import browser

PATCHES = np.array([
    [224, 172, 145], [90, 60, 48], [198, 134, 66], [255, 219, 195], [60, 110, 60], [40, 70, 160], [180, 40, 50],
    [230, 200, 40], [120, 60, 130], [20, 20, 20], [128, 128, 128], [240, 240, 240],
], np.uint8)  # fmt: skip
"""sRGB of the patches, skins first; four columns, three rows."""
COLUMNS, ROWS = 4, 3
P3_TO_XYZ = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB_TO_XYZ = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
"""Both adapted to the white D50 of profiles."""
MOST = 2.0
"""ΔE2000 that is visible at a glance."""
SIDES = (480, 720, 1080)


def display_p3() -> bytes:
    """An ICC profile (version 4) of Display P3: three primaries and sRGB's curve."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    def text(words: str) -> bytes:
        return (
            b"mluc\0\0\0\0"
            + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 2 * len(words), 28)
            + words.encode("utf-16-be")
        )

    curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags = {
        b"desc": text("Display P3"), b"cprt": text("none"), b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249),
        b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    tags |= {name: b"XYZ \0\0\0\0" + fixed(*P3_TO_XYZ[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    table, body, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        padded = value + bytes(-len(value) % 4)
        table += name + struct.pack(">II", place + len(body), len(value))
        body += padded
    data = struct.pack(">I", len(tags)) + table + body
    head = struct.pack(">I4s4s4s4s4s", 128 + len(data), b"\0\0\0\0", b"\x04\0\0\0", b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + data


def linear(colours: np.ndarray) -> np.ndarray:
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def photo(path: Path, side: int) -> Path:
    """A Display P3 picture of the patches."""
    light = linear(PATCHES / 255) @ SRGB_TO_XYZ.T @ np.linalg.inv(P3_TO_XYZ).T
    stored = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(0) ** (1 / 2.4) - 0.055)
    grid = np.round(stored.clip(0, 1) * 255).astype(np.uint8).reshape(ROWS, COLUMNS, 3)
    picture = grid.repeat(side // ROWS, 0).repeat(side // COLUMNS, 1)
    Image.fromarray(picture).save(path, icc_profile=display_p3())
    return path


def patches_of(picture: np.ndarray) -> np.ndarray:
    """The mean colour in the middle of every patch ``[12, 3]``."""
    height, width = picture.shape[0] // ROWS, picture.shape[1] // COLUMNS
    middles = [
        picture[row * height + height // 3 : row * height + 2 * height // 3,
                column * width + width // 3 : column * width + 2 * width // 3]
        for row in range(ROWS) for column in range(COLUMNS)
    ]  # fmt: skip
    return np.array([middle.reshape(-1, 3).mean(0) for middle in middles])


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """ΔE2000 ``[12]`` of colours ``[12, 3]`` in sRGB."""
    return np.asarray(deltaE_ciede2000(rgb2lab(one.clip(0, 255) / 255), rgb2lab(other.clip(0, 255) / 255)))


def written(folder: Path, suffix: str, side: int) -> Path:
    """The photo as a video of half a second; ``live.mp4``: as a stream."""
    picture = read_image(photo(folder / f"photo{side}.png", side))
    path = folder / f"video{side}.{suffix}"
    if suffix == "live.mp4":
        write_video_stream(path, [picture] * 13, lambda index: np.zeros(640, np.float32))
    else:
        write_video(path, [picture] * 13, None)
    return path


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("suffix", ["mp4", "mov", "webm", "live.mp4"])
def test_a_display_p3_photo_has_its_colours_in_the_file(tmp_path: Path, suffix: str, side: int) -> None:
    with av.open(str(written(tmp_path, suffix, side))) as container:
        frame = next(container.decode(video=0))
    found = difference(patches_of(decoded_with_bt709(frame)), PATCHES)
    print(f"{suffix} {side}: largest ΔE {found.max():.2f}, mean {found.mean():.2f}")
    assert found.max() < MOST


def screenshot(page: Any, element: str) -> np.ndarray:
    """What a page shows of its first element of this name ``[H, W, 3]``."""
    from io import BytesIO

    shot = Image.open(BytesIO(page.locator(element).first.screenshot(type="png")))
    return np.asarray(shot.convert("RGB"))


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_a_browser_shows_the_colours_of_the_photo(tmp_path: Path, side: int) -> None:
    """FLOWPORTRAIT_SCREENSHOTS names a folder in which the screenshots are kept."""
    kept = Path(os.environ.get("FLOWPORTRAIT_SCREENSHOTS", tmp_path))
    suffixes = ("mp4", "webm", "live.mp4")
    videos = [written(tmp_path, suffix, side) for suffix in suffixes]
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": side + 40, "height": side + 40})
        shown = {}
        for name, tag in [(f"photo{side}.png", "img")] + [(path.name, "video") for path in videos]:
            (tmp_path / "page.html").write_text(
                f"<body style='margin:0'><{tag} src='{name}' width={side} style='display:block' muted></{tag}>"
            )
            page.goto((tmp_path / "page.html").as_uri())
            if tag == "video":
                page.wait_for_function("() => document.querySelector('video').readyState >= 2", timeout=60_000)
                page.evaluate("""() => new Promise(done => {
                    const video = document.querySelector('video');
                    video.onseeked = () => requestAnimationFrame(() => requestAnimationFrame(done));
                    video.currentTime = 0.2;
                })""")
            shown[name] = screenshot(page, tag)
            Image.fromarray(shown[name]).save(kept / f"{name}.png")
    seen_photo = patches_of(shown.pop(f"photo{side}.png"))
    assert difference(seen_photo, PATCHES).max() < 1
    for name, picture in shown.items():
        found = difference(patches_of(picture), seen_photo)
        print(f"{name}: largest ΔE {found.max():.2f}, mean {found.mean():.2f}")
        assert found.max() < MOST, (name, found.round(1))
