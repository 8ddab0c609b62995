"""A face that follows a webcam: pictures become motion in a thread of their own.

    show(picture) ─► newest picture ─► thread: FaceTracker ─► FaceReader: motion ─► next(): filtered, for each frame

Motion is relative to the person's neutral face and pose, which nobody has to hold: both are averages over what was
seen, of the last half minute at most, so a person who moves the chair faces forward again after a while. Without a
face, or without pictures for half a second, there is no motion; the session then eases back to idle.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from threading import Condition

import cv2
import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.live.threads import start_thread
from flowportrait.media.faces import FaceTracker
from flowportrait.media.video import FPS
from flowportrait.rendering.driver_motion import limit_driver_head
from flowportrait.rendering.motion_basis import (
    BLINK,
    BROWS,
    EXPRESSION,
    GAZE,
    HEAD,
    LOWER_FACE,
    MOTION_DIM,
    MotionBasis,
    Pose,
    close_lips,
    fit_pose,
    pose_to_vector,
)

MAX_PICTURE_SIDE = 4096
"""Longest side in pixels of a picture that is taken."""
_TRACKED_SIDE = 640
"""Longest side in pixels that the tracker gets; larger pictures are scaled down."""
_STALE_SECONDS = 0.5
"""Seconds without a picture after which the face counts as lost."""
_FIRST_PICTURES = 5
"""Pictures with a face before it moves the portrait: a neutral face is not estimated from fewer."""
_AVERAGED_PICTURES = 25 * 30
"""Pictures over which the neutral face and pose are averaged at most."""


class OneEuroFilter:
    """A low-pass filter whose cutoff rises with speed: no jitter at rest, no lag in quick movements.

    Casiez, Roussel and Vogel: 1 € Filter: A Simple Speed-based Low-pass Filter for Noisy Input in Interactive Systems,
    CHI 2012. The cutoff of coefficient j is ``cutoff[j] + slope[j] · |speed[j]|`` Hz.
    """

    def __init__(self, cutoff: np.ndarray, slope: np.ndarray, rate: float, speed_cutoff: float = 1.0) -> None:
        """Prepare a filter.

        Args:
            cutoff: lowest cutoff frequencies in Hz, ``[N]``.
            slope: Hz by which the cutoff rises per unit and second, ``[N]``.
            rate: values per second.
            speed_cutoff: cutoff frequency in Hz at which the speed is measured.
        """
        self._cutoff, self._slope, self._rate = cutoff, slope, rate
        self._speed_share = _share(np.asarray(speed_cutoff), rate)
        self._value: np.ndarray | None = None
        self._speed = np.zeros_like(cutoff)

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Return the filtered value ``[N]``; the first one is returned as it is."""
        if self._value is None:
            self._value = value
            return value
        speed = (value - self._value) * self._rate
        self._speed = self._speed + self._speed_share * (speed - self._speed)
        share = _share(self._cutoff + self._slope * np.abs(self._speed), self._rate)
        self._value = self._value + share * (value - self._value)
        return self._value

    def reset(self) -> None:
        """Forget the past: the next value is returned as it is."""
        self._value, self._speed = None, np.zeros_like(self._cutoff)


def _share(cutoff: np.ndarray, rate: float) -> np.ndarray:
    """Return the share of a new value in a first-order low-pass filter of a cutoff in Hz."""
    step = 2 * math.pi * cutoff / rate
    return step / (step + 1)


def driver_filter() -> OneEuroFilter:
    """Return the filter for the motion of a driver at 25 frames per second: quick for lips and lids, calm for the
    head."""
    cutoff, slope = np.zeros(MOTION_DIM, np.float32), np.zeros(MOTION_DIM, np.float32)
    for part, hertz, rise in (
        (LOWER_FACE, 4.0, 1.0), (BROWS, 1.5, 0.5), (BLINK, 4.0, 1.0), (GAZE, 1.5, 1.0), (HEAD, 1.0, 0.3),
    ):  # fmt: skip
        cutoff[part], slope[part] = hertz, rise
    return OneEuroFilter(cutoff, slope, FPS)


