"""Intervals over speakers, joined clips and true lips: what differs by speaker alone is not certain, joins are not
scored, and lips are right when they are the speaker's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from flowportrait.data.prompts import read_prompts
from flowportrait.errors import BadInput
from flowportrait.evaluation.api import evaluate
from flowportrait.evaluation.comparison import compare_systems, metrics_by_group, read_clip_labels
from flowportrait.evaluation.joins import (
    JOIN_MARGIN_FRAMES,
    cut_tracks,
    join_rows,
    read_joins,
    scored_frames,
    scored_stretches,
)
from flowportrait.evaluation.lip_sync import scored_windows, sync_from_embeddings
from flowportrait.evaluation.measure import measure_video
from flowportrait.evaluation.statistics import (
    bootstrap_mean,
    bootstrap_speakers,
    jackknife,
    smallest_visible_difference,
)
from flowportrait.evaluation.tracking import track_file
from flowportrait.evaluation.true_lips import closure_frames, compare_lips, measure_closure
from flowportrait.media.write_video import write_video
from tests.evaluation.test_evaluate_run import frames, sound

# --- Statistics ---


def test_many_clips_of_few_speakers_are_as_certain_as_few_speakers() -> None:
    means = np.random.default_rng(0).normal(size=6)
    values, speakers = np.repeat(means, 30), [f"s{i}" for i in range(6) for _ in range(30)]
    found, of_means, of_clips = bootstrap_speakers(values, speakers), bootstrap_mean(means), bootstrap_mean(values)
    assert (found.mean, found.low, found.high) == pytest.approx((of_means.mean, of_means.low, of_means.high))
    assert (found.clips, found.speakers) == (180, 6)
    assert found.high - found.low > 4 * (of_clips.high - of_clips.low)


def test_a_speaker_with_many_clips_counts_as_much_as_one_with_few() -> None:
    found = bootstrap_speakers(np.array([1.0] * 9 + [0.0]), ["a"] * 9 + ["b"])
    assert found.mean == pytest.approx(0.5)


def test_there_is_no_interval_over_one_speaker() -> None:
    found = bootstrap_speakers(np.arange(5.0), ["a"] * 5)
    assert (found.low, found.high, found.speakers) == (None, None, 1)


def test_the_smallest_visible_difference_is_found_in_four_of_five_experiments() -> None:
    rng, count = np.random.default_rng(0), 14
    spread = rng.normal(size=count)
    spread = (spread - spread.mean()) / spread.std(ddof=1)
    visible = smallest_visible_difference(spread)
    found = ttest_1samp(rng.normal(visible, 1, (4000, count)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.03)
    missed = ttest_1samp(rng.normal(visible / 2, 1, (4000, count)), 0, axis=1).pvalue < 0.05
    assert missed.mean() < 0.4


def test_the_smallest_visible_difference_needs_three_speakers_and_counts_speakers_not_clips() -> None:
    values = np.random.default_rng(0).normal(size=8)
    assert smallest_visible_difference(values, ["a"] * 4 + ["b"] * 4) is None
    twice, names = np.repeat(values, 2), [f"s{i}" for i in range(8) for _ in range(2)]
    assert smallest_visible_difference(twice, names) == pytest.approx(smallest_visible_difference(values))


def test_a_jackknife_over_speakers_leaves_out_one_speaker_at_a_time() -> None:
    left: list[set[str]] = []
    items = [(name, value) for name in "abc" for value in range(4)]
    jackknife(items, lambda kept: left.append({name for name, _ in kept}) or 0.0, speakers=[n for n, _ in items])
    assert sorted(map(sorted, left)) == [["a", "b"], ["a", "b", "c"], ["a", "c"], ["b", "c"]]


def rows_of(values: dict[str, float]) -> dict[str, dict[str, float]]:
    return {clip: {"frames": 30, "frames_without_face": 0, "ler": value} for clip, value in values.items()}


def test_a_comparison_over_speakers_tests_speakers_and_says_what_it_could_have_shown() -> None:
    rng = np.random.default_rng(1)
    base = {f"{s}-{n}": float(rng.uniform()) for s in range(7) for n in range(5)}
    better = {clip: value - 0.1 * (1 + int(clip[0])) for clip, value in base.items()}
    speakers = {clip: clip[0] for clip in base}
    found = compare_systems({"a": rows_of(base), "b": rows_of(better)}, "a", speakers=speakers)
    difference = next(d for d in found.differences if d.metric == "ler")
    assert difference.difference.speakers == 7
    assert difference.difference.mean == pytest.approx(-0.4)
    assert difference.p == pytest.approx(2 / 2**7)  # seven speakers, not 35 clips
    assert difference.visible == pytest.approx(smallest_visible_difference(-0.1 * np.arange(1.0, 8)))
    with pytest.raises(BadInput, match="not said who speaks in 6-4"):
        compare_systems({"a": rows_of(base)}, speakers={c: s for c, s in speakers.items() if c != "6-4"})


def test_groups_count_speakers_and_speaker_and_joins_are_no_groups(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("clip,language,speaker,joins\na,Arabic,x,29;58\nb,Arabic,x,\nc,Polish,y,\n")
    labels = read_clip_labels(tmp_path / "groups.csv")
    found = metrics_by_group({"ours": rows_of({"a": 0.0, "b": 1.0, "c": 0.5})}, labels, [])
    assert set(found) == {"language"}
    arabic = found["language"]["Arabic"]["ours"]
    assert (arabic["clips"], arabic["speakers"], arabic["metrics"]["ler"]) == (2, 1, [0.5, None, None])
    assert read_joins(labels["joins"]["a"], "a") == (29, 58)


def test_prompts_may_say_who_speaks(tmp_path: Path) -> None:
    for name in ("a.png", "a.wav"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "prompts.jsonl").write_text('{"image": "a.png", "audio": "a.wav", "speaker": "Ann"}\n')
    assert read_prompts(tmp_path)[0].speaker == "Ann"
    (tmp_path / "prompts.jsonl").write_text('{"image": "a.png", "audio": "a.wav", "language": "en"}\n')
    with pytest.raises(BadInput, match='"id" and "speaker" if you like'):
        read_prompts(tmp_path)


# --- Joins ---


@given(st.lists(st.integers(1, 99), max_size=4, unique=True).map(sorted))
def test_what_is_scored_is_never_near_a_join_and_everything_else_is(joins: list[int]) -> None:
    scored = scored_frames(100, joins)
    for frame in range(100):
        near = any(place - JOIN_MARGIN_FRAMES <= frame < place + JOIN_MARGIN_FRAMES for place in joins)
        assert scored[frame] != near
    inside = np.zeros(100, bool)
    for stretch in scored_stretches(100, joins):
        assert scored[stretch].all()
        inside[stretch] = True
    assert not (inside & ~scored).any()


@pytest.mark.parametrize("text", ["29;x", "30;20", "0;30", "30;30"])
def test_joins_that_are_no_rising_frames_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="The joins of clip7"):
        read_joins(text, "clip7")


def test_stretches_are_averaged_by_their_frames_and_counts_added() -> None:
    found = join_rows([(30, {"jerk": 1.0, "blinks": 2, "tfi": None}), (10, {"jerk": 5.0, "blinks": 1, "tfi": 3.0})])
    assert found == {"jerk": 2.0, "blinks": 3, "tfi": 3.0}


def test_lips_that_are_late_near_a_join_alone_are_in_sync_where_it_is_scored() -> None:
    rng = np.random.default_rng(0)
    voice = rng.normal(size=(96, 8))
    voice /= np.linalg.norm(voice, axis=1, keepdims=True)
    face, joins = voice.copy(), (40, 70)
    for place in joins:
        face[place - 10 : place + 6] = rng.permutation(voice)[:16]
    counted = scored_windows(scored_frames(100, joins), 5, 15)
    assert counted.sum() < len(counted)
    masked, whole = sync_from_embeddings(face, voice, 15, counted), sync_from_embeddings(face, voice, 15)
    assert masked.distance[15] == pytest.approx(0, abs=1e-9)
    assert masked.errors == 0
    assert whole.distance[15] > 0.2
    assert masked.windows == counted.sum()


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face that jumps at frame 30 to another place."""
    folder = tmp_path_factory.mktemp("joined")
    pictures = frames(60)
    jumped = [*pictures[:30], *(np.roll(picture, 25, axis=1) for picture in pictures[30:])]
    for name in ("real", "ours"):
        (folder / name).mkdir()
    write_video(folder / "real" / "a.mp4", jumped, sound(60))
    write_video(folder / "ours" / "a.mp4", pictures, sound(60))
    return folder


