"""This module scores batches with a reward on another machine, over HTTP.

    batch ─► safetensors + JSON header ─► POST /score/NAME ─► scorer ─► scores, or a request for frames ─► once more

    HttpReward.at("http://127.0.0.1:8300", "identity")        gives the scores of Identity.load() there

Frames are rendered only if the server requests them. It requests them once, and the client remembers which ones. They
are sent with 8 bits per channel, as a rendering has. Policies and latents are not sent, and nothing is pickled.

The server checks a batch before a reward gets it: the type and shape of every tensor against the number of samples and
frames, and both against ``MAX_BATCH_SAMPLES`` and ``MAX_BATCH_FRAMES``, since a tensor without elements can claim
any shape.

The parts, in order: limits, packing and unpacking of batches and of scores, and the client (``HttpReward``).
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
from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.faces import N_BLENDSHAPES, N_LANDMARKS
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.media.portrait import Portrait
from flowportrait.rewards.batch import Failure, FailureKind, RewardBatch
from flowportrait.rewards.interface import RewardUnavailable, Score, failures_per_row
from flowportrait.web_client import api_key_for, check_server_address, make_http_client

MEDIA_TYPE = "application/x-safetensors"
MAX_BATCH_BYTES = 256 * 2**20
"""Largest size of a batch in bytes."""
MAX_HEADER_BYTES = 4 * 2**20
"""Largest size of its header in bytes: names and shapes of tensors, and the JSON description."""
MAX_BATCH_SAMPLES, MAX_BATCH_FRAMES = 4096, 100_000
"""Largest number of samples in a batch, and of frames in a sample."""
MOTION_SIZE, MEL_BANDS = 30, 80
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
SENDABLE_NEEDS = frozenset(
    {"motion", "mel", "frames", "places", "fps", "audio", "portrait", "transcript", "reference", "group"}
)
"""Needs that can be met over HTTP."""
_TENSORS = {"audio": "audio", "reference": "reference", "group": "group"}
"""Needs that are one tensor of the batch, and its field."""


@dataclass
class FramesRequested(Exception):
    """Raised if a reward needs frames or landmarks that were not sent, with their indices."""

    frames: tuple[int, ...] = ()
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class SentFrames:
    """The indices of the frames and landmarks that are sent."""

    frames: tuple[int, ...] = ()
    places: tuple[int, ...] = ()

    def including(self, wanted: FramesRequested) -> SentFrames:
        """Return these indices together with the requested ones."""
        return SentFrames(tuple(sorted({*self.frames, *wanted.frames})), tuple(sorted({*self.places, *wanted.places})))


def pack_batch(batch: RewardBatch, needs: frozenset[str], sent: SentFrames) -> bytes:
    """Return what a reward with these needs reads of a batch, as bytes.

    Raises:
        BadInput: it needs something that cannot be sent.
    """
    if needs - SENDABLE_NEEDS:
        raise BadInput(
            f"{', '.join(sorted(needs - SENDABLE_NEEDS))} cannot be sent to another machine: score it in process."
        )
    tensors = {"motion": batch.motion, "mel": batch.mel}
    tensors |= {need: getattr(batch, field) for need, field in _TENSORS.items() if need in needs}
    head: dict[str, Any] = {
        "frames": sent.frames, "places": sent.places, "domain": batch.domain, "draws": "frames" in batch.has,
        "lands": "places" in batch.has, "unseen": {row: list(why) for row, why in batch.tracking_failures.items()},
    }  # fmt: skip
    if sent.frames:
        tensors["frames"] = (batch.frames(sent.frames) * 255).round().clamp(0, 255).byte()
    if sent.places:
        tensors["places"] = batch.places(sent.places)
    if "transcript" in needs:
        head["transcript"] = list(batch.transcript or ())
    if "portrait" in needs and batch.portraits is not None:
        # Samples share portraits: each is sent once.
        people = list({id(portrait): portrait for portrait in batch.portraits}.values())
        order = {id(portrait): number for number, portrait in enumerate(people)}
        head["portraits"] = [order[id(portrait)] for portrait in batch.portraits]
        for number, portrait in enumerate(people):
            for name in ("crop", "landmarks", "blendshapes", "to_crop"):
                tensors[f"portrait/{number}/{name}"] = torch.from_numpy(np.ascontiguousarray(getattr(portrait, name)))
    flat = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return save(flat, {"batch": json.dumps(head)})


def unpack_batch(data: bytes) -> RewardBatch:
    """Return the batch on the server. Reading frames that were not sent raises ``FramesRequested``.

    Raises:
        BadInput: the bytes are not a batch, or exceed the limits of this module.
    """
    if len(data) > MAX_BATCH_BYTES:
        raise BadInput(f"The batch is larger than {MAX_BATCH_BYTES // 2**20} MiB: send fewer samples.")
    try:
        head = _read_head(data)
        reader = _BatchReader(load(data), head)
        return reader.batch()
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(
            f"The body is no batch of samples ({type(error).__name__}): send what pack_batch makes."
        ) from error


class _BatchReader:
    """A reader of the tensors of a received batch, which checks the type and shape of each."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], head: Mapping[str, Any]) -> None:
        self.tensors, self.head = tensors, head
        motion = tensors["motion"]
        if (
            motion.dim() != 3
            or not 1 <= len(motion) <= MAX_BATCH_SAMPLES
            or not 1 <= motion.shape[1] <= MAX_BATCH_FRAMES
        ):
            _refuse(f"motion has the shape {tuple(motion.shape)}")
        self.rows, self.frames = motion.shape[:2]

    def batch(self) -> RewardBatch:
        """Return the batch."""
        head, rows, frames = self.head, self.rows, self.frames
        portraits, transcript = head.get("portraits"), head.get("transcript")
        if portraits is not None:
            people = [self.portrait(number) for number in range(1 + max(self.indices(portraits, "portraits", rows)))]
            portraits = [people[number] for number in portraits]
        if transcript is not None and not all(isinstance(text, str) for text in transcript):
            _refuse("the transcript is no list of texts")
        if any(values is not None and len(values) != rows for values in (portraits, transcript)):
            _refuse(f"portraits or transcripts are not {rows}")
        if head["domain"] not in ("drawn", "filmed"):
            _refuse("the domain is neither drawn nor filmed")
        return RewardBatch(
            self.tensor("motion", (rows, frames, MOTION_SIZE)),
            self.tensor("mel", (rows, MELS_PER_FRAME * frames, MEL_BANDS)),
            self.drawing("frames", (3, None, None), (torch.uint8,)) if head["draws"] else None,
            self.drawing("places", (N_LANDMARKS, 2), _FLOATS) if head["lands"] else None,
            self.optional("audio", (rows, SAMPLES_PER_FRAME * frames)), portraits, transcript,
            self.optional("reference", (rows, frames, MOTION_SIZE)), self.optional("group", (rows,), _INTEGERS),
            domain=head["domain"], tracking_failures=_read_failures(head["unseen"], rows),
        )  # fmt: skip

    def tensor(
        self, name: str, shape: Sequence[int | None], kinds: Sequence[torch.dtype] = _FLOATS
    ) -> torch.Tensor:  # fmt: skip
        """Return the tensor of a name; None in ``shape`` stands for any length from 1 on."""
        tensor = self.tensors[name]
        fits = tensor.dim() == len(shape) and all(
            length == expected if expected is not None else length > 0
            for length, expected in zip(tensor.shape, shape, strict=True)
        )
        if not fits or tensor.dtype not in kinds:
            _refuse(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {tuple(shape)}")
        return tensor

    def optional(
        self, name: str, shape: Sequence[int | None], kinds: Sequence[torch.dtype] = _FLOATS
    ) -> torch.Tensor | None:
        """Return the tensor of a name, or None if it was not sent."""
        return self.tensor(name, shape, kinds) if name in self.tensors else None

    def indices(self, values: Any, what: str, limit: int) -> list[int]:
        """Return the values as a list of at most ``limit`` whole numbers, each from 0 to below ``limit``."""
        is_short_list = isinstance(values, list) and len(values) <= limit
        if not is_short_list or not all(type(i) is int and 0 <= i < limit for i in values):
            _refuse(f"{what} are no numbers from 0 to {limit - 1}")
        return values

    def drawing(self, what: str, shape: Sequence[int | None], kinds: Sequence[torch.dtype]) -> Any:
        """Return a ``FrameRenderer`` or ``LandmarkLocator`` of the frames or landmarks that were sent."""
        sent = self.indices(self.head[what], what, self.frames)
        position = {index: column for column, index in enumerate(sent)}
        tensor = self.tensor(what, (self.rows, len(sent), *shape), kinds) if sent else None

        def look_up(_: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
            missing = tuple(index for index in indices if index not in position)
            if missing or tensor is None:
                raise FramesRequested(**{what: missing})
            values = tensor[:, [position[index] for index in indices]]
            return values.float() / 255 if what == "frames" else values

        return look_up

    def portrait(self, number: int) -> Portrait:
        """Return a portrait. The whole photo is not sent; the crop replaces it."""
        prefix = f"portrait/{number}/"
        crop = self.tensor(f"{prefix}crop", (None, None, 3), (torch.uint8,)).numpy()
        landmarks = self.tensor(f"{prefix}landmarks", (N_LANDMARKS, 3))
        blendshapes, to_crop = (
            self.tensor(f"{prefix}blendshapes", (N_BLENDSHAPES,)), self.tensor(f"{prefix}to_crop", (2, 3)),
        )  # fmt: skip
        return Portrait(crop, crop, landmarks.numpy(), blendshapes.numpy(), to_crop.numpy())


def pack_score(score: Score) -> bytes:
    """Return the scores as bytes."""
    tensors = {"value": score.value.float(), "valid": score.valid}
    if score.dense is not None:
        tensors["dense"] = score.dense
    tensors |= {f"region/{name}": value for name, value in (score.regions or {}).items()}
    head = {"failures": {row: list(why) for row, why in score.reasons.items()}, "noise": score.noise}
    # Cloned, since safetensors does not accept tensors that share memory.
    return save({name: value.contiguous().clone() for name, value in tensors.items()}, {"score": json.dumps(head)})


def unpack_score(data: bytes, rows: int) -> Score:
    """Return the scores that a server sent.

    Raises:
        ValueError: they are incomplete, or not for this many rows.
    """
    try:
        head, tensors = _read_head(data), load(data)
        failures, noise = _read_failures(head["failures"], rows), float(head["noise"])
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
    return Score(value, valid, dense, regions or None, failures_per_row(failures, rows), noise)


def _read_head(data: bytes) -> dict[str, Any]:
    """Return the JSON description in a safetensors header: 8 bytes of length, then the header with ``__metadata__``."""
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise BadInput(f"The header of the batch is larger than {MAX_HEADER_BYTES // 2**20} MiB: send fewer samples.")
    metadata: Mapping[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
    head = json.loads(next(iter(metadata.values())))
    if not isinstance(head, dict):
        _refuse("its description is no object")
    return head


def _read_failures(by_row: Mapping[str, Any], rows: int) -> dict[int, Failure]:
    """Return row → why it has no score."""
    failures = {int(row): Failure(*parts) for row, parts in by_row.items()}
    for row, failure in failures.items():
        if not 0 <= row < rows or failure.kind not in get_args(FailureKind) or not isinstance(failure.detail, str):
            _refuse("a failure is of no sample or of an unknown kind")
    return failures


def _refuse(what: str) -> NoReturn:
    raise BadInput(f"The body is no batch of samples ({what}): send what pack_batch makes.")


# --- The client ---

SERVER_KEY_VARIABLE = "FLOWPORTRAIT_SERVE_KEY"
"""Environment variable with the key of a server that requires one. The key is sent to this computer, or to the host in
FLOWPORTRAIT_SERVE_HOST."""
_MAX_REQUESTS = 4
"""How often a batch is sent because the server requests more frames."""


@dataclass(frozen=True)
class HttpReward:
    """A reward on another machine. The server reports its name, needs and other properties."""

    url: str
    scorer: str
    name: str
    needs: frozenset[str]
    scope: Literal["sample", "group"] = "sample"
    range: tuple[float, float] = (float("-inf"), float("inf"))
    noise: float = 0.0
    retries: int = 4
    timeout: float = 120.0
    _wanted: dict[int, SentFrames] = field(default_factory=dict, repr=False, compare=False)
    _client: httpx2.Client = field(default_factory=make_http_client, repr=False, compare=False)

    @classmethod
    def at(cls, url: str, scorer: str, retries: int = 4, timeout: float = 120.0) -> HttpReward:
        """Return the reward that a server offers under a name.

        Args:
            url: address of the server.
            scorer: name of the reward there.
            retries: how often it is asked again if it is unavailable.
            timeout: seconds to wait for an answer.

        Raises:
            BadInput: the address is not safe, no server answers, or it does not offer the reward.
        """
        url = url.rstrip("/")
        check_server_address(url, f"The address of the reward {scorer!r}")
        client = make_http_client(timeout)
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
        """Return the scores of the server.

        Raises:
            Unavailable: there is no usable answer; ``rewards.interface`` asks again.
            BadInput: the server reports that the batch cannot be scored.
        """
        length = batch.motion.shape[1]
        sent = self._wanted.get(length, SentFrames())
        needs = self.needs | ({"group"} if self.scope == "group" else frozenset())
        for _ in range(_MAX_REQUESTS):
            answer = self._post(pack_batch(batch, needs, sent), len(batch))
            if isinstance(answer, Score):
                self._wanted[length] = sent
                return answer
            if any(index >= length for index in (*answer.frames, *answer.places)):
                raise RewardUnavailable(f"{self.url} asked for frames that a clip of {length} frames does not have")
            sent = sent.including(answer)
        raise RewardUnavailable(f"{self.url} asked for frames {_MAX_REQUESTS} times")

    def _post(self, body: bytes, rows: int) -> Score | FramesRequested:
        headers = {"Content-Type": MEDIA_TYPE, **_headers(self.url)}
        try:
            answer = self._client.post(f"{self.url}/score/{self.scorer}", content=body, headers=headers,
                                       timeout=self.timeout)  # fmt: skip
        except httpx2.HTTPError as error:
            raise RewardUnavailable(f"{self.url} does not answer ({type(error).__name__})") from error
        if answer.status_code == 409:
            return _read_requested_frames(answer)
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            raise RewardUnavailable(f"{self.url} failed ({answer.status_code})")
        if 300 <= answer.status_code < 400:
            target = answer.headers.get("location", "another address")[:120]
            raise BadInput(f"{self.url} sends requests on to {target}, which is not followed: give that address.")
        if answer.status_code != 200:
            raise BadInput(f"{self.url} would not score ({answer.status_code}): {_error_message(answer)}")
        try:
            return unpack_score(answer.content, rows)
        except ValueError as error:
            raise RewardUnavailable(f"{self.url}: {error}") from error


@dataclass(frozen=True)
class _Offer:
    """The properties of a reward that a server offers."""

    name: str
    needs: frozenset[str]
    scope: Literal["sample", "group"]
    range: tuple[float, float]
    noise: float

    @classmethod
    def read(cls, data: Any) -> _Offer:
        """Read the properties from JSON.

        Raises:
            ValueError, TypeError, LookupError: they are incomplete or malformed.
        """
        low, high = data["range"]
        limits = (float("-inf" if low is None else low), float("inf" if high is None else high))
        needs, scope = frozenset(data["needs"]), data["scope"]
        if scope not in ("sample", "group") or not needs <= SENDABLE_NEEDS or not isinstance(data["name"], str):
            raise ValueError("it describes its scorer in another way")
        return cls(data["name"], needs, scope, limits, float(data["noise"]))


def _headers(url: str) -> dict[str, str]:
    key = api_key_for(url, SERVER_KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _read_requested_frames(answer: httpx2.Response) -> FramesRequested:
    """Return the frames and landmarks that a server requests."""
    try:
        requested = answer.json()["wanted"]
        frames, places = requested.get("frames", ()), requested.get("places", ())
        if not all(type(index) is int and index >= 0 for index in (*frames, *places)):
            raise ValueError("frames are whole numbers from 0")
        return FramesRequested(tuple(frames), tuple(places))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise RewardUnavailable(f"unreadable answer ({error})") from error


def _error_message(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])[:500]
    except (ValueError, LookupError, TypeError, RecursionError):
        return answer.text[:200]
