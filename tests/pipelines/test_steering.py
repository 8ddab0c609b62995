"""Claims about a reward's say while motion is made: guidance, pruning, best-of-n."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.flow.guidance import guided_velocity
from flowportrait.flow.schedules import noise_schedule, solve_ode
from flowportrait.media.portrait import Portrait
from flowportrait.models.conditioning import GuidanceContext, RewardSteering, ordered_weights
from flowportrait.models.sampler import GenerationSession
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.animator import Animator
from flowportrait.pipelines.guidance import best_candidate, build_guidance, score_candidates
from flowportrait.pipelines.request import parse_guide
from flowportrait.preferences.latent_reward import LatentReward
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid
from tests.models.test_generator_live import TINY, build, together

MODEL = build(TINY)
SPEECH = (0.1 * np.random.default_rng(0).normal(size=20_000)).astype("float32")


class Mean(NamedTuple):
    mean: torch.Tensor


@dataclass
class First:
    """Likes a large first number of a chunk; remembers what it was shown."""

    seen: list[tuple[torch.Tensor, ...]] = field(default_factory=list)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, heard: torch.Tensor, start: torch.Tensor) -> Mean:
        self.seen.append((x.detach(), sigma, heard, start))
        return Mean(torch.stack([x[..., 0], -x[..., 1], torch.zeros_like(x[..., 0])], -1))


def drawn(steering: RewardSteering | None, seed: int = 3) -> torch.Tensor:
    return together(GenerationSession(MODEL, seed=seed, steering=steering), [SPEECH])


def test_guiding_a_gaussian_by_a_linear_reward_moves_its_mean_by_the_weight() -> None:
    """exp(w·x) tilts N(m, s²) to N(m + w s², s²); under noise the clean sample's reward has slope w·∂E[x₀]/∂x_σ."""
    mean, spread, weight = 1.0, 0.5, 0.8

    def posterior(sigma: torch.Tensor) -> torch.Tensor:
        """∂E[x₀ | x_σ]/∂x_σ."""
        return (1 - sigma) * spread**2 / ((1 - sigma) ** 2 * spread**2 + sigma**2)

    def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        clean = mean + posterior(sigma) * (x - (1 - sigma) * mean)
        if sigma == 0:
            return x - x
        return (x - clean) / sigma

    noise, sigmas = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0)), noise_schedule(400)
    plain = solve_ode(velocity, noise, sigmas)
    tilted = solve_ode(
        guided_velocity(velocity, lambda x, sigma: weight * posterior(sigma) * x[:, 0], 1e6), noise, sigmas
    )
    assert float(plain.mean()) == pytest.approx(mean, abs=0.03)
    assert float(tilted.mean() - plain.mean()) == pytest.approx(weight * spread**2, abs=0.02)
    assert float(tilted.std()) == pytest.approx(spread, abs=0.03)


def test_the_factor_is_clipped_near_pure_noise() -> None:
    field_ = guided_velocity(lambda x, sigma: torch.zeros_like(x), lambda x, sigma: x.sum(1), most=2.0)
    x = torch.randn(3, 4)
    factors = [-float(field_(x, torch.tensor(sigma))[0, 0]) for sigma in (1.0, 0.9, 0.5, 0.2, 0.0)]
    assert factors == pytest.approx([2.0, 2.0, 1.0, 0.25, 0.0])


def test_a_weight_of_zero_and_one_candidate_change_no_bit() -> None:
    plain = drawn(None)
    assert torch.equal(drawn(RewardSteering(First(), guide=(0.0, 0.0, 0.0))), plain)
    assert torch.equal(drawn(RewardSteering(First(), choose=(1.0, 0.0, 0.0))), plain)
    assert not torch.equal(drawn(RewardSteering(First(), guide=(1.0, 0.0, 0.0))), plain)


