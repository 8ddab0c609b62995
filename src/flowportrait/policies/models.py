"""Published models by their configuration, to count what they need without downloading them.

A configuration is what the model's repository says where it differs from the defaults of its class in diffusers. Inputs
are those of one sample at the size the model is usually run at; texts are as long as the pipeline fills them up to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowportrait.errors import BadInput

Shape = tuple[int, ...]


@dataclass(frozen=True)
class PublishedModel:
    """network and autoencoder: class in diffusers and configuration; depth: configuration keys that count blocks;
    inputs: shapes of one sample; arguments: other arguments of the network; latents ``[C, (T,) h, w]`` as decoded."""

    name: str
    repository: str
    network: str
    config: Mapping[str, Any]
    depth: Mapping[str, int]
    inputs: Mapping[str, Shape]
    arguments: Mapping[str, Any]
    autoencoder: str
    autoencoder_config: Mapping[str, Any]
    latents: Shape
    size: str
    networks: int = 1
    branches: int = 2
    """Calls per velocity: two with true guidance."""
    lists: tuple[str, ...] = field(default=())
    """Inputs that are lists of samples."""


def _picture(tokens: int) -> str:
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
         "timestep": ()}, {}, "AutoencoderKL", KL16, (16, 128, 128), _picture(4096),
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
        inputs | ({"guidance": ()} if guided else {}), {}, "AutoencoderKLFlux2", {}, (128, 64, 64), _picture(4096),
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
        {"img_ids": (4096, 3), "txt_ids": (512, 3)}, "AutoencoderKL", KL16, (16, 128, 128), _picture(4096),
        branches=1,
    ),
    _flux2("flux.2-klein-4b", {"num_layers": 5, "num_single_layers": 20}, 24, 7680, 2),
    _flux2("flux.2-dev", {"num_layers": 8, "num_single_layers": 48}, 48, 15360, 1),
    PublishedModel(
        "z-image", "Tongyi-MAI/Z-Image", "ZImageTransformer2DModel", {}, {"n_layers": 30, "n_refiner_layers": 2},
        {"x": (16, 1, 128, 128), "t": (), "cap_feats": (512, 2560)}, {}, "AutoencoderKL", KL16, (16, 128, 128),
        _picture(4096), lists=("x", "cap_feats"),
    ),
    PublishedModel(
        "qwen-image", "Qwen/Qwen-Image", "QwenImageTransformer2DModel", {}, {"num_layers": 60},
        {"hidden_states": (4096, 64), "encoder_hidden_states": (512, 3584), "timestep": ()},
        {"img_shapes": [[(1, 64, 64)]]}, "AutoencoderKLQwenImage", {}, (16, 1, 128, 128), _picture(4096),
    ),
)  # fmt: skip

MODELS: dict[str, PublishedModel] = {model.name: model for model in _MODELS}


def model_named(name: str) -> PublishedModel:
    """A published model.

    Raises:
        BadInput: none of that name.
    """
    if name not in MODELS:
        raise BadInput(f"No model named {name!r} is counted: choose from {', '.join(MODELS)}.")
    return MODELS[name]
