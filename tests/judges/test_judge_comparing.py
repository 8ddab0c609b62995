"""Claims about judges that compare, agree with people, learn rules from them, and know an impossible head."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from flowportrait.config import override
from flowportrait.corruption.clips import Footage, shake_head, stretch_head
from flowportrait.errors import BadInput
from flowportrait.judges.answers import read_choice, read_rule
from flowportrait.judges.build import JudgeSettings, build_judge, build_judge_with_library
from flowportrait.judges.clips import JudgedClip, pair_input
from flowportrait.judges.learning import (
    ExpertToggles,
    LabelledPair,
    Miss,
    RuleEditor,
    count_agreement,
    learn_library,
    measure_agreement,
    split_pairs,
    wilson_interval,
)
from flowportrait.judges.measured_panel import (
    EXPERTS,
    Experts,
    HeadPose,
    MeasuredPanel,
    PoseCappedJudge,
    fit_affine_camera,
    nearest_rotation,
    pose_statistics,
)
from flowportrait.judges.methods import ComparingPanel, PairChoice, PairJudge, compare_pairs
from flowportrait.judges.panel import Panel, PanelSettings
from flowportrait.judges.questions import Question, ReplyCache
from flowportrait.judges.replies import Reply, UnusableReply
from flowportrait.judges.rubric import CLIP_ASPECTS, RubricLibrary
from flowportrait.preferences.dataset import Label
from flowportrait.rendering.motion_basis import MotionBasis
from tests.judge_server import FaultyServer
from tests.judges.test_judge_client import clip
from tests.judges.test_judge_staged import Scripted, graded

ONE = PanelSettings(samples=1)


def two(brightness: tuple[int, int] = (90, 60)) -> tuple[JudgedClip, JudgedClip]:
    """A brighter clip and a darker one."""
    first, second = (replace(one, frames=np.full_like(one.frames, b)) for b in brightness for one in (clip(frames=12),))
    return first, second


def brighter(question: Question) -> dict[str, object]:
    """Prefers what is brighter, and looks at what it is shown to know."""
    frames = question.make_input().clip.frames
    half = len(frames) // 2
    return {"rationale": "Brighter.", "better": "first" if frames[:half].mean() > frames[half:].mean() else "second"}


def test_who_compares_says_the_same_in_either_order() -> None:
    panel = ComparingPanel(Scripted(brighter), ONE)
    bright, dark = two()
    (one, other) = panel.compare([(bright, dark), (dark, bright)])
    assert all(one[aspect].margin == 1 and one[aspect].position_bias == 0 for aspect in CLIP_ASPECTS)
    assert all(other[aspect].margin == -1 for aspect in CLIP_ASPECTS)


def test_who_prefers_what_comes_first_has_no_opinion_and_is_told_apart() -> None:
    panel = ComparingPanel(Scripted(lambda question: {"rationale": "It came first.", "better": "first"}), ONE)
    (choices,) = panel.compare([two()])
    assert all(choice == PairChoice(0.0, 1.0, "It came first.") for choice in choices.values())


def test_an_answer_without_its_counterpart_does_not_count() -> None:
    answers = iter([{"better": "maybe"}, *[{"rationale": "So.", "better": "same"}] * 5])
    (choices,) = ComparingPanel(Scripted(lambda question: next(answers)), ONE).compare([two()])
    assert choices["lip_sync"].margin is None
    assert "both orders" in choices["lip_sync"].rationale
    assert choices["motion"].margin == 0


def test_both_clips_are_shown_with_whose_they_are_and_a_pause_between_the_sounds() -> None:
    bright, dark = two()
    seen = pair_input(bright, dark, "lip_sync", 4)
    assert [caption.split(".")[0] for caption, _ in seen.pictures] == ["First clip", "Second clip"]
    assert len(seen.video) == len(seen.clip) == 24
    assert len(seen.audio) == 2 * 12 * 640 + 8000


def test_who_only_grades_is_asked_for_two_grades_and_each_clip_once() -> None:
    backend = Scripted(lambda question: graded(4 if question.make_input().clip.frames.mean() > 75 else 2))
    bright, dark = two()
    panel = Panel(backend, ONE)
    assert not isinstance(panel, PairJudge)
    (one, other) = compare_pairs(panel, [(bright, dark), (dark, bright)])
    assert [one[aspect].margin for aspect in CLIP_ASPECTS] == [2] * 3
    assert [other[aspect].margin for aspect in CLIP_ASPECTS] == [-2] * 3
    assert len(backend.asked) == 6


def test_agreement_counts_what_people_decided_and_refusing_gains_nothing() -> None:
    pair = two()
    stated = [
        LabelledPair(pair, {"lip_sync": Label.FIRST, "motion": Label.TIE}),
        LabelledPair(pair, {"lip_sync": Label.SECOND}),
        LabelledPair(pair, {"motion": Label.FIRST}),
    ]
    sure = {aspect: PairChoice(1.0) for aspect in CLIP_ASPECTS}
    found, misses = count_agreement(stated, [sure, sure, {aspect: PairChoice(None) for aspect in CLIP_ASPECTS}], 0.1)
    assert found.accuracy == 0.5
    assert found.decided == 3
    assert found.by_aspect == {"lip_sync": (0.5, 2), "motion": (0.5, 1)}
    assert [miss.aspect for miss in misses] == ["lip_sync", "motion"]
    assert found.no_opinion == pytest.approx(1 / 3)
    with pytest.raises(BadInput, match="No pair is decided"):
        count_agreement([LabelledPair(pair, {"motion": Label.TIE})], [sure], 0.1)


@settings(deadline=None)
@given(st.integers(1, 400), st.floats(0, 1))
def test_an_interval_holds_its_share_and_narrows_with_what_was_asked(count: int, share: float) -> None:
    low, high = wilson_interval(share, count)
    assert -1e-9 <= low <= share + 1e-9 <= high + 2e-9 <= 1 + 3e-9
    assert high - low > np.subtract(*wilson_interval(share, 4 * count)[::-1])


def dark_rule(question: Question) -> dict[str, object]:
    """A model that likes light until a rule says that dark is better; as an editor it finds that rule in round two."""
    if question.aspect == "edit":
        good = question.sample == 1
        return {"rule": "Dark is better." if good else "Green is better.", "replaces": None}
    bright = question.make_input().clip.frames.mean() > 75
    return graded(4 if bright != ("Dark is better" in question.text) else 2)


def test_a_rule_is_kept_only_if_held_out_pairs_are_better_agreed_with(tmp_path: Path) -> None:
    bright, dark = two()
    stated = [LabelledPair((bright, dark), {"motion": Label.SECOND})] * 10
    backend = Scripted(dark_rule)
    learned = learn_library(
        lambda library: Panel(backend, ONE, library=library), stated, RuleEditor(backend, ReplyCache(None)), 3
    )
    assert [(one.before, one.after, one.is_accepted) for one in learned.rounds] == [(0, 0, False), (0, 1, True)]
    assert learned.library.of("motion") == ("Dark is better.",)
    assert learned.first
    assert learned.last
    assert (learned.first.accuracy, learned.last.accuracy) == (0, 1)
    learned.library.save(tmp_path / "library.json", learned.to_dict())
    assert RubricLibrary.load(tmp_path / "library.json") == learned.library
    assert "agreement" not in (tmp_path / "library.json").read_text()
    with pytest.raises(BadInput, match="9 pairs that people decided"):
        learn_library(lambda library: Panel(backend, ONE), stated[1:], ExpertToggles(()), 1)
    (tmp_path / "wrong.json").write_text('{"entries": {"beauty": []}}')
    with pytest.raises(BadInput, match="beauty is no aspect"):
        RubricLibrary.load(tmp_path / "wrong.json")


def test_what_is_reported_was_not_decided_by() -> None:
    shown, held, rest = split_pairs(list(range(100)))
    assert (len(shown), len(held), len(rest)) == (40, 40, 20)
    assert sorted([*shown, *held, *rest]) == list(range(100))


def test_a_library_changes_the_question_and_the_fingerprint_and_an_empty_one_neither() -> None:
    settings = override(JudgeSettings(), ["by=server", "endpoint.model=some"])
    plain, empty = build_judge(settings), build_judge_with_library(settings, RubricLibrary({"motion": ()}))
    ruled = build_judge_with_library(settings, RubricLibrary({"motion": ("Look at the ears.",)}))
    assert plain.fingerprint == empty.fingerprint != ruled.fingerprint
    assert isinstance(plain, Panel)
    assert isinstance(ruled, Panel)
    assert ruled.rubric("motion") == plain.rubric("motion") + "\nRules:\n- Look at the ears."
    assert ruled.rubric("lip_sync") == plain.rubric("lip_sync")


@pytest.mark.parametrize("said", [
    {"rule": ""}, {"rule": "x" * 999}, {"rule": "So.", "replaces": 2}, {"rule": "So.", "replaces": "0"},
])  # fmt: skip
def test_a_rule_is_one_sentence_in_a_place_that_exists(said: dict[str, object]) -> None:
    assert read_rule(Reply('{"rule": "Be kind.", "replaces": 1}'), 2) == ("Be kind.", 1)
    with pytest.raises(UnusableReply):
        read_rule(Reply(json.dumps(said)), 2)


def test_toggles_try_every_expert_in_every_aspect_and_leave_none_without() -> None:
    library = RubricLibrary(EXPERTS)
    tried = [ExpertToggles(("sync", "pose"))(library, (), number) for number in range(6)]
    assert all(own is not None and all(own.of(aspect) for aspect in CLIP_ASPECTS) for own in tried)
    assert any("pose" in own.of("motion") for own in tried if own)


def head(degrees: Sequence[float], frames: int = 20) -> torch.Tensor:
    """The canonical head turning to and fro about all axes, in pixels ``[1, T, 478, 2]``."""
    swing = np.sin(np.linspace(0, 6, frames))[:, None] * np.asarray(degrees)
    turned = Rotation.from_euler("xyz", swing, degrees=True).as_matrix()
    points = MotionBasis.load().canonical.numpy() @ turned.transpose(0, 2, 1)
    return torch.from_numpy(80 * points[None, ..., :2] + 128).float()


def test_a_rigid_head_does_not_bend_however_it_turns_and_its_turn_is_measured() -> None:
    still, turning = head((0, 0, 0)), head((5, 10, 3))
    assert float(pose_statistics(turning)[0]) < -9
    assert float(pose_statistics(still)[1]) < -7
    truth = Rotation.from_euler("xyz", [[0, 0, 0], [0, 4, 0]], degrees=True).as_matrix()
    points = MotionBasis.load().canonical.numpy() @ truth.transpose(0, 2, 1)
    found = nearest_rotation(fit_affine_camera(torch.from_numpy(points[None, ..., :2])))
    assert np.allclose(found[0].numpy(), truth, atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "strength"), [(stretch_head, 0.1), (shake_head, 10.0)], ids=["stretched-0.1", "whipped-10.0"]
)
def test_a_head_that_cannot_be_caps_the_grade_and_another_changes_nothing(
    damage: Callable[[Footage, float], Footage], strength: float
) -> None:
    places = head((1, 2, 0.5))[0].numpy()
    frames = np.zeros((20, 64, 64, 3), np.uint8)
    whole = JudgedClip(frames, np.ones(20 * 640, np.float32), known_landmarks=places)
    track = Footage(None, landmarks=np.concatenate([places, places[..., :1]], -1))
    hurt = replace(whole, known_landmarks=damage(track, strength).landmarks[..., :2])
    given, capped = PoseCappedJudge(Panel(Scripted(lambda question: graded(5)), ONE)).judge([whole, hurt])
    assert (given.aspects["motion"].score or 0) > 4.5
    assert (capped.aspects["motion"].score or 5) < 3.5
    assert "no head" in capped.aspects["motion"].rationale
    assert capped.aspects["lip_sync"].score == 5


def test_a_measured_panel_is_the_same_until_a_library_says_otherwise() -> None:
    plain = MeasuredPanel()
    assert MeasuredPanel(Experts.load().with_library(RubricLibrary())).fingerprint == plain.fingerprint
    posed = MeasuredPanel(Experts.load().with_library(RubricLibrary({"motion": ("steadiness", "pose")})))
    assert posed.fingerprint != plain.fingerprint
    assert posed.experts.used == {"sync", "expressiveness", "steadiness", "pose"}
    with pytest.raises(BadInput, match="No expert named beauty"):
        Experts.load().with_library(RubricLibrary({"motion": ("beauty",)}))


def test_a_server_is_asked_in_both_orders_and_answers_are_kept(tmp_path: Path) -> None:
    said = json.dumps({"rationale": "Clear.", "better": "second"})
    with FaultyServer(lambda number, body: "ok", lambda body: said) as server:
        changes = ["by=server", "method=compare", f"endpoint.url={server.url}", "endpoint.model=m", "panel.samples=1",
                   f"folder={tmp_path}"]  # fmt: skip
        for _ in range(2):
            judge = build_judge(override(JudgeSettings(), changes))
            found, _ = measure_agreement(judge, [LabelledPair(two(), {"motion": Label.FIRST})])
        assert len(server.bodies) == 6
    assert found.position_bias == 1
    assert found.accuracy == 0.5
    assert read_choice(Reply(said)) == (-1.0, "Clear.")


def test_misses_are_told_in_words() -> None:
    from flowportrait.judges.learning import describe_miss

    miss = Miss(LabelledPair(two(), {"motion": Label.SECOND}), "motion", 0.7, "Smooth.")
    assert describe_miss(miss) == {"people preferred": "second", "the panel": "first", "because": "Smooth."}
    assert describe_miss(miss._replace(margin=0.0))["the panel"] == "same"
    assert HeadPose.name == "pose"
