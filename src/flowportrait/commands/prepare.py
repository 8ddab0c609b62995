"""``flowportrait prepare``: videos to a training corpus, and a look at one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from flowportrait.commands.options import Inputs, Json, OptionalInt, OptionalPath, RayAddress, Settings
from flowportrait.errors import BadInput
from flowportrait.files import check_output_folder
from flowportrait.terminal import waiting


@dataclass(frozen=True)
class PrepareOptions:
    """Prepare a training corpus from videos, or write a report about one."""

    configuration: ClassVar[str] = "flowportrait.data.quality_gates:QualityGates"
    inputs: Inputs = ()
    """Footage: videos or folders."""
    output: OptionalPath = None
    """Folder of the corpus; an unfinished one is continued."""
    inspect: OptionalPath = None
    """Write a report with pictures into this corpus."""
    layout: str = "auto"
    """How files name their speakers: auto, folders, voxceleb2, lrs3, hdtf, mead or grid."""
    hold_out: float = 0.0
    """Share of the speakers that goes to the split dev."""
    crops: int = 0
    """Also write videos of the faces, of this size in pixels."""
    shards: int = 0
    """Also write WebDataset shards of this size in megabytes."""
    workers: OptionalInt = None
    """Number of processes; by default one per core."""
    ray: RayAddress = None
    """Prepare the videos on the machines of a Ray cluster: auto, HOST:PORT, or ray://HOST:PORT."""
    set: Settings = ()
    """Quality gates, such as yaw=30 eyes=60; --help-settings lists them."""
    json: Json = False


def run(options: PrepareOptions) -> dict[str, Any]:
    """Prepare a corpus from videos, or write the report of a corpus."""
    if options.inspect is not None:
        if options.inputs or options.output:
            raise BadInput("flowportrait prepare --inspect CORPUS takes no videos and no --output.")
        with waiting("drawing the report"):
            from flowportrait.data.corpus_report import write_corpus_report

            return write_corpus_report(options.inspect)
    if not options.inputs or not options.output:
        raise BadInput("flowportrait prepare needs videos and --output, or --inspect with a corpus.")
    if options.crops and (not 64 <= options.crops <= 2048 or options.crops % 2):
        raise BadInput(f"--crops {options.crops} is not possible: give an even number from 64 to 2048.")
    if not 0 <= options.hold_out < 1:
        raise BadInput(f"--hold-out {options.hold_out} is not possible: give a share from 0 to below 1.")
    check_output_folder(options.output)
    with waiting("starting"):
        from flowportrait.config import override
        from flowportrait.data.prepare import PreparationConfig, prepare_corpus
        from flowportrait.data.quality_gates import QualityGates
        from flowportrait.parallel import check_cluster

        check_cluster(options.ray)
    plan = PreparationConfig(
        options.layout,
        options.hold_out,
        override(QualityGates(), options.set),
        options.crops,
        options.shards,
        options.workers,
        options.ray,
    )
    return {"output": str(options.output), **prepare_corpus(options.inputs, options.output, plan)}
