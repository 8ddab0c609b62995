"""Claims about the nodes for ComfyUI, checked by an interpreter of its node contract (``comfy_graph``)."""

from __future__ import annotations

import ast
import sys
import tomllib
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import flowportrait as fp
from flowportrait.media.audio import read_audio
from flowportrait.media.image import read_image
from flowportrait.media.portrait import find_faces
from flowportrait.provenance.watermark import find_watermark
from flowportrait.rendering.face_regions import FACE_OVAL, outline_mask
from tests import ROOT
from tests.integrations.comfy_graph import Graph, InvalidPrompt, broken_rules, load_nodes

FOLDER = ROOT / "integrations" / "comfyui"
SAMPLES = ROOT / "src" / "flowportrait" / "samples"
RATE, SECONDS = 24000, 0.6
FRAMES = 15
SIZE = 128


class ToneVoice:
    """A voice that hums for a fifth of a second."""

    name = "tone"

    def supports(self, language: str) -> bool:
        return True

    def synthesize(self, sentence: str) -> fp.Sound:
        wave = 0.3 * np.sin(2 * np.pi * 220 * np.arange(RATE // 5) / RATE)
        return fp.Sound(wave[None].astype(np.float32), RATE, "mono")


class LoadPicture:
    """What ComfyUI's own loader returns: an IMAGE."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"pictures": ("INT", {"default": 1, "min": 0, "max": 2})}}

    def load(self, pictures: int) -> tuple[torch.Tensor]:
        image = torch.from_numpy(read_image(SAMPLES / "astronaut.jpg")).float() / 255
        return (image[None].expand(pictures, -1, -1, -1) if pictures else torch.full((1, 200, 200, 3), 0.5),)


class LoadSound:
    """What ComfyUI's own loader returns: an AUDIO, in stereo at a rate of its own."""

    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seconds": ("FLOAT", {"default": SECONDS, "min": 0.0, "max": 9.0})}}

    def load(self, seconds: float) -> tuple[dict[str, Any]]:
        speech = torch.from_numpy(read_audio(SAMPLES / "beckett.flac", RATE)[RATE : RATE + round(seconds * RATE)])
        return ({"waveform": speech.expand(1, 2, -1), "sample_rate": RATE},)


@pytest.fixture(scope="module")
def nodes() -> ModuleType:
    return load_nodes(FOLDER)


@pytest.fixture(scope="module")
def graph(nodes: ModuleType) -> Graph:
    return Graph({**nodes.NODE_CLASS_MAPPINGS, "LoadPicture": LoadPicture, "LoadSound": LoadSound})


def prompt(pictures: int = 1, seconds: float = SECONDS, **settings: Any) -> dict[str, dict[str, Any]]:
    inputs = {"image": ["picture", 0], "audio": ["sound", 0], "seed": 1, "crop": True, "size": SIZE} | settings
    return {
        "picture": {"class_type": "LoadPicture", "inputs": {"pictures": pictures}},
        "sound": {"class_type": "LoadSound", "inputs": {"seconds": seconds}},
        "animate": {"class_type": "FlowPortraitAnimate", "inputs": inputs},
    }


@pytest.fixture(scope="module")
def result(graph: Graph) -> tuple[Any, ...]:
    return graph.run(prompt(), "animate")


def test_the_nodes_keep_the_contract(nodes: ModuleType) -> None:
    assert set(nodes.NODE_CLASS_MAPPINGS) == set(nodes.NODE_DISPLAY_NAME_MAPPINGS)
    assert [rule for name, node in nodes.NODE_CLASS_MAPPINGS.items() for rule in broken_rules(name, node)] == []


def test_the_contract_notices_a_node_that_breaks_it() -> None:
    class Broken(LoadPicture):
        CATEGORY = ""
        RETURN_NAMES = ("image", "mask")

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"other": ("INT", {"default": 1.5, "min": 2, "max": 3})}}

    assert len(broken_rules("Broken", Broken)) == 4


def test_the_defaults_of_the_node_are_those_of_the_package(nodes: ModuleType) -> None:
    optional = nodes.NODE_CLASS_MAPPINGS["FlowPortraitAnimate"].INPUT_TYPES()["optional"]
    defaults = {name: entry[1]["default"] for name, entry in optional.items()}
    request = fp.AnimateRequest()
    assert defaults.pop("expression") == request.expression_scale
    assert (defaults.pop("size") or None) == request.size
    assert defaults == {name: getattr(request, name) for name in defaults}


