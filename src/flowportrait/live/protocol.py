"""The control messages of a live session, version 1: parsed, validated, built, and described as an AsyncAPI document.

    client text   ─► parse_message ─► StartMessage, SpeakMessage, … or None for an event that is of no use here
    client binary ─► parse_binary  ─► kind, payload
    server        ─► ReadyMessage, StateMessage, …  .to_json() ─► JSON;   pack_picture ─► binary

The messages are the same over a WebSocket and over a WebRTC data channel. The types of this module are the one source:
the validation of what arrives, what is sent, and ``asyncapi_document`` all come from them. Events of OpenAI's Realtime
interface are accepted as they are, so that its deltas can be passed straight through.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.json_schema import models_json_schema

from flowportrait.errors import BadInput
from flowportrait.live.session import State
from flowportrait.media.video import FPS
from flowportrait.rendering.emotion import EMOTIONS

PROTOCOL_VERSION = 1
CHANNEL = "flowportrait"
"""Label of the WebRTC data channel that carries the messages."""
NOTICE = "This face is generated."
"""The sentence that every client must show near the picture."""
MAX_TEXT_CHARACTERS = 20_000
"""Characters of one text in the protocol; a server's own limit may be lower (``LiveLimits.letters``)."""
REALTIME_RATE = 24_000
"""Sample rate in Hz of the sound in OpenAI's Realtime events."""
_IGNORED = ("response.", "session.", "conversation.", "input_audio_buffer.", "rate_limits.")
"""Beginnings of the types of Realtime events that need no answer."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_json(self) -> str:
        """Return the message as JSON."""
        return self.model_dump_json()


# --- Client to server -------------------------------------------------------------------

Rate = Annotated[int, Field(ge=8_000, le=192_000)]


class StartMessage(_Message):
    """The wish for a session: first message of a WebSocket, and part of a WebRTC offer."""

    type: Literal["start"] = "start"
    version: int = Field(PROTOCOL_VERSION, description="Version of the protocol that the client speaks.")
    token: str | None = Field(None, max_length=512, description="The server's token, where it asks for one.")
    image: str | None = Field(None, max_length=64, description="Id of an uploaded photo; the server's own by default.")
    size: int | None = Field(None, description="Side of the picture in pixels, one of the sizes the server offers.")
    video: Literal["jpeg", "mp4"] = Field("jpeg", description="How a WebSocket carries picture and sound.")
    speech_rate: Rate = Field(REALTIME_RATE, description="Sample rate in Hz of binary speech.")
    listen_rate: Rate = Field(16_000, description="Sample rate in Hz of the other side's binary voice.")


class SpeakMessage(_Message):
    """A text that the face speaks."""

    type: Literal["speak"] = "speak"
    text: str = Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)
    voice: str | None = Field(None, max_length=100, description="Name of the voice; the server's own by default.")


class FinishMessage(_Message):
    """The end of an utterance: what was pushed is spoken to its end."""

    type: Literal["finish"] = "finish"


class InterruptMessage(_Message):
    """Stop speaking now; waiting speech is dropped."""

    type: Literal["interrupt"] = "interrupt"


class CloseMessage(_Message):
    """End the session."""

    type: Literal["close"] = "close"


class PingMessage(_Message):
    """A question that the server answers with ``pong`` at once."""

    type: Literal["ping"] = "ping"
    id: int | str | None = Field(None, description="Returned in the answer.")


class MicrophoneMessage(_Message):
    """What a WebRTC microphone track is used for."""

    type: Literal["microphone"] = "microphone"
    use: Literal["speech", "listen", "off"]


class CameraMessage(_Message):
    """What a WebRTC camera track, or the pictures over a WebSocket, are used for."""

    type: Literal["camera"] = "camera"
    use: Literal["drive", "off"]


class EmotionMessage(_Message):
    """The emotion that the face shows from now on; it takes a second to come, and no weights end it."""

    type: Literal["emotion"] = "emotion"
    weights: dict[str, float] = Field(
        description=f"From 0 to 1, and 1 in all, by emotion: {', '.join(EMOTIONS)}.", max_length=len(EMOTIONS)
    )


class _RealtimeEvent(_Message):
    """An event of OpenAI's Realtime interface; its other fields are of no use here."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class AudioDeltaEvent(_RealtimeEvent):
    """Speech of an assistant: base64 of 16-bit mono at 24 kHz."""

    type: Literal["response.output_audio.delta", "response.audio.delta"]
    delta: str = Field(json_schema_extra={"contentEncoding": "base64"})


