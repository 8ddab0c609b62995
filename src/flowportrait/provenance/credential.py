"""Who signs: the user's certificate and key, or a pair made once for this computer and named as what it is.

C2PA wants a leaf certificate below another one, so the self-made pair is a small authority and a signer below it, both
called "self-signed by FlowPortrait". Nobody vouches for it: it proves that a file was not changed since it was written,
not who wrote it.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flowportrait.errors import BadInput
from flowportrait.folders import config_folder
from flowportrait.terminal import say

SELF_SIGNED = "self-signed by FlowPortrait"
VARIABLES = ("FLOWPORTRAIT_CERTIFICATE", "FLOWPORTRAIT_PRIVATE_KEY")
_YEARS = 20
_CURVES = {256: "es256", 384: "es384", 521: "es512"}


@dataclass(frozen=True)
class Credential:
    """PEM texts: the certificate with those above it, the signer's own first, and its private key; the signature
    algorithm as C2PA names it."""

    certificates: str
    private_key: str
    algorithm: str


def find_credential(certificate: Path | None = None, private_key: Path | None = None) -> Credential:
    """The given pair, else that of the environment, else the self-made one in the user's configuration folder.

    Raises:
        BadInput: one of the two is missing, unreadable, does not belong to the other, or is of a kind that C2PA does
            not sign with.
    """
    if certificate is None and private_key is None:
        given = [os.environ.get(name) for name in VARIABLES]
        certificate, private_key = (Path(path) if path else None for path in given)
    if certificate is None and private_key is None:
        return _own(config_folder())
    if certificate is None or private_key is None:
        raise BadInput(
            "A certificate and its private key belong together: give --certificate and --private-key, or set "
            f"{' and '.join(VARIABLES)}."
        )
    return read_credential(certificate, private_key)


def read_credential(certificate: Path, private_key: Path) -> Credential:
    """A pair from two PEM files.

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
    certificates, secret = (path.read_text(encoding="utf-8") for path in (certificate, private_key))
    return Credential(certificates, secret, _algorithm(key, private_key))


def _algorithm(key: object, path: Path) -> str:
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size in _CURVES:
        return _CURVES[key.curve.key_size]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    raise BadInput(f"{path} is of a kind that C2PA does not sign with: use P-256, P-384, P-521, Ed25519 or RSA 2048.")


def _own(folder: Path) -> Credential:
    """The self-made pair in ``folder``, made at the first call; not kept where nothing can be written."""
    certificate, private_key = folder / "self_signed_certificate.pem", folder / "self_signed_private_key.pem"
    if certificate.is_file() and private_key.is_file():
        return read_credential(certificate, private_key)
    made = self_signed()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_secret(private_key, made.private_key)
        _write_secret(certificate, made.certificates)
    except OSError as error:
        say(f"Warning: no certificate can be kept in {folder} ({error.strerror}); one is made for this video alone.")
    return made


def _write_secret(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)


def self_signed() -> Credential:
    """A new authority and a signer below it (P-256), good for twenty years; the authority's key is thrown away."""
    authority, signer = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _name(f"Authority, {SELF_SIGNED}")
    above = _certificate(root, authority.public_key(), root, authority, authority=True)
    leaf = _certificate(
        _name(f"A user of this computer, {SELF_SIGNED}"), signer.public_key(), root, authority, authority=False
    )
    pem = serialization.Encoding.PEM
    return Credential(
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
    """X.509 v3 as section 14.5 of the C2PA specification asks for it."""
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
        # Clocks differ: a certificate made this second must not lie in the reader's future.
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
