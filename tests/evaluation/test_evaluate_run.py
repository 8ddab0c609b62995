"""From files to figures: what is bad is named, counted and left out; what was seen once is not looked at again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut

from flowportrait.commands.evaluate import named_systems
from flowportrait.data.prompts import find_videos
from flowportrait.errors import BadInput
from flowportrait.evaluation import tracking
from flowportrait.evaluation.api import evaluate
from flowportrait.evaluation.comparison import compare_systems, metrics_by_group, read_clip_labels
from flowportrait.evaluation.figures import html_groups_table
from flowportrait.evaluation.networks import (
    EvaluationNetworks,
    TorchScriptNetwork,
    compute_network_features,
    load_evaluation_networks,
)
from flowportrait.evaluation.statistics import jackknife
from flowportrait.evaluation.tracking import default_tracks_cache, track_file
from flowportrait.media.write_video import write_video

FRAMES = 30


def frames(count: int = FRAMES) -> list[np.ndarray]:
    """A face that drifts and nods a little."""
    face = cv2.resize(astronaut()[:256, 96:352], (192, 192), interpolation=cv2.INTER_AREA)
    moves = [(3 * np.sin(t / 5), 2 * np.cos(t / 4)) for t in range(count)]
    return [
        cv2.warpAffine(face, np.array([[1, 0, x], [0, 1, y]]), (192, 192), borderMode=cv2.BORDER_REPLICATE)
        for x, y in moves
    ]


def sound(count: int = FRAMES) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, 640 * count).astype(np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name in ("real", "ours"):
        (folder / name).mkdir()
    pictures = frames()
    write_video(folder / "real" / "good.mp4", pictures, sound())
    shutil.copy(folder / "real" / "good.mp4", folder / "ours" / "good.mp4")
    shutil.copy(folder / "real" / "good.mp4", folder / "real" / "short.mp4")
    write_video(folder / "ours" / "short.mp4", pictures[:20], sound(20))
    write_video(folder / "ours" / "silent.mp4", pictures, None)
    write_video(folder / "ours" / "slow.mp4", pictures[::3], sound(12), fps=10)
    gaps = [np.full_like(p, 90) if 10 <= i < 14 else p for i, p in enumerate(pictures)]
    write_video(folder / "ours" / "gaps.mp4", gaps, sound())
    write_video(folder / "ours" / "wall.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 12, sound(12))
    (folder / "ours" / "broken.mp4").write_bytes(b"no video at all" * 99)
    return folder


def test_bad_files_are_named_counted_and_left_out_and_the_rest_is_reported(clips: Path, tmp_path: Path) -> None:
    systems = {name: sorted((clips / name).glob("*.mp4")) for name in ("real", "ours")}
    summary = evaluate(systems, cache=tmp_path / "cache").write(tmp_path / "out")
    excluded = {entry["file"]: entry["reason"] for entry in summary["excluded"]}
    assert set(excluded) == {"broken.mp4", "wall.mp4"}
    assert "no face in any of its 12 frames" in excluded["wall.mp4"]
    assert "cannot be opened" in excluded["broken.mp4"]
    assert summary["counts"]["ours"]["clips"] == 5
    remarks = " ".join(summary["remarks"])
    for said in (
        "gaps.mp4: no face in",
        "silent.mp4: no sound",
        "slow.mp4: 10 frames a second",
        "ours/short: 20 frames",
    ):
        assert said in remarks
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["clips"]["ours"]
    assert rows["silent"].get("ler") is None
    assert rows["slow"]["repeated"] > 0.3 > rows["good"]["repeated"]
    assert rows["good"]["aed"] == rows["good"]["apd"] == 0
    assert rows["good"]["ssim"] == pytest.approx(1)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "broken.mp4, left out" in page
    assert "2 left out" in page
    assert "Worst clips" in page


def test_when_nothing_can_be_measured_the_first_reason_is_given(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"None of the videos.*wall\.mp4 shows no face"):
        evaluate({"a": [clips / "ours" / "wall.mp4"]}, cache=tmp_path / "cache")


def test_the_same_content_is_looked_at_once_under_any_name(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    real_look = tracking.extract_tracks
    monkeypatch.setattr(tracking, "extract_tracks", lambda path: looked.append(path) or real_look(path))
    first = track_file(clips / "ours" / "short.mp4", tmp_path)
    other = shutil.copy(clips / "ours" / "short.mp4", tmp_path / "elsewhere.mp4")
    again = track_file(Path(other), tmp_path)
    assert len(looked) == 1
    np.testing.assert_array_equal(first.flow, again.flow)
    kept = next(tmp_path.glob("*.npz"))
    kept.write_bytes(kept.read_bytes()[:500])
    track_file(Path(other), tmp_path)
    assert len(looked) == 2


def test_the_cache_lies_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_tracks_cache() == tmp_path / "flowportrait" / "tracked"


class Tiny(torch.nn.Module):
    def forward(self, picture: torch.Tensor, return_features: bool = True) -> torch.Tensor:
        return picture.float().mean((2, 3))


def test_a_given_network_is_used_and_named_and_another_kind_of_file_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.jit.script(Tiny()).save(tmp_path / "inception.pt")
    monkeypatch.setenv("FLOWPORTRAIT_INCEPTION", str(tmp_path / "inception.pt"))
    load_evaluation_networks.cache_clear()
    try:
        nets = load_evaluation_networks()
        assert nets.names()["image features (FID)"] == "inception.pt"
        crops = np.full((3, 128, 128, 3), 7, np.uint8)
        np.testing.assert_allclose(nets.image(crops), np.full((3, 3), 7.0))
        monkeypatch.setenv("FLOWPORTRAIT_INCEPTION", str(tmp_path / "missing.pt"))
        load_evaluation_networks.cache_clear()
        with pytest.raises(BadInput, match=r"missing\.pt, which does not exist"):
            load_evaluation_networks()
    finally:
        load_evaluation_networks.cache_clear()
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(BadInput, match="not a TorchScript network"):
        TorchScriptNetwork(tmp_path / "text.pt")


def test_without_networks_their_figures_are_empty_and_never_made_up(clips: Path, tmp_path: Path) -> None:
    tracked = track_file(clips / "ours" / "short.mp4", tmp_path)
    found = compute_network_features(tracked, EvaluationNetworks(None, None, None, None))
    assert not len(found.identity) + len(found.image) + len(found.video)
    assert set(EvaluationNetworks(None, None, None, None).names().values()) == {"not installed"}


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = list(np.random.default_rng(0).normal(size=10))
    estimate = jackknife(values, lambda clips: float(np.mean(clips)))
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * np.std(values, ddof=1) / np.sqrt(10))


def test_errors_over_those_of_real_footage_are_an_excess() -> None:
    rows = {s: {"a": {"frames": 30, "frames_without_face": 0, "ler": v}} for s, v in (("real", 0.3), ("x", 0.5))}
    found = compare_systems(rows)
    assert found.estimates["x"]["ler_excess"].mean == pytest.approx(0.2)
    assert "ler_excess" not in found.estimates["real"]


def test_groups_are_reported_apart_with_their_counts(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("clip,language\na,Arabic\nb,Arabic\nc,English\nlost,English\n")
    labels = read_clip_labels(tmp_path / "groups.csv")
    rows = {"x": {c: {"frames": 30, "frames_without_face": n, "ler": n / 10} for n, c in enumerate("abc")}}
    found = metrics_by_group(rows, labels, [{"system": "x", "file": "lost.mp4", "reason": "broken"}])["language"]
    assert found["Arabic"]["x"]["clips"] == 2
    assert found["Arabic"]["x"]["metrics"]["ler"][0] == pytest.approx(0.05)
    assert (found["English"]["x"]["left_out"], found["English"]["x"]["frames_without_face"]) == (1, 2)
    assert "Arabic" in html_groups_table({"language": found})
    (tmp_path / "groups.csv").write_text("name,language\na,Arabic\n")
    with pytest.raises(BadInput, match="column 'clip'"):
        read_clip_labels(tmp_path / "groups.csv")


def test_systems_are_named_once_and_checkpoints_need_prompts(tmp_path: Path) -> None:
    assert named_systems([f"theirs={tmp_path}", "ours=sft"], Path(".")) == {"theirs": tmp_path, "ours": "sft"}
    for given, sentence in (
        (["videos"], "is not NAME=WHERE"),
        (["a/b=x"], "is not NAME=WHERE"),
        (["a=x", "a=y"], "the name 'a' again"),
        (["real=x"], "the name 'real' again"),
        (["ours=sft"], "give --prompts"),
    ):
        with pytest.raises(BadInput, match=sentence):
            named_systems(given, None)
    (tmp_path / "film.MOV").touch()
    (tmp_path / ".half.mp4").touch()
    assert [p.name for p in find_videos([tmp_path])] == ["film.MOV"]