class AudioDoneEvent(_RealtimeEvent):
    """The end of an assistant's speech."""

    type: Literal["response.output_audio.done", "response.audio.done"]


class SpeechStartedEvent(_RealtimeEvent):
    """The user began to speak: the face stops speaking."""

    type: Literal["input_audio_buffer.speech_started"]


class AudioAppendEvent(_RealtimeEvent):
    """The voice of the user: base64 of 16-bit mono at 24 kHz; the face listens to it."""

    type: Literal["input_audio_buffer.append"]
    audio: str = Field(json_schema_extra={"contentEncoding": "base64"})


ClientMessage = (
    StartMessage | SpeakMessage | FinishMessage | InterruptMessage | CloseMessage | PingMessage | MicrophoneMessage
    | CameraMessage | EmotionMessage | AudioDeltaEvent | AudioDoneEvent | SpeechStartedEvent | AudioAppendEvent
)  # fmt: skip
CLIENT_MESSAGES: tuple[type[_Message], ...] = ClientMessage.__args__
_CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(Annotated[ClientMessage, Field(discriminator="type")])


def _types_of(kind: type[_Message]) -> tuple[str, ...]:
    return kind.model_fields["type"].annotation.__args__  # type: ignore[union-attr]


_CLIENT_TYPES = {name for kind in CLIENT_MESSAGES for name in _types_of(kind)}


def parse_message(text: str) -> ClientMessage | None:
    """Return the message in a text frame; None for a Realtime event that is of no use here.

    Raises:
        BadInput: the text is no message of this protocol.
    """
    return validate_message(_read_json(text))


def validate_message(fields: Any) -> ClientMessage | None:
    """Return the message with these fields; see ``parse_message``.

    Raises:
        BadInput: the fields are no message of this protocol.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        raise BadInput('A message is a JSON object with a "type", such as {"type": "finish"}.')
    name = fields["type"]
    if name not in _CLIENT_TYPES:
        if name.startswith(_IGNORED):
            return None
        known = ", ".join(sorted(one for one in _CLIENT_TYPES if "." not in one))
        raise BadInput(f"There is no message of the type {name[:80]!r}: send one of {known}, or a Realtime event.")
    try:
        message = _CLIENT.validate_python(fields)
    except ValidationError as error:
        raise BadInput(f"The message {name!r} is not possible: {_first_error(error)}.") from error
    if isinstance(message, StartMessage):
        check_version(message)
    return message


def check_version(start: StartMessage) -> None:
    """Refuse a start in another version of the protocol.

    Raises:
        BadInput: the version is not spoken here.
    """
    if start.version != PROTOCOL_VERSION:
        raise BadInput(f"Version {start.version} of the protocol is not spoken here: use {PROTOCOL_VERSION}.")


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput("The message is no JSON: send an object such as {\"type\": \"finish\"}.") from error  # fmt: skip


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    # The location begins with the discriminator, which is the type of the message.
    where = field_path(first["loc"][1:])
    return f"{where}: {first['msg']}" if where else first["msg"]


def field_path(parts: Iterable[Any]) -> str:
    """Return the place of a wrong field for a sentence.

    A client chose the names: they may be long, and hold characters that no sentence should.
    """
    return ".".join(ascii(str(part))[1:-1][:80] for part in parts)


def decode_sound(encoded: str) -> np.ndarray:
    """Return the 16-bit samples ``[n]`` in the base64 text of a Realtime event.

    Raises:
        BadInput: the text is no base64, or no whole number of samples.
    """
    try:
        return pcm_samples(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError) as error:
        raise BadInput(f"The sound of the event is no base64 ({error}).") from error


def pcm_samples(data: bytes) -> np.ndarray:
    """Return 16-bit little-endian mono samples ``[n]`` int16.

    Raises:
        BadInput: it is an odd number of bytes.
    """
    if len(data) % 2:
        raise BadInput(f"{len(data)} bytes are no whole number of 16-bit samples: send an even number.")
    return np.frombuffer(data, "<i2")


class ClientBinary(IntEnum):
    """First byte of a binary message of a client; the rest is its payload."""

    SPEECH = 1
    """Speech of the face: 16-bit little-endian mono at ``speech_rate``."""
    VOICE = 2
    """The other side's voice: 16-bit little-endian mono at ``listen_rate``."""
    PICTURE = 3
    """One JPEG picture of a webcam."""


