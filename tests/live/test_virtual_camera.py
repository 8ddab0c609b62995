"""Claims about the virtual camera, with pyvirtualcam itself: a backend of the test, and a machine without a device."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from flowportrait.errors import BadInput
from flowportrait.live.virtual_camera import CameraTransport, VirtualCamera, feed_camera

pyvirtualcam = pytest.importorskip("pyvirtualcam")


class RecordingBackend:
    """A backend as pyvirtualcam documents it, which keeps what it is sent."""

    opened: ClassVar[list[RecordingBackend]] = []

    def __init__(self, *, width: int, height: int, fps: float, fourcc: int, device: str | None, **_: Any) -> None:
        if width > 1000:
            raise RuntimeError("the device takes no such size")
        self.size, self.fps, self.name, self.closed = (width, height), fps, device or "recorder 0", 0
        self.frames: list[np.ndarray] = []
        self.opened.append(self)

    def close(self) -> None:
        self.closed += 1

    def send(self, frame: np.ndarray) -> None:
        self.frames.append(frame.copy())

    def device(self) -> str:
        return self.name

    def native_fourcc(self) -> None:
        return None


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(pyvirtualcam.camera, "BACKENDS", dict(pyvirtualcam.camera.BACKENDS))
    RecordingBackend.opened.clear()
    pyvirtualcam.register_backend("recorder", RecordingBackend)
    return "recorder"


def test_pictures_arrive_unchanged_and_in_order(recorder: str) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(5)]

    async def frames() -> AsyncIterator[tuple[np.ndarray, np.ndarray]]:
        for picture in pictures:
            yield picture, np.zeros((1, 1920), np.float32)

    with VirtualCamera((64, 48), 25, backend=recorder) as camera:
        assert asyncio.run(feed_camera(frames(), camera)) == 5
        assert camera.device == "recorder 0"
    (backend,) = RecordingBackend.opened
    assert (backend.size, backend.fps, backend.closed) == ((64, 48), 25, 1)
    assert all(np.array_equal(sent.reshape(48, 64, 3), one) for sent, one in zip(backend.frames, pictures, strict=True))


def test_a_picture_that_does_not_fit_and_a_closed_camera_are_refused(recorder: str) -> None:
    camera = VirtualCamera(64, backend=recorder)
    for wrong in (np.zeros((64, 32, 3), np.uint8), np.zeros((64, 64, 3), np.float32)):
        with pytest.raises(BadInput, match=r"does not fit.*\[64, 64, 3\]"):
            camera.send(wrong)
    camera.close()
    camera.close()
    assert RecordingBackend.opened[-1].closed == 1
    with pytest.raises(BadInput, match="closed"):
        camera.send(np.zeros((64, 64, 3), np.uint8))


def test_the_reason_of_the_device_is_in_the_sentence(recorder: str) -> None:
    with pytest.raises(BadInput, match=r"1200x1200.*the device takes no such size"):
        VirtualCamera(1200, backend=recorder)
    with pytest.raises(BadInput, match="no backend 'nothing'"):
        VirtualCamera(64, backend="nothing")


@pytest.mark.skipif(
    sys.platform != "linux" or any(Path("/dev").glob("video*")), reason="this machine may have a virtual camera"
)
def test_a_machine_without_a_device_is_told_what_to_install() -> None:
    with pytest.raises(BadInput, match="modprobe v4l2loopback") as refusal:
        VirtualCamera(64)
    assert "\n" not in str(refusal.value)
    print(refusal.value)


def test_without_pyvirtualcam_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with pytest.raises(BadInput, match=r"flowportrait\[camera\]"):
        VirtualCamera(64)


class Client:
    """The client of a session, which keeps what it is sent."""

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.texts: list[str] = []

    def send_frame(self, index: int, picture: np.ndarray, sound: np.ndarray) -> None:
        self.frames.append(index)

    def send_text(self, message: str) -> None:
        self.texts.append(message)


def test_the_newest_session_has_the_camera_and_every_client_all_of_its_frames(recorder: str) -> None:
    sound, grey = np.zeros((1, 1920), np.float32), np.full((96, 96, 3), 128, np.uint8)
    with VirtualCamera(64, backend=recorder) as camera:
        first, second = Client(), Client()
        older, newer = CameraTransport(first, camera), CameraTransport(second, camera)
        for index in range(20):
            older.send_frame(index, np.zeros((64, 64, 3), np.uint8), sound)
            newer.send_frame(index, grey, sound)
            time.sleep(0.01)
        older.send_text("stats")
    assert first.frames == second.frames == list(range(20))
    assert first.texts == ["stats"]
    (backend,) = RecordingBackend.opened
    assert 2 <= len(backend.frames) <= 20
    assert all(frame.size == 64 * 64 * 3 and (frame == 128).all() for frame in backend.frames)
