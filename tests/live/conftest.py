"""One small prepared face for all tests of live avatars, and a server of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flowportrait.live.avatar import LivePortrait
from flowportrait.media.portrait import Portrait
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.inputs import read_photo
from flowportrait.samples import portrait_path
from tests.live.live_server import PHOTO, LiveServer, live_server


@pytest.fixture(scope="session")
def pipeline() -> AnimatePipeline:
    return AnimatePipeline.from_pretrained("rl", denoise=False)


@pytest.fixture(scope="session")
def portrait() -> Portrait:
    return Portrait.from_image(read_photo(portrait_path("astronaut")), 128)


@pytest.fixture(scope="session")
def small_face(pipeline: AnimatePipeline) -> LivePortrait:
    return LivePortrait(PHOTO, checkpoint=pipeline, size=128)


@pytest.fixture(scope="module")
def server(small_face: LivePortrait, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with room for one session."""
    with live_server(small_face, tmp_path_factory.mktemp("live"), sessions=1) as server:
        yield server
