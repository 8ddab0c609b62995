"""``flowportrait serve``: a live avatar for browsers and voice agents."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from tyro import conf

from flowportrait.commands.options import Flag, OptionalInt, OptionalPath, OptionalText, Settings
from flowportrait.errors import BadInput
from flowportrait.extras import require_extra
from flowportrait.terminal import log, waiting

if TYPE_CHECKING:
    from flowportrait.live.server import LiveServerSettings
    from flowportrait.live.webrtc import IceServer

    _Opened = tuple[Any, Callable[[], None], Callable[[], Awaitable[None]]]

IceServers = conf.UseAppendAction[Annotated[tuple[str, ...], conf.arg(metavar="URL")]]
Origins = Annotated[tuple[str, ...], conf.arg(metavar="ORIGIN …", help_behavior_hint="")]
Names = Annotated[tuple[str, ...], conf.arg(metavar="NAME …", help_behavior_hint="")]


@dataclass(frozen=True)
class ServeOptions:
    """A face that idles, listens and speaks, for browsers and voice agents."""

    configuration: ClassVar[str] = "flowportrait.live.limits:LiveLimits"
    image: OptionalPath = None
    """Photo, painting or drawing with a face; an example portrait by default."""
    checkpoint: str = "rl"
    """The generator: rl, sft, a folder, or a name on the Hub."""
    size: OptionalInt = None
    """Side of the picture in pixels; by default the largest that this machine holds at 25 frames a second."""
    sessions: OptionalInt = None
    """Sessions at once; by default as many as this machine was measured to carry."""
    workers: int = 1
    """Processes that draw; more than one on machines with many cores."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 can be reached from other machines."""
    port: int = 7880
    """Port to listen on; 0 picks a free one."""
    token: OptionalText = None
    """What clients must send; made and printed where other machines can reach the server."""
    origin: Origins = ()
    """Other web sites whose pages may use the server, such as https://example.org."""
    public_name: Names = ()
    """Further names of the server, such as that of a proxy in front of it."""
    ice_server: IceServers = ()
    """STUN or TURN server for WebRTC: stun:HOST, or turn:USER:PASSWORD@HOST; may be given several times."""
    voice: OptionalText = None
    """Voice of typed texts; see animate --voice."""
    seed: int = 0
    """Random seed of the motion."""
    denoise: Flag = False
    """Remove noise from speech before the face hears it, for speech from a microphone."""
    camera: Flag = False
    """Show the pictures of the newest session as a webcam of this machine too (extra camera)."""
    certificate: OptionalPath = None
    """Certificate for https (PEM); browsers give microphone and webcam to https and to this machine alone."""
    private_key: OptionalPath = None
    """Private key of the certificate (PEM)."""
    log: Literal["text", "json"] = "text"
    """Form of the log on standard error."""
    set: Settings = ()
    """Limits: letters, seconds, messages, kilobytes, idle_minutes, session_minutes, sessions_per_address, …"""


def run(options: ServeOptions) -> dict[str, Any]:
    """Serve until Ctrl-C."""
    require_extra("live", "fastapi", "uvicorn", "websockets", "aiortc", "prometheus_client")
    from flowportrait import samples
    from flowportrait.config import override
    from flowportrait.live.limits import LiveLimits
    from flowportrait.web_server import (
        LOOPBACK,
        allowed_host_names,
        bind_listener,
        check_tls_certificate,
        listener_url,
        make_server,
    )

    _check(options)
    limits = override(LiveLimits(), options.set)
    check_tls_certificate(options.certificate, options.private_key)
    hosts = tuple(allowed_host_names(options.host, options.public_name))
    origins = tuple(check_origin(origin) for origin in options.origin)
    local = options.host in LOOPBACK
    token = options.token or (None if local else secrets.token_urlsafe(24))
    image = options.image or samples.portrait_path(next(iter(samples.PORTRAITS)))
    with ExitStack() as stack:
        listener = stack.enter_context(bind_listener(options.host, options.port))
        uploads = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flowportrait-live-")))
        from flowportrait.web_sockets import websocket_settings

        with waiting("loading the networks"):
            from flowportrait.live.server import LiveServerSettings

            ice_servers = tuple(parse_ice_server(address) for address in options.ice_server)
            settings = LiveServerSettings(hosts, token, origins, ice_servers, limits)
            opened = _open_workers(options, image, uploads, settings, stack) if options.workers > 1 else None
            app, begin, end = opened or _open_process(options, image, uploads, settings)

        def ready() -> None:
            begin()
            address = listener_url(listener, "https" if options.certificate else "http")
            log(f"The live avatar is at {address}/{f'#token={token}' if token else ''} (Ctrl-C ends it).")
            if not local and options.certificate is None:
                log("Browsers give microphone and webcam only to https and to this machine: give --certificate and "
                    "--private-key, or let a proxy with https come to this server.")  # fmt: skip

        server = make_server(
            app, ready, options.certificate, options.private_key, end,
            **websocket_settings(limits.message_kilobytes * 1000),
        )  # fmt: skip
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    return {}


