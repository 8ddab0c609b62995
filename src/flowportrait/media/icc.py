"""Pictures with a colour profile to sRGB, as a colour-managed viewer shows them.

    embedded ICC profile  ›  PNG cICP, HEIF/AVIF nclx  ›  PNG gAMA and cHRM  ›  nothing said: sRGB

Without this a phone's Display P3 photo looks pale: its numbers mean stronger colours than the same numbers in sRGB.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_PRIMARIES = {
    1: (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290),
}
"""x and y of red, green, blue and white by their number in ITU-T H.273, table 2: BT.709, BT.2020, Display P3."""
_GAMMA = {1: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None}
"""Exponent by the number of the transfer characteristic in table 3; None is sRGB's curve, which viewers use for
video's as well. HDR (16, 18) is not among them."""
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_srgb(image: Image.Image, head: bytes = b"") -> Image.Image:
    """The picture in sRGB, mode ``RGB`` or ``RGBA``; itself where it says nothing else or its profile is damaged.

    head: the first bytes of the file, where PNG, HEIF and AVIF say their colours without a profile.
    """
    from PIL import ImageCms

    profile = image.info.get("icc_profile") or stated_profile(image, head)
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
        # In place where the mode allows: of a large photo a copy is hundreds of megabytes.
        result = ImageCms.applyTransform(base, transform, inPlace=base.mode == "RGB") or base
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    if alpha is not None:
        result.putalpha(alpha)
    return result


def stated_profile(image: Image.Image, head: bytes) -> bytes | None:
    """An ICC profile of what a picture says about its colours in other words; None where that is sRGB or nothing."""
    codes = _code_points(head)
    if codes is not None:
        primaries, transfer = codes
        if primaries not in _PRIMARIES or transfer not in _GAMMA or codes in ((1, 1), (1, 6), (1, 13)):
            return None
        return matrix_profile(_PRIMARIES[primaries], _GAMMA[transfer])
    gamma, places = image.info.get("gamma"), image.info.get("chromaticity")
    if "srgb" in image.info or not gamma or not 0.1 < gamma < 10:
        return None
    # White comes first in PNG, last here.
    places = (*places[2:], *places[:2]) if places and len(places) == 8 else _PRIMARIES[1]
    # 1/2.2 is how writers name sRGB's curve.
    return matrix_profile(places, None if abs(gamma - 1 / 2.2) < 0.002 else 1 / gamma)


def matrix_profile(places: tuple[float, ...], gamma: float | None) -> bytes | None:
    """An ICC profile (ICC.1:2022) of an RGB space; None where the primaries span none.

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
    """Numbers as s15Fixed16."""
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def _without_alpha(image: Image.Image, space: str) -> tuple[Image.Image | None, Image.Image | None]:
    """Colours in the mode that a profile of ``space`` is for, and transparency; no colours where it is not for them."""
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
    """Whether a transform between two RGB spaces leaves all colours as they are, but for rounding."""
    from PIL import Image, ImageCms

    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(18, -1, 3)
    changed = ImageCms.applyTransform(Image.fromarray(colours), transform)
    return bool(np.abs(np.asarray(changed).astype(int) - colours).max() <= 1)


def _code_points(head: bytes) -> tuple[int, int] | None:
    """Numbers of the primaries and the transfer characteristic (ITU-T H.273) that a PNG, HEIF or AVIF file states."""
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
