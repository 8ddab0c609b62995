"""Claims about the movement before speech, against what was measured at people who begin to speak."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowportrait.evaluation.measure import lip_opening
from flowportrait.live.preparation import SpeechPreparation
from flowportrait.rendering.motion_basis import HEAD, LOWER_FACE, MotionBasis, close_lips

QUARTILES = 0.0166, 0.0584
"""Largest openings before 54 onsets, by ``tools/measure_speech_preparation.py``."""
FASTEST = 0.0345
"""The upper quartile of their fastest steps a frame."""


def openings(motion: np.ndarray) -> np.ndarray:
    basis = MotionBasis.load()
    shape = basis.shape(torch.from_numpy(motion), close_lips(basis.canonical))
    return lip_opening(shape[..., :2].numpy().astype(float))


def prepare(seed: int, number: int = 1, frames: int = 15) -> np.ndarray:
    preparation = SpeechPreparation(seed)
    preparation.begin(number)
    return np.stack([preparation.next() for _ in range(frames)])


@pytest.mark.parametrize("seed", range(8))
def test_lips_part_as_far_and_as_fast_as_those_of_people(seed: int) -> None:
    opening = openings(prepare(seed))
    assert QUARTILES[0] < opening[-1] < QUARTILES[1]
    assert np.diff(opening, prepend=0).max() < FASTEST
    assert opening[0] > 0.009, "the first frame is seen"
    assert (np.diff(opening) >= -1e-4).all()


def test_each_utterance_has_a_movement_of_its_own_and_the_same_one_again() -> None:
    ends = np.stack([prepare(3, number)[-1] for number in range(6)])
    assert len({tuple(end[LOWER_FACE]) for end in ends}) == 6
    assert np.array_equal(prepare(3, 2), prepare(3, 2))
    preparation = SpeechPreparation(3)
    preparation.begin(2)
    first = preparation.next()
    preparation.begin(2)
    assert np.linalg.norm(preparation.next()) > np.linalg.norm(first), "beginning twice is beginning once"


def test_it_ends_where_the_voice_begins_and_where_nobody_speaks() -> None:
    assert not SpeechPreparation().next().any()
    for end, frames in ((SpeechPreparation.release, 7), (SpeechPreparation.relax, 15)):
        preparation = SpeechPreparation(5)
        preparation.begin(1)
        for _ in range(12):
            held = preparation.next()
        end(preparation)
        track = np.stack([held, *(preparation.next() for _ in range(60))])
        assert (track[frames:, LOWER_FACE] == 0).all()
        assert np.abs(track[-1, HEAD]).max() < 1e-3
        assert np.diff(openings(track)).min() > -FASTEST