def _check(options: ServeOptions) -> None:
    if options.image is not None and not options.image.is_file():
        raise BadInput(f"No file at {options.image}: give a photo as --image.")
    for name, value, least in (("size", options.size, 128), ("sessions", options.sessions, 1),
                               ("workers", options.workers, 1)):  # fmt: skip
        if value is not None and value < least:
            raise BadInput(f"--{name} {value} is not possible: give at least {least}.")
    if options.camera and options.workers > 1:
        raise BadInput("--camera shows the session of one process: leave out --workers.")
    if options.size is not None and (options.size > 1024 or options.size % 2):
        raise BadInput(f"--size {options.size} is not possible: give an even number up to 1024.")
    if options.token is not None and not (16 <= len(options.token) <= 512 and options.token.isascii()
                                          and options.token.isprintable() and " " not in options.token):  # fmt: skip
        raise BadInput(
            "--token must have 16 to 512 letters, digits or signs without blanks, so that it cannot be guessed."
        )


def _open_process(options: ServeOptions, image: Path, uploads: Path, settings: LiveServerSettings) -> _Opened:
    """Return the application that draws in this process, and what is called at its beginning and end."""
    import torch

    from flowportrait.live.capacity import measure_capacity
    from flowportrait.live.host import HostSettings, SessionHost
    from flowportrait.live.metrics import LiveLog, LiveMetrics
    from flowportrait.live.server import end_sessions, live_app
    from flowportrait.live.virtual_camera import VirtualCamera
    from flowportrait.pipelines.animate import AnimatePipeline

    # The networks are small: threads that wait for each other cost more than they bring.
    torch.set_num_threads(1)
    pipeline = AnimatePipeline.from_pretrained(options.checkpoint, denoise=options.denoise)
    capacity, portrait = measure_capacity(image, pipeline, options.size)
    sessions = options.sessions or min(capacity.sessions, capacity.sessions_per_process)
    log(capacity.sentence(sessions))
    host_settings = HostSettings(
        image, capacity.sizes, capacity.size, sessions, uploads, options.voice, options.seed, options.denoise,
        settings.limits,
    )  # fmt: skip
    host = SessionHost(pipeline, host_settings, LiveMetrics(), LiveLog(options.log))
    host.keep_portrait(portrait)
    if options.camera:
        host.use_camera(VirtualCamera(portrait.size))
    host.load_voice()
    return live_app(host, settings), lambda: None, end_sessions(host)


def _open_workers(
    options: ServeOptions, image: Path, uploads: Path, settings: LiveServerSettings, stack: ExitStack
) -> _Opened:
    """Return the application in front of several processes that draw, and what is called at its beginning and end."""
    from flowportrait.live.metrics import LiveLog
    from flowportrait.live.relay import relay_app
    from flowportrait.live.worker_process import WorkerSettings
    from flowportrait.live.workers import WorkerPool

    worker_settings = WorkerSettings(
        image, options.checkpoint, uploads, options.workers, options.size, voice=options.voice, seed=options.seed,
        denoise=options.denoise, ice_servers=settings.ice_servers, limits=settings.limits, log=options.log,
    )  # fmt: skip
    pool = WorkerPool(worker_settings, options.sessions, LiveLog(options.log))
    stack.callback(pool.close)
    capacity = pool.start()
    total, count = pool.admission.sessions, len(pool.workers)
    log(f"{capacity.sentence()[:-1]}; {count} process{'es draw' if count > 1 else ' draws'} up to {total}.")
    return relay_app(pool, settings), pool.attach, pool.end


def check_origin(origin: str) -> str:
    """Return the origin of another site in the form in which browsers send it.

    Raises:
        BadInput: it is no origin.
    """
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(origin.rstrip("/").lower())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.path or parts.query)
        usable = usable and "@" not in parts.netloc and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise BadInput(f"--origin {origin} is no origin: give it as https://example.org, without a path.")
    return f"{parts.scheme}://{parts.netloc}"


def parse_ice_server(address: str) -> IceServer:
    """Return the STUN or TURN server of an option.

    Args:
        address: ``stun:HOST:PORT``, ``turn:USER:PASSWORD@HOST:PORT?transport=tcp``, or a TURN address with
            ``?username=…&credential=…``; parts with special characters are percent-encoded.

    Raises:
        BadInput: it is no such address.
    """
    from urllib.parse import parse_qs, unquote, urlencode

    from flowportrait.live.webrtc import IceServer, ice_configuration

    scheme, colon, rest = address.partition(":")
    place, _, query = rest.partition("?")
    login, at, host = place.rpartition("@")
    fields = parse_qs(query)
    username, password = fields.pop("username", [""])[0], fields.pop("credential", [""])[0]
    if at:
        username, _, password = (unquote(part) for part in login.partition(":"))
    if scheme in ("turn", "turns") and not (username and password):
        raise BadInput(f"--ice-server {scheme}:{host} lacks a login: give it as {scheme}:USER:PASSWORD@HOST:PORT.")
    url = f"{scheme}{colon}{host}" + (f"?{urlencode(fields, doseq=True)}" if fields else "")
    server = IceServer((url,), username, password)
    ice_configuration([server])
    return server
