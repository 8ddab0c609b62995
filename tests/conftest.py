"""One thread per process: the networks here are tiny, and threads that wait for each other cost ten times more."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
# The certificate that videos are signed with is made in the user's configuration folder: not in the real one.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="flowportrait-tests-")

import torch
from hypothesis import settings

atexit.register(shutil.rmtree, os.environ["XDG_CONFIG_HOME"], ignore_errors=True)
# A busy machine is no reason to fail.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
torch.set_num_threads(1)
