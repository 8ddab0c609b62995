"""The nodes: animate a portrait, and text to speech.

    IMAGE [1, H, W, C] float in [0, 1] ─┐
    AUDIO {waveform [1, C, N], rate}   ─┴► AnimatePipeline ─► IMAGE [T, H, W, 3], MASK [T, H, W], AUDIO, FLOAT fps

ComfyUI writes the video file itself, so every frame carries the watermark before it leaves a node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch

import flowportrait as fp

MAX_SEED = 2**32 - 1
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
"""FFmpeg's name of the channels of a sound, by their number."""


class AnimatePortrait:
    """Makes the portrait of a picture speak a recording."""

    CATEGORY = "FlowPortrait"
    DESCRIPTION = "Makes a portrait speak a recording. The frames carry an invisible watermark."
    FUNCTION = "animate"
    RETURN_TYPES = ("IMAGE", "MASK", "AUDIO", "FLOAT")
    RETURN_NAMES = ("frames", "face", "audio", "fps")
    OUTPUT_TOOLTIPS = (
        "The frames of the video.",
        "The area of the face in each frame.",
        "The recording, as long as the frames.",
        "Frames per second.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs and their ranges, as ComfyUI reads them."""
        scale = {"default": 1.0, "min": 0.0, "max": 3.0, "step": 0.05}
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "One portrait: a photo, a painting or a drawing."}),
                "audio": ("AUDIO", {"tooltip": "The speech."}),
                "seed": (
                    "INT",
                    {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True,
                     "tooltip": "Another seed gives different motion for the same speech."},
                ),
                "crop": ("BOOLEAN", {"default": True, "tooltip": "Return the face square, not the whole picture."}),
            },
            "optional": {
                "size": (
                    "INT",
                    {"default": 0, "min": 0, "max": 2048, "step": 2,
                     "tooltip": "Side of the face square in pixels; 0 chooses it."},
                ),
                "intensity": (
                    "FLOAT",
                    {"default": 1.0, "min": 0.6, "max": 1.6, "step": 0.05, "tooltip": "How expressive the motion is."},
                ),
                "blink": ("FLOAT", {**scale, "tooltip": "Depth of blinks."}),
                "head_motion": ("FLOAT", {**scale, "tooltip": "Scale of nods and turns."}),
                "expression": ("FLOAT", {**scale, "tooltip": "Scale of brows and smiles."}),
                "checkpoint": (
                    "STRING",
                    {"default": "rl", "tooltip": "rl, sft, a folder, or org/name on the Hugging Face Hub."},
                ),
            },
        }  # fmt: skip

    @classmethod
    def VALIDATE_INPUTS(cls, size: int | None = None) -> bool | str:
        """Return True, or the sentence that says why the size cannot be drawn; None is known later, by a link."""
        try:
            fp.AnimateRequest(size=size or None).check()
        except fp.BadInput as error:
            return str(error).replace("--size", "size")
        return True

    def animate(
        self,
        image: torch.Tensor,
        audio: dict[str, Any],
        seed: int,
        crop: bool,
        size: int = 0,
        intensity: float = 1.0,
        blink: float = 1.0,
        head_motion: float = 1.0,
        expression: float = 1.0,
        checkpoint: str = "rl",
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any], float]:
        """Return frames ``[T, H, W, 3]``, the share of the face in every pixel ``[T, H, W]``, the sound, and the rate.

        Raises:
            BadInput: an input or a setting cannot be used.
        """
        # ComfyUI runs nodes in inference mode; a pipeline that stays in memory must not hold tensors of that mode.
        with torch.inference_mode(False), torch.no_grad():
            picture, sound = to_picture(image), to_sound(audio)
            output = load_pipeline(checkpoint)(
                picture, sound, seed=seed, crop=crop, size=size or None, intensity=intensity, blink=blink,
                head_motion=head_motion, expression_scale=expression,
            )  # fmt: skip
            count = len(output.frames)
            frames = to_batch(report_progress(fp.add_watermark(output.frames), count), count).div_(255)
            masks = to_batch(output.frames.face_masks or (), count)
            return frames, masks, to_audio(sound, round(count / output.fps * sound.rate)), output.fps


