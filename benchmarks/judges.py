"""Judges of clips: what judging costs, and how well judges that need no model know damage and preferences."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.material import use_one_thread
from benchmarks.record import Record
from benchmarks.timing import processor_seconds, stopwatch
from flowportrait.commands.options import OptionalPath
from flowportrait.corruption import CORRUPTIONS, corruptions
from flowportrait.corruption.clips import freeze_eyes
from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import Estimate, bootstrap_mean
from flowportrait.judges.build import PANEL_METHODS, JudgeReward
from flowportrait.judges.clips import JudgedClip
from flowportrait.judges.learning import ExpertToggles, LabelledPair, learn_library, measure_agreement
from flowportrait.judges.measured_panel import (
    EXPERTS,
    Experts,
    HeadPose,
    MeasuredPanel,
    PoseCappedJudge,
    concatenate_batches,
    track_statistics,
)
from flowportrait.judges.messages import Endpoint
from flowportrait.judges.methods import PairJudge
from flowportrait.judges.panel import Panel, PanelSettings
from flowportrait.judges.rubric import CLIP_ASPECTS, Aspect, RubricLibrary
from flowportrait.judges.sanity import (
    CLIP_CASES,
    CLIP_SANITY,
    certify_judge,
    corrupt_clip,
    order_result,
    save_certificate,
)
from flowportrait.judges.verdicts import Judge
from flowportrait.preferences.dataset import Label
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Reward, score_batch
from flowportrait.rewards.remote import HttpReward

ROWS = 16
"""Clips that are scored at once."""
HEADS = {name: (entry.damage, entry.strengths) for name, entry in corruptions("head").items()}
DECISIVE_DAMAGES: dict[Aspect, tuple[str, ...]] = {
    "lip_sync": ("offset", "time-warp", "swapped segments"),
    "expressiveness": ("still", "slowed", "frozen eyes"),
    "motion": ("jitter", "frozen frames", "flicker", "stretched", "whipped"),
}
"""Damage that decides a pair for the intact clip, by aspect."""
Part = Literal["cost", "sanity", "panel", "learning", "heads", "requests"]


@dataclass(frozen=True)
class JudgeOptions:
    """Measure what judging costs, and what the measured panel knows on speakers that nothing was fitted on.

    cost: scores per second of every scorer, in a batch, one by one, and over HTTP. panel: a panel of a model that
    takes 50 ms for an answer, one at a time and eight at a time. requests: what every method asks for a clip or a pair.
    sanity: whether grades fall with known damage and the other aspects stay. learning: agreement with known
    preferences, and what a library learned from them adds. heads: the order of impossible heads under the pose check,
    and under steadiness, which should lose.
    """

    data: OptionalPath = None
    """Footage folder with split.tsv and anchors/; by default $FLOWPORTRAIT_DATA."""
    part: tuple[Part, ...] = ("cost", "panel", "requests", "sanity", "learning", "heads")
    """What to measure, of cost, panel, requests, sanity, learning, heads."""
    per_speaker: int = 2
    """Clips of a dev speaker."""
    certificates: OptionalPath = None
    """With sanity: write the certificate into this folder (the shipped ones: judge/checked of the weights)."""


def judge(options: JudgeOptions, record: Record) -> None:
    """Measure the parts that are asked for."""
    use_one_thread()
    work: dict[Part, Callable[[JudgeOptions, Record], None]] = {
        "cost": time_scorers, "panel": time_panel, "requests": count_requests, "sanity": check_sanity,
        "learning": learn_preferences, "heads": order_heads,
    }  # fmt: skip
    for part in options.part:
        work[part](options, record)


def dev_clips(footage: Path | None, per_speaker: int) -> list[JudgedClip]:
    """Return clips of dev speakers that are cut to one length.

    Raises:
        BadInput: no folder of footage is known.
    """
    from tools.fit_judge_scales import speakers_clips

    folder = footage or os.environ.get("FLOWPORTRAIT_DATA")
    if not folder:
        raise BadInput("Give the folder of the footage with --data, or in FLOWPORTRAIT_DATA.")
    return speakers_clips(Path(folder), split="dev", per_speaker=per_speaker)


def with_landmarks(clips: Sequence[JudgedClip]) -> list[JudgedClip]:
    """Return clips whose faces are found and are not searched for again."""
    return [replace(clip, known_landmarks=clip.landmarks) for clip in clips]


# ── cost ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def time_scorers(options: JudgeOptions, record: Record) -> None:
    """Add scores per second of every scorer; what a clip's pictures cost to prepare is not in them."""
    import uvicorn

    from flowportrait.judges.server import judge_app, servable_rewards

    clips = dev_clips(options.data, 1)
    many = concatenate_batches([clip.batch for clip in clips]).select(torch.arange(ROWS) % len(clips))
    single = [many.select(torch.tensor([row])) for row in range(ROWS)]
    scorers: dict[str, Reward] = {**servable_rewards([]), "panel (measured)": JudgeReward(MeasuredPanel())}
    scorers = {name: scorer for name, scorer in scorers.items() if scorer.needs <= many.has}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = judge_app(MeasuredPanel(), scorers)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        for name, scorer in scorers.items():
            batched, alone = scores_per_second(scorer, [many]), scores_per_second(scorer, single)
            remote = scores_per_second(HttpReward.at(f"http://127.0.0.1:{port}", name), [many])
            rates = {"batch": batched, "one by one": alone, "batch over HTTP": remote}
            for metric, value in rates.items():
                record.add(name, metric, value, unit="scores/s", group="cost")
            record.add(name, "gain of a batch", batched / alone, group="cost")
            record.add(name, "share left over HTTP", remote / batched, group="cost")
    finally:
        server.should_exit = True
        thread.join(5)
    record.note(f"Cost: {ROWS} clips of {many.motion.shape[1]} frames.")


