"""What judging costs: scores per second of every scorer in a batch and one by one, here and over HTTP; and how well
the measured panel knows damage on speakers that nothing was fitted on.

    python benchmarks/judge.py cost FOOTAGE          ratios within one run; FOOTAGE as in split.tsv
    python benchmarks/judge.py sanity FOOTAGE        the sanity set on the split ``dev``; the certificate that ships
    python benchmarks/judge.py panel                 the panel against a server that takes 50 ms per answer

FOOTAGE may be left out where FLOWPORTRAIT_DATA is set.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
import uvicorn

from flowportrait.judge.client import Server
from flowportrait.judge.endpoint import Endpoint
from flowportrait.judge.exhibit import Exhibit
from flowportrait.judge.fit_measured import speakers_clips
from flowportrait.judge.measured import MEASURED, MeasuredPanel, joined
from flowportrait.judge.panel import Panel, PanelSettings
from flowportrait.judge.remote import HttpReward
from flowportrait.judge.reward import JudgeReward
from flowportrait.judge.sanity import examine, keep_certificate
from flowportrait.judge.served import servable
from flowportrait.judge.server import create_app
from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.interface import Reward
from flowportrait.reward.scoring import score

ROWS = 16
CERTIFICATES = MEASURED.parent / "checked"


def rate(reward: Reward, batches: list[RewardBatch]) -> float:
    """Scores per second: what was drawn before is there, so the scorer alone is timed."""
    for batch in batches:
        score(reward, batch)
    began, rounds = time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - began < 0.5:
        for batch in batches:
            score(reward, batch)
        rounds += 1
    return rounds * sum(map(len, batches)) / (time.perf_counter() - began)


def cost(footage: Path) -> None:
    """The table of the module."""
    clips = speakers_clips(footage, split="dev", per_speaker=1)
    lot = joined([clip.batch for clip in clips])
    many = lot.select(torch.arange(ROWS) % len(clips))
    scorers: dict[str, Reward] = {**servable([]), "panel (measured)": JudgeReward(MeasuredPanel())}
    scorers = {name: scorer for name, scorer in scorers.items() if scorer.needs <= many.has}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_app(MeasuredPanel(), scorers)
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
    certificate = examine(MeasuredPanel(), clips)
    print(f"{len(clips)} clips of the split dev; {'passed' if certificate.passed else certificate.failed()}")
    for result in certificate.results:
        means = " → ".join(f"{mean:.2f}" for mean in result.means)
        foreign = ", ".join(f"{name} {fall:+.2f}" for name, fall in result.foreign.items())
        print(f"{result.aspect:15} {result.damage:17} {means}   order {result.order:.0%}  lost {result.lost}"
              f"  falls of the others: {foreign}")  # fmt: skip
    print(keep_certificate(certificate, CERTIFICATES))


def panel() -> None:
    """Answers per second of the client and its ledger."""
    answer = json.dumps({"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [{
        "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": json.dumps(
            {"rationale": "r", "errors": [], "score": 4})}}], "usage": {
                "prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}).encode()  # fmt: skip

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(0.05)
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    face = np.stack(np.meshgrid(np.linspace(64, 192, 22), np.linspace(60, 200, 22)), -1).reshape(-1, 2)[:478]
    rng = np.random.default_rng(0)
    clips = [
        Exhibit(rng.integers(0, 255, (30, 256, 256, 3), np.uint8), rng.normal(0, 0.1, 19200), f"{i}",
                places=np.repeat(face[None], 30, 0)) for i in range(4)
    ]  # fmt: skip
    times: dict[int, float] = {}
    for at_once in (1, 8):
        end = Endpoint(url=f"http://127.0.0.1:{server.server_address[1]}/v1", model="m", concurrency=at_once)
        judge = Panel(Server(end), PanelSettings(samples=3))
        began = time.perf_counter()
        judge.judge(clips)
        times[at_once] = time.perf_counter() - began
        answers = judge.backend.ledger.totals()["requests"]
        print(f"{at_once} at once: {answers} answers in {times[at_once]:.2f} s")
    print(f"8 at once are {times[1] / times[8]:.1f}x as fast as one by one")
    server.shutdown()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "sanity", "panel"])
    parser.add_argument("footage", nargs="?", type=Path, default=os.environ.get("FLOWPORTRAIT_DATA"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "panel":
        return panel()
    if options.footage is None:
        parser.error("give the folder of the footage")
    work: dict[str, Callable[[Path], None]] = {"cost": cost, "sanity": sanity}
    return work[options.what](Path(options.footage))


if __name__ == "__main__":
    main()
