"""Lips of one generator on another's head and eyes."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tools.graft_checkpoint import FRAMES, Graft, graft, grafted

from flowportrait.data.corpus import FaceClip
from flowportrait.data.motion_dataset import TRAINING_SPLITS, MotionClip, WindowSampler
from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.models.arflow import ARFlow
from flowportrait.models.training_clips import extract_features, save_clips
from flowportrait.rendering.motion_basis import MotionBasis
from tests.rl.test_posttrain import TINY, tiny_policy


def sampler(model: ARFlow) -> WindowSampler:
    draws = torch.Generator().manual_seed(0)
    heard = model.audio_features(torch.randn(2, 8 * FRAMES, 80, generator=draws))
    clips = [
        MotionClip(str(i), f"s{i}", torch.randn(2 * FRAMES, 30, generator=draws), heard[i], torch.zeros(19))
        for i in range(2)
    ]
    return WindowSampler(clips, FRAMES, torch.Generator().manual_seed(0))


def another(model: ARFlow) -> ARFlow:
    """The same, post-trained by chance."""
    other = copy.deepcopy(model)
    draws = torch.Generator().manual_seed(1)
    for parameter in other.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draws)
    return other


def test_a_student_that_is_the_rest_has_all_of_the_lips_to_learn_and_nothing_else() -> None:
    lips = tiny_policy().requires_grad_(False)
    rest = another(lips)
    loss = Graft(copy.deepcopy(rest), lips, rest, sampler(lips))
    assert float(loss(0)) > 0
    assert loss.apart.tolist() == pytest.approx([1, 0])


def test_a_graft_comes_nearer_to_one_in_the_lips_and_stays_with_the_other_elsewhere() -> None:
    lips = tiny_policy()
    rest = another(lips)
    rest.config = replace(rest.config, guidance=1.5)
    student = graft(lips, rest, sampler(lips), steps=60)
    assert student.config == rest.config, "it is drawn as the rest is"
    loss = Graft(student, lips, rest, sampler(lips))
    with torch.no_grad():
        shares = torch.stack([(loss(step), loss.apart)[1] for step in range(4)]).mean(0)
    assert shares[0] < 0.8
    assert shares[1] < 0.2


def test_different_architectures_are_not_grafted() -> None:
    with pytest.raises(BadInput, match="one architecture"):
        graft(tiny_policy(), ARFlow(replace(TINY, hidden=2 * TINY.hidden)), sampler(tiny_policy()), 1)


def test_without_what_was_heard_a_corpus_is_listened_to_and_learned_from_alike(tmp_path: Path) -> None:
    lips, basis = tiny_policy(), MotionBasis.load()
    rest, draws = another(lips), np.random.default_rng(0)
    records = []
    for name in ("one", "two"):
        faces = 100 * basis.shape(torch.zeros(60, 30), basis.canonical).numpy() + draws.normal(size=(60, 478, 3))
        sound = draws.uniform(-0.1, 0.1, 60 * SAMPLES_PER_FRAME).astype(np.float32)
        mouth, size = np.zeros((60, 48, 64), np.uint8), np.array([256, 256])
        (tmp_path / "clips").mkdir(exist_ok=True)
        FaceClip(faces, np.zeros((60, 52)), mouth, size, sound).save(tmp_path / "clips" / f"{name}.safetensors")
        records.append({"name": name, "speaker": name, "split": "reward", "frames": 60})
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    save_clips(tmp_path / "heard.pt", extract_features(lips, tmp_path, TRAINING_SPLITS, 0, 0))
    listened, recalled = (grafted(lips, rest, tmp_path, heard, 2) for heard in (None, tmp_path / "heard.pt"))
    for one, other in zip(listened.parameters(), recalled.parameters(), strict=True):
        assert torch.equal(one, other)
    assert any(not torch.equal(a, b) for a, b in zip(listened.parameters(), rest.parameters(), strict=True))
