"""Claims about the examination of a judge: repetition is not the cache, and the cost is that of the ledger."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowportrait.errors import BadInput
from flowportrait.judges.calibration import intraclass_correlation
from flowportrait.judges.client import refused_media
from flowportrait.judges.clips import JudgedClip
from flowportrait.judges.examination import Examination, examine_judge
from flowportrait.judges.measured_panel import MeasuredPanel, PoseCappedJudge
from flowportrait.judges.messages import MediaFormats
from flowportrait.judges.panel import Panel
from flowportrait.judges.rubric import CLIP_ASPECTS
from flowportrait.judges.sanity import KnownDamage, SanitySet
from tests.judge_server import USAGE, FaultyServer
from tests.judges.test_judge_client import clip, panel, scripted


def darker(item: JudgedClip, strength: float, seed: int) -> JudgedClip:
    frames = (item.frames * (1 - strength)).astype(np.uint8)
    return JudgedClip(frames, item.audio, f"{item.name} {strength}", known_landmarks=item.known_landmarks)


def unchecked(items: Sequence[JudgedClip]) -> list[JudgedClip]:
    return list(items)


SMALL = SanitySet[JudgedClip]({"motion": [KnownDamage("dark", "", (0.5,), darker)]}, unchecked, 1, "clips")


def grades(scores: Sequence[int]) -> Any:
    """Replies with these scores in turn, again and again."""
    lock, turn = threading.Lock(), iter(range(10**6))

    def reply(body: dict[str, Any]) -> str:
        with lock:
            score = scores[next(turn) % len(scores)]
        return f'{{"rationale": "r", "errors": [], "score": {score}}}'

    return reply


def test_rounds_ask_for_other_samples_and_a_rerun_reports_the_same_from_the_cache(tmp_path: Path) -> None:
    clips = [clip(seed) for seed in range(3)]
    with FaultyServer(scripted([]), grades((2, 3, 4, 4, 5))) as server:
        found = examine_judge(panel(server, tmp_path, concurrency=1)[0], clips, SMALL, rounds=2)
        asked = len(server.bodies)
        # clean in all aspects, damaged in one aspect, and the second round; the first round is the clean one
        assert asked == 3 * 3 + 3 + 3 * 3
        again = examine_judge(panel(server, tmp_path, concurrency=1)[0], clips, SMALL, rounds=2)
        assert len(server.bodies) == asked
    assert found.repetitions == again.repetitions
    motion = next(one for one in found.repetitions if one.aspect == "motion")
    assert (motion.items, motion.rounds) == (3, 2)
    assert motion.sd is not None
    assert motion.sd > 0, "the second round is a copy of the first"
    assert found.cost is not None
    assert again.cost is not None
    assert found.cost.tokens_in == again.cost.tokens_in == 3 * USAGE["prompt_tokens"]
    assert found.cost.tokens_out == 3 * USAGE["completion_tokens"]
    assert found.cost.dollars_per_1000 == pytest.approx(1000 * 3 * (100 * 2.0 + 7 * 8.0) / 1e6)
    assert found.cost.requests == 3
    assert found.cost.answered == 1
    # The first of both rounds is cached: the clock says nothing about the cost, the ledger's durations do.
    assert found.cost.seconds is None
    assert found.cost.request_seconds is not None


def test_the_figures_of_repetition_are_those_of_the_scores() -> None:
    class Drifting(MeasuredPanel):
        """Grades 2 and 4 for two clips, half a grade higher in every other call."""

        calls = 0

        def judge(self, clips: Sequence[JudgedClip], aspects: Any = None, /) -> Any:
            from flowportrait.judges.verdicts import AspectVerdict, Verdict

            self.calls += 1
            higher = 0.5 * (self.calls % 2)
            return [
                Verdict(one.name, "", "d", "measured panel", {
                    aspect: AspectVerdict(aspect, 2 + 2 * index + higher, 3, "measurement") for aspect in CLIP_ASPECTS
                }) for index, one in enumerate(clips)
            ]  # fmt: skip

    found = examine_judge(Drifting(), [clip(0), clip(1)], SMALL, rounds=4)
    for one in found.repetitions:
        assert one.sd == pytest.approx(np.std([2, 2.5, 2, 2.5], ddof=1))
        assert one.icc == pytest.approx(intraclass_correlation(np.array([[2, 2.5, 2, 2.5], [4, 4.5, 4, 4.5]])))
    assert [one.aspect for one in found.repetitions] == ["motion", "overall"]
    assert found.cost is not None
    assert (found.cost.requests, found.cost.dollars_per_1000) == (0, None)
    assert "asked again / overall" in found.to_lines("clips")


def test_every_round_finds_the_faces_anew_so_that_the_time_is_that_of_unseen_clips() -> None:
    class Tracking(MeasuredPanel):
        found: list[bool]
        last = ""

        def judge(self, clips: Sequence[JudgedClip], aspects: Any = None, /) -> Any:
            self.found.append("digest" in vars(clips[0]))
            self.last = clips[0].digest
            return super().judge(clips, aspects)

    own, judge = clip(frames=30), Tracking()
    judge.found = []
    examine_judge(judge, [own], SMALL, rounds=2)
    assert judge.found[0] is False
    assert judge.found[-2:] == [False, False]
    assert judge.last == own.digest


def test_one_round_is_no_repetition_and_none_is_left_out() -> None:
    with FaultyServer(scripted([]), grades((3,))) as server:
        with pytest.raises(BadInput, match="at least twice"):
            examine_judge(panel(server)[0], [clip()], SMALL, rounds=1)
        found = examine_judge(panel(server)[0], [clip()], SMALL, rounds=0)
    assert found == Examination(found.certificate)
    assert not found.certificate.passed, "a judge that always says 3 passes"
    assert "cost" not in found.to_dict()


def test_the_pose_check_hands_repetition_and_cost_of_its_judge_on() -> None:
    with FaultyServer(scripted([])) as server:
        inner = panel(server)[0]
        checked = PoseCappedJudge(inner)
        assert checked.cache is inner.cache
        again = checked.retest(2).inner
        assert isinstance(again, Panel)
        assert again.first_sample == 2
        assert again.fingerprint == inner.fingerprint
        assert inner.first_sample == 0


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("image input is not supported - hint: if this is unexpected, you may need to provide the mmproj", "image"),
        ("audio input is not supported - hint: if this is unexpected, you may need to provide the mmproj", "audio"),
        ("unsupported content[].type", "audio"),
        ("At most 0 image(s) may be provided in one prompt.", "image"),
        ("Qwen/Qwen3-4B is not a multimodal model", "audio"),
        ("Invalid content type. image_url is only supported by certain models.", "image"),
        ("response_format of type json_schema is not supported", ""),
        ("logprobs are not supported by this model", ""),
        ("the image could not be decoded", ""),
        ("CUDA out of memory while encoding an image", ""),
        ("video input is not supported", ""),
    ],
)
def test_which_part_a_server_refuses_is_read_from_its_words(message: str, kind: str) -> None:
    assert refused_media(message, MediaFormats()) == kind
