"""Claims about the best of n samples, agreement inside prompts, and what is kept between two calls."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import room_samples
from benchmarks.__main__ import main
from benchmarks.room import best_of_n, correlation, draw_curves, gains, mean_over_speakers, random_scores, sample_counts
from benchmarks.room_samples import BLOCK, RoomDrawing, RoomPrompt, keep_scores, load_expert, sample_seed
from hypothesis import given
from hypothesis import strategies as st

from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import Estimate
from flowportrait.files import shipped_weights
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.samples import portrait_path

SCORES = st.lists(st.integers(-5, 5), min_size=6, max_size=6)


def prompt(name: str, speaker: str = "s", frames: int = 8) -> RoomPrompt:
    audio = np.random.default_rng(0).normal(0, 0.05, 640 * frames).astype(np.float32)
    return RoomPrompt(name, speaker, audio, 0, Path(f"{name}.mp4"))


# --- The best of n ---


@given(SCORES, SCORES, st.integers(1, 6))
def test_the_gain_is_the_mean_over_all_subsets(chooser: list[int], scorer: list[int], n: int) -> None:
    one, other = np.array(chooser, float), np.array(scorer, float)
    distinct = one + 1e-6 * np.random.default_rng(0).permutation(6)
    best = [other[max(subset, key=lambda place: distinct[place])] for subset in combinations(range(6), n)]
    assert best_of_n(distinct, other, n) == pytest.approx(np.mean(best) - other.mean())


@given(SCORES)
def test_one_sample_and_a_chooser_without_opinion_gain_nothing(scorer: list[int]) -> None:
    other = np.array(scorer, float)
    assert best_of_n(np.arange(6.0), other, 1) == pytest.approx(0)
    for n in range(1, 7):
        assert best_of_n(np.zeros(6), other, n) == pytest.approx(0)


def test_the_scorer_itself_finds_the_best_of_all_and_its_opposite_the_worst() -> None:
    other = np.random.default_rng(0).normal(size=16)
    assert best_of_n(other, other, 16) == pytest.approx(other.max() - other.mean())
    assert best_of_n(-other, other, 16) == pytest.approx(other.min() - other.mean())
    by_n = [best_of_n(other, other, n) for n in sample_counts(16)]
    assert by_n == sorted(by_n)


def test_choosing_by_chance_gains_nothing_and_by_a_noisy_expert_something() -> None:
    rng = np.random.default_rng(1)
    prompts = [prompt(f"p{number}", f"s{number // 2}") for number in range(200)]
    truth = {one.name: rng.normal(size=16) for one in prompts}
    noisy = {name: values + rng.normal(size=16) for name, values in truth.items()}
    chance = mean_over_speakers(*gains(random_scores(prompts, 16, "random"), truth, prompts, 8))
    expert = mean_over_speakers(*gains(noisy, truth, prompts, 8))
    ceiling = mean_over_speakers(*gains(truth, truth, prompts, 8))
    assert chance is not None
    assert expert is not None
    assert ceiling is not None
    assert abs(chance.mean) < 0.15
    assert expert.low is not None
    assert expert.low > 0.5
    assert expert.mean < ceiling.mean - 0.2


def test_counts_double_up_to_the_last() -> None:
    assert sample_counts(64) == [1, 2, 4, 8, 16, 32, 64]
    assert sample_counts(24) == [1, 2, 4, 8, 16, 24]


def test_every_speaker_counts_the_same() -> None:
    found = mean_over_speakers(np.array([1.0, 1.0, 1.0, 4.0, np.nan]), ["a", "a", "a", "b", "b"])
    assert found is not None
    assert found.mean == pytest.approx(2.5)
    assert found.clips == 2


# --- Agreement ---


def test_agreement_is_measured_inside_prompts_alone() -> None:
    prompts = [prompt(f"p{number}", f"s{number}") for number in range(60)]
    rng = np.random.default_rng(0)
    level = {one.name: rng.normal(0, 10) for one in prompts}
    first, second = ({name: mean + rng.normal(size=32) for name, mean in level.items()} for _ in range(2))
    across = np.corrcoef([first[name].mean() for name in level], [second[name].mean() for name in level])[0, 1]
    inside = correlation(first, second, prompts)
    assert across > 0.9
    assert inside is not None
    assert abs(inside.mean) < 0.1


def test_agreement_of_a_scorer_with_itself_is_one_and_with_a_constant_zero() -> None:
    prompts = [prompt("a", "s"), prompt("b", "t")]
    own = {"a": np.arange(8.0), "b": np.array([*np.arange(7.0), np.nan])}
    same, constant = correlation(own, own, prompts), correlation(own, {"a": np.ones(8), "b": np.ones(8)}, prompts)
    assert same is not None
    assert same.mean == pytest.approx(1)
    assert constant is not None
    assert constant.mean == 0


# --- What is kept ---


def test_scores_are_kept_and_those_of_other_weights_are_made_anew(tmp_path: Path) -> None:
    asked: list[str] = []

    def score(one: RoomPrompt) -> np.ndarray:
        asked.append(one.name)
        return np.arange(8.0) + len(asked)

    first = keep_scores(tmp_path, "a", "0", [prompt("p")], 8, score)
    again = keep_scores(tmp_path, "a", "0", [prompt("p"), prompt("q")], 8, score)
    assert asked == ["p", "q"]
    assert (first["p"] == again["p"]).all()
    keep_scores(tmp_path, "a", "1", [prompt("p")], 8, score)
    keep_scores(tmp_path, "a", "0", [prompt("p")], 16, score)
    assert asked == ["p", "q", "p", "p"]


def test_drawing_continues_where_it_was_interrupted_with_the_same_samples(tmp_path: Path) -> None:
    people = [MotionCodec(Portrait.from_image(read_image(portrait_path("astronaut")), 96), 96, retouch=False)]
    animator, prompts = Animator.from_pretrained("sft"), [prompt("p"), prompt("q")]
    drawing = RoomDrawing(tmp_path / "one", animator, people)
    drawing.complete(prompts[:1], BLOCK)
    kept = (tmp_path / "one" / "p-00.npz").stat().st_mtime_ns
    drawing.complete(prompts, BLOCK)
    assert (tmp_path / "one" / "p-00.npz").stat().st_mtime_ns == kept
    samples = drawing.read(prompts[1], BLOCK)
    assert samples.motion.shape == (BLOCK, 8, 30)
    assert samples.mouth.shape == (BLOCK, 8, 48, 64)
    assert np.unique(samples.motion.reshape(BLOCK, -1), axis=0).shape[0] == BLOCK
    other = RoomDrawing(tmp_path / "two", animator, people)
    other.complete(prompts[1:], BLOCK)
    assert (other.read(prompts[1], BLOCK).mouth == samples.mouth).all()


def test_a_seed_belongs_to_the_prompt_and_the_sample() -> None:
    seeds = {sample_seed(prompt(name), sample) for name in ("p", "q") for sample in range(64)}
    assert len(seeds) == 128


# --- Experts by name ---


def test_experts_are_named_or_given_as_weights(tmp_path: Path) -> None:
    assert load_expert("pixels-a").reads == "mouth"
    given_weights = load_expert(f"mine={shipped_weights('sync_reward')}")
    assert (given_weights.name, given_weights.reads) == ("mine", "motion")
    assert load_expert(f"other={shipped_weights('sync_eval/model.safetensors')}").reads == "mouth"
    with pytest.raises(BadInput, match="choose from pixels"):
        load_expert("pixel")
    with pytest.raises(BadInput, match="no weights at"):
        load_expert(f"mine={tmp_path / 'none.safetensors'}")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(BadInput, match="cannot be read"):
        load_expert(f"mine={tmp_path / 'text.safetensors'}")
    with pytest.raises(BadInput, match="holds no sync expert"):
        load_expert(f"mine={shipped_weights('mouth/interior.safetensors')}")


def test_the_fingerprint_of_other_weights_is_another() -> None:
    found = {room_samples.expert_fingerprint(load_expert(name)) for name in ("pixels", "pixels-a", "pixels-b")}
    assert len(found) == 3
    assert room_samples.expert_fingerprint(load_expert("pixels")) in found


def test_the_measurement_that_was_replaced_names_its_successor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["proxy"]) == 2
    assert "'proxy' is replaced by 'room'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--samples", "12"], ["--frames", "100"], ["--experts", "pixel"]], ids=["samples", "frames", "experts"]
)
def test_impossible_settings_are_one_sentence(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["room", "--data", str(tmp_path), "--output", str(tmp_path / "out"), *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_figure_has_a_line_for_everyone_who_chooses() -> None:
    points = [(n, Estimate(0.1 * n, 0.05 * n, 0.2 * n, 5)) for n in (1, 2, 4)]
    svg = draw_curves({"sft": {("a", "b"): points, ("b", "b"): points}})
    assert "b (itself)" in svg
    assert svg.count("<svg") == 1


def test_a_torch_seed_is_not_too_large_for_the_generator() -> None:
    torch.Generator().manual_seed(sample_seed(prompt("p"), 0))
    assert 0 <= sample_seed(prompt("p"), 0) < 2**31
