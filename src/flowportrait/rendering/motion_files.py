"""Motion files that people and programs can edit: one row per frame, with ARKit blendshapes and the head in degrees.

    frame, time, 51 shapes in [0, 1], headYaw, headPitch, headRoll (degrees), headX, headY (eye distances),
    headScale (1: as in the photo), detail0 … detail23 (what the shapes cannot express; may be left out)

A ``.csv`` file has these as columns, a ``.json`` file as ``{"fps": 25, "frames": [{"blendshapes": {…}, "head": {…},
…}]}``. Positive yaw turns the nose to the viewer's right, pitch lifts it, roll leans the head clockwise as seen by the
viewer; missing columns are zero. ``write_motion`` and ``read_motion`` use ``motion_to_blendshapes`` and
``blendshapes_to_motion``, the conversion between motion and ARKit weights.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.files import write_text
from flowportrait.media.video import FPS
from flowportrait.rendering.face_regions import EYES
from flowportrait.rendering.motion_basis import BLINK, BROWS, EXPRESSION, GAZE, HEAD, LOWER_FACE, MotionBasis

# --- Motion and ARKit blendshapes ------------------------------------------------------------------------------------
#
#     motion[:24] ≈ weights @ table          weights [T, 51] in [0, 1],  table [51, 24], learned with the basis
#
# A shape moves only its own part of the face: mouth and jaw shapes the lower face, brow shapes the brows, eye shapes
# lids and gaze (a blink its own lid alone). The inverse is a non-negative least-squares fit per frame; what 51 shapes
# cannot express of a frame is returned as its ``detail``, so that nothing is lost.

ARKIT_SHAPES = (
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)  # fmt: skip
"""ARKit's shapes in MediaPipe's order. The 52nd, ``tongueOut``, is left out, as no tracker used here detects it."""

_RIDGE = 0.7
"""Weight of the ridge penalty, in standard deviations of motion; it keeps the weights of two similar shapes small."""


@lru_cache(maxsize=1)
def blendshape_table() -> torch.Tensor:
    """Return the motion ``[51, 24]`` of each shape at full weight."""
    basis = MotionBasis.load()
    rows = (basis.from_blendshapes @ basis.readout.T)[1:]
    allowed = torch.zeros_like(rows)
    for row, name in enumerate(ARKIT_SHAPES):
        parts = (BROWS,) if name.startswith("brow") else (BLINK, GAZE) if name.startswith("eye") else (LOWER_FACE,)
        for part in parts:
            allowed[row, part] = 1.0
    rows = rows * allowed
    # Footage hardly ever shows a wink, so the lids are told apart by geometry: each blink closes its own eye.
    lids = torch.stack([_lid_gap(basis.directions[BLINK], side) for side in (1, 0)], 1)
    open_lids = torch.stack([_lid_gap(basis.canonical, side) for side in (1, 0)])
    for eye, name in enumerate(("eyeBlinkLeft", "eyeBlinkRight")):
        closing = torch.zeros(2)
        closing[eye] = -open_lids[eye]
        rows[ARKIT_SHAPES.index(name)] = 0
        rows[ARKIT_SHAPES.index(name), BLINK] = torch.linalg.solve(lids.T, closing)
    return rows


def _lid_gap(faces: torch.Tensor, side: int) -> torch.Tensor:
    upper, lower, _ = EYES[side]
    return faces[..., lower[4], 1] - faces[..., upper[4], 1]


def blendshapes_to_motion(weights: np.ndarray) -> torch.Tensor:
    """Return the expression ``[T, 24]`` of shape weights ``[T, 51]``."""
    return torch.as_tensor(weights, dtype=torch.float32) @ blendshape_table()


def motion_to_blendshapes(expression: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """Return the shape weights ``[T, 51]`` in [0, 1] and the detail ``[T, 24]`` of an expression ``[T, 24]``.

    ``blendshapes_to_motion(weights) + detail`` equals the expression.
    """
    from scipy.optimize import nnls

    columns = blendshape_table().double().numpy().T
    left = np.vstack([columns, _RIDGE * np.eye(len(ARKIT_SHAPES))])
    zeros = np.zeros(len(ARKIT_SHAPES))
    frames = expression[:, EXPRESSION].double().numpy()
    weights = np.stack([nnls(left, np.concatenate([frame, zeros]))[0] for frame in frames]).clip(0, 1)
    return weights, expression[:, EXPRESSION] - blendshapes_to_motion(weights)


# --- Files -----------------------------------------------------------------------------------------------------------

HEAD_COLUMNS = ("headYaw", "headPitch", "headRoll", "headX", "headY", "headScale")
_DETAIL = tuple(f"detail{i}" for i in range(EXPRESSION.stop))
_IGNORED = ("frame", "time", "timecode", "blendshapecount")
"""Columns that carry no motion."""
_CANONICAL = {name.lower(): name for name in (*ARKIT_SHAPES, *HEAD_COLUMNS, *_DETAIL)}


def write_motion(path: str | Path, motion: torch.Tensor) -> None:
    """Write motion to a file of ARKit blendshapes, as CSV or JSON by its suffix.

    Args:
        path: the file, .csv or .json; it appears only when it is complete.
        motion: ``[T, 30]`` at 25 fps.

    Raises:
        BadInput: the name has another suffix, or the file cannot be written.
    """
    path = Path(path)
    check_motion_file_name(path)
    weights, detail = motion_to_blendshapes(motion)
    head = _head_to_file(motion[:, HEAD])
    columns = np.concatenate([weights, head, detail.numpy()], 1)
    text = _as_csv(columns) if path.suffix.lower() == ".csv" else _as_json(columns)
    try:
        write_text(path, text)
    except OSError as error:
        raise BadInput(f"Cannot write {path} ({error.strerror}): choose another name.") from error


def read_motion(path: str | Path) -> torch.Tensor:
    """Return the motion ``[T, 30]`` at 25 fps of a file.

    Args:
        path: .csv or .json, as ``write_motion`` writes it; other frame rates are resampled.

    Raises:
        BadInput: the file is not readable, has an unknown column, a value that is not a number, or no frame.
    """
    path = Path(path)
    check_motion_file_name(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as motion ({error}): give a .csv or .json file.") from error
    rows, times = _from_csv(text, path) if path.suffix.lower() == ".csv" else _from_json(text, path)
    if not rows:
        raise BadInput(f"{path} holds no frame: give a file with one row per frame.")
    columns = _as_columns(rows, path)
    if len(times) == len(columns) > 1:
        columns = _resample(columns, np.array(times), path)
    shapes = len(ARKIT_SHAPES)
    detail = torch.as_tensor(columns[:, shapes + 6 :], dtype=torch.float32)
    expression = blendshapes_to_motion(columns[:, :shapes]) + detail
    return torch.cat([expression, _head_from_file(columns[:, shapes : shapes + 6])], 1)


def check_motion_file_name(path: Path) -> None:
    """Check that the name of a motion file ends in .csv or .json.

    Raises:
        BadInput: if it does not.
    """
    if path.suffix.lower() not in (".csv", ".json"):
        raise BadInput(f"A motion file must end in .csv or .json, not {path.name!r}.")


def _head_to_file(head: torch.Tensor) -> np.ndarray:
    """Return the head columns of a file ``[T, 6]`` for head motion ``[T, 6]``."""
    vector = (head * MotionBasis.load().head_std).numpy()
    # Positive turns about the axes to the right and down carry the nose down and to the left.
    degrees = np.degrees(vector[:, [1, 0, 2]]) * [-1, -1, 1]
    return np.column_stack([degrees, vector[:, 3:5], np.exp(vector[:, 5])])


def _head_from_file(columns: np.ndarray) -> torch.Tensor:
    """Return head motion ``[T, 6]`` of the head columns of a file ``[T, 6]``."""
    turn = np.radians(columns[:, [1, 0, 2]] * [-1, -1, 1])
    scale = np.log(np.where(columns[:, 5:] > 0, columns[:, 5:], 1.0))
    vector = np.column_stack([turn, columns[:, 3:5], scale])
    return torch.as_tensor(vector, dtype=torch.float32) / MotionBasis.load().head_std


def _as_csv(columns: np.ndarray) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["frame", "time", *_CANONICAL.values()])
    for index, row in enumerate(columns):
        writer.writerow([index, f"{index / FPS:.2f}", *(f"{value:.7g}" for value in row)])
    return out.getvalue()


def _as_json(columns: np.ndarray) -> str:
    shapes = len(ARKIT_SHAPES)
    frames = [
        {
            "time": round(index / FPS, 4),
            "blendshapes": dict(zip(ARKIT_SHAPES, _seven_digits(row[:shapes]), strict=True)),
            "head": dict(zip(HEAD_COLUMNS, _seven_digits(row[shapes : shapes + 6]), strict=True)),
            "detail": _seven_digits(row[shapes + 6 :]),
        }
        for index, row in enumerate(columns)
    ]
    return json.dumps({"fps": FPS, "frames": frames}, indent=1) + "\n"


def _seven_digits(values: np.ndarray) -> list[float]:
    return [float(f"{value:.7g}") for value in values]


def _from_csv(text: str, path: Path) -> tuple[list[dict[str, Any]], list[float]]:
    """Return the rows of a CSV file, and their times in seconds where given."""
    rows = list(csv.DictReader(io.StringIO(text)))
    times = [_number(row["time"], "time", path) for row in rows if row.get("time")]
    return rows, times


def _from_json(text: str, path: Path) -> tuple[list[dict[str, Any]], list[float]]:
    """Return the frames of a JSON file as rows, and their times in seconds."""
    try:
        data = json.loads(text)
        frames, fps = data["frames"], float(data.get("fps", FPS))
        rows = [
            {**frame.get("blendshapes", {}), **frame.get("head", {}),
             **{f"detail{i}": value for i, value in enumerate(frame.get("detail", []))}}
            for frame in frames
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f'{path} is not a motion file: it needs {{"fps": 25, "frames": [...]}} ({error!r}).') from error
    if not fps > 0:
        raise BadInput(f"{path} says fps={fps}: give a positive number.")
    return rows, [index / fps for index in range(len(rows))]


def _as_columns(rows: Iterable[dict[str, Any]], path: Path) -> np.ndarray:
    """Return the numbers of all rows, ``[T, 81]``, in the order of ``_CANONICAL``."""
    index = {name: number for number, name in enumerate(_CANONICAL.values())}
    result = []
    for row in rows:
        values = np.zeros(len(index))
        values[index["headScale"]] = 1.0
        for column, value in row.items():
            name = _column_name(column, path)
            if name and value not in (None, ""):
                values[index[name]] = _number(value, column, path)
        result.append(values)
    return np.stack(result)


def _column_name(column: Any, path: Path) -> str | None:
    """Return the canonical name of a column, or None for one that is not read."""
    name = str(column).strip().lower()
    if name in _CANONICAL or name in _IGNORED or name == "tongueout":
        return _CANONICAL.get(name)
    near = difflib.get_close_matches(name, _CANONICAL, 1)
    hint = f": did you mean {_CANONICAL[near[0]]!r}?" if near else "."
    raise BadInput(f"{path} has an unknown column {column!r}{hint}")


def _number(value: Any, name: str, path: Path) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"{path}: {name} is {value!r}, not a number.")
    return number


def _resample(columns: np.ndarray, times: np.ndarray, path: Path) -> np.ndarray:
    """Return columns given at ``times`` (seconds) at 25 rows a second."""
    if (np.diff(times) <= 0).any():
        raise BadInput(f"{path}: the times of its frames do not increase.")
    step = float(np.median(np.diff(times)))
    frames = max(1, round((times[-1] - times[0] + step) * FPS))
    new_times = times[0] + np.arange(frames) / FPS
    return np.stack([np.interp(new_times, times, column) for column in columns.T], 1)
