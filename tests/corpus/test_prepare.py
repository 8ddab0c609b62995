"""Claims about turning videos into a corpus."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.data import astronaut

from flowportrait.cli import main
from flowportrait.config import override
from flowportrait.data.corpus import (
    CorpusIndex,
    FaceClip,
    SourceVideo,
    corpus_records,
    find_sources,
    read_corpus_clips,
    read_records,
    read_shard,
    recognize_layout,
    shard_key,
    write_shards,
)
from flowportrait.data.corpus_report import write_corpus_report
from flowportrait.data.extract import extract_clips, longest_usable_clip
from flowportrait.data.face_tracks import track_faces
from flowportrait.data.prepare import PreparationConfig, prepare_video
from flowportrait.data.quality_gates import ClipQuality, QualityGates, first_failed_gate
from flowportrait.errors import BadInput
from flowportrait.media.video import CutDetector, iter_frames
from flowportrait.media.write_video import write_video

GOOD = ClipQuality(
    frames=75, eyes=60.0, seen=1.0, yaw=10.0, sharpness=0.4, light=120.0, speech=0.9, sync=0.3, delay=0, peak=0.3
)
LOOSE = QualityGates(sync=-2, speech=0)


def face(count: int, shift: int = 0) -> Iterator[np.ndarray]:
    """A photo of a face that sways by a pixel a frame."""
    photo = cv2.resize(astronaut()[:320, 60:380], (256, 256), interpolation=cv2.INTER_AREA)
    for index in range(count):
        yield np.roll(photo, shift + abs(index % 16 - 8), axis=1)


def room(count: int) -> Iterator[np.ndarray]:
    """Grey nothing."""
    for _ in range(count):
        yield np.full((256, 256, 3), 90, np.uint8)


def syllables(seconds: float) -> np.ndarray:
    time = np.arange(round(seconds * 16_000)) / 16_000
    return (0.2 * np.sin(2 * np.pi * 140 * time) * (np.sin(2 * np.pi * 3 * time) > -0.3)).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shots of one face with a wall between them, and what cannot be used."""
    folder = tmp_path_factory.mktemp("corpus")
    videos = folder / "videos"
    videos.mkdir()
    write_video(videos / "two.mp4", [*face(30), *room(12), *face(28, 40)], syllables(2.8))
    write_video(videos / "wall.mp4", room(25), syllables(1))
    write_video(videos / "mute.mp4", face(25), None)
    (videos / "broken.mp4").write_bytes(b"no video")
    plan = PreparationConfig(gates=LOOSE)
    (folder / "out").mkdir()
    with CorpusIndex(folder / "out") as index:
        for source in find_sources([videos]):
            records, seconds = prepare_video(
                source, folder / "out", replace(plan, crops=64 if source.name == "two" else 0)
            )
            index.add(source.name, seconds, records)
    return folder


def test_each_shot_of_a_face_is_a_clip_in_its_place_with_its_sound(corpus: Path) -> None:
    records = corpus_records(corpus / "out")
    assert [record["name"] for record in records] == ["two@00", "two@01"]
    assert [record["start"] for record in records] == [0.0, pytest.approx(42 / 25, abs=0.05)]
    for record, frames in zip(records, (30, 28), strict=True):
        clip = FaceClip.load(corpus / "out" / "clips" / f"{record['name']}.safetensors")
        assert len(clip) == record["frames"] == pytest.approx(frames, abs=1)
        assert len(clip.audio) == 640 * len(clip)
        begin = round(record["start"] * 16_000)
        heard = syllables(2.8)[begin : begin + len(clip.audio)]
        assert np.corrcoef(clip.audio, heard)[0, 1] > 0.9
        assert clip.speech is not None
        assert len(clip.speech) == len(clip)


def test_every_rejection_has_a_reason_that_is_counted(corpus: Path) -> None:
    rejected = {record["name"]: record["reason"] for record in read_records(corpus / "out" / "rejected.jsonl")}
    assert rejected == {"broken": "unreadable", "mute": "no sound", "wall": "no face"}


