"""Claims about one dataset of preferences: files of version 0.1 say to every reader what they said then."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from flowportrait.errors import BadInput
from flowportrait.human_study.analysis import analyse_study
from flowportrait.judges.learning import read_labelled_pairs
from flowportrait.media.faces import FaceTracker
from flowportrait.media.video import read_clip
from flowportrait.preferences.build_pairs import build_pairs_from_damage
from flowportrait.preferences.clips import read_motion_mel
from flowportrait.preferences.dataset import LABELS, NOT_JUDGED, Label, PreferenceDataset, PreferencePair, read_pairs
from flowportrait.preferences.reward_model import load_pair_batches
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rl.offline_data import OfflineDataConfig, labels_to_scores, read_preference_groups
from tests import TESTS
from tests.study_browser import videos

EARLIER = TESTS / "data" / "v0.1"
GOOD = {"version": 2, "prompt": "p", "first": "x", "second": "y", "labels": {"sync": "first"}, "source": "study"}
AS_READ = json.loads((EARLIER / "pairs" / "as_read.json").read_text())


@pytest.mark.parametrize("name", AS_READ)
def test_pairs_of_version_1_say_what_their_readers_heard(name: str) -> None:
    expected: list[dict[str, Any]] = AS_READ[name]
    pairs = read_pairs(EARLIER / "pairs" / f"{name}.jsonl")
    assert len(pairs) == len(expected)
    for pair, row in zip(pairs, expected, strict=True):
        assert pair.clips == (row["first"], row["second"])
        assert {k: labels_to_scores(torch.tensor(v.value)).tolist() for k, v in pair.labels.items()} == row["scores"]
        codes = [{1.0: 1, 0.5: 0, 0.0: -1}.get(value, 2) for value in pair.label_values()]
        assert codes == row["codes"]
        points = [[None if math.isnan(value) else value for value in side] for side in pair.point_values()]
        assert points == row["points"]


def rounded(value: Any) -> Any:
    """Figures to twelve places: the last digits depend on the processor."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 12) if isinstance(value, float) else value


def test_answers_of_version_1_are_analysed_as_then(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    for name in ("study.json", "answers.sqlite"):
        (tmp_path / name).write_bytes((EARLIER / "study" / name).read_bytes())
    for one in json.loads((tmp_path / "study.json").read_text())["comparisons"]:
        for side in ("a", "b"):
            (tmp_path / "media" / one[side]).touch()
    found = json.loads(json.dumps(analyse_study(tmp_path, tmp_path / "out")))
    del found["identity"], found["clustered"]  # intervals that version 1 did not have
    assert rounded(found) == rounded(json.loads((EARLIER / "study" / "analysis.json").read_text()))
    assert read_pairs(tmp_path / "pairs.jsonl") == read_pairs(EARLIER / "pairs" / "study.jsonl")


def test_a_label_is_the_share_of_the_preference_that_the_first_clip_gets() -> None:
    assert [label.value + label.opposite.value for label in LABELS] == [1, 1, 1]
    assert [Label.from_margin(margin, 0.5) for margin in (0.6, -0.6, 0.5)] == list(LABELS)
    pair = PreferencePair("p", "x", "y", {"sync": Label.SECOND}, "study", margins={"sync": -2.0})
    assert pair.label_values(("sync",)) == [Label.SECOND]
    assert math.isnan(pair.label_values(("motion",))[0])
    assert math.isnan(NOT_JUDGED)
    assert pair.swapped() == PreferencePair("p", "y", "x", {"sync": Label.FIRST}, "study", margins={"sync": 2.0})
    assert pair.with_clips({"x": 1, "y": 2}).clips == (1, 2)


def test_lines_of_both_versions_stand_in_one_file_and_are_written_as_the_newer(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text((EARLIER / "pairs" / "stated.jsonl").read_text() + json.dumps(GOOD) + "\n")
    dataset = PreferenceDataset.load(tmp_path)
    assert len(dataset) == 4
    assert dataset.files == (path,)
    dataset.save(path)
    assert {json.loads(line)["version"] for line in path.read_text().splitlines()} == {2}
    assert PreferenceDataset.load(path) == dataset
    assert PreferenceDataset.load(path)[1:].pairs == dataset.pairs[1:]


def test_files_of_several_folders_make_one_dataset_of_absolute_paths(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pairs.jsonl").write_text(json.dumps(GOOD) + "\n")
        (tmp_path / name / "x").write_text(name)
    dataset = PreferenceDataset.load(tmp_path / "one", tmp_path / "two" / "pairs.jsonl")
    assert [(dataset.folder / pair.first).read_text() for pair in dataset] == ["one", "two"]
    assert len(dataset.clip_names) == 4


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"version": 3}, "version 3 is not known; this FlowPortrait reads versions 1 to 2"),
        ({"version": True}, "version True is not known"),
        ({"a": "x"}, "unknown field 'a'"),
        ({"first": ""}, "'first' is missing"),
        ({"labels": {"sync": "A"}}, "sync is 'A', but must be one of first, second, tie"),
        ({"labels": ["first"]}, "'labels' must be an object such as"),
        ({"points": {"a": {"sync": 4}}}, "'points' must be an object with the keys first and second"),
        ({"points": {"second": {"sync": 0}}}, "second has 0 points for sync, but points lie between 1 and 5"),
        ({"margins": {"sync": math.inf}}, "the margin of sync is inf, which is no finite number"),
        ({"margins": {"beauty": 1}}, "unknown aspect 'beauty' in the margins"),
    ],
)
def test_what_is_wrong_with_a_line_of_version_2_is_named(
    tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(GOOD | changed) + "\n")
    with pytest.raises(BadInput, match=re.escape(f"line 1: {sentence}")):
        PreferenceDataset.load(tmp_path)


def test_a_face_is_tracked_once_for_all_readers_of_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, step in (("slow", 1), ("fast", 4)):
        videos(tmp_path / name, clips=1, step=step)
    line = GOOD | {"first": "slow/clip0.mp4", "second": "fast/clip0.mp4"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line) + "\n")
    trackers: list[FaceTracker] = []
    begin = FaceTracker.__init__

    def counted(self: FaceTracker, *options: Any, **named: Any) -> None:
        trackers.append(self)
        begin(self, *options, **named)

    monkeypatch.setattr(FaceTracker, "__init__", counted)
    dataset = PreferenceDataset.load(tmp_path)
    (batch,), unreadable = load_pair_batches(dataset)
    assert not unreadable
    assert len(trackers) == 2
    groups, files = read_preference_groups([tmp_path], OfflineDataConfig())
    assert files == [*dataset.files, *(tmp_path / name for name in dataset.clip_names)]
    (stated,) = read_labelled_pairs(dataset)
    build_pairs_from_damage([tmp_path / "slow" / "clip0.mp4"], tmp_path / "damaged", 1, ["seam"])
    assert len(trackers) == 2
    # All of them, and who looks at the frames itself, see the same motion.
    frames, audio = read_clip(tmp_path / "slow" / "clip0.mp4")
    assert audio is not None
    motion = RewardBatch.from_frames([frames], [audio]).motion[0]
    assert len(trackers) == 3
    assert torch.equal(batch.first[0], motion)
    assert torch.equal(groups[0].clips[0].motion, motion)
    assert torch.equal(stated.clips[0].batch.motion[0], motion)
    assert torch.equal(read_motion_mel(tmp_path / "slow" / "clip0.mp4").motion, motion)
