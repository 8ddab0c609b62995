"""Files of other projects that ship with the package are the published ones, byte for byte or value for value."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from flowportrait.errors import BadInput
from flowportrait.evaluation.networks import load_perceptual_stages
from flowportrait.media.audio import read_audio
from flowportrait.media.faces import FACE_LANDMARKER_SHA256, face_landmarker_path
from flowportrait.samples import SPEECH


def test_the_face_landmarker_ships_and_is_googles_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache, no other package, no home folder and no network is needed to find it."""
    for variable in ("FLOWPORTRAIT_FACE_LANDMARKER", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    path = face_landmarker_path()
    assert path.parents[1].name == "flowportrait_weights"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == FACE_LANDMARKER_SHA256


def test_another_face_landmarker_is_used_where_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.task"
    monkeypatch.setenv("FLOWPORTRAIT_FACE_LANDMARKER", str(other))
    with pytest.raises(BadInput, match=r"other\.task"):
        face_landmarker_path()
    other.write_bytes(b"")
    assert face_landmarker_path() == other
    assert face_landmarker_path(__file__) == Path(__file__)


def test_the_image_features_are_those_of_torchvisions_weights() -> None:
    """Channel means of a fixed picture, as the complete published file ``mobilenet_v2-b0353104.pth`` gives them."""
    ramp = torch.linspace(0, 1, 128)
    picture = torch.stack([ramp.expand(128, 128), ramp.expand(128, 128).T, (ramp.outer(ramp))])[None]
    stages = load_perceptual_stages()(picture)
    assert [stage.shape[1] for stage in stages] == [16, 24, 32, 96]
    assert np.allclose([float(stage.abs().mean()) for stage in stages], PUBLISHED, rtol=1e-4)


PUBLISHED = (0.216114, 0.393396, 0.561429, 0.408948)


def test_the_sample_of_speech_is_the_published_recording() -> None:
    """SHA-256 of the samples of useful-moonshine-onnx's ``beckett.wav`` as 16-bit numbers."""
    samples = np.round(read_audio(SPEECH) * 32768).astype("<i2")
    assert len(samples) == 159_414
    assert hashlib.sha256(samples.tobytes()).hexdigest() == RECORDING


RECORDING = "3ed1e4dd5ef6c97f3cccafdc90d8036954772f0621f387ebb5f1ad45c52da155"
