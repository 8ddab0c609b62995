"""Claims about ``LiveAvatar`` with the shipped generator and real pictures."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import flowportrait
from flowportrait.errors import BadInput
from flowportrait.live import LiveAvatar
from flowportrait.live.session import REST_FRAMES, LiveSession
from flowportrait.media.audio import Sound, read_audio
from flowportrait.media.portrait import Portrait
from flowportrait.models.sampler import GenerationSession
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.inputs import read_photo
from flowportrait.provenance.watermark import find_watermark
from flowportrait.rendering.motion_basis import LOWER_FACE
from flowportrait.samples import SPEECH, portrait_path

VOICE = read_audio(SPEECH)[:48_000]


@pytest.fixture(scope="module")
def pipeline() -> AnimatePipeline:
    return AnimatePipeline.from_pretrained("rl", denoise=False)


@pytest.fixture(scope="module")
def portrait() -> Portrait:
    return Portrait.from_image(read_photo(portrait_path("astronaut")), 128)


@pytest.fixture
def avatar(pipeline: AnimatePipeline, portrait: Portrait) -> Iterator[LiveAvatar]:
    avatar = LiveAvatar(portrait, checkpoint=pipeline)
    yield avatar
    avatar.close()


def show(avatar: LiveAvatar, count: int, step: Callable[[int], None] = lambda _: None) -> list[tuple]:
    """The first frames of an avatar with its states; ``step`` is called after each."""

    async def collect() -> list[tuple]:
        shown: list[tuple] = []
        async for picture, sound in avatar.frames():
            shown.append((picture, sound, avatar.state))
            step(len(shown))
            if len(shown) == count:
                break
        return shown

    return asyncio.run(collect())


def speaking(pipeline: AnimatePipeline, seed: int = 0) -> LiveSession:
    return LiveSession(lambda number: GenerationSession(pipeline.generator, seed + number), seed=seed)


def run(live: LiveSession, count: int) -> np.ndarray:
    frames = []
    for _ in range(count):
        while live.generate():
            pass
        frames.append(live.tick().motion)
    return np.stack(frames)


def test_the_motion_is_that_of_the_generator(pipeline: AnimatePipeline) -> None:
    live = speaking(pipeline)
    live.push(VOICE, 16_000)
    live.finish()
    motion = run(live, 75)
    session = GenerationSession(pipeline.generator, 0)
    expected = np.concatenate([part.numpy() for part in [*session.push(VOICE), *session.finish()]])
    assert np.abs(motion[7:] - expected[7:]).max() < 1e-3


def test_an_interruption_moves_the_lips_no_faster_than_speech(pipeline: AnimatePipeline) -> None:
    live = speaking(pipeline)
    live.push(VOICE, 16_000)
    before = run(live, 50)[:, LOWER_FACE]
    live.interrupt()
    after = run(live, 20)[:, LOWER_FACE]
    assert np.abs(before[-20:]).max() > 0.5
    assert (after[REST_FRAMES - 1 :] == 0).all()
    jumps = np.abs(np.diff(np.concatenate([before, after]), axis=0)).max(1)
    assert jumps[49:].max() <= jumps[:49].max()


def test_pairs_of_picture_and_sound_come_on_the_clock(avatar: LiveAvatar) -> None:
    spent: list[float] = []

    def step(count: int) -> None:
        if count == 1:
            spent.extend((time.thread_time(), time.monotonic()))
        if count == 5:
            avatar.push((VOICE[:24_000] * 32767).astype(np.int16), 16_000)
            avatar.finish()
        if count == 60:
            spent.extend((time.thread_time(), time.monotonic()))

    shown = show(avatar, 60, step)
    assert all(picture.shape == (128, 128, 3) and picture.dtype == np.uint8 for picture, _, _ in shown)
    assert all(sound.shape == (1, 1920) and sound.dtype == np.float32 for _, sound, _ in shown)
    states = [state for _, _, state in shown]
    assert states[0] == "idle"
    assert states.count("speaking") >= 37
    assert max(np.abs(sound).max() for _, sound, _ in shown) > 0.05
    pictures = np.stack([picture for picture, _, _ in shown]).astype(float)
    assert np.abs(pictures[-1] - pictures[0]).mean() > 0.1
    assert spent[3] - spent[1] == pytest.approx(59 / 25, abs=0.5)
    assert (spent[2] - spent[0]) / 59 < 0.005, "processor time of the event loop for a frame"


def test_every_picture_carries_the_watermark(pipeline: AnimatePipeline) -> None:
    avatar = LiveAvatar(portrait_path("astronaut"), checkpoint=pipeline, size=384)
    pictures = [picture for picture, _, _ in show(avatar, 30)]
    avatar.close()
    match = find_watermark(pictures)
    assert match.score > match.threshold


def test_a_text_is_spoken_sentence_by_sentence(avatar: LiveAvatar, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        name = "fake"

        def supports(self, language: str) -> bool:
            return True

        def synthesize(self, sentence: str) -> Sound:
            return Sound(VOICE[None, 8_000:16_000], 16_000, "mono")

    module = types.ModuleType("voice_of_the_live_test")
    module.FAKE = Fake()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)

    async def talk() -> int:
        said = asyncio.create_task(avatar.speak("Good day. How are you?", voice="voice_of_the_live_test:FAKE"))
        loud = 0
        count = 0
        async for _, sound in avatar.frames():
            loud += np.abs(sound).max() > 0.01
            count += 1
            if count == 60:
                break
        await said
        return loud

    assert asyncio.run(talk()) > 15


def test_a_closed_avatar_ends_its_frames_and_takes_nothing(avatar: LiveAvatar) -> None:
    shown = show(avatar, 10**6, lambda count: avatar.close() if count == 3 else None)
    assert len(shown) == 3
    for call in (avatar.push, avatar.hear):
        with pytest.raises(BadInput, match="closed"):
            call(VOICE, 16_000)


def test_an_error_of_a_thread_ends_the_frames(avatar: LiveAvatar, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: np.ndarray) -> np.ndarray:
        raise MemoryError("no room for the picture")

    monkeypatch.setattr(avatar, "_draw", fail)
    with pytest.raises(MemoryError, match="no room"):
        show(avatar, 1000)


def test_a_wrong_setting_is_noticed_at_once(pipeline: AnimatePipeline, portrait: Portrait) -> None:
    with pytest.raises(BadInput, match="intensity"):
        LiveAvatar(portrait, checkpoint=pipeline, intensity=9)
    with pytest.raises(BadInput, match="multiple of 25"):
        LiveAvatar(portrait, checkpoint=pipeline, rate=11_024)


def test_naming_the_avatar_imports_nothing_heavy() -> None:
    code = "import sys, flowportrait.live; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert "LiveAvatar" not in flowportrait.__all__
