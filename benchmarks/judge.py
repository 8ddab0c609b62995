"""What judging costs: scores per second of every scorer in a batch and one by one, here and over HTTP; and how well
the measured panel knows damage on speakers that nothing was fitted on.

    python benchmarks/judge.py cost FOOTAGE          ratios within one run; FOOTAGE as in split.tsv
    python benchmarks/judge.py sanity FOOTAGE        the sanity set on the split ``dev``; the certificate that ships
    python benchmarks/judge.py panel                 the panel against a server that takes 50 ms per answer
    python benchmarks/judge.py learning FOOTAGE      agreement with known preferences on ``dev``, and what is learned
    python benchmarks/judge.py heads FOOTAGE         order of impossible heads under the pose check
    python benchmarks/judge.py asking FOOTAGE        requests and processor time of every method for a clip and a pair

FOOTAGE may be left out where FLOWPORTRAIT_DATA is set.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
import uvicorn
from tools.fit_judge_scales import damage_head, speakers_clips, stack_landmarks

from flowportrait.corruption import CORRUPTIONS, corruptions
from flowportrait.corruption.clips import freeze_eyes
from flowportrait.files import shipped_weights
from flowportrait.judges.build import PANEL_METHODS, JudgeReward
from flowportrait.judges.client import ChatClient
from flowportrait.judges.clips import JudgedClip
from flowportrait.judges.learning import ExpertToggles, LabelledPair, learn_library, measure_agreement
from flowportrait.judges.measured_panel import (
    EXPERTS,
    Experts,
    HeadPose,
    MeasuredPanel,
    concatenate_batches,
    track_statistics,
)
from flowportrait.judges.messages import Endpoint
from flowportrait.judges.methods import PairJudge
from flowportrait.judges.panel import Panel, PanelSettings
from flowportrait.judges.rubric import CLIP_ASPECTS, Aspect, RubricLibrary
from flowportrait.judges.sanity import CLIP_SANITY, certify_judge, corrupt_clip, order_result, save_certificate
from flowportrait.judges.server import judge_app, servable_rewards
from flowportrait.preferences.dataset import Label
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Reward, score_batch
from flowportrait.rewards.remote import HttpReward

ROWS = 16
CERTIFICATES = shipped_weights("judge/checked")


def rate(reward: Reward, batches: list[RewardBatch]) -> float:
    """Scores per second: what was drawn before is there, so the scorer alone is timed."""
    for batch in batches:
        score_batch(reward, batch)
    began, rounds = time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - began < 0.5:
        for batch in batches:
            score_batch(reward, batch)
        rounds += 1
    return rounds * sum(map(len, batches)) / (time.perf_counter() - began)


def cost(footage: Path) -> None:
    """The table of the module."""
    clips = speakers_clips(footage, split="dev", per_speaker=1)
    lot = concatenate_batches([clip.batch for clip in clips])
    many = lot.select(torch.arange(ROWS) % len(clips))
    scorers: dict[str, Reward] = {**servable_rewards([]), "panel (measured)": JudgeReward(MeasuredPanel())}
    scorers = {name: scorer for name, scorer in scorers.items() if scorer.needs <= many.has}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = judge_app(MeasuredPanel(), scorers)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    print(f"{ROWS} clips of {many.motion.shape[1]} frames; scores per second")
    print(f"{'scorer':20} {'batch':>9} {'one by one':>11} {'gain':>6} {'HTTP batch':>11} {'of local':>9}")
    single = [many.select(torch.tensor([row])) for row in range(ROWS)]
    for name, scorer in scorers.items():
        batched, alone = rate(scorer, [many]), rate(scorer, single)
        remote = rate(HttpReward.at(f"http://127.0.0.1:{port}", name), [many])
        print(f"{name:20} {batched:9.1f} {alone:11.1f} {batched / alone:5.1f}x {remote:11.1f} {remote / batched:8.0%}")
    server.should_exit = True


def sanity(footage: Path) -> None:
    """The measured panel on speakers that neither its experts nor its scales were fitted on."""
    clips = speakers_clips(footage, split="dev", per_speaker=2)
    certificate = certify_judge(MeasuredPanel(), clips, CLIP_SANITY)
    print(f"{len(clips)} clips of the split dev; {'passed' if certificate.passed else certificate.failed()}")
    for result in certificate.results:
        means = " → ".join(f"{mean:.2f}" for mean in result.means)
        foreign = ", ".join(f"{name} {fall:+.2f}" for name, fall in result.foreign.items())
        print(f"{result.aspect:15} {result.damage:17} {means}   order {result.order:.0%}  lost {result.lost}"
              f"  falls of the others: {foreign}")  # fmt: skip
    print(save_certificate(certificate, CERTIFICATES))


PREFERENCES: dict[Aspect, tuple[str, ...]] = {
    "lip_sync": ("offset", "time-warp", "swapped segments"),
    "expressiveness": ("still", "slowed", "frozen eyes"),
    "motion": ("jitter", "frozen frames", "flicker", "stretched", "whipped"),
}
"""Damage that decides a pair for the intact clip, by aspect."""
HEADS = {name: (entry.damage, entry.strengths) for name, entry in corruptions("head").items()}


def learning(footage: Path) -> None:
    """Agreement of the measured panel with known preferences, and what a library learned from them brings."""
    clips = speakers_clips(footage, split="dev", per_speaker=2)
    stated = preferences([replace(clip, known_landmarks=clip.landmarks) for clip in clips])
    experts = Experts.load()
    learned = learn_library(
        lambda library: MeasuredPanel(experts.with_library(library)), stated, ExpertToggles(tuple(experts.scales)),
        len(CLIP_ASPECTS) * len(experts.scales), RubricLibrary(EXPERTS),
    )  # fmt: skip
    for one in learned.rounds:
        print(f"  {'kept' if one.kept else '    '} {one.before:.3f} → {one.after:.3f}  {one.entries}")
    whole = measure_agreement(MeasuredPanel(), stated)[0]
    rows = {"all pairs": whole, "pairs kept apart, before": learned.first, "pairs kept apart, after": learned.last}
    for name, found in rows.items():
        if found is not None:
            low, high = found.interval
            by = ", ".join(f"{aspect} {share:.2f} of {count}" for aspect, (share, count) in found.by_aspect.items())
            print(f"{name:24} {found.accuracy:.3f} ({low:.3f}–{high:.3f}) of {found.decided}: {by}")


def heads(footage: Path) -> None:
    """What the pose check leaves of a grade of 5 for heads that cannot be, and of steadiness beside it."""
    clips = [replace(clip, known_landmarks=clip.landmarks) for clip in speakers_clips(footage, "anchors", "dev", 2)]
    experts = Experts.load()
    pose = experts.rewards["pose"]
    assert isinstance(pose, HeadPose), "experts know poses by landmarks alone"
    for damage, (hurt, strengths) in HEADS.items():
        levels = [clips, *([damage_head(clip, hurt, level) for clip in clips] for level in strengths)]
        places = [stack_landmarks(own) for own in levels]
        began = time.process_time()
        posed = [pose.measure(own) for own in places]
        taken = (time.process_time() - began) / sum(map(len, levels))
        steady = [-track_statistics(own)[0] for own in places]
        for name, figures in (("pose", posed), ("steadiness", steady)):
            grades = np.array([[experts.scales[name](float(one)) for one in own] for own in figures])
            result = order_result("motion", damage, "", (0.0, *strengths), grades, {})
            means = " → ".join(f"{mean:.2f}" for mean in result.means)
            print(f"{damage:10} {strengths} {name:11} {means}  order {result.order:.0%}  {1e3 * taken:.1f} ms a clip")


def preferences(clips: list[JudgedClip]) -> list[LabelledPair]:
    """Every clip beside itself damaged, one pair per damage, strengths and sides drawn; pairs of a clip together."""
    rng, found = np.random.default_rng(0), []
    for clip in clips:
        for aspect, damages in PREFERENCES.items():
            for damage in damages:
                level = int(rng.integers(3))
                if damage in HEADS:
                    worse = damage_head(clip, HEADS[damage][0], HEADS[damage][1][level])
                elif damage == "frozen eyes":
                    worse = damage_head(clip, freeze_eyes, CORRUPTIONS[damage].strengths[level])
                else:
                    worse = corrupt_clip(clip, damage, CORRUPTIONS[damage].strengths[level])
                first = bool(rng.integers(2))
                found.append(
                    LabelledPair(
                        (clip, worse) if first else (worse, clip), {aspect: Label.FIRST if first else Label.SECOND}
                    )
                )
    return found


def asking(footage: Path) -> None:
    """What every method asks a server, and what making it takes here; the server answers at once."""
    clips = [replace(clip, known_landmarks=clip.landmarks) for clip in speakers_clips(footage, "anchors", "dev")]
    flaw = {"start": 0.1, "end": 0.3, "what": "soft"}
    said = {"rationale": "r", "errors": [], "score": 4, "thoughts": "t", "windows": [flaw, flaw], "seen": True,
            "box": [0, 0, 1, 1], "better": "first"}  # fmt: skip
    with answering(json.dumps(said)) as url:
        for name, method in PANEL_METHODS.items():
            server = ChatClient(Endpoint(url=url, model="m"))
            judge = method(server, PanelSettings(samples=1))
            began = time.process_time()
            judge.judge(clips)
            taken, totals = time.process_time() - began, server.ledger.totals()
            line = f"{totals['requests'] / len(clips):.1f} requests, {taken / len(clips):.2f} s of processor a clip"
            if isinstance(judge, PairJudge):
                judge.compare([(clips[0], clips[1])])
                line += f"; a pair {server.ledger.totals()['requests'] - totals['requests']} requests"
            print(f"{name:10} {line}")
    began = time.process_time()
    MeasuredPanel().judge([replace(clip, known_landmarks=None) for clip in clips])
    print(f"measured   {(time.process_time() - began) / len(clips):.2f} s of processor a clip, tracking included")


@contextmanager
def answering(text: str, seconds: float = 0.0) -> Iterator[str]:
    """A server on loopback that says the same to everybody; its address."""
    answer = json.dumps({"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [{
        "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}], "usage": {
            "prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}).encode()  # fmt: skip

    class Parrot(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(seconds)
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Parrot)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


def panel() -> None:
    """Answers per second of the client and its ledger."""
    points = np.stack(np.meshgrid(np.linspace(64, 192, 22), np.linspace(60, 200, 22)), -1).reshape(-1, 2)[:478]
    rng = np.random.default_rng(0)
    clips = [
        JudgedClip(rng.integers(0, 255, (30, 256, 256, 3), np.uint8), rng.normal(0, 0.1, 19200), f"{i}",
                known_landmarks=np.repeat(points[None], 30, 0)) for i in range(4)
    ]  # fmt: skip
    times: dict[int, float] = {}
    with answering(json.dumps({"rationale": "r", "errors": [], "score": 4}), 0.05) as url:
        for at_once in (1, 8):
            judge = Panel(ChatClient(Endpoint(url=url, model="m", concurrency=at_once)), PanelSettings(samples=3))
            began = time.perf_counter()
            judge.judge(clips)
            times[at_once] = time.perf_counter() - began
            answers = judge.backend.ledger.totals()["requests"]
            print(f"{at_once} at once: {answers} answers in {times[at_once]:.2f} s")
    print(f"8 at once are {times[1] / times[8]:.1f}x as fast as one by one")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "sanity", "panel", "learning", "heads", "asking"])
    parser.add_argument("footage", nargs="?", type=Path, default=os.environ.get("FLOWPORTRAIT_DATA"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "panel":
        return panel()
    if options.footage is None:
        parser.error("give the folder of the footage")
    work: dict[str, Callable[[Path], None]] = {
        "cost": cost, "sanity": sanity, "learning": learning, "heads": heads, "asking": asking,
    }  # fmt: skip
    return work[options.what](Path(options.footage))


if __name__ == "__main__":
    main()
