"""The inside of the mouth: what counts as teeth, how it is measured, and what of a photo moves with the jaw."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from benchmarks.mouth_interior import InteriorTruth, MouthInteriorOptions, TrueInterior, clip_paths
from benchmarks.scenes import Scene
from benchmarks.teeth import PRESENT, balanced_accuracy, grey_share, teeth_share
from skimage import data
from tools.fit_teeth_threshold import otsu_threshold, training_photos

from flowportrait.errors import BadInput
from flowportrait.media.portrait import Portrait
from flowportrait.rendering.face_regions import INNER_LOWER, INNER_UPPER, OUTER_LOWER, opening_outline, outline_mask
from flowportrait.rendering.mouth import Mouth

SKIN = np.array([200.0, 150.0, 130.0])
JAW = [*INNER_LOWER[1:-1], *OUTER_LOWER[1:-1], 152, 148, 377, 175, 199, 176, 400]


@lru_cache
def astronaut() -> Portrait:
    return Portrait.from_image(data.astronaut())


def test_teeth_are_bright_and_without_colour_whatever_the_light() -> None:
    enamel, lip, dark = [210, 205, 190], [200, 90, 100], [40, 20, 20]
    pixels = np.array([enamel] * 3 + [lip] * 4 + [dark] * 3)
    assert teeth_share(pixels, SKIN) == pytest.approx(0.3)
    assert teeth_share(0.4 * pixels, 0.4 * SKIN) == pytest.approx(0.3)
    assert teeth_share(pixels[:0], SKIN) == 0


def test_grey_is_neither_enamel_nor_flesh_nor_dark() -> None:
    pixels = np.array([[90, 88, 85], [210, 205, 190], [200, 90, 100], [20, 20, 20]])
    assert grey_share(pixels, SKIN) == pytest.approx(0.25)


def test_balanced_accuracy_of_a_constant_answer_is_a_half_whatever_the_base_rate() -> None:
    true = np.arange(10) < 9
    assert balanced_accuracy(true, np.ones(10, bool)) == 0.5
    assert balanced_accuracy(true, true) == 1
    assert balanced_accuracy(true, ~true) == 0
    assert np.isnan(balanced_accuracy(np.ones(3, bool), np.ones(3, bool)))


def test_the_threshold_lies_between_two_heaps() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.3, 0.05, 3000), rng.normal(1.1, 0.1, 1000)])
    assert 0.4 < otsu_threshold(values, 2.0) < 0.9


def test_thresholds_are_found_on_training_photos_alone(tmp_path: Path) -> None:
    rows = ["file\tspeaker\tsplit", "celebamask/a\ta\trenderer", "celebamask/b\tb\tdev", "london/002\tl\trenderer"]
    (tmp_path / "split.tsv").write_text("\n".join(rows))
    assert training_photos(tmp_path) == ["celebamask/a"]


def test_clips_that_are_not_there_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"split\.tsv"):
        clip_paths(MouthInteriorOptions(tmp_path))
    (tmp_path / "split.tsv").write_text("file\tspeaker\tsplit\ntalkvid/a.mp4\ta\tdev\n")
    with pytest.raises(BadInput, match="dev"):
        clip_paths(MouthInteriorOptions(tmp_path))


def still_scene() -> Scene:
    """She, smiling, three times."""
    photo = astronaut()
    points = np.repeat(photo.landmarks[None], 3, 0)
    return Scene("astronaut", [photo.crop] * 3, points, np.repeat(photo.blendshapes[None], 3, 0))


def test_true_frames_are_without_error_and_painted_ones_are_not() -> None:
    truth = InteriorTruth(still_scene(), 512)
    same = truth.compare(truth.frames, truth.points)
    assert max(same["error"]) < 1e-6
    assert same["teeth"] == same["true teeth"]
    assert min(same["teeth"]) > PRESENT
    outline = opening_outline(*(truth.points[0][chain, :2] for chain in (INNER_UPPER, INNER_LOWER)))
    inside = outline_mask(truth.frames[0].shape[:2], outline)[..., None]
    dark = [np.round(frame * (1 - 0.9 * inside)).astype(np.uint8) for frame in truth.frames]
    painted = truth.compare(dark, truth.points)
    assert min(painted["error"]) > 0.1
    assert max(painted["teeth"]) < PRESENT


def test_the_ceiling_puts_the_true_interior_between_other_lips() -> None:
    photo = astronaut()
    knowing = TrueInterior()
    knowing.frame, knowing.landmarks = photo.crop, photo.landmarks.astype(np.float64)
    same = photo.crop.copy()
    knowing.draw(same, knowing.landmarks)
    assert np.abs(same.astype(int) - photo.crop).mean() < 0.1
    moved = photo.crop.copy()
    knowing.draw(moved, knowing.landmarks + np.array([30.0, 0, 0]))
    middle = knowing.landmarks[[13, 14], :2].mean(0).round().astype(int)
    there, here = moved[middle[1], middle[0] + 30].astype(int), photo.crop[middle[1], middle[0]].astype(int)
    assert np.abs(there - here).max() < 30


def test_lower_teeth_of_a_photo_move_with_the_jaw_and_upper_ones_with_the_skull() -> None:
    photo = astronaut()
    points = photo.landmarks.astype(np.float64)
    eyes = float(np.linalg.norm(points[33] - points[263]))
    column = int(points[[13, 14], 0].mean().round())
    top, bottom = points[13, 1], points[14, 1]
    rows = [round(top + 0.2 * (bottom - top)), round(bottom - 0.08 * (bottom - top))]
    crop = photo.crop.copy()
    inside = outline_mask(crop.shape[:2], opening_outline(points[INNER_UPPER, :2], points[INNER_LOWER, :2])) > 0
    crop[inside] = 120
    for row, colour in zip(rows, ([250, 0, 0], [0, 250, 0]), strict=True):
        crop[row, column - 12 : column + 13] = colour
    mouth = Mouth(crop, points)

    def places(target: np.ndarray) -> list[float]:
        frame = crop.copy()
        frame[inside] = 120
        mouth.draw(frame, target)
        strip = frame[:, column - 4 : column + 5].mean(1)
        red, green = (strip[:, k] - strip[:, 1 - k] for k in (0, 1))
        ys = np.arange(len(strip))
        return [float((ys * part).sum() / part.sum()) for part in ((c - 90).clip(0) for c in (red, green))]

    assert places(points) == pytest.approx(rows, abs=1)
    dropped = points.copy()
    dropped[JAW, 1] += 0.08 * eyes
    upper, lower = places(dropped)
    assert upper == pytest.approx(rows[0], abs=2)
    assert lower == pytest.approx(rows[1] + 0.08 * eyes, abs=3)
