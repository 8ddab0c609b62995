"""The examples of voice agents do what their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pipecat")
pytest.importorskip("livekit.agents")

from flowportrait.media.video import read_clip
from flowportrait.pipelines.inputs import synthesize_speech
from flowportrait.samples import portrait_path

ROOT = Path(__file__).parents[2]


def run_example(name: str, *arguments: str, folder: Path, **keys: str) -> subprocess.CompletedProcess[str]:
    secret = ("KEY", "SECRET", "LIVEKIT", "OPENAI")
    environment = {name: value for name, value in os.environ.items() if not any(part in name for part in secret)}
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), str(ROOT / "weights")])
    return subprocess.run(
        [sys.executable, "-m", f"examples.voice_agents.{name}", *arguments],
        cwd=folder, env={**environment, "PYTHONPATH": path, **keys}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


@pytest.mark.slow
def test_the_local_agent_answers_a_recorded_question_with_its_face(tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx")
    pytest.importorskip("hibari")
    sounds = list(synthesize_speech("What is the capital of France?"))
    pcm = (np.concatenate([sound.samples[0] for sound in sounds]) * 32767).astype("<i2")
    with wave.open(str(tmp_path / "question.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sounds[0].rate)
        file.writeframes(pcm.tobytes())
    ran = run_example(
        "local_agent", str(portrait_path("astronaut")), "--size", "128", "--question", "question.wav", folder=tmp_path
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "You:   what is the capital of france" in ran.stdout
    assert "Paris" in ran.stdout
    frames, sound = read_clip(tmp_path / "answer.mp4")
    assert frames.shape[1:] == (128, 128, 3)
    assert sound is not None
    assert np.abs(sound).max() > 0.05
    assert np.abs(np.diff(frames.astype(float), axis=0)).max() > 20, "the face moves"


@pytest.mark.parametrize(
    ("name", "arguments", "missing"),
    [("hosted_agent", ["me.jpg"], "OPENAI_API_KEY"), ("livekit_agent", ["dev"], "LIVEKIT_URL")],
)
@pytest.mark.slow
def test_a_missing_key_is_one_sentence(name: str, arguments: list[str], missing: str, tmp_path: Path) -> None:
    ran = run_example(name, *arguments, folder=tmp_path)
    assert ran.returncode == 2
    lines = [line for line in ran.stderr.splitlines() if missing in line]
    assert len(lines) == 1
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_the_hosted_agent_is_made_of_real_services() -> None:
    from examples.voice_agents.hosted_agent import make_services
    from pipecat.pipeline.pipeline import Pipeline

    Pipeline(make_services(portrait_path("astronaut"), 128, "no-key"))
