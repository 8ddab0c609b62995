"""One small prepared face for all tests of the live server."""

from __future__ import annotations

import pytest

from flowportrait.live.avatar import LivePortrait
from flowportrait.pipelines.animate import AnimatePipeline
from tests.live.live_server import PHOTO


@pytest.fixture(scope="session")
def small_face() -> LivePortrait:
    return LivePortrait(PHOTO, checkpoint=AnimatePipeline.from_pretrained("rl", denoise=False), size=128)
