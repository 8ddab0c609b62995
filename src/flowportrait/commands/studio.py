"""``flowportrait studio``: make videos in a browser, on this machine."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from flowportrait.commands.options import Settings
from flowportrait.extras import require_extra
from flowportrait.files import check_output_folder
from flowportrait.terminal import log, waiting


@dataclass(frozen=True)
class StudioOptions:
    """Make, compare and train talking portraits in a browser, on this machine only."""

    configuration: ClassVar[str] = "flowportrait.studio.storage:StudioLimits"
    folder: Path = Path("studio")
    """Folder for the files of the studio."""
    port: int = 7860
    """Port to listen on; 0 picks a free one."""
    set: Settings = ()
    """Limits: seconds, letters, megabytes, minutes, waiting, hours, kept_megabytes."""


def run(options: StudioOptions) -> dict[str, Any]:
    """Serve until Ctrl-C."""
    check_output_folder(options.folder)
    require_extra("studio", "fastapi", "uvicorn")
    with ExitStack() as display:
        display.enter_context(waiting("starting the studio"))
        from flowportrait.config import override
        from flowportrait.studio.server import Studio, serve_studio
        from flowportrait.studio.storage import StudioLimits

        def ready(address: str) -> None:
            display.close()
            log(f"The studio is at {address} (Ctrl-C ends it).")

        serve_studio(Studio(options.folder, override(StudioLimits(), options.set)), options.port, ready)
    return {}
