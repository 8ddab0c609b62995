"""A generator by name: a pipeline of diffusers in a folder or on the hub, or a class of one's own.

Wan-AI/Wan2.1-I2V-14B-480P-Diffusers        models/my-pipeline        my_package.generators:Mine
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from flowportrait.errors import BadInput
from flowportrait.policies.interface import Generator

_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
METHODS = ("encode", "velocity", "decode")


def load_policy_generator(name: str, settings: Sequence[str] = (), half: bool = False) -> Generator:
    """The generator of that name. ``settings``: ``key=value`` each, arguments of the pipeline's calls or of the class;
    ``half``: weights in bfloat16.

    Raises:
        BadInput: nothing of that name, or it is not what it must be; says what is missing.
    """
    told = dict(_setting(text) for text in settings)
    return _own(name, told) if _CLASS.fullmatch(name) else _pipeline(name, told, half)


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


def _own(name: str, told: dict[str, Any]) -> Generator:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), attribute)(**told)
    except ImportError as error:
        raise BadInput(f"{name} cannot be imported ({error}): give MODULE:CLASS as Python would find it.") from error
    except AttributeError as error:
        raise BadInput(f"{name} cannot be made ({error}).") from error
    except TypeError as error:
        raise BadInput(f"{name} cannot be made with {told or 'no settings'} ({error}).") from error
    for method in METHODS:
        if not callable(getattr(made, method, None)):
            raise BadInput(f"{name} has no method {method}: it takes {', '.join(METHODS)} (docs/own_generator.md).")
    if not hasattr(made, "shape"):
        raise BadInput(f"{name} has no shape: say the shape of one sample's latents (docs/own_generator.md).")
    return made


def _pipeline(name: str, told: dict[str, Any], half: bool) -> Generator:
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
    return PipelineGenerator(pipeline, told)


@contextmanager
def _quiet() -> Iterator[None]:
    """What is wrong is said once, by us: the libraries' bars and messages are not shown meanwhile."""
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
