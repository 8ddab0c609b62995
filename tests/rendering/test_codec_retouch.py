"""The retouching network: it starts as nothing, stays in its window, keeps a grey picture grey, and learns."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage import data
from tools.train_retouch import Misfit, draw, load_pairs, misfit

from flowportrait.media.portrait import Portrait
from flowportrait.rendering.face_regions import INNER_LOWER
from flowportrait.rendering.mouth_geometry import (
    WINDOW_HEIGHT,
    WINDOW_WIDTH,
    MouthFrame,
    cut_mouth_window,
    mouth_state,
    mouth_window_transform,
    skin_colour,
)
from flowportrait.rendering.retouch import Retouch
from flowportrait.rendering.retouch_network import COMPACT, OnnxRetouchNet, RetouchNet, example_windows, export_onnx


@lru_cache
def astronaut() -> Portrait:
    return Portrait.from_image(data.astronaut())


def opened(gap: float) -> np.ndarray:
    """Her lips ``gap`` eye distances further apart."""
    points = astronaut().landmarks.astype(np.float64)
    points[INNER_LOWER[1:-1], 1] += gap * np.linalg.norm(points[33] - points[263])
    return points


def restless(seed: int = 0) -> RetouchNet:
    """A network that changes something everywhere."""
    torch.manual_seed(seed)
    network = RetouchNet()
    torch.nn.init.normal_(network.head.weight, std=0.05)
    return network.eval()


def retouched(network: RetouchNet, crop: np.ndarray, target: np.ndarray) -> np.ndarray:
    frame = crop.copy()
    Retouch(crop, astronaut().landmarks, network).draw(frame, target)
    return frame


def test_an_untrained_network_changes_nothing() -> None:
    crop = astronaut().crop
    assert np.abs(retouched(RetouchNet(), crop, opened(-0.04)).astype(int) - crop).max() <= 1


def test_only_the_window_around_the_mouth_changes_and_its_border_fades() -> None:
    crop, target = astronaut().crop, opened(-0.04)
    change = np.abs(retouched(restless(), crop, target).astype(int) - crop).max(2)
    back = cv2.invertAffineTransform(mouth_window_transform(target))
    corners = (
        np.array([[0, 0, 1], [WINDOW_WIDTH, 0, 1], [WINDOW_WIDTH, WINDOW_HEIGHT, 1], [0, WINDOW_HEIGHT, 1]]) @ back.T
    )
    outside = cv2.fillConvexPoly(np.ones((512, 512), np.uint8), np.round(corners).astype(np.int32), 0)
    assert change.max() > 5
    assert change[outside > 0].max() <= 2


def test_a_black_and_white_portrait_stays_so() -> None:
    grey = cv2.cvtColor(cv2.cvtColor(astronaut().crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    frame = retouched(restless(), grey, opened(-0.04))
    assert np.abs(frame.astype(int) - grey).max() > 5
    assert np.ptp(frame, axis=2).max() <= 1


def test_the_photos_own_mouth_is_left_alone() -> None:
    crop = astronaut().crop
    assert (retouched(restless(), crop, astronaut().landmarks.astype(np.float64)) == crop).all()


def test_mouths_wider_than_any_in_the_footage_are_left_as_drawn() -> None:
    crop = astronaut().crop
    assert (retouched(restless(), crop, opened(0.4)) == crop).all()


def test_small_motion_makes_small_changes() -> None:
    crop, network = astronaut().crop, restless()
    one, other = (retouched(network, crop, opened(gap)).astype(int) for gap in (-0.04, -0.0405))
    assert np.abs(one - other).mean() < 0.1


def test_the_window_is_the_same_for_every_size_of_the_picture() -> None:
    crop, points = astronaut().crop, astronaut().landmarks.astype(np.float64)
    large = cv2.resize(crop, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    twice = points * 2 + np.array([0.5, 0.5, 0])
    near, far = (
        cut_mouth_window(crop, mouth_window_transform(points)),
        cut_mouth_window(large, mouth_window_transform(twice)),
    )
    assert np.abs(near.astype(int) - far).mean() < 2
    states = [mouth_state(MouthFrame(p), p, mouth_window_transform(p)) for p in (points, twice)]
    np.testing.assert_allclose(states[0].place, states[1].place, atol=1e-4)
    assert states[0].height == pytest.approx(states[1].height, abs=1e-4)
    assert np.abs(states[0].inner - states[1].inner).mean() < 0.01


@lru_cache
def pairs() -> dict[str, torch.Tensor]:
    """Pairs whose truth is the base with brighter lips."""
    crop, points = astronaut().crop, astronaut().landmarks.astype(np.float64)
    matrix = mouth_window_transform(points)
    state = mouth_state(MouthFrame(points), points, matrix)
    window, outer = cut_mouth_window(crop, matrix), np.round(state.outer * 255).astype(np.uint8)
    truth = np.clip(window + 60 * state.outer[..., None], 0, 255).astype(np.uint8)
    inner = np.round(state.inner * 255).astype(np.uint8)
    row = {
        "source": window, "source_inner": inner, "skin": skin_colour(crop, points).astype(np.float32),
        "base": np.stack([window] * 2), "truth": np.stack([truth] * 2), "inner": np.stack([inner] * 2),
        "outer": np.stack([outer] * 2), "place": np.stack([state.place] * 2),
        "drop": np.full((2, 2), 0.05, np.float32),
    }  # fmt: skip
    return {name: torch.from_numpy(np.stack([value] * 4)) for name, value in row.items()}


def test_recoloured_and_mirrored_pairs_keep_their_geometry(tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in pairs().items()}, str(tmp_path / "pairs-0.safetensors"))
    torch.manual_seed(0)
    windows, truth = draw(load_pairs(tmp_path, "pairs-*"), torch.arange(4))
    assert windows.base.shape == truth.shape == (8, 3, WINDOW_HEIGHT, WINDOW_WIDTH)
    across = torch.einsum("bij,jhw->bihw", windows.place, RetouchNet().grid)[:, 0]
    # Mirrored or not, u grows to the right and is zero in the middle of the lips.
    assert (across.diff(dim=-1) > 0).all()
    middle = (across * windows.outer[:, 0]).sum((1, 2)) / windows.outer.sum((1, 2, 3))
    assert middle.abs().max() < 0.05
    brighter = ((truth - windows.base) * windows.outer).sum((1, 2, 3))
    assert (brighter > 0).all()


@pytest.mark.parametrize("compact", [False, True])
def test_a_few_steps_teach_it_to_brighten_lips(compact: bool) -> None:
    torch.manual_seed(0)
    network = RetouchNet((8, 8), compact)
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    errors = []
    for _ in range(40):
        windows, truth = draw(pairs(), torch.arange(2), recolour=False)
        error = (network.retouched(windows)[0] - truth).abs().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("kind", ["full", "compact"])
def test_weights_of_either_kind_are_told_apart_and_run_alike_as_onnx(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = RetouchNet(COMPACT, compact=True) if kind == "compact" else RetouchNet()
    torch.nn.init.normal_(network.head.weight, std=0.02)
    save_file(network.state_dict(), str(tmp_path / "model.safetensors"))
    export_onnx(network, tmp_path / "model.onnx")
    windows = example_windows()
    exported = OnnxRetouchNet(tmp_path / "model.safetensors", tmp_path / "model.onnx")
    assert exported.limits == network.limits
    with torch.inference_mode():
        for ours, theirs in zip(exported(windows), network.eval()(windows), strict=True):
            assert theirs.abs().max() > 0.01
            assert torch.allclose(ours, theirs, atol=1e-4)


def test_only_the_compact_kind_is_sharp_and_only_between_the_lips() -> None:
    windows = example_windows()
    inner = torch.zeros(1, 1, WINDOW_HEIGHT, WINDOW_WIDTH)
    inner[:, :, 24:48, 32:64] = 1
    steps = {}
    for compact in (False, True):
        torch.manual_seed(1)
        network = RetouchNet((8, 8), compact)
        torch.nn.init.normal_(network.head.weight, std=0.05)
        with torch.no_grad():
            residual = network(windows._replace(inner=inner))[1].diff(dim=-1).abs()
        steps[compact] = float(residual[..., 26:46, 34:62].mean()), float(residual[..., 10:20, 20:76].mean())
    assert steps[True][0] > 4 * steps[True][1]
    assert steps[False][0] < 2 * steps[False][1]


def test_the_misfits_total_weighs_every_part() -> None:
    parts = {name: torch.tensor(0.0) for name in Misfit._fields}
    assert Misfit(**parts).total() == 0
    between_the_lips = {"inside", "teeth", "tint", "strength"}
    for name in parts:
        one = Misfit(**{**parts, name: torch.tensor(1.0)})
        assert one.total("mouth") > 0
        assert (one.total("look") > 0) == (name not in between_the_lips)
        # Trained on colours, the look is only watched.
        assert (one.total("colours") > 0) == (name not in {"look", *between_the_lips})


def test_grey_and_blurred_teeth_cost_more_than_the_white_ones_they_resemble() -> None:
    skin = torch.tensor([[0.7, 0.5, 0.4]]).expand(2, 3)
    stripes = (torch.arange(WINDOW_WIDTH) % 8 < 6).float().expand(2, 3, WINDOW_HEIGHT, -1)
    truth = 0.1 + 0.75 * stripes
    inner = torch.zeros(2, 1, WINDOW_HEIGHT, WINDOW_WIDTH)
    inner[:, :, 20:50, 20:76] = 1
    windows = example_windows()
    windows = windows._replace(base=truth, skin=skin, inner=inner, outer=inner)
    none = torch.zeros(2, 2, WINDOW_HEIGHT, WINDOW_WIDTH)

    def parts(drawn: torch.Tensor) -> Misfit:
        return misfit(drawn, none, windows, truth, lambda picture: [picture])

    grey, shifted = parts(torch.full_like(truth, 0.35)), parts(truth.roll(1, -1))
    assert grey.teeth > 3 * shifted.teeth
    assert grey.strength > 10 * shifted.strength