def test_a_jump_at_a_join_is_motion_only_where_the_join_is_not_known(joined: Path, tmp_path: Path) -> None:
    jumping, steady = (joined / name / "a.mp4" for name in ("real", "ours"))
    unmarked, marked = measure_video(jumping, tmp_path).row, measure_video(jumping, tmp_path, joins=(30,)).row
    calm = measure_video(steady, tmp_path, joins=(30,)).row
    assert unmarked["theval_head_motion"] > 3 * marked["theval_head_motion"]
    assert marked["theval_head_motion"] == pytest.approx(calm["theval_head_motion"], rel=0.5)


def test_evaluate_reads_speakers_and_joins_from_the_table_of_groups(joined: Path, tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("clip,speaker,joins\na,Ann,30\n")
    report = evaluate({"ours": joined / "ours"}, joined / "real", baseline="ours", groups=table, cache=tmp_path)
    estimate = report.comparison.estimates["ours"]["lower_face_distance"]
    assert (estimate.clips, estimate.speakers) == (1, 1)
    assert report.rows["ours"]["a"]["compared_frames"] == 60 - 2 * JOIN_MARGIN_FRAMES
    assert any("over 1 speakers" in remark for remark in report.summary["remarks"])


# --- True lips ---


def test_lips_that_are_the_true_ones_are_right_and_still_ones_are_not(joined: Path, tmp_path: Path) -> None:
    tracked = track_file(joined / "ours" / "a.mp4", tmp_path)
    opened = tracked.landmarks.copy()
    opened[:, [14, 17, 152], 1] += 6 * (1 + np.sin(np.arange(60) / 2))[:, None]
    talking = replace(tracked, landmarks=opened)
    same = compare_lips(talking, talking)
    assert same["lower_face_distance"] == same["lip_motion_distance"] == 0
    assert (same["opening_correlation"], same["opening_ratio"]) == pytest.approx((1, 1))
    still = replace(tracked, landmarks=np.repeat(tracked.landmarks[:1], 60, 0))
    found = compare_lips(still, talking)
    assert found["opening_correlation"] == 0
    assert found["lip_motion_distance"] > 0.1
    late = replace(tracked, landmarks=np.roll(opened, 6, axis=0))
    assert compare_lips(late, talking)["opening_correlation"] < 0


def test_closures_are_where_the_words_have_lips_together() -> None:
    words = [(0, 10, "sil"), (10, 16, "bin"), (16, 20, "red"), (20, 24, "by"), (24, 30, "m"), (30, 36, "soon")]
    assert closure_frames(words) == [10, 20, 30]


def test_lips_that_never_meet_close_at_no_sound_and_sounds_at_joins_do_not_count(joined: Path, tmp_path: Path) -> None:
    tracked = track_file(joined / "ours" / "a.mp4", tmp_path)
    landmarks = tracked.landmarks.copy()
    landmarks[:, 14] = landmarks[:, 13] + np.array([0, 9, 0])
    landmarks[19:22, 14] = landmarks[19:22, 13]
    found = measure_closure(replace(tracked, landmarks=landmarks), [10, 20, 30], joins=(30,))
    assert (found["closure"], found["closure_sounds"]) == (0.5, 2)
    assert measure_closure(tracked, []) == {}


def test_a_stretch_has_the_frames_sound_and_crops_of_its_part(joined: Path, tmp_path: Path) -> None:
    tracked = track_file(joined / "ours" / "a.mp4", tmp_path)
    part = cut_tracks(tracked, slice(36, 60))
    assert len(part) == len(part.mouth) == 24
    assert len(part.flow) == len(part.still) == 23
    assert len(part.audio) == 640 * 24
    np.testing.assert_array_equal(part.audio, tracked.audio[640 * 36 :])
    np.testing.assert_array_equal(part.crop_at + 36, tracked.crop_at[tracked.crop_at >= 36])