def scores_per_second(reward: Reward, batches: list[RewardBatch]) -> float:
    """Return scores per second of batches that were scored once before, so that the scorer alone is timed."""
    for batch in batches:
        score_batch(reward, batch)
    began, rounds = time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - began < 0.5:
        for batch in batches:
            score_batch(reward, batch)
        rounds += 1
    return rounds * sum(map(len, batches)) / (time.perf_counter() - began)


@contextmanager
def canned_server(answer: dict[str, object], seconds: float = 0.0) -> Iterator[str]:
    """Run a chat server on loopback that gives everybody the same answer after some time, and yield its address."""
    message = {"role": "assistant", "content": json.dumps(answer)}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    reply = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    body = json.dumps(reply).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(seconds)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()


def time_panel(options: JudgeOptions, record: Record) -> None:
    """Add the seconds of a panel on four clips, one request at a time and eight at a time."""
    from flowportrait.judges.client import ChatClient

    points = np.stack(np.meshgrid(np.linspace(64, 192, 22), np.linspace(60, 200, 22)), -1).reshape(-1, 2)[:478]
    rng = np.random.default_rng(0)
    clips = [
        JudgedClip(
            rng.integers(0, 255, (30, 256, 256, 3), np.uint8), rng.normal(0, 0.1, 19200), f"{clip}",
            known_landmarks=np.repeat(points[None], 30, 0),
        )
        for clip in range(4)
    ]  # fmt: skip
    seconds: dict[int, float] = {}
    with canned_server({"rationale": "r", "errors": [], "score": 4}, 0.05) as url:
        for concurrency in (1, 8):
            client = ChatClient(Endpoint(url=url, model="m", concurrency=concurrency))
            panel: Panel[JudgedClip] = Panel(client, PanelSettings(samples=3))
            began = time.perf_counter()
            panel.judge(clips)
            seconds[concurrency] = time.perf_counter() - began
            requests = client.ledger.totals()["requests"]
            record.add(f"{concurrency} at once", "answers", requests, group="panel")
            record.add(f"{concurrency} at once", "clock", seconds[concurrency], unit="s", group="panel")
    record.add("8 at once", "times as fast", seconds[1] / seconds[8], group="panel")


def count_requests(options: JudgeOptions, record: Record) -> None:
    """Add what every method asks a server, and what making the requests takes here; the server answers at once."""
    from flowportrait.judges.client import ChatClient

    clips = with_landmarks(dev_clips(options.data, options.per_speaker))
    flaw = {"start": 0.1, "end": 0.3, "what": "soft"}
    answer = {"rationale": "r", "errors": [], "score": 4, "thoughts": "t", "windows": [flaw, flaw], "seen": True,
              "box": [0, 0, 1, 1], "better": "first"}  # fmt: skip
    with canned_server(answer) as url:
        for name, method in PANEL_METHODS.items():
            client = ChatClient(Endpoint(url=url, model="m"))
            judged_by = method(client, PanelSettings(samples=1))
            seconds = processor_seconds(partial(judged_by.judge, clips))
            requests = client.ledger.totals()["requests"]
            record.add(name, "requests a clip", requests / len(clips), group="requests")
            record.add(name, "processor time a clip", seconds / len(clips), unit="s", group="requests")
            if isinstance(judged_by, PairJudge):
                judged_by.compare([(clips[0], clips[1])])
                asked = client.ledger.totals()["requests"] - requests
                record.add(name, "requests a pair", asked, group="requests")
    untracked = [replace(clip, known_landmarks=None) for clip in clips]
    seconds = processor_seconds(lambda: MeasuredPanel().judge(untracked)) / len(clips)
    record.add("measured, with tracking", "processor time a clip", seconds, unit="s", group="requests")


