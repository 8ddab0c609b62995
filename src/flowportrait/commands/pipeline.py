"""``flowportrait pipeline``: all stages of a training from one run file, resumable between and inside stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro import conf

from flowportrait.commands.options import Flag, Json, OptionalText, RayAddress
from flowportrait.terminal import waiting


@dataclass(frozen=True)
class PipelineOptions:
    """Run the stages prepare, pretrain, posttrain, control, distil and evaluate of a run file.

    Run the same command again to continue: finished stages are skipped, an interrupted one goes on from its last state.
    """

    run_file: conf.Positional[Annotated[Path, conf.arg(metavar="RUN.YAML")]]
    """YAML file with the folder of the run and the options of each stage."""
    dry_run: Flag = False
    """Check everything and print what would be done."""
    from_stage: OptionalText = None
    """Make this stage and those after it again; --from STAGE for short."""
    ray: RayAddress = None
    """Spread the stages that can use it over the machines of a Ray cluster: auto, HOST:PORT, or ray://HOST:PORT."""
    json: Json = False


def run(options: PipelineOptions) -> dict[str, Any]:
    """Run the stages of a run file that are not finished."""
    with waiting("starting"):
        from flowportrait.parallel import check_cluster
        from flowportrait.workflow.execution import PipelineRun
        from flowportrait.workflow.run_file import read_run_file

        check_cluster(options.ray)
        pipeline = PipelineRun(read_run_file(options.run_file, options.ray))
    return pipeline.preview(options.from_stage) if options.dry_run else pipeline.run(options.from_stage)
