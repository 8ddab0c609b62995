"""AR-Flow, the motion generator: an autoregressive flow over chunks of motion latents, and its checkpoints.

    token_i  = audio of chunk i  +  motion of chunk i−1  +  style      (a chunk is 4 frames × 30 numbers)
    h_i      = backbone(token_1 … token_i), and predicted lips         (causal, KV cache; see ``LipRegression``)
    z_i      = flow head integrated from noise, σ: 1 → 0, given h_i
    motion_i = last frame of motion_{i−1} + decode(z_i)                (see ``ChunkSpace``)

``ARFlow.contexts`` computes all h_i in one teacher-forced pass over known latents; ``ARFlowSession`` computes them one
by one while the latents are being drawn. Both agree up to rounding. ``models.sampler`` draws motion for sound.

The parts in order: files of a checkpoint; ``SpeechCondition``, the encoded inputs; ``ARFlow``; ``ARFlowSession``;
checkpoints by name.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Unpack

import numpy as np
import torch
from torch import nn

from flowportrait.devices import Device, place_network, read_weights
from flowportrait.errors import BadInput
from flowportrait.files import write_json, write_text, write_weights
from flowportrait.flow.schedules import VelocityField
from flowportrait.hub import UploadSettings, upload_folder
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS
from flowportrait.models.backbone import STYLE_DIM, Backbone, ChunkSpace, FlowHead, GeneratorConfig
from flowportrait.models.checkpoints import checkpoint_folder
from flowportrait.models.model_card import CARD_FILE, ModelOrigin, model_card_markdown
from flowportrait.models.packed_networks import PackedFlowHead
from flowportrait.models.pretrained import AudioTower, Foundation, VisionTower, load_foundation
from flowportrait.models.speech_encoder import (
    BLOCK,
    N_LIPS,
    SPEECH_DIM,
    TOKENS_PER_FRAME,
    AudioEncoder,
    LipRegression,
    SpeechEncoder,
)
from flowportrait.rendering.motion_basis import BLINK, BROWS, GAZE, HEAD, LOWER_FACE, MOTION_DIM

# --- Files of a checkpoint ---------------------------------------------------------------------------------------
#
# ``config.json``, float16 ``model.safetensors``, and a model card. Over a pretrained backbone that is frozen or has
# LoRA adapters, only what was trained is written, and the config names the backbone. Once adapters are merged into
# the backbone, all of it is written, and the config says ``adapt: full``.


def save_generator(model: ARFlow, folder: Path) -> None:
    """Write a checkpoint; each file appears only when it is complete, and an existing model card is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    config = replace(model.config, adapt="full") if _merged(model) else model.config
    write_weights(folder / "model.safetensors", checkpoint_weights(model))
    write_json(folder / "config.json", asdict(config), indent=2)
    if not (folder / CARD_FILE).exists():
        write_text(folder / CARD_FILE, model_card_markdown(model))


