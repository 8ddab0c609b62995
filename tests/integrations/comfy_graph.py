"""A small interpreter of ComfyUI's node contract: it loads a folder of nodes, checks a prompt graph, and executes it.

It follows what ComfyUI's documentation and its executor ask of a node:

    folder      imported as a module of its own; ``NODE_CLASS_MAPPINGS`` names the classes
    class       INPUT_TYPES() with ``required`` and ``optional``, RETURN_TYPES, FUNCTION, CATEGORY
    input       (type, options) or ([choices], options); a value, or a link [node id, output]
    check       links have the type of the output; numbers are converted and lie in their range; VALIDATE_INPUTS is
                called with the inputs that it names, whose range it then answers for, and returns True or a sentence
    execution   in inference mode, in the order of the links; the result is a tuple as long as RETURN_TYPES
    values      IMAGE [B, H, W, C] float32 in [0, 1], MASK [B, H, W] float32 in [0, 1],
                AUDIO {"waveform": [B, C, T] float32, "sample_rate": int}, FLOAT, INT, STRING, BOOLEAN
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

CONVERT = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


class InvalidPrompt(Exception):
    """The graph is refused before it runs."""


def load_nodes(folder: Path) -> ModuleType:
    """Import a folder of nodes as ComfyUI does: by its path, not by a name on the module search path."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def broken_rules(name: str, node: Any) -> list[str]:
    """The rules of the contract that a node class breaks."""
    broken = []
    inputs = node.INPUT_TYPES()
    if not set(inputs) <= {"required", "optional", "hidden"} or "required" not in inputs:
        broken.append(f"{name}: groups of inputs {sorted(inputs)}")
    declared = {key: entry for group in inputs.values() for key, entry in group.items()}
    for key, entry in declared.items():
        kind, options = entry[0], entry[1] if len(entry) > 1 else {}
        if not isinstance(entry, tuple) or not isinstance(kind, (str, list)) or not isinstance(options, dict):
            broken.append(f"{name}.{key}: {entry}")
            continue
        default = options.get("default")
        if kind in CONVERT:
            if type(default) is not CONVERT[kind]:
                broken.append(f"{name}.{key}: default {default!r} of {kind}")
            elif kind in ("INT", "FLOAT") and not options["min"] <= default <= options["max"]:
                broken.append(f"{name}.{key}: default {default!r} out of range")
    function = inspect.signature(getattr(node, node.FUNCTION)).parameters
    if set(function) != {"self", *declared}:
        broken.append(f"{name}: {node.FUNCTION} takes {sorted(function)}")
    broken += [f"{name}.{key} has no default" for key in inputs.get("optional", {})
               if function[key].default != declared[key][1].get("default")]  # fmt: skip
    names = getattr(node, "RETURN_NAMES", node.RETURN_TYPES)
    if not isinstance(node.RETURN_TYPES, tuple) or len(names) != len(node.RETURN_TYPES):
        broken.append(f"{name}: {node.RETURN_TYPES} returned as {names}")
    if not isinstance(node.CATEGORY, str) or not node.CATEGORY:
        broken.append(f"{name}: category")
    return broken


class Graph:
    """Executes prompts with a set of node classes, and keeps the instances between them."""

    def __init__(self, classes: dict[str, Any]) -> None:
        self.classes = classes

    def run(self, prompt: dict[str, dict[str, Any]], output: str) -> tuple[Any, ...]:
        """Check the prompt and return what the node ``output`` returns.

        Raises:
            InvalidPrompt: the graph breaks the declarations of a node.
        """
        for node_id in prompt:
            self._check(prompt, node_id)
        with torch.inference_mode():
            return self._execute(prompt, output, {})

    def _check(self, prompt: dict[str, dict[str, Any]], node_id: str) -> None:
        node, inputs = self.classes[prompt[node_id]["class_type"]], prompt[node_id]["inputs"]
        declared = node.INPUT_TYPES()
        if missing := set(declared["required"]) - set(inputs):
            raise InvalidPrompt(f"Required input is missing: {sorted(missing)}")
        own_check = getattr(node, "VALIDATE_INPUTS", None)
        checked = set(inspect.signature(own_check).parameters) if own_check else set()
        constants: dict[str, Any] = {}
        for name, entry in {**declared["required"], **declared.get("optional", {})}.items():
            if name not in inputs:
                continue
            kind, options, value = entry[0], entry[1] if len(entry) > 1 else {}, inputs[name]
            if isinstance(value, list):
                source = self.classes[prompt[value[0]]["class_type"]]
                if source.RETURN_TYPES[value[1]] != kind:
                    raise InvalidPrompt(f"Return type mismatch: {name}, {source.RETURN_TYPES[value[1]]} != {kind}")
                continue
            if kind in CONVERT:
                try:
                    inputs[name] = value = CONVERT[kind](value)
                except (TypeError, ValueError) as error:
                    raise InvalidPrompt(f"Failed to convert {name} to {kind}") from error
            constants[name] = value
            if name in checked:
                continue
            if isinstance(kind, list) and value not in kind:
                raise InvalidPrompt(f"Value not in list: {name}")
            if "min" in options and value < options["min"]:
                raise InvalidPrompt(f"{name}: value {value} smaller than min of {options['min']}")
            if "max" in options and value > options["max"]:
                raise InvalidPrompt(f"{name}: value {value} bigger than max of {options['max']}")
        if own_check:
            answer = own_check(**{name: value for name, value in constants.items() if name in checked})
            if answer is not True:
                raise InvalidPrompt(str(answer))

    def _execute(self, prompt: dict[str, dict[str, Any]], node_id: str, done: dict[str, Any]) -> tuple[Any, ...]:
        if node_id not in done:
            node, values = self.classes[prompt[node_id]["class_type"]], dict(prompt[node_id]["inputs"])
            for name, value in values.items():
                if isinstance(value, list):
                    values[name] = self._execute(prompt, value[0], done)[value[1]]
            result = getattr(node(), node.FUNCTION)(**values)
            assert isinstance(result, tuple)
            assert len(result) == len(node.RETURN_TYPES)
            for kind, value in zip(node.RETURN_TYPES, result, strict=True):
                check_value(kind, value)
            done[node_id] = result
        return done[node_id]


def check_value(kind: str, value: Any) -> None:
    """Assert that a value has the form that ComfyUI's type prescribes."""
    if kind == "AUDIO":
        assert set(value) == {"waveform", "sample_rate"}
        assert value["waveform"].ndim == 3
        assert value["waveform"].dtype == torch.float32
        assert value["waveform"].isfinite().all()
        assert type(value["sample_rate"]) is int
    elif kind in ("IMAGE", "MASK"):
        assert value.ndim == (4 if kind == "IMAGE" else 3)
        assert value.dtype == torch.float32
        assert value.min() >= 0
        assert value.max() <= 1
    else:
        assert type(value) is CONVERT[kind]
