"""What a file says about itself, in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av

from flowportrait.errors import BadInput
from flowportrait.media.video import iter_frames
from flowportrait.provenance.detect import Finding, find_watermark
from flowportrait.provenance.manifest import Signature, read_signature


@dataclass(frozen=True)
class Inspection:
    """The three marks of one file: container tags, C2PA signature, watermark."""

    tags: dict[str, str]
    signature: Signature
    watermark: Finding

    def sentences(self) -> dict[str, str]:
        """``verdict``, ``metadata``, ``signature`` and ``watermark``, one sentence each."""
        return {
            "verdict": self._verdict(),
            "metadata": self._metadata(),
            "signature": _signature(self.signature),
            "watermark": _watermark(self.watermark),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, the sentences among them."""
        signature = asdict(self.signature) | {"self_signed": self.signature.self_signed}
        found = asdict(self.watermark) | {"found": self.watermark.found}
        return {**self.sentences(), "tags": self.tags, "details": {"signature": signature, "watermark": found}}

    @property
    def tagged(self) -> bool:
        """The tags name FlowPortrait."""
        return "FlowPortrait" in self.tags.get("comment", "")

    def _verdict(self) -> str:
        signed = self.signature.intact and "FlowPortrait" in self.signature.generator
        seen = {"tags": self.tagged, "signature": signed, "watermark": self.watermark.found}
        marks = [f"its {name}" for name, there in seen.items() if there]
        if marks:
            return f"AI-generated with FlowPortrait, as {_joined(marks)} {'say' if len(marks) > 1 else 'says'}."
        return "No mark of FlowPortrait was found; that does not prove that the video is real."

    def _metadata(self) -> str:
        if self.tagged:
            return f"The container says: {self.tags['comment']}"
        return "The container does not name FlowPortrait (re-encoding and messengers drop such tags)."


def inspect(path: Path) -> Inspection:
    """Read all three marks of a video file.

    Raises:
        BadInput: the file is missing or cannot be decoded.
    """
    frames = iter_frames(path)
    try:
        found = find_watermark(frames)
    except ValueError as error:
        raise BadInput(f"{path} holds no decodable frame: give another file.") from error
    finally:
        frames.close()
    with av.open(str(path)) as container:
        tags = {str(key): str(value) for key, value in container.metadata.items()}
    return Inspection(tags, read_signature(path), found)


def _signature(signature: Signature) -> str:
    if not signature.present:
        return "There is no C2PA manifest (re-encoding drops it)."
    if not signature.intact:
        return (
            f"There is a C2PA manifest, but it does not fit the file ({', '.join(signature.problems)}): changed since."
        )
    who = f"signed by {signature.signer or 'an unnamed signer'}"
    if signature.self_signed:
        trust = "nobody vouches for the signer: the certificate was made on the computer that wrote the video"
    elif signature.trusted:
        trust = "the signer is on a trust list"
    else:
        trust = "the signer is on no trust list known here"
    kind = signature.source_type.rsplit("/", 1)[-1] or "no source type"
    return f"The C2PA manifest is intact, made with {signature.generator}, {who}, states {kind}; {trust}."


def _watermark(finding: Finding) -> str:
    if not finding.found:
        return f"No FlowPortrait watermark (score {finding.score:.1f}, {finding.threshold:.1f} needed)."
    how = []
    if finding.mirrored:
        how.append("mirrored")
    if finding.moved:
        how.append("cropped or padded")
    changed = f", {' and '.join(how)} since" if how else ""
    score = f"score {finding.score:.1f}, {finding.threshold:.1f} needed"
    return f"FlowPortrait's watermark is in the picture ({score}){changed}."


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
