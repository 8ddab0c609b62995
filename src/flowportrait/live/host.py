"""``SessionHost``: the sessions of one process, which share one generator and one prepared portrait for each photo.

open(start, address) ─► admission ─► LivePortrait (prepared once) ─► LiveAvatar ─► LiveConnection
carry(connection, transport) ─► frames until the end ─► the reason, remembered for a while
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowportrait import __version__
from flowportrait.errors import BadInput
from flowportrait.live.admission import Admission
from flowportrait.live.avatar import LiveAvatar, LivePortrait
from flowportrait.live.connection import LiveConnection, LiveTransport
from flowportrait.live.limits import LiveLimits
from flowportrait.live.metrics import LiveLog, LiveMetrics
from flowportrait.live.protocol import StartMessage
from flowportrait.live.virtual_camera import CameraTransport, VirtualCamera
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.inputs import read_photo, synthesize_speech
from flowportrait.uploads import Uploads

SOUND_RATE = 48_000
"""Sample rate in Hz of the sound that leaves: what browsers and Opus use."""
MAX_PORTRAITS = 6
"""Prepared portraits that are kept: the server's own photo at each size, and uploaded ones."""
MAX_ENDED = 1000
"""Ended sessions whose reason is remembered."""


@dataclass(frozen=True)
class HostSettings:
    """What the sessions of a process have in common.

    Attributes:
        image: the photo of sessions that bring none.
        sizes: sides in pixels that clients may ask for.
        size: the one they get by default.
        sessions: how many may be open at once.
        uploads: folder of uploaded photos.
        voice: voice of texts that name none.
        seed: random seed of the motion.
        denoise: remove noise from pushed speech before the generator hears it.
        limits: what a client may do.
    """

    image: Path
    sizes: tuple[int, ...]
    size: int
    sessions: int
    uploads: Path
    voice: str | None = None
    seed: int = 0
    denoise: bool = False
    limits: LiveLimits = field(default_factory=LiveLimits)


