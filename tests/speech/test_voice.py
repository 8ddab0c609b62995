"""Claims about text to speech: sentences, scripts, voices, and words that do not wait for the last ones."""

from __future__ import annotations

import io
import threading
import time
import wave
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.media.audio import Sound
from flowportrait.speech.text_to_speech import (
    MAX_SENTENCE_CHARACTERS,
    PAUSE_AFTER,
    PAUSE_BEFORE,
    PAUSE_BETWEEN,
    prefetch,
    split_into_sentences,
    synthesize_samples,
    synthesize_sound,
)
from flowportrait.speech.voices import load_voice, split_by_script


def seconds(sound: Sound) -> float:
    return sound.samples.shape[1] / sound.rate


class Beeps:
    """Says a sentence as a second of tone."""

    name = "beeps"
    rate = 16_000

    def supports(self, language: str) -> bool:
        return True

    def synthesize(self, sentence: str) -> Sound:
        return Sound(np.sin(np.arange(self.rate) * 0.2 + 0.1).astype(np.float32)[None], self.rate, "mono")


def test_a_full_stop_inside_a_sentence_does_not_end_it() -> None:
    text = 'Dr. Smith paid 3.5 dollars to J. Doe, e.g. in cash. "Really?" Yes! 你好。再见！\nA title\n...'
    assert list(split_into_sentences([text])) == [
        "Dr. Smith paid 3.5 dollars to J. Doe, e.g. in cash.", '"Really?"', "Yes!", "你好。", "再见！", "A title",
    ]  # fmt: skip