def test_a_crop_shows_the_head_where_the_landmarks_say(corpus: Path) -> None:
    clip = FaceClip.load(corpus / "out" / "clips" / "two@01.safetensors")
    frames = list(iter_frames(corpus / "out" / "crops" / "two@01.mp4"))
    assert len(frames) == len(clip)
    assert frames[0].shape == (64, 64, 3)
    assert clip.crop is not None
    inside = (clip.landmarks[..., :2] - clip.crop[:2]) / clip.crop[2]
    assert inside.min() > 0.05
    assert inside.max() < 0.95
    from flowportrait.media.faces import FaceTracker

    with FaceTracker(still=True) as tracker:
        seen, _ = tracker.detect(cv2.resize(frames[5], (256, 256), interpolation=cv2.INTER_CUBIC))[0]
    assert np.abs(seen[:, :2] / 256 - inside[5]).mean() < 0.02


def test_shards_give_the_clips_back_and_are_the_same_twice(corpus: Path, tmp_path: Path) -> None:
    shards = write_shards(corpus / "out", 1)
    before = [shard.read_bytes() for shard in shards]
    assert [shard.read_bytes() for shard in write_shards(corpus / "out", 1)] == before
    again = [pair for shard in shards for pair in read_shard(shard)]
    assert [record["name"] for record, _ in again] == ["two@00", "two@01"]
    for (record, clip), (same, stored) in zip(again, read_corpus_clips(corpus / "out"), strict=True):
        assert record == same
        assert np.array_equal(clip.landmarks, stored.landmarks)
        assert np.array_equal(clip.audio, stored.audio)
    for shard in shards:
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    assert len(list(read_corpus_clips(tmp_path))) == 2
    with pytest.raises(BadInput, match="not a prepared corpus"):
        list(read_corpus_clips(tmp_path / "none"))


@given(st.text(alphabet="ab./@_-", min_size=1))
def test_a_shard_key_has_no_dot_and_no_folder(name: str) -> None:
    assert not set(shard_key(name)) & set("./")


def test_the_report_shows_kept_and_rejected_in_one_file(corpus: Path) -> None:
    told = write_corpus_report(corpus / "out")
    page = Path(told["report"]).read_text()
    assert told["rejected"] == {"unreadable": 1, "no sound": 1, "no face": 1}
    assert "no face: 1" in page
    assert page.count("data:image/") >= 4
    assert "http" not in page
    assert main(["prepare", "--inspect", str(corpus / "videos")]) == 2


def test_an_interrupted_video_is_repeated_whole(tmp_path: Path) -> None:
    with CorpusIndex(tmp_path) as index:
        index.add("a", 1.0, [{"name": "a", "source": "a"}])
        index._write("clips.jsonl", {"name": "b@00", "source": "b"})
    (tmp_path / "clips.jsonl").open("a").write('{"name": "b@01", "sou')
    again = CorpusIndex(tmp_path)
    assert again.done == {"a"}
    assert [record["name"] for record in read_records(tmp_path / "clips.jsonl")] == ["a"]


def test_corpora_of_before_are_read_and_continued(tmp_path: Path) -> None:
    (tmp_path / "clips.jsonl").write_text('{"name": "x/1", "speaker": "s", "split": "dev", "frames": 30}\n')
    (tmp_path / "rejected.jsonl").write_text('{"name": "x/2", "speaker": "s", "split": "dev", "rejected": "dark"}\n')
    assert CorpusIndex(tmp_path).done == {"x/1", "x/2"}
    clip = FaceClip(np.zeros((3, 478, 3), np.float32), np.zeros((3, 52)), np.zeros((3, 48, 64), np.uint8),
                np.array([64, 64]), np.zeros(1920, np.float32))  # fmt: skip
    clip.save(tmp_path / "old.safetensors")
    old = FaceClip.load(tmp_path / "old.safetensors")
    assert old.speech is None
    assert old.crop is None
    assert write_corpus_report(tmp_path)["rejected"] == {"unnamed": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"frames": 10}, "short"), ({"eyes": 12.0}, "small"), ({"seen": 0.9}, "lost"), ({"yaw": 60.0}, "turned"),
        ({"sharpness": 0.05}, "blurred"), ({"light": 20.0}, "dark"), ({"light": 240.0}, "bright"),
        ({"speech": 0.1}, "silent"), ({"sync": 0.0}, "unsynced"),
    ],
)  # fmt: skip
def test_each_gate_names_itself(change: dict[str, float], reason: str) -> None:
    assert first_failed_gate(GOOD, QualityGates()) is None
    failed = first_failed_gate(replace(GOOD, **change), QualityGates())
    assert failed is not None
    assert failed[0] == reason