class SessionHost:
    """Opens, carries and ends sessions; used in one event loop."""

    def __init__(self, pipeline: AnimatePipeline, settings: HostSettings, metrics: LiveMetrics, log: LiveLog) -> None:
        """Prepare a host without sessions.

        Args:
            pipeline: the generator that all sessions use.
            settings: what they have in common.
            metrics: where they are counted.
            log: where their beginning and end are written.
        """
        self.settings, self.metrics, self.log = settings, metrics, log
        self.admission = Admission(settings.sessions, settings.limits.sessions_per_address)
        self.uploads = Uploads(settings.uploads)
        self._pipeline = pipeline
        self._portraits: OrderedDict[tuple[str | None, int], LivePortrait] = OrderedDict()
        self._preparing = asyncio.Lock()
        self._connections: dict[str, LiveConnection] = {}
        self._addresses: dict[str, str] = {}
        self._ended: OrderedDict[str, str] = OrderedDict()
        self._camera: VirtualCamera | None = None
        metrics.capacity.set(settings.sessions)

    def use_camera(self, camera: VirtualCamera) -> None:
        """Show the pictures of the newest session as a webcam of this machine too."""
        self._camera = camera

    def keep_portrait(self, portrait: LivePortrait) -> None:
        """Use a portrait of the server's own photo that is already prepared."""
        self._portraits[None, portrait.size] = portrait

    def load_voice(self) -> None:
        """Speak a word that nobody hears, so that the first typed text does not wait for the voice to be loaded."""
        with suppress(BadInput):
            next(iter(synthesize_speech("Hello.", self.settings.voice)), None)

    async def portrait(self, image: str | None, size: int | None) -> LivePortrait:
        """Return the prepared portrait of a photo; one at a time is prepared.

        Args:
            image: id of an uploaded photo; None for the server's own.
            size: side in pixels; None for the default.

        Raises:
            BadInput: the size is not offered, or the photo is not there or shows no face.
        """
        size = size or self.settings.size
        if size not in self.settings.sizes:
            offered = ", ".join(map(str, self.settings.sizes))
            raise BadInput(f"The size {size} is not offered here: choose from {offered}.")
        path = self.settings.image if image is None else self.uploads.path(image)
        async with self._preparing:
            key = (image, size)
            if key not in self._portraits:
                self._portraits[key] = await asyncio.to_thread(self._prepare, path, size)
            self._portraits.move_to_end(key)
            self._forget_portraits()
            return self._portraits[key]

    def _prepare(self, path: Path, size: int) -> LivePortrait:
        # The photo is scaled before its face is looked for, which takes the same time for every photo.
        return LivePortrait(read_photo(path), checkpoint=self._pipeline, size=size)

    def _forget_portraits(self) -> None:
        own = (None, self.settings.size)
        while len(self._portraits) > MAX_PORTRAITS:
            del self._portraits[next(key for key in self._portraits if key != own)]

    # --- Sessions ---

    async def open(self, start: StartMessage, address: str, requested_at: float | None = None) -> LiveConnection:
        """Open a session; ``carry`` must follow, or ``abandon``.

        Args:
            start: what the client asks for.
            address: the client's address.
            requested_at: when it asked, by ``time.monotonic``; now by default.

        Raises:
            ServerFull: too many sessions are open.
            BadInput: the photo or the size cannot be used.
        """
        requested_at = time.monotonic() if requested_at is None else requested_at
        self.admission.enter(address)
        try:
            portrait = await self.portrait(start.image, start.size)
            settings = self.settings
            avatar = LiveAvatar(
                portrait, seed=settings.seed, rate=SOUND_RATE, denoise=settings.denoise,
                max_queued=settings.limits.seconds,
            )  # fmt: skip
        except BaseException:
            self.admission.leave(address)
            raise
        session = secrets.token_urlsafe(18)
        connection = LiveConnection(
            session, avatar, start, size=portrait.size, limits=settings.limits, metrics=self.metrics,
            voice=settings.voice, requested_at=requested_at,
        )  # fmt: skip
        self._connections[session], self._addresses[session] = connection, address
        self.metrics.opened.inc()
        self.metrics.sessions.set(self.admission.open)
        return connection

    async def carry(self, connection: LiveConnection, transport: LiveTransport, mime: str, kind: str) -> str:
        """Carry a session to its end, and return the reason.

        Args:
            connection: the session.
            transport: what carries it.
            mime: what its pictures are sent as.
            kind: name of the transport in the log.
        """
        self.log.write("session_opened", session=connection.session, transport=kind, size=connection.size)
        begun = time.monotonic()
        error: str | None = None
        if self._camera is not None:
            transport = CameraTransport(transport, self._camera)
        try:
            return await connection.run(transport, mime)
        except Exception as failure:
            error = type(failure).__name__
            return connection.closed_reason or error
        finally:
            self._forget(connection)
            self.log.write(
                "session_closed", session=connection.session, reason=connection.closed_reason, frames=connection.frame,
                late_frames=connection.late_frames, seconds=round(time.monotonic() - begun, 3), error=error,
            )  # fmt: skip

    def refuse(self, reason: str) -> None:
        """Count and log a session that was refused because the server is full."""
        self.metrics.refused.inc()
        self.log.write("session_refused", reason=reason, sessions=self.admission.open)

    def abandon(self, connection: LiveConnection, reason: str) -> None:
        """End a session that was opened and will not be carried."""
        connection.close(reason)
        self._forget(connection)

    def _forget(self, connection: LiveConnection) -> None:
        if self._connections.pop(connection.session, None) is None:
            return
        self.admission.leave(self._addresses.pop(connection.session))
        self._ended[connection.session] = connection.closed_reason or "The session has ended."
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
        self.metrics.sessions.set(self.admission.open)

    def find(self, session: str) -> LiveConnection | None:
        """Return an open session, or None."""
        return self._connections.get(session)

    def ended_reason(self, session: str) -> str | None:
        """Return why a session ended; None for one that is open or unknown."""
        return self._ended.get(session)

    def describe(self) -> dict[str, Any]:
        """Return the health of this process."""
        return {
            "status": "full" if not self.admission.has_room else "ok", "sessions": self.admission.open,
            "capacity": self.settings.sessions, "size": self.settings.size, "sizes": list(self.settings.sizes),
            "workers": 1, "version": __version__,
        }  # fmt: skip

    def close_all(self, reason: str) -> None:
        """End all sessions."""
        for connection in list(self._connections.values()):
            connection.close(reason)