# ── knowledge of the measured panel ────────────────────────────────────────────────────────────────────────────────


def check_sanity(options: JudgeOptions, record: Record) -> None:
    """Add the grades under growing damage, and how far the grades of the other aspects fall."""
    clips = dev_clips(options.data, options.per_speaker)
    certificate = certify_judge(MeasuredPanel(), clips, CLIP_SANITY)
    for result in certificate.results:
        system = f"{result.aspect}: {result.damage}"
        for strength, mean in enumerate(result.means):
            record.add(system, f"grade at strength {strength}", mean, group="sanity")
        record.add(system, "order", result.order, group="sanity")
        record.add(system, "lost", result.lost, group="sanity")
        for name, fall in result.foreign.items():
            record.add(system, f"fall of {name}", fall, group="sanity")
    record.note(f"Sanity: {len(clips)} clips; {'passed' if certificate.passed else f'failed: {certificate.failed()}'}.")
    if options.certificates is not None:
        record.note(f"The certificate is {save_certificate(certificate, options.certificates)}.")


def learn_preferences(options: JudgeOptions, record: Record) -> None:
    """Add the agreement of the measured panel with known preferences, before and after learning from a part of it."""
    pairs = known_preferences(with_landmarks(dev_clips(options.data, options.per_speaker)))
    experts = Experts.load()
    learned = learn_library(
        lambda library: MeasuredPanel(experts.with_library(library)), pairs, ExpertToggles(tuple(experts.scales)),
        len(CLIP_ASPECTS) * len(experts.scales), RubricLibrary(EXPERTS),
    )  # fmt: skip
    for one in learned.rounds:
        kept = "kept" if one.is_accepted else "not kept"
        record.note(f"Learning: {one.before:.3f} → {one.after:.3f}, {kept}: {one.entries}")
    whole = measure_agreement(MeasuredPanel(), pairs)[0]
    rows = {"all pairs": whole, "held-out pairs, before": learned.first, "held-out pairs, after": learned.last}
    for name, found in rows.items():
        if found is not None:
            record.add(name, "agreement", Estimate(found.accuracy, *found.interval, found.decided), group="learning")
            for aspect, (share, count) in found.by_aspect.items():
                record.add(name, aspect, share, n=count, group="learning")


def order_heads(options: JudgeOptions, record: Record) -> None:
    """Add the grades of heads that cannot be, by the pose check and by steadiness."""
    from tools.fit_judge_scales import damage_head, stack_landmarks

    clips = with_landmarks(dev_clips(options.data, options.per_speaker))
    experts = Experts.load()
    pose = experts.rewards["pose"]
    assert isinstance(pose, HeadPose), "experts know poses by landmarks alone"
    for damage, (apply, strengths) in HEADS.items():
        levels = [clips, *([damage_head(clip, apply, strength) for clip in clips] for strength in strengths)]
        landmarks = [stack_landmarks(own) for own in levels]
        with stopwatch() as spent:
            poses = [pose.measure(own) for own in landmarks]
        seconds = spent.processor / sum(map(len, levels))
        steadiness = [-track_statistics(own)[0] for own in landmarks]
        for name, figures in (("pose", poses), ("steadiness", steadiness)):
            grades = np.array([[experts.scales[name](float(one)) for one in own] for own in figures])
            result = order_result("motion", damage, "", (0.0, *strengths), grades, {})
            for strength, mean in zip((0.0, *strengths), result.means, strict=True):
                record.add(name, f"grade at {strength:g}", mean, group=f"heads, {damage}")
            record.add(name, "order", result.order, group=f"heads, {damage}")
        record.add("pose", "processor time a clip", 1e3 * seconds, unit="ms", group=f"heads, {damage}")


def known_preferences(clips: Sequence[JudgedClip]) -> list[LabelledPair]:
    """Return every clip beside itself damaged, a pair for each damage with a random strength and side."""
    rng, pairs = np.random.default_rng(0), []
    for clip in clips:
        for aspect, damages in DECISIVE_DAMAGES.items():
            for damage in damages:
                level = int(rng.integers(3))
                worse = damage_clip(clip, damage, level)
                first = bool(rng.integers(2))
                both = (clip, worse) if first else (worse, clip)
                pairs.append(LabelledPair(both, {aspect: Label.FIRST if first else Label.SECOND}))
    return pairs


def damage_clip(clip: JudgedClip, damage: str, level: int) -> JudgedClip:
    """Return a clip with a kind of damage at the first, second or third of its strengths (level 0 to 2)."""
    from tools.fit_judge_scales import damage_head

    if damage in HEADS:
        apply, strengths = HEADS[damage]
        return damage_head(clip, apply, strengths[level])
    strength = CORRUPTIONS[damage].strengths[level]
    if damage == "frozen eyes":
        return damage_head(clip, freeze_eyes, strength)
    return corrupt_clip(clip, damage, strength)