def test_more_weight_steers_further_and_only_where_the_reward_looks() -> None:
    def reached(**weights: float) -> tuple[float, float]:
        reward = First()
        drawn(RewardSteering(reward, guide=ordered_weights(weights, ("a", "b", "c")), choose=(1.0, 0.0, 0.0)))
        last = torch.stack([x[0, -1] for x, sigma, _, _ in reward.seen])
        return float(last[:, 0].mean()), float(last[:, 1].mean())

    none, some, more = reached(a=0.001), reached(a=0.5), reached(a=2.0)
    assert none[0] < some[0] < more[0]
    assert reached(b=1.0)[1] < none[1]


def test_a_chunk_is_judged_noisy_after_a_clean_past_and_the_sound_of_both() -> None:
    reward = First()
    drawn(RewardSteering(reward, guide=(0.1, 0.0, 0.0), history_chunks=3))
    lengths = [x.shape[1] for x, *_ in reward.seen]
    assert max(lengths) == 4
    for x, sigma, heard, start in reward.seen:
        assert x.shape[:2] == sigma.shape == heard.shape[:2]
        assert torch.equal(sigma[:, :-1], torch.zeros_like(sigma[:, :-1]))
        assert sigma[0, -1] > 0
        assert start.shape == (1, 30)


def test_the_past_that_the_reward_sees_is_what_was_drawn() -> None:
    session = GenerationSession(MODEL, seed=3, steering=RewardSteering(First(), guide=(0.1, 0.0, 0.0)))
    motion = list(session.push(SPEECH))
    assert len(motion) > 3
    past = session.chunks.guidance_context(2, session.chunks.history[-1][0])
    assert isinstance(past, GuidanceContext)
    expected = torch.cat([frames for _, frames in session.chunks.history[-2:]], 1)
    assert torch.allclose(MODEL.to_motion(past.latents, past.start), expected, atol=1e-4)


def test_live_and_whole_and_resumed_are_one_performance() -> None:
    def session() -> GenerationSession:
        return GenerationSession(MODEL, seed=3, steering=steering)

    for steering in (
        RewardSteering(First(), (1.0, 0.5, 0.0)),
        RewardSteering(First(), (), (1.0, 0.0, 0.0), candidates=3),
    ):
        whole = together(session(), [SPEECH])
        assert torch.allclose(whole, together(session(), np.split(SPEECH, [3000, 3100, 9000])), atol=0.02)
        first = session()
        begun = list(first.push(SPEECH[:9000]))
        second = GenerationSession(MODEL, state=first.state(), steering=steering)
        resumed = begun + list(second.push(SPEECH[9000:])) + list(second.finish())
        assert torch.allclose(whole, torch.cat(resumed), atol=0.02)


def test_the_best_of_the_candidates_goes_on() -> None:
    reward = First()
    drawn(RewardSteering(reward, choose=(1.0, 0.0, 0.0), candidates=4))
    tried = [x for x, *_ in reward.seen]
    assert all(len(x) == 4 for x in tried)
    for before, after in pairwise(tried):
        if after.shape[1] == before.shape[1] + 1:
            kept = before[before[:, -1, 0].argmax(), -1]
            assert torch.allclose(after[0, before.shape[1] - 1], kept, atol=1e-3)


@dataclass(frozen=True)
class Loudest:
    name: str = "loudest"
    needs: frozenset[str] = frozenset({"motion", "mel"})

    def __call__(self, batch: RewardBatch) -> Score:
        return all_valid(batch.motion.abs().mean((1, 2)))


def test_the_best_take_is_a_plain_performance_of_its_seed() -> None:
    animator = Animator(MODEL)

    def perform(seed: int) -> torch.Tensor:
        return torch.cat(list(animator.motion(SPEECH, seed=seed)))

    found = score_candidates(lambda seed: [perform(seed)], range(5, 8), SPEECH, Loudest())
    chosen = best_candidate(found)
    assert chosen.score == max(candidate.score for candidate in found)
    assert torch.equal(chosen.motion, perform(chosen.seed))
    assert best_candidate(found[:1]).seed == 5
    with pytest.raises(BadInput, match="reads motion and sound"):
        score_candidates(lambda seed: [perform(seed)], range(2), SPEECH, Loudest(needs=frozenset({"frames"})))


