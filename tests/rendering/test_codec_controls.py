"""A performance can be turned up and down, read and edited, and the lips stay as they were."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowportrait.errors import BadInput
from flowportrait.rendering import motion_files as blendshapes
from flowportrait.rendering.face_regions import EYES
from flowportrait.rendering.motion_basis import (
    BLINK,
    BROWS,
    GAZE,
    HEAD,
    LOWER_FACE,
    MotionBasis,
    close_lips,
    lip_pair_gaps,
)
from flowportrait.rendering.motion_files import (
    ARKIT_SHAPES,
    HEAD_COLUMNS,
    blendshape_table,
    blendshapes_to_motion,
    motion_to_blendshapes,
    read_motion,
    write_motion,
)
from flowportrait.rendering.motion_filters import Controls, gaze_coefficients, lip_preserving_projection

BASIS = MotionBasis.load()
REST = close_lips(BASIS.canonical)


def performance(frames: int = 25, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames, 30, generator=torch.Generator().manual_seed(seed))


def gap(motion: torch.Tensor) -> torch.Tensor:
    return lip_pair_gaps(BASIS.shape(motion, REST))


scale = st.floats(0, 3)


@given(scale, scale, scale, st.tuples(st.floats(-30, 30), st.floats(-30, 30)))
@settings(max_examples=25, deadline=None)
def test_no_control_moves_the_lips_apart_or_together(
    blink: float, head: float, expression: float, gaze: tuple[float, float]
) -> None:
    motion = performance()
    assert torch.allclose(gap(Controls(blink, head, expression, gaze)(motion)), gap(motion), atol=2e-5)


def test_each_control_moves_its_own_part_only() -> None:
    motion = performance()
    parts = {"blink": BLINK, "head_motion": HEAD}
    for name, part in parts.items():
        changed = (Controls(**{name: 0.0})(motion) != motion).any(0)
        assert changed[part].all()
        assert changed.sum() == part.stop - part.start
    looked = (Controls(gaze=(10.0, 0.0))(motion) != motion).any(0)
    assert looked.nonzero()[:, 0].tolist() == list(range(30))[GAZE]
    assert torch.equal(Controls()(motion), motion)


def test_expression_off_leaves_what_opens_the_lips() -> None:
    calm = Controls(expression_scale=0.0)(performance())
    assert calm[:, BROWS].abs().max() == 0
    assert (calm[:, LOWER_FACE] @ lip_preserving_projection()).abs().max() < 1e-4
    assert gap(calm).max() > 0.02


def test_gaze_turns_both_irises_by_the_angle_asked_for() -> None:
    motion = torch.zeros(1, 30)
    motion[0, GAZE] = gaze_coefficients(20.0, 10.0)
    moved = (BASIS.shape(motion, REST) - BASIS.shape(torch.zeros(1, 30), REST))[0]
    for iris in (468, 473):
        right, down = np.degrees(np.arcsin(moved[iris, :2].numpy() / (12 / 90)))
        assert right == pytest.approx(20.0, abs=2.0)
        assert down == pytest.approx(-10.0, abs=2.0)


@pytest.mark.parametrize("wrong", [{"blink": -1.0}, {"head_motion": 9.0}, {"gaze": (50.0, 0.0)}, {"blink": np.nan}])
def test_controls_out_of_range_are_bad_input(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="not possible"):
        Controls(**wrong)  # type: ignore[arg-type]


def shaped(**weights: float) -> torch.Tensor:
    """The face ``[478, 3]`` at rest with these blendshapes."""
    row = np.zeros((1, len(ARKIT_SHAPES)))
    for name, weight in weights.items():
        row[0, ARKIT_SHAPES.index(name)] = weight
    motion = torch.cat([blendshapes_to_motion(row), torch.zeros(1, 6)], 1)
    return BASIS.shape(motion, REST)[0]


def test_blendshapes_do_what_their_names_say() -> None:
    rest = shaped()
    assert lip_pair_gaps(shaped(jawOpen=0.5))[4] > 0.1
    smile = shaped(mouthSmileLeft=1.0, mouthSmileRight=1.0)
    assert smile[61, 0] < rest[61, 0] - 0.02
    assert smile[291, 0] > rest[291, 0] + 0.02

    def lid_gap(face: torch.Tensor, side: int) -> float:
        upper, lower, _ = EYES[side]
        return float(face[lower[4], 1] - face[upper[4], 1])

    winked = shaped(eyeBlinkLeft=1.0)
    assert lid_gap(winked, 1) < 0.6 * lid_gap(rest, 1)
    assert lid_gap(winked, 0) > 0.75 * lid_gap(rest, 0)
    for name in ARKIT_SHAPES:
        if name.startswith(("eye", "brow")):
            assert torch.allclose(lip_pair_gaps(shaped(**{name: 1.0})), torch.zeros(9), atol=1e-5), name


def test_shapes_and_detail_together_are_the_motion() -> None:
    motion = performance()
    weights, detail = motion_to_blendshapes(motion)
    assert weights.min() >= 0
    assert weights.max() <= 1
    assert torch.allclose(blendshapes_to_motion(weights) + detail, motion[:, :24], atol=1e-5)


def test_shapes_alone_say_most_of_a_face_made_of_shapes() -> None:
    rng = np.random.default_rng(0)
    weights = rng.random((20, len(ARKIT_SHAPES))) * (rng.random((20, len(ARKIT_SHAPES))) < 0.15)
    motion = blendshapes_to_motion(weights)
    _, detail = motion_to_blendshapes(torch.cat([motion, torch.zeros(20, 6)], 1))
    assert detail.square().sum() < 0.1 * motion.square().sum()
    assert torch.linalg.matrix_rank(blendshape_table()) == 24


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_performance_survives_its_file(tmp_path: Path, suffix: str) -> None:
    motion, path = performance(), tmp_path / f"motion.{suffix}"
    write_motion(str(path), motion)
    assert torch.allclose(read_motion(str(path)), motion, atol=2e-3)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_edited_column_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    motion, path = performance(5), tmp_path / "motion.json"
    write_motion(path, motion)
    data = json.loads(path.read_text())
    for frame in data["frames"]:
        frame["blendshapes"]["eyeBlinkLeft"] += 0.5
        frame["head"]["headYaw"] += 10
    path.write_text(json.dumps(data))
    change = read_motion(path) - motion
    assert torch.allclose(change[:, LOWER_FACE], torch.zeros(5, 16), atol=2e-3)
    assert change[:, BLINK.start].min() > 1
    turned = change[:, HEAD] * BASIS.head_std
    assert torch.allclose(turned[:, 1], torch.full((5,), -np.deg2rad(10.0)), atol=1e-3)


def test_yaw_turns_the_nose_to_the_viewers_right_and_pitch_lifts_it(tmp_path: Path) -> None:
    path = tmp_path / "head.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, HEAD_COLUMNS)
        writer.writeheader()
        writer.writerow({"headYaw": 20, "headPitch": 20, "headScale": 1})
    _, identity = BASIS.encode(100 * BASIS.canonical[None].numpy(), np.zeros((1, 52)), smooth=False)
    still, moved = BASIS.decode(torch.cat([torch.zeros(1, 30), read_motion(path)]), identity)
    assert moved[4, 0] > still[4, 0] + 5
    assert moved[4, 1] < still[4, 1] - 5


def test_plain_arkit_columns_at_another_frame_rate_are_resampled(tmp_path: Path) -> None:
    path = tmp_path / "arkit.json"
    frames = [{"blendshapes": {"JawOpen": i / 59}} for i in range(60)]
    path.write_text(json.dumps({"fps": 60, "frames": frames}))
    opened = gap(read_motion(path))[:, 4]
    assert len(opened) == 25
    assert (opened.diff() >= 0).all()
    assert opened[-1] > 0.2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "must end in"),
        ("a.csv", "jawOpen\n", "no frame"),
        ("a.csv", "jawOpn\n0.5\n", "did you mean 'jawOpen'"),
        ("a.csv", "jawOpen\nwide\n", "not a number"),
        ("a.csv", "time,jawOpen\n1,0\n0,0\n", "do not increase"),
        ("a.json", "[1]", "not a motion file"),
        ("a.json", '{"fps": 0, "frames": [{}]}', "fps=0"),
    ],
)
def test_a_motion_file_that_is_none_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        read_motion(path)


def test_every_mediapipe_shape_has_its_name() -> None:
    assert len(set(ARKIT_SHAPES)) == 51 == len(blendshapes.ARKIT_SHAPES)
