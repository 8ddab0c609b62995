"""The memory that post-training of published models needs, counted on ``meta`` tensors without any download.

    weights      parameters × 2 bytes (bfloat16, frozen)
    adapters     LoRA parameters × 4 bytes × (live, gradient, two moments, ref, ema)
    activations  peak of one forward and backward pass of one sample, without the weights; for a model that is guided
                 by two branches, of both
    acting       peak of one forward pass without gradients;   decoding: of the autoencoder, with its weights
    trajectory   latents × 4 bytes × (x, x', noise per trained step, and the sample)

The parts in order: published models by their configuration; ``count_memory``; the counter of storages.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowportrait.errors import BadInput
from flowportrait.training.lora import LoraSettings, insert_adapters

# --- Published models --------------------------------------------------------------------------------------------
#
# A configuration has the values of the model's repository that differ from the defaults of its class in diffusers.
# Inputs are those of one sample at the usual size of the model; texts are as long as the pipeline pads them.

Shape = tuple[int, ...]


@dataclass(frozen=True)
class PublishedModel:
    """A published model by its configuration."""

    name: str
    repository: str
    """Name on the hub."""
    network: str
    """Class of the network in diffusers."""
    config: Mapping[str, Any]
    """Its configuration, without ``depth``."""
    depth: Mapping[str, int]
    """The configuration keys that give numbers of blocks."""
    inputs: Mapping[str, Shape]
    """Shapes of the network's inputs for one sample."""
    arguments: Mapping[str, Any]
    """Other arguments of the network."""
    autoencoder: str
    """Class of the autoencoder in diffusers."""
    autoencoder_config: Mapping[str, Any]
    latents: Shape
    """Latents of one sample as the autoencoder decodes them, ``[C, h, w]`` or ``[C, T, h, w]``."""
    size: str
    """Size of one sample, in words."""
    networks: int = 1
    """Number of networks of this kind."""
    branches: int = 2
    """Calls of the network per velocity: two with true guidance."""
    lists: tuple[str, ...] = field(default=())
    """Inputs that are lists of samples."""


def _picture_size(tokens: int) -> str:
    return f"1024 × 1024, {tokens} tokens"


