"""Slots for the field's own networks, filled with small ones of the same form: found, used, named, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from flowportrait.commands.evaluate import EvaluateOptions, run
from flowportrait.errors import BadInput
from flowportrait.evaluation.api import evaluate
from flowportrait.evaluation.field_networks import (
    CEPSTRA,
    SLOTS,
    SYNCNET_WINDOW,
    SyncNet,
    find_network_files,
    mfcc,
    syncnet_crops,
)
from flowportrait.evaluation.networks import load_evaluation_networks
from flowportrait.evaluation.tracking import track_file
from flowportrait.media.write_video import write_video
from tests.evaluation.test_evaluate_run import frames, sound

FRAMES, NARROW = 40, (4, 4, 4, 4, 4, 8)


class SmallFeatures(torch.nn.Module):
    """Means of a picture ``[K, 3, H, W]``, called as Inception is."""

    def forward(self, picture: torch.Tensor, return_features: bool = True) -> torch.Tensor:
        return picture.float().mean((2, 3))


class SmallVideo(torch.nn.Module):
    """Means of 16 frames ``[1, 3, 16, H, W]``, called as I3D is."""

    def forward(
        self, frames: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = True
    ) -> torch.Tensor:
        return frames.mean((3, 4)).flatten(1)


class SmallQuality(torch.nn.Module):
    """Contrast of a picture."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return picture.std()


