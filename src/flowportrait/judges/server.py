"""This module serves a judge and rewards over HTTP.

    POST /v1/chat/completions    a clip as video_url (data:video/mp4), "Aspect: lip_sync" in the text ─► the answer
    GET  /v1/models              POST /score/NAME    GET /scorers    GET /health

Without a key the server listens on the loopback address only; with a key, requests carry it as a bearer token.
Requests, clips and batches are limited in size (``web_server``, ``media.video.SERVER_CLIP_LIMITS``,
``rewards.remote``), and responses contain no paths of this machine.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import tempfile
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from flowportrait.errors import BadInput
from flowportrait.judges.clips import JudgedClip
from flowportrait.judges.messages import SERVED_PANEL_MODEL
from flowportrait.judges.rubric import CLIP_ASPECTS
from flowportrait.judges.verdicts import Judge, Verdict
from flowportrait.media.video import SERVER_CLIP_LIMITS
from flowportrait.rewards.interface import Reward, RewardUnavailable, read_traits, score_batch
from flowportrait.rewards.registry import REWARDS, build_reward, check_reward_names
from flowportrait.rewards.remote import (
    MAX_BATCH_BYTES,
    MEDIA_TYPE,
    SENDABLE_NEEDS,
    FramesRequested,
    pack_score,
    unpack_batch,
)
from flowportrait.terminal import log
from flowportrait.web_server import LOOPBACK, RequestGuard, strip_paths

SERVED_MODEL = SERVED_PANEL_MODEL
MAX_REQUEST_BYTES = MAX_BATCH_BYTES
"""Largest request in bytes."""
CONTENT_TYPES = {"/v1/": ("application/json",), "/score/": (MEDIA_TYPE, "application/octet-stream")}
_VIDEO_HEADS = ((4, b"ftyp"), (0, b"\x1a\x45\xdf\xa3"), (0, b"RIFF"))
"""Offset and bytes of the signatures of mp4 and mov, webm and mkv, and avi files. Other files are refused, because
FFmpeg would also open playlists that name other files and addresses."""
MAX_CACHED_VERDICTS = 64
"""Number of clips with a verdict in the cache."""


def judge_app(
    judge: Judge, scorers: Mapping[str, Reward], key: str | None = None, hosts: Sequence[str] = LOOPBACK
) -> FastAPI:
    """Return the web application; it processes one clip or batch at a time.

    Args:
        judge: the judge that answers chat completions.
        scorers: the rewards by the name under which they are served.
        key: the key that clients must send; None serves every client that reaches the address.
        hosts: host names under which the server may be called.
    """
    app = FastAPI(title="FlowPortrait judge", docs_url=None, redoc_url=None, openapi_url=None)
    lock = threading.Lock()
    recent: OrderedDict[str, Verdict] = OrderedDict()

    app.add_middleware(
        RequestGuard, hosts=hosts, largest_body=MAX_REQUEST_BYTES, content_types=CONTENT_TYPES, key=key or None
    )  # fmt: skip

    @app.exception_handler(BadInput)
    async def bad(_: Request, error: BadInput) -> Response:
        return _error(400, str(error))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        # The client learns the type of the error alone; the details are in the server's log.
        return _error(500, f"the server failed ({type(error).__name__})")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"judge": judge.name, "kind": judge.kind, "scorers": sorted(scorers)}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": SERVED_MODEL, "object": "model", "created": 0, "owned_by": "flowportrait"}],
        }

    @app.get("/scorers")
    async def offered() -> dict[str, Any]:
        return {name: _describe(reward) for name, reward in scorers.items()}

    @app.post("/score/{name}")
    async def scored(name: str, request: Request) -> Response:
        if name not in scorers:
            return _error(404, f"no scorer named {name[:80]!r}: choose from {', '.join(sorted(scorers))}")
        data = await request.body()

        def work() -> Response:
            try:
                batch = unpack_batch(data)
                with lock:
                    return Response(pack_score(score_batch(scorers[name], batch)), media_type=MEDIA_TYPE)
            except FramesRequested as wanted:
                return JSONResponse({"wanted": {"frames": wanted.frames, "places": wanted.places}}, 409)
            except RewardUnavailable as error:
                return _error(503, str(error))

        return await run_in_threadpool(work)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        try:
            body = json.loads(await request.body())
            text, video = _read_request(body)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            return _error(400, f"not a chat completion request ({type(error).__name__})")
        if body.get("model") != SERVED_MODEL:
            return _error(404, f"no model {str(body.get('model'))[:80]!r} here: it is {SERVED_MODEL}")
        if body.get("stream"):
            return _error(400, "answers are not streamed")
        if body.get("logprobs"):
            return _error(400, "logprobs are not supported: experts measure")
        if video is None:
            return _error(400, "send the clip as a video_url part with a data:video/mp4;base64 address")

        def work() -> Verdict:
            # Three specialists ask about the same clip, which is judged only once.
            digest = hashlib.sha256(video.encode()).hexdigest()
            with lock:
                if digest not in recent:
                    recent[digest] = judge.judge([_read_clip(video)])[0]
                while len(recent) > MAX_CACHED_VERDICTS:
                    recent.popitem(last=False)
                return recent[digest]

        return JSONResponse(_completion(await run_in_threadpool(work), text))

    return app


def _describe(reward: Reward) -> dict[str, Any]:
    declared = read_traits(reward)
    limits = [bound if math.isfinite(bound) else None for bound in declared.range]
    return {
        "name": reward.name, "needs": sorted(reward.needs), "scope": declared.scope, "range": limits,
        "noise": declared.noise,
    }  # fmt: skip


def _read_request(body: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the text and the last video of the last user message."""
    content = [message for message in body["messages"] if message["role"] == "user"][-1]["content"]
    if isinstance(content, str):
        return content, None
    text = "\n".join(part["text"] for part in content if part["type"] == "text")
    videos = [part["video_url"]["url"] for part in content if part["type"] == "video_url"]
    if not all(isinstance(url, str) for url in videos):
        raise TypeError
    return text, videos[-1] if videos else None