KL16 = {
    "latent_channels": 16, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip


def _sd3(name: str, layers: int, dual: tuple[int, ...], longest: int) -> PublishedModel:
    width = 64 * layers
    return PublishedModel(
        name, f"stabilityai/stable-diffusion-{name.removeprefix('sd')}", "SD3Transformer2DModel",
        {"sample_size": 128, "num_attention_heads": layers, "caption_projection_dim": width, "qk_norm": "rms_norm",
         "pos_embed_max_size": longest, "dual_attention_layers": dual},
        {"num_layers": layers},
        {"hidden_states": (16, 128, 128), "encoder_hidden_states": (333, 4096), "pooled_projections": (2048,),
         "timestep": ()}, {}, "AutoencoderKL", KL16, (16, 128, 128), _picture_size(4096),
    )  # fmt: skip


def _flux2(name: str, depth: dict[str, int], heads: int, joint: int, branches: int) -> PublishedModel:
    guided = branches == 1
    inputs: dict[str, Shape] = {
        "hidden_states": (4096, 128), "encoder_hidden_states": (512, joint), "timestep": (), "img_ids": (4096, 4),
        "txt_ids": (512, 4),
    }  # fmt: skip
    return PublishedModel(
        name, f"black-forest-labs/{name.upper()}", "Flux2Transformer2DModel",
        {"num_attention_heads": heads, "joint_attention_dim": joint, "guidance_embeds": guided}, depth,
        inputs | ({"guidance": ()} if guided else {}), {}, "AutoencoderKLFlux2", {}, (128, 64, 64), _picture_size(4096),
        branches=branches,
    )  # fmt: skip


def _wan(name: str, repository: str, config: dict[str, Any], layers: int, latents: Shape, vae: dict[str, Any],
         size: str, image: bool = False, networks: int = 1) -> PublishedModel:  # fmt: skip
    channels = int(config["in_channels"])
    inputs: dict[str, Shape] = {"hidden_states": (channels, *latents[1:]), "timestep": (),
                                "encoder_hidden_states": (512, 4096)}  # fmt: skip
    if image:
        inputs["encoder_hidden_states_image"] = (257, 1280)
    return PublishedModel(name, repository, "WanTransformer3DModel", config, {"num_layers": layers}, inputs, {},
                 "AutoencoderKLWan", vae, latents, size, networks)  # fmt: skip


def _ltx(name: str, config: dict[str, Any], layers: int) -> PublishedModel:
    return PublishedModel(
        name, "Lightricks/LTX-Video", "LTXVideoTransformer3DModel", config, {"num_layers": layers},
        {"hidden_states": (16 * 16 * 24, 128), "encoder_hidden_states": (128, 4096), "timestep": (16 * 16 * 24,),
         "encoder_attention_mask": (128,)},
        {"num_frames": 16, "height": 16, "width": 24, "rope_interpolation_scale": (8 / 25, 32, 32)},
        "AutoencoderKLLTXVideo", {}, (128, 16, 16, 24), "121 frames of 512 × 768, 6144 tokens",
    )  # fmt: skip


WAN22_VAE = {
    "z_dim": 48, "base_dim": 160, "decoder_base_dim": 256, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
    "in_channels": 12, "out_channels": 12, "patch_size": 2, "is_residual": True, "scale_factor_spatial": 16,
    "scale_factor_temporal": 4, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
    "temperal_downsample": [False, True, True],
}  # fmt: skip

_MODELS = (
    _ltx("ltx-video-2b", {}, 28),
    _ltx("ltx-video-13b", {"attention_head_dim": 128, "cross_attention_dim": 4096}, 48),
    PublishedModel(
        "ltx-2", "Lightricks/LTX-2", "LTX2VideoTransformer3DModel", {}, {"num_layers": 48},
        {"hidden_states": (6144, 128), "audio_hidden_states": (126, 128), "encoder_hidden_states": (1024, 3840),
         "audio_encoder_hidden_states": (1024, 3840), "timestep": (6144,), "audio_timestep": (), "sigma": (),
         "encoder_attention_mask": (1024,), "audio_encoder_attention_mask": (1024,)},
        {"num_frames": 16, "height": 16, "width": 24, "fps": 24.0, "audio_num_frames": 126},
        "AutoencoderKLLTX2Video", {}, (128, 16, 16, 24), "121 frames of 512 × 768, 6144 tokens and 126 of sound",
    ),
    _wan("wan2.1-i2v-14b", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
         {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}, 40, (16, 21, 60, 104), {},
         "81 frames of 480 × 832, 32760 tokens", image=True),
    _wan("wan2.2-i2v-a14b", "Wan-AI/Wan2.2-I2V-A14B-Diffusers", {"in_channels": 36}, 40, (16, 21, 60, 104), {},
         "81 frames of 480 × 832, 32760 tokens", networks=2),
    _wan("wan2.2-ti2v-5b", "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
         {"in_channels": 48, "out_channels": 48, "num_attention_heads": 24, "ffn_dim": 14336}, 30, (48, 31, 44, 80),
         WAN22_VAE, "121 frames of 704 × 1280, 27280 tokens"),
    PublishedModel(
        "hunyuan-video-1.5", "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v",
        "HunyuanVideo15Transformer3DModel", {}, {"num_layers": 54},
        {"hidden_states": (65, 31, 30, 52), "timestep": (), "encoder_hidden_states": (1000, 3584),
         "encoder_attention_mask": (1000,), "encoder_hidden_states_2": (256, 1472), "encoder_attention_mask_2": (256,),
         "image_embeds": (729, 1152)},
        {}, "AutoencoderKLHunyuanVideo15", {}, (32, 31, 30, 52), "121 frames of 480 × 832, 48360 tokens",
    ),
    _sd3("sd3.5-medium", 24, tuple(range(13)), 384),
    _sd3("sd3.5-large", 38, (), 192),
    PublishedModel(
        "flux.1-dev", "black-forest-labs/FLUX.1-dev", "FluxTransformer2DModel", {"guidance_embeds": True},
        {"num_layers": 19, "num_single_layers": 38},
        {"hidden_states": (4096, 64), "encoder_hidden_states": (512, 4096), "pooled_projections": (768,),
         "timestep": (), "guidance": ()},
        {"img_ids": (4096, 3), "txt_ids": (512, 3)}, "AutoencoderKL", KL16, (16, 128, 128), _picture_size(4096),
        branches=1,
    ),
    _flux2("flux.2-klein-4b", {"num_layers": 5, "num_single_layers": 20}, 24, 7680, 2),
    _flux2("flux.2-dev", {"num_layers": 8, "num_single_layers": 48}, 48, 15360, 1),
    PublishedModel(
        "z-image", "Tongyi-MAI/Z-Image", "ZImageTransformer2DModel", {}, {"n_layers": 30, "n_refiner_layers": 2},
        {"x": (16, 1, 128, 128), "t": (), "cap_feats": (512, 2560)}, {}, "AutoencoderKL", KL16, (16, 128, 128),
        _picture_size(4096), lists=("x", "cap_feats"),
    ),
    PublishedModel(
        "qwen-image", "Qwen/Qwen-Image", "QwenImageTransformer2DModel", {}, {"num_layers": 60},
        {"hidden_states": (4096, 64), "encoder_hidden_states": (512, 3584), "timestep": ()},
        {"img_shapes": [[(1, 64, 64)]]}, "AutoencoderKLQwenImage", {}, (16, 1, 128, 128), _picture_size(4096),
    ),
)  # fmt: skip

PUBLISHED_MODELS: dict[str, PublishedModel] = {model.name: model for model in _MODELS}


def published_model(name: str) -> PublishedModel:
    """Return a published model by name.

    Raises:
        BadInput: there is no model of that name.
    """
    if name not in PUBLISHED_MODELS:
        raise BadInput(f"No model named {name!r} is counted: choose from {', '.join(PUBLISHED_MODELS)}.")
    return PUBLISHED_MODELS[name]


# --- Counting ----------------------------------------------------------------------------------------------------
#
# The blocks of a network are alike: peaks are counted with two and with three of them, and further blocks add the
# difference. Every storage is counted from its creation until its release; attention counts as a fused kernel, which
# keeps no matrix of all pairs.

GIB = 2**30
COPIES_PER_PARAMETER = 6
"""Copies of each trained number: itself, its gradient, two moments, ``ref`` and ``ema``."""
ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers that get adapters."""
TRAINED_STEPS = 5
"""Trained steps that a trajectory keeps."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory that post-training a model needs, in bytes; ``parameters`` and ``adapters`` are counts."""

    model: str
    size: str
    parameters: int
    adapters: int
    weights: int
    adapter_states: int
    activations: int
    acting: int
    decoding: int
    trajectory: int

    @property
    def update(self) -> int:
        """Peak memory of an update, one sample and one step at a time."""
        return self.weights + self.adapter_states + self.activations

    @property
    def rollout(self) -> int:
        """Peak memory of a rollout: of sampling or of decoding, whichever is larger."""
        return self.weights + self.adapter_states + max(self.acting, self.decoding)

    def as_dict(self) -> dict[str, Any]:
        """Return all figures by name."""
        return {**asdict(self), "update": self.update, "rollout": self.rollout}

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e9:.1f} G parameters; {self.size}: rollout {self.rollout / GIB:.0f} GiB, update "
            f"{self.update / GIB:.0f} GiB (weights {self.weights / GIB:.0f}, adapters {self.adapter_states / GIB:.1f}, "
            f"activations {self.activations / GIB:.1f}, decoding {self.decoding / GIB:.1f})"
        )


