"""Claims about the post-training of a published model in one command, on the real classes of LTX-2 in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.__main__ import main
from benchmarks.published import read_weights, split_prompts
from PIL import Image
from scipy.io import wavfile

from flowportrait.adapters.pipeline import ADAPTER_FILES, PipelineGenerator
from flowportrait.adapters.policy import Item
from flowportrait.errors import BadInput
from flowportrait.media.video import iter_frames
from tests.small_pipelines import small

HERE = "tests.project.test_benchmark_published"


def small_ltx2() -> PipelineGenerator:
    torch.manual_seed(0)
    return PipelineGenerator(*small("ltx-2"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("prompts"), np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(draw.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(folder / f"{name}.png")
        wavfile.write(folder / f"{name}.wav", 16000, (0.1 * draw.standard_normal(16000)).astype(np.float32))
    lines = [json.dumps({"image": f"{name}.png", "audio": f"{name}.wav"}) for name in "abc"]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return folder


def words(prompts: Path, output: Path, iterations: int) -> list[str]:
    settings = ["groups=2", "group_size=4", "plan.steps=2", "learning_rate=0.02", "updates=1", "rollout_chunks=1",
                "lora.rank=4", "lora.alpha=8", "lora.targets=to_q,to_k,to_v,to_out.0"]  # fmt: skip
    return ["published", "--prompts", str(prompts), "--output", str(output), "--policy", f"{HERE}:small_ltx2",
            "--reward", "tests.adapters.test_policies:Bright=1", "--held-out", "1", "--samples", "2",
            "--iterations", str(iterations),
            "--full-precision", *[part for setting in settings for part in ("--set", setting)]]  # fmt: skip


@pytest.mark.slow
def test_a_model_and_its_control_are_trained_scored_and_shown_in_one_command(prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert main([*words(prompts, output, 3), "--record", str(tmp_path / "scores.json")]) == 0
    assert main([*words(prompts, output, 8), "--record", str(tmp_path / "scores.json")]) == 0, "it is continued"
    for run in ("trained", "control"):
        assert len((output / run / "metrics.jsonl").read_text().splitlines()) == 8
        assert (output / run / "checkpoint" / ADAPTER_FILES["transformer"]).is_file()
    rows = {row["system"]: row["value"] for row in json.loads((tmp_path / "scores.json").read_text())["rows"]}
    assert rows["trained"] > rows["before"]
    assert rows["trained"] > rows["control"]
    (before,), (after,) = ([list(iter_frames(path)) for path in (output / name).iterdir()] for name in
                           ("before", "after"))  # fmt: skip
    assert len(before) == len(after)
    assert np.abs(np.stack(before).astype(int) - np.stack(after)).mean() > 0, "the clips show what was learned"
    assert "random rewards" in (output / "table.md").read_text()
    assert "<svg" in (output / "curve.svg").read_text()
    assert set(json.loads((output / "doctor.json").read_text())) == {"trained", "control"}
    environment = json.loads((output / "environment.json").read_text())
    assert environment["versions"]["torch"] == str(torch.__version__)
    assert environment["settings"]["recipe"] == "nft"


def test_held_out_prompts_are_evenly_spaced_and_never_trained_on() -> None:
    items = [Item(str(number)) for number in range(10)]
    train, held_out = split_prompts(items, 2)
    assert [item.id for item in held_out] == ["2", "7"]
    assert [item.id for item in train] == ["0", "1", "3", "4", "5", "6", "8", "9"]
    with pytest.raises(BadInput, match="leaves nothing"):
        split_prompts(items[:2], 2)


def test_weights_of_rewards_are_read_and_others_refused() -> None:
    assert read_weights(["sync=1", "my.module:Mine=0.5"]) == {"sync": 1.0, "my.module:Mine": 0.5}
    for word in ("sync", "sync=much", "=1"):
        with pytest.raises(BadInput, match="NAME=WEIGHT"):
            read_weights([word])


def test_the_built_in_generator_is_refused_with_the_way_out(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["published", "--prompts", str(prompts), "--output", str(tmp_path / "out"), "--held-out", "1"]
    assert main([*ask, "--policy", "sft"]) == 2
    assert "use flowportrait posttrain" in capsys.readouterr().err