def _read_clip(url: str) -> JudgedClip:
    head, _, data = url.partition(",")
    if not head.startswith("data:video/") or not head.endswith(";base64"):
        raise BadInput("The video is no data:video/…;base64 address: addresses elsewhere are not fetched.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        try:
            video = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadInput(f"The video is no base64 ({error}).") from error
        if not any(video[place:].startswith(head) for place, head in _VIDEO_HEADS):
            raise BadInput("The video is no mp4, mov, webm, mkv or avi file: convert it first.")
        path.write_bytes(video)
        try:
            return JudgedClip.from_video(path, limits=SERVER_CLIP_LIMITS)
        except BadInput as error:
            raise BadInput(strip_paths(str(error), path)) from error


def _completion(verdict: Verdict, text: str) -> dict[str, Any]:
    """Return the verdict as a chat completion: on the aspect that the text names, or on all aspects without a name."""
    requested = [aspect for aspect in CLIP_ASPECTS if f"Aspect: {aspect}" in text]
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    if len(requested) == 1:
        graded = verdict.aspects[requested[0]]
        if graded.score is None:
            message["refusal"] = graded.failure.detail if graded.failure else "no score"
        else:
            errors = [flaw._asdict() for flaw in graded.flaws]
            answer = {"rationale": graded.rationale, "errors": errors, "score": graded.score, "kind": verdict.kind}
            message["content"] = json.dumps(answer)
    else:
        scores = {aspect: graded.score for aspect, graded in verdict.aspects.items()}
        message["content"] = json.dumps({"scores": scores, **verdict.to_dict()})
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()),
        "model": SERVED_MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }  # fmt: skip


def _error(status: int, message: str) -> JSONResponse:
    message = strip_paths(message)
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": status}}, status)


def servable_rewards(names: Sequence[str]) -> dict[str, Reward]:
    """Return the rewards with these names; without names all rewards that can be served and loaded here.

    Raises:
        BadInput: a reward does not exist, or one of ``names`` cannot be served.
    """
    check_reward_names(names)
    offered: dict[str, Reward] = {}
    for name in names or [name for name in REWARDS if name != "panel"]:
        try:
            reward = build_reward(name)
        except BadInput as error:
            if names:
                raise
            log(f"{name} is not offered: {error}")
            continue
        left = reward.needs - SENDABLE_NEEDS
        if left and names:
            raise BadInput(
                f"The reward {name!r} needs {', '.join(sorted(left))}, which does not travel: use it in process."
            )
        if not left:
            offered[name] = reward
    return offered