def count_memory(model: PublishedModel, rank: int = 32, checkpointing: bool = True) -> MemoryEstimate:
    """Count the memory that post-training a published model needs, with LoRA on its attention.

    Args:
        model: the model.
        rank: of the adapters.
        checkpointing: whether activations are recomputed in the backward pass.
    """
    with torch.device("meta"):
        whole = _network(model, dict(model.depth))
        parameters = sum(p.numel() for p in whole.parameters()) * model.networks
        insert_adapters(whole, LoraSettings(rank, rank, ATTENTION_LAYERS), 0)
    adapters = sum(p.numel() for p in whole.parameters() if p.requires_grad) * model.networks
    updating = _for_whole_depth(
        model, lambda depth: _pass(model, depth, rank, checkpointing, gradient=True), model.branches
    )
    acting = _for_whole_depth(model, lambda depth: _pass(model, depth, rank, False, gradient=False))
    latents = torch.Size(model.latents).numel()
    return MemoryEstimate(
        model.name, model.size, parameters, adapters, 2 * parameters, 4 * COPIES_PER_PARAMETER * adapters, updating,
        acting, _decoding(model), 4 * latents * (3 * TRAINED_STEPS + 1),
    )  # fmt: skip


def _for_whole_depth(model: PublishedModel, count: Callable[[dict[str, int]], int], branches: int = 1) -> int:
    """Extrapolate a count to the whole depth from two and three of each kind of block; the first block is special.

    What a block keeps for the backward pass is counted for every branch of guidance; its working memory only once.
    """
    two_blocks = dict.fromkeys(model.depth, 2)
    base = count(two_blocks)
    per_block = {kind: count({**two_blocks, kind: 3}) - base for kind in model.depth}
    return base + sum(per_block[kind] * (branches * blocks - 2) for kind, blocks in model.depth.items())


