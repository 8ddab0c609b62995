"""A reward on another machine: the batch goes there, the scores come back, nothing is pickled.

    batch ─► safetensors + JSON header ─► POST /score/NAME ─► scorer ─► scores, or "these frames, please" ─► once more

Frames are drawn only when the far side asks for them; it asks once, and the client remembers. They travel as 8 bit,
which is what a rendering has. Policies and latents do not travel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from flowportrait.errors import BadInput
from flowportrait.media.portrait import Portrait
from flowportrait.reward.batch import Failure, RewardBatch
from flowportrait.reward.interface import Score, per_row

MEDIA_TYPE = "application/x-safetensors"
TRAVELS = frozenset(
    {"motion", "mel", "frames", "places", "fps", "audio", "portrait", "transcript", "reference", "group"}
)
"""Needs that can be met over HTTP."""
_TENSORS = {"audio": "audio", "reference": "reference", "group": "group"}
"""Needs that are one tensor of the batch, and its field."""


@dataclass
class Wanted(Exception):
    """The scorer asked for frames or landmarks that were not sent."""

    frames: tuple[int, ...] = ()
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sent:
    """Which frames and landmarks went along."""

    frames: tuple[int, ...] = ()
    places: tuple[int, ...] = ()

    def with_(self, wanted: Wanted) -> Sent:
        """Also those."""
        return Sent(tuple(sorted({*self.frames, *wanted.frames})), tuple(sorted({*self.places, *wanted.places})))


def pack_batch(batch: RewardBatch, needs: frozenset[str], sent: Sent) -> bytes:
    """What a reward with these needs reads of a batch.

    Raises:
        BadInput: it needs what does not travel.
    """
    if needs - TRAVELS:
        raise BadInput(f"{', '.join(sorted(needs - TRAVELS))} cannot be sent to another machine: score it in process.")
    tensors = {"motion": batch.motion, "mel": batch.mel}
    tensors |= {need: getattr(batch, field) for need, field in _TENSORS.items() if need in needs}
    head: dict[str, Any] = {
        "frames": sent.frames, "places": sent.places, "domain": batch.domain, "draws": "frames" in batch.has,
        "lands": "places" in batch.has, "unseen": {row: list(why) for row, why in batch.unseen.items()},
    }  # fmt: skip
    if sent.frames:
        tensors["frames"] = (batch.frames(sent.frames) * 255).round().clamp(0, 255).byte()
    if sent.places:
        tensors["places"] = batch.places(sent.places)
    if "transcript" in needs:
        head["transcript"] = list(batch.transcript or ())
    if "portrait" in needs and batch.portraits is not None:
        # Siblings share their portrait: each travels once.
        people = list({id(portrait): portrait for portrait in batch.portraits}.values())
        order = {id(portrait): place for place, portrait in enumerate(people)}
        head["portraits"] = [order[id(portrait)] for portrait in batch.portraits]
        for place, portrait in enumerate(people):
            for name in ("crop", "landmarks", "blendshapes", "to_crop"):
                tensors[f"portrait/{place}/{name}"] = torch.from_numpy(np.ascontiguousarray(getattr(portrait, name)))
    flat = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return save(flat, {"batch": json.dumps(head)})


def unpack_batch(data: bytes) -> RewardBatch:
    """The batch at the far side; asking for frames that did not come raises ``Wanted``.

    Raises:
        BadInput: the bytes are no batch.
    """
    try:
        tensors, head = load(data), _head(data)
        people = [_portrait(tensors, place) for place in sorted(set(head.get("portraits", [])))]
        return RewardBatch(
            tensors["motion"], tensors["mel"],
            _arrived(tensors.get("frames"), head["frames"], "frames") if head["draws"] else None,
            _arrived(tensors.get("places"), head["places"], "places") if head["lands"] else None,
            tensors.get("audio"), [people[place] for place in head["portraits"]] if people else None,
            head.get("transcript"), tensors.get("reference"), tensors.get("group"), domain=head["domain"],
            unseen={int(row): Failure(*why) for row, why in head["unseen"].items()},
        )  # fmt: skip
    except Wanted:
        raise
    except Exception as error:
        raise BadInput(
            f"The body is no batch of samples ({type(error).__name__}): send what pack_batch makes."
        ) from error


def pack_score(score: Score) -> bytes:
    """Scores for the way back."""
    tensors = {"value": score.value.float(), "valid": score.valid}
    if score.dense is not None:
        tensors["dense"] = score.dense
    tensors |= {f"region/{name}": value for name, value in (score.regions or {}).items()}
    head = {"failures": {row: list(why) for row, why in score.reasons.items()}, "noise": score.noise}
    # Cloned: a map may be another's view, which safetensors does not take.
    return save({name: value.contiguous().clone() for name, value in tensors.items()}, {"score": json.dumps(head)})


def unpack_score(data: bytes, rows: int) -> Score:
    """Scores that came back.

    Raises:
        ValueError: cut off, or not for this many rows.
    """
    try:
        tensors, head = load(data), _head(data)
        failures = {int(row): Failure(*why) for row, why in head["failures"].items()}
        value, valid = tensors["value"], tensors["valid"].bool()
    except Exception as error:
        raise ValueError(f"no scores in the answer ({type(error).__name__})") from error
    if value.shape != (rows,) or valid.shape != (rows,):
        raise ValueError(f"{tuple(value.shape)} scores for {rows} samples")
    regions = {name.removeprefix("region/"): part for name, part in tensors.items() if name.startswith("region/")}
    return Score(value, valid, tensors.get("dense"), regions or None, per_row(failures, rows), float(head["noise"]))


def _head(data: bytes) -> dict[str, Any]:
    """The JSON in a safetensors header: 8 bytes of length, then the header with ``__metadata__``."""
    size = int.from_bytes(data[:8], "little")
    metadata: Mapping[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
    return json.loads(next(iter(metadata.values())))


def _arrived(tensor: torch.Tensor | None, indices: list[int], what: str) -> Any:
    """A ``Draw`` or ``Place`` of what was sent."""
    place = {index: at for at, index in enumerate(indices)}

    def look(_: torch.Tensor, wanted: tuple[int, ...]) -> torch.Tensor:
        absent = tuple(index for index in wanted if index not in place)
        if absent or tensor is None:
            raise Wanted(**{what: absent})
        chosen = tensor[:, [place[index] for index in wanted]]
        return chosen.float() / 255 if what == "frames" else chosen

    return look


def _portrait(tensors: Mapping[str, torch.Tensor], place: int) -> Portrait:
    part = {
        name: tensors[f"portrait/{place}/{name}"].numpy() for name in ("crop", "landmarks", "blendshapes", "to_crop")
    }
    return Portrait(part["crop"], part["crop"], part["landmarks"], part["blendshapes"], part["to_crop"])
