"""``flowportrait verify``: what videos say about themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro import conf

from flowportrait.commands.options import Json

if TYPE_CHECKING:
    from flowportrait.provenance.inspection import ProvenanceReport


@dataclass(frozen=True)
class VerifyOptions:
    """Say whether videos were made with FlowPortrait, and who signed them."""

    video: conf.Positional[Annotated[tuple[Path, ...], conf.arg(metavar="FILE [FILE ...]", help_behavior_hint="")]]
    """Videos (mp4, mov, webm or gif), or folders of them."""
    json: Json = False


def run(options: VerifyOptions) -> dict[str, Any]:
    """Return tags, signature and watermark of one file, or of several and of every video in a folder."""
    from flowportrait.errors import BadInput
    from flowportrait.provenance.inspection import inspect_provenance, list_videos
    from flowportrait.terminal import progress

    if not options.video:
        raise BadInput("No video was given: name files or folders, as in flowportrait verify talking.mp4.")
    if len(options.video) > 1 or options.video[0].is_dir():
        paths = [path for one in options.video for path in (list_videos(one) if one.is_dir() else [one])]
        return _verify_several(paths, options.json)
    (found,) = [inspect_provenance(path) for path in progress(options.video, 1, "looking for the watermark")]
    return found.to_dict() if options.json else found.sentences()


def _verify_several(paths: list[Path], as_json: bool) -> dict[str, Any]:
    from rich.markup import escape
    from rich.table import Table

    from flowportrait.errors import BadInput
    from flowportrait.provenance.inspection import inspect_provenance
    from flowportrait.terminal import log, print_table, progress

    # Files of one folder are named without it; others might share a name.
    names = [path.name if len({path.parent for path in paths}) == 1 else str(path) for path in paths]
    found: dict[str, ProvenanceReport | str] = {}
    for name, path in zip(names, progress(paths, len(paths), "looking for the watermark"), strict=True):
        try:
            found[name] = inspect_provenance(path)
        except BadInput as error:
            found[name] = str(error)
    if as_json:
        return {
            "files": {name: {"error": one} if isinstance(one, str) else one.to_dict() for name, one in found.items()}
        }
    table = Table(box=None, pad_edge=False)
    for column in ("file", "made with FlowPortrait", "tags", "signature", "watermark"):
        table.add_column(column, overflow="fold")
    for name, one in found.items():
        table.add_row(escape(name), *(["cannot be read"] if isinstance(one, str) else map(escape, one.cells())))
    print_table(table)
    for one in found.values():
        if isinstance(one, str):
            log(one)
    marked = sum(one.marked for one in found.values() if not isinstance(one, str))
    return {"made with FlowPortrait": f"{marked} of {len(found)}"}
