"""Claims about serving: scorers on another machine are as good as here, and the panel speaks as a model does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import torch
import uvicorn

from flowportrait.config import override
from flowportrait.errors import BadInput
from flowportrait.judges.build import JudgeReward
from flowportrait.judges.client import ChatClient
from flowportrait.judges.clips import JudgedClip, clips_from_batch
from flowportrait.judges.messages import Endpoint, MediaFormats, mp4_url
from flowportrait.judges.panel import Panel, PanelSettings
from flowportrait.judges.questions import JudgeKind, Ledger
from flowportrait.judges.rubric import CLIP_ASPECTS, Aspect
from flowportrait.judges.server import SERVED_MODEL, judge_app
from flowportrait.judges.verdicts import AspectVerdict, Verdict, missing_verdict
from flowportrait.media.portrait import Portrait
from flowportrait.rewards.batch import Failure, RewardBatch
from flowportrait.rewards.interface import Score, all_valid, score_batch, score_with_failures
from flowportrait.rewards.registry import CompositeReward, RewardWeights
from flowportrait.rewards.remote import HttpReward
from flowportrait.rewards.sync import LipSyncReward
from flowportrait.rl.task import SpeechItem, draw_prompts, speech_mel, speech_waveform
from tests.judges.test_judge_client import clip


@dataclass
class Brightness:
    """Mean of two frames; dark rows cannot be measured. Knows its portrait and its siblings."""

    name: str = "brightness"
    needs: frozenset[str] = frozenset({"frames", "places", "portrait", "audio"})
    range: tuple[float, float] = (0.0, 1.0)
    noise: float = 0.01

    def __call__(self, batch: RewardBatch) -> Score:
        assert batch.portraits is not None
        assert batch.audio is not None
        late = batch.motion.shape[1] - 1
        light = batch.frames((0, late)).mean((1, 2, 3, 4)) + 0 * batch.places((3,)).sum((1, 2, 3))
        light = light + torch.tensor([portrait.crop.mean() / 2550 for portrait in batch.portraits])
        dark = {row: Failure("no_face", "too dark") for row in (light < 0.2).nonzero()[:, 0].tolist()}
        return score_with_failures(light, dark, light[:, None].expand(-1, late + 1))


class Grey:
    """A judge that grades by brightness and cannot see black clips."""

    kind: JudgeKind = "measured panel"
    name = "grey"
    fingerprint = "grey"
    judged = 0

    def judge(self, clips: Sequence[JudgedClip], aspects: Sequence[Aspect] | None = None, /) -> list[Verdict]:
        verdicts = []
        Grey.judged += len(clips)
        for shown in clips:
            light = float(shown.frames.mean()) / 255
            findings = {
                aspect: missing_verdict(aspect, Failure("no_face", "black"))
                if light < 0.1
                else AspectVerdict(aspect, 1 + 4 * light, 1 + 4 * light, "measurement", rationale="grey is grey")
                for aspect in CLIP_ASPECTS
            }
            verdicts.append(Verdict(shown.name, "", self.name, self.kind, findings))
        return verdicts


def batch(rows: int = 3, frames: int = 30) -> RewardBatch:
    generator = torch.Generator().manual_seed(0)
    light = torch.linspace(0.05, 0.9, rows)

    def draw(_: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        drawn.extend(indices)
        return (light[:, None, None, None, None].expand(-1, len(indices), 3, 16, 16) * 255).round() / 255

    def place(_: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        return torch.ones(rows, len(indices), 478, 2)

    drawn: list[int] = []
    crop = np.full((8, 8, 3), 100, np.uint8)
    portrait = Portrait(crop, crop, np.zeros((478, 3), np.float32), np.zeros(52, np.float32), np.eye(2, 3))
    made = RewardBatch(
        torch.randn(rows, frames, 30, generator=generator), torch.randn(rows, 4 * frames, 80, generator=generator),
        draw, place, torch.randn(rows, 640 * frames, generator=generator) / 10, [portrait] * rows,
    )  # fmt: skip
    made.drawn = drawn  # type: ignore[attr-defined]
    return made


@contextmanager
def served(key: str | None = None, **scorers: Any) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(judge_app(Grey(), scorers, key), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_a_scorer_elsewhere_says_what_it_says_here_failures_included() -> None:
    with served(brightness=Brightness(), sync=LipSyncReward.load()) as url:
        for here in (Brightness(), LipSyncReward.load()):
            far = HttpReward.at(url, here.name)
            assert (far.needs, far.range) == (here.needs, getattr(here, "range", (-np.inf, np.inf)))
            ours, theirs = score_batch(here, batch()), score_batch(far, batch())
            assert torch.equal(ours.valid, theirs.valid)
            assert torch.allclose(ours.value, theirs.value, atol=1e-6, equal_nan=True)
            assert ours.failures == theirs.failures
            assert ours.noise == theirs.noise
            assert ours.dense is not None
            assert theirs.dense is not None
            assert torch.allclose(ours.dense, theirs.dense)
    assert score_batch(Brightness(), batch()).reasons[0].kind == "no_face"


def test_only_the_frames_that_a_scorer_asks_for_are_drawn() -> None:
    with served(brightness=Brightness()) as url:
        far = HttpReward.at(url, "brightness")
        first, second = batch(), batch()
        score_batch(far, first)
        score_batch(far, second)
    assert set(first.drawn) == set(second.drawn) == {0, 29}  # type: ignore[attr-defined]


def test_a_server_that_is_gone_is_asked_again_and_then_unavailable() -> None:
    with served(sync=LipSyncReward.load()) as url:
        far = HttpReward.at(url, "sync", retries=2)
    waits: list[float] = []
    found = score_batch(far, batch(), waits.append)
    assert len(waits) == 2
    assert not found.valid.any()
    assert found.value.isnan().all()
    assert {why.kind for why in found.reasons.values()} == {"unavailable"}
    assert "gave up after 3 tries" in found.reasons[0].detail
    with pytest.raises(BadInput, match="judge serve"):
        HttpReward.at(url, "sync", timeout=1.0)


def test_garbage_and_overload_on_the_way_back_are_not_scores() -> None:
    answers = [(200, b"\x08\x00"), (500, b"oops"), (200, b""), (429, b"")]

    class Bad(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, data = answers.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bad)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    far = HttpReward(url, "x", "x", frozenset({"motion"}), retries=3)
    found = score_batch(far, batch(), lambda _: None)
    server.shutdown()
    assert not answers
    assert not found.valid.any()
    assert {why.kind for why in found.reasons.values()} == {"unavailable"}


def test_a_recipe_says_which_rewards_live_elsewhere() -> None:
    with served(sync=LipSyncReward.load()) as url:
        weights = override(RewardWeights(), [f"options.elsewhere.sync={url}"])
        composite = CompositeReward.of({"sync": 1.0, "expressiveness": 1.0}, weights.options)
        far = composite(batch())["sync"].value
    assert isinstance(composite.rewards[0], HttpReward)
    assert torch.allclose(far, CompositeReward.of({"sync": 1.0})(batch())["sync"].value, atol=1e-6)


def test_what_does_not_exist_is_said_by_name() -> None:
    with served(sync=LipSyncReward.load()) as url, pytest.raises(BadInput, match="choose from sync"):
        HttpReward.at(url, "sharpness")


def test_with_a_key_nobody_else_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    with served("secret", sync=LipSyncReward.load()) as url:
        assert httpx2.get(f"{url}/scorers").status_code == 401
        monkeypatch.setenv("FLOWPORTRAIT_SERVE_KEY", "secret")
        assert score_batch(HttpReward.at(url, "sync"), batch()).valid.all()


def test_the_panel_client_works_against_our_own_server() -> None:
    shows = MediaFormats(images=False, audio="off", clip=True)
    black = JudgedClip(
        np.zeros((12, 64, 64, 3), np.uint8), clip().audio, "black", known_landmarks=clip().known_landmarks
    )
    Grey.judged = 0
    with served() as url:
        ledger = Ledger()
        backend = ChatClient(
            Endpoint(url=f"{url}/v1", model=SERVED_MODEL, shows=shows, answers=1, concurrency=1), ledger
        )
        bright, dark = Panel(backend, PanelSettings(samples=1)).judge([clip(), black])
    assert bright.kind == "measured panel"
    assert Grey.judged == 2
    expected = 1 + 4 * float(clip().frames.mean()) / 255
    for aspect in CLIP_ASPECTS:
        assert bright.aspects[aspect].score == pytest.approx(expected, abs=0.1)
        assert bright.aspects[aspect].rationale == "grey is grey"
        failure = dark.aspects[aspect].failure
        assert failure is not None
        assert failure.kind == "refused"
    assert ledger.totals()["outcomes"] == {"answered": 3, "refused": 3}


def test_the_served_panel_says_what_it_cannot_take() -> None:
    with served() as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == [SERVED_MODEL]
        with pytest.raises(openai.BadRequestError, match="video_url"):
            client.chat.completions.create(model=SERVED_MODEL, messages=[{"role": "user", "content": "Hello"}])
        with pytest.raises(openai.BadRequestError, match="not fetched"):
            ask(client, "http://example.org/clip.mp4")
        answer = ask(client, mp4_url(clip().frames, clip().audio, 25)).choices[0].message.content
    assert '"kind": "measured panel"' in answer


def ask(client: openai.OpenAI, url: str) -> Any:
    part: Any = {"type": "video_url", "video_url": {"url": url}}
    return client.chat.completions.create(model=SERVED_MODEL, messages=[{"role": "user", "content": [part]}])


def test_a_judge_is_a_reward_and_its_failures_are_the_rewards() -> None:
    reward = JudgeReward(Grey())
    found = score_batch(reward, batch())
    assert found.valid.tolist() == [False, True, True]
    assert found.reasons[0].kind == "no_face"
    light = torch.linspace(0.05, 0.9, 3)
    assert torch.allclose(found.value[1:], 1 + 4 * light[1:], atol=0.02)
    assert len(clips_from_batch(batch())) == 3
    assert isinstance(all_valid(light), Score)


def test_a_listening_judge_hears_the_window_of_speech_that_is_spoken() -> None:
    frames = torch.arange(50.0)
    item = SpeechItem(frames.repeat_interleave(4)[:, None].expand(-1, 80), 0, audio=frames.repeat_interleave(640))
    drawn = draw_prompts([item], 3, 20, seed=1, iteration=2)
    assert drawn.audio is not None
    assert torch.equal(drawn.audio[:, ::640], drawn.mel[:, ::4, 0])
    wave = np.ones(1000, np.float32)
    assert len(speech_waveform(wave, 8)) * 4 == len(speech_mel(wave, 8)) * 640 == 8 * 640 * 4
