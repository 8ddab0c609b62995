"""Write and read the signed C2PA manifest of a video, and find the certificate that signs it.

    talk.mp4, talk.mov, talk.gif    the manifest is in the file
    talk.webm                       beside it in talk.c2pa, as the C2PA specification (section 11.4) has it for formats
                                    that cannot carry one: it holds the hash of the whole file

The container's tags and the manifest state the same (``VideoOrigin``). Nothing is fetched from a network.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flowportrait import __version__
from flowportrait.errors import BadInput
from flowportrait.files import config_folder
from flowportrait.media.formats import output_format
from flowportrait.terminal import log

# --- Certificates and keys --------------------------------------------------------------
#
# The user's certificate and key sign, or a pair that is created once for this computer and named as what it is. C2PA
# requires a leaf certificate below another one, so the self-made pair is a small authority and a signer below it, both
# called "self-signed by FlowPortrait". Nobody vouches for it: it proves that a file was not changed since it was
# written, not who wrote it.

SELF_SIGNED = "self-signed by FlowPortrait"
CREDENTIAL_VARIABLES = ("FLOWPORTRAIT_CERTIFICATE", "FLOWPORTRAIT_PRIVATE_KEY")
_YEARS = 20
_CURVES = {256: "es256", 384: "es384", 521: "es512"}


@dataclass(frozen=True)
class SigningCredential:
    """A certificate with its private key, as PEM texts.

    Attributes:
        certificates: the signer's certificate first, then those above it.
        private_key: the signer's.
        algorithm: of the signature, as C2PA names it.
    """

    certificates: str
    private_key: str
    algorithm: str


def find_credential(certificate: str | Path | None = None, private_key: str | Path | None = None) -> SigningCredential:
    """Return the given pair, else that of the environment, else the self-made one in the user's configuration folder.

    Raises:
        BadInput: one of the two is missing, unreadable, does not belong to the other, or is of a kind that C2PA does
            not sign with.
    """
    if certificate is None and private_key is None:
        configured = [os.environ.get(name) for name in CREDENTIAL_VARIABLES]
        certificate, private_key = (Path(path) if path else None for path in configured)
    if certificate is None and private_key is None:
        return _self_signed_credential(config_folder())
    if certificate is None or private_key is None:
        raise BadInput(
            "A certificate and its private key belong together: give --certificate and --private-key, or set "
            f"{' and '.join(CREDENTIAL_VARIABLES)}."
        )
    return read_credential(Path(certificate), Path(private_key))


def read_credential(certificate: Path, private_key: Path) -> SigningCredential:
    """Return the pair in two PEM files.

    Raises:
        BadInput: see ``find_credential``.
    """
    for path in (certificate, private_key):
        if not path.is_file():
            raise BadInput(f"No file at {path}: give a certificate and a private key in PEM format.")
    try:
        chain = x509.load_pem_x509_certificates(certificate.read_bytes())
        key = serialization.load_pem_private_key(private_key.read_bytes(), None)
    except (ValueError, TypeError, OSError) as error:
        raise BadInput(
            f"{certificate} and {private_key} cannot be read ({error}): give PEM files, the key without a password."
        ) from error
    kinds = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if chain[0].public_key().public_bytes(*kinds) != key.public_key().public_bytes(*kinds):
        raise BadInput(f"{private_key} is not the key of the first certificate in {certificate}.")
    certificates, key_text = (path.read_text(encoding="utf-8") for path in (certificate, private_key))
    return SigningCredential(certificates, key_text, _algorithm(key, private_key))


def _algorithm(key: object, path: Path) -> str:
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size in _CURVES:
        return _CURVES[key.curve.key_size]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    raise BadInput(f"{path} is of a kind that C2PA does not sign with: use P-256, P-384, P-521, Ed25519 or RSA 2048.")


def _self_signed_credential(folder: Path) -> SigningCredential:
    """Return the self-made pair in ``folder``, created at the first call; not stored if that is impossible."""
    certificate, private_key = folder / "self_signed_certificate.pem", folder / "self_signed_private_key.pem"
    if certificate.is_file() and private_key.is_file():
        return read_credential(certificate, private_key)
    credential = self_signed()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_secret(private_key, credential.private_key)
        _write_secret(certificate, credential.certificates)
    except OSError as error:
        log(f"Warning: no certificate can be kept in {folder} ({error.strerror}); one is made for this video only.")
    return credential


def _write_secret(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)


def self_signed() -> SigningCredential:
    """Return a signer (P-256) below a new authority, valid for twenty years; its key is discarded."""
    authority, signer = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _name(f"Authority, {SELF_SIGNED}")
    above = _certificate(root, authority.public_key(), root, authority, authority=True)
    leaf = _certificate(
        _name(f"A user of this computer, {SELF_SIGNED}"), signer.public_key(), root, authority, authority=False
    )
    pem = serialization.Encoding.PEM
    return SigningCredential(
        (leaf.public_bytes(pem) + above.public_bytes(pem)).decode(),
        signer.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        "es256",
    )  # fmt: skip


def _name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, SELF_SIGNED), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    signed_by: ec.EllipticCurvePrivateKey,
    authority: bool,
) -> x509.Certificate:
    """Return an X.509 v3 certificate after section 14.5 of the C2PA specification."""
    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"), False
    )  # fmt: skip
    usage |= {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Clocks differ: a new certificate must already be valid by the reader's clock.
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signed_by.public_key()), critical=False
        )
    )  # fmt: skip
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(signed_by, hashes.SHA256())


# --- What a video states about itself ---------------------------------------------------

IPTC_ADDRESS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
"""Address of the IPTC's digital source types."""
IPTC_SOURCE_TYPE = {
    "portrait": "trainedAlgorithmicMedia", "driven": "trainedAlgorithmicMedia",
    "footage": "compositeWithTrainedAlgorithmicMedia",
}  # fmt: skip
"""IPTC digital source type of an animated portrait and of dubbed footage."""
DISCLOSURE_SENTENCE = {
    "portrait": "Synthetic video: a still portrait animated by AI to match speech.",
    "driven": "Synthetic video: a still portrait animated by AI with the movements of a person in another video.",
    "footage": "Synthetic video: the lips in this footage were redrawn by AI to match other speech.",
}


