"""Claims about the two clients of one file, each with a real server: what a program sends is spoken, and arrives."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest

from flowportrait.live.avatar import LivePortrait
from flowportrait.samples import portrait_path
from tests import ROOT
from tests.doc_commands import fenced
from tests.live.live_browser import opened_chromium, opened_page, speech_wav
from tests.live.live_server import SPEECH_24K, LiveServer, live_server

CLIENT = Path(str(files("flowportrait") / "live" / "clients" / "flowportrait_live_client.py"))
SAMPLES = np.frombuffer(SPEECH_24K, "<i2")


@pytest.fixture(scope="module")
def module() -> Iterator[ModuleType]:
    """The file as a program of somebody else imports it, without the package."""
    spec = importlib.util.spec_from_file_location("flowportrait_live_client", CLIENT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(autouse=True)
def _empty_server(server: LiveServer) -> Iterator[None]:
    yield
    server.wait_until_empty()


# --- Python ---


def test_the_file_needs_nothing_of_this_package() -> None:
    code = "import sys; sys.modules['flowportrait'] = None; sys.path.insert(0, sys.argv[1]); import " + CLIENT.stem
    done = subprocess.run([sys.executable, "-c", code, str(CLIENT.parent)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_pushed_speech_comes_back_with_moving_pictures_at_25_frames_a_second(
    module: ModuleType, server: LiveServer
) -> None:
    async def speak() -> tuple[Any, list[Any]]:
        async with module.LiveClient(server.url) as client:
            assert client.notice == "This face is generated."
            await client.push(SAMPLES, rate=24_000)
            await client.finish()
            received, spoke = [], False
            async for frame in client.frames():
                received.append(frame)
                spoke = spoke or client.state == "speaking"
                if spoke and client.state == "idle":
                    return client, received
        raise AssertionError(client.closed)

    client, received = asyncio.run(speak())
    assert (client.size, client.rate, client.dropped) == (128, 48_000, 0)
    assert [frame.index for frame in received] == list(range(received[0].index, received[0].index + len(received)))
    assert {frame.sound.shape for frame in received} == {(1920,)}
    pace = np.diff([frame.received for frame in received])
    assert pace.mean() == pytest.approx(0.04, rel=0.1)
    sound = np.concatenate([frame.sound for frame in received]).astype(float)
    pushed = SAMPLES.astype(float)
    assert (sound**2).sum() / 48_000 == pytest.approx((pushed**2).sum() / 24_000, rel=0.05)
    pictures = [frame.picture() for frame in received if frame.jpeg]
    assert pictures[0].shape == (128, 128, 3)
    mouths = np.array([picture[70:110, 40:90].mean((1, 2)).std() for picture in pictures])
    assert mouths.std() > 0.1


def test_an_interruption_silences_the_face_within_half_a_second(module: ModuleType, server: LiveServer) -> None:
    async def interrupt() -> list[Any]:
        states: list[str] = []
        async with module.LiveClient(server.url, on_message=lambda one: states.append(one.get("state", ""))) as client:
            await client.push(SAMPLES)
            frames = client.frames()
            async for frame in frames:
                if np.abs(frame.sound.astype(int)).max() > 1000:
                    break
            await client.interrupt()
            rest = [frame async for _, frame in _first(frames, 25)]
        assert "interrupted" in states
        return rest

    rest = asyncio.run(interrupt())
    assert all(np.abs(frame.sound.astype(int)).max() <= 1 for frame in rest[12:])


async def _first(frames: Any, count: int) -> Any:
    number = 0
    async for frame in frames:
        yield number, frame
        number += 1
        if number == count:
            return


def test_a_client_that_reads_no_frames_keeps_its_session_and_gets_the_newest(
    module: ModuleType, server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 10)

    async def sleep() -> tuple[Any, Any]:
        async with module.LiveClient(server.url) as client:
            await asyncio.sleep(2)
            assert 0 < await client.ping() < 5
            assert client.closed is None
            async for frame in client.frames():
                return client, frame
        raise AssertionError("no frame")

    client, frame = asyncio.run(sleep())
    assert client.dropped > 20
    assert frame.index >= client.dropped


def test_refusals_are_one_sentence(module: ModuleType, server: LiveServer) -> None:
    async def full() -> None:
        async with module.LiveClient(server.url), module.LiveClient(server.url):
            pass

    async def wrong_size() -> None:
        async with module.LiveClient(server.url, size=100):
            pass

    async def nobody() -> None:
        async with module.LiveClient("127.0.0.1:9"):
            pass

    for attempt, words in [(full, "carries 1 session"), (wrong_size, "size 100 is not offered"), (nobody, "running")]:
        with pytest.raises(module.LiveClientError, match=words):
            asyncio.run(attempt())
        server.wait_until_empty()


def test_the_token_opens_a_guarded_server(module: ModuleType, small_face: LivePortrait, tmp_path: Path) -> None:
    async def connect(token: str | None) -> str:
        async with module.LiveClient(guarded.url, token) as client:
            return client.session

    with live_server(small_face, tmp_path, token="a-token-of-this-test") as guarded:
        assert asyncio.run(connect("a-token-of-this-test"))
        with pytest.raises(module.LiveClientError, match="token"):
            asyncio.run(connect(None))


def test_the_program_saves_a_film_of_what_was_spoken_and_prints_figures(server: LiveServer, tmp_path: Path) -> None:
    recording = speech_wav(tmp_path / "speech.wav", 2.0)
    words = [sys.executable, str(CLIENT), server.url, "--wav", str(recording)]
    film = tmp_path / "answer.mp4"
    done = subprocess.run([*words, "--save", str(film)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with av.open(str(film)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].codec_context.name) == (128, "h264")
        pictures = sum(1 for _ in container.decode(video=0))
    assert 50 <= pictures < 200
    server.wait_until_empty()
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["missing"] == 0
    assert figures["interval_ms_p50"] == pytest.approx(40, abs=8)
    assert figures["speech_to_sound_ms"] > 0


@pytest.mark.slow
def test_the_commands_of_the_guide_serve_a_photo_and_save_its_answer(tmp_path: Path) -> None:
    commands = fenced(ROOT / "docs" / "guides" / "live.md")
    serve = next(line for line in commands if line.startswith("flowportrait serve --image me.jpg"))
    program = next(line for line in commands if "flowportrait_live_client.py http" in line)
    shutil.copy(portrait_path("hair-tied"), tmp_path / "me.jpg")
    speech_wav(tmp_path / "speech.wav", 2.0)
    words = [sys.executable, "-m", *serve.split(), "--port", "0", "--size", "128"]
    running = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stderr is not None
        address = next(found[1] for line in running.stderr if (found := re.search(r"is at (http://\S+?)/ ", line)))
        with urllib.request.urlopen(f"{address}/clients/{CLIENT.name}") as answer:
            (tmp_path / CLIENT.name).write_bytes(answer.read())
        arguments = program.replace("http://127.0.0.1:7880", address).split()[1:]
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "answer.mp4").stat().st_size > 20_000
    finally:
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 0


@pytest.mark.parametrize(("rate", "wanted"), [(48_000, 24_000), (16_000, 24_000), (44_100, 16_000), (24_000, 24_000)])
def test_resampling_keeps_a_tone_and_does_not_depend_on_the_pieces(module: ModuleType, rate: int, wanted: int) -> None:
    tone = (10_000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.int16)
    whole = module._Resampler(rate, wanted).push(tone)
    pieces = module._Resampler(rate, wanted)
    parts = np.concatenate([pieces.push(piece) for piece in np.array_split(tone, 37)])
    # One unit of rounding: positions of pieces are sums of other numbers.
    assert np.abs(whole[: len(parts)].astype(int) - parts[: len(whole)]).max() <= 1
    assert len(whole) == pytest.approx(wanted, abs=4)
    # The mean over a piece of the tone is the tone with a known delay and loss, so a fit finds its amplitude.
    times = np.arange(len(whole)) / wanted
    waves = np.stack([np.sin(2 * np.pi * 440 * times), np.cos(2 * np.pi * 440 * times)], 1)
    factors, *_ = np.linalg.lstsq(waves, whole.astype(float), rcond=None)
    assert np.hypot(*factors) == pytest.approx(10_000, rel=0.01)
    assert np.abs(whole - waves @ factors).max() < 150


# --- JavaScript ---


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with opened_chromium("--autoplay-policy=no-user-gesture-required") as browser:
        yield browser


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("options", [{"transport": "webrtc"}, {"transport": "websocket"},
                                     {"transport": "websocket", "video": "mp4"}])  # fmt: skip
def test_the_javascript_client_speaks_samples_answers_pings_and_leaves(
    chromium: Any, server: LiveServer, options: dict[str, str]
) -> None:
    run = """async ([options, samples]) => {
        const { FlowPortraitLive } = await import(new URL("clients/flowportrait-live.js", location.href));
        const live = new FlowPortraitLive(options), seen = { states: [], level: 0 };
        live.on("state", ({ state }) => seen.states.push(state));
        const heard = (name) => new Promise((resolve) => live.on(name, resolve));
        const when = async (check) => {
            for (let i = 0; i < 1500 && !check(); i++) {
                seen.level = Math.max(seen.level, live.level());
                await new Promise((resolve) => setTimeout(resolve, 20));
            }
        };
        seen.ready = await live.connect();
        document.body.append(live.video);
        const pong = heard("pong");
        live.ping(7);
        seen.pong = (await pong).id;
        live.push(Int16Array.from(samples), 48000);
        live.finish();
        await when(() => seen.states.includes("speaking") && live.state === "idle");
        live.push(Int16Array.from(samples), 48000);
        await when(() => live.state === "speaking");
        live.interrupt();
        await when(() => live.state !== "speaking");
        const width = live.video.videoWidth || live.video.width;
        const problem = heard("error");
        live.send({ type: "nonsense" });
        seen.error = (await problem).message;
        live.close();
        return { ...seen, width, transport: live.transport, after: live.state };
    }"""
    samples = np.repeat(SAMPLES[:36_000], 2)
    with opened_page(chromium, server.url) as page:
        seen = page.evaluate(run, [options, samples.tolist()])
        server.wait_until_empty()  # close() ends the session on the server, not only here
    assert seen["ready"]["notice"] == "This face is generated."
    assert (seen["pong"], seen["width"], seen["transport"], seen["after"]) == (7, 128, options["transport"], "closed")
    assert seen["states"][:2] == ["speaking", "idle"]
    assert seen["states"][2:4] == ["speaking", "interrupted"]
    assert seen["level"] > 0.01
    assert "nonsense" in seen["error"]


@pytest.mark.slow
@pytest.mark.browser
def test_the_javascript_client_throws_the_servers_sentence(chromium: Any, server: LiveServer) -> None:
    run = """async () => {
        const { FlowPortraitLive } = await import(new URL("clients/flowportrait-live.js", location.href));
        const sentences = [];
        for (const transport of ["webrtc", "websocket"]) {
            const live = new FlowPortraitLive({ transport, size: 100 });
            await live.connect().catch(({ name, message }) => sentences.push(`${name}: ${message}`));
            sentences.push(live.state);
        }
        try { new FlowPortraitLive().speak("x"); } catch ({ message }) { sentences.push(message); }
        return sentences;
    }"""
    with opened_page(chromium, server.url) as page:
        page.expected = ("400",)
        first, state, second, other, third = page.evaluate(run)
    assert first.startswith("LiveError: The size 100 is not offered here")
    assert (second, state, other) == (first, "closed", "closed")
    assert "connect()" in third
