"""The signed C2PA manifest of an mp4: put it in, read it back. Nothing is fetched from a network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import c2pa

from flowportrait.errors import BadInput
from flowportrait.provenance.credential import SELF_SIGNED, Credential
from flowportrait.provenance.origin import Origin

_OFFLINE = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}


@dataclass(frozen=True)
class Signature:
    """present: the file carries a manifest; intact: it was not changed since it was signed; signer, generator and
    source_type as the manifest states them; trusted: the signer is on a trust list; problems: what the reader
    reports, in C2PA's codes."""

    present: bool
    intact: bool = False
    signer: str = ""
    generator: str = ""
    source_type: str = ""
    trusted: bool = False
    problems: tuple[str, ...] = ()

    @property
    def self_signed(self) -> bool:
        """Made by FlowPortrait for the computer that wrote the video: nobody vouches for it."""
        return SELF_SIGNED in self.signer


def sign(path: Path, origin: Origin, credential: Credential) -> None:
    """Add the signed manifest to the mp4 at ``path``, which is replaced when that is complete.

    Raises:
        BadInput: the certificate cannot sign C2PA claims.
    """
    signed = path.with_name(f"{path.stem}.signed{path.suffix}")
    context = c2pa.Context(c2pa.Settings.from_dict(_OFFLINE))
    try:
        info = c2pa.C2paSignerInfo(
            credential.algorithm, credential.certificates.encode(), credential.private_key.encode(), None
        )
        with (
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(origin.manifest(), context) as builder,
            path.open("rb") as source,
            signed.open("w+b") as target,
        ):
            builder.sign(signer, "video/mp4", source, target)
        os.replace(signed, path)
    except c2pa.C2paError as error:
        raise BadInput(
            f"The video cannot be signed with this certificate ({error}): see docs/provenance.md."
        ) from error
    finally:
        signed.unlink(missing_ok=True)


def read_signature(path: Path) -> Signature:
    """The manifest of the file at ``path``; not ``present`` where there is none."""
    with path.open("rb") as file:
        if file.read(8)[4:] != b"ftyp":
            # Only mp4 and its relatives are written and signed here.
            return Signature(present=False)
    context = c2pa.Context(c2pa.Settings.from_dict(_OFFLINE))
    try:
        with path.open("rb") as file, c2pa.Reader("video/mp4", file, context=context) as reader:
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
    )


def _source_type(manifest: dict[str, Any]) -> str:
    for assertion in manifest.get("assertions", []):
        if assertion.get("label", "").startswith("c2pa.actions"):
            for action in assertion["data"].get("actions", []):
                if "digitalSourceType" in action:
                    return str(action["digitalSourceType"])
    return ""