def _pass(model: PublishedModel, depth: dict[str, int], rank: int, checkpointing: bool, gradient: bool) -> int:
    with meta_tensors(torch.bfloat16):
        network = _network(model, depth)
        insert_adapters(network, LoraSettings(rank, rank, ATTENTION_LAYERS), 0)
        if checkpointing:
            network.enable_gradient_checkpointing()  # type: ignore[operator]
        return peak_bytes(network.train(gradient), _call(model), gradient)


def _decoding(model: PublishedModel) -> int:
    import diffusers

    with meta_tensors(torch.bfloat16):
        vae = getattr(diffusers, model.autoencoder)(**model.autoencoder_config).eval()
        weights = sum(t.numel() * t.element_size() for t in vae.parameters())
        patch = 2 if model.autoencoder == "AutoencoderKLFlux2" else 1
        channels, *rest, high, wide = model.latents
        latents = torch.zeros(1, channels // patch**2, *rest, high * patch, wide * patch, dtype=torch.bfloat16)
        known = {t.untyped_storage()._cdata for t in (*vae.parameters(), *vae.buffers())}
        with count_storages(known) as peak, torch.no_grad():
            vae.decode(latents)
        return weights + peak()


def _network(model: PublishedModel, depth: dict[str, int]) -> nn.Module:
    import diffusers

    config = dict(model.config) | depth
    if "dual_attention_layers" in config:
        config["dual_attention_layers"] = tuple(n for n in config["dual_attention_layers"] if n < depth["num_layers"])
    return getattr(diffusers, model.network)(**config)


def _call(model: PublishedModel) -> dict[str, Any]:
    """Return the arguments of the network for one sample."""
    half = torch.bfloat16
    sizes = model.inputs.items()
    call: dict[str, Any] = {n: torch.zeros(1, *size, dtype=half if size else torch.float32) for n, size in sizes}
    for name in model.lists:
        call[name] = list(call[name].unbind())
    for name, value in model.arguments.items():
        call[name] = torch.zeros(*value) if name.endswith("_ids") and isinstance(value, tuple) else value
    return call


def peak_bytes(network: nn.Module, call: Mapping[str, Any], gradient: bool) -> int:
    """Return the peak memory in bytes of a pass ``network(**call)``, without the network's weights.

    Args:
        network: a network, usually on the ``meta`` device.
        call: its arguments.
        gradient: whether to run the backward pass too.
    """
    weights = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    with count_storages(weights) as peak, torch.set_grad_enabled(gradient):
        output = network(**call)
        if gradient:
            out = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad]
            torch.stack([t.float().square().mean() for t in out]).sum().backward()
    network.zero_grad(set_to_none=True)
    return peak()


@contextmanager
def count_storages(known: set[int]) -> Iterator[Any]:
    """Count the storages that are created inside the block, except ``known`` ones.

    Yields:
        A function that returns the peak in bytes.
    """
    counter = _StorageCounter(known)
    with counter:
        yield lambda: counter.peak


class _StorageCounter(TorchDispatchMode):
    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.sizes = dict.fromkeys(known, 0)
        self.now = self.peak = 0
        self.inverted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = self._run(func, args, kwargs or {})
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return output

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation. Where its result depends on values, which ``meta`` tensors do not have, a mask selects
        everything, its inverse selects nothing, and a condition is false."""
        name, masked = func.name(), len(args) > 1 and _is_mask(args[1]) and args[0].is_meta
        if name == "aten::_local_scalar_dense" and args[0].is_meta:
            return 0
        if "index_put" in name and masked:
            return args[0]
        if name == "aten::index.Tensor" and masked:
            rows = 0 if args[1][0].untyped_storage()._cdata in self.inverted else len(args[0])
            return args[0].new_empty(rows, *args[0].shape[1:])
        output = func(*args, **kwargs)
        if name == "aten::bitwise_not":
            self.inverted.add(output.untyped_storage()._cdata)
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)
        self.inverted.discard(key)


@contextmanager
def meta_tensors(kind: torch.dtype) -> Iterator[None]:
    """Create tensors on the ``meta`` device inside the block, by default of this type, with fused attention."""
    before, attention = torch.get_default_dtype(), nn.functional.scaled_dot_product_attention
    torch.set_default_dtype(kind)
    nn.functional.scaled_dot_product_attention = _fused_attention
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(before)
        nn.functional.scaled_dot_product_attention = attention


def _fused_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Compute attention that keeps its inputs and output but not the matrix of all pairs, as fused kernels do."""
    return _Attention.apply(query, key, value)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(part) for part in ctx.saved_tensors[:3])


def _is_mask(indices: Any) -> bool:
    first = indices[0] if isinstance(indices, list) and indices else None
    return isinstance(first, torch.Tensor) and first.dtype == torch.bool
