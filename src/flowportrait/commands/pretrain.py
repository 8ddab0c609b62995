"""``flowportrait pretrain``: supervised training on a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from flowportrait.commands.options import Flag, OptionalPath, OptionalText, Settings
from flowportrait.files import check_output_folder


@dataclass(frozen=True)
class PretrainOptions:
    """Train a generator on a corpus by supervised learning."""

    configuration: ClassVar[str] = "flowportrait.models.flow_matching:PretrainConfig"
    corpus: Path
    """Folder that prepare wrote."""
    output: Path
    """Folder of the run."""
    resume: Flag = False
    """Continue the run in --output."""
    held_out: OptionalPath = None
    """Prompts for the held-out evaluation; they are never trained on."""
    track: OptionalText = None
    """Also log the metrics to tensorboard or wandb."""
    set: Settings = ()
    """Settings, such as steps=500 generator.guidance=2; --help-settings lists them."""


def run(options: PretrainOptions) -> dict[str, Any]:
    """Train a generator on a corpus (supervised)."""
    check_output_folder(options.output)
    from flowportrait.config import override
    from flowportrait.data.prompts import read_prompts
    from flowportrait.models.pretrain import PretrainConfig, pretrain

    config = override(PretrainConfig(), options.set)
    prompts = read_prompts(options.held_out) if options.held_out else ()
    folder = pretrain(config, options.corpus, options.output, options.resume, prompts, options.track)
    return {"checkpoint": str(folder)}
