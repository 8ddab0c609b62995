"""Claims about WebRTC with a real Chromium: what is seen and heard there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiortc", reason="the extra live is not installed")

from flowportrait.live.webrtc import WebRTCPeer
from tests.live.click_and_flash import FPS, ClickAndFlash
from tests.live.test_webrtc import callbacks
from tests.study_browser import CHROMIUM

pytestmark = [pytest.mark.slow, pytest.mark.browser]

JITTER_MS = 100
"""Buffer of a browser for pictures and sound. Without one, Chromium begins with its own: 10 ms for pictures, 30 to 200
for sound, by how steadily it arrives, and takes 10 s to bring them together."""

PAGE = """
window.seen = {flashes: [], clicks: [], playout: [], frames: 0, first: null, pixel: null};
window.worklet = `registerProcessor("clicks", class extends AudioWorkletProcessor {
  process(inputs) {
    const samples = inputs[0][0] || [];
    for (let i = 0; i < samples.length; i++) {
      if (Math.abs(samples[i]) < 0.2) continue;
      const time = currentTime + i / sampleRate;
      if (!(time - this.last < 0.5)) this.port.postMessage(time);
      this.last = time;
    }
    return true;
  }
});`;
window.openSound = async () => {
  // The loudspeaker is opened before the offer: sound that comes before that waits, and is late for seconds.
  window.context = new AudioContext({latencyHint: "interactive"});
  await context.audioWorklet.addModule(URL.createObjectURL(new Blob([worklet], {type: "text/javascript"})));
  await context.resume();
};
window.listen = stream => {
  const node = new AudioWorkletNode(context, "clicks");
  context.createMediaStreamSource(stream).connect(node).connect(context.destination);
  node.port.onmessage = async event => {
    seen.clicks.push((event.data - context.currentTime) * 1000 + performance.now());
    const times = {};
    for (const one of (await connection.getStats()).values())
      if (one.type === "inbound-rtp") times[one.kind] = one.estimatedPlayoutTimestamp;
    if (times.audio && times.video) seen.playout.push(times.video - times.audio);
  };
};
window.start = async ({codec, jitter}) => {
  await openSound();
  window.connection = new RTCPeerConnection();
  const video = document.createElement("video");
  video.muted = video.playsInline = video.autoplay = true;
  document.body.append(video);
  connection.ontrack = event => {
    video.srcObject = event.streams[0];
    if (event.track.kind === "audio") listen(event.streams[0]);
  };
  const canvas = document.createElement("canvas");
  const draw = canvas.getContext("2d", {willReadFrequently: true});
  let bright = false;
  const look = (now, metadata) => {
    seen.frames++;
    if (seen.first === null) seen.first = performance.now() - offered;
    draw.drawImage(video, 0, 0, 16, 16);
    seen.pixel = [...draw.getImageData(8, 8, 1, 1).data].slice(0, 3);
    const flash = seen.pixel[0] > 128;
    if (flash && !bright) seen.flashes.push(metadata.expectedDisplayTime);
    bright = flash;
    video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
  const transceiver = connection.addTransceiver("video", {direction: "recvonly"});
  connection.addTransceiver("audio", {direction: "recvonly"});
  if (codec) transceiver.setCodecPreferences(
    RTCRtpReceiver.getCapabilities("video").codecs.filter(one => one.mimeType === "video/" + codec));
  for (const receiver of connection.getReceivers()) receiver.jitterBufferTarget = jitter;
  connection.createDataChannel("flowportrait");
  const offered = performance.now();
  await connection.setLocalDescription();
  await connection.setRemoteDescription({type: "answer", sdp: await answer(connection.localDescription.sdp)});
};
"""


@contextlib.asynccontextmanager
async def page(*arguments: str) -> AsyncIterator[Any]:
    """A page in a headless Chromium; skips the test, with the reason, where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    api = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    async with api.async_playwright() as play:
        options = ["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required", *arguments]
        browser = await play.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            yield await browser.new_page()
        finally:
            await browser.close()


async def watch(
    source: ClickAndFlash, seconds: float, codec: str | None = None, jitter: int | None = JITTER_MS
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a browser saw and heard of a source, and the figures of the peer."""
    peers: list[WebRTCPeer] = []
    async with page() as one:

        async def answer(sdp: str) -> str:
            peers.append(await WebRTCPeer.answer(sdp, rate=source.rate, **callbacks({})))
            return peers[0].answer_sdp

        # Only a page of a secure origin, such as localhost, may listen to sound.
        await one.route("**/*", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
        await one.goto("http://localhost/")
        await one.expose_function("answer", answer)
        await one.add_script_tag(content=PAGE)
        await one.evaluate("settings => start(settings)", {"codec": codec, "jitter": jitter})
        await source.play(peers[0].send_frame, round(seconds * FPS))
        seen, stats = await one.evaluate("seen"), peers[0].stats()
        await peers[0].close()
    return seen, stats


def sync_errors(seen: dict[str, Any]) -> tuple[float, float]:
    """By how many ms pictures lead (positive) or follow the sound: as drawn and rendered, and by Chromium's reports."""
    drawn = [min((click - flash for click in seen["clicks"]), key=abs) for flash in seen["flashes"][2:]]
    return float(np.median(drawn)), float(np.median(seen["playout"]))


def test_flash_and_click_are_played_together() -> None:
    # How steadily sound arrives, and so how long Chromium holds it back, depends on what else the processors do: a busy
    # moment may spoil one attempt, while clocks that disagree would spoil all.
    attempts = []
    for _ in range(3):
        seen, stats = asyncio.run(watch(ClickAndFlash(384), 12))
        assert stats["codec"] == "H264"
        assert seen["first"] < 1000
        assert len(seen["flashes"]) >= 8
        assert len(seen["clicks"]) >= 8
        attempts.append(sync_errors(seen))
        if max(map(abs, attempts[-1])) <= 40:
            return
    pytest.fail(f"pictures and sound are apart by {attempts} ms")


@pytest.mark.parametrize("codec", ["H264", "VP8"])
def test_a_browser_shows_the_colour_that_was_sent(codec: str) -> None:
    class Flat(ClickAndFlash):
        def frame(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return np.full((self.size, self.size, 3), (200, 60, 40), np.uint8), self._silence

    seen, stats = asyncio.run(watch(Flat(128), 2, codec))
    assert stats["codec"] == codec
    assert np.abs(np.array(seen["pixel"]) - (200, 60, 40)).max() <= 6, seen["pixel"]
