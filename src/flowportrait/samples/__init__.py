"""A short recording of speech, for the demo and for benchmarks without prompts."""

from __future__ import annotations

from pathlib import Path

SPEECH = Path(__file__).with_name("beckett.flac")
"""Ten seconds of reading, 16 kHz mono, from the package useful-moonshine-onnx (MIT licence, see ``NOTICE``)."""