def test_a_picture_and_a_sound_become_frames_masks_sound_and_rate(result: tuple[Any, ...]) -> None:
    frames, masks, audio, fps = result
    assert fps == 25.0
    assert frames.shape == (FRAMES, SIZE, SIZE, 3)
    assert masks.shape == (FRAMES, SIZE, SIZE)
    assert audio["sample_rate"] == RATE
    assert audio["waveform"].shape == (1, 2, round(FRAMES / fps * RATE))
    assert not torch.equal(frames[0], frames[-1])


def test_the_pipeline_that_stays_in_memory_is_free_of_inference_mode(
    nodes: ModuleType, result: tuple[Any, ...]
) -> None:
    assert nodes.nodes.load_pipeline.cache_info().currsize == 1
    weights = list(nodes.nodes.load_pipeline("rl").generator.parameters())
    assert not any(one.is_inference() for one in [*weights, result[0]])


def test_the_sound_is_the_one_that_came_in(result: tuple[Any, ...]) -> None:
    came_in = LoadSound().load(SECONDS)[0]["waveform"]
    assert torch.equal(result[2]["waveform"], came_in)


def overlap(frame: torch.Tensor, mask: torch.Tensor) -> float:
    """Intersection over union of a mask and the face that the face detector finds in the frame."""
    ((landmarks, _),) = find_faces((frame * 255).round().to(torch.uint8).numpy())
    found = outline_mask((len(mask), mask.shape[1]), landmarks[FACE_OVAL, :2]) > 0.5
    drawn = mask.numpy() > 0.5
    return float((found & drawn).sum() / (found | drawn).sum())


def test_the_mask_is_the_face_that_a_detector_finds(result: tuple[Any, ...]) -> None:
    frames, masks, _, _ = result
    assert min(overlap(frames[index], masks[index]) for index in (0, FRAMES - 1)) > 0.9


def test_the_same_seed_gives_the_same_frames_and_another_one_others(graph: Graph, result: tuple[Any, ...]) -> None:
    again = graph.run(prompt(), "animate")
    assert torch.equal(again[0], result[0])
    assert torch.equal(again[1], result[1])
    assert not torch.equal(graph.run(prompt(seed=2), "animate")[0], result[0])


def test_the_frames_are_those_of_the_pipeline_with_the_watermark(nodes: ModuleType, result: tuple[Any, ...]) -> None:
    sound = LoadSound().load(SECONDS)[0]
    output = nodes.nodes.load_pipeline("rl")(
        read_image(SAMPLES / "astronaut.jpg"), fp.Sound(sound["waveform"][0].numpy(), RATE, "stereo"), seed=1,
        crop=True, size=SIZE,
    )  # fmt: skip
    plain = np.asarray(output.frames)
    given = (result[0] * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(given, np.stack(list(fp.add_watermark(plain))))
    assert not np.array_equal(given, plain)


@pytest.mark.slow
def test_a_detector_finds_the_watermark_in_the_frames(graph: Graph) -> None:
    frames = graph.run(prompt(size=512), "animate")[0]
    assert find_watermark((frames * 255).round().to(torch.uint8).numpy()).found


def test_the_whole_picture_has_its_size_and_the_mask_lies_on_the_face(graph: Graph) -> None:
    frames, masks, _, _ = graph.run(prompt(crop=False), "animate")
    height, width = (side // 2 * 2 for side in read_image(SAMPLES / "astronaut.jpg").shape[:2])
    assert frames.shape == (FRAMES, height, width, 3)
    assert masks.shape == (FRAMES, height, width)
    assert overlap(frames[-1], masks[-1]) > 0.9


def test_pictures_with_transparency_and_in_grey_become_rgb(nodes: ModuleType) -> None:
    clear = torch.zeros(1, 4, 6, 4)
    assert (nodes.nodes.to_picture(clear) == 255).all()
    grey = torch.full((1, 4, 6, 1), 0.5)
    assert nodes.nodes.to_picture(grey).shape == (4, 6, 3)
    assert nodes.nodes.to_picture(torch.full((1, 2, 2, 3), float("nan"))).max() == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pictures": 2}, "The image input holds 2 pictures: connect a single portrait."),
        ({"pictures": 0}, "face"),
        ({"seconds": 0.1}, "The audio lasts 0.10 s"),
        ({"checkpoint": "nothing-here"}, "nothing-here"),
    ],
)
def test_bad_input_gets_one_sentence(graph: Graph, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(fp.BadInput) as error:
        graph.run(prompt(**changes), "animate")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_several_recordings_and_odd_channels_are_refused(nodes: ModuleType) -> None:
    for shape, words in (((2, 1, 9), "holds 2 recordings"), ((1, 3, 9), "connect an AUDIO"), ((1, 9), "no speech")):
        with pytest.raises(fp.BadInput, match=words):
            nodes.nodes.to_sound({"waveform": torch.zeros(shape), "sample_rate": RATE})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"size": 63}, "size 63 is not possible: give an even number from 64 to 2048."),
        ({"intensity": 2.0}, "bigger than max of 1.6"),
        ({"seed": -1}, "smaller than min of 0"),
        ({"audio": ["picture", 0]}, "IMAGE != AUDIO"),
    ],
)
def test_impossible_settings_are_refused_before_anything_runs(
    graph: Graph, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidPrompt, match=sentence):
        graph.run(prompt(**changes), "animate")


