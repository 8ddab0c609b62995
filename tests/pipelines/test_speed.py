"""What was made fast gives what the slow way gives."""

from __future__ import annotations

import threading
from itertools import count

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from skimage import data

from flowportrait.files import shipped_weights
from flowportrait.media.crop import FramePaster, paste_back
from flowportrait.media.video import map_in_order
from flowportrait.rendering.mesh import UpsampledPicture
from flowportrait.rendering.retouch import shipped_retouch_network
from flowportrait.rendering.retouch_network import RetouchNet, example_windows


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.square(a.astype(np.float64) - b).mean())))


def test_the_exported_network_is_the_trained_one() -> None:
    network = RetouchNet()
    network.load_state_dict(load_file(str(shipped_weights("retouch/model.safetensors"))))
    torch.manual_seed(0)
    windows = example_windows()
    with torch.inference_mode():
        for ours, theirs in zip(shipped_retouch_network()(windows), network.eval()(windows), strict=True):
            assert ours.shape == theirs.shape
            assert torch.allclose(ours, theirs, atol=1e-4)


def test_an_enlarged_picture_reads_like_cubic_interpolation_and_better_than_straight_lines() -> None:
    picture = data.astronaut()[:256, :256]
    ys, xs = np.mgrid[:256, :256].astype(np.float32)
    place = np.dstack([xs + 3 * np.sin(ys / 20), ys + 2 * np.cos(xs / 15)]).astype(np.float32)
    cubic, linear = (
        cv2.remap(picture, place, None, way, borderMode=cv2.BORDER_REPLICATE)
        for way in (cv2.INTER_CUBIC, cv2.INTER_LINEAR)
    )
    assert psnr(UpsampledPicture(picture).at(place), cubic) > 45 > psnr(linear, cubic)
    still = np.dstack([xs, ys])
    assert psnr(UpsampledPicture(picture).at(still), picture) > 45


def test_pasting_many_frames_is_pasting_each() -> None:
    photo, to_crop = data.astronaut(), np.array([[1.3, 0, -40.5], [0, 1.3, -12.25]])
    paste = FramePaster(photo, to_crop, 128)
    for shade in (20, 200):
        frame = np.full((128, 128, 3), shade, np.uint8)
        assert np.array_equal(paste(frame), paste_back(photo, frame, to_crop))
    assert np.array_equal(photo, data.astronaut())


def test_threads_keep_the_order_and_run_no_further_ahead_than_told() -> None:
    asked: list[int] = []

    def numbers() -> object:
        for number in count():
            asked.append(number)
            yield number

    results = map_in_order(lambda n: n * n, numbers(), workers=3, ahead=4)  # type: ignore[arg-type]
    assert [next(results) for _ in range(20)] == [n * n for n in range(20)]
    assert len(asked) <= 20 + 4 + 1
    results.close()  # type: ignore[attr-defined]
    assert list(map_in_order(str, range(5), workers=2, ahead=2)) == list(
        map_in_order(str, range(5), workers=1, ahead=2)
    )


def test_an_error_in_a_thread_is_raised_where_its_result_is_taken() -> None:
    results = map_in_order(lambda n: 1 / n, [1, 0, 1], workers=2, ahead=2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        list(results)
    assert threading.active_count() < 20