def small_identity(path: Path) -> None:
    """Write a network from a crop ``[1, 3, 112, 112]`` to its mean colours."""
    ends = [helper.make_tensor_value_info(*end) for end in (
        ("crop", TensorProto.FLOAT, [1, 3, 112, 112]), ("features", TensorProto.FLOAT, [1, 3]))]  # fmt: skip
    nodes = [
        helper.make_node("GlobalAveragePool", ["crop"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
    ]
    graph = helper.make_graph(nodes, "identity", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All seven slots."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    torch.save(SyncNet(NARROW, NARROW, dim=6).state_dict(), folder / SLOTS["syncnet"].file)
    torch.jit.script(SmallFeatures()).save(folder / SLOTS["inception"].file)
    torch.jit.script(SmallVideo()).save(folder / SLOTS["i3d"].file)
    small_identity(folder / SLOTS["arcface"].file)
    for key in ("topiq_iaa", "musiq", "topiq_face"):
        torch.jit.script(SmallQuality()).save(folder / SLOTS[key].file)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name in ("real", "ours"):
        (folder / name).mkdir()
    for place in range(4):
        pictures = [np.roll(frame, 2 * place, axis=0) for frame in frames(FRAMES)]
        write_video(folder / "real" / f"{place}.mp4", pictures, sound(FRAMES))
        shutil.copy(folder / "real" / f"{place}.mp4", folder / "ours" / f"{place}.mp4")
    return folder


@pytest.mark.slow
def test_one_folder_fills_all_slots_and_the_report_names_its_networks(
    folder: Path, videos: Path, tmp_path: Path
) -> None:
    report = evaluate({"ours": videos / "ours"}, videos / "real", cache=tmp_path, networks=folder)
    names = set(report.summary["networks"].values())
    assert {"SyncNet", "MUSIQ", "TOPIQ-IAA", "TOPIQ-face"} <= names
    assert {SLOTS["inception"].file, SLOTS["i3d"].file, f"ArcFace ({SLOTS['arcface'].file})"} <= names
    assert "left out of THEval" not in report.summary["networks"]
    row, means = report.rows["ours"]["0"], report.comparison.estimates["ours"]
    assert row["csim"] == pytest.approx(1, abs=1e-3)
    assert means["fid"].mean == pytest.approx(0, abs=1e-6)
    assert means["fvd"].mean == pytest.approx(0, abs=1e-6)
    assert {"syncnet_lse_c_short", "syncnet_lse_d_short", "syncnet_offset_error_short"} <= set(row)
    assert {"theval_global_aesthetics", "theval_mouth_quality", "theval_face_quality"} <= set(row)
    assert row["theval_mouth_quality"] != row["theval_face_quality"]


@pytest.mark.parametrize("key", SLOTS)
def test_a_file_that_is_missing_from_the_folder_is_named(folder: Path, tmp_path: Path, key: str) -> None:
    for file in folder.iterdir():
        if file.name != SLOTS[key].file:
            shutil.copy(file, tmp_path)
    with pytest.raises(BadInput, match=rf"There is no {SLOTS[key].file} in .*{SLOTS[key].variable}"):
        find_network_files(tmp_path)


def test_the_command_refuses_a_folder_that_lacks_a_network_before_it_measures(tmp_path: Path, videos: Path) -> None:
    options = EvaluateOptions(output=tmp_path / "out", videos=(videos / "ours",), networks=tmp_path)
    with pytest.raises(BadInput, match=r"There is no syncnet_v2\.model"):
        run(options)


def test_a_single_network_is_named_in_the_environment(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWPORTRAIT_MUSIQ", str(folder / SLOTS["musiq"].file))
    assert set(find_network_files()) == {"musiq"}
    monkeypatch.setenv("FLOWPORTRAIT_MUSIQ", str(tmp_path / "gone.pt"))
    load_evaluation_networks.cache_clear()  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match=r"FLOWPORTRAIT_MUSIQ names .*gone\.pt, which does not exist"):
        load_evaluation_networks()


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(BadInput, match=r"other\.pt holds no weights of SyncNet"):
        SyncNet.read(tmp_path / "other.pt")


def test_the_published_network_fits_its_windows() -> None:
    network = SyncNet().eval()
    assert sum(weights.numel() for weights in network.parameters()) == pytest.approx(13.6e6, rel=0.01)
    with torch.no_grad():
        assert network.netcnnlip(torch.zeros(1, 3, SYNCNET_WINDOW, 224, 224)).flatten(1).shape == (1, 512)
        assert network.netcnnaud(torch.zeros(1, 1, CEPSTRA, 4 * SYNCNET_WINDOW)).flatten(1).shape == (1, 512)


def test_a_frame_and_its_sound_are_in_five_windows_of_syncnet(folder: Path) -> None:
    network = SyncNet.read(folder / SLOTS["syncnet"].file)
    rng = np.random.default_rng(0)
    pictures, samples = rng.integers(0, 255, (20, 224, 224, 3)).astype(np.uint8), sound(20)
    face, voice = network.embed(pictures, samples)
    assert face.shape == voice.shape == (20 - SYNCNET_WINDOW, 6)
    pictures[8] = 255 - pictures[8]
    samples[640 * 8 + 200 : 640 * 9 - 400] = 0  # read by the columns of 25 ms that begin in frames 7 and 8
    other_face, other_voice = network.embed(pictures, samples)
    assert np.flatnonzero(np.abs(face - other_face).max(1) > 1e-6).tolist() == [4, 5, 6, 7, 8]
    changed = np.flatnonzero(np.abs(voice - other_voice).max(1) > 1e-6).tolist()
    assert changed == [3, 4, 5, 6, 7, 8]


def test_the_face_stays_in_the_middle_of_syncnets_crops(videos: Path, tmp_path: Path) -> None:
    path = videos / "ours" / "0.mp4"
    tracked = track_file(path, tmp_path)
    crops = syncnet_crops(path, tracked, slice(5, 30))
    assert crops.shape == (25, 224, 224, 3)
    assert (crops[:, 60:140, 80:144] != 110).any(-1).mean() > 0.99


def test_cepstra_follow_the_gain_in_their_first_number_alone() -> None:
    samples = np.random.default_rng(0).normal(0, 0.05, 16000)
    quiet, loud = mfcc(samples), mfcc(4 * samples)
    assert quiet.shape == (99, CEPSTRA)
    np.testing.assert_allclose(loud[:, 0] - quiet[:, 0], 2 * np.log(4), rtol=1e-9)
    np.testing.assert_allclose(loud[:, 1:], quiet[:, 1:], atol=1e-6)