# ── judges beside each other ───────────────────────────────────────────────────────────────────────────────────────

LEARNED = RubricLibrary(
    {**EXPERTS, "expressiveness": ("expressiveness", "sync"), "motion": ("steadiness", "temporal", "pose")}
)
"""A library that was learned from preferences: which experts are asked about each aspect."""
COLUMNS: dict[str, tuple[Aspect, tuple[str, ...]]] = {
    **{aspect: (aspect, CLIP_CASES[aspect]) for aspect in CLIP_ASPECTS}, "heads": ("motion", tuple(HEADS)),
}  # fmt: skip
"""Column of the table → aspect that is graded, kinds of damage."""


@dataclass(frozen=True)
class JudgesOptions:
    """Compare judges that need no model: known damage put in order, agreement with known preferences, cost.

    The measured panel that ships, alone, with the pose check, with a learned library, and with both; one expert for
    all aspects should lose. Order is the share of pairs of one clip at two strengths that are graded the right way.
    Clips are of dev speakers; each is tracked once for all judges, so that seconds are of judging alone.
    """

    data: OptionalPath = None
    """Footage folder with split.tsv and anchors/; by default $FLOWPORTRAIT_DATA."""
    library: OptionalPath = None
    """Another library, as flowportrait judge learn wrote it."""
    per_speaker: int = 2
    """Clips of a dev speaker."""


def judges(options: JudgesOptions, record: Record) -> None:
    """Add a line for every judge."""
    use_one_thread()
    clips = [prepared(clip) for clip in dev_clips(options.data, options.per_speaker)]
    panels = model_free_judges(RubricLibrary.load(options.library) if options.library else LEARNED)
    shares: dict[tuple[str, str], list[np.ndarray]] = {(name, column): [] for name in panels for column in COLUMNS}
    seconds, graded = dict.fromkeys(panels, 0.0), 0
    for column, (aspect, damages) in COLUMNS.items():
        for damage in damages:
            # Heads are bent by their landmarks; other damage is tracked anew.
            sources = clips if damage in HEADS else [replace(clip, known_landmarks=None) for clip in clips]
            damaged = [[prepared(damage_clip(clip, damage, level)) for clip in sources] for level in range(3)]
            levels = [clips, *damaged]
            graded += sum(map(len, levels))
            for name, panel in panels.items():
                with stopwatch() as spent:
                    shares[name, column] += right_orders(panel, aspect, levels)
                seconds[name] += spent.processor
    pairs = known_preferences(clips)
    for name, panel in panels.items():
        for column in COLUMNS:
            record.add(name, f"order: {column}", bootstrap_mean(np.mean(shares[name, column], 0)))
        found = measure_agreement(panel, pairs)[0]
        record.add(name, "agreement", Estimate(found.accuracy, *found.interval, found.decided))
        record.add(name, "processor time a clip", seconds[name] / graded, unit="s")


def model_free_judges(library: RubricLibrary) -> dict[str, Judge]:
    """Return the judges that are compared, by name."""
    experts = Experts.load()
    learned = MeasuredPanel(experts.with_library(library))
    single = MeasuredPanel(experts.with_library(RubricLibrary(dict.fromkeys(CLIP_ASPECTS, ("sync",)))))
    return {
        "measured": MeasuredPanel(), "measured, pose": PoseCappedJudge(MeasuredPanel()), "measured, library": learned,
        "measured, pose and library": PoseCappedJudge(learned), "sync for all aspects": single,
    }  # fmt: skip


def prepared(clip: JudgedClip) -> JudgedClip:
    """Return a clip whose face is found, once for all judges."""
    batch = clip.batch
    landmarks = clip.known_landmarks
    if landmarks is None:
        landmarks = batch.places(tuple(range(len(clip))))[0].numpy()
    return replace(clip, known_batch=batch, known_landmarks=landmarks)


def right_orders(panel: Judge, aspect: Aspect, levels: Sequence[Sequence[JudgedClip]]) -> list[np.ndarray]:
    """Return whether each two strengths of each clip ``[N]`` are graded the right way; ½ where there is no grade."""
    verdicts = [panel.judge(list(clips)) for clips in levels]
    scores = np.array([[one.aspects[aspect].score or np.nan for one in level] for level in verdicts])
    pairs = [np.sign(scores[a] - scores[b]) / 2 + 0.5 for a, b in combinations(range(len(scores)), 2)]
    return [np.nan_to_num(pair, nan=0.5) for pair in pairs]
