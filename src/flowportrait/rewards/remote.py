"""A reward on another machine: the batch goes there, the scores come back, nothing is pickled.

A reward on another machine: the batch goes there, the scores come back, nothing is pickled.

    batch ─► safetensors + JSON header ─► POST /score/NAME ─► scorer ─► scores, or "these frames, please" ─► once more

Frames are drawn only when the far side asks for them; it asks once, and the client remembers. They travel as 8 bit,
which is what a rendering has. Policies and latents do not travel.

What arrives is checked before a scorer sees it: every tensor's kind and shape against the number of samples and frames,
and both against ``MOST_SAMPLES`` and ``MOST_FRAMES``. A tensor without elements can claim any shape.

Rewards that live behind an address: the client's side of ``/score``.

HttpReward.at("http://127.0.0.1:8300", "identity")        is as good as Identity.load()
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, get_args

import httpx2
import numpy as np
import torch
from safetensors.torch import load, save

from flowportrait.errors import BadInput
from flowportrait.media.faces import N_BLENDSHAPES, N_LANDMARKS
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import SAMPLES_PER_FRAME
from flowportrait.rewards.batch import Failure, FailureKind, RewardBatch
from flowportrait.rewards.interface import Score, Unavailable, per_row
from flowportrait.web_client import check_address, key_for, make_client

MEDIA_TYPE = "application/x-safetensors"
LARGEST_BATCH = 256 * 2**20
"""Bytes of a batch."""
LARGEST_HEADER = 4 * 2**20
"""Bytes of its header: names, shapes and the JSON beside them."""
MOST_SAMPLES, MOST_FRAMES = 4096, 100_000
MOTION_SIZE, MEL_BANDS = 30, 80
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
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
        BadInput: the bytes are no batch, or more than the limits of this module allow.
    """
    if len(data) > LARGEST_BATCH:
        raise BadInput(f"The batch is larger than {LARGEST_BATCH // 2**20} MiB: send fewer samples.")
    try:
        head = _head(data)
        parts = _Parts(load(data), head)
        return parts.batch()
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(
            f"The body is no batch of samples ({type(error).__name__}): send what pack_batch makes."
        ) from error