def test_gates_are_set_by_name_and_a_clip_too_short_for_lips_is_not_judged_by_them() -> None:
    assert first_failed_gate(replace(GOOD, yaw=40.0), override(QualityGates(), ["yaw=30"])) is not None
    assert first_failed_gate(replace(GOOD, sync=None, delay=None, peak=None), QualityGates()) is None
    with pytest.raises(BadInput, match="did you mean 'yaw'"):
        override(QualityGates(), ["yew=30"])


def test_blur_and_darkness_are_seen(tmp_path: Path) -> None:
    changes = {
        "sharp": lambda frame: frame,
        "blurred": lambda frame: cv2.GaussianBlur(frame, (0, 0), 3),
        "dark": lambda frame: frame // 6,
    }
    reasons = {}
    for name, change in changes.items():
        path = tmp_path / f"{name}.mp4"
        write_video(path, map(change, face(22)), syllables(0.9))
        found, _ = extract_clips(SourceVideo(path, name, "s", "train"), LOOSE)
        reasons[name] = found[0].record.get("reason")
    assert reasons == {"sharp": None, "blurred": "blurred", "dark": "dark"}
    with pytest.raises(BadInput, match=r"of no use for training: .*brightness"):
        longest_usable_clip(tmp_path / "dark.mp4", LOOSE)


def test_two_faces_are_two_tracks_that_do_not_swap() -> None:
    one = cv2.resize(astronaut()[:320, 60:380], (240, 240), interpolation=cv2.INTER_AREA)
    tracks = list(track_faces(np.hstack([one, one[:, ::-1]]) for _ in range(8)))
    assert len(tracks) == 2
    assert {len(track) for track in tracks} == {8}
    for track in tracks:
        places = np.array([points[:, 0].mean() for points in track.landmarks if points is not None])
        assert np.ptp(places) < 5


def test_a_cut_is_found_and_motion_is_not_one() -> None:
    cut = CutDetector()
    photo = astronaut()
    moving = [np.roll(photo, 10 * i, axis=1) for i in range(12)]
    assert not any(cut(frame) for frame in moving)
    assert cut(255 - moving[-1])
    assert not any(cut(255 - frame) for frame in reversed(moving))


