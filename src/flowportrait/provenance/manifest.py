"""The signed C2PA manifest of a video: write it, read it back. Nothing is fetched from a network.

talk.mp4, talk.mov, talk.gif    the manifest is in the file
talk.webm                       beside it in talk.c2pa, as the C2PA specification (section 11.4) has it for formats
                                that cannot carry one: it holds the hash of the whole file
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import c2pa

from flowportrait.errors import BadInput
from flowportrait.media.output_formats import output_format
from flowportrait.provenance.credential import SELF_SIGNED, Credential
from flowportrait.provenance.origin import Origin

_OFFLINE = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}
_LARGEST_SIDECAR = 16 << 20
"""Bytes; ours have four thousand."""


@dataclass(frozen=True)
class Signature:
    """present: the file carries a manifest; intact: it was not changed since it was signed; signer, generator and
    source_type as the manifest states them; trusted: the signer is on a trust list; problems: what the reader
    reports, in C2PA's codes; sidecar: the manifest lies in a file of its own."""

    present: bool
    intact: bool = False
    signer: str = ""
    generator: str = ""
    source_type: str = ""
    trusted: bool = False
    problems: tuple[str, ...] = ()
    sidecar: bool = False

    @property
    def self_signed(self) -> bool:
        """Made by FlowPortrait for the computer that wrote the video: nobody vouches for it."""
        return SELF_SIGNED in self.signer


def sidecar_path(path: Path) -> Path:
    """Where the manifest of a file lies that cannot carry it."""
    return path.with_suffix(".c2pa")


def sign(path: Path, origin: Origin, credential: Credential, watermark: bool = True) -> None:
    """Add the signed manifest to the mp4, mov or gif at ``path``, which is replaced when that is complete.

    ``watermark``: whether the manifest says that the frames carry one.

    Raises:
        BadInput: the certificate cannot sign C2PA claims.
    """
    signed = path.with_name(f"{path.stem}.signed{path.suffix}")
    try:
        with path.open("rb") as source, signed.open("w+b") as target:
            _sign(source, target, origin.manifest(output_format(path).mime, watermark), credential, embed=True)
        os.replace(signed, path)
    finally:
        signed.unlink(missing_ok=True)


def detached_manifest(path: Path, origin: Origin, credential: Credential, watermark: bool = True) -> bytes:
    """The signed manifest of the webm at ``path``, to be written to its ``sidecar_path``; see ``sign``.

    Raises:
        BadInput: the certificate cannot sign C2PA claims.
    """
    with path.open("rb") as source:
        return _sign(source, BytesIO(), origin.manifest(output_format(path).mime, watermark), credential, embed=False)


def _sign(source: Any, target: Any, manifest: dict[str, Any], credential: Credential, embed: bool) -> bytes:
    context = c2pa.Context(c2pa.Settings.from_dict(_OFFLINE))
    try:
        info = c2pa.C2paSignerInfo(
            credential.algorithm, credential.certificates.encode(), credential.private_key.encode(), None
        )
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest, context) as builder:
            if not embed:
                builder.set_no_embed()
            return bytes(builder.sign(signer, manifest["format"], source, target))
    except c2pa.C2paError as error:
        raise BadInput(
            f"The video cannot be signed with this certificate ({error}): see docs/provenance.md."
        ) from error


def read_signature(path: Path) -> Signature:
    """The manifest in the file at ``path``, or in the sidecar of one that cannot carry it; not ``present`` where there
    is none."""
    sidecar: bytes | None = None
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:] == b"ftyp":
        mime = "video/mp4"
    elif head[:4] == b"GIF8":
        mime = "image/gif"
    elif sidecar_path(path).is_file() and sidecar_path(path) != path:
        mime = "application/octet-stream"
        if sidecar_path(path).stat().st_size > _LARGEST_SIDECAR:
            return Signature(present=True, problems=(f"sidecar larger than {_LARGEST_SIDECAR >> 20} MB",))
        sidecar = sidecar_path(path).read_bytes()
    else:
        return Signature(present=False)
    context = c2pa.Context(c2pa.Settings.from_dict(_OFFLINE))
    try:
        with path.open("rb") as file, c2pa.Reader(mime, file, sidecar, context) as reader:
            active = reader.get_active_manifest() or {}
            results = reader.get_validation_results() or {}
            state = reader.get_validation_state()
    except c2pa.C2paError as error:
        if "ManifestNotFound" in type(error).__name__ or "no JUMBF data" in str(error):
            return Signature(present=False)
        return Signature(present=True, problems=(str(error),))
    failures = {entry["code"] for entry in results.get("activeManifest", {}).get("failure", [])}
    generators = active.get("claim_generator_info") or [{}]
    signer = active.get("signature_info", {})
    return Signature(
        present=True,
        intact=state in ("Valid", "Trusted"),
        signer=str(signer.get("common_name") or signer.get("issuer") or ""),
        generator=" ".join(str(generators[0].get(key, "")) for key in ("name", "version")).strip(),
        source_type=_source_type(active),
        trusted=state == "Trusted",
        problems=tuple(sorted(failures - {"signingCredential.untrusted"})),
        sidecar=sidecar is not None,
    )


def _source_type(manifest: dict[str, Any]) -> str:
    for assertion in manifest.get("assertions", []):
        if assertion.get("label", "").startswith("c2pa.actions"):
            for action in assertion["data"].get("actions", []):
                if "digitalSourceType" in action:
                    return str(action["digitalSourceType"])
    return ""
