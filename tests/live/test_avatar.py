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
from flowportrait.live import LiveAvatar, LivePortrait
from flowportrait.live.session import REST_FRAMES, LiveSession
from flowportrait.media.audio import Sound, read_audio
from flowportrait.media.portrait import Portrait
from flowportrait.models.sampler import GenerationSession
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.provenance.watermark import find_watermark
from flowportrait.rendering.motion_basis import LOWER_FACE
from flowportrait.samples import SPEECH, portrait_path

VOICE = read_audio(SPEECH)[:48_000]


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

    shown = show(avatar, 90, step)  # 1.5 s of speech, however late a slow machine begins them
    assert all(picture.shape == (128, 128, 3) and picture.dtype == np.uint8 for picture, _, _ in shown)
    assert all(sound.shape == (1, 1920) and sound.dtype == np.float32 for _, sound, _ in shown)
    states = [state for _, _, state in shown]
    assert states[0] == "idle"
    assert states.count("speaking") >= 34, "of 37, less what a busy machine shows late"
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


def test_a_second_avatar_of_a_prepared_portrait_opens_at_once(pipeline: AnimatePipeline, portrait: Portrait) -> None:
    began = time.monotonic()
    shared = LivePortrait(portrait, checkpoint=pipeline)
    prepared = time.monotonic() - began
    began = time.monotonic()
    avatars = [LiveAvatar(shared, seed=seed) for seed in range(2)]
    assert (time.monotonic() - began) / 2 < min(0.2, prepared / 3)
    assert shared.size == 128

    async def both() -> list[tuple[np.ndarray, float]]:
        async def speak(avatar: LiveAvatar, sound: np.ndarray) -> tuple[np.ndarray, float]:
            avatar.push(sound, 16_000)
            avatar.finish()
            pictures, loudest = [], 0.0
            async for picture, played in avatar.frames():
                pictures.append(picture)
                loudest = max(loudest, float(np.abs(played).max()))
                if len(pictures) == 45:
                    await avatar.aclose()
            return np.stack(pictures).astype(float), loudest

        return await asyncio.gather(speak(avatars[0], VOICE[:24_000]), speak(avatars[1], np.zeros(24_000, np.float32)))

    (loud, loudest), (quiet, quietest) = asyncio.run(both())
    assert loudest > 0.1
    assert quietest == 0
    mouth = np.s_[:, 70:100, 45:85]
    changes = [np.abs(np.diff(one[mouth], axis=0)).mean() for one in (loud, quiet)]
    assert changes[0] > 1.5 * changes[1], "each one draws its own motion"


def test_closing_never_waits_and_may_be_done_twice_from_any_thread(avatar: LiveAvatar) -> None:
    async def close_while_drawing() -> tuple[float, int]:
        count, taken = 0, 0.0
        async for _ in avatar.frames():
            count += 1
            if count == 3:
                began = time.monotonic()
                avatar.close()
                taken = time.monotonic() - began
                await asyncio.gather(asyncio.to_thread(avatar.close), avatar.aclose(), avatar.aclose())
        return taken, count

    taken, count = asyncio.run(close_while_drawing())
    assert taken < 0.005
    assert count == 3
    assert avatar._thread is not None
    assert not avatar._thread.is_alive()


def test_a_second_loop_at_the_same_time_is_refused_and_the_first_goes_on(avatar: LiveAvatar) -> None:
    async def two_loops() -> tuple[int, int]:
        async def count(frames: int) -> int:
            seen = 0
            async for _ in avatar.frames():
                seen += 1
                if seen == frames:
                    break
            return seen

        first = asyncio.create_task(count(6))
        await asyncio.sleep(0.1)
        with pytest.raises(BadInput, match="Another loop"):
            await count(1)
        # A loop that was left makes room for the next one at once.
        return await first, await count(2) + await count(2)

    assert asyncio.run(two_loops()) == (6, 4)


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


@pytest.mark.slow
@pytest.mark.parametrize("end", ["avatar.close()", "pass"])
def test_a_program_that_ends_while_an_avatar_draws_ends_cleanly(end: str) -> None:
    code = f"""
import asyncio, time
from flowportrait.live import LiveAvatar
from flowportrait.samples import SPEECH, portrait_path
from flowportrait.media.audio import read_audio

avatar = LiveAvatar(portrait_path("astronaut"), size=512)
avatar.push(read_audio(SPEECH)[:48_000], 16_000)

async def show():
    shown = 0
    async for _ in avatar.frames():
        shown += 1
        if shown == 20:
            return

asyncio.run(show())
{end}
print(time.time(), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    ended_at = time.time()
    assert (done.returncode, done.stderr) == (0, "")
    assert ended_at - float(done.stdout) < 3


def test_an_interruption_changes_pairs_that_wait(pipeline: AnimatePipeline, portrait: Portrait) -> None:
    # A clock that is four times as slow: the machine may be busy.
    avatar = LiveAvatar(portrait, checkpoint=pipeline, clock=lambda: time.monotonic() / 4)
    tone = (0.2 * np.sin(2 * np.pi * 220 / 16_000 * np.arange(64_000))).astype(np.float32)
    loud = list[bool]()

    async def interrupt_speech() -> None:
        async for _, sound in avatar.frames():
            loud.append(bool(np.abs(sound).max() > 1e-4))
            if len(loud) == 12:
                avatar.push(tone, 16_000)
            if sum(loud) == 6:
                break
        avatar.interrupt()
        before = len(loud)
        async for _, sound in avatar.frames():
            loud.append(bool(np.abs(sound).max() > 1e-4))
            if len(loud) == before + 8:
                break

    asyncio.run(asyncio.wait_for(interrupt_speech(), 120))
    avatar.close()
    assert not any(loud[-6:]), "of the two pairs that wait, the sound fades out in one at the latest"
