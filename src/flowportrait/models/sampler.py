"""The sampler: motion for speech, for recordings and live sound, for one stream or a batch.

    samples ─► SpeechStream ─► ChunkSampler ─► Delivery ─► motion

    sampler = Sampler(model, seeds=[3])
    for samples in microphone:
        for motion in sampler.push(samples): draw(motion[0])
    for motion in sampler.finish(): draw(motion[0])

A chunk of four frames is drawn once the sound reaches 120 ms past its end; its last frame waits for the next chunk,
with which it is joined (``rendering/motion_filters.py``). A recording is a stream that is pushed at once, which
``sample_motion`` does. The lengths of the pushed pieces and the number of streams in a batch change nothing but the
last bits of matrix products; noise depends on seed and position alone.

The parts in order: the step of a generator as an ONNX graph; ``Sampler``; ``ChunkSampler``, which draws chunks from
encoded sound; functions that sample whole recordings.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flowportrait.devices import Device, onnx_providers
from flowportrait.errors import BadInput
from flowportrait.files import atomic_write, write_json
from flowportrait.flow.noise import keyed_noise
from flowportrait.flow.schedules import noise_schedule, solve_ode
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS
from flowportrait.models.arflow import ARFlow, SpeechCondition
from flowportrait.models.backbone import CachedLayer, KeyValueCache
from flowportrait.models.conditioning import GuidanceContext, RewardSteering, apply_intensity
from flowportrait.models.enhancer import Enhancer
from flowportrait.models.prosody_motion import VoiceFollower
from flowportrait.models.speech_stream import Gain, SpeechStream
from flowportrait.rendering.motion_basis import MOTION_DIM
from flowportrait.rendering.motion_filters import MotionPostprocessor

# --- One step as an ONNX graph -----------------------------------------------------------------------------------
#
# For runtimes without Python: ``step.onnx``, and ``step.json`` with the sizes.
#
#     step(audio of the chunk, style, previous motion, noise, position, keys, values) ─► motion, keys', values'
#
# The KV cache is an input and an output: ``[layers, G, heads, past, d]``, with G branches of guidance. ``past`` is 0 at
# a restart (``position`` 0, every ``horizon`` chunks) and never more than the window reaches. The Euler steps are
# unrolled inside the graph, so that one call draws a whole chunk from unit noise.

STEP_INPUTS = ("audio", "style", "previous", "noise", "position", "keys", "values")
STEP_OUTPUTS = ("motion", "new_keys", "new_values")


class SamplerStep(nn.Module):
    """The network that is exported: it draws one chunk of one stream."""

    def __init__(self, model: ARFlow) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        audio: torch.Tensor,
        style: torch.Tensor,
        previous: torch.Tensor,
        noise: torch.Tensor,
        position: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw a chunk.

        Args:
            audio: encoded sound of the chunk ``[1, 1, ·]``, of ``ARFlow.condition``.
            style: encoded style ``[1, hidden]``, of ``ARFlow.condition``.
            previous: motion of the chunk before ``[1, chunk, 30]``.
            noise: unit noise ``[1, chunk·30]``.
            position: chunks since the cache was emptied ``[1]`` int64.
            keys: of the cache ``[layers, G, heads, past, d]``, like ``values``.

        Returns:
            Motion ``[1, chunk, 30]``, and the keys and values of the cache for the next call.
        """
        model, last = self.model, previous[:, -1]
        branches = model.branches(SpeechCondition(audio, style, last))
        embedded = model.embed_motion(previous)
        tokens = torch.cat([model.tokens(branch, embedded) for branch in branches])
        cache = KeyValueCache(model.config.layers, model.config.window)
        cache.layers = [CachedLayer(*pair) for pair in zip(keys, values, strict=True)]
        state = model.backbone.decoder(tokens, cache, position)
        contexts = [
            model.context_features(state[i : i + 1], branch, last[:, None])[:, 0] for i, branch in enumerate(branches)
        ]
        velocity = partial(model.velocity, context=torch.stack(contexts, -2))
        latents = solve_ode(
            velocity, model.initial_state(noise), noise_schedule(model.config.steps, model.config.shift)
        )
        layers = [layer for layer in cache.layers if layer is not None]
        new_keys = torch.stack([layer.keys for layer in layers])
        new_values = torch.stack([layer.values for layer in layers])
        return model.space.decode(latents, last), new_keys, new_values


