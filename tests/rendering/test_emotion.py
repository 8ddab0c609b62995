"""An emotion moves brows, lids and the corners of the mouth as its name says, and leaves the opening of the lips."""

from __future__ import annotations

import pytest
import torch

from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.pipelines.request import AnimateRequest, parse_emotion
from flowportrait.rendering.emotion import EMOTIONS, emotion_direction, emotion_offset
from flowportrait.rendering.face_regions import EYES
from flowportrait.rendering.motion_basis import MotionBasis, close_lips, lip_pair_gaps, mirror_partners
from flowportrait.rendering.motion_filters import Controls

BASIS = MotionBasis.load()
NEUTRAL = close_lips(BASIS.canonical)
MOUTH_CORNERS, INNER_BROWS, OUTER_BROWS = (61, 291), (107, 336), (70, 300)


def displacement(name: str) -> torch.Tensor:
    """Return how far each landmark moves at full weight ``[478, 3]``; y points down."""
    return torch.einsum("e,enc->nc", emotion_direction(name)[:24], BASIS.directions)


def height(name: str, points: tuple[int, ...]) -> float:
    return -displacement(name)[list(points), 1].mean().item()


def lid_gap(name: str) -> float:
    moved = displacement(name)
    return sum((moved[lower[4], 1] - moved[upper[4], 1]).item() for upper, lower, _ in EYES) / 2


@pytest.mark.parametrize("name", EMOTIONS)
def test_an_emotion_is_the_same_left_and_right_and_keeps_the_lips_as_open_as_they_were(name: str) -> None:
    moved = displacement(name)
    mirrored = moved[mirror_partners(BASIS.canonical)] * torch.tensor([-1.0, 1.0, 1.0])
    assert (moved - mirrored)[:, :2].norm(dim=-1).mean() < 0.2 * moved[:, :2].norm(dim=-1).mean()
    speech = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    # Before the exact contact of the lips, which is not linear.
    displaced = torch.einsum("te,enc->tnc", emotion_offset({name: 1.0})[None, :24], BASIS.directions)
    assert lip_pair_gaps(displaced).mean().abs() < 1e-4
    opening = [
        lip_pair_gaps(BASIS.shape(motion, NEUTRAL)).mean(-1)
        for motion in (speech, Controls(emotion={name: 1.0})(speech))
    ]
    assert torch.corrcoef(torch.stack(opening))[0, 1] > 0.97


def test_each_emotion_moves_the_face_as_its_name_says() -> None:
    assert height("happy", MOUTH_CORNERS) > 0.03
    width = displacement("happy")[291, 0] - displacement("happy")[61, 0]
    assert width > 0.05
    assert height("sad", MOUTH_CORNERS) < -0.01
    assert height("sad", INNER_BROWS) - height("sad", OUTER_BROWS) > 0.002
    assert height("angry", INNER_BROWS) < -0.02
    assert lid_gap("angry") < -0.005
    assert height("surprised", INNER_BROWS) > 0.03
    assert height("surprised", OUTER_BROWS) > 0.02
    assert lid_gap("surprised") > 0.01
    assert height("afraid", INNER_BROWS) > height("afraid", OUTER_BROWS)
    assert lid_gap("afraid") > 0.01


def test_emotions_add_up_and_grow_with_their_weight() -> None:
    both = emotion_offset({"happy": 0.5, "surprised": 0.25})
    assert torch.allclose(both, 0.5 * emotion_direction("happy") + 0.25 * emotion_direction("surprised"))
    motion = torch.randn(9, 30)
    assert torch.equal(Controls(emotion={})(motion), motion)


def test_emotions_are_read_from_the_command_line_and_wrong_ones_are_refused_in_a_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert parse_emotion("happy=0.6, sad=0.1") == {"happy": 0.6, "sad": 0.1}
    assert parse_emotion(None) == {}
    for text, reason in (
        ("joyful=1", "choose from happy"), ("happy=2", "from 0 to 1"), ("happy", "from 0 to 1"),
        ("happy=nan", "from 0 to 1"), ("happy=0.8,sad=0.8", "1 or less"), ("sad=0.1,sad=0.2", "twice"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=reason):
            parse_emotion(text)
    with pytest.raises(BadInput, match="choose from happy"):
        AnimateRequest(emotion={"joyful": 1}).check()
    assert main(["animate", "--video", "a.mp4", "--audio", "a.wav", "--output", "b.mp4", "--emotion", "happy=1"]) == 2
    assert "--emotion works with --image only" in capsys.readouterr().err
