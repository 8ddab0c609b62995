"""Claims about the threads of the live avatar at the end of a program."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest


@pytest.mark.parametrize("last", ["stopped.set()", "pass", "sys.exit(0)"])
def test_a_thread_inside_native_code_does_not_abort_the_program_that_ends(last: str) -> None:
    # The same thread as a plain daemon aborts it ("terminate called without an active exception", exit code -6).
    code = f"""
import sys, time
from threading import Event
import torch
from flowportrait.live.threads import start_thread

stopped, data = Event(), torch.zeros(1000, 1000)

def work():
    while not stopped.is_set():
        data @ data

start_thread(work, stopped.set, "work")
time.sleep(0.3)
print(time.time(), flush=True)
{last}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    ended_at = time.time()
    assert (done.returncode, done.stderr) == (0, "")
    assert ended_at - float(done.stdout) < 3
