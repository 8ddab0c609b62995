"""Pipelines of diffusers' own classes in miniature, with random weights: one per family, texts given as embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

EULER = diffusers.FlowMatchEulerDiscreteScheduler
UNIPC = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
"""As Wan is published."""
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def text(length: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(1, length, width, generator=torch.Generator().manual_seed(seed))


def kl(latent_channels: int) -> Any:
    return diffusers.AutoencoderKL(
        latent_channels=latent_channels, block_out_channels=(4, 4, 4, 4), norm_num_groups=2, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False, use_post_quant_conv=False,
        mid_block_add_attention=False,
    )  # fmt: skip


def wan_vae() -> Any:
    return diffusers.AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                                      latents_mean=[0.1] * 4, latents_std=[1.2] * 4)  # fmt: skip


def sd3() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=4, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16,
        pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer, EULER(shift=3.0), kl(4), None, None, None, None, None, None
    )
    told = {
        "prompt_embeds": text(5, 16), "pooled_prompt_embeds": text(1, 16)[:, 0],
        "negative_prompt_embeds": text(5, 16, 2), "negative_pooled_prompt_embeds": text(1, 16, 2)[:, 0],
        "height": 32, "width": 32, "guidance_scale": 3.0,
    }  # fmt: skip
    return pipeline, told


def flux() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    pipeline = diffusers.FluxPipeline(EULER(**DYNAMIC), kl(4), None, None, None, None, transformer)
    told = {
        "prompt_embeds": text(5, 16), "pooled_prompt_embeds": text(1, 16)[:, 0],
        "negative_prompt_embeds": text(5, 16, 2), "negative_pooled_prompt_embeds": text(1, 16, 2)[:, 0],
        "height": 32, "width": 32, "guidance_scale": 3.5, "true_cfg_scale": 2.0,
    }  # fmt: skip
    return pipeline, told


def flux2() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(2, 2, 2, 2), timestep_guidance_channels=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, latent_channels=4, norm_num_groups=2,
        mid_block_add_attention=False, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    vae.bn.running_mean.fill_(0.1)
    pipeline = diffusers.Flux2KleinPipeline(EULER(**DYNAMIC), vae, None, None, transformer)
    told = {"prompt_embeds": text(5, 16), "negative_prompt_embeds": text(5, 16, 2), "height": 32, "width": 32,
            "guidance_scale": 2.0}  # fmt: skip
    return pipeline, told


def z_image() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[2, 2, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    # Its pad tokens are left as memory was.
    torch.nn.init.normal_(transformer.x_pad_token, std=0.02)
    torch.nn.init.normal_(transformer.cap_pad_token, std=0.02)
    pipeline = diffusers.ZImagePipeline(EULER(shift=3.0), kl(4), None, None, transformer)
    told = {"prompt_embeds": [text(5, 16)[0]], "negative_prompt_embeds": [text(3, 16, 2)[0]], "height": 32, "width": 32,
            "guidance_scale": 2.0}  # fmt: skip
    return pipeline, told


def qwen_image() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                                           temperal_downsample=[False, True, True], latents_mean=[0.1] * 4,
                                           latents_std=[1.2] * 4)  # fmt: skip
    pipeline = diffusers.QwenImagePipeline(EULER(**DYNAMIC), vae, None, None, transformer)
    told = {
        "prompt_embeds": text(5, 16), "prompt_embeds_mask": torch.ones(1, 5, dtype=torch.long),
        "negative_prompt_embeds": text(3, 16, 2), "negative_prompt_embeds_mask": torch.ones(1, 3, dtype=torch.long),
        "height": 32, "width": 32, "true_cfg_scale": 2.0,
    }  # fmt: skip
    return pipeline, told


def wan_transformer(in_channels: int, image_dim: int | None = None) -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=in_channels, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=16, num_layers=1, image_dim=image_dim, added_kv_proj_dim=24 if image_dim else None,
    )  # fmt: skip


WAN = {"prompt_embeds": text(5, 16), "negative_prompt_embeds": text(5, 16, 2), "height": 32, "width": 32,
       "num_frames": 5, "guidance_scale": 2.0}  # fmt: skip


def wan21() -> tuple[Any, dict[str, Any]]:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    sees = CLIPVisionModel(CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=2,
                                            num_attention_heads=1, image_size=32, patch_size=16))  # fmt: skip
    looks = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipeline = diffusers.WanImageToVideoPipeline(
        None, None, wan_vae(), EULER(shift=3.0), looks, sees, wan_transformer(12, image_dim=8)
    )
    return pipeline, dict(WAN)


def wan22() -> tuple[Any, dict[str, Any]]:
    pipeline = diffusers.WanImageToVideoPipeline(
        None, None, wan_vae(), EULER(shift=3.0), None, None, wan_transformer(12), wan_transformer(12), 0.8
    )
    return pipeline, dict(WAN)


def wan22_5b() -> tuple[Any, dict[str, Any]]:
    pipeline = diffusers.WanImageToVideoPipeline(
        None, None, wan_vae(), UNIPC, None, None, wan_transformer(4), expand_timesteps=True
    )
    return pipeline, dict(WAN)


def reading_wan() -> Any:
    """Wan 2.2 5B that reads texts itself, so that it can be saved and loaded whole."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "she": 2, "speaks": 3, "sings": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    reader = UMT5EncoderModel(UMT5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    torch.manual_seed(0)
    return diffusers.WanImageToVideoPipeline(
        tokenizer, reader, wan_vae(), EULER(shift=5.0), None, None, wan_transformer(4), expand_timesteps=True
    )


