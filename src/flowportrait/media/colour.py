"""Convert pictures and video frames to what a display shows: sRGB, SDR, square pixels, upright.

    pictures    embedded ICC profile  ›  PNG cICP, HEIF/AVIF nclx  ›  PNG gAMA and cHRM  ›  nothing stated: sRGB
    video       YUV ─matrix, range─► R'G'B' ─HDR, wide gamut─► BT.709 ─► square pixels ─display matrix─► upright

Without this a phone's Display P3 photo looks pale: its numbers mean stronger colours than the same numbers in sRGB.
The parts of this file: pictures with a colour profile (``to_srgb``), HDR and wide-gamut colours (``to_sdr``,
``ToneMapper``), and decoded frames (``DisplayConverter``).
"""

from __future__ import annotations

import io
import struct
import tempfile
import warnings
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from flowportrait.errors import BadInput

if TYPE_CHECKING:
    from PIL import Image


# --- Pictures with a colour profile -----------------------------------------------------

_PRIMARIES = {
    1: (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290),
}
"""x and y of red, green, blue and white by their number in ITU-T H.273, table 2: BT.709, BT.2020, Display P3."""
_GAMMA = {1: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None}
"""Exponent by the number of the transfer characteristic in ITU-T H.273, table 3.

None is sRGB's curve, which viewers use for video's as well. HDR (16, 18) is not among them.
"""
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_srgb(image: Image.Image, head: bytes = b"") -> Image.Image:
    """Return the picture in sRGB, mode ``RGB`` or ``RGBA``.

    It is returned unchanged if it states no other space or its profile is damaged.

    Args:
        image: the picture.
        head: the first bytes of its file, where PNG, HEIF and AVIF state their colours without a profile.
    """
    from PIL import ImageCms

    profile = image.info.get("icc_profile") or declared_icc_profile(image, head)
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        base, alpha = _without_alpha(image, source.profile.xcolor_space.strip())
        if base is None:
            return image
        intent = ImageCms.Intent(min(source.profile.rendering_intent, ImageCms.Intent.ABSOLUTE_COLORIMETRIC))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), base.mode, "RGB", intent)
        if base.mode == "RGB" and _changes_nothing(transform):
            return image
        # In place where the mode allows: a copy of a large photo takes hundreds of megabytes.
        result = ImageCms.applyTransform(base, transform, inPlace=base.mode == "RGB") or base
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    if alpha is not None:
        result.putalpha(alpha)
    return result


def declared_icc_profile(image: Image.Image, head: bytes) -> bytes | None:
    """Return an ICC profile for the colours that a picture states in other ways; None where that is sRGB or nothing."""
    codes = _code_points(head)
    if codes is not None:
        primaries, transfer = codes
        if primaries not in _PRIMARIES or transfer not in _GAMMA or codes in ((1, 1), (1, 6), (1, 13)):
            return None
        return matrix_icc_profile(_PRIMARIES[primaries], _GAMMA[transfer])
    gamma, places = image.info.get("gamma"), image.info.get("chromaticity")
    if "srgb" in image.info or not gamma or not 0.1 < gamma < 10:
        return None
    # White comes first in PNG, last here.
    places = (*places[2:], *places[:2]) if places and len(places) == 8 else _PRIMARIES[1]
    # 1/2.2 is how writers name sRGB's curve.
    return matrix_icc_profile(places, None if abs(gamma - 1 / 2.2) < 0.002 else 1 / gamma)


