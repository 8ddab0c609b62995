"""A virtual camera: the pictures of a live avatar as a webcam that video calls and recorders can choose.

    avatar.frames() ─► feed_camera ─► VirtualCamera.send ─► pyvirtualcam ─► v4l2loopback (Linux) or OBS (macOS, Windows)

A virtual camera has no sound: play the sound of the frames on a loudspeaker, or into a virtual audio cable.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from flowportrait.errors import BadInput

if TYPE_CHECKING:
    from flowportrait.live.connection import LiveTransport

_SETUP = {
    "linux": "install v4l2loopback and run: sudo modprobe v4l2loopback exclusive_caps=1",
    "darwin": "install OBS Studio and start its virtual camera once",
    "win32": "install OBS Studio and start its virtual camera once",
}


class VirtualCamera:
    """A webcam of this machine whose pictures a program sends; use it as a context manager, or close it."""

    def __init__(
        self, size: int | tuple[int, int], fps: float = 25, *, device: str | None = None, backend: str | None = None
    ) -> None:
        """Open the camera; programs that use webcams see it from now on.

        Args:
            size: side of the pictures in pixels, or their width and height.
            fps: pictures that will be sent in a second.
            device: name of the device, such as ``/dev/video2``; by default the first one that is free.
            backend: name of a backend of pyvirtualcam; by default the first one that works.

        Raises:
            BadInput: pyvirtualcam is not installed, there is no such backend, or no device.
        """
        self.width, self.height = (size, size) if isinstance(size, int) else size
        self.owner: object = None
        """Whose pictures it shows, where several could send some."""
        try:
            library: Any = import_module("pyvirtualcam")
        except ImportError as error:
            raise BadInput('A virtual camera needs pyvirtualcam: pip install "flowportrait[camera]".') from error
        known = library.camera.BACKENDS
        if backend is not None and backend not in known:
            raise BadInput(f"pyvirtualcam has no backend {backend!r} here: give one of {', '.join(known)}.")
        try:
            self._camera: Any = library.Camera(self.width, self.height, fps, device=device, backend=backend)
        except RuntimeError as error:
            setup = _SETUP.get(sys.platform, "see pyvirtualcam's documentation")
            reason = " ".join(str(error).split()).partition(". ")[0]
            raise BadInput(
                f"No virtual camera of {self.width}x{self.height} can be opened ({reason}): {setup}."
            ) from error

    @property
    def device(self) -> str:
        """Name of the device, under which other programs list it or its file."""
        return str(self._open_camera().device)

    def send(self, picture: np.ndarray) -> None:
        """Show a picture; it stays until the next one.

        Args:
            picture: ``[H, W, 3]`` uint8 RGB of the camera's size.

        Raises:
            BadInput: the picture is of another size or type, or the camera is closed.
        """
        if picture.shape != (self.height, self.width, 3) or picture.dtype != np.uint8:
            raise BadInput(
                f"A picture of shape {picture.shape} and {picture.dtype} does not fit the virtual camera: "
                f"give [{self.height}, {self.width}, 3] uint8."
            )
        self._open_camera().send(np.ascontiguousarray(picture))

    def close(self) -> None:
        """Release the device; this may be called twice."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None

    def _open_camera(self) -> Any:
        if self._camera is None:
            raise BadInput("The virtual camera is closed: open a new one.")
        return self._camera

    def __enter__(self) -> VirtualCamera:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class CameraTransport:
    """What carries a session to its client, and its pictures to a virtual camera as well (``LiveTransport``).

    A thread sends the newest picture, so that a device that waits holds nothing up. Of several sessions, the one that
    was opened last has the camera.
    """

    def __init__(self, transport: LiveTransport, camera: VirtualCamera) -> None:
        self._transport, self._camera = transport, camera
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="virtual camera")
        self._sending: Future[None] | None = None
        camera.owner = self

    def send_frame(self, index: int, picture: np.ndarray, sound: np.ndarray) -> None:
        """Take one frame."""
        self._transport.send_frame(index, picture, sound)
        is_free = self._sending is None or self._sending.done()
        if self._camera.owner is self and is_free:
            self._sending = self._sender.submit(self._send, picture)

    def send_text(self, message: str) -> None:
        """Take one control message."""
        self._transport.send_text(message)

    def _send(self, picture: np.ndarray) -> None:
        size = (self._camera.width, self._camera.height)
        if picture.shape[1::-1] != size:
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        self._camera.send(picture)


async def feed_camera(frames: AsyncIterator[tuple[np.ndarray, np.ndarray]], camera: VirtualCamera) -> int:
    """Send the pictures of an avatar to a camera until they end; the sound is dropped.

    Args:
        frames: pairs of picture and sound, such as ``avatar.frames()``.
        camera: the camera, of the size of the pictures.

    Returns:
        The number of pictures that were sent.
    """
    count = 0
    async for picture, _ in frames:
        await asyncio.to_thread(camera.send, picture)
        count += 1
    return count
