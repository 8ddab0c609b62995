"""Motion that follows the manner of speaking: the size of lip motion, and brows and head at the accents of the voice.

    windows so far, or a style by name ─► liveliness in [−1, 1]
    frames, one second back and two frames ahead ─► brows and head += accents, of a size that depends on liveliness
    a style by name ─► lips · exp(a + b · liveliness)

News is read fast, evenly and without pauses, with small openings; people who talk freely make more of the difference
between loud and quiet and open their mouths further. Liveliness is a logistic regression of the prosody of training
speakers; it has never been told a data set, and it is bounded. Within either kind of speech the voice says almost
nothing about how far a person opens the mouth, and a factor that is heard was wrong more often than none for speakers
that were left out (``tools.fit_prosody`` prints both). So the lips follow liveliness only in a style that is asked for
by name. Zero lower face is this face with closed lips, so that a factor leaves closed lips closed.

Brows and the nod of the head follow stress in loudness and pitch a little (a correlation of about .1 with real ones),
which a generator trained by its velocities loses in the noise. A linear filter of the frames adds it, at the size that
generated brows and heads lack of real ones.

``ProsodyMotion`` has the weights (``tools.fit_prosody``); ``VoiceFollower`` applies them to one stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from flowportrait.errors import BadInput
from flowportrait.files import shipped_weights, write_weights
from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.mel import normalize_loudness
from flowportrait.models.prosody import FRAME_FEATURES, ProsodyTracker, track_prosody
from flowportrait.rendering.motion_basis import LOWER_FACE

SPEAKING_STYLES: dict[str, float | None] = {"auto": None, "lively": 1.0, "calm": -1.0}
"""Liveliness of each style; ``auto`` hears it. A further style, ``plain``, is the motion of the generator alone."""

LAGS = (-25, -18, -12, -8, -5, -3, -1, 0, 1, 2)
"""Frames that accents depend on, relative to their own."""
LOOK_AHEAD = LAGS[-1]
_PRIOR_WINDOWS = 0.25
"""Windows of speech of no particular liveliness that are heard before the first one."""
_SATURATION = 1.5
_MOST_ACCENT = 2.5
"""Bound of accents in standard deviations."""
_STEP = 0.02
"""Largest change of the logarithm of the factor from frame to frame."""


@dataclass(frozen=True)
class ProsodyMotion:
    """The weights of motion that follows prosody.

    Attributes:
        manner: weights of the window features, and a constant, that give the log odds of lively speech ``[9]``.
        amplitude: logarithm of the lip factor at liveliness 0, and its change per unit of liveliness ``[2]``.
        accents: linear filter from frame features at all lags, and a constant, to motion of unit size ``[51, 30]``.
        accent_size: size of the accents in calm and in lively speech ``[2, 30]``.
    """

    manner: torch.Tensor
    amplitude: torch.Tensor
    accents: torch.Tensor
    accent_size: torch.Tensor

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> ProsodyMotion:
        """Return the weights that ship with the package."""
        return cls.read(shipped_weights("prosody/model.safetensors"))

    @classmethod
    def read(cls, path: Path) -> ProsodyMotion:
        """Return weights that were written by ``save``."""
        return cls(**{name: tensor.float() for name, tensor in load_file(str(path)).items()})

    def save(self, path: Path) -> None:
        """Write the weights as float16 safetensors."""
        write_weights(path, {f.name: getattr(self, f.name) for f in fields(self)})

    def liveliness(self, tracker: ProsodyTracker) -> float:
        """Return how lively the speech that a tracker has heard is, from −1 to 1; 0 as long as nothing is known."""
        if not tracker.windows:
            return 0.0
        odds = float(self.manner[:-1].numpy() @ tracker.mean + float(self.manner[-1]))
        return float(np.tanh(odds * tracker.windows / (tracker.windows + _PRIOR_WINDOWS) / _SATURATION))

    def lip_factor(self, liveliness: float) -> float:
        """Return the factor of lip motion."""
        return float(torch.exp(self.amplitude[0] + self.amplitude[1] * liveliness))

    def accent_motion(self, features: np.ndarray, liveliness: float) -> torch.Tensor:
        """Return the accents ``[n, 30]`` of n frames.

        Args:
            features: of these frames, 25 before and 2 after them ``[25 + n + 2, 5]``.
            liveliness: of the speech.
        """
        count = len(features) + LAGS[0] - LOOK_AHEAD
        lagged = np.concatenate([features[lag - LAGS[0] :][:count] for lag in LAGS], 1)
        unit = torch.from_numpy(lagged) @ self.accents[:-1] + self.accents[-1]
        share = (1 + liveliness) / 2
        return unit.clamp(-_MOST_ACCENT, _MOST_ACCENT) * self.accent_size[0].lerp(self.accent_size[1], share)


def speaking_liveliness(audio: np.ndarray) -> float:
    """Return how lively the speech of a whole recording ``[N]`` at 16 kHz is, from −1 to 1."""
    return ProsodyMotion.load().liveliness(track_prosody(normalize_loudness(audio))[1])


def check_style(style: str) -> None:
    """Check the name of a speaking style.

    Raises:
        BadInput: there is no such style.
    """
    if style != "plain" and style not in SPEAKING_STYLES:
        raise BadInput(f"--style knows no {style!r}: choose from {', '.join(SPEAKING_STYLES)}, plain.")


def voice_follower(style: str, recording: np.ndarray | None = None) -> VoiceFollower | None:
    """Return what makes motion follow the voice in a style, None for ``plain``.

    Args:
        style: one of ``SPEAKING_STYLES``, or ``plain``.
        recording: all of the speech ``[N]``, from which the style ``auto`` is then known before the first frame.

    Raises:
        BadInput: there is no such style.
    """
    check_style(style)
    if style == "plain":
        return None
    fixed = SPEAKING_STYLES[style]
    liveliness = speaking_liveliness(recording) if fixed is None and recording is not None else fixed
    return VoiceFollower(liveliness, scales_lips=fixed is not None)


@dataclass
class VoiceFollower:
    """Makes the motion of one stream follow its prosody; the fields are its state."""

    fixed: float | None = None
    """Liveliness, if it is known beforehand."""
    scales_lips: bool = True
    """Whether the lips follow the liveliness as well, as in a style that was asked for."""
    tracker: ProsodyTracker = field(default_factory=ProsodyTracker)
    features: np.ndarray = field(default_factory=lambda: np.zeros((-LAGS[0], FRAME_FEATURES), np.float32))
    """Features from 25 frames before the next chunk on."""
    liveliness: list[float] = field(default_factory=lambda: [0.0] * -LAGS[0])
    """Liveliness of the sound until each of these frames."""
    log_factor: float | None = None
    """Logarithm of the factor at the last frame."""

    def push(self, levelled: np.ndarray) -> None:
        """Take levelled samples ``[640 F]``."""
        weights = ProsodyMotion.load()
        for samples in levelled.reshape(-1, SAMPLES_PER_FRAME):
            new = self.tracker.push(samples)
            if len(new) and self.tracker.frames == len(new):
                # Before the first frame it was as quiet as at the first one.
                self.features[:] = new[0]
            self.features = np.concatenate([self.features, new])
            self.liveliness += [weights.liveliness(self.tracker)] * len(new)

    def __call__(self, motion: torch.Tensor) -> torch.Tensor:
        """Return the motion ``[n, 30]`` of the next frames as the voice wants it; their sound has been pushed."""
        weights, count = ProsodyMotion.load(), len(motion)
        needed = count - LAGS[0] + LOOK_AHEAD
        window, lively = self.features[:needed], self.liveliness[:needed][-1] if self.fixed is None else self.fixed
        if len(window) < needed:
            window = np.concatenate([window, np.repeat(window[-1:], needed - len(window), 0)])
        self.features, self.liveliness = self.features[count:], self.liveliness[count:]
        target = 0.0 if self.fixed is None or not self.scales_lips else float(np.log(weights.lip_factor(lively)))
        last = target if self.log_factor is None else self.log_factor
        path = last + np.clip(target - last, -_STEP * count, _STEP * count) * np.arange(1, count + 1) / count
        self.log_factor = float(path[-1])
        result = motion + weights.accent_motion(window, lively)
        result[:, LOWER_FACE] = motion[:, LOWER_FACE] * torch.from_numpy(np.exp(path)).to(motion)[:, None]
        return result

    def state(self) -> dict[str, Any]:
        """Return the state."""
        return vars(self) | {"tracker": vars(self.tracker)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned."""
        vars(self).update({name: value for name, value in state.items() if name != "tracker"})
        vars(self.tracker).update(state["tracker"])
