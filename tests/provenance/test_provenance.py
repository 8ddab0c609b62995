"""Claims about what a written video says of itself."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.data import astronaut

from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.media.audio import Sound
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.provenance import manifest as credentials
from flowportrait.provenance.inspection import inspect_provenance
from flowportrait.provenance.manifest import (
    SigningCredential,
    VideoOrigin,
    find_credential,
    read_credential,
    read_signature,
    self_signed,
    sign_video,
)
from flowportrait.provenance.publish import Provenance, write_video_with_provenance
from flowportrait.provenance.watermark import (
    FALSE_ALARM_RATE,
    Watermark,
    add_watermark,
    find_watermark,
    watermark_pattern,
    watermark_tile,
)

VOICE = (0.1 * np.sin(np.arange(6400) / 9)).astype(np.float32)


def clip(count: int = 10, size: int = 512) -> Iterator[np.ndarray]:
    """A photo that drifts, as a head does, before a wall that does not."""
    photo = cv2.resize(astronaut(), (size, size), interpolation=cv2.INTER_AREA)
    for index in range(count):
        frame = photo.copy()
        middle = slice(size // 4, 3 * size // 4)
        frame[middle, middle] = np.roll(photo, index, 1)[middle, middle]
        yield frame


@pytest.fixture(scope="module")
def own() -> SigningCredential:
    return self_signed()


def rewritten(tmp_path: Path, frames: Iterator[np.ndarray], crf: int) -> Iterator[np.ndarray]:
    """Frames as they come back from one more encoding."""
    write_video(tmp_path / "again.mp4", frames, None, crf=crf)
    return iter_frames(tmp_path / "again.mp4")


def half(frame: np.ndarray) -> np.ndarray:
    return cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def test_the_mark_is_three_steps_of_255_at_most_and_means_nothing_on_average() -> None:
    frame = astronaut()
    change = Watermark(512, 512)(frame).astype(int) - frame
    assert 1 <= np.abs(change).max() <= 3
    assert abs(change.mean()) < 0.05
    assert 10 * np.log10(255**2 / (change**2).mean()) > 46


@settings(max_examples=12)
@given(height=st.integers(16, 300), width=st.integers(16, 300))
def test_any_size_is_marked_in_place(height: int, width: int) -> None:
    frame = np.full((height, width, 3), 128, np.uint8)
    done = Watermark(height, width)(frame)
    assert done.shape == frame.shape
    assert (frame == 128).all()
    assert 0.3 < (done.astype(int) - 128).std() < 1.5


def test_the_pattern_is_the_same_in_every_size_of_a_picture() -> None:
    large, small = watermark_pattern(1024, 1024), watermark_pattern(512, 512)
    shrunk = cv2.resize(large, (512, 512), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.98
    assert watermark_tile().mean() == pytest.approx(0, abs=1e-3)


def test_the_mark_outlives_encoding_and_scaling_to_half(tmp_path: Path) -> None:
    assert find_watermark(rewritten(tmp_path, add_watermark(clip()), 28)).found
    found = find_watermark(rewritten(tmp_path, map(half, add_watermark(clip())), 23))
    assert found.found
    assert found.zoom == 1.0


def test_the_mark_outlives_a_crop_and_a_mirror_which_are_recognised(tmp_path: Path) -> None:
    cropped = (np.ascontiguousarray(frame[90:474, 40:424][:, ::-1]) for frame in add_watermark(clip()))
    found = find_watermark(rewritten(tmp_path, cropped, 23))
    assert found.found
    assert found.mirrored
    assert found.zoom == pytest.approx(512 / 384, rel=0.01)


def test_a_video_without_the_mark_has_none_at_any_zoom(tmp_path: Path) -> None:
    finding = find_watermark(rewritten(tmp_path, clip(), 23))
    assert not finding.found
    assert finding.score < finding.threshold - 1


def test_without_the_mark_the_score_of_one_place_is_standard_normal() -> None:
    from flowportrait.provenance.watermark import _search_scaled, high_pass_residual

    rng, photo = np.random.default_rng(0), astronaut()
    scores = []
    for _ in range(60):
        left, top, side = *rng.integers(0, 200, 2), int(rng.integers(150, 300))
        view = np.ascontiguousarray(photo[top : top + side, left : left + side])
        scores.append(_search_scaled(high_pass_residual([view])[0], [1.0], reach=0)[0].score)
    assert np.mean(scores) == pytest.approx(0, abs=0.5)
    assert 0.7 < np.std(scores) < 1.4
    assert FALSE_ALARM_RATE <= 1e-6


def test_a_published_video_carries_all_three_marks_and_the_same_pictures_twice(
    tmp_path: Path, own: SigningCredential
) -> None:
    provenance = Provenance(VideoOrigin("portrait"), own)
    paths = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    for path in paths:
        assert write_video_with_provenance(path, clip(size=256), VOICE, provenance) == 10
    assert np.array_equal(*(list(iter_frames(path)) for path in paths))
    assert sorted(tmp_path.iterdir()) == paths
    signature = read_signature(paths[0])
    assert signature.intact
    assert signature.self_signed
    assert not signature.trusted
    assert signature.generator.startswith("FlowPortrait")
    assert signature.source_type.endswith("/trainedAlgorithmicMedia")
    assert find_watermark(iter_frames(paths[0])).found


def test_a_file_changed_after_signing_is_told(tmp_path: Path, own: SigningCredential) -> None:
    path = tmp_path / "a.mp4"
    write_video_with_provenance(path, clip(3, 64), None, Provenance(VideoOrigin("footage"), own))
    data = bytearray(path.read_bytes())
    data[data.rfind(b"mdat") + 400] ^= 1
    path.write_bytes(data)
    signature = read_signature(path)
    assert signature.present
    assert not signature.intact
    assert signature.problems == ("assertion.bmffHash.mismatch",)


def test_an_unmarked_video_carries_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video_with_provenance(tmp_path / "a.mp4", clip(3, 400), VOICE, None)
    assert not read_signature(tmp_path / "a.mp4").present
    assert main(["verify", str(tmp_path / "a.mp4")]) == 0
    said = capsys.readouterr().out
    assert "No mark of FlowPortrait was found; that does not prove" in said
    assert "no C2PA manifest" in said


def test_verify_says_in_words_and_in_json_what_it_found(
    tmp_path: Path, own: SigningCredential, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video_with_provenance(tmp_path / "a.mp4", clip(), VOICE, Provenance(VideoOrigin("footage"), own))
    assert main(["verify", str(tmp_path / "a.mp4")]) == 0
    said = capsys.readouterr().out
    assert "AI-generated with FlowPortrait, as its tags, its signature and its watermark say." in said
    assert "the lips in this footage were redrawn by AI" in said
    assert "nobody vouches for the signer" in said
    write_video(tmp_path / "b.mp4", iter_frames(tmp_path / "a.mp4"), None, crf=28)
    assert main(["verify", str(tmp_path / "b.mp4"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "AI-generated with FlowPortrait, as its watermark says."
    assert told["details"]["watermark"]["found"]
    assert not told["details"]["signature"]["present"]
    assert main(["verify", str(tmp_path / "none.mp4")]) == 2


def test_the_self_made_certificate_is_made_once_and_its_key_is_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert find_credential() == find_credential()
    kept = list((tmp_path / "flowportrait").iterdir())
    assert len(kept) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}


def test_where_nothing_can_be_kept_the_video_is_signed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(credentials, "config_folder", lambda: tmp_path / "file" / "flowportrait")
    write_video(tmp_path / "a.mp4", clip(3, 64), None)
    sign_video(tmp_path / "a.mp4", VideoOrigin("portrait"), find_credential())
    assert read_signature(tmp_path / "a.mp4").intact
    assert "no certificate can be kept" in capsys.readouterr().err


def test_the_users_own_certificate_signs(
    tmp_path: Path, own: SigningCredential, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(credentials, "SELF_SIGNED", "Example News")
        theirs = self_signed()
    certificate, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.write_text(theirs.certificates)
    key.write_text(theirs.private_key)
    monkeypatch.setenv("FLOWPORTRAIT_CERTIFICATE", str(certificate))
    monkeypatch.setenv("FLOWPORTRAIT_PRIVATE_KEY", str(key))
    write_video(tmp_path / "a.mp4", clip(3, 64), None)
    sign_video(tmp_path / "a.mp4", VideoOrigin("portrait"), find_credential())
    signature = read_signature(tmp_path / "a.mp4")
    assert signature.intact
    assert "Example News" in signature.signer
    assert not signature.self_signed
    assert find_credential(str(certificate), str(key)) == find_credential()
    key.write_text(own.private_key)
    with pytest.raises(BadInput, match=r"key\.pem is not the key of the first certificate"):
        find_credential()
    with pytest.raises(BadInput, match="belong together"):
        find_credential(certificate, None)
    with pytest.raises(BadInput, match=r"No file at .*none\.pem"):
        read_credential(certificate, tmp_path / "none.pem")
    key.write_text("nothing")
    with pytest.raises(BadInput, match="cannot be read"):
        read_credential(certificate, key)


def test_a_kind_of_key_that_c2pa_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="C2PA does not sign with"):
        credentials._algorithm(ec.generate_private_key(ec.SECP224R1()), tmp_path / "key.pem")


def test_animate_marks_unless_told_not_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scipy.io import wavfile

    cv2.imwrite(str(tmp_path / "face.png"), astronaut()[..., ::-1])
    wavfile.write(tmp_path / "speech.wav", 16_000, VOICE)
    command = ["animate", "--image", str(tmp_path / "face.png"), "--audio", str(tmp_path / "speech.wav"),
               "--checkpoint", "sft", "--size", "256", "--crop", "--output"]  # fmt: skip
    assert main([*command, str(tmp_path / "marked.mp4")]) == 0
    assert main([*command, str(tmp_path / "bare.mp4"), "--no-provenance"]) == 0
    assert read_signature(tmp_path / "marked.mp4").intact
    assert not read_signature(tmp_path / "bare.mp4").present
    assert find_watermark(iter_frames(tmp_path / "marked.mp4")).found
    assert find_watermark(iter_frames(tmp_path / "bare.mp4")).score < 6.5
    capsys.readouterr()
    assert main([*command, str(tmp_path / "x.mp4"), "--certificate", str(tmp_path / "none.pem")]) == 2
    assert "belong together" in capsys.readouterr().err
    assert not (tmp_path / "x.mp4").exists()


@pytest.mark.parametrize("suffix", ["mp4", "mov", "webm", "gif"])
def test_every_format_carries_tags_watermark_and_a_manifest_that_notices_a_changed_byte(
    tmp_path: Path, own: SigningCredential, suffix: str
) -> None:
    path = tmp_path / f"talk.{suffix}"
    write_video_with_provenance(
        path, clip(), Sound(np.stack([VOICE, VOICE]), 16_000, "stereo"), Provenance(VideoOrigin("portrait"), own)
    )
    found = inspect_provenance(str(path))
    assert found.tagged
    assert found.signature.intact
    assert found.signature.source_type.endswith("/trainedAlgorithmicMedia")
    assert found.watermark.found
    beside = [tmp_path / "talk.c2pa"] if suffix == "webm" else []
    assert sorted(tmp_path.iterdir()) == sorted([path, *beside])
    assert found.signature.sidecar == bool(beside)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    changed = read_signature(path)
    assert changed.present
    assert not changed.intact


def test_the_manifest_of_another_webm_does_not_fit(tmp_path: Path, own: SigningCredential) -> None:
    for name, size in (("a", 128), ("b", 160)):
        write_video_with_provenance(
            tmp_path / f"{name}.webm", clip(3, size), None, Provenance(VideoOrigin("portrait"), own)
        )
    (tmp_path / "a.c2pa").replace(tmp_path / "b.c2pa")
    assert read_signature(tmp_path / "b.webm").problems == ("assertion.dataHash.mismatch",)
    assert not read_signature(tmp_path / "a.webm").present


def test_a_folder_is_verified_file_by_file(
    tmp_path: Path, own: SigningCredential, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video_with_provenance(tmp_path / "marked.mp4", clip(), VOICE, Provenance(VideoOrigin("portrait"), own))
    write_video_with_provenance(tmp_path / "signed.webm", clip(), VOICE, Provenance(VideoOrigin("portrait"), own))
    write_video_with_provenance(tmp_path / "plain.mp4", clip(3, 400), VOICE, None)
    (tmp_path / "broken.mov").write_bytes(b"no video")
    (tmp_path / "notes.txt").write_text("not a video")
    assert main(["verify", str(tmp_path)]) == 0
    printed, messages = capsys.readouterr()
    lines = {line.split()[0]: line for line in printed.splitlines()}
    assert "intact, self-signed" in lines["marked.mp4"]
    assert "intact, self-signed" in lines["signed.webm"]
    assert "no mark" in lines["plain.mp4"]
    assert "cannot be read" in lines["broken.mov"]
    assert "broken.mov cannot be opened" in messages
    assert "notes.txt" not in lines
    assert "2 of 4" in printed
    assert main(["verify", str(tmp_path), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert files["marked.mp4"]["details"]["watermark"]["found"]
    assert "error" in files["broken.mov"]
    named = [str(tmp_path / "marked.mp4"), str(tmp_path / "plain.mp4")]
    assert main(["verify", *named]) == 0
    assert "1 of 2" in capsys.readouterr().out
    assert main(["verify"]) == 2
    assert "No video was given" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["verify", str(tmp_path / "empty")]) == 2
    assert "holds no video" in capsys.readouterr().err


def test_without_provenance_no_format_carries_a_mark(tmp_path: Path) -> None:
    for suffix in ("mp4", "mov", "webm", "gif"):
        write_video_with_provenance(tmp_path / f"a.{suffix}", clip(10, 400), VOICE, None)
        assert not inspect_provenance(tmp_path / f"a.{suffix}").marked
    assert len(list(tmp_path.iterdir())) == 4


def test_pictures_that_would_fill_the_memory_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    """A gif of 60 bytes that claims 65535 x 65535 pixels."""
    bomb = b"GIF89a" + b"\xff" * 4 + b"\x80\0\0" + bytes(6) + b"," + bytes(4) + b"\xff" * 4 + b"\0\x02\x02D\x01\0;"
    (tmp_path / "bomb.gif").write_bytes(bomb)
    with pytest.raises(BadInput):
        inspect_provenance(tmp_path / "bomb.gif")


def test_a_video_without_provenance_leaves_no_manifest_of_the_one_it_replaced(
    tmp_path: Path, own: SigningCredential
) -> None:
    path = tmp_path / "a.webm"
    write_video_with_provenance(path, clip(3, 128), None, Provenance(VideoOrigin("portrait"), own))
    write_video_with_provenance(path, clip(4, 128), None, None)
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "a.c2pa").write_bytes(b"somebody else's")
    write_video_with_provenance(path, clip(4, 128), None, None)
    assert (tmp_path / "a.c2pa").read_bytes() == b"somebody else's"