@dataclass(frozen=True)
class VideoOrigin:
    """How a video was made: a portrait animated to speech or driven by a person, or dubbed footage."""

    source_kind: Literal["portrait", "driven", "footage"]

    @property
    def sentence(self) -> str:
        """The sentence that tells a viewer how the video was made."""
        return DISCLOSURE_SENTENCE[self.source_kind]

    @property
    def source_type(self) -> str:
        """The IPTC digital source type, as platforms read it."""
        return IPTC_ADDRESS + IPTC_SOURCE_TYPE[self.source_kind]

    def tags(self) -> dict[str, str]:
        """Return the container metadata that players and file managers show."""
        return {
            "comment": f"{self.sentence} Made with FlowPortrait {__version__}.",
            "description": self.source_type,
            "keywords": "AI-generated, synthetic media, FlowPortrait",
        }

    def manifest(self, mime: str = "video/mp4", watermark: bool = True) -> dict[str, Any]:
        """Return the C2PA manifest definition (specification 2.2) of a file: what made it and which actions were done.

        Args:
            mime: media type of the file.
            watermark: whether its frames carry a watermark.
        """
        agent = {"name": "FlowPortrait", "version": __version__}
        actions = [
            {
                "action": "c2pa.created",
                "digitalSourceType": self.source_type,
                "softwareAgent": agent,
                "description": self.sentence,
            },
        ]
        if watermark:
            actions.append({"action": "c2pa.watermarked.unbound", "softwareAgent": agent})
        return {
            "claim_generator_info": [agent],
            "title": "Talking portrait",
            "format": mime,
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
        }


# --- Signing and reading ----------------------------------------------------------------

_OFFLINE = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}
_LARGEST_SIDECAR = 16 << 20
"""Bytes of the largest sidecar that is read; ours have about four thousand."""


@dataclass(frozen=True)
class Signature:
    """What the manifest of a file states, and whether it is valid.

    Attributes:
        present: the file has a manifest.
        intact: the file was not changed since it was signed.
        signer: as the manifest states it.
        generator: as the manifest states it.
        source_type: as the manifest states it.
        trusted: the signer is on a trust list.
        problems: what the reader reports, in C2PA's codes.
        sidecar: the manifest lies in a file of its own.
    """

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
        """Whether FlowPortrait made the certificate for the computer that wrote the video: nobody vouches for it."""
        return SELF_SIGNED in self.signer


def sidecar_path(path: Path) -> Path:
    """Return the path of the manifest of a file that cannot carry it."""
    return path.with_suffix(".c2pa")


def sign_video(path: Path, origin: VideoOrigin, credential: SigningCredential, watermark: bool = True) -> None:
    """Add the signed manifest to the mp4, mov or gif at ``path``, which is replaced once the signed file is complete.

    Args:
        path: the file.
        origin: how the video was made.
        credential: the certificate and key that sign.
        watermark: whether the manifest states that the frames carry one.

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


def build_detached_manifest(
    path: Path, origin: VideoOrigin, credential: SigningCredential, watermark: bool = True
) -> bytes:
    """Return the signed manifest of the webm at ``path``, to be written to its ``sidecar_path``.

    For the arguments see ``sign``.

    Raises:
        BadInput: the certificate cannot sign C2PA claims.
    """
    with path.open("rb") as source:
        return _sign(source, BytesIO(), origin.manifest(output_format(path).mime, watermark), credential, embed=False)


def _sign(source: Any, target: Any, manifest: dict[str, Any], credential: SigningCredential, embed: bool) -> bytes:
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
            f"The video cannot be signed with this certificate ({error}): see docs/guides/provenance.md."
        ) from error


def read_signature(path: Path) -> Signature:
    """Return the manifest in the file at ``path``, or in the sidecar of a file that cannot carry it.

    It is not ``present`` where there is none.
    """
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
