"""Measurements of FlowPortrait; ``python -m benchmarks`` lists them. Most run on one thread."""

import os

# Libraries of linear algebra read it when they are loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