def test_a_text_is_spoken_and_animated(graph: Graph) -> None:
    voice = f"{__name__}:ToneVoice"
    spoken = {"speak": {"class_type": "FlowPortraitTextToSpeech", "inputs": {"text": "One. Two.", "voice": voice}}}
    audio = graph.run(spoken, "speak")[0]
    seconds = Fraction(audio["waveform"].shape[2], audio["sample_rate"])
    assert seconds > Fraction(2, 5)
    frames = graph.run(spoken | prompt(audio=["speak", 0]), "animate")[0]
    assert abs(len(frames) / 25 - seconds) <= Fraction(1, 25)


def test_a_text_without_words_and_an_unknown_voice_get_one_sentence(graph: Graph) -> None:
    for text, voice, words in (("-", f"{__name__}:ToneVoice", "nothing to say"), ("Hello.", "nobody", "no voice")):
        speak = {"speak": {"class_type": "FlowPortraitTextToSpeech", "inputs": {"text": text, "voice": voice}}}
        with pytest.raises(fp.BadInput, match=words):
            graph.run(speak, "speak")


class Interrupted(Exception):
    """ComfyUI's exception for a workflow that the user stopped."""


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """ComfyUI's modules with a progress bar that counts, and an interruption after some frames."""
    seen: dict[str, Any] = {"total": 0, "done": 0, "stop_at": None}
    utils, management = ModuleType("comfy.utils"), ModuleType("comfy.model_management")

    class ProgressBar:
        def __init__(self, total: int) -> None:
            seen["total"] = total

        def update(self, value: int) -> None:
            seen["done"] += value

    def throw_exception_if_processing_interrupted() -> None:
        if seen["done"] == seen["stop_at"]:
            raise Interrupted

    utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
    management.throw_exception_if_processing_interrupted = (  # type: ignore[attr-defined]
        throw_exception_if_processing_interrupted
    )
    for module in (ModuleType("comfy"), utils, management):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen


def test_progress_is_reported_frame_by_frame(graph: Graph, comfy: dict[str, Any]) -> None:
    graph.run(prompt(), "animate")
    assert (comfy["total"], comfy["done"]) == (FRAMES, FRAMES)


def test_an_interruption_ends_the_node_and_the_next_run_is_whole(
    graph: Graph, comfy: dict[str, Any], result: tuple[Any, ...]
) -> None:
    comfy["stop_at"] = 3
    with pytest.raises(Interrupted):
        graph.run(prompt(), "animate")
    assert comfy["done"] == 3
    comfy.update(done=0, stop_at=None)
    assert torch.equal(graph.run(prompt(), "animate")[0], result[0])


def test_the_folder_uses_the_public_api_alone() -> None:
    for path in FOLDER.glob("*.py"):
        for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(item, ast.ImportFrom) and not item.level:
                assert not (item.module or "").startswith("flowportrait"), path
            if isinstance(item, ast.Import):
                assert all(name.name == "flowportrait" or "flowportrait" not in name.name for name in item.names)
            if isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name) and item.value.id == "fp":
                assert item.attr in fp.__all__


def test_the_registry_knows_the_folder_by_the_version_of_the_package() -> None:
    ours, package = (tomllib.loads((place / "pyproject.toml").read_text(encoding="utf-8")) for place in (FOLDER, ROOT))
    assert ours["project"]["version"] == package["project"]["version"] == fp.__version__
    assert ours["project"]["dependencies"] == [f"flowportrait[voice]=={fp.__version__}"]
    assert {"PublisherId", "DisplayName"} <= set(ours["tool"]["comfy"])
    assert "Repository" in ours["project"]["urls"]
    assert Path(FOLDER / "README.md").is_file()