def test_a_large_picture_is_cut_where_a_small_one_is() -> None:
    photo = astronaut()[:320, :400]
    shots = [np.roll(photo, step, 1) // darker for darker in (1, 2, 3) for step in range(8)]
    small, large = CutDetector(), CutDetector()
    found = [(small(frame), large(np.repeat(np.repeat(frame, 3, 0), 3, 1))) for frame in shots]
    assert found == [(index in (8, 16),) * 2 for index in range(24)]


@pytest.mark.parametrize(
    ("layout", "path", "speaker", "split"),
    [
        ("voxceleb2", "vox2/dev/mp4/id00012/21Uxsk56VDQ/00001.mp4", "id00012", "train"),
        ("voxceleb2", "test/mp4/id04657/Qx-XMlb5i1Y/00109.mp4", "id04657", "test"),
        ("lrs3", "pretrain/0Fi83BHQsMA/00002.mp4", "0Fi83BHQsMA", "train"),
        ("lrs3", "lrs3/test/0Fi83BHQsMA/00002.mp4", "0Fi83BHQsMA", "test"),
        ("hdtf", "clips/WDA_BarackObama_000.mp4", "WDA_BarackObama", "train"),
        ("hdtf", "WRA_JohnBoozman1_000.mp4", "WRA_JohnBoozman", "train"),
        ("hdtf", "RD_Radio10_000.mp4", "RD_Radio10", "train"),
        ("mead", "MEAD/M003/video/front/angry/level_1/001.mp4", "M003", "train"),
        ("grid", "s12/video/mpg_6000/bbaf2n.mpg", "s12", "train"),
        ("grid", "grid/s1/swwv9a.mp4", "s1", "train"),
    ],
)
def test_the_usual_layouts_tell_the_speaker(layout: str, path: str, speaker: str, split: str) -> None:
    found = recognize_layout([path])
    assert found is not None
    assert found.name == layout
    assert found.match(path) == (speaker, split)


def test_an_unknown_layout_names_the_folder_and_split_tsv_overrules(tmp_path: Path) -> None:
    for name in ("anna/1.mp4", "anna/2.mp4", "ben/1.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert {source.name: source.speaker for source in find_sources([tmp_path])} == {
        "anna/1": "anna", "anna/2": "anna", "ben/1": "ben",
    }  # fmt: skip
    held = {source.speaker: source.split for source in find_sources([tmp_path], hold_out=0.999)}
    assert set(held.values()) == {"dev"}
    (tmp_path / "split.tsv").write_text("file\tspeaker\tsplit\nanna/1.mp4\tx\tdev\n")
    assert [(source.speaker, source.split) for source in find_sources([tmp_path])] == [("x", "dev")]
    with pytest.raises(BadInput, match="no layout 'vox'"):
        find_sources([tmp_path], layout="vox")


def test_sound_that_lies_apart_is_found(tmp_path: Path) -> None:
    video = tmp_path / "M003" / "video" / "front" / "happy" / "level_1" / "001.mp4"
    sound = tmp_path / "M003" / "audio" / "happy" / "level_1" / "001.wav"
    for path in (video, sound):
        path.parent.mkdir(parents=True)
    write_video(video, face(22), None)
    from scipy.io import wavfile

    wavfile.write(sound, 16_000, syllables(0.9))
    (source,) = find_sources([tmp_path])
    assert source.sound == sound
    found, _ = extract_clips(source, LOOSE)
    assert found[0].clip is not None
    assert np.abs(found[0].clip.audio).max() > 0.1


@pytest.mark.data
def test_sound_that_is_clearly_late_is_put_right(tmp_path: Path) -> None:
    path = Path(os.environ["FLOWPORTRAIT_DATA"]) / "clips" / "hdtf_pose_source2_60s.mp4"
    from flowportrait.media.audio import read_audio

    wave, frames = read_audio(path), list(islice(iter_frames(path), 100))
    shown = longest_usable_clip(write(tmp_path / "right.mp4", frames, wave))
    late = np.concatenate([np.zeros(6 * 640, np.float32), wave])
    found, _ = extract_clips(
        SourceVideo(write(tmp_path / "late.mp4", frames, late), "late", "s", "train"), QualityGates()
    )
    assert found[0].record["put_right"] == pytest.approx(6, abs=1)
    assert "rejected" not in found[0].record
    assert found[0].clip is not None
    shift = (found[0].record["put_right"] - 6) * 640
    same = slice(1000, -1000)
    assert np.corrcoef(np.roll(found[0].clip.audio, shift)[same], shown.audio[same])[0, 1] > 0.95


def write(path: Path, frames: list[np.ndarray], audio: np.ndarray) -> Path:
    write_video(path, frames, audio)
    return path


@pytest.mark.data
def test_the_sound_of_another_sentence_is_rejected() -> None:
    from flowportrait.data.quality_gates import sync_margin

    data = Path(os.environ["FLOWPORTRAIT_DATA"])
    rows = [line.split("\t") for line in (data / "split.tsv").read_text().splitlines()[1:]]
    files = [data / file for file, _, split in rows if split == "dev" and file.startswith("grid")][:4]
    clips = [longest_usable_clip(file, QualityGates(sync=-2)) for file in files]
    right = [sync_margin(clip)[0] for clip in clips]
    wrong = [sync_margin(replace(clip, audio=other.audio))[0] for clip, other in pairwise(clips)]
    assert min(right) > QualityGates().sync
    assert np.mean(wrong) < np.mean(right) / 2


def test_prepare_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--output", str(tmp_path / "out")]
    assert main(["prepare", *out]) == 2
    assert main(["prepare", str(tmp_path), *out]) == 2
    assert main(["prepare", str(tmp_path), *out, "--crops", "33"]) == 2
    assert main(["prepare", str(tmp_path), *out, "--hold-out", "1.5"]) == 2
    assert capsys.readouterr().err.count("\n") == 4


@pytest.mark.slow
def test_an_interrupted_run_ends_its_processes_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import multiprocessing

    from flowportrait import parallel
    from flowportrait.data import prepare as module

    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_bytes(b"no video")
    monkeypatch.setattr(parallel, "ITEMS_PER_WORKER", 1)
    sources = find_sources([tmp_path])
    results = module._prepare_each(sources, tmp_path / "out", PreparationConfig(workers=1))
    records, _ = next(results)
    assert records[0]["name"] == "a"
    assert records[0]["reason"] == "unreadable"
    started = multiprocessing.active_children()
    assert started
    results.close()
    for process in started:
        process.join(20)
    assert not any(process.is_alive() for process in started)