class TextToSpeech:
    """Speaks a text."""

    CATEGORY = "FlowPortrait"
    DESCRIPTION = "Speaks a text. The default voice and espeak need the extra voice: pip install 'flowportrait[voice]'."
    FUNCTION = "speak"
    RETURN_TYPES = ("AUDIO",)
    RETURN_NAMES = ("audio",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs, as ComfyUI reads them."""
        return {
            "required": {
                "text": ("STRING", {"default": "Hello, I am glad to meet you.", "multiline": True}),
                "voice": (
                    "STRING",
                    {"default": "heart", "tooltip": "heart (English), espeak:LANGUAGE (espeak:de), or openai:NAME."},
                ),
            }
        }  # fmt: skip

    def speak(self, text: str, voice: str) -> tuple[dict[str, Any]]:
        """Return the spoken text.

        Raises:
            BadInput: the text has no words, or there is no such voice.
        """
        with torch.inference_mode(False), torch.no_grad():
            # A list, because the text "-" alone stands for standard input.
            sentences = []
            for sentence in fp.synthesize_speech([text], voice):
                check_interrupted()
                sentences.append(sentence)
        samples = np.concatenate([sentence.samples for sentence in sentences], 1)
        return (to_audio(fp.Sound(samples, sentences[0].rate, "mono"), samples.shape[1]),)


NODE_CLASS_MAPPINGS = {"FlowPortraitAnimate": AnimatePortrait, "FlowPortraitTextToSpeech": TextToSpeech}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FlowPortraitAnimate": "FlowPortrait: animate",
    "FlowPortraitTextToSpeech": "FlowPortrait: text to speech",
}


@lru_cache(maxsize=1)
def load_pipeline(checkpoint: str) -> fp.AnimatePipeline:
    """Return the pipeline of a checkpoint; the latest one stays in memory."""
    return fp.AnimatePipeline.from_pretrained(checkpoint.strip() or "rl")


# --- ComfyUI's types ----------------------------------------------------------------------


def to_picture(image: torch.Tensor) -> np.ndarray:
    """Convert an IMAGE ``[1, H, W, C]`` in [0, 1] to ``[H, W, 3]`` uint8; an alpha channel shows white behind it.

    Raises:
        BadInput: it is no single picture of one, three or four channels.
    """
    if image.ndim != 4 or image.shape[3] not in (1, 3, 4):
        raise fp.BadInput(f"An image of shape {tuple(image.shape)} is no picture: connect an IMAGE [1, H, W, 3].")
    if len(image) != 1:
        raise fp.BadInput(f"The image input holds {len(image)} pictures: connect a single portrait.")
    picture = image[0].detach().to("cpu", torch.float32).nan_to_num().clamp(0, 1)
    if picture.shape[2] == 4:
        alpha = picture[..., 3:]
        picture = picture[..., :3] * alpha + (1 - alpha)
    return (picture * 255).round().to(torch.uint8).expand(-1, -1, 3).contiguous().numpy()


def to_sound(audio: dict[str, Any]) -> fp.Sound:
    """Convert an AUDIO with a waveform ``[1, C, N]`` to a sound with the same rate and channels.

    Raises:
        BadInput: it is no single recording of a usual number of channels.
    """
    waveform, rate = audio["waveform"], int(audio["sample_rate"])
    if waveform.ndim != 3 or waveform.shape[1] not in LAYOUTS:
        raise fp.BadInput(
            f"A waveform of shape {tuple(waveform.shape)} is no speech: connect an AUDIO of 1 or 2 channels."
        )
    if len(waveform) != 1:
        raise fp.BadInput(f"The audio input holds {len(waveform)} recordings: connect a single one.")
    samples = waveform[0].detach().to("cpu", torch.float32).nan_to_num(posinf=0.0, neginf=0.0).clamp(-1, 1)
    return fp.Sound(samples.numpy(), rate, LAYOUTS[len(samples)])


def to_audio(sound: fp.Sound, length: int) -> dict[str, Any]:
    """Convert a sound to an AUDIO of ``length`` samples; what is missing at the end is silent."""
    samples = np.asarray(sound.samples[:, :length], np.float32)
    samples = np.pad(samples, ((0, 0), (0, length - samples.shape[1])))
    return {"waveform": torch.from_numpy(np.ascontiguousarray(samples))[None], "sample_rate": sound.rate}


def to_batch(pictures: Iterable[np.ndarray], count: int) -> torch.Tensor:
    """Return pictures of one size as one float32 tensor ``[T, …]``, filled picture by picture to save memory."""
    batch = torch.empty(0)
    for index, picture in enumerate(pictures):
        if index == 0:
            batch = torch.empty(count, *picture.shape)
        batch[index] = torch.from_numpy(picture)
    return batch


# --- Progress and interruption ------------------------------------------------------------


def report_progress(frames: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yield the frames, advance ComfyUI's progress bar, and stop where the user interrupts."""
    make_bar = _comfy_function("comfy.utils", "ProgressBar")
    bar = make_bar(count) if make_bar else None
    for frame in frames:
        check_interrupted()
        yield frame
        if bar is not None:
            bar.update(1)


def check_interrupted() -> None:
    """Raise ComfyUI's own exception if the user stopped the workflow."""
    check = _comfy_function("comfy.model_management", "throw_exception_if_processing_interrupted")
    if check:
        check()


def _comfy_function(module: str, name: str) -> Callable[..., Any] | None:
    """Return a function of ComfyUI; None outside ComfyUI."""
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None
