"""The provenance options that every command which writes a video has."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowportrait.provenance.origin import Origin
    from flowportrait.provenance.publish import Provenance


def add_provenance_options(parser: argparse.ArgumentParser) -> None:
    """``--no-provenance``, ``--certificate`` and ``--private-key``."""
    parser.add_argument(
        "--no-provenance", action="store_true", help="write no AI label, no signed manifest and no watermark"
    )
    parser.add_argument("--certificate", type=Path, help="PEM chain to sign the video with (default: a self-made one)")
    parser.add_argument("--private-key", type=Path, help="PEM key of --certificate")


def provenance_of(options: argparse.Namespace, origin: Origin) -> Provenance | None:
    """What the options ask for; fails before the work, not after it.

    Raises:
        BadInput: the certificate or its key cannot be used.
    """
    from flowportrait.provenance.credential import find_credential
    from flowportrait.provenance.publish import Provenance

    if options.no_provenance:
        return None
    return Provenance(origin, find_credential(options.certificate, options.private_key))