def empty_cache(model: ARFlow, past: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values ``[layers, G, heads, past, d]`` of zeros; at a restart ``past`` is 0."""
    config, branches = model.config, 1 if model.config.guidance == 1.0 else 2
    shape = (config.layers, branches, config.heads, past, config.hidden // config.heads)
    return torch.zeros(shape), torch.zeros(shape)


def export_step(model: ARFlow, path: Path) -> None:
    """Write the step of a generator to ``path`` (.onnx), and its sizes to a .json of the same name.

    Each file appears only when it is complete.

    Raises:
        BadInput: the generator has a pretrained backbone, or ``onnx`` is not installed.
    """
    if model.config.backbone:
        raise BadInput("Only generators with a decoder of their own can be exported, not those over a pretrained one.")
    chunk, latent = model.config.chunk, model.latent_dim
    with torch.no_grad():
        condition = model.eval().condition(torch.zeros(1, 4 * chunk, 80))
    example = (condition.audio, condition.style, torch.zeros(1, chunk, MOTION_DIM), torch.zeros(1, latent),
               torch.tensor([3]), *empty_cache(model, past=3))  # fmt: skip
    sizes: dict[str, list[Any]] = {name: list(tensor.shape) for name, tensor in zip(STEP_INPUTS, example, strict=True)}
    sizes["keys"][3] = sizes["values"][3] = "past"
    description = {"inputs": sizes, "horizon": model.config.horizon, "window": model.config.window, "chunk": chunk,
                   "rest_style": condition.style[0].tolist()}  # fmt: skip
    try:
        with atomic_write(path) as partial, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                SamplerStep(model), example, str(partial),
                input_names=list(STEP_INPUTS), output_names=list(STEP_OUTPUTS),
                dynamic_axes={"keys": {3: "past"}, "values": {3: "past"}, "new_keys": {3: "kept"},
                              "new_values": {3: "kept"}},
                opset_version=17, dynamo=False,
            )  # fmt: skip
    except ImportError as error:
        raise BadInput("Exporting needs onnx and onnxscript: pip install 'flowportrait[onnx]'.") from error
    write_json(path.with_suffix(".json"), description)


class OnnxStep:
    """An exported step, which replaces the networks of a model in a ``Sampler`` of one stream."""

    def __init__(self, path: Path, threads: int = 1, device: Device | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.run = onnxruntime.InferenceSession(str(path), options, providers=onnx_providers(device)).run
        description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self.cache_shape = [0 if size == "past" else size for size in description["inputs"]["keys"]]

    def __call__(
        self, audio: torch.Tensor, style: torch.Tensor, previous: torch.Tensor, noise: torch.Tensor, place: int,
        cache: Any,
    ) -> tuple[torch.Tensor, Any]:  # fmt: skip
        """Draw a chunk.

        Args:
            audio: encoded sound of the chunk ``[1, 1, ·]``.
            style: encoded style ``[1, hidden]``.
            previous: motion of the chunk before ``[1, chunk, 30]``.
            noise: unit noise ``[1, chunk·30]``.
            place: chunks since the cache was emptied.
            cache: the cache that the last call returned.

        Returns:
            Motion ``[1, chunk, 30]``, and the cache for the next call.
        """
        if place == 0:
            cache = (np.zeros(self.cache_shape, np.float32),) * 2
        tensors = [part.float().cpu().numpy() for part in (audio, style, previous, noise)]
        motion, *cache = self.run(None, dict(zip(STEP_INPUTS, (*tensors, np.array([place]), *cache), strict=True)))
        return torch.from_numpy(motion), cache


# --- The sampler -------------------------------------------------------------------------------------------------

_MOST_CHUNKS = 16
"""Largest number of chunks whose sound is encoded at once, for sound that is already there."""


class Sampler:
    """Turns the sound of B streams into delivered motion, chunk by chunk and all streams in step."""

    def __init__(
        self,
        model: ARFlow,
        seeds: Sequence[int] = (0,),
        *,
        style: torch.Tensor | None = None,
        state: dict[str, Any] | None = None,
        steering: RewardSteering | None = None,
        intensity: float = 1.0,
        enhancer: Enhancer | None = None,
        portrait: torch.Tensor | None = None,
        gain: Gain = "running",
        step: OnnxStep | None = None,
        follower: VoiceFollower | None = None,
    ) -> None:
        """Prepare B streams, one for each seed.

        Args:
            model: the generator.
            seeds: of the noise, one for each stream.
            style: speaking style ``[19]`` of all streams; the typical speaker by default.
            state: what ``state`` of another sampler returned; it replaces seeds, style, intensity, portrait and gain.
            steering: a reward that guides every chunk or chooses among several.
            intensity: expressiveness from 0.6 to 1.6, see ``apply_intensity``.
            enhancer: removes noise from the sound.
            portrait: tokens ``[B or 1, P, hidden]`` of the faces, for a model with vision, see ``encode_portraits``.
            gain: ``running`` levels the loudness by the sound so far, ``whole`` by the whole recording, which only
                ``finish`` then samples.
            step: an exported step of the same model, which replaces its networks, for one stream.
            follower: makes the motion of every stream follow the voice, see ``models.prosody_motion``.

        Raises:
            BadInput: the intensity is out of range.
        """
        if state is not None:
            state = copy.deepcopy(_current_format(state))
            seeds, style, intensity = state["seeds"], state["style"], state["intensity"]
            portrait, gain = state["portrait"], state["gain"]
        self.model, self.seeds, self.intensity, self.portrait, self.gain = model, list(seeds), intensity, portrait, gain
        self.style = model.rest_style if style is None else style.to(model.rest_style)
        self.streams = [SpeechStream(model, self.style, enhancer, gain, copy.deepcopy(follower)) for _ in self.seeds]
        self.delivery = MotionPostprocessor(model.config.chunk, model.config.ease)
        batch, device = len(self.seeds), model.rest_style.device
        silence = torch.zeros(batch, MELS_PER_FRAME * model.config.chunk, N_MELS, device=device)
        if portrait is not None:
            self.portrait = portrait = portrait.to(device).expand(batch, -1, -1)
        with torch.no_grad():
            condition = model.condition(silence, self.style.expand(batch, -1), portrait=portrait)
            condition = apply_intensity(condition, intensity)
        self.encoded = condition.audio[:, :0]
        """Encoded sound of chunks that were not drawn yet."""
        self.chunks = ChunkSampler(model, condition._replace(audio=self.encoded), self.seeds, steering, step)
        if state is not None:
            self._restore(state)

    def push(self, audio: np.ndarray) -> Iterator[torch.Tensor]:
        """Take 16 kHz samples ``[N]`` or ``[B, N]`` float32 in [-1, 1].

        Returns:
            An iterator that draws motion ``[B, ≤ 4, 30]`` for every chunk that the sound completes: the last frame of
            the chunk before and all frames of this one but the last (see ``rendering.motion_filters``).
        """
        for stream, samples in zip(self.streams, np.atleast_2d(audio), strict=True):
            stream.push(samples)
        return self._deliver_complete()

    def finish(self) -> Iterator[torch.Tensor]:
        """Draw the remaining motion after the end of the sound; the last chunk is as short as the sound."""
        for stream in self.streams:
            stream.finish()
        yield from self._deliver_complete(self.streams[0].frames)
        last = self.delivery.finish()
        yield last.expand(len(self.seeds), *last.shape[-2:])

    def state(self) -> dict[str, Any]:
        """Return the state of the sampler, for ``torch.save``; later pushes do not change it.

        It is a small dictionary (about 100 kB per stream) from which another process can continue. It holds the chunks
        since the backbone's cache was emptied, from which the cache is rebuilt.
        """
        return copy.deepcopy({
            "version": 2, "seeds": self.seeds, "style": self.style, "intensity": self.intensity,
            "portrait": self.portrait, "gain": self.gain, "streams": [stream.state() for stream in self.streams],
            "encoded": self.encoded, "chunks": self.chunks.state(), "delivery": self.delivery.state(),
        })  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        for stream, stream_state in zip(self.streams, state["streams"], strict=True):
            stream.restore(stream_state)
        self.encoded = state["encoded"].to(self.model.rest_style.device)
        self.chunks.restore(state["chunks"])
        self.delivery.restore(state["delivery"])

    @torch.no_grad()
    def _deliver_complete(self, frames: int | None = None) -> Iterator[torch.Tensor]:
        """Draw the chunks that the sound completes, and deliver their motion.

        Args:
            frames: length of the motion, once the sound is over.
        """
        while True:
            position = self.chunks.position
            if not self.encoded.shape[1]:
                last = min(self.streams[0].complete_chunks, position + _MOST_CHUNKS)
                if last <= position:
                    for stream in self.streams:
                        stream.process_until()
                    return
                self.encoded = torch.cat([stream.encode(position, last) for stream in self.streams])
            self.chunks.extend(self.encoded[:, :1])
            self.encoded = self.encoded[:, 1:]
            drawn = self.chunks.draw().float().cpu()
            motion = torch.stack([stream.follow(track) for stream, track in zip(self.streams, drawn, strict=True)])
            gates = torch.tensor([stream.next_gates() for stream in self.streams])
            left = None if frames is None else frames - position * self.model.config.chunk
            yield self.delivery(motion, gates, left)


class ChunkSampler:
    """Draws B samples chunk by chunk from encoded sound, without the filters of delivery.

    ``Sampler`` delivers its motion; measurements of the networks use it directly.
    """

    def __init__(
        self,
        model: ARFlow,
        condition: SpeechCondition,
        seeds: Sequence[int],
        steering: RewardSteering | None = None,
        step: OnnxStep | None = None,
    ) -> None:
        """Prepare B samples.

        Args:
            model: the generator.
            condition: encoded inputs of B rows, with the sound of all chunks known so far.
            seeds: of the noise, one for each row.
            steering: see ``Sampler``, like ``step``.
        """
        if steering is not None and steering.candidates > 1 and len(seeds) > 1:
            raise ValueError("several candidates are drawn for one stream only")
        if step is not None and (steering is not None or len(seeds) > 1):
            raise ValueError("an exported step draws one stream without steering")
        self.model, self.seeds, self.steering, self.step = model, list(seeds), steering, step
        self.session = model.session(condition)
        self.sigmas = noise_schedule(model.config.steps, model.config.shift)
        self.start = self.session.last
        """The frame ``[B, 30]`` before ``history``."""
        self.history: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Encoded sound ``[B, 1, ·]`` and motion ``[B, chunk, 30]`` of each chunk since the cache was emptied."""
        self.step_cache: Any = None

    @property
    def position(self) -> int:
        """Number of chunks that were drawn."""
        return self.session.position

    def extend(self, audio: torch.Tensor) -> None:
        """Add the encoded sound of more chunks ``[B, n, ·]``."""
        self.session.extend(audio)

    @torch.no_grad()
    def draw(self) -> torch.Tensor:
        """Draw the motion ``[B, chunk, 30]`` of the next chunk; its noise depends on seed and position alone."""
        if self.position % self.model.config.horizon == 0:
            self.start, self.history = self.session.last, []
        audio = self.session.audio()
        if self.step is not None:
            motion = self.session.append_motion(self._exported_step(audio, self._noise()).to(self.start))
        else:
            motion = self.session.append(self._latents(audio))
        self.history.append((audio, motion))
        return motion

    def _latents(self, audio: torch.Tensor) -> torch.Tensor:
        velocity = self.model.velocity_field(self.sigmas, self.session.context())
        if self.steering is None:
            return solve_ode(velocity, self.model.initial_state(self._noise()), self.sigmas)
        noise = torch.cat([self._noise(), *(self._noise(i) for i in range(1, self.steering.candidates))])
        past = self.guidance_context(self.steering.history_chunks, audio)
        return self.steering.draw(velocity, self.model.initial_state(noise), self.sigmas, past)

    def _noise(self, *candidate: int) -> torch.Tensor:
        size, device = self.model.config.latent_dim, self.start.device
        return torch.stack([keyed_noise(size, seed, self.position, *candidate) for seed in self.seeds]).to(device)

    def _exported_step(self, audio: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        assert self.step is not None
        session, place = self.session, self.position % self.model.config.horizon
        style = session.branches[0].style
        motion, self.step_cache = self.step(audio, style, session.previous, noise, place, self.step_cache)
        return motion

    def guidance_context(self, chunks: int, audio: torch.Tensor) -> GuidanceContext:
        """Return the context that a reward is given for the next chunk.

        Args:
            chunks: largest number of previous chunks; there are fewer if the cache was emptied since.
            audio: encoded sound of the next chunk ``[B, 1, ·]``.
        """
        first = max(0, len(self.history) - chunks)
        start = self.history[first - 1][1][:, -1] if first else self.start
        before, latents = start, [start.new_zeros(len(start), 0, self.model.config.latent_dim)]
        for _, motion in self.history[first:]:
            latents.append(self.model.space.encode(motion, before)[:, None])
            before = motion[:, -1]
        sounds = [sound for sound, _ in self.history[first:]]
        return GuidanceContext(torch.cat(latents, 1), torch.cat([*sounds, audio], 1), start)

    def state(self) -> dict[str, Any]:
        """Return the state of sampling."""
        return {"position": self.position, "start": self.start, "history": self.history}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned: the last chunks go through the networks again."""
        device = self.start.device
        self.start = state["start"].to(device)
        self.history = [(audio.to(device), motion.to(device)) for audio, motion in state["history"]]
        self.session = self.model.session(self.session.branches[0]._replace(start=self.start))
        self.session.position = self.session.dropped = state["position"] - len(self.history)
        for audio, motion in self.history:
            self.session.extend(audio)
            if self.step is not None:
                self._exported_step(audio, torch.zeros_like(self._noise()))
            else:
                self.session.context()
            self.session.append_motion(motion)


# --- Whole recordings --------------------------------------------------------------------------------------------


def sample_motion(
    model: ARFlow, audio: np.ndarray, seeds: Sequence[int], *, gain: Gain = "whole", **options: Any
) -> torch.Tensor:
    """Sample delivered motion ``[B, T, 30]`` for whole recordings ``[B, N]`` at 16 kHz; options as in ``Sampler``."""
    sampler = Sampler(model, seeds, gain=gain, **options)
    return torch.cat([*sampler.push(audio), *sampler.finish()], 1)


def sample_chunks(
    model: ARFlow,
    condition: SpeechCondition,
    seeds: Sequence[int],
    steering: RewardSteering | None = None,
    step: OnnxStep | None = None,
) -> Iterator[torch.Tensor]:
    """Yield motion ``[B, chunk, 30]`` chunk by chunk for encoded sound, unfiltered; row b uses ``seeds[b]``."""
    sampler = ChunkSampler(model, condition, seeds, steering, step)
    for _ in range(condition.chunks):
        yield sampler.draw()


def sample_from_mel(
    model: ARFlow,
    mel: torch.Tensor,
    seeds: Sequence[int],
    style: torch.Tensor | None = None,
    steering: RewardSteering | None = None,
) -> torch.Tensor:
    """Sample unfiltered motion ``[B, T, 30]`` for log-mel ``[B, 4T, 80]``, T a multiple of the chunk."""
    with torch.no_grad():
        condition = model.condition(mel, style)
    return torch.cat(list(sample_chunks(model, condition, seeds, steering)), 1)


class GenerationSession(Sampler):
    """A ``Sampler`` of one stream, which returns motion without the batch dimension, ``[≤ 4, 30]``."""

    def __init__(self, model: ARFlow, seed: int = 0, style: torch.Tensor | None = None, **options: Any) -> None:
        super().__init__(model, (seed,), style=style, **options)

    def push(self, audio: np.ndarray) -> Iterator[torch.Tensor]:
        """Take 16 kHz samples ``[N]``, and return an iterator over the motion that they complete."""
        return (motion[0] for motion in super().push(audio))

    def finish(self) -> Iterator[torch.Tensor]:
        """Draw the remaining motion after the end of the sound."""
        return (motion[0] for motion in super().finish())


def _current_format(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state in the current format; those of version 0.1 hold one stream and have other names."""
    if state.get("version", 1) == 2:
        return state
    joiner = {"share": state["ease"]["share"], "_held": state["ease"]["_held"][None]}
    stream = {
        "gain": "running", "samples": state["samples"], "due": 0, "gates": state["gates"],
        # The first states had no samples that wait to be processed.
        "waiting": state.get("waiting", np.zeros(0, np.float32)),
        "mel": state["mel"], "mel_start": state["mel_start"],
        "sound": state["sound"], "denoiser": state["hearing"], "gate": state["gate"],
    }  # fmt: skip
    return {
        "version": 2, "seeds": [state["seed"]], "style": state["style"], "intensity": state["intensity"],
        "portrait": state["portrait"], "gain": "running", "streams": [stream], "encoded": state["heard"],
        "chunks": {"position": state["position"], "start": state["start"], "history": state["since"]},
        "delivery": {"low_pass": state["calm"], "joiner": joiner},
    }  # fmt: skip
