"""Claims about the messages of a live session: what is documented parses, and nothing else does harm."""

from __future__ import annotations

import base64
import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowportrait.errors import BadInput
from flowportrait.live import protocol

CLIENT: list[dict[str, Any]] = [
    {"type": "start", "version": 1, "token": "t", "image": None, "size": 384, "video": "mp4", "speech_rate": 24_000,
     "listen_rate": 16_000},
    {"type": "speak", "text": "Good day.", "voice": None}, {"type": "finish"}, {"type": "interrupt"},
    {"type": "close"}, {"type": "ping", "id": 1}, {"type": "microphone", "use": "speech"},
    {"type": "microphone", "use": "listen"}, {"type": "microphone", "use": "off"},
    {"type": "camera", "use": "drive"}, {"type": "camera", "use": "off"},
    {"type": "emotion", "weights": {"happy": 0.6, "surprised": 0.2}}, {"type": "emotion", "weights": {}},
]  # fmt: skip
EVENTS: list[dict[str, Any]] = [
    {"type": "response.output_audio.delta", "delta": "AAAA", "item_id": "i"},
    {"type": "response.audio.delta", "delta": "AAAA"}, {"type": "response.output_audio.done"},
    {"type": "response.audio.done"}, {"type": "input_audio_buffer.speech_started", "audio_start_ms": 3},
    {"type": "input_audio_buffer.append", "audio": "AAAA"},
]  # fmt: skip
SERVER = [
    protocol.ReadyMessage(session="s", size=384, rate=48_000, mime="image/jpeg"),
    protocol.StateMessage(state="speaking", frame=3),
    protocol.StatsMessage(frame=3, late_frames=0, queued_seconds=0.5),
    protocol.PongMessage(id=1), protocol.ErrorMessage(message="No."), protocol.ClosedMessage(reason="Done."),
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8,
)  # fmt: skip
TYPES = st.sampled_from([one["type"] for one in CLIENT + EVENTS])
FIELDS = st.sampled_from(["version", "token", "size", "text", "voice", "use", "id", "delta", "audio"]) | st.text()


@pytest.mark.parametrize("fields", CLIENT, ids=lambda one: "-".join(map(str, one.values()))[:30])
def test_every_message_of_a_client_round_trips(fields: dict[str, Any]) -> None:
    message = protocol.parse_message(json.dumps(fields))
    assert message is not None
    assert json.loads(message.to_json()) == fields
    assert protocol.parse_message(message.to_json()) == message


@pytest.mark.parametrize("fields", EVENTS, ids=lambda one: one["type"])
def test_realtime_events_are_taken_with_fields_of_no_use(fields: dict[str, Any]) -> None:
    message = protocol.parse_message(json.dumps({**fields, "event_id": "e"}))
    assert message is not None
    assert message.type == fields["type"]


@pytest.mark.parametrize("name", ["response.created", "session.updated", "conversation.item.created",
                                  "input_audio_buffer.committed", "rate_limits.updated"])  # fmt: skip
def test_other_realtime_events_are_ignored(name: str) -> None:
    assert protocol.parse_message(json.dumps({"type": name, "any": [1]})) is None


@pytest.mark.parametrize("fields", [
    {"type": "dance"}, {"type": "speak"}, {"type": "speak", "text": ""}, {"type": "finish", "now": True},
    {"type": "speak", "text": "x" * 20_001}, {"type": "camera", "use": "listen"}, {"type": "start", "version": 2},
    {"type": "start", "speech_rate": 7999}, {"type": "start", "video": "gif"}, {"type": 1}, {}, [], None, "finish",
    {"type": "input_audio_buffer.append"}, {"type": "finish", "\ud800": 1}, {"type": "finish", "x" * 10**6: 1},
    {"type": "emotion"}, {"type": "emotion", "weights": {"happy": "much"}},
], ids=map(str, range(19)))  # fmt: skip
def test_a_wrong_message_is_one_short_sentence_that_can_be_sent(fields: Any) -> None:
    with pytest.raises(BadInput) as caught:
        protocol.parse_message(json.dumps(fields))
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 400
    assert json.loads(protocol.ErrorMessage(message=sentence).to_json())["message"] == sentence


@given(JSON | st.fixed_dictionaries({"type": TYPES}).flatmap(
    lambda head: st.dictionaries(FIELDS, JSON, max_size=4).map(lambda more: {**more, **head})))  # fmt: skip
def test_arbitrary_json_raises_nothing_but_bad_input(fields: Any) -> None:
    try:
        message = protocol.parse_message(json.dumps(fields))
        if isinstance(message, protocol.AudioDeltaEvent):
            protocol.decode_sound(message.delta)
    except BadInput as error:
        protocol.ErrorMessage(message=str(error)).to_json()


@given(st.text(), st.binary())
def test_arbitrary_text_and_bytes_raise_nothing_but_bad_input(text: str, data: bytes) -> None:
    for read in (lambda: protocol.parse_message(text), lambda: protocol.decode_sound(text),
                 lambda: protocol.parse_binary(data), lambda: protocol.unpack_picture(data),
                 lambda: protocol.pcm_samples(data)):  # fmt: skip
        try:
            read()
        except BadInput as error:
            protocol.ErrorMessage(message=str(error)).to_json()


def test_sound_of_an_event_is_exact_and_half_a_sample_is_called_so() -> None:
    samples = np.array([0, 1, -32_768, 32_767], "<i2")
    assert (protocol.decode_sound(base64.b64encode(samples.tobytes()).decode()) == samples).all()
    with pytest.raises(BadInput, match=r"3 bytes are no whole number of 16-bit samples: send an even number\.$"):
        protocol.decode_sound(base64.b64encode(b"abc").decode())


def test_binary_messages_have_the_documented_kinds() -> None:
    for number, kind in enumerate(("SPEECH", "VOICE", "PICTURE"), 1):
        assert protocol.parse_binary(bytes([number]) + b"xy") == (protocol.ClientBinary[kind], b"xy")
    index, jpeg, sound = protocol.unpack_picture(protocol.pack_picture(7, b"jpeg", np.array([[0, 1.0, -2.0]])))
    assert (index, jpeg, sound.tolist()) == (7, b"jpeg", [0, 32_767, -32_767])


def test_every_message_is_valid_by_the_schema_that_the_document_gives_it() -> None:
    document = protocol.asyncapi_document("1")
    messages = [protocol.validate_message(fields) for fields in CLIENT + EVENTS] + SERVER
    assert {type(one).__name__ for one in messages} <= document["components"]["messages"].keys()
    for message in messages:
        assert message is not None
        reference = document["components"]["messages"][type(message).__name__]["payload"]["$ref"]
        schema = {"$ref": reference, "components": document["components"]}
        validator = jsonschema.Draft202012Validator(schema)
        validator.validate(json.loads(message.to_json()))
        assert not validator.is_valid({"type": "dance"})
