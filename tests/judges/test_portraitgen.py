"""Claims about still portraits: what is measured of them, what judges say, the benchmark, and the flow that learns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from skimage.data import astronaut

from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import holm_correction, mcnemar_test
from flowportrait.flow import guidance as inversion
from flowportrait.flow.schedules import noise_schedule
from flowportrait.judges.answers import read_still_grade
from flowportrait.judges.client import ChatClient
from flowportrait.judges.messages import Endpoint, MediaFormats, message_parts
from flowportrait.judges.panel import Panel, PanelSettings
from flowportrait.judges.questions import AcceptReply, JudgeKind, Question, ReplyCache
from flowportrait.judges.replies import Reply, UnusableReply
from flowportrait.judges.rubric import Aspect
from flowportrait.judges.sanity import certify_judge, save_certificate
from flowportrait.judges.verdicts import AspectVerdict, Verdict
from flowportrait.portraitgen import benchmark as bench
from flowportrait.portraitgen import taxonomy
from flowportrait.portraitgen.benchmark import compare_bench_results
from flowportrait.portraitgen.detectors import ARTEFACTS, ARTEFACTS_BY_NAME, FaceView, find_face
from flowportrait.portraitgen.judging import OMNI_DIMENSIONS, STILL_SANITY, STILL_SUBJECT, StillReward
from flowportrait.portraitgen.measured_judge import (
    DetectorLimits,
    FramedFaces,
    MeasuredStills,
    artefacts,
    frame_photos,
    reward_and_grade,
)
from flowportrait.portraitgen.still_flow import PictureSpace, PortraitFlow, PortraitFlowConfig, Still, still_batch
from flowportrait.portraitgen.task import PortraitTask, pool
from flowportrait.rewards.batch import Failure, RewardBatch
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.plan import AllSteps, OdePlan
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.trainer import Trainer
from tests.judge_server import FaultyServer

# --- inversion


def swirl(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """A velocity field that bends."""
    return torch.sin(3 * x.roll(1, -1)) * (1 + sigma) - x


@given(steps=st.integers(2, 24), shift=st.floats(0.5, 4.0), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_two_step_inversion_is_undone_to_rounding_at_any_schedule(steps: int, shift: float, seed: int) -> None:
    x0 = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    sigmas = noise_schedule(steps, shift).double()
    states = inversion.invert_two_step(swirl, x0, sigmas)
    back = inversion.sample_two_step(swirl, states[0], states[1], sigmas)
    assert (back - x0).abs().max() < 1e-9
    assert len(states) == steps + 1


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_two_step_path_is_of_second_order_and_eulers_of_first(shift: float) -> None:
    x0 = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth = inversion.invert_two_step(swirl, x0, noise_schedule(1024, shift).double())[0]

    def error(scheme: Callable[..., list[torch.Tensor]], steps: int) -> float:
        return float((scheme(swirl, x0, noise_schedule(steps, shift).double())[0] - truth).norm())

    assert error(inversion.invert_two_step, 32) / error(inversion.invert_two_step, 128) > 10
    assert 3 < error(inversion.invert_euler, 32) / error(inversion.invert_euler, 128) < 7


# --- what is measured


@lru_cache(maxsize=1)
def person() -> FaceView:
    return find_face(np.ascontiguousarray(astronaut()[:300, 80:380]))


def damaged(picture: np.ndarray) -> dict[str, float | None]:
    """Spreads beyond the limits, with the face where it was."""
    whole = person()
    assert whole.landmarks is not None
    assert whole.blendshapes is not None
    return DetectorLimits.load().excess(FaceView.at(picture, [(whole.landmarks, whole.blendshapes)]))


def coloured(picture: np.ndarray, times: float) -> np.ndarray:
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab[..., 1:] *= times
    return np.round(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("over_saturated", lambda p, k: coloured(p, 1 + k)),
        ("over_smooth", lambda p, k: cv2.bilateralFilter(p, 41, 200 * k, 41 * k)),
        ("blur", lambda p, k: cv2.GaussianBlur(p, (0, 0), 2 * k)),
        ("skin_hue", lambda p, k: np.roll(p, 1, 2) if k > 0.9 else p),
    ],
)
def test_a_detector_rises_with_its_damage_and_ends_beyond_the_limit(
    kind: str, damage: Callable[[np.ndarray, float], np.ndarray]
) -> None:
    values = [damaged(damage(person().picture, k))[kind] for k in (0.1, 0.5, 1.0)]
    assert values == sorted(values, key=lambda value: value or 0.0)
    assert values[-1] is not None
    assert values[-1] > 0


def test_a_photo_has_few_artefacts_and_a_wall_has_no_face() -> None:
    found = artefacts(person())
    assert sum(bool(value) for value in found.values()) <= 1
    assert found["missing_face"] is False
    empty = artefacts(FaceView(np.full((64, 64, 3), 120, np.uint8), 0))
    assert empty["missing_face"] is True
    assert empty["over_saturated"] is None


def test_blocks_are_seen_on_the_grid_and_not_off_it() -> None:
    rough = cv2.resize(person().picture, (37, 37), interpolation=cv2.INTER_AREA).repeat(8, 0).repeat(8, 1)
    from flowportrait.portraitgen.detectors import jpeg_blockiness

    assert (jpeg_blockiness(FaceView(rough, 0)) or 0) > 5 * (jpeg_blockiness(FaceView(person().picture, 0)) or 0)
    assert jpeg_blockiness(FaceView(rough[:64, :64], 0)) is None


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=8), st.floats(0.1, 5))
@settings(max_examples=50, deadline=None)
def test_a_worse_number_never_makes_a_better_grade(numbers: list[float], more: float) -> None:
    before = reward_and_grade({str(i): n for i, n in enumerate(numbers)})
    after = reward_and_grade({str(i): n + more * (i == 0) for i, n in enumerate(numbers)})
    assert after[0] <= before[0]
    assert 1 <= after[1] <= before[1] <= 5


def test_rewards_prefer_the_photo_to_its_damage_and_to_no_face() -> None:
    photo = cv2.resize(person().picture, (128, 128), interpolation=cv2.INTER_AREA)
    rows = [photo, coloured(photo, 2.0), np.full_like(photo, 128)]
    batch = still_batch(torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float() / 255)
    scores = CompositeReward.of({"omni_reward": 0.5, "ai_portrait": 0.5})(batch)
    portrait, omni = scores["ai_portrait"], scores["omni_reward"]
    assert portrait.valid.all()
    assert portrait.value[0] > portrait.value[1] > portrait.value[2]
    assert omni.value[0] > omni.value[2]


# --- what judges say


def reply(**values: object) -> Reply:
    return Reply(json.dumps(values))


class Scripted:
    """A backend that gives each sample its reply in turn, or None for a refusal."""

    model_id, kind = "scripted 1", "multimodal LLM panel"
    kind: JudgeKind

    def __init__(self, replies: Sequence[Reply | None]) -> None:
        self.replies = replies
        self.asked: list[Question] = []

    def ask(self, questions: Sequence[Question], accept: AcceptReply) -> dict[int, Failure]:
        failures = {}
        for place, question in enumerate(questions):
            self.asked.append(question)
            given_reply = self.replies[question.sample]
            if given_reply is None:
                failures[place] = Failure("refused", "no")
            else:
                accept(place, given_reply)
        return failures


class Grader:
    """A judge of stills by a rule."""

    kind: JudgeKind = "multimodal LLM panel"
    name = "grader"
    fingerprint = "grader"

    def __init__(self, grade: Callable[[np.ndarray], float]) -> None:
        self.grade = grade

    def judge(self, stills: Sequence[Still], aspects: Sequence[Aspect] | None = None, /) -> list[Verdict]:
        found = []
        for still in stills:
            grade = self.grade(still.picture)
            own = {a: AspectVerdict(a, grade, grade, "agreement") for a in aspects or STILL_SUBJECT.aspects}
            found.append(Verdict(still.name, "", self.name, self.kind, own))
        return found


def graded(
    backend: Scripted | ChatClient, still: Still, aspect: Aspect, samples: int = 3, cache: ReplyCache | None = None
) -> AspectVerdict:
    """The verdict of a panel on one aspect of one still."""
    judge: Panel[Still] = Panel(backend, PanelSettings(samples=samples), cache, subject=STILL_SUBJECT)
    return judge.judge([still], (aspect,))[0].aspects[aspect]


def test_who_does_not_put_damage_in_order_is_no_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [Still(person().picture)] * 6
    seen = person().picture.astype(float)
    shrewd = Grader(lambda picture: 5 - 0.5 * float(np.abs(picture - seen).mean()) ** 0.5)
    assert certify_judge(shrewd, whole, STILL_SANITY).passed
    blind = certify_judge(Grader(lambda picture: 3.0), whole, STILL_SANITY)
    assert not blind.passed
    assert all(case.order == 0.5 for case in blind.results)
    with pytest.raises(BadInput, match="too few to examine"):
        certify_judge(shrewd, whole[:3], STILL_SANITY)
    with pytest.raises(BadInput, match="cannot be in the sanity set"):
        certify_judge(shrewd, [Still(np.zeros((200, 200, 3), np.uint8))] * 6, STILL_SANITY)

    monkeypatch.setattr("flowportrait.portraitgen.judging.build_still_judge", lambda settings: shrewd)
    settings = tmp_path / "judge.json"
    settings.write_text(json.dumps({"folder": str(tmp_path)}))
    with pytest.raises(BadInput, match="run flowportrait judge check --stills first"):
        StillReward.load("ai_portrait", settings)
    save_certificate(blind, tmp_path / "checked")
    with pytest.raises(BadInput, match=r"failed the sanity set .*is not trained on"):
        StillReward.load("ai_portrait", settings)
    save_certificate(certify_judge(shrewd, whole, STILL_SANITY), tmp_path / "checked")
    assert StillReward.load("ai_portrait", settings).judge is shrewd


def test_an_artefact_counts_if_most_samples_name_it() -> None:
    said = [{"type": "hands", "where": "left", "severity": 2}, {"type": "halo", "where": "hair", "severity": 1}]
    backend = Scripted([
        reply(rationale="a", artefacts=said, score=2),
        reply(rationale="b", artefacts=said[:1], score=3),
        reply(rationale="c", artefacts=[], score=4),
    ])  # fmt: skip
    verdict = graded(backend, Still(person().picture, "a nurse"), "ai_portrait")
    assert verdict.score == 3.0
    assert verdict.artefacts["hands"] is True
    assert sum(bool(value) for value in verdict.artefacts.values()) == 1
    assert len({question.address("x") for question in backend.asked}) == 3
    shown = message_parts(backend.asked[0].make_input(), MediaFormats(audio="off"))
    assert sum(part["type"] == "image_url" for part in shown) == 4


def test_a_server_is_shown_close_ups_and_asked_once_for_each_answer(tmp_path: Path) -> None:
    good = json.dumps({"rationale": "a", "artefacts": [{"type": "oily", "where": "nose", "severity": 1}], "score": 3})
    still = Still(person().picture, "a cook")
    with FaultyServer(lambda number, body: "ok" if number else "busy", lambda body: good) as server:
        backend = ChatClient(Endpoint(url=server.url, model="test", first_wait=0.01, longest_wait=0.02))
        for _ in range(2):
            verdict = graded(backend, still, "ai_portrait", 1, ReplyCache(tmp_path))
    assert verdict.artefacts["oily"] is True
    assert verdict.score == 3.0
    assert server.happened == {"busy": 1, "ok": 1}
    sent = json.dumps(server.bodies[-1])
    assert sent.count("data:image/jpeg") == 4
    assert "waxy or oily shine" in sent


def test_a_picture_has_no_score_when_most_samples_are_lost() -> None:
    good = reply(rationale="a", dimensions=dict.fromkeys(OMNI_DIMENSIONS, 4), score=4)
    lost = graded(Scripted([good, None, None]), Still(person().picture), "omni_reward")
    assert lost.score is None
    assert lost.failure is not None
    assert lost.failure.kind == "refused"
    kept = graded(Scripted([good, good, None]), Still(person().picture), "omni_reward")
    assert kept.score == 4.0
    assert kept.dimensions == dict.fromkeys(OMNI_DIMENSIONS, 4.0)


@pytest.mark.parametrize(
    "values",
    [
        {"score": 6, "artefacts": []},
        {"score": 3, "artefacts": [{"type": "hands"}]},
        {"score": 3, "artefacts": [{"type": "hands", "severity": 4}]},
        {"score": 3, "artefacts": "none"},
    ],
)
def test_a_reply_that_breaks_the_form_is_no_opinion(values: dict[str, object]) -> None:
    with pytest.raises(UnusableReply):
        read_still_grade(reply(rationale="a", **values), artefacts=tuple(ARTEFACTS_BY_NAME))


def test_each_rubric_asks_for_what_is_its_own() -> None:
    still = Still(np.zeros((8, 8, 3), np.uint8), "a welder")
    omni, portrait = (
        STILL_SUBJECT.question(still, aspect, STILL_SUBJECT.rubric(aspect), STILL_SUBJECT.instruction(aspect))
        for aspect in STILL_SUBJECT.aspects
    )
    assert "a welder" in omni
    assert "a welder" not in portrait
    assert all(artefact.name in portrait for artefact in ARTEFACTS)
    assert {artefact.part for artefact in ARTEFACTS} >= {"skin", "eyes", "teeth", "hands", "biology"}
    assert len(ARTEFACTS_BY_NAME) == len(ARTEFACTS)


# --- the benchmark


def test_the_prompts_that_ship_are_what_the_procedure_makes_even_and_possible() -> None:
    made = taxonomy.make_bench_prompts()
    assert made == taxonomy.read_bench_prompts()
    assert taxonomy.prompts_digest(made) == "f49638ff440e"
    for dimension, values in taxonomy.TAXONOMY.items():
        counts = Counter(prompt.terms[dimension] for prompt in made)
        assert set(counts) == set(values)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert all(taxonomy.is_possible(prompt.terms) for prompt in made)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "line 2 is no prompt"),
        ('{"id": "x"}', "'text' is missing"),
        ('{"id": "a", "text": "again"}', "'a' twice"),
        ('{"id": "../x", "text": "y"}', "cannot be used"),
        ('{"id": "x", "text": "y", "terms": {"pose": "flying"}}', "pose='flying'"),
    ],
)
def test_a_broken_prompt_line_is_named(
    line: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a", "text": "a person"}\n' + line + "\n")
    assert main(["evaluate", "portraits", "--images", str(tmp_path), "--prompts", str(path)]) == 2
    said = capsys.readouterr().err
    assert part in said
    assert said.count("\n") == 1


def test_pictures_are_counted_with_intervals_and_results_compared(tmp_path: Path) -> None:
    prompts = taxonomy.read_bench_prompts()[:2]
    for folder, second in (("a", person().picture), ("b", coloured(person().picture, 2.2))):
        (tmp_path / folder).mkdir()
        for prompt, picture in zip(prompts, (person().picture, second), strict=True):
            cv2.imwrite(str(tmp_path / folder / f"{prompt.id}_0.png"), picture[..., ::-1])
        named_pictures = bench.find_prompt_pictures(tmp_path / folder, prompts)
        found = bench.judge_pictures(named_pictures, MeasuredStills(), prompts, 2)
        bench.write_bench_result(found, tmp_path / f"{folder}.json")
    assert found["artefacts"]["over_saturated"]["count"] == 1
    assert found["artefacts"]["missing_face"]["of"] == 2
    assert found["scores"]["ai_portrait"]["pictures"] == 2
    assert str(tmp_path) not in (tmp_path / "b.json").read_text()
    rows = {row["what"]: row for row in compare_bench_results(tmp_path / "b.json", tmp_path / "a.json")}
    assert rows["over_saturated"]["difference"] == 0.5
    assert rows["ai_portrait"]["difference"] < 0
    other = json.loads((tmp_path / "a.json").read_text()) | {"prompts": "another"}
    (tmp_path / "c.json").write_text(json.dumps(other))
    with pytest.raises(BadInput, match="another set of prompts"):
        compare_bench_results(tmp_path / "b.json", tmp_path / "c.json")


def test_rates_and_tests_are_the_textbooks() -> None:
    found = bench.rate_with_interval(0, 10)
    assert found["low"] == pytest.approx(0.0, abs=1e-12)
    assert found["high"] == pytest.approx(0.2775, abs=1e-3)
    p, gap = mcnemar_test([True] * 6 + [False] * 4 + [None], [False] * 10 + [True])
    assert p == pytest.approx(2 / 2**6)
    assert gap == pytest.approx(0.6)
    assert holm_correction([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


# --- the flow that learns


@lru_cache(maxsize=1)
def faces() -> FramedFaces:
    rng = np.random.default_rng(0)
    count = 24
    return FramedFaces(
        rng.integers(0, 255, (count, 8, 8, 3), np.uint8), np.zeros((count, 1, 1, 3), np.uint8),
        np.zeros((count, 478, 2), np.float32), np.ones(count, np.float32),
        rng.normal(size=(count, 5)).astype(np.float32), (np.arange(count) % 4).astype(np.int32), np.zeros(count, bool),
    )  # fmt: skip


def tiny_flow() -> PortraitFlow:
    torch.manual_seed(0)
    flow = PortraitFlow(PortraitFlowConfig(side=8, latents=6, width=16, blocks=1, frequencies=2))
    pictures = torch.from_numpy(faces().small).permute(0, 3, 1, 2).float() / 255
    flow.space.load_state_dict(PictureSpace.fit(pictures, 6).state_dict())
    flow.attribute_statistics[1] = 1
    for parameter in flow.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return flow


class Bright:
    """Pays for bright pictures."""

    name = "bright"
    needs = frozenset({"frames"})

    def __call__(self, batch: RewardBatch) -> Score:
        return all_valid(batch.frames((0,)).mean((1, 2, 3, 4)))


def run(recipe: str, exemplars: int = 0) -> Trainer:
    found = find_recipe(recipe)
    plan = AllSteps(steps=4) if isinstance(found.plan, AllSteps) else OdePlan(steps=4)
    real = found.exemplars and replace(found.exemplars, inversion="two_step")
    found = replace(found, plan=plan, groups=4, group_size=6, learning_rate=1e-2, exemplars=real)
    return Trainer(tiny_flow(), PortraitTask(faces(), exemplars), found, CompositeReward((Bright(),), {"bright": 1.0}))


def test_a_portrait_flow_is_a_policy_like_any_other() -> None:
    trainer = run("flow-grpo")
    records = [trainer.step() for _ in range(12)]
    assert records[0]["ratio/first_error"] < 1e-5
    assert records[0]["noise_gap"] < 1e-3
    assert np.mean([r["reward/bright"] for r in records[-3:]]) > np.mean([r["reward/bright"] for r in records[:3]])


@pytest.mark.parametrize("recipe", ["exemplar-ratio", "exemplar-awm", "exemplar-dpo"])
def test_real_faces_stand_in_the_groups_in_all_three_forms(recipe: str) -> None:
    trainer = run(recipe, exemplars=8)
    batch = trainer.collect()
    assert batch.trajectory.real.sum() == 4
    decoded = trainer.policy.space.decode(batch.trajectory.latents[batch.trajectory.real][:, 0])
    pictures = torch.from_numpy(faces().small).permute(0, 3, 1, 2).float() / 255
    near = (decoded[:, None] - trainer.policy.space.decode(trainer.policy.space.encode(pictures))[None]).abs()
    assert near.flatten(2).amax(-1).amin(1).max() < 1e-4
    assert "exemplar/negative" in trainer.step()


def test_nothing_is_pushed_away_from_a_real_face_where_a_recipe_says_so() -> None:
    trainer = run("exemplar-ratio", exemplars=8)
    batch = trainer.collect()
    real = batch.trajectory.real
    pushed, _ = trainer.credit(batch)
    assert trainer.recipe.exemplars is not None
    trainer.recipe = replace(trainer.recipe, exemplars=replace(trainer.recipe.exemplars, negative_limit=0.0))
    kept, _ = trainer.credit(batch)
    assert (pushed.value[real] < 0).any()
    assert (kept.value[real] >= 0).all()
    assert torch.equal(pushed.value[~real], kept.value[~real])


def test_exemplars_are_shared_among_speakers() -> None:
    chosen = pool(faces(), 8)
    assert sorted(Counter(faces().speaker[chosen].tolist()).values()) == [2, 2, 2, 2]
    assert len(pool(faces(), 0)) == 0


def test_a_flow_is_saved_and_read_back(tmp_path: Path) -> None:
    flow = tiny_flow()
    flow.save_pretrained(tmp_path)
    told = torch.randn(2, 5)
    assert torch.equal(PortraitFlow.from_pretrained(tmp_path).draw(told), flow.eval().draw(told))
    with pytest.raises(BadInput, match="no portrait flow"):
        PortraitFlow.from_pretrained(tmp_path / "nowhere")


def test_a_flow_of_version_0_1_is_read(tmp_path: Path) -> None:
    flow = tiny_flow()
    flow.save_pretrained(tmp_path)
    earlier_names = {"attribute_statistics": "usual", "attributes_in.": "told.", ".modulation.": ".told."}
    weights = load_file(tmp_path / "model.safetensors")
    for new, old in earlier_names.items():
        weights = {name.replace(new, old): value for name, value in weights.items()}
    assert {"usual", "told.0.weight", "blocks.0.told.bias"} < set(weights)
    save_file(weights, tmp_path / "model.safetensors")
    wanted = torch.randn(2, 5)
    assert torch.equal(PortraitFlow.from_pretrained(tmp_path).draw(wanted), flow.eval().draw(wanted))


def test_the_picture_space_keeps_what_it_learned() -> None:
    pictures = torch.rand(10, 3, 4, 4)
    space = PictureSpace.fit(pictures, 9)
    assert torch.allclose(space.decode(space.encode(pictures)), pictures, atol=1e-3)
    assert torch.allclose(space.encode(pictures).square().mean(0), torch.ones(9), atol=1e-3)


def test_an_exemplar_without_a_face_is_named(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "wall.png"), np.full((100, 100, 3), 90, np.uint8))
    with pytest.raises(BadInput, match=r"wall\.png shows no face"):
        frame_photos(tmp_path)