class _Parts:
    """The tensors of a batch that arrived, each taken out by its expected kind and shape."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], head: Mapping[str, Any]) -> None:
        self.tensors, self.head = tensors, head
        motion = tensors["motion"]
        if motion.dim() != 3 or not 1 <= len(motion) <= MOST_SAMPLES or not 1 <= motion.shape[1] <= MOST_FRAMES:
            _wrong(f"motion has the shape {tuple(motion.shape)}")
        self.rows, self.frames = motion.shape[:2]

    def batch(self) -> RewardBatch:
        """All of it."""
        head, rows, frames = self.head, self.rows, self.frames
        portraits, transcript = head.get("portraits"), head.get("transcript")
        if portraits is not None:
            people = [self.portrait(place) for place in range(1 + max(self.indices(portraits, "portraits", rows)))]
            portraits = [people[place] for place in portraits]
        if transcript is not None and not all(isinstance(text, str) for text in transcript):
            _wrong("the transcript is no list of texts")
        if any(given is not None and len(given) != rows for given in (portraits, transcript)):
            _wrong(f"portraits or transcripts are not {rows}")
        if head["domain"] not in ("drawn", "filmed"):
            _wrong("the domain is neither drawn nor filmed")
        return RewardBatch(
            self.tensor("motion", (rows, frames, MOTION_SIZE)),
            self.tensor("mel", (rows, MELS_PER_FRAME * frames, MEL_BANDS)),
            self.drawing("frames", (3, None, None), (torch.uint8,)) if head["draws"] else None,
            self.drawing("places", (N_LANDMARKS, 2), _FLOATS) if head["lands"] else None,
            self.optional("audio", (rows, SAMPLES_PER_FRAME * frames)), portraits, transcript,
            self.optional("reference", (rows, frames, MOTION_SIZE)), self.optional("group", (rows,), _INTEGERS),
            domain=head["domain"], unseen=_failures(head["unseen"], rows),
        )  # fmt: skip

    def tensor(
        self, name: str, shape: Sequence[int | None], kinds: Sequence[torch.dtype] = _FLOATS
    ) -> torch.Tensor:  # fmt: skip
        """The tensor of that name; a None in ``shape`` stands for any length from 1 on."""
        found = self.tensors[name]
        fits = found.dim() == len(shape) and all(
            length == wanted if wanted is not None else length > 0
            for length, wanted in zip(found.shape, shape, strict=True)
        )
        if not fits or found.dtype not in kinds:
            _wrong(f"{name} is {found.dtype} {tuple(found.shape)}, not {tuple(shape)}")
        return found

    def optional(
        self, name: str, shape: Sequence[int | None], kinds: Sequence[torch.dtype] = _FLOATS
    ) -> torch.Tensor | None:
        """The same, None where it was not sent."""
        return self.tensor(name, shape, kinds) if name in self.tensors else None

    def indices(self, given: Any, what: str, most: int) -> list[int]:
        """Whole numbers from 0 to under ``most``, at most ``most`` of them."""
        if not isinstance(given, list) or len(given) > most or not all(type(i) is int and 0 <= i < most for i in given):
            _wrong(f"{what} are no numbers from 0 to {most - 1}")
        return given

    def drawing(self, what: str, shape: Sequence[int | None], kinds: Sequence[torch.dtype]) -> Any:
        """A ``Draw`` or ``Place`` of what was sent."""
        sent = self.indices(self.head[what], what, self.frames)
        place = {index: at for at, index in enumerate(sent)}
        tensor = self.tensor(what, (self.rows, len(sent), *shape), kinds) if sent else None

        def look(_: torch.Tensor, wanted: tuple[int, ...]) -> torch.Tensor:
            absent = tuple(index for index in wanted if index not in place)
            if absent or tensor is None:
                raise Wanted(**{what: absent})
            chosen = tensor[:, [place[index] for index in wanted]]
            return chosen.float() / 255 if what == "frames" else chosen

        return look

    def portrait(self, place: int) -> Portrait:
        """Number ``place`` of the people; the whole photo does not travel, the crop stands for it."""
        prefix = f"portrait/{place}/"
        crop = self.tensor(f"{prefix}crop", (None, None, 3), (torch.uint8,)).numpy()
        landmarks = self.tensor(f"{prefix}landmarks", (N_LANDMARKS, 3))
        blendshapes, to_crop = (
            self.tensor(f"{prefix}blendshapes", (N_BLENDSHAPES,)), self.tensor(f"{prefix}to_crop", (2, 3)),
        )  # fmt: skip
        return Portrait(crop, crop, landmarks.numpy(), blendshapes.numpy(), to_crop.numpy())


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
        head, tensors = _head(data), load(data)
        failures, noise = _failures(head["failures"], rows), float(head["noise"])
        value, valid = tensors["value"].float(), tensors["valid"].bool()
        dense = tensors.get("dense")
    except Exception as error:
        raise ValueError(f"no scores in the answer ({type(error).__name__})") from error
    if value.shape != (rows,) or valid.shape != (rows,):
        raise ValueError(f"{tuple(value.shape)} scores for {rows} samples")
    if not 0 <= noise <= 1e6:
        raise ValueError(f"a noise of {noise}")
    regions = {name.removeprefix("region/"): part for name, part in tensors.items() if name.startswith("region/")}
    for part in (*regions.values(), *(() if dense is None else (dense,))):
        if part.dtype not in _FLOATS or part.dim() not in (1, 2) or len(part) != rows or not part.numel():
            raise ValueError(f"a map of the shape {tuple(part.shape)} for {rows} samples")
    return Score(value, valid, dense, regions or None, per_row(failures, rows), noise)


def _head(data: bytes) -> dict[str, Any]:
    """The JSON in a safetensors header: 8 bytes of length, then the header with ``__metadata__``."""
    size = int.from_bytes(data[:8], "little")
    if size > LARGEST_HEADER:
        raise BadInput(f"The header of the batch is larger than {LARGEST_HEADER // 2**20} MiB: send fewer samples.")
    metadata: Mapping[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
    head = json.loads(next(iter(metadata.values())))
    if not isinstance(head, dict):
        _wrong("its description is no object")
    return head


def _failures(given: Mapping[str, Any], rows: int) -> dict[int, Failure]:
    """Why rows have no score: row → kind and sentence."""
    found = {int(row): Failure(*why) for row, why in given.items()}
    for row, why in found.items():
        if not 0 <= row < rows or why.kind not in get_args(FailureKind) or not isinstance(why.detail, str):
            _wrong("a failure is of no sample or of an unknown kind")
    return found


def _wrong(what: str) -> NoReturn:
    raise BadInput(f"The body is no batch of samples ({what}): send what pack_batch makes.")


KEY_ENV = "FLOWPORTRAIT_SERVE_KEY"
"""Environment variable with the key of a server that asks for one; which host it is for stands in
FLOWPORTRAIT_SERVE_HOST where that is not this computer."""
_MOST_ROUNDS = 4
"""How often a scorer may ask for more frames."""


@dataclass(frozen=True)
class HttpReward:
    """A scorer on another machine. What it is called, needs and promises is what the server says it does."""

    url: str
    scorer: str
    name: str
    needs: frozenset[str]
    scope: Literal["sample", "group"] = "sample"
    range: tuple[float, float] = (float("-inf"), float("inf"))
    noise: float = 0.0
    retries: int = 4
    timeout: float = 120.0
    _wanted: dict[int, Sent] = field(default_factory=dict, repr=False, compare=False)
    _client: httpx2.Client = field(default_factory=make_client, repr=False, compare=False)

    @classmethod
    def at(cls, url: str, scorer: str, retries: int = 4, timeout: float = 120.0) -> HttpReward:
        """The scorer of that name at a server.

        Raises:
            BadInput: the address is not safe, nobody answers there, or has such a scorer.
        """
        url = url.rstrip("/")
        check_address(url, f"The address of the reward {scorer!r}")
        client = make_client(timeout)
        try:
            answer = client.get(f"{url}/scorers", headers=_headers(url))
            answer.raise_for_status()
            offered = dict(answer.json())
            offer = _Offer.read(offered[scorer]) if scorer in offered else None
        except (httpx2.HTTPError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise BadInput(
                f"No scorers are served at {url} ({error}): start flowportrait judge serve there."
            ) from error
        if offer is None:
            raise BadInput(f"{url} serves no {scorer!r}: choose from {', '.join(sorted(offered))[:300]}.")
        return cls(url, scorer, offer.name, offer.needs, offer.scope, offer.range, offer.noise, retries, timeout,
                   _client=client)  # fmt: skip

    def __call__(self, batch: RewardBatch) -> Score:
        """Scores from the far side.

        Raises:
            Unavailable: no usable answer; ``rewards.interface`` asks again.
            BadInput: the far side says that the batch cannot be scored.
        """
        length = batch.motion.shape[1]
        sent = self._wanted.get(length, Sent())
        needs = self.needs | ({"group"} if self.scope == "group" else frozenset())
        for _ in range(_MOST_ROUNDS):
            found = self._post(pack_batch(batch, needs, sent), len(batch))
            if isinstance(found, Score):
                self._wanted[length] = sent
                return found
            if any(index >= length for index in (*found.frames, *found.places)):
                raise Unavailable(f"{self.url} asked for frames that a clip of {length} frames does not have")
            sent = sent.with_(found)
        raise Unavailable(f"{self.url} asked for frames {_MOST_ROUNDS} times")

    def _post(self, body: bytes, rows: int) -> Score | Wanted:
        headers = {"Content-Type": MEDIA_TYPE, **_headers(self.url)}
        try:
            answer = self._client.post(f"{self.url}/score/{self.scorer}", content=body, headers=headers,
                                       timeout=self.timeout)  # fmt: skip
        except httpx2.HTTPError as error:
            raise Unavailable(f"{self.url} does not answer ({type(error).__name__})") from error
        if answer.status_code == 409:
            return _wanted(answer)
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            raise Unavailable(f"{self.url} failed ({answer.status_code})")
        if 300 <= answer.status_code < 400:
            place = answer.headers.get("location", "another address")[:120]
            raise BadInput(f"{self.url} sends requests on to {place}, which is not followed: give that address.")
        if answer.status_code != 200:
            raise BadInput(f"{self.url} would not score ({answer.status_code}): {_said(answer)}")
        try:
            return unpack_score(answer.content, rows)
        except ValueError as error:
            raise Unavailable(f"{self.url}: {error}") from error


@dataclass(frozen=True)
class _Offer:
    """What a server says of one of its scorers."""

    name: str
    needs: frozenset[str]
    scope: Literal["sample", "group"]
    range: tuple[float, float]
    noise: float

    @classmethod
    def read(cls, said: Any) -> _Offer:
        """From JSON; raises ValueError, TypeError or LookupError."""
        low, high = said["range"]
        limits = (float("-inf" if low is None else low), float("inf" if high is None else high))
        needs, scope = frozenset(said["needs"]), said["scope"]
        if scope not in ("sample", "group") or not needs <= TRAVELS or not isinstance(said["name"], str):
            raise ValueError("it describes its scorer in another way")
        return cls(said["name"], needs, scope, limits, float(said["noise"]))


def _headers(url: str) -> dict[str, str]:
    key = key_for(url, KEY_ENV)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _wanted(answer: httpx2.Response) -> Wanted:
    """The frames and landmarks that a scorer asks for."""
    try:
        asked = answer.json()["wanted"]
        frames, places = asked.get("frames", ()), asked.get("places", ())
        if not all(type(index) is int and index >= 0 for index in (*frames, *places)):
            raise ValueError("frames are whole numbers from 0")
        return Wanted(tuple(frames), tuple(places))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise Unavailable(f"unreadable answer ({error})") from error


def _said(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])[:500]
    except (ValueError, LookupError, TypeError, RecursionError):
        return answer.text[:200]
