"""Inspect the provenance of a video file and describe it in sentences: container tags, C2PA signature, watermark."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av

from flowportrait.errors import BadInput
from flowportrait.media.containers import check_is_file, open_media
from flowportrait.media.formats import OUTPUT_FORMATS
from flowportrait.media.video import iter_frames
from flowportrait.provenance.manifest import Signature, read_signature
from flowportrait.provenance.watermark import WatermarkMatch, find_watermark

_LARGEST_PICTURE = 64_000_000
"""Pixels: twice 8K. A file of a few kilobytes can declare pictures of gigabytes."""
_LONGEST_TAG = 1000
_VIDEOS = {*OUTPUT_FORMATS, ".m4v", ".mkv", ".avi"}


@dataclass(frozen=True)
class ProvenanceReport:
    """The three marks of one file: container tags, C2PA signature, watermark."""

    tags: dict[str, str]
    signature: Signature
    watermark: WatermarkMatch

    def sentences(self) -> dict[str, str]:
        """Return one sentence each for ``verdict``, ``metadata``, ``signature`` and ``watermark``."""
        return {
            "verdict": self._verdict(),
            "metadata": self._metadata(),
            "signature": _signature_sentence(self.signature),
            "watermark": _watermark_sentence(self.watermark),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, the sentences included."""
        signature = asdict(self.signature) | {"self_signed": self.signature.self_signed}
        found = asdict(self.watermark) | {"found": self.watermark.found}
        return {**self.sentences(), "tags": self.tags, "details": {"signature": signature, "watermark": found}}

    @property
    def tagged(self) -> bool:
        """Whether the tags name FlowPortrait."""
        return "FlowPortrait" in self.tags.get("comment", "")

    @property
    def marked(self) -> bool:
        """Whether any of the three marks names FlowPortrait."""
        return any(self._marks().values())

    def cells(self) -> tuple[str, str, str, str]:
        """Return the cells of a table row: made with FlowPortrait or not, tags, signature, watermark."""
        signature = self.signature
        if not signature.present:
            signed = "none"
        elif not signature.intact:
            signed = "does not fit the file"
        else:
            signed = "intact, self-signed" if signature.self_signed else f"intact, {signature.signer or 'unnamed'}"
        watermark = f"{'found' if self.watermark.found else 'none'} ({self.watermark.score:.1f})"
        return ("yes" if self.marked else "no mark", "yes" if self.tagged else "none", signed, watermark)

    def _marks(self) -> dict[str, bool]:
        signed = self.signature.intact and "FlowPortrait" in self.signature.generator
        return {"tags": self.tagged, "signature": signed, "watermark": self.watermark.found}

    def _verdict(self) -> str:
        marks = [f"its {name}" for name, there in self._marks().items() if there]
        if marks:
            return (
                f"AI-generated with FlowPortrait, as {_enumerate_names(marks)} {'say' if len(marks) > 1 else 'says'}."
            )
        return "No mark of FlowPortrait was found; that does not prove that the video is real."

    def _metadata(self) -> str:
        if self.tagged:
            return f"The container says: {self.tags['comment']}"
        return "The container does not name FlowPortrait (re-encoding and messengers drop such tags)."


def inspect_provenance(path: str | Path) -> ProvenanceReport:
    """Read all three marks of a video file: container tags, C2PA signature and watermark.

    Args:
        path: mp4, mov, webm or gif.

    Returns:
        What the marks say, each on its own and as sentences.

    Raises:
        BadInput: the file is missing, cannot be decoded, or its pictures are larger than 64 megapixels.
    """
    path = Path(path)
    check_is_file(path, "video")
    tags = read_container_tags(path)
    frames = iter_frames(path)
    try:
        detection = find_watermark(frames)
    except ValueError as error:
        raise BadInput(f"{path} holds no decodable frame: give another file.") from error
    finally:
        frames.close()
    return ProvenanceReport(tags, read_signature(path), detection)


def list_videos(folder: Path) -> list[Path]:
    """Return the files of a folder that are named as videos, sorted by name, without hidden ones.

    Raises:
        BadInput: there is none.
    """
    paths = [path for path in folder.iterdir() if path.suffix.lower() in _VIDEOS and not path.name.startswith(".")]
    if not paths:
        raise BadInput(f"{folder} holds no video ({', '.join(sorted(_VIDEOS))}): give another folder, or a file.")
    return sorted(path for path in paths if path.is_file())


def read_container_tags(path: Path) -> dict[str, str]:
    """Return the tags of a file, with names in lower case (Matroska has upper case).

    Raises:
        BadInput: the file cannot be opened, or its pictures are larger than 64 megapixels.
    """
    try:
        with open_media(path) as container:
            for stream in container.streams.video:
                context = stream.codec_context
                if context is not None and context.width * context.height > _LARGEST_PICTURE:
                    size = f"{context.width}x{context.height}"
                    raise BadInput(f"{path} has pictures of {size} px, more than 64 megapixels: give a smaller video.")
            return {str(key).lower(): str(value)[:_LONGEST_TAG] for key, value in container.metadata.items()}
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{path} cannot be opened as a video ({reason}): give an mp4, mov, webm or gif file.") from error


def _signature_sentence(signature: Signature) -> str:
    if not signature.present:
        return "There is no C2PA manifest in the file or beside it (re-encoding drops it)."
    if not signature.intact:
        return (
            f"There is a C2PA manifest, but it does not fit the file ({', '.join(signature.problems)}): changed since."
        )
    signed_by = f"signed by {signature.signer or 'an unnamed signer'}"
    if signature.self_signed:
        trust = "nobody vouches for the signer: the certificate was made on the computer that wrote the video"
    elif signature.trusted:
        trust = "the signer is on a trust list"
    else:
        trust = "the signer is on no trust list known here"
    kind = signature.source_type.rsplit("/", 1)[-1] or "no source type"
    place = " beside the file" if signature.sidecar else ""
    made_with = f"made with {signature.generator}, {signed_by}"
    return f"The C2PA manifest{place} is intact, {made_with}, states {kind}; {trust}."


def _watermark_sentence(finding: WatermarkMatch) -> str:
    if not finding.found:
        return f"No FlowPortrait watermark (score {finding.score:.1f}, {finding.threshold:.1f} needed)."
    changes = []
    if finding.mirrored:
        changes.append("mirrored")
    if finding.moved:
        changes.append("cropped or padded")
    suffix = f", {' and '.join(changes)} since" if changes else ""
    score = f"score {finding.score:.1f}, {finding.threshold:.1f} needed"
    return f"FlowPortrait's watermark is in the picture ({score}){suffix}."


def _enumerate_names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