def hunyuan() -> tuple[Any, dict[str, Any]]:
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_refiner_layers=1,
        mlp_ratio=1.0, text_embed_dim=16, text_embed_2_dim=16, image_embed_dim=8, rope_axes_dim=(2, 2, 4),
        target_size=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16, 16, 16, 16), layers_per_block=1, scaling_factor=1.1
    )
    sees = SiglipVisionModel(SiglipVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                                num_attention_heads=1, image_size=32, patch_size=16))  # fmt: skip
    guider = diffusers.guiders.ClassifierFreeGuidance(guidance_scale=2.0)
    pipeline = diffusers.HunyuanVideo15ImageToVideoPipeline(
        None, None, transformer, vae, EULER(shift=5.0), None, None, guider, sees,
        SiglipImageProcessor(size={"height": 32, "width": 32}),
    )  # fmt: skip
    told = {
        "prompt_embeds": text(5, 16), "prompt_embeds_mask": torch.ones(1, 5), "prompt_embeds_2": text(3, 16),
        "prompt_embeds_mask_2": torch.ones(1, 3), "negative_prompt_embeds": text(5, 16, 2),
        "negative_prompt_embeds_mask": torch.ones(1, 5), "negative_prompt_embeds_2": text(3, 16, 2),
        "negative_prompt_embeds_mask_2": torch.ones(1, 3), "num_frames": 5,
    }  # fmt: skip
    return pipeline, told


def ltx() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=1, caption_channels=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    pipeline = diffusers.LTXImageToVideoPipeline(EULER(**DYNAMIC, shift_terminal=0.1), vae, None, None, transformer)
    told = {
        "prompt_embeds": text(5, 16), "prompt_attention_mask": torch.ones(1, 5),
        "negative_prompt_embeds": text(5, 16, 2), "negative_prompt_attention_mask": torch.ones(1, 5),
        "height": 64, "width": 64, "num_frames": 9, "guidance_scale": 2.0,
    }  # fmt: skip
    return pipeline, told


def ltx2() -> tuple[Any, dict[str, Any]]:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=8, audio_out_channels=8, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, num_layers=1, caption_channels=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1), spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )  # fmt: skip
    sound = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=2, mel_bins=16, resolution=16
    )
    sound.latents_mean, sound.latents_std = torch.zeros(8), torch.ones(8)
    connectors = LTX2TextConnectors(
        caption_channels=16, text_proj_in_factor=1, video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8, video_connector_num_layers=1,
        video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
    )  # fmt: skip
    vocoder = LTX2Vocoder(in_channels=32, hidden_channels=8, out_channels=2, upsample_kernel_sizes=[4],
                          upsample_factors=[2], resnet_kernel_sizes=[3], resnet_dilations=[[1]])  # fmt: skip
    pipeline = diffusers.LTX2ImageToVideoPipeline(
        EULER(**DYNAMIC, shift_terminal=0.1), vae, sound, None, None, connectors, transformer, vocoder
    )
    told = {
        "prompt_embeds": text(8, 16), "prompt_attention_mask": torch.ones(1, 8),
        "negative_prompt_embeds": text(8, 16, 2), "negative_prompt_attention_mask": torch.ones(1, 8),
        "height": 64, "width": 64, "num_frames": 9, "frame_rate": 24.0, "guidance_scale": 2.0, "image_crf": 0,
    }  # fmt: skip
    return pipeline, told


SMALL: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "sd3.5": sd3, "flux.1": flux, "flux.2": flux2, "z-image": z_image, "qwen-image": qwen_image, "wan2.1": wan21,
    "wan2.2": wan22, "wan2.2-5b": wan22_5b, "hunyuan-video-1.5": hunyuan, "ltx-video": ltx, "ltx-2": ltx2,
}  # fmt: skip
VIDEO = frozenset({"wan2.1", "wan2.2", "wan2.2-5b", "hunyuan-video-1.5", "ltx-video", "ltx-2"})


def small(name: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline and what to call it with, always the same."""
    torch.manual_seed(0)
    pipeline, told = SMALL[name]()
    for part in (pipeline.transformer, getattr(pipeline, "transformer_2", None)):
        for parameter in part.parameters() if part is not None else ():
            # Many blocks begin as nothing at all: every weight shall matter.
            parameter.data += 0.05 * torch.randn_like(parameter)
    last = [part for part in pipeline.vae.decoder.modules() if isinstance(part, torch.nn.Conv2d | torch.nn.Conv3d)][-1]
    last.weight.data *= 20  # an untrained decoder is all but grey
    return pipeline, told
