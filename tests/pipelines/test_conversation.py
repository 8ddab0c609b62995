"""Claims about two speakers: the silent one keeps the lips closed, blinks, nods, and looks at the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from flowportrait import Animator
from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.media.audio import Sound
from flowportrait.pipelines.conversation import (
    draw_in_one_photo,
    draw_side_by_side,
    find_speaker_portraits,
    generate_conversation_motion,
)
from flowportrait.pipelines.request import SpeakerTurn
from flowportrait.pipelines.turns import (
    ListeningBehaviour,
    build_speaker_tracks,
    find_pauses,
    mix_conversation_sound,
    remove_crosstalk,
)
from flowportrait.rendering.motion_basis import BLINK, GAZE, HEAD, LOWER_FACE, MotionBasis, close_lips, lip_pair_gaps
from flowportrait.rendering.renderer import MotionCodec
from tests.pipelines.test_animator import babble

BASIS = MotionBasis.load()


def opening(motion: torch.Tensor) -> torch.Tensor:
    """Lip gap at the middle of the mouth, ``[T]``."""
    return lip_pair_gaps(BASIS.shape(motion, close_lips(BASIS.canonical)))[:, 4]


def test_turns_follow_one_another_and_one_clock_is_one_clock() -> None:
    a, b = babble(1.0), babble(0.6, 1)
    after = build_speaker_tracks([(0, a), (1, b), (0, b)], in_turn=True)
    assert after.shape == (2, 16_000 + 4_800 + 9_600 + 4_800 + 9_600)
    assert np.abs(after[1, :16_000]).max() == 0
    assert np.abs(after[0, 21_500:30_000]).max() == 0
    assert build_speaker_tracks([(0, a), (1, b)]).shape == (2, 16_000)


def test_a_voice_from_across_the_table_is_not_ones_own() -> None:
    speech, silence = babble(1.0), np.zeros(16_000, np.float32)
    first, second = np.concatenate([speech, silence]), np.concatenate([silence, speech])
    clean = remove_crosstalk(np.stack([first + 0.1 * second, second + 0.1 * first]))
    assert np.abs(clean[0, 19_500:]).max() == 0
    assert np.abs(clean[1, :12_500]).max() == 0
    assert np.allclose(clean[0, 2_000:13_000], first[2_000:13_000])


def test_who_talks_at_the_same_time_is_heard() -> None:
    both = np.stack([babble(1.0), 0.6 * babble(1.0, 1)])
    assert np.allclose(remove_crosstalk(both)[:, 640:-640], both[:, 640:-640])


def test_a_listener_nods_and_blinks_where_the_other_pauses_and_looks_at_the_other() -> None:
    other = np.tile(np.r_[np.ones(60), np.zeros(15)], 8)
    own = np.zeros_like(other)
    rest = torch.zeros(len(other), 30)
    heard = ListeningBehaviour(toward=1.0)(rest, own, other)
    assert find_pauses(other)[0] == 60
    pitch = torch.rad2deg(heard[:, HEAD.start] * BASIS.head_std[0])
    assert 1.5 < pitch.max() < 5
    assert pitch[:59].abs().max() == 0
    blinks = int(((heard[1:, BLINK.start] > 3) & (heard[:-1, BLINK.start] <= 3)).sum())
    assert len(other) / 25 / 6 < blinks < len(other) / 25 / 1.5
    assert torch.equal(heard[:, LOWER_FACE], rest[:, LOWER_FACE])
    left = ListeningBehaviour(toward=-1.0)(rest, own, other)
    assert torch.allclose(heard[30:50, GAZE], -left[30:50, GAZE], atol=1e-5)
    assert heard[30:50, GAZE].abs().max() > 0.3


def test_a_speaker_is_left_alone() -> None:
    motion = torch.randn(100, 30)
    speaking = np.ones(100)
    assert torch.equal(ListeningBehaviour(1.0)(motion, speaking, speaking), motion)


def test_lips_do_not_cross_over_and_both_are_drawn() -> None:
    torch.set_num_threads(1)
    animator = Animator.from_pretrained("rl")
    voices = build_speaker_tracks([(0, babble(1.2)), (1, babble(1.2, 1))], in_turn=True)
    motions = generate_conversation_motion(lambda own, seed: torch.cat(list(animator.motion(own, seed=seed))), voices)
    first, second = (opening(motion) for motion in motions)
    assert first[5:28].max() > 0.02
    assert second[5:28].max() == 0
    assert second[42:66].max() > 0.02
    assert first[42:].max() == 0
    photo = np.ascontiguousarray(astronaut()[:300, 60:360])
    people = [MotionCodec(portrait) for portrait in find_speaker_portraits([photo, photo.copy()], ["a", "b"], 128)]
    frame = next(draw_side_by_side(people, [motion[10:12] for motion in motions]))
    assert frame.shape == (128, 256, 3)
    two = np.hstack([photo, photo])
    pair = [MotionCodec(portrait) for portrait in find_speaker_portraits([two, two], ["two", "two"], 128)]
    still = torch.zeros(2, 30)
    apart = next(draw_in_one_photo(pair, [motions[0][12:14], still])).astype(int)
    none = next(draw_in_one_photo(pair, [still, still])).astype(int)
    moved = np.abs(apart - none).max((0, 2))
    assert moved[:300].max() > 20
    assert moved[340:].max() == 0
    with pytest.raises(BadInput, match="does not show two faces"):
        find_speaker_portraits([photo, photo], ["alone", "alone"], 128)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["1=a.jpg,a.wav"], "needs two speakers"),
        (["1=a.jpg,a.wav", "2=b.jpg,b.wav", "1=a.jpg,c.wav"], "add --turns"),
        (["1=a.jpg,a.wav", "2=b.jpg,b.wav", "1=c.jpg,c.wav", "--turns"], "two photos"),
        (["3=a.jpg,a.wav"], "give 1=PHOTO,AUDIO"),
        (["1=a.jpg,a.wav", "2=b.jpg,b.wav", "--face", "1"], "does not go with --face"),
        (["1=a.jpg,a.wav", "2=a.jpg,b.wav", "--crop"], "give each speaker a photo"),
    ],
)
def test_a_wrong_wish_gets_a_sentence(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wish = [part for one in given for part in (["--speaker", one] if "=" in one else [one])]
    assert main(["animate", "--output", str(tmp_path / "a.mp4"), *wish]) == 2
    assert said in capsys.readouterr().err


def test_a_photo_name_may_hold_a_comma() -> None:
    turn = SpeakerTurn.parse("2=me, last summer.jpg,b.wav")
    assert turn == SpeakerTurn(1, Path("me, last summer.jpg"), Path("b.wav"))
    with pytest.raises(BadInput):
        SpeakerTurn.parse("1=a.jpg")


def test_the_sound_of_a_conversation_keeps_rate_and_channels_and_is_what_its_tracks_say() -> None:
    """Two turns, one recorded in stereo at 48 kHz, one in mono at 44.1 kHz, with pitches that 16 kHz cannot hold."""

    def pitch(frequency: float, rate: int, channels: int) -> Sound:
        wave = 0.1 * np.sin(2 * np.pi * frequency * np.arange(rate) / rate)
        return Sound(np.repeat(wave[None], channels, 0).astype(np.float32), rate, "stereo" if channels == 2 else "mono")

    sounds = [pitch(9000, 48_000, 2), pitch(10_000, 44_100, 1)]
    recordings = [(0, babble(1.0)), (1, babble(1.0, 1))]
    played = mix_conversation_sound(recordings, sounds, in_turn=True)
    assert (played.rate, played.layout) == (48_000, "stereo")
    voices = build_speaker_tracks(recordings, in_turn=True)
    assert played.samples.shape == (2, 3 * voices.shape[1])
    for start, frequency in ((0, 9000), (round(1.3 * 48_000), 10_000)):
        turn = played.samples[1, start + 9600 : start + 38_400]
        spectrum = np.abs(np.fft.rfft(turn * np.hanning(len(turn))))
        assert spectrum.argmax() * 48_000 / len(turn) == pytest.approx(frequency, abs=5)
    assert np.abs(played.samples[:, round(1.05 * 48_000) : round(1.25 * 48_000)]).max() < 1e-3
    same = mix_conversation_sound(
        recordings, [Sound(wave[None], 16_000, "mono") for _, wave in recordings], in_turn=True
    )
    assert np.allclose(same.samples[0], voices.sum(0), atol=1e-6)
