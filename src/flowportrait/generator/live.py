"""Speech in pieces, motion in chunks: generation while the sound is still coming.

    session = GenerationSession(model, seed=3)
    for piece in microphone: for motion in session.push(piece): draw(motion)
    for motion in session.finish(): draw(motion)

A chunk of four frames is drawn once the sound reaches 120 ms past its end; its last frame waits for the next chunk,
which it is joined to (``codec/ease.py``). The pieces' lengths change nothing, and
``Animator.motion`` is this session fed all at once. ``state`` is a small dictionary (about 100 kB) from which another
process goes on; the backbone's cache is not in it but rebuilt from the chunks since its last fresh start.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.codec.basis import LOWER
from flowportrait.codec.calm import Calm
from flowportrait.codec.ease import Ease
from flowportrait.flow.noise import unit_noise
from flowportrait.flow.schedule import shifted
from flowportrait.flow.solver import solve
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.enhancer import Enhancer, Hearing
from flowportrait.generator.intensity import intensify
from flowportrait.generator.live_ears import ears
from flowportrait.generator.live_sound import LiveSound
from flowportrait.generator.silence import SpeechGate
from flowportrait.generator.steering import Past, Steering
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS, SAMPLES_PER_FRAME

LOOK_AHEAD_FRAMES = 3
"""Frames of sound after a chunk that it waits for: 120 ms."""
_REACH_FRAMES = 10
"""Frames that the audio encoder looks back."""
_MOST_CHUNKS = 16
"""Chunks heard at once when much sound is there already."""
_ROOM_FRAMES = 8
"""Frames after the look-ahead that the audio encoder and the gate may already know of a recording."""
_PORTION = 128 * SAMPLES_PER_FRAME
"""Samples of a recording that are processed at once."""


class GenerationSession:
    """One voice being listened to."""

    def __init__(
        self,
        model: ARFlow,
        seed: int = 0,
        style: torch.Tensor | None = None,
        state: dict[str, Any] | None = None,
        steering: Steering | None = None,
        intensity: float = 1.0,
        enhancer: Enhancer | None = None,
        portrait: torch.Tensor | None = None,
    ) -> None:
        """style ``[19]`` (default: the typical speaker); ``state`` goes on where another session stood; ``steering``:
        a reward that has a say in every chunk; ``intensity``: how expressive, see ``intensify``; ``enhancer``: takes
        noise off what is heard; ``portrait``: what a model that sees saw of the speaker, see ``sight.seen``."""
        self.model = model
        self.steering = steering
        self.seed = seed
        self.style = model.rest_style if style is None else style
        self.intensity = intensity if state is None else state["intensity"]
        self.portrait = portrait if state is None else state["portrait"]
        self.enhancer = enhancer
        self.sound, self.hearing, self.gate, self.calm = LiveSound(), Hearing(), SpeechGate(), Calm()
        self.ease = Ease(model.config.ease if model.config.chunk > 1 else 0.0)
        self.samples = 0
        self.waiting = np.zeros(0, np.float32)
        self.due = 0
        self.ears = ears(model)
        self.gates: list[float] = []
        empty = torch.zeros(1, MELS_PER_FRAME * model.config.chunk, N_MELS)
        with torch.no_grad():
            nothing = intensify(model.condition(empty, self.style[None], portrait=self.portrait), self.intensity)
        self.session = model.session(nothing._replace(audio=nothing.audio[:, :0]))
        self.heard = nothing.audio[:, :0]
        self.since: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.start = self.session.last
        if state is not None:
            self._restore(state)

    def push(self, audio: np.ndarray) -> Iterator[torch.Tensor]:
        """Take 16 kHz samples ``[N]`` float32 in [-1, 1]; yield motion ``[≤ 4, 30]`` for every chunk they complete: its
        frames but the last, which waits for the next chunk (see ``Ease``), after the one that waited."""
        self.samples += len(audio)
        self.waiting = np.concatenate([self.waiting, audio.astype(np.float32, copy=False)])
        # Processed when a chunk is complete: called for every frame, the isolator costs two and a half times as much.
        before, now = self.samples - len(self.waiting), self.samples
        if self._complete(now // SAMPLES_PER_FRAME) > self._complete(before // SAMPLES_PER_FRAME):
            self.due = len(self.waiting)
        yield from map(self.ease, self._ready())

    def finish(self) -> Iterator[torch.Tensor]:
        """The sound is over: yield what is still owed, the last chunk as short as the sound."""
        chunk = self.model.config.chunk
        frames = -(-self.samples // SAMPLES_PER_FRAME)
        wanted = -(-frames // chunk) * chunk + LOOK_AHEAD_FRAMES
        self._hear(np.pad(self.waiting, (0, wanted * SAMPLES_PER_FRAME - self.samples)), last=True)
        self.gates += self.gate.finish()
        for motion in self._ready():
            left = frames - (self.session.position - 1) * chunk
            yield self.ease(motion[:left])
        yield self.ease.finish()

    def _known(self) -> int:
        """Samples that were processed."""
        return self.samples - len(self.waiting)

    def _complete(self, frames: int) -> int:
        """Chunks that the sound of so many frames completes, look-ahead and all."""
        return (frames - LOOK_AHEAD_FRAMES) // self.model.config.chunk

    def _hear_until(self, frames: float) -> None:
        """Take what is due until so many frames are known: a long recording portion by portion, so that its first
        frames come soon and memory stays flat. No portion is so short that matrix products take another path, which
        would change the last bits."""
        while self.due and self.sound.frames < frames:
            count = _PORTION if self.due >= 2 * _PORTION else self.due
            self._hear(self.waiting[:count])
            self.waiting, self.due = self.waiting[count:], self.due - count
            if not self.due:
                self.hearing.settle()

    def _hear(self, audio: np.ndarray, last: bool = False) -> None:
        columns, loudness, levelled = self.sound.push(audio, last)
        if self.enhancer is not None:
            columns, softer = self.hearing(self.enhancer, columns, levelled)
            loudness = [rms * share for rms, share in zip(loudness, softer, strict=True)]
        self.ears.push(columns)
        for rms in loudness:
            self.gates += self.gate.push(rms)

    @torch.no_grad()
    def _ready(self) -> Iterator[torch.Tensor]:
        chunk, horizon = self.model.config.chunk, self.model.config.horizon
        complete = self._complete(max(self.sound.frames, (self._known() + self.due) // SAMPLES_PER_FRAME))
        while True:
            position = self.session.position
            if not self.heard.shape[1]:
                if complete <= position:
                    self._hear_until(math.inf)
                    return
                last = min(complete, position + _MOST_CHUNKS)
                self._hear_until(last * chunk + LOOK_AHEAD_FRAMES + _ROOM_FRAMES)
                self.heard = self._listen(position, last)
            now, self.heard = self.heard[:, :1], self.heard[:, 1:]
            if position % horizon == 0:
                self.start, self.since = self.session.last, []
            self.session.extend(now)
            drawn = self._draw(position, now)
            self.since.append((now, drawn))
            motion = self.calm(drawn)[0]
            motion[:, LOWER] *= torch.tensor(self.gates[:chunk])[:, None]
            del self.gates[:chunk]
            yield motion

    def _listen(self, first: int, last: int) -> torch.Tensor:
        """Embedded sound of chunks ``first`` to ``last`` ``[1, n, ·]``, from no more past than reaches them."""
        chunk = self.model.config.chunk
        begin = max(0, first - -(-_REACH_FRAMES // chunk))
        features = self.ears.heard(begin * chunk, last * chunk + LOOK_AHEAD_FRAMES)
        whole = F.pad(features, (0, 0, 0, -features.shape[1] % chunk))
        return self.model.condition_on(whole, self.style[None]).audio[:, first - begin : last - begin]

    def _draw(self, position: int, heard: torch.Tensor) -> torch.Tensor:
        """Motion ``[1, chunk, 30]`` of the next chunk; its noise depends on seed and position alone."""
        config = self.model.config
        x = unit_noise(config.latent_dim, self.seed, position)[None]
        sigmas = shifted(config.steps, config.shift)
        velocity = self.model.field(sigmas, self.session.context())
        if self.steering is None:
            return self.session.append(solve(velocity, self.model.begin(x), sigmas))
        others = range(1, self.steering.candidates)
        x = torch.cat([x, *(unit_noise(config.latent_dim, self.seed, position, i)[None] for i in others)])
        past = self._past(self.steering.reach, heard)
        return self.session.append(self.steering.draw(velocity, self.model.begin(x), sigmas, past))

    def _past(self, reach: int, heard: torch.Tensor) -> Past:
        """The last chunks since the last fresh start, and what is heard now."""
        first = max(0, len(self.since) - reach)
        start = self.since[first - 1][1][:, -1] if first else self.start
        before, tracks = start, [torch.zeros(1, 0, self.model.config.latent_dim)]
        for _, motion in self.since[first:]:
            tracks.append(self.model.space.encode(motion, before)[:, None])
            before = motion[:, -1]
        sounds = [own for own, _ in self.since[first:]]
        return Past(torch.cat(tracks, 1), torch.cat([*sounds, heard], 1), start)

    def state(self) -> dict[str, Any]:
        """Where the session stands, for ``torch.save``; later pushes do not change it."""
        return copy.deepcopy({
            "seed": self.seed, "style": self.style, "intensity": self.intensity, "portrait": self.portrait,
            "samples": self.samples, "waiting": self.waiting,
            "mel": self.ears.mel, "mel_start": self.ears.start, "gates": self.gates, "heard": self.heard,
            "since": self.since, "start": self.start, "position": self.session.position,
            "sound": vars(self.sound), "hearing": vars(self.hearing), "gate": vars(self.gate), "calm": vars(self.calm),
            "ease": vars(self.ease),
        })  # fmt: skip

    @torch.no_grad()
    def _restore(self, state: dict[str, Any]) -> None:
        state = copy.deepcopy(state)
        for name in ("seed", "style", "samples", "gates", "heard", "since", "start"):
            setattr(self, name, state[name])
        # States written before samples were collected per chunk have none waiting.
        self.waiting = state.get("waiting", np.zeros(0, np.float32))
        self.ears = ears(self.model, state["mel"], state["mel_start"])
        for part in ("sound", "hearing", "gate", "calm", "ease"):
            vars(getattr(self, part)).update(state[part])
        # The cache holds nothing that the chunks since the last fresh start do not tell.
        nothing = self.session.branches[0]._replace(start=self.start)
        self.session = self.model.session(nothing)
        self.session.position = self.session.dropped = state["position"] - len(self.since)
        for heard, drawn in self.since:
            self.session.extend(heard)
            self.session.context()
            self.session.accept(drawn)