def parse_binary(data: bytes) -> tuple[ClientBinary, bytes]:
    """Return kind and payload of a client's binary message.

    Raises:
        BadInput: the message is empty or of no known kind.
    """
    if not data:
        raise BadInput("A binary message is empty: its first byte is its kind, 1 for speech.")
    try:
        return ClientBinary(data[0]), data[1:]
    except ValueError:
        raise BadInput(
            f"A binary message begins with {data[0]}: 1 is speech, 2 the other side's voice, 3 a picture."
        ) from None


# --- Server to client -------------------------------------------------------------------


class ReadyMessage(_Message):
    """The session is open; pictures follow."""

    type: Literal["ready"] = "ready"
    version: int = PROTOCOL_VERSION
    session: str
    size: int
    fps: int = FPS
    rate: int = Field(description="Sample rate in Hz of the sound that is sent.")
    mime: str = Field(description="What the pictures are sent as, for Media Source Extensions where it is video/mp4.")
    notice: str = Field(default=NOTICE, description="A sentence that the client must show.")


class StateMessage(_Message):
    """What the face does from this frame on."""

    type: Literal["state"] = "state"
    state: State
    frame: int


class StatsMessage(_Message):
    """How the session goes; every five seconds."""

    type: Literal["stats"] = "stats"
    frame: int
    late_frames: int = Field(description="Frames so far that showed an older picture.")
    queued_seconds: float = Field(description="Seconds of speech that wait to be spoken.")


class PongMessage(_Message):
    """The answer to a ping."""

    type: Literal["pong"] = "pong"
    id: int | str | None = None


class ErrorMessage(_Message):
    """What could not be done, in one sentence; the session goes on."""

    type: Literal["error"] = "error"
    message: str


class ClosedMessage(_Message):
    """The session has ended; the last message."""

    type: Literal["closed"] = "closed"
    reason: str


SERVER_MESSAGES: tuple[type[_Message], ...] = (
    ReadyMessage, StateMessage, StatsMessage, PongMessage, ErrorMessage, ClosedMessage,
)  # fmt: skip


class ServerBinary(IntEnum):
    """First byte of a binary message of the server over a WebSocket."""

    PICTURE = 1
    """Frame number and JPEG length (u32 little-endian each), the JPEG, and the frame's sound (``pack_picture``)."""
    INITIAL_SEGMENT = 2
    """The beginning of a fragmented mp4, once."""
    MEDIA_SEGMENT = 3
    """Whole fragments of it."""


_PICTURE_HEAD = struct.Struct("<BII")


def pack_picture(index: int, jpeg: bytes, sound: np.ndarray) -> bytes:
    """Return the binary message of one frame.

    Args:
        index: number of the frame.
        jpeg: its picture; empty where it was dropped for a slow client, who then keeps showing the one before.
        sound: ``[1, n]`` float.
    """
    samples = (np.clip(sound[0], -1.0, 1.0) * 32767).astype("<i2")
    return _PICTURE_HEAD.pack(ServerBinary.PICTURE, index & 0xFFFF_FFFF, len(jpeg)) + jpeg + samples.tobytes()