def matrix_icc_profile(places: tuple[float, ...], gamma: float | None) -> bytes | None:
    """Return an ICC profile (ICC.1:2022) of an RGB space; None where the primaries span none.

    Args:
        places: x and y of red, green, blue and white.
        gamma: exponent of its curve; None for sRGB's.
    """
    x, y = np.array(places[0::2], float), np.array(places[1::2], float)
    if not np.isfinite([*x, *y]).all() or y.min() <= 0:
        return None
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    if abs(np.linalg.det(xyz[:, :3])) < 1e-6:
        return None
    columns = xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])
    cone = (_BRADFORD @ _D50) / (_BRADFORD @ xyz[:, 3])
    columns = np.linalg.inv(_BRADFORD) @ (cone[:, None] * (_BRADFORD @ columns))
    numbers = (gamma,) if gamma is not None else _SRGB_CURVE
    curve = b"para\0\0\0\0" + struct.pack(">HH", 0 if gamma is not None else 3, 0) + _fixed(numbers)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _fixed(_D50)}
    for name, column in zip((b"r", b"g", b"b"), columns.T, strict=True):
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + _fixed(column)
        tags[name + b"TRC"] = curve
    table, content, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", place + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", place + len(content), b"", 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + _fixed(_D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + content


def _fixed(values: Any) -> bytes:
    """Return numbers in the format s15Fixed16."""
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def _without_alpha(image: Image.Image, space: str) -> tuple[Image.Image | None, Image.Image | None]:
    """Return the colours in the mode that a profile of ``space`` is for, and the transparency.

    The colours are None where the profile is not for them.
    """
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if space == "GRAY" and image.mode in ("1", "L", "LA"):
        return image.convert("L"), alpha
    if space == "CMYK" and image.mode == "CMYK":
        return image, None
    if space == "RGB" and image.mode not in ("CMYK", "LAB", "HSV"):
        opaque = image if alpha is None else image.convert("RGBA")
        return opaque if opaque.mode == "RGB" else opaque.convert("RGB"), alpha
    return None, None


def _changes_nothing(transform: Any) -> bool:
    """Return whether a transform between two RGB spaces leaves all colours as they are, up to rounding."""
    from PIL import Image, ImageCms

    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(18, -1, 3)
    changed = ImageCms.applyTransform(Image.fromarray(colours), transform)
    return bool(np.abs(np.asarray(changed).astype(int) - colours).max() <= 1)


def _code_points(head: bytes) -> tuple[int, int] | None:
    """Return the numbers of primaries and transfer characteristic (ITU-T H.273) in the head of a PNG, HEIF or AVIF
    file.
    """
    if head.startswith(b"\x89PNG"):
        place = 8
        while place + 12 <= len(head):
            length, kind = struct.unpack_from(">I4s", head, place)
            if kind == b"cICP" and length == 4 and place + 12 <= len(head):
                return head[place + 8], head[place + 9]
            if kind == b"IDAT":
                break
            place += 12 + length
    elif head[4:8] == b"ftyp" and (place := head.find(b"colrnclx")) >= 0 and place + 12 <= len(head):
        primaries, transfer = struct.unpack_from(">HH", head, place + 8)
        return primaries, transfer
    return None


# --- HDR and wide gamut -----------------------------------------------------------------
#
#     signal ─► light in cd/m² ─► BT.709 primaries ─► highlights rolled off to 100 cd/m² ─► gamma 1/2.4
#
#     HLG: inverse OETF, system gamma 1.2 (BT.2100-2, table 5)          PQ: EOTF (BT.2100-2, table 4)
#
# The roll-off is the EETF of ITU-R BT.2390-10, section 5.4.1: up to 27 cd/m² the light is unchanged, from there to the
# peak of a usual display, 1000 cd/m², it is compressed. A white page of 203 cd/m² (BT.2408) comes out at 95 % of full
# scale. The whole conversion is one map from colours to colours, so it is computed once, for the knots of a cube, and
# FFmpeg looks the pictures up in it.

HLG, PQ = 18, 16
"""Numbers of transfer characteristics in ITU-T H.273, table 3."""
BT_2020, DISPLAY_P3 = 9, 12
"""Numbers of colour primaries in ITU-T H.273, table 2."""
_UNSPECIFIED = 2

HDR_PEAK, SDR_WHITE = 1000.0, 100.0
"""Brightest light of the footage that is still distinguished, and brightest light of the result, in cd/m²."""

_KNOTS = 49
_TO_709 = {
    BT_2020: np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]),
    DISPLAY_P3: np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]),
}
"""Matrices of linear light from wider primaries to BT.709's (for BT.2020: ITU-R BT.2087-0, annex 2)."""
LUMA_601 = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the luma of BT.601, for 8-bit pictures with gamma."""
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593])
_LUMA_709 = np.array([0.2126, 0.7152, 0.0722])
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128


def to_sdr(signal: np.ndarray, transfer: int, primaries: int = BT_2020) -> np.ndarray:
    """Convert a signal to BT.709 ``[..., 3]`` in [0, 1] for a display of gamma 2.4.

    Args:
        signal: ``[..., 3]`` red, green, blue in [0, 1].
        transfer: ``HLG`` or ``PQ``; any other value is that of SDR, gamma 2.4.
        primaries: ``BT_2020``, ``DISPLAY_P3``, or any other value for those of BT.709.
    """
    light = (
        _hlg_light(signal) if transfer == HLG else pq_to_light(signal) if transfer == PQ else SDR_WHITE * signal**2.4
    )
    light = light @ _TO_709.get(primaries, np.eye(3)).T
    # Colours outside BT.709 are desaturated towards their grey; clipping each channel would change their hue.
    grey = (light @ _LUMA_709)[..., None].clip(0)
    low = light.min(-1, keepdims=True)
    light = grey + (light - grey) * np.where(low < 0, grey / np.maximum(grey - low, 1e-9), 1.0)
    if transfer in (HLG, PQ):
        peak = light.max(-1, keepdims=True)
        light = light * (roll_off_highlights(peak) / np.maximum(peak, 1e-9))
    return (light / SDR_WHITE).clip(0, 1) ** (1 / 2.4)


def roll_off_highlights(light: np.ndarray) -> np.ndarray:
    """Compress light in cd/m², up to ``HDR_PEAK``, to at most ``SDR_WHITE`` with the EETF of BT.2390."""
    source = light_to_pq(np.array(HDR_PEAK))
    value, most = light_to_pq(light.clip(0, HDR_PEAK)) / source, float(light_to_pq(np.array(SDR_WHITE)) / source)
    knee = 1.5 * most - 0.5
    t = ((value - knee) / (1 - knee)).clip(0)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    return pq_to_light(np.where(value < knee, value, bent) * source)


def pq_to_light(signal: np.ndarray) -> np.ndarray:
    """Convert a PQ signal in [0, 1] to light in cd/m²."""
    power = signal.clip(0, 1) ** (1 / _M2)
    return 10_000 * ((power - _C1).clip(0) / (_C2 - _C3 * power)) ** (1 / _M1)


def light_to_pq(light: np.ndarray) -> np.ndarray:
    """Convert light in cd/m² to a PQ signal."""
    power = (light / 10_000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def _hlg_light(signal: np.ndarray) -> np.ndarray:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return HDR_PEAK * scene * (scene @ _LUMA_2020)[..., None].clip(0) ** 0.2


class ToneMapper:
    """A converter of frames with one transfer characteristic and set of primaries to SDR in BT.709."""

    def __init__(self, transfer: int, primaries: int) -> None:
        """Compute the table of colours; for the arguments see ``to_sdr``."""
        self._table = _cube(transfer, primaries)
        self._graph: Any = None
        self._size: tuple[int, int] | None = None

    def __call__(self, frame: Any) -> Any:
        """Convert a decoded ``av.VideoFrame`` to one of planar RGB."""
        # Wide primaries without a stated matrix come with BT.2020's, which has the same number.
        matrix = BT_2020 if frame.colorspace == _UNSPECIFIED else None
        frame = frame.reformat(format="gbrp10le", src_colorspace=matrix)
        if self._size != (frame.width, frame.height):
            self._size = frame.width, frame.height
            self._graph = _lookup(frame.width, frame.height, self._table)
        self._graph.push(frame)
        return self._graph.pull()


def _lookup(width: int, height: int, table: str) -> Any:
    """Return a filter graph that looks frames of planar RGB up in a table of the .cube format."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("gbrp10le"), time_base=Fraction(1, 25))
    # The filter reads its table from a file when it is created.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.cube"
        path.write_text(table, encoding="utf-8")
        graph.link_nodes(source, graph.add("lut3d", file=str(path), interp="tetrahedral"), graph.add("buffersink"))
        graph.configure()
    return graph


