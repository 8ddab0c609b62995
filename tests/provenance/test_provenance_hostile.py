"""Claims about files that were made to break whoever reads their provenance."""

from __future__ import annotations

import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowportrait.errors import BadInput
from flowportrait.media.video import iter_frames
from flowportrait.provenance.inspection import read_container_tags
from flowportrait.provenance.manifest import VideoOrigin, read_signature, self_signed, sidecar_path
from flowportrait.provenance.publish import Provenance, write_video_with_provenance
from flowportrait.provenance.watermark import MAX_FRAMES_READ

SUFFIXES = (".mp4", ".mov", ".gif", ".webm", ".c2pa")
"""What is damaged: four formats, and the manifest beside the webm."""
SECONDS = 20
"""That no file of a few kilobytes may take, on the busiest machine."""
MEGABYTES = 400
"""That all of them together may add to the process."""

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["write", "insert", "delete", "repeat", "end"]),
        st.floats(0, 1),
        st.one_of(
            st.binary(max_size=16),
            st.sampled_from(
                [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\1" + b"\xff" * 8, b"jumb", b"jumd", b"uuid"]
            ),
        ),
    ),
    max_size=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a small signed video in every format, and of the webm's manifest."""
    folder = tmp_path_factory.mktemp("published")
    frames = [np.full((32, 32, 3), 60 * index, np.uint8) for index in range(3)]
    for suffix in SUFFIXES[:4]:
        write_video_with_provenance(
            folder / f"a{suffix}",
            frames,
            np.zeros(1920, np.float32),
            Provenance(VideoOrigin("portrait"), self_signed()),
        )
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


def changed(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    """The bytes after every change at its place."""
    for kind, where, value in changes:
        place = int(where * len(data))
        if kind == "end":
            data = data[:place]
        elif kind == "repeat":
            data = data[:place] + data[place : place + 64] * 40 + data[place:]
        else:
            skipped = {"write": len(value), "insert": 0, "delete": 8 * len(value)}[kind]
            data = data[:place] + (b"" if kind == "delete" else value) + data[place + skipped :]
    return data


def read_everything(folder: Path, published: dict[str, bytes], suffix: str, data: bytes) -> None:
    """Read signature, tags and pictures; what is wrong is said in a sentence or found not to be there."""
    path = folder / f"a{'.webm' if suffix == '.c2pa' else suffix}"
    path.write_bytes(published[".webm"] if suffix == ".c2pa" else data)
    sidecar_path(path).write_bytes(data if suffix == ".c2pa" else published[".c2pa"])
    began = time.monotonic()
    signature = read_signature(path)
    assert signature.present or not signature.intact
    for read in (read_container_tags, lambda given: list(islice(iter_frames(given), MAX_FRAMES_READ))):
        try:
            read(path)
        except BadInput as error:
            message = str(error)
            assert "\n" not in message, message
    assert time.monotonic() - began < SECONDS


@settings(max_examples=40)
@given(suffix=st.sampled_from(SUFFIXES), changes=CHANGES)
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    published: dict[str, bytes],
    suffix: str,
    changes: list[tuple[str, float, bytes]],
) -> None:
    read_everything(tmp_path_factory.mktemp("d"), published, suffix, changed(published[suffix], changes))


@pytest.mark.slow
@pytest.mark.fuzz
def test_twenty_thousand_damaged_files_are_read_or_refused_in_bounded_time_and_memory(
    tmp_path: Path, published: dict[str, bytes]
) -> None:
    """No crash, no hang, and 400 MB more at most for all of them together."""
    read_everything(tmp_path, published, ".mp4", published[".mp4"])
    before = _peak_megabytes()

    @settings(max_examples=20_000, suppress_health_check=list(HealthCheck))
    @given(suffix=st.sampled_from(SUFFIXES), changes=CHANGES)
    def read(suffix: str, changes: list[tuple[str, float, bytes]]) -> None:
        read_everything(tmp_path, published, suffix, changed(published[suffix], changes))

    read()
    assert _peak_megabytes() - before < MEGABYTES


def _peak_megabytes() -> float:
    resource = pytest.importorskip("resource", reason="Windows counts memory otherwise")
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def test_a_manifest_beside_the_file_that_is_too_large_is_not_loaded(
    tmp_path: Path, published: dict[str, bytes]
) -> None:
    (tmp_path / "a.webm").write_bytes(published[".webm"])
    with (tmp_path / "a.c2pa").open("wb") as file:
        file.truncate(1 << 34)
    signature = read_signature(tmp_path / "a.webm")
    assert signature.present
    assert not signature.intact
    assert "16 MB" in signature.problems[0]
