"""The pictures of a video: RGB frames to one encoded stream, converted and tagged as BT.709 whatever their size.

    R'G'B' full range ─► Y'CbCr, matrix BT.709, Y' 16 to 235, 4:2:0 ─► H.264 or VP9, tagged bt709 / bt709 / bt709 / tv

Players guess the matrix of an untagged video from its height, and not all guess alike: so the stream says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

from flowportrait.errors import BadInput

# Chroma is averaged from every pixel of a row, not from every second one.
_SCALING = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INP
_VP9_CRF = 10
"""VP9 counts its quality from 0 to 63, H.264 from 0 to 51: about this much more for the same PSNR."""


class PictureTrack:
    """One video stream of an open container."""

    def __init__(
        self,
        container: Any,
        codec: str,
        fps: Fraction,
        crf: int,
        shape: tuple[int, ...],
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Add the stream.

        Args:
            container: an open ``av`` output container into which nothing was muxed yet.
            codec: ``libx264`` or ``libvpx-vp9``.
            fps: frames per second.
            crf: quality as H.264 counts it; for VP9 it is converted.
            shape: of the first frame ``[H, W, 3]``, or ``[H, W, 4]`` with alpha (VP9 only).
            options: the encoder's, on top of these.

        Raises:
            BadInput: a side has less than 2 px, or more than the codec takes.
        """
        check_frame_size(shape)
        self._container, self._fps, self._shape = container, fps, shape
        self.count = 0
        given = _encoder_options(codec, crf) | dict(options or {})
        self._stream = container.add_stream(codec, rate=fps, options=given)
        self._stream.height, self._stream.width = (side // 2 * 2 for side in shape[:2])
        self._stream.pix_fmt = "yuva420p" if shape[2] == 4 else "yuv420p"
        context = self._stream.codec_context
        context.time_base = 1 / fps
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        self._reformatter = VideoReformatter()

    def write(self, frame: np.ndarray) -> None:
        """Encode the next frame, of the first one's shape, uint8; odd sides lose their last pixel.

        Raises:
            ValueError: another shape.
        """
        self._container.mux(self._stream.encode(self._converted(frame)))
        self.count += 1

    def close(self) -> None:
        """Write what the encoder still holds."""
        self._container.mux(self._stream.encode())

    def _converted(self, image: np.ndarray) -> Any:
        if image.shape != self._shape:
            (height, width, *_), (first_height, first_width, *_) = image.shape, self._shape
            raise ValueError(f"frame {self.count} is {width}x{height}, not {first_width}x{first_height}")
        even = np.ascontiguousarray(image[: self._stream.height, : self._stream.width])
        rgb = av.VideoFrame.from_ndarray(even, format="rgba" if self._shape[2] == 4 else "rgb24")
        frame = self._reformatter.reformat(
            rgb, format=self._stream.pix_fmt, dst_colorspace=Colorspace.ITU709, interpolation=_SCALING,
            src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.MPEG,
        )  # fmt: skip
        # The pictures are sRGB; BT.709's curve is what browsers and players show as sRGB.
        frame.color_primaries, frame.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        frame.pts, frame.time_base = self.count, 1 / self._fps
        return frame


def check_frame_size(shape: tuple[int, ...]) -> None:
    """That frames of this shape ``[H, W, …]`` make a video.

    Raises:
        BadInput: a side has less than 2 px.
    """
    if min(shape[:2]) < 2:
        raise BadInput(f"A frame of {shape[1]}x{shape[0]} px is too small for a video: 2x2 at least.")


def _encoder_options(codec: str, crf: int) -> dict[str, str]:
    if codec == "libx264":
        return {"crf": str(crf), "preset": "veryfast"}
    # Without a bit rate of zero crf would only be an upper limit. "realtime" at speed 6 takes about as long as H.264.
    return {
        "crf": str(min(63, crf + _VP9_CRF)), "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1",
        "auto-alt-ref": "0",
    }  # fmt: skip