@lru_cache(maxsize=4)
def _cube(transfer: int, primaries: int) -> str:
    """Return the map of colours as a text of the .cube format, red fastest."""
    steps = np.linspace(0, 1, _KNOTS)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    colours = to_sdr(np.stack([red, green, blue], -1).reshape(-1, 3), transfer, primaries)
    return f"LUT_3D_SIZE {_KNOTS}\n" + ("%.5f %.5f %.5f\n" * len(colours)) % tuple(colours.ravel().tolist())


# --- Frames of a video ------------------------------------------------------------------

MAX_FRAME_PIXELS = 8192 * 4320
"""Pixels of a frame of 8K; larger ones are refused before they are converted."""

_BT_709 = 1
_HD_LINES = 720
"""Smallest height at which a frame without a stated matrix is read as BT.709, as players do; below, as BT.601."""
_LEAST_SQUEEZE = 0.01
"""Pixels whose aspect ratio is this near to one count as square: writers round."""
_MOST_SQUEEZE = 8


class DisplayConverter:
    """A converter of the frames of one stream to ``[H, W, 3]`` uint8 RGB."""

    def __init__(self, path: Path, stream: Any, max_pixels: int = MAX_FRAME_PIXELS) -> None:
        """Prepare the conversion.

        Args:
            path: path of the file, for messages.
            stream: the ``av.VideoStream`` that the frames are decoded from.
            max_pixels: largest number of pixels of a frame.

        Raises:
            BadInput: the frames have more than ``max_pixels``.
        """
        self._path, self._max_pixels = path, max_pixels
        self._aspect = _pixel_aspect(stream)
        self._size(stream.codec_context)
        self._mapper: tuple[tuple[int, int], ToneMapper] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        """Return the pixels of an ``av.VideoFrame``.

        Raises:
            BadInput: it has too many.
        """
        width, height = self._size(frame)
        options: dict[str, Any] = {"format": "rgb24"}
        if (width, height) != (frame.width, frame.height):
            options |= {"width": width, "height": height, "interpolation": "BICUBIC"}
        if frame.colorspace == _UNSPECIFIED and height >= _HD_LINES and not frame.format.is_rgb:
            options["src_colorspace"] = _BT_709
        matrix = _display_matrix(frame)
        return apply_display_matrix(self._sdr(frame).to_ndarray(**options), matrix)

    def _size(self, coded: Any) -> tuple[int, int]:
        """Return width and height with square pixels of an object with ``width`` and ``height``."""
        width, height = square_pixel_size(coded.width, coded.height, self._aspect)
        if width * height > self._max_pixels:
            raise BadInput(
                f"{self._path} has frames of {width}x{height} px, more than {self._max_pixels / 1e6:.0f} megapixels: "
                "scale it down."
            )
        return width, height

    def _sdr(self, frame: Any) -> Any:
        """Return the frame in BT.709; itself if it already is."""
        transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
        if transfer not in (HLG, PQ) and primaries not in (BT_2020, DISPLAY_P3):
            return frame
        if self._mapper is None or self._mapper[0] != (transfer, primaries):
            self._mapper = (transfer, primaries), ToneMapper(transfer, primaries)
            if transfer in (HLG, PQ):
                kind = "HLG" if transfer == HLG else "PQ"
                warnings.warn(
                    f"{self._path} is HDR video ({kind}): its brightness and colours are mapped to SDR.", stacklevel=4
                )
        return self._mapper[1](frame)