def test_the_shipped_latent_reward_steers_the_shipped_generator_in_its_own_judgement() -> None:
    animator, reward = Animator.from_pretrained("sft"), LatentReward.load()
    steering = build_guidance(animator.generator, {"sync": 5.0})
    assert steering is not None
    audio = SPEECH[:10_000]

    def liked(steering: RewardSteering | None) -> float:
        session = GenerationSession(animator.generator, seed=0, steering=steering)
        list(session.push(audio))
        past = session.chunks.guidance_context(8, session.chunks.history[-1][0])
        verdict = reward(past.latents, 0.0, past.audio[:, :-1], past.start)
        return float(verdict.mean[..., 0].mean())

    assert liked(steering) > liked(None)
    assert build_guidance(animator.generator, {"sync": 0.0}) is None


def test_the_command_performs_plainly_or_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = AnimatePipeline(MODEL)
    monkeypatch.setattr(AnimatePipeline, "from_pretrained", classmethod(lambda *_, **__: pipeline))
    photo = Portrait.from_image(astronaut(), 64)
    plain = [torch.cat(list(pipeline.motion(SPEECH, seed=seed))) for seed in (5, 6)]
    assert torch.equal(pipeline(photo, SPEECH, seed=5).motion, plain[0])
    video = pipeline(photo, SPEECH, seed=5, best_of=2, by="sync")
    assert torch.equal(video.motion, plain[video.seed - 5])
    assert [candidate.seed for candidate in video.candidates] == [5, 6]
    assert video.seed == best_candidate(video.candidates).seed
    wavfile.write(tmp_path / "a.wav", 16_000, SPEECH)
    cv2.imwrite(str(tmp_path / "a.png"), astronaut()[..., ::-1])
    assert main(["animate", "--image", str(tmp_path / "a.png"), "--audio", str(tmp_path / "a.wav"), "--crop", "--size",
                 "64", "--best-of", "2", "--by", "sync", "--output", str(tmp_path / "o.mp4")]) == 0  # fmt: skip
    assert "is the best of 2 by sync" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--guide", "lips=1"], "knows no 'lips'"),
        (["--guide", "sync=loud"], "give a weight from 0 to 10"),
        (["--guide", "sync=-1"], "give a weight from 0 to 10"),
        (["--guide", "sync=nan"], "give a weight from 0 to 10"),
        (["--guide", "sync=1,sync=2"], "twice"),
        (["--best-of", "0"], "from 1 to 64"),
        (["--by", "sync"], "give --best-of N"),
        (["--best-of", "2", "--by", "beauty"], "No reward named 'beauty'"),
        (["--best-of", "2", "--prune", "--by", "identity"], "looks at single chunks"),
        (["--best-of", "2", "--motion-in", "m.csv"], "leave out --motion-in"),
    ],
)
def test_what_a_reward_cannot_do_is_said_in_a_sentence(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wavfile.write(tmp_path / "a.wav", 16_000, SPEECH)
    cv2.imwrite(str(tmp_path / "a.png"), astronaut()[..., ::-1])
    command = ["animate", "--image", str(tmp_path / "a.png"), "--audio", str(tmp_path / "a.wav")]
    assert main([*command, "--output", str(tmp_path / "o.mp4"), *options]) == 2
    assert says in capsys.readouterr().err


def test_weights_are_read_by_name() -> None:
    assert parse_guide("motion=0.3, sync=1") == {"motion": 0.3, "sync": 1.0}
    assert parse_guide(None) == {}
    assert ordered_weights({"motion": 0.3}, ("sync", "expression", "motion")) == (0.0, 0.0, 0.3)
