"""Generators of other people and their prompts, by name.

Wan-AI/Wan2.1-I2V-14B-480P-Diffusers     models/my-pipeline     my_package.generators:Mine     an entry point's name

Prompts are a ``prompts.jsonl``, a line each, or a folder of portraits and speech:

    {"text": "a woman speaks to the camera", "image": "a.png", "audio": "b.wav", "id": "optional"}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flowportrait.errors import BadInput
from flowportrait.plugins import is_reference, load_plugin, plugin_names
from flowportrait.policies.interface import Generator, Item
from flowportrait.prompts import read_prompts

METHODS = ("encode", "velocity", "decode")
PROMPT_KEYS = frozenset({"id", "text", "image", "audio"})
SPEECH_TEXT = "A person speaks to the camera."
"""What is said of a folder's pairs, which come without a text."""


def load_policy_generator(name: str, settings: Sequence[str] | Mapping[str, Any] = (), half: bool = False) -> Generator:
    """The generator of a name.

    Args:
        name: a pipeline's folder or hub name, ``MODULE:NAME``, or an entry point of the group ``policies``.
        settings: arguments of the pipeline's calls or of the class, by name or as ``key=value`` each.
        half: load a pipeline's weights in bfloat16.

    Raises:
        BadInput: nothing of that name, or it is not what it must be; says what is missing.
    """
    arguments = dict(settings if isinstance(settings, Mapping) else map(_setting, settings))
    if is_reference(name) or name in plugin_names("policies"):
        return as_generator(load_plugin("policies", name), arguments, name)
    return _pipeline(name, arguments, half)


def as_generator(policy: Any, arguments: Mapping[str, Any] | None = None, name: str = "") -> Generator:
    """A generator from an object: itself, a class or function that makes one, or a pipeline of diffusers.

    Args:
        policy: the object.
        arguments: of the class, or of the pipeline's calls.
        name: what the object is called in messages.

    Raises:
        BadInput: it is not what it must be; says what is missing.
    """
    name = name or (policy.__name__ if isinstance(policy, type) else type(policy).__name__)
    arguments = dict(arguments or {})
    if isinstance(policy, type) or (callable(policy) and not _is_pipeline(policy) and not hasattr(policy, "velocity")):
        try:
            policy = policy(**arguments)
        except (TypeError, AttributeError) as error:
            raise BadInput(f"{name} cannot be made with {arguments or 'no settings'} ({error}).") from error
    if _is_pipeline(policy):
        from flowportrait.policies.pipeline import PipelineGenerator

        return PipelineGenerator(policy, arguments)
    for method in METHODS:
        if not callable(getattr(policy, method, None)):
            raise BadInput(f"{name} has no method {method}: it takes {', '.join(METHODS)} (docs/own_generator.md).")
    if not hasattr(policy, "shape"):
        raise BadInput(f"{name} has no shape: say the shape of one sample's latents (docs/own_generator.md).")
    return policy


def _is_pipeline(policy: Any) -> bool:
    """Whether it is a pipeline of diffusers, without importing diffusers."""
    return all(hasattr(policy, name) for name in ("transformer", "vae", "scheduler", "components"))


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise BadInput(f"{text!r} is no setting: write key=value.")
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            pass
    return key, {"true": True, "false": False}.get(value, value)


def _pipeline(name: str, arguments: dict[str, Any], half: bool) -> Generator:
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise BadInput("Pipelines need diffusers: run pip install 'flowportrait[vae]'.") from error
    from flowportrait.policies.pipeline import PipelineGenerator

    try:
        with _quiet():
            pipeline = DiffusionPipeline.from_pretrained(name, torch_dtype=torch.bfloat16 if half else torch.float32)
    except (OSError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"No pipeline could be loaded from {name} ({reason}): check the name and its files.") from error
    return PipelineGenerator(pipeline, arguments)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars and messages of the libraries; what is wrong is reported once, by us."""
    from diffusers.utils import logging as diffusers_notes
    from transformers.utils import logging as transformers_notes

    before = diffusers_notes.get_verbosity()
    diffusers_notes.set_verbosity(diffusers_notes.FATAL)
    diffusers_notes.disable_progress_bar()
    transformers_notes.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_notes.set_verbosity(before)
        diffusers_notes.enable_progress_bar()
        transformers_notes.enable_progress_bar()


def read_items(path: Path) -> list[Item]:
    """Items of a ``.jsonl`` file, of a folder with a ``prompts.jsonl``, or every portrait with every recording.

    Raises:
        BadInput: nothing there, or a line that cannot be used, with its number.
    """
    listing = path / "prompts.jsonl" if path.is_dir() else path
    if not listing.is_file():
        return [Item(prompt.id, SPEECH_TEXT, prompt.image, prompt.audio) for prompt in read_prompts(path)]
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{listing} cannot be read as text ({error}): write one JSON object per line.") from error
    items = [
        _item(line, f"{listing} line {number}", number, listing.parent)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not items:
        raise BadInput(f"{listing} lists no prompts: write one JSON object per line.")
    ids = [item.id for item in items]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise BadInput(f"{listing} has two prompts with the id {twice!r}: give each its own.")
    return items


def _item(line: str, where: str, number: int, folder: Path) -> Item:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where} is not JSON ({error.msg}): write one object per line.") from error
    if not isinstance(record, dict) or not record or not set(record) <= PROMPT_KEYS:
        raise BadInput(f"{where} may have the keys text, image, audio and id, and no others.")
    if not all(isinstance(value, str) and value for value in record.values()):
        raise BadInput(f"{where} has a value that is not a text: write text, paths and id in quotes.")
    paths = {key: folder / record[key] for key in ("image", "audio") if key in record}
    for path in paths.values():
        if not path.is_file():
            raise BadInput(f"{where} names {path}, which does not exist.")
    return Item(record.get("id", f"{number:05d}"), record.get("text", ""), paths.get("image"), paths.get("audio"))