def square_pixel_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Return the width and height in px after pixels that are ``aspect`` times as wide as high were made square.

    The side that looks shorter is enlarged, so that no detail is lost; it becomes an even number.
    """
    if aspect > 1:
        return round(width * aspect / 2) * 2, height
    if aspect < 1:
        return width, round(height / aspect / 2) * 2
    return width, height


def apply_display_matrix(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Rotate and mirror ``image`` ``[H, W, 3]`` as a display matrix states, to the nearest quarter turn.

    Args:
        matrix: (a, b, c, d) of x' = a x + c y, y' = b x + d y (ISO 14496-12, section 8.3.2), x to the right, y down.
    """
    a, b, c, d = matrix
    across, down = a, d
    if abs(b) > abs(a):
        image, across, down = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    values = np.frombuffer(bytes(data)[:36], np.int32).tolist()
    return values[0], values[1], values[3], values[4]


def _pixel_aspect(stream: Any) -> Fraction:
    """Return a pixel's width divided by its height; 1 where the file does not state it or states an implausible one."""
    aspect = stream.sample_aspect_ratio
    if not aspect or abs(aspect - 1) < _LEAST_SQUEEZE or not Fraction(1, _MOST_SQUEEZE) <= aspect <= _MOST_SQUEEZE:
        return Fraction(1)
    return Fraction(aspect)
