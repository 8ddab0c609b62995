"""Settings of supervised training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.generator.config import GeneratorConfig


@dataclass(frozen=True)
class PretrainConfig:
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    steps: int = 6000
    batch: int = 32
    windows: tuple[int, ...] = (28, 72)
    """Window lengths in frames, taken in turn."""
    accumulate: int = 1
    """Parts that a batch is drawn and learned from in, for the memory of one part."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the networks compute in while training; ``auto`` is bf16 on a GPU that has it."""
    learning_rate: float = 4e-4
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: half a cosine to the end, or level (warm-up, stable, decay) with a straight line down."""
    decay_share: float = 0.2
    """Share of the steps that ``wsd`` decays over."""
    warmup: int = 200
    weight_decay: float = 0.05
    ema: float = 0.999
    variants: int = 4
    """Other voices and rooms that each clip is heard in, besides its own."""
    lip_steps: int = 500
    """Steps of the first stage; few, since it must predict speakers it has not seen. 0 hears as ``start_from`` does."""
    lip_residual: float = 0.5
    """τ, the share that training targets keep of lip motion that sound does not tell; 1 is real motion."""
    start_from: str = ""
    """Checkpoint to inherit weights from."""
    history_noise: float = 0.7
    """Largest displacement of the history, in typical changes over a chunk."""
    long_window: int = 0
    """Frames of windows strung together from clips, in the place of ``windows`` (see ``rollout_history``); 0 is off."""
    own_history: bool = True
    """In long windows, go on from the generator's own motion and not from the real one."""
    drop_audio: float = 0.1
    drop_style: float = 0.2
    seed: int = 0
    splits: tuple[str, ...] = ("reward", "evaluation", "train")
    held_out: tuple[str, ...] = ("dev",)
    check_every: int = 250
    look_every: int = 2000
    """Steps between looks at the held-out prompts, if any are given."""

    def __post_init__(self) -> None:
        at_least(self, steps=1, batch=1, learning_rate=0, warmup=0, weight_decay=0, ema=0, check_every=1)
        at_least(self, variants=0, lip_steps=0, lip_residual=0, history_noise=0, drop_audio=0, drop_style=0)
        at_least(self, long_window=0, accumulate=1, decay_share=0, look_every=1)
        if self.batch % self.accumulate:
            raise BadInput(f"batch={self.batch} does not divide into accumulate={self.accumulate} equal parts.")
