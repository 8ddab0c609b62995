"""Claims about the comparison of two checkouts: it finds what differs, and says nothing where nothing does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tools.compare_versions import SAME, compare_records, compare_tensors, first_difference, ratio_with_interval

from tests.golden_inputs import ROOT


def pictures(*levels: int) -> list[np.ndarray]:
    return [np.full((2, 2, 3), level, np.uint8) for level in levels]


def test_the_first_frame_that_differs_is_named_with_how_much() -> None:
    assert first_difference("frame", iter(pictures(1, 2)), iter(pictures(1, 2))) == SAME
    assert first_difference("frame", iter(pictures(1, 2)), iter(pictures(1, 250))) == "frame 1, by 248 at most"
    assert first_difference("frame", iter(pictures(1)), iter(pictures(1, 2))) == "1 frames in one, more in the other"
    smaller = [np.zeros((1, 2, 3), np.uint8)]
    assert "shapes" in first_difference("frame", iter(pictures(1)), iter(smaller))


def test_the_last_bit_of_a_metric_counts_and_its_name_does_not() -> None:
    before = [{"iteration": 1, "kl": 0.1, "seconds/update": 3.0}]
    assert compare_records(before, [{"iteration": 1, "kl": 0.1, "seconds/update": 4.0}]) == SAME
    assert compare_records(before, [{"iteration": 1, "divergence": 0.1, "more": 2.0}]) == SAME
    assert "kl of iteration 1" in compare_records(before, [{"iteration": 1, "kl": np.nextafter(0.1, 1)}])
    assert "is missing" in compare_records(before, [{"iteration": 1, "divergence": 0.2}])
    assert compare_records([{"x": float("nan")}], [{"x": float("nan")}]) == SAME
    assert "records" in compare_records(before, [])


def test_the_last_bit_of_a_weight_counts() -> None:
    before = {"w": np.ones(3, np.float32)}
    assert compare_tensors("weights", before, {"w": np.ones(3, np.float32)}) == SAME
    assert compare_tensors("weights", before, {"w": np.nextafter(before["w"], 2)}) == "weights: w"
    assert compare_tensors("weights", before, {"w": np.ones(3, np.float64)}) == "weights: w"
    assert compare_tensors("weights", before, {"v": before["w"]}) == "weights: v is in one alone"


def test_an_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    held = []
    for seed in range(200):
        before, now = np.exp(draw.normal(0, 0.05, (2, 6)))
        _, low, high = ratio_with_interval(before, 1.1 * now, seed)
        held.append(low <= 1.1 <= high)
    assert 0.9 <= np.mean(held) <= 0.99


def test_one_round_tells_nothing() -> None:
    assert ratio_with_interval([1.0], [2.0]) == (2.0, 0.0, float("inf"))


def compare(checkout: Path) -> subprocess.CompletedProcess[str]:
    words = ["tools/compare_versions.py", "--against", str(checkout), "--only", "photo", "nft", "--rounds", "0"]
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_checkout_agrees_with_itself_and_not_with_one_of_another_weight(tmp_path: Path) -> None:
    same = compare(ROOT)
    assert same.returncode == 0, same.stdout + same.stderr
    assert same.stdout.count("same to the bit") == 2
    for folder in ("src", "weights"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    path = tmp_path / "weights" / "flowportrait_weights" / "rl" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.startswith("head.") and name.endswith("weight"))
    weights[name] = weights[name] * np.float16(1.01)
    save_file(weights, path)
    other = compare(tmp_path)
    assert other.returncode == 1, other.stdout + other.stderr
    assert "DIFFERS" in other.stdout
    assert other.stdout.count("same to the bit") == 1, "training starts from other weights"