@given(st.text("aB .!?。」\n,é1", max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_sentences_do_not_depend_on_how_the_text_comes_in(text: str, cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(ends)]
    assert list(split_into_sentences(pieces)) == list(split_into_sentences([text]))


def test_a_sentence_without_an_end_is_cut_where_one_breathes() -> None:
    parts = list(split_into_sentences(["one two, three four " * 40]))
    assert max(map(len, parts)) <= MAX_SENTENCE_CHARACTERS
    assert all(part.endswith(",") for part in parts[:-1])
    assert " ".join(parts) == " ".join(("one two, three four " * 40).split())


def test_words_are_told_apart_by_their_script() -> None:
    assert split_by_script("Say Привет to 東京. 3!") == [
        ("en", "Say "),
        ("ru", "Привет "),
        ("en", "to "),
        ("cmn", "東京. 3!"),
    ]
    assert split_by_script("東京にいる") == [("ja", "東京にいる")]
    assert split_by_script("¡12 años!") == [("en", "¡12 años!")]


@given(st.text(max_size=40))
def test_no_character_is_lost_between_scripts(text: str) -> None:
    assert "".join(words for _, words in split_by_script(text)) == text


def test_sentences_are_parted_by_silence() -> None:
    pieces = list(synthesize_samples(["One. Two. Three."], Beeps()))
    assert len(pieces) == 4
    seconds = [len(piece) / 16_000 for piece in pieces]
    assert np.allclose(seconds, [PAUSE_BEFORE + 1, PAUSE_BETWEEN + 1, PAUSE_BETWEEN + 1, PAUSE_AFTER], atol=0.01)
    with pytest.raises(BadInput, match="nothing to say"):
        list(synthesize_samples(["... !"], Beeps()))


def test_a_voice_keeps_its_own_rate_and_another_in_the_same_text_follows_it() -> None:
    """What the video plays is not cut off at 8 kHz because the generator hears no more."""

    class High(Beeps):
        rate = 24_000

    pieces = list(synthesize_sound(["One. Two."], High()))
    assert {piece.rate for piece in pieces} == {24_000}
    lengths = [seconds(piece) for piece in pieces]
    assert np.allclose(lengths, [PAUSE_BEFORE + 1, PAUSE_BETWEEN + 1, PAUSE_AFTER], atol=0.01)
    spoken = np.concatenate(list(synthesize_samples(["One. Two."], High())))
    assert len(spoken) / 16_000 == pytest.approx(sum(lengths), abs=0.01)


def test_the_first_sentence_is_heard_before_the_last_one_is_written() -> None:
    said: list[str] = []

    def typed() -> Iterator[str]:
        for words in ("One. T", "wo. Th", "ree."):
            said.append(words)
            yield words

    next(synthesize_samples(typed(), Beeps()))
    assert said == ["One. T"]


def test_the_next_sentence_is_spoken_while_the_first_is_drawn() -> None:
    def slow() -> Iterator[np.ndarray]:
        for index in range(3):
            time.sleep(0.05)
            yield np.full(1, index)

    drawn = prefetch(slow())
    assert next(drawn)[0] == 0
    time.sleep(0.2)
    began = time.monotonic()
    assert [int(piece[0]) for piece in drawn] == [1, 2]
    assert time.monotonic() - began < 0.05


def test_what_goes_wrong_while_speaking_is_said_where_one_listens() -> None:
    def broken() -> Iterator[np.ndarray]:
        yield np.zeros(1)
        raise BadInput("The server went away.")

    drawn = prefetch(broken())
    next(drawn)
    with pytest.raises(BadInput, match="went away"):
        next(drawn)


def test_who_stops_watching_stops_the_voice() -> None:
    def endless() -> Iterator[np.ndarray]:
        while True:
            yield np.zeros(1)

    before = threading.active_count()
    drawn = prefetch(endless())
    next(drawn)
    drawn.close()  # type: ignore[attr-defined]
    time.sleep(0.3)
    assert threading.active_count() == before


def test_espeak_reads_languages_the_neural_voice_does_not() -> None:
    pytest.importorskip("espeakng_loader")
    german, chinese = load_voice("espeak:de"), load_voice("espeak:cmn")
    assert 0.8 < seconds(german.synthesize("Guten Morgen, liebe Freunde.")) < 4
    assert seconds(chinese.synthesize("你好")) > 0.2
    assert not german.supports("ru")
    assert chinese.supports("cmn")
    with pytest.raises(BadInput, match="knows no language 'xx'"):
        load_voice("espeak:xx")


def test_the_default_voice_reads_english_and_leaves_other_scripts_to_espeak() -> None:
    pytest.importorskip("hibari")
    voice = load_voice()
    assert np.array_equal(voice.synthesize("Hello there.").samples, voice.synthesize("Hello there.").samples)
    english = next(synthesize_samples(["Hello there."], voice))
    mixed = next(synthesize_samples(["Hello there, привет."], voice))
    assert len(mixed) > len(english) + 0.3 * 16_000


class _Speech(BaseHTTPRequestHandler):
    asked: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.asked.append(self.rfile.read(int(self.headers["Content-Length"])))
        out = io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(24_000)
            file.writeframes((np.sin(np.arange(24_000) * 0.05) * 9000).astype("<i2").tobytes())
        bad = b"nobody" in self.asked[-1]
        self.send_response(400 if bad else 200)
        self.end_headers()
        self.wfile.write(b"{}" if bad else out.getvalue())

    def log_message(self, *_: object) -> None:
        pass


def test_a_speech_server_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(BadInput, match="OPENAI_BASE_URL"):
        load_voice("openai:alloy")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Speech)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    try:
        spoken = load_voice("openai:alloy@tiny").synthesize("Hello.")
        assert (spoken.rate, seconds(spoken)) == (24_000, 1.0)
        assert b'"alloy"' in _Speech.asked[-1]
        assert b'"tiny"' in _Speech.asked[-1]
        with pytest.raises(BadInput, match="did not speak"):
            load_voice("openai:nobody").synthesize("Hello.")
    finally:
        server.shutdown()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setattr("flowportrait.speech.voices._ATTEMPTS", 1)
    with pytest.raises(BadInput, match="cannot be reached"):
        load_voice("openai:alloy").synthesize("Hello.")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "nothing to say"),
        (["--stream", "--audio", "x.wav"], "leave out --audio"),
        (["--stream", "--voice", "heart"], "give --text too"),
        (["--text", "Hello.", "--voice", "nobody"], "no voice 'nobody'"),
        (["--text", "Hello.", "--audio", "x.wav"], "not allowed with"),
    ],
)
def test_a_wrong_wish_gets_a_sentence(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["animate", "--image", "p.jpg", "--output", str(tmp_path / "a.mp4"), *given]) == 2
    assert said in capsys.readouterr().err


class EarlierVoice:
    """A voice as another package wrote it for version 0.1."""

    name = "earlier"

    def reads(self, language: str) -> bool:
        return language == "en"

    def say(self, sentence: str) -> Sound:
        return Sound(np.full((1, 10 * len(sentence)), 0.1, np.float32), 16_000, "mono")


def test_a_voice_with_the_methods_of_version_0_1_speaks_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    voice = load_voice(f"{__name__}:EarlierVoice")
    assert voice.synthesize("Hello").samples.shape == (1, 50)
    assert (voice.supports("en"), voice.supports("ru"), voice.name) == (True, False, "earlier")
    assert "rename 'say' to 'synthesize'" in capsys.readouterr().err
