"""Claims about judges of version 0.1: the same replies give the same verdicts, and what they wrote is still used.

The files in ``data/v0.1/judge`` were written by version 0.1, with the replies of ``ScriptedModel``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowportrait.config import load
from flowportrait.errors import BadInput
from flowportrait.judges.build import JudgeSettings, build_judge, build_judge_with_library
from flowportrait.judges.calibration import Calibration
from flowportrait.judges.clips import JudgedClip
from flowportrait.judges.learning import LabelledPair, RuleEditor, learn_library
from flowportrait.judges.measured_panel import Experts, MeasuredPanel, PoseCappedJudge
from flowportrait.judges.methods import PairChoices, compare_pairs
from flowportrait.judges.panel import Panel, PanelSettings
from flowportrait.judges.questions import AcceptReply, JudgeKind, Ledger, Question, ReplyCache
from flowportrait.judges.replies import Reply, Token, UnusableReply
from flowportrait.judges.rubric import RubricLibrary
from flowportrait.judges.sanity import require_certificate
from flowportrait.judges.verdicts import Judge
from flowportrait.portraitgen.judging import OMNI_DIMENSIONS, STILL_SUBJECT
from flowportrait.portraitgen.measured_judge import MeasuredStills
from flowportrait.portraitgen.still_flow import STILL_ASPECTS, Still
from flowportrait.preferences.dataset import Label
from flowportrait.rewards.batch import Failure
from tests import TESTS

DATA = TESTS / "data" / "v0.1" / "judge"
SAID: dict[str, Any] = json.loads((DATA / "said.json").read_text(encoding="utf-8"))
VARIANTS = ("panel", "think", "locate", "compare", "calibrated", "learned", "posed", "two")


def clip(seed: int, frames: int = 30) -> JudgedClip:
    rng = np.random.default_rng(seed)
    face = np.stack(np.meshgrid(np.linspace(16, 48, 22), np.linspace(14, 50, 22)), -1).reshape(-1, 2)[:478]
    return JudgedClip(
        rng.integers(0, 255, (frames, 64, 64, 3), dtype=np.uint8), rng.uniform(-0.3, 0.3, frames * 640), f"clip {seed}",
        known_landmarks=np.repeat(face[None], frames, 0),
    )  # fmt: skip


def clips() -> list[JudgedClip]:
    silent, short = clip(2), clip(3)
    return [
        clip(0), clip(1),
        JudgedClip(silent.frames, np.zeros(0, np.float32), "silent", known_landmarks=silent.known_landmarks),
        JudgedClip(short.frames[:5], short.audio, "short", known_landmarks=short.landmarks[:5]),
    ]  # fmt: skip


def still(seed: int) -> Still:
    rng = np.random.default_rng(100 + seed)
    return Still(rng.integers(0, 255, (48, 40, 3), dtype=np.uint8), ["a nurse", ""][seed % 2], f"still {seed}")


class ScriptedModel:
    """Replies that depend on the question alone; one in eleven is refused, one in thirteen cut off."""

    kind: JudgeKind = "multimodal LLM panel"

    def __init__(self) -> None:
        self.model_id = SAID["who"]
        self.log: list[list[Any]] = []

    def ask(self, questions: Sequence[Question[Any]], accept: AcceptReply) -> dict[int, Failure]:
        failures = {}
        for place, question in enumerate(questions):
            try:
                accept(place, self.reply(question))
                outcome = "kept"
            except UnusableReply as error:
                failures[place] = error.failure
                outcome = "lost"
            self.log.append([question.address(self.model_id), question.aspect, question.sample, outcome])
        return failures

    def reply(self, q: Question[Any]) -> Reply:
        words = "|".join([q.system, q.text, q.content, q.aspect, str(q.sample), ""])
        n = int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big")
        if n % 11 == 0:
            return Reply("I'm sorry, I can't judge people.")
        if n % 13 == 0:
            return Reply('{"rationale": "cut of', (), None, False)
        grade, answer = 1 + n % 5, self.answer(q, n)
        if answer is not None:
            return Reply(("Look: " if q.aspect == "ai_portrait" else "") + json.dumps(answer))
        errors = [{"start": 0.2, "end": 0.4, "what": "late"}, {"start": 9, "end": 9.5, "what": "imagined"}][: n % 3]
        text = json.dumps({"rationale": f"Seen {n % 97}.", "errors": errors, "score": grade})
        head, digit, tail = text.rpartition(str(grade))
        other = grade + 1 if grade < 5 else grade - 1
        alternatives = ((str(grade), -0.25), (str(other), -1.625))
        return Reply(text, (Token(head), Token(digit, alternatives), Token(tail)) if n % 2 else ())

    def answer(self, q: Question[Any], n: int) -> dict[str, Any] | None:
        """The answer to all but a specialist's question."""
        if q.aspect == "thoughts":
            return {"thoughts": f"Noted {n % 97}."}
        if q.aspect == "windows":
            return {
                "windows": [{"start": 0.1 * k, "end": 0.1 * k + 0.3, "what": f"flaw {k}"} for k in range(n % 3)]
            }  # fmt: skip
        if q.aspect == "box":
            return {"seen": bool(n % 2), "box": [0.1, 0.2, 0.5, 0.75]}
        if q.aspect == "pair":
            return {"rationale": f"Because {n % 97}.", "better": ["first", "second", "same"][n % 3]}
        if q.aspect == "edit":
            return {"rule": f"Rule {n % 97}.", "replaces": None}
        if q.aspect == "review":
            scores = {}
            for block in q.text.split("Specialists on ")[1:]:
                aspect, rest = block.split(":\n", 1)
                scores[aspect] = min(one["score"] for one in json.JSONDecoder().raw_decode(rest)[0])
            return {"rationale": "Settled.", "scores": scores}
        if q.aspect == "omni_reward":
            graded = {name: 1 + (n // (k + 2)) % 5 for k, name in enumerate(OMNI_DIMENSIONS)}
            return {"rationale": f"R{n % 97}", "dimensions": graded, "score": 1 + n % 5}
        if q.aspect == "ai_portrait":
            named = [{"type": name, "where": "there", "severity": 1 + n % 3}
                     for k, name in enumerate(("hands", "oily", "halo")) if (n >> k) & 1]  # fmt: skip
            return {"rationale": f"P{n % 97}", "artefacts": named, "score": 1 + n % 5}
        return None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of version 0.1, without its answers, as the working directory."""
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_answers(folder: Path) -> ReplyCache:
    """The cached answers of version 0.1, where it would have kept them."""
    for address, answer in json.loads((folder / "answers.json").read_text(encoding="utf-8")).items():
        path = folder / "answers" / address[:2] / f"{address}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(answer), encoding="utf-8")
    return ReplyCache(folder / "answers")


def judge_of(name: str, backend: ScriptedModel) -> Judge:
    settings = replace(load(JudgeSettings, Path(f"{name}.json")), folder=Path())
    library = RubricLibrary.load(settings.library) if settings.library else RubricLibrary()
    judge = build_judge_with_library(settings, library, backend)
    return PoseCappedJudge(judge) if settings.pose else judge


def plain(choices: Sequence[PairChoices]) -> Any:
    return [{a: [c.margin, c.position_bias, c.rationale] for a, c in one.items()} for one in choices]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_replies_give_the_same_verdicts_by_every_method(name: str, folder: Path) -> None:
    backend, said = ScriptedModel(), SAID[name]
    judge = judge_of(name, backend)
    assert (judge.name, judge.kind, judge.fingerprint) == (said["name"], said["kind"], said["fingerprint"])
    assert [one.digest for one in clips()] == SAID["clips"]
    assert json.loads(json.dumps([verdict.to_dict() for verdict in judge.judge(clips())])) == said["verdicts"]
    outcomes = {tuple(entry[:3]): entry[3] for entry in said["asked"]}
    assert {tuple(entry[:3]): entry[3] for entry in backend.log}.items() >= outcomes.items()
    if "choices" in said:
        first, second = clips()[:2]
        assert plain(compare_pairs(judge, [(first, second), (second, first)])) == said["choices"]


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_answers_are_found_and_only_the_rest_is_asked(name: str, folder: Path) -> None:
    with_answers(folder)
    backend = ScriptedModel()
    verdicts = judge_of(name, backend).judge(clips())
    assert json.loads(json.dumps([verdict.to_dict() for verdict in verdicts])) == SAID[name]["verdicts"]
    assert {entry[3] for entry in backend.log} <= {"lost"}


def test_a_library_learns_the_same_rules_from_the_same_preferences(folder: Path) -> None:
    backend, (first, second) = ScriptedModel(), clips()[:2]
    settings = load(JudgeSettings, Path("panel.json"))
    pairs = [
        LabelledPair(((first, second), (second, first))[k % 2], {"motion": Label.FIRST, "lip_sync": Label.SECOND})
        for k in range(10)
    ]
    learned = learn_library(
        lambda library: build_judge_with_library(replace(settings, folder=folder), library, backend),
        pairs, RuleEditor(backend, ReplyCache(None)), 3,
    )  # fmt: skip
    found, expected = json.loads(json.dumps(learned.to_dict())), SAID["improved"]["report"]
    for report in (found, expected):
        for when in ("before", "after"):
            report[f"untouched pairs, {when}"].pop("seconds_per_clip")
    assert found == expected
    assert {aspect: list(rules) for aspect, rules in learned.library.entries.items()} == SAID["improved"]["entries"]


@pytest.mark.parametrize("cached", [False, True])
def test_stills_are_graded_as_before(cached: bool, folder: Path) -> None:
    backend, said = ScriptedModel(), SAID["stills"]
    cache = with_answers(folder) if cached else ReplyCache(None)
    judge: Panel[Still] = Panel(backend, PanelSettings(), cache, subject=STILL_SUBJECT)
    assert (judge.name, judge.fingerprint) == (said["name"], said["fingerprint"])
    stills = [still(number) for number in range(3)]
    for aspect in STILL_ASPECTS:
        for found, expected in zip(judge.judge(stills, (aspect,)), said["verdicts"][aspect], strict=True):
            verdict = found.aspects[aspect]
            assert [verdict.score, verdict.reward, verdict.rationale, verdict.spread] == [
                expected["score"], expected["value"], expected["rationale"], expected["spread"]
            ]  # fmt: skip
            assert [dict(verdict.dimensions), dict(verdict.artefacts)] == [
                expected["dimensions"], expected["artefacts"]
            ]  # fmt: skip
            failure = None if verdict.failure is None else verdict.failure._asdict()
            assert failure == expected["failure"]
    assert {tuple(entry) for entry in backend.log} <= {tuple(entry) for entry in said["asked"]}
    assert {entry[3] for entry in backend.log} <= ({"lost"} if cached else {"kept", "lost"})


def test_the_measured_panel_is_the_same_judge_with_the_same_grades(folder: Path) -> None:
    said, calibration = SAID["measured"], Calibration.load(Path("calibration.json"))
    library = RubricLibrary({"motion": ("steadiness", "pose")})
    assert MeasuredPanel().fingerprint == said["fingerprint"]
    assert PoseCappedJudge(MeasuredPanel()).fingerprint == said["posed"]
    assert MeasuredPanel(calibration=calibration).fingerprint == said["calibrated"]
    assert MeasuredPanel(Experts.load().with_library(library)).fingerprint == said["library"]
    assert MeasuredStills().fingerprint == said["stills"]
    for found, expected in zip(MeasuredPanel(calibration=calibration).judge(clips()), said["verdicts"], strict=True):
        for aspect, verdict in found.to_dict()["aspects"].items():
            before = expected["aspects"][aspect]
            assert verdict["score"] == pytest.approx(before["score"], abs=1e-4)
            assert verdict["failure"] == before["failure"]


def test_certificates_and_the_ledger_are_read(folder: Path) -> None:
    judge = build_judge(load(JudgeSettings, Path("panel.json")))
    require_certificate(judge, [folder / "checked"])
    failed = Panel(ScriptedModel(), subject=STILL_SUBJECT)
    with pytest.raises(BadInput, match="failed the sanity set"):
        require_certificate(failed, [folder / "checked"])
    assert Ledger(folder / "ledger.jsonl").totals() == SAID["ledger"]