class FaceReader:
    """Turns the face of one person into motion, picture by picture, and estimates the neutral face on the way."""

    def __init__(self) -> None:
        self._basis = MotionBasis.load()
        self._seen = 0
        self._neutral: torch.Tensor | None = None
        self._pose: Pose | None = None

    def read(self, landmarks: np.ndarray, blendshapes: np.ndarray) -> np.ndarray | None:
        """Return the motion ``[30]`` of a face; None while too little of the person was seen.

        Args:
            landmarks: ``[478, 3]`` px.
            blendshapes: ``[52]``.
        """
        basis = self._basis
        pose = fit_pose(torch.as_tensor(landmarks[None], dtype=torch.float32), basis.canonical)
        shape = pose.remove(torch.as_tensor(landmarks[None], dtype=torch.float32))[0]
        weights = torch.as_tensor(blendshapes, dtype=torch.float32)
        self._average(shape - (weights @ basis.from_blendshapes).reshape(-1, 3), pose)
        assert self._neutral is not None
        assert self._pose is not None
        if self._seen < _FIRST_PICTURES:
            return None
        motion = np.zeros(MOTION_DIM, np.float32)
        motion[EXPRESSION] = ((shape - close_lips(self._neutral)).flatten() @ basis.readout.T).numpy()
        motion[HEAD] = limit_driver_head((pose_to_vector(pose, self._pose)[0] / basis.head_std).numpy())
        return motion

    def _average(self, neutral: torch.Tensor, pose: Pose) -> None:
        self._seen += 1
        share = 1 / min(self._seen, _AVERAGED_PICTURES)
        if self._neutral is None or self._pose is None:
            self._neutral, self._pose = neutral, pose
            return
        self._neutral = self._neutral + share * (neutral - self._neutral)
        u, _, vt = torch.linalg.svd(self._pose.rotation + share * (pose.rotation - self._pose.rotation))
        self._pose = Pose(
            u @ vt, *(old + share * (new - old) for old, new in zip(self._pose[1:], pose[1:], strict=True))
        )


class FaceDriver:
    """Follows the face in the pictures that it is shown, in a thread; ``next`` returns the motion for each frame."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the thread.

        Args:
            clock: returns seconds; only differences count.
        """
        self._clock = clock
        self._filter = driver_filter()
        self._changed = Condition()
        self._picture: np.ndarray | None = None
        self._motion: np.ndarray | None = None
        self._time = -math.inf
        self._closed = False
        self.tracked = 0
        """Number of pictures that were looked at; others were replaced by newer ones before."""
        self.error: BaseException | None = None
        """What ended the thread, if it was an error."""
        start_thread(self._work, self.close, "live driver")

    def show(self, picture: np.ndarray) -> None:
        """Take the newest picture; one that still waits is dropped.

        Args:
            picture: ``[H, W, 3]`` uint8 RGB.

        Raises:
            BadInput: the picture is of another shape or type, or too large.
        """
        picture = np.asarray(picture)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise BadInput(f"A picture of shape {picture.shape} and {picture.dtype} is not RGB: give [H, W, 3] uint8.")
        if max(picture.shape) > MAX_PICTURE_SIDE:
            raise BadInput(f"A picture of {picture.shape[1]}x{picture.shape[0]} is too large: send it smaller.")
        with self._changed:
            self._picture = picture
            self._changed.notify()

    def next(self) -> np.ndarray | None:
        """Return the filtered motion ``[30]`` of the next frame; None while there is no face."""
        motion, seen_at = self._motion, self._time
        if motion is None or self._clock() - seen_at > _STALE_SECONDS:
            self._filter.reset()
            return None
        return self._filter(motion).astype(np.float32)

    def close(self) -> None:
        """End the thread, without waiting for it."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        try:
            reader = FaceReader()
            with FaceTracker() as tracker:
                while (picture := self._next_picture()) is not None:
                    faces = tracker.track([_scaled_down(picture)])
                    found = bool(faces.valid[0])
                    self._motion = reader.read(faces.landmarks[0], faces.blendshapes[0]) if found else None
                    self._time = self._clock()
                    self.tracked += 1
        except BaseException as error:
            self.error = error

    def _next_picture(self) -> np.ndarray | None:
        """Wait for the next picture and return it; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._picture is not None)
            picture, self._picture = self._picture, None
            return None if self._closed else picture


def _scaled_down(picture: np.ndarray) -> np.ndarray:
    scale = _TRACKED_SIDE / max(picture.shape[:2])
    return picture if scale >= 1 else cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
