"""Chunks are joined without a jolt, and streamed as they are joined whole."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from flowportrait.rendering.motion_basis import BROWS, HEAD, LOWER_FACE, MOTION_DIM
from flowportrait.rendering.motion_filters import ChunkJoiner, join_chunks


def drawn(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames, MOTION_DIM, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 23), st.sampled_from([2, 3, 4]), st.integers(0, 5))
def test_streamed_is_whole(frames: int, chunk: int, seed: int) -> None:
    motion, stream = drawn(frames, seed), ChunkJoiner(0.15)
    pieces = [stream(part) for part in motion.split(chunk)] if frames else []
    assert all(len(piece) <= chunk for piece in pieces)
    torch.testing.assert_close(torch.cat([*pieces, stream.finish()]), join_chunks(motion[None], chunk, 0.15)[0])


def test_steady_motion_stays_as_it_is() -> None:
    steady = torch.arange(20.0)[None, :, None] * torch.linspace(-1, 1, MOTION_DIM)
    torch.testing.assert_close(join_chunks(steady, 4, 0.15), steady)


def test_a_jolt_at_a_border_is_spread_over_its_neighbours() -> None:
    still_then_moving = (torch.arange(12.0) - 3).clamp_min(0)[None, :, None].repeat(1, 1, MOTION_DIM)
    eased = join_chunks(still_then_moving, 4, 0.15)
    jolt, left = (track.diff(n=2, dim=1).abs().amax(1)[0] for track in (still_then_moving, eased))
    torch.testing.assert_close(left[LOWER_FACE], 0.7 * jolt[LOWER_FACE])
    torch.testing.assert_close(left[HEAD], jolt[HEAD])
    torch.testing.assert_close(left[BROWS], jolt[BROWS])
    torch.testing.assert_close(eased[:, -1], still_then_moving[:, -1])


def test_frames_inside_chunks_are_not_touched() -> None:
    motion = drawn(16)[None]
    eased = join_chunks(motion, 4, 0.15)
    torch.testing.assert_close(eased[:, 1::4], motion[:, 1::4])
    torch.testing.assert_close(eased[:, 2::4], motion[:, 2::4])
    assert (eased[:, 4::4, LOWER_FACE] != motion[:, 4::4, LOWER_FACE]).all()


def test_frames_drawn_one_by_one_have_no_borders() -> None:
    motion = drawn(9)[None]
    torch.testing.assert_close(join_chunks(motion, 1, 0.15), motion)
