"""Where contestants of ``recipes.py`` train and are watched: corpus, prompts, portraits, test clips, one composite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from contestants import SMALL
from material import choice_clips as test_clips

from flowportrait.config import override
from flowportrait.data.corpus import FaceClip
from flowportrait.data.prompts import read_prompts
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.models.arflow import ARFlow
from flowportrait.models.sampler import sample_from_mel
from flowportrait.rendering.motion_filters import MotionLowPass
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import Recipe
from flowportrait.rl.policy_adapter import load_speech_items
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.task import PortraitRenderer, SpeechPrompts, TalkingTask, draw_prompts

SIZE = 256
WATCHED = 16
"""Held-out performances per look."""


@dataclass(frozen=True)
class Bench:
    """Where everything is."""

    corpus: Path
    data: Path
    prompts: Path
    held_out: Path
    output: Path
    seconds: float
    clips: int

    @cached_property
    def everything(self) -> CompositeReward:
        """The composite that all are watched with, whatever they were trained on."""
        return CompositeReward.default()

    @cached_property
    def portraits(self) -> list[MotionCodec]:
        """Who speaks in the videos, in turn."""
        images = sorted(path for path in (self.data / "portraits").iterdir() if path.suffix in (".jpg", ".png"))
        used = images[: self.clips]
        return [MotionCodec(Portrait.from_image(read_image(path), SIZE, path.name)) for path in used]

    @cached_property
    def test(self) -> dict[str, FaceClip]:
        """What is spoken in the videos."""
        return test_clips(self.corpus, self.clips)

    @cached_property
    def held(self) -> TalkingTask:
        """What all are watched on."""
        return self._task(self.held_out, override(find_recipe("flow-grpo"), SMALL))

    @cached_property
    def spoken(self) -> TalkingTask:
        """What all learn from."""
        return self._task(self.prompts, override(find_recipe("flow-grpo"), SMALL))

    @cached_property
    def shown(self) -> TalkingTask:
        """What those learn from who are shown real clips: the corpus is their speech."""
        return self._task(self.prompts, override(find_recipe("exemplar-awm"), SMALL), self.corpus)

    def watch(self, policy: ARFlow) -> dict[str, list[float]]:
        """All rewards of every held-out performance as delivered; the same prompts and noise every time."""
        held = self.held
        prompts = SpeechPrompts(*draw_prompts(held.items, WATCHED, held.frames, 0, 0))
        assert held.renderer_for is not None, "these tasks draw"
        motion = MotionLowPass()(sample_from_mel(policy, prompts.mel, list(range(WATCHED))))
        scores = self.everything(RewardBatch(motion, prompts.mel, held.renderer_for(prompts.portraits)))
        return {name: [round(value, 6) for value in score.value.tolist()] for name, score in scores.items()}

    def at_start(self, policy: ARFlow) -> dict[str, list[float]]:
        """What is watched before anything is learned: the same for everybody, looked at once."""
        path = self.folder("sft", 0) / "held.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.watch(policy)) + "\n")
        found: dict[str, list[float]] = json.loads(path.read_text())
        return found

    def folder(self, name: str, seed: int) -> Path:
        return self.output / name.replace(" ", "_") / str(seed)

    def _task(self, folder: Path, recipe: Recipe, exemplars: Path | None = None) -> TalkingTask:
        items, codecs = load_speech_items(read_prompts(folder), recipe, exemplars)

        def draw(rows: Sequence[int]) -> PortraitRenderer:
            return PortraitRenderer(codecs, rows, recipe.render_size)

        return TalkingTask(items, recipe.frames, draw, chunk=4)