def read_generator_config(folder: Path) -> GeneratorConfig:
    """Read the config of a checkpoint, also of one that version 0.1 wrote.

    Raises:
        BadInput: the folder holds no checkpoint, or one of another version.
    """
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise BadInput(f"No checkpoint in {folder}: it needs config.json and model.safetensors.")
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        renamed = dict(GeneratorConfig.earlier_keys)
        return GeneratorConfig(**{renamed.get(key, key): value for key, value in stored.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise _incompatible(folder, error) from error


def load_checkpoint_weights(model: ARFlow, folder: Path) -> None:
    """Load the weights of a checkpoint into ``model``, in float32.

    Raises:
        BadInput: weights are missing, unknown or of another shape.
    """
    try:
        missing, unknown = model.load_state_dict(read_weights(folder / "model.safetensors"), strict=False)
        required = checkpoint_weights(model)
        mismatched = [*unknown, *(name for name in missing if name in required)]
        if mismatched:
            raise ValueError(f"{len(mismatched)} weights differ, {mismatched[0]} among them")
    except (ValueError, RuntimeError) as error:
        raise _incompatible(folder, error) from error


def checkpoint_weights(model: ARFlow) -> dict[str, torch.Tensor]:
    """Return the weights that a checkpoint has to hold: all but the untrained parts of a pretrained backbone."""
    state = model.state_dict()
    if not model.config.backbone:
        return state
    inherited = ("vision.", "speech.") if model.config.front_end == "tower" else ("vision.",)
    if not _merged(model):
        inherited = ("backbone.", *inherited)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in state.items() if name in trained or not name.startswith(inherited)}


def _merged(model: ARFlow) -> bool:
    """Return whether trained adapters were merged into the weights of the backbone."""
    adapted = bool(model.config.backbone) and model.config.adapt == "lora"
    return adapted and not any("lora_" in name for name, _ in model.backbone.named_parameters())


def _incompatible(folder: Path, error: Exception) -> BadInput:
    return BadInput(f"The checkpoint in {folder} does not fit this version: {str(error).splitlines()[0]}")


# --- The model ---------------------------------------------------------------------------------------------------


class SpeechCondition(NamedTuple):
    """The encoded inputs of B samples, one row for each.

    Attributes:
        audio: ``[B, N, chunk·d]``, the encoded sound; with an anchor, followed by the lips that the sound alone
            predicts (``chunk·16``).
        style: ``[B, hidden]``, the encoded speaking style; for a model with vision ``[B, 1 + P, hidden]``, where the P
            tokens of the portrait follow the style.
        start: ``[B, 30]``, the motion frame before the first.
    """

    audio: torch.Tensor
    style: torch.Tensor
    start: torch.Tensor

    def repeat(self, times: int) -> SpeechCondition:
        """Return each row ``times`` times in a row: the samples of a group share one encoding."""
        return SpeechCondition(*(part.repeat_interleave(times, 0) for part in self))

    def select(self, rows: torch.Tensor) -> SpeechCondition:
        """Return the rows at these indices."""
        return SpeechCondition(*(part[rows] for part in self))

    @property
    def chunks(self) -> int:
        """N, the number of chunks to generate."""
        return self.audio.shape[1]

    @property
    def speaker(self) -> torch.Tensor:
        """The style ``[B, 1, hidden]``, which is added to every token."""
        return self.style[:, None] if self.style.dim() == 2 else self.style[:, :1]

    @property
    def portrait(self) -> torch.Tensor:
        """The tokens ``[B, P, hidden]`` that precede the first chunk; P is 0 for a model without vision."""
        return self.speaker[:, :0] if self.style.dim() == 2 else self.style[:, 1:]


class ARFlow(nn.Module):
    """The networks of the generator; also a policy for post-training."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.origin: ModelOrigin | None = None
        foundation = load_foundation(config) if config.backbone else None
        hidden = foundation.decoder.config.hidden_size if foundation else config.hidden
        self.speech, features = build_front_end(config, foundation)
        reader = LipRegression(config.front_end, config.audio_width, inputs=features) if config.anchor else None
        self.lip_reader = reader.requires_grad_(False) if reader else None
        self.audio_encoder = AudioEncoder(config.front_end, config.audio_width, inputs=features)
        self.audio_in = nn.Linear(config.chunk * config.audio_width, hidden)
        self.silence = nn.Parameter(torch.zeros(config.chunk * (config.audio_width + config.anchor * N_LIPS)))
        self.motion_in = nn.Linear(config.latent_dim, hidden)
        self.style_in = nn.Linear(STYLE_DIM, hidden)
        self.backbone = Backbone(config, foundation.decoder if foundation else None)
        self.vision = VisionTower(foundation.vision, config.portrait_side) if foundation and config.use_vision else None
        context_dim = hidden + config.anchor * config.latent_dim
        self.head = FlowHead(config.latent_dim, context_dim, config.head_width, config.head_depth)
        self.packed_head: PackedFlowHead | None = None
        self.space = ChunkSpace(config.chunk)
        self.register_buffer("rest_style", torch.zeros(STYLE_DIM))
        self.train()

    rest_style: torch.Tensor

    @property
    def latent_dim(self) -> int:
        """D, the number of latents per chunk."""
        return self.config.latent_dim

    def train(self, mode: bool = True) -> ARFlow:
        """Set training mode as ``nn.Module.train`` does, but keep frozen parts in evaluation mode."""
        super().train(mode)
        for frozen in (self.speech, self.lip_reader, self.vision):
            if frozen is not None:
                frozen.eval()
        return self

    def audio_features(self, mel: torch.Tensor, skip: int = 0) -> torch.Tensor:
        """Return features ``[B, T − 32·skip, features]`` of the frozen front end for log-mel ``[B, 4T, 80]``.

        The first ``skip`` blocks of 32 frames serve as context only.
        """
        mel = mel.to(self.rest_style.device)
        if self.speech is not None:
            return self.speech(mel, skip)
        frames = mel.reshape(len(mel), -1, MELS_PER_FRAME * mel.shape[-1])
        return frames[:, skip * BLOCK // TOKENS_PER_FRAME :]

    def encode_portrait(self, crops: list[np.ndarray]) -> torch.Tensor:
        """Encode portrait crops ``[S, S, 3]`` uint8 as the tokens ``[B, P, hidden]`` that ``condition`` takes.

        Raises:
            BadInput: this model has no vision tower.
        """
        if self.vision is None:
            raise BadInput(
                "This generator does not see portraits: train one with use_vision=true over a backbone that has a "
                "vision tower."
            )
        return self.vision(crops)

    def condition(
        self,
        mel: torch.Tensor,
        style: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        drop_audio: torch.Tensor | None = None,
        portrait: torch.Tensor | None = None,
    ) -> SpeechCondition:
        """Encode the inputs of a generation.

        Args:
            mel: log-mel ``[B, 4T, 80]``, T a multiple of the chunk.
            style: speaking style ``[B, 19]``; the typical speaker by default.
            start: the motion frame before the first ``[B, 30]``; the neutral pose by default.
            drop_audio: ``[B]`` bool, where to replace the audio by the learned no-audio vector.
            portrait: what ``encode_portrait`` returned ``[B, P, hidden]``.
        """
        return self.condition_from_features(self.audio_features(mel), style, start, drop_audio, portrait)

    def condition_from_features(
        self,
        features: torch.Tensor,
        style: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        drop_audio: torch.Tensor | None = None,
        portrait: torch.Tensor | None = None,
    ) -> SpeechCondition:
        """Encode the inputs as ``condition`` does, given what ``audio_features`` returned ``[B, T, features]``."""
        features = features.to(self.rest_style.device)
        batch, frames, _ = features.shape
        chunk = self.config.chunk
        if frames % chunk:
            raise ValueError(f"{frames} frames are not whole chunks of {chunk}")
        if style is None:
            style = self.rest_style.expand(batch, -1)
        if start is None:
            start = features.new_zeros(batch, MOTION_DIM)
        style, start = style.to(features), start.to(features)
        audio = self.audio_encoder(features).reshape(batch, frames // chunk, -1)
        if self.lip_reader is not None:
            lips = self.lip_reader.lips(self.lip_reader(features), style)
            audio = torch.cat([audio, lips.reshape(batch, frames // chunk, -1)], -1)
        if drop_audio is not None:
            audio = torch.where(drop_audio[:, None, None], self.silence, audio)
        speaker = self.style_in(style)
        if portrait is not None:
            speaker = torch.cat([speaker[:, None], portrait], 1)
        return SpeechCondition(audio, speaker, start)

    def tokens(self, condition: SpeechCondition, previous: torch.Tensor) -> torch.Tensor:
        """Return the input tokens of the backbone ``[B, N, hidden]``, where ``previous`` ``[B, N, hidden]`` is for each
        chunk the embedded motion of the one before it."""
        encoded = condition.audio[..., : self.audio_in.in_features]
        return self.audio_in(encoded) + previous + condition.speaker

    def context_features(self, state: torch.Tensor, condition: SpeechCondition, last: torch.Tensor) -> torch.Tensor:
        """Return the contexts ``[B, N, C]`` that the flow head is given.

        These are the states of the backbone ``[B, N, hidden]`` and, with an anchor, the latents that move the lips from
        the frame before each chunk, ``last`` ``[B, N, 30]``, to the positions that the sound alone predicts.
        """
        if not self.config.anchor:
            return state
        lips = condition.audio[..., self.audio_in.in_features :].unflatten(-1, (self.config.chunk, N_LIPS))
        motion = last[..., None, :].repeat(*(1,) * (last.dim() - 1), self.config.chunk, 1)
        motion[..., LOWER_FACE] = lips
        return torch.cat([state, self.space.encode(motion, last)], -1)

    def contexts(self, condition: SpeechCondition, latents: torch.Tensor) -> torch.Tensor:
        """Return the contexts ``[B, N, G, C]`` of all chunks with clean latents ``[B, N, chunk·30]``, teacher-forced.

        They are given with the sound, and where guidance needs it also without (G = 1 or 2).
        """
        motion, chunk = self.to_motion(latents, condition.start), self.config.chunk
        segments = []
        for first in range(0, latents.shape[1], self.config.horizon):
            last = min(first + self.config.horizon, latents.shape[1])
            before = motion[:, first * chunk - 1] if first else condition.start
            segment = condition._replace(audio=condition.audio[:, first:last], start=before)
            history = motion[:, first * chunk : (last - 1) * chunk]
            segments.append(torch.stack([self.contexts_from_motion(b, history) for b in self.branches(segment)], -2))
        return torch.cat(segments, 1)

    def branches(self, condition: SpeechCondition) -> tuple[SpeechCondition, ...]:
        """Return the conditions that guidance combines: with and without the sound, or the first alone at weight 1."""
        if self.config.guidance == 1.0:
            return (condition,)
        return condition, condition._replace(audio=self.silence.expand_as(condition.audio))

    def contexts_from_motion(self, condition: SpeechCondition, motion: torch.Tensor) -> torch.Tensor:
        """Return the context of every chunk ``[B, N, C]`` in one pass, given the motion of all chunks but the last
        ``[B, (N−1)·chunk, 30]``."""
        lead = condition.start[:, None].expand(-1, self.config.chunk, -1)
        before = torch.cat([lead, motion], 1)
        tokens = torch.cat([condition.portrait, self.tokens(condition, self.embed_motion(before))], 1)
        state = self.backbone(tokens)[:, condition.portrait.shape[1] :]
        return self.context_features(state, condition, before[:, self.config.chunk - 1 :: self.config.chunk])

    def embed_motion(self, motion: torch.Tensor) -> torch.Tensor:
        """Embed motion ``[B, N·chunk, 30]`` as one vector per chunk ``[B, N, hidden]``."""
        return self.motion_in(motion.reshape(len(motion), -1, self.config.latent_dim))

    def initial_state(self, noise: torch.Tensor) -> torch.Tensor:
        """Return the latents at σ = 1 for unit noise ``[..., chunk·30]``, scaled by the config's spreads."""
        config, spread = self.config, torch.ones(MOTION_DIM)
        spread[LOWER_FACE], spread[BROWS], spread[HEAD] = config.spread_mouth, config.spread_brows, config.spread_head
        spread[BLINK] = spread[GAZE] = config.spread_eyes
        return noise * spread.repeat_interleave(config.chunk).to(noise)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Return the velocity of latents, with classifier-free guidance on the audio.

            v = v_silent + w (v_audio − v_silent)

        x and v are ``[..., chunk·30]``, sigma is a scalar or ``[...]``, and context ``[..., G, C]`` (see ``contexts``).
        """
        level = sigma.to(x.device).expand(x.shape[:-1])
        return self._guided(self.head(x[..., None, :], level[..., None], context))

    def velocity_field(self, sigmas: torch.Tensor, context: torch.Tensor) -> VelocityField:
        """Return ``velocity`` as a function of x and sigma, for one context and the levels ``sigmas`` ``[K]``.

        The modulations of the head are computed for all levels at once, which on a CPU saves a third of a step.
        """
        if self.packed_head and not torch.is_grad_enabled():
            return self.packed_head.velocity_field(sigmas, context, self._guided)
        levels = sigmas.to(context.device).reshape(-1, *(1,) * (context.dim() - 1))
        modulations = self.head.modulations(levels, context[None])
        steps = {float(sigma): part for sigma, *part in zip(sigmas, *modulations, strict=True)}
        return lambda x, sigma: self._guided(self.head.modulated(x[..., None, :], steps[float(sigma)]))

    def _guided(self, branches: torch.Tensor) -> torch.Tensor:
        """Combine the velocities with and without the sound ``[..., G, chunk·30]`` into one."""
        if branches.shape[-2] == 1:
            return branches[..., 0, :]
        conditional, unconditional = branches.unbind(-2)
        return unconditional + self.config.guidance * (conditional - unconditional)

    def recompute_activations(self) -> None:
        """Recompute the backbone's activations in the backward pass instead of keeping them, in training mode only."""
        self.backbone.recompute_activations()

    def compile_head(self) -> None:
        """Compile the flow head, most of the cost of a sampler step, with ``torch.compile``; the first step then takes
        long, and a C++ compiler must be installed. Checkpoints do not change."""
        self.head.compile(dynamic=False)

    def session(self, condition: SpeechCondition) -> ARFlowSession:
        """Start generating chunk by chunk."""
        return ARFlowSession(self, condition)

    def to_motion(self, latents: torch.Tensor, start: torch.Tensor | None = None) -> torch.Tensor:
        """Decode latents ``[B, N, chunk·30]`` to motion ``[B, T, 30]`` after the frame ``start`` ``[B, 30]``, which is
        the neutral pose by default."""
        if start is None:
            start = latents.new_zeros(len(latents), MOTION_DIM)
        return self.space.decode_track(latents, start).flatten(1, 2)

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json``, float16 ``model.safetensors`` and a model card."""
        save_generator(self, folder)

    def push_to_hub(self, name: str, card: str | None = None, **settings: Unpack[UploadSettings]) -> str:
        """Upload what ``save_pretrained`` writes, with a model card of one's own if one is given.

        Returns and raises: see ``hub.upload_folder``.
        """
        with TemporaryDirectory() as folder:
            if card:
                write_text(Path(folder) / CARD_FILE, card)
            self.save_pretrained(Path(folder))
            return upload_folder(Path(folder), name, **settings)

    @classmethod
    def from_pretrained(cls, folder: Path, device: Device | None = None, dtype: torch.dtype | None = None) -> ARFlow:
        """Load what ``save_pretrained`` wrote; for ``device`` and ``dtype`` see ``devices.place_network``.

        Raises:
            BadInput: the folder holds no checkpoint or one of another shape, or its backbone cannot be loaded.
        """
        model = cls(read_generator_config(folder))
        load_checkpoint_weights(model, folder)
        model.origin = ModelOrigin.read(folder, folder.name)
        return place_network(model.eval(), device, dtype)


def build_front_end(config: GeneratorConfig, foundation: Foundation | None) -> tuple[nn.Module | None, int]:
    """Return the frozen audio front end, None for plain log-mel, and its number of features per frame."""
    if config.front_end == "mel":
        return None, MELS_PER_FRAME * N_MELS
    if config.front_end == "whisper":
        return SpeechEncoder(), SPEECH_DIM
    if foundation is None or foundation.audio is None:
        raise BadInput("front_end=tower needs a backbone with an audio tower, such as backbone=Qwen/Qwen2.5-Omni-3B.")
    tower = AudioTower(foundation.audio)
    return tower, tower.features


class ARFlowSession:
    """The generation of B samples, chunk by chunk, with the backbone's cache: alternate ``context``, for the context of
    the next chunk, and ``append``, for its latents; ``extend`` adds sound that arrives after the start."""

    def __init__(self, model: ARFlow, condition: SpeechCondition) -> None:
        self.model = model
        self.branches = model.branches(condition)
        self.position = 0
        self.dropped = 0
        """Chunks whose sound is no longer kept."""
        self.last = condition.start
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Empty the cache, so that only the last frame carries over."""
        self.cache = self.model.backbone.new_cache()
        if self.branches[0].portrait.shape[1]:
            self.model.backbone(torch.cat([branch.portrait for branch in self.branches]), self.cache)
        self.previous = self.last[:, None].expand(-1, self.model.config.chunk, -1)

    def extend(self, audio: torch.Tensor) -> None:
        """Append the encoded audio of more chunks ``[B, n, ·]``; audio that was already used is dropped."""
        condition = self.branches[0]
        remaining = condition.audio[:, self.position - self.dropped :]
        self.dropped = self.position
        self.branches = self.model.branches(condition._replace(audio=torch.cat([remaining, audio], 1)))

    def audio(self) -> torch.Tensor:
        """Return the encoded audio of the next chunk ``[B, 1, ·]``."""
        at = self.position - self.dropped
        return self.branches[0].audio[:, at : at + 1]

    def context(self) -> torch.Tensor:
        """Return the context of the next chunk ``[B, G, C]``; call it once per chunk."""
        now = slice(self.position - self.dropped, self.position - self.dropped + 1)
        embedded = self.model.embed_motion(self.previous)
        branches = [branch._replace(audio=branch.audio[:, now]) for branch in self.branches]
        # All branches in one pass: a small decoder costs hardly more for two rows than for one.
        states = self.model.backbone(
            torch.cat([self.model.tokens(branch, embedded) for branch in branches]), self.cache
        )
        contexts = [
            self.model.context_features(state, branch, self.last[:, None])[:, 0]
            for state, branch in zip(states.chunk(len(branches)), branches, strict=True)
        ]
        return torch.stack(contexts, -2)

    def append(self, latents: torch.Tensor) -> torch.Tensor:
        """Continue after the clean latents ``[B, chunk·30]`` of a chunk, and return its motion ``[B, chunk, 30]``."""
        return self.append_motion(self.model.space.decode(latents, self.last))

    def append_motion(self, motion: torch.Tensor) -> torch.Tensor:
        """Continue after the motion ``[B, chunk, 30]`` of the chunk of the last ``context``, and return that motion."""
        self.previous, self.last = motion, motion[:, -1]
        self.position += 1
        if self.position % self.model.config.horizon == 0:
            self._start_afresh()
        return motion


def load_generator(name: str | Path, device: Device | None = None, dtype: torch.dtype | None = None) -> ARFlow:
    """Load a generator in evaluation mode.

    Args:
        name: a shipped checkpoint (``rl``, ``sft``), a folder, or a model on the Hub (``org/name``,
            ``org/name@revision``).
        device: device of the network, see ``devices``.
        dtype: number format of the network, see ``devices``.

    Raises:
        BadInput: there is no such checkpoint, or it does not fit this version.
    """
    model = ARFlow.from_pretrained(checkpoint_folder(name), device, dtype)
    model.origin = replace(model.origin, name=str(name)) if model.origin else None
    return model