def unpack_picture(data: bytes) -> tuple[int, bytes, np.ndarray]:
    """Return frame number, JPEG and 16-bit samples ``[n]`` of a message of ``pack_picture``.

    Raises:
        BadInput: the message is no picture.
    """
    if len(data) < _PICTURE_HEAD.size or data[0] != ServerBinary.PICTURE:
        raise BadInput("The binary message holds no picture.")
    _, index, length = _PICTURE_HEAD.unpack_from(data)
    begin = _PICTURE_HEAD.size
    return index, data[begin : begin + length], pcm_samples(data[begin + length :])


# --- The AsyncAPI document --------------------------------------------------------------


class _Described:
    """Binary messages in the document: name, direction, first byte and meaning."""

    kinds: ClassVar[tuple[tuple[str, str, IntEnum, str], ...]] = (
        ("speech", "client", ClientBinary.SPEECH, "16-bit little-endian mono speech at speech_rate."),
        ("voice", "client", ClientBinary.VOICE, "16-bit little-endian mono voice of the other side at listen_rate."),
        ("webcam", "client", ClientBinary.PICTURE, "One JPEG picture of a webcam."),
        ("picture", "server", ServerBinary.PICTURE, "u32 LE frame number, u32 LE length of the JPEG (0: keep showing "
         "the last picture), JPEG, 16-bit little-endian mono sound of the frame at the session's rate."),
        ("initialSegment", "server", ServerBinary.INITIAL_SEGMENT, "Beginning of a fragmented mp4."),
        ("mediaSegment", "server", ServerBinary.MEDIA_SEGMENT, "Fragments of an mp4, at least every 200 ms."),
    )  # fmt: skip


def asyncapi_document(version: str) -> dict[str, Any]:
    """Return the AsyncAPI 3 description of the WebSocket, made from the types of this module.

    Args:
        version: version of the server.
    """
    _, schemas = models_json_schema(
        [(kind, "validation") for kind in CLIENT_MESSAGES] + [(kind, "serialization") for kind in SERVER_MESSAGES],
        ref_template="#/components/schemas/{model}",
    )
    messages: dict[str, Any] = {
        kind.__name__: {
            "name": kind.__name__, "summary": (kind.__doc__ or "").split("\n")[0],
            "contentType": "application/json", "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
        }
        for kind in (*CLIENT_MESSAGES, *SERVER_MESSAGES)
    }  # fmt: skip
    for name, _, number, meaning in _Described.kinds:
        messages[name] = {
            "name": name, "contentType": "application/octet-stream",
            "summary": f"Binary message whose first byte is {int(number)}.", "description": meaning,
            "payload": {"type": "string", "format": "binary"},
        }  # fmt: skip
    channel = "#/channels/session"

    def operation(action: str, side: str, kinds: tuple[type[_Message], ...]) -> dict[str, Any]:
        names = [kind.__name__ for kind in kinds] + [name for name, by, _, _ in _Described.kinds if by == side]
        return {
            "action": action, "channel": {"$ref": channel},
            "messages": [{"$ref": f"{channel}/messages/{name}"} for name in names],
        }  # fmt: skip

    return {
        "asyncapi": "3.0.0",
        "info": {"title": "FlowPortrait live", "version": version, "description": _DESCRIPTION},
        "defaultContentType": "application/json",
        "channels": {
            "session": {
                "address": "/live/ws",
                "description": "One session over a WebSocket. The first message is start. The JSON messages are the "
                f"same on the WebRTC data channel {CHANNEL!r}.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"ws": {"method": "GET"}},
            }
        },
        "operations": {
            "receiveFromClient": operation("receive", "client", CLIENT_MESSAGES),
            "sendToClient": operation("send", "server", SERVER_MESSAGES),
        },
        "components": {"messages": messages, "schemas": schemas["$defs"]},
    }


_DESCRIPTION = (
    "A live avatar: control messages as JSON text, sound and pictures as binary messages. Version "
    f"{PROTOCOL_VERSION} of the protocol. {NOTICE}"
)
