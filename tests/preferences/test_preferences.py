"""Claims about preference pairs: what a file may hold, what is left out of it, what damage teaches which score."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowportrait.cli import main
from flowportrait.corruption import MOTION_CORRUPTIONS, MotionWindow, corruptions
from flowportrait.data.motion_dataset import MotionClip
from flowportrait.errors import BadInput
from flowportrait.preferences.build_pairs import build_pairs_from_scores, read_judge_scores
from flowportrait.preferences.clips import PairObjective, bradley_terry_log_probs, pair_loss
from flowportrait.preferences.dataset import (
    ASPECTS,
    DIMENSIONS,
    LABELS,
    Label,
    PreferenceDataset,
    PreferencePair,
    read_pairs,
    write_pairs,
)
from flowportrait.preferences.inspection import PairInspection, inspect_pairs, require_decided_labels
from flowportrait.preferences.reward_model import MotionReward, MotionRewardTrainingConfig, train_motion_reward
from flowportrait.preferences.synthetic_pairs import WINDOW_FRAMES, DamagedPairSampler
from flowportrait.rendering.motion_basis import BLINK, BROWS, EXPRESSION, GAZE, HEAD, LOWER_FACE

WORDS = st.text(min_size=1, max_size=8)
STATED = st.dictionaries(st.sampled_from(ASPECTS), st.sampled_from(LABELS), min_size=1)
POINTS = st.dictionaries(st.sampled_from(ASPECTS), st.floats(1, 5))
MARGINS = st.dictionaries(st.sampled_from(ASPECTS), st.floats(allow_nan=False, allow_infinity=False))
PAIRS = st.builds(
    PreferencePair, prompt=WORDS, first=WORDS, second=WORDS, labels=STATED, source=WORDS, annotator=WORDS,
    speaker=WORDS, points=st.fixed_dictionaries({}, optional={"first": POINTS, "second": POINTS}), margins=MARGINS,
)  # fmt: skip


def pair(first: str = "a", second: str = "b", label: Label = Label.FIRST, **more: Any) -> PreferencePair[str]:
    return PreferencePair("p", first, second, {"sync": label}, "study", **more)


def inspect(*pairs: PreferencePair[str], folder: Path | None = None) -> PairInspection:
    """What is found in pairs whose clips lie in ``folder``; without one, clips are trusted to exist."""
    return inspect_pairs(PreferenceDataset(pairs, folder or Path()), check_files=folder is not None)


@given(st.lists(PAIRS, min_size=1, max_size=4))
@settings(max_examples=25)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, pairs: list[PreferencePair[str]]) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    assert write_pairs(path, pairs) == len(pairs)
    assert read_pairs(path) == pairs
    assert [one.swapped().swapped() for one in pairs] == pairs


GOOD = {"prompt": "p", "a": "x", "b": "y", "aspects": {"sync": "A"}, "source": "study"}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2: this is not JSON"),
        ("[1]", "line 2: a pair is an object"),
        (json.dumps({**GOOD, "winner": "x"}), "line 2: unknown field 'winner'"),
        (json.dumps({**GOOD, "a": ""}), "line 2: 'a' is missing"),
        (json.dumps({**GOOD, "aspects": {"beauty": "A"}}), "line 2: unknown aspect 'beauty'"),
        (json.dumps({**GOOD, "aspects": {"sync": "a"}}), "line 2: sync is 'a'"),
        (json.dumps({**GOOD, "speaker": 3}), "line 2: 'speaker' must be text"),
        (json.dumps({**GOOD, "points": {"a": {"sync": 6}}}), "line 2: a has 6 points for sync"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, sentence: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    assert main(["preferences", "inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_what_must_not_be_learned_from_is_counted_and_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).touch()
    pairs = [
        pair("a", "b", annotator="ann"),
        pair("b", "a", annotator="ann"),  # Ann said the opposite before
        pair("b", "a", annotator="bob"),  # Bob may disagree with her
        pair("a", "gone", annotator="ann"),
        pair("a", "a", annotator="ann"),
        pair("a", "c", annotator="ann", split="train", speaker="s1"),
        pair("c", "d", annotator="ann", split="train", speaker="s2"),
        pair("d", "b", annotator="ann", split="dev", speaker="s1", portrait="x"),
    ]
    found = inspect(*pairs, folder=tmp_path)
    assert list(found.usable) == [pairs[2], pairs[7]]
    assert found.excluded == {
        "contradicted by the same annotator": 2,
        "clip missing": 1,
        "a clip preferred to itself": 1,
        "leaked between splits": 2,
    }
    assert any("1 speaker of the training split also occurs" in sentence for sentence in found.sentences)
    assert found.counts["aspects"]["sync"]["disputed"] == 1


def test_a_single_annotator_and_only_ties_are_reported() -> None:
    found = inspect(*(pair(str(n), label=Label.TIE, annotator="ann") for n in range(3)))
    assert any("One annotator only" in sentence for sentence in found.sentences)
    assert any("100% ties" in sentence for sentence in found.sentences)
    with pytest.raises(BadInput, match="All 3 judgements of sync are ties"):
        require_decided_labels(found, ("sync",))
    with pytest.raises(BadInput, match="None of the pairs"):
        require_decided_labels(inspect(pair("a", "a")), ("sync",))


def test_agreement_does_not_depend_on_which_clip_was_called_a() -> None:
    pairs = [pair(f"{n}", "z", LABELS[n % 2], annotator="x") for n in range(4)]
    others = [replace(one.swapped(), annotator="y") for one in pairs]
    assert inspect(*pairs, *others).counts["aspects"]["sync"]["alpha"] == 1


def test_score_tables_become_pairs_with_a_band_of_ties(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, scores in (("a", {"1.mp4": 4.0, "2.mp4": 3.0, "3.mp4": 2.0}), ("b", {"1.mp4": 3.0, "2.mp4": 3.4})):
        rows = [{"file": f, "overall": None, "aspects": {"lip_sync": {"score": s}}} for f, s in scores.items()]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    tables = [str(tmp_path / f"{name}.json") for name in ("a", "b")]
    assert main(["preferences", "from-judge", *tables, "--output", str(tmp_path / "pairs.jsonl")]) == 0
    assert "3.mp4" in capsys.readouterr().err
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    assert [one.labels for one in pairs] == [{"sync": Label.FIRST}, {"sync": Label.TIE}]
    assert pairs[0].points == {"first": {"sync": 4.0}, "second": {"sync": 3.0}}
    assert pairs[0].margins == {"sync": 1.0}
    assert Label.from_margin(-0.6, 0.5) is Label.SECOND
    (tmp_path / "a.json").write_text(json.dumps([{"file": "1.mp4", "aspects": {"lip_sync": 7}}]))
    with pytest.raises(BadInput, match=r"entry 1: the score 7 of lip_sync"):
        read_judge_scores(tmp_path / "a.json")
    with pytest.raises(BadInput, match="no clip name in common"):
        build_pairs_from_scores({"x": {}}, {"y": {}}, 0.5, "judge")


@pytest.fixture(scope="module")
def clips() -> list[MotionClip]:
    """Faces in smooth motion under a sound whose loudness the jaw follows."""
    made = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        walk = np.cumsum(rng.normal(size=(40, 30)), 0)
        motion = np.apply_along_axis(lambda row: np.convolve(row, np.ones(5) / 5, "same"), 0, walk - walk.mean(0))
        mel = rng.normal(size=(160, 80)) + np.repeat(motion[:, :1], 4, 0)
        made.append(
            MotionClip(str(seed), str(seed), torch.tensor(motion).float(), torch.tensor(mel).float(), torch.zeros(19))
        )
    return made


CHANGES = {
    "shift": EXPRESSION, "time-warp": EXPRESSION, "other speech": LOWER_FACE, "frozen eyes": slice(BROWS.start,
        GAZE.stop),
    "dull": EXPRESSION, "grimace": EXPRESSION,
    "stiff head": HEAD, "jitter": HEAD, "sway": HEAD, "swapped segments": EXPRESSION, "loudness jaw": LOWER_FACE,
    "dead face": HEAD, "smeared lips": LOWER_FACE, "stutter": EXPRESSION, "jump": HEAD,
}  # fmt: skip


@pytest.mark.parametrize("name", corruptions("motion"))
def test_damage_grows_with_its_strength_and_leaves_the_rest_alone(name: str, clips: list[MotionClip]) -> None:
    damage = corruptions("motion")[name]
    motion = clips[0].motion.numpy().astype(float)
    window = MotionWindow(motion, np.abs(motion[:, 0]), clips[1].motion.numpy(), 8, WINDOW_FRAMES)
    before = motion.copy()

    def change(strength: float) -> float:
        drawn = [damage.damage(window, strength, np.random.default_rng(seed)) for seed in range(12)]
        assert all(one.shape == (WINDOW_FRAMES, 30) for one in drawn)
        return float(np.mean([np.abs(one - window.intact)[:, CHANGES[name]].mean() for one in drawn]))

    assert change(damage.coarse) > change(damage.subtle) > 0
    assert np.array_equal(motion, before)
    eyes = damage.damage(window, damage.coarse, np.random.default_rng(0))[:, BLINK]
    if name in ("other speech", "loudness jaw", "smeared lips", "jitter", "sway", "jump"):
        assert np.array_equal(eyes, window.intact[:, BLINK])


def test_made_pairs_prefer_the_intact_clip_only_where_it_is_better_and_grow_subtle(clips: list[MotionClip]) -> None:
    maker = DamagedPairSampler(clips, {"jitter": MOTION_CORRUPTIONS["jitter"]}, 0)
    coarse, subtle = maker.draw(64, progress=0), maker.draw(64, progress=1)
    column = DIMENSIONS.index("motion")
    for batch in (coarse, subtle):
        assert set(batch.labels[:, column].tolist()) == {Label.FIRST, Label.SECOND}
        assert (batch.labels[:, [0, 1]] == Label.TIE).all()
        rough = [one.diff(dim=1).diff(dim=1).abs().mean((1, 2)) for one in (batch.first, batch.second)]
        assert torch.equal((rough[1] > rough[0]).float(), batch.labels[:, column])
    assert (coarse.first - coarse.second).abs().mean() > 1.3 * (subtle.first - subtle.second).abs().mean()


def test_the_three_answers_of_a_pair_sum_to_one_and_ties_pull_scores_together() -> None:
    difference = torch.linspace(-6, 6, 13, requires_grad=True)
    chances = bradley_terry_log_probs(difference).exp()
    assert torch.allclose(chances.sum(-1), torch.ones(13))
    assert chances[6, 0].item() == pytest.approx(1 / 6)
    zero = torch.zeros(1, 1)
    none = torch.full((1, 2, 1), math.nan)
    first, tie, unjudged = torch.tensor([[[1.0]], [[0.5]], [[math.nan]]])
    for d in (1.5, -1.5):
        score = torch.tensor([[d]], requires_grad=True)
        pair_loss("ties", score, zero, tie, none).backward()
        assert score.grad is not None
        assert score.grad.item() * d > 0
    assert pair_loss("plain", zero, zero, first, none).item() == pytest.approx(math.log(2))
    assert pair_loss("plain", zero, zero, tie, none).item() == 0
    assert pair_loss("ties", zero, zero, unjudged, none).item() == 0
    assert pair_loss("regression", zero, zero, first, torch.tensor([[[5.0], [3.0]]])).item() == 2


@pytest.mark.parametrize("objective", ["ties", "plain", "regression"])
def test_what_nobody_judged_or_rated_has_no_gradient_and_leaves_the_rest_its_own(objective: PairObjective) -> None:
    labels, points = torch.tensor([[1.0, math.nan]]), torch.tensor([[[4.0, math.nan], [math.nan, 2.0]]])
    first, second = torch.tensor([[0.3, -1.0]], requires_grad=True), torch.tensor([[0.1, 0.5]], requires_grad=True)
    pair_loss(objective, first, second, labels, points).backward()
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad[0, 0] != 0
    assert first.grad[0, 1] == 0
    assert second.grad.isfinite().all()


def test_each_score_sees_only_what_it_may(clips: list[MotionClip]) -> None:
    model = MotionReward.fresh().eval()
    motion, mel = torch.stack([clip.motion for clip in clips]), torch.stack([clip.mel for clip in clips])
    scores = model(motion, mel)
    assert (model(motion, mel.roll(1, 0)) == scores).all(0).tolist() == [False, True, True]
    nod = motion.clone()
    nod[..., HEAD] += torch.randn(len(nod), 40, 6)
    assert (model(nod, mel) == scores).all(0).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="too few"):
        model(motion[:, :5], mel[:, :20])


@pytest.mark.slow
def test_a_few_steps_learn_to_tell_trembling_and_a_saved_model_says_the_same(
    clips: list[MotionClip], tmp_path: Path
) -> None:
    model = train_motion_reward(MotionRewardTrainingConfig(steps=25, batch=14, learning_rate=4e-3), clips)
    batch = DamagedPairSampler(clips, {"jitter": MOTION_CORRUPTIONS["jitter"]}, 9).draw(60, progress=0)
    difference = model(batch.first, batch.mel) - model(batch.second, batch.mel)
    column = DIMENSIONS.index("motion")
    assert ((difference[:, column] > 0) == (batch.labels[:, column] == Label.FIRST)).float().mean() > 0.8
    model.save(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size < 8e6
    again = MotionReward.read(tmp_path / "model.safetensors")
    assert torch.allclose(again(batch.first, batch.mel), model(batch.first, batch.mel), atol=0.05)
