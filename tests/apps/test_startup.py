"""What a command imports before it answers: modules rather than seconds are counted, which vary from machine to
machine; ``python -m benchmarks startup`` measures the seconds."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait import cli
from flowportrait.errors import BadInput
from flowportrait.extras import EXTRAS, require_extra
from flowportrait.media.containers import silence_native_stderr
from flowportrait.rl.recipes import CARDS, recipe_texts
from flowportrait.terminal import no_garbage_collection

COMMANDS = [*cli.COMMANDS]
LISTS = (["posttrain", "recipes"], ["posttrain", "policies"], ["evaluate", "portraits", "--list"])
HEAVY = {"torch", "scipy", "cv2", "av", "transformers", "mediapipe", "onnxruntime", "rich", "PIL", "safetensors"}
"""What takes longest to import, and none of it is needed to print a list or a help page."""
NOT_TO_ANIMATE = {"openai", "fastapi", "uvicorn", "matplotlib", "peft", "accelerate", "starlette", "httpx2", "pydantic"}
"""Packages of extras."""
NOT_TO_GET_READY = {*NOT_TO_ANIMATE, "transformers", "sounddevice", "mediapipe", "sympy", "torchmetrics",
                    "scipy.signal", "scipy.stats", "torch._dynamo", "torch._inductor"}  # fmt: skip

IMPORTED = "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
BLOCK = """
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""


def imported_by(code: str) -> set[str]:
    """Modules that a fresh interpreter has imported after ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{code}\n{IMPORTED}"], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def run_blocked(blocked: set[str], arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The command line where the packages ``blocked`` are not installed."""
    code = f"import sys\nBLOCKED = {blocked!r}{BLOCK}from flowportrait.cli import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=folder)


def test_importing_the_package_imports_nothing_of_weight() -> None:
    assert not imported_by("import flowportrait") & {*HEAVY, "numpy", "argparse"}


def test_every_help_page_and_list_is_printed_without_the_heavy_packages() -> None:
    helps = "".join(f"answer(*{name.split()!r}, '--help')\n" for name in COMMANDS)
    lists = "".join(f"answer(*{words!r})\n" for words in LISTS)
    found = imported_by(
        "import contextlib, io\nfrom flowportrait.cli import main\n"
        "def answer(*words):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as page, contextlib.suppress(SystemExit):\n"
        "        assert main(words) == 0, words\n"
        "    assert len(page.getvalue()) > 100, words\n"
        f"answer('--help')\n{helps}{lists}"
    )
    assert not found & (HEAVY | NOT_TO_ANIMATE)


def test_an_animator_is_ready_without_what_only_training_and_judging_need(tmp_path: Path) -> None:
    Image.fromarray(astronaut()).save(tmp_path / "a.png")
    found = imported_by(
        "from flowportrait import Animator\nfrom flowportrait.media.image import read_image\n"
        "from flowportrait.media.portrait import Portrait\nfrom pathlib import Path\n"
        f"Animator.from_pretrained('rl')\nPortrait.from_image(read_image(Path({str(tmp_path / 'a.png')!r})), None)"
    )
    assert "torch" in found
    assert not found & NOT_TO_GET_READY


def test_signing_and_marking_a_video_loads_no_statistics() -> None:
    found = imported_by("import flowportrait.provenance.publish, flowportrait.pipelines.turns")
    assert "flowportrait.provenance.watermark" in found
    assert not found & {"scipy.stats", "scipy.ndimage", "scipy.optimize"}


def test_animate_makes_a_video_where_the_packages_of_other_commands_are_not_installed(tmp_path: Path) -> None:
    Image.fromarray(astronaut()[:400, 60:400]).save(tmp_path / "a.png")
    wave = 0.2 * np.sin(np.arange(6400) * 0.06)
    wavfile.write(tmp_path / "a.wav", 16000, (32767 * wave).astype(np.int16))
    done = run_blocked(
        {*NOT_TO_ANIMATE, "transformers", "gradio", "torchmetrics", "sounddevice"},
        ["animate", "--image", "a.png", "--audio", "a.wav", "--output", "a.mp4", "--json"], tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 10
    assert (tmp_path / "a.mp4").stat().st_size > 1000


def test_the_list_that_is_read_from_the_files_is_that_of_the_cards() -> None:
    wanted = {n: {"source": c.source, "verified": c.verified, "reading": c.reading} for n, c in CARDS.items()}
    assert list(recipe_texts().items()) == list(wanted.items())


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("accelerate", ["posttrain", "--prompts", ".", "--output", "run"], "train"),
        ("uvicorn", ["judge", "serve"], "serve"),
        ("matplotlib", ["evaluate", "--checkpoint", "rl", "--prompts", ".", "--output", "out"], "report"),
        ("torchmetrics", ["demo", "--output", "out"], "demo"),
    ],
)
def test_a_command_whose_extra_is_missing_names_it_in_one_sentence(
    missing: str, arguments: list[str], extra: str, tmp_path: Path
) -> None:
    done = run_blocked({missing}, arguments, tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"This needs the package {missing}: run pip install 'flowportrait[{extra}]'.\n"


def test_require_returns_the_module_or_names_the_extra() -> None:
    assert require_extra("judge", "json") is json
    with pytest.raises(BadInput, match=r"the package flowportrait_no_such: run pip install 'flowportrait\[vae\]'"):
        require_extra("vae", "flowportrait_no_such.part")
    modules = [module for modules in EXTRAS.values() for module in modules]
    assert len(set(modules)) == len(modules)


def test_a_broken_package_is_not_taken_for_one_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flowportrait_broken.py").write_text("import flowportrait_lacks_this")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="flowportrait_lacks_this"):
        require_extra("vae", "flowportrait_broken")


def test_the_whole_of_mediapipe_can_be_imported_after_the_landmarker(tmp_path: Path) -> None:
    found = imported_by(
        "from flowportrait.media.faces import FaceTracker\n"
        "with FaceTracker(still=True): pass\n"
        "assert not [name for name in sys.modules if name.startswith(('mediapipe', 'matplotlib', 'sounddevice'))]\n"
        "import mediapipe\n"
        "mediapipe.tasks.vision.FaceLandmarker, mediapipe.tasks.vision.drawing_utils, mediapipe.Image\n"
        "with FaceTracker(still=True): pass"
    )
    assert "matplotlib" in found


def test_a_command_leaves_signal_handlers_and_warnings_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)], warnings.showwarning
    assert cli.main(["posttrain", "recipes"]) == 0
    assert cli.main(["posttrain", "recipes", "show", "none"]) == 2
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert ([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)], warnings.showwarning) == before


def test_overlapping_silences_leave_standard_error_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "overlap.py").write_text(OVERLAP)
    done = subprocess.run([sys.executable, tmp_path / "overlap.py"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.splitlines() == ["inside, from Python", "inside, from Python", "after, from Python",
                                        "after, native"]  # fmt: skip


OVERLAP = """
import os, sys
from flowportrait.media.containers import silence_native_stderr

first, second = silence_native_stderr(), silence_native_stderr()
first.__enter__()
second.__enter__()
os.write(2, b"native chatter\\n")
print("inside, from Python", file=sys.stderr)
first.__exit__(None, None, None)          # not the order of their beginnings, as among threads
os.write(2, b"native chatter\\n")
print("inside, from Python", file=sys.stderr)
second.__exit__(None, None, None)
print("after, from Python", file=sys.stderr)
os.write(2, b"after, native\\n")
"""


def test_many_threads_that_are_silent_at_once_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "threads.py").write_text(THREADS)
    done = subprocess.run([sys.executable, tmp_path / "threads.py"], capture_output=True, text=True)
    assert done.stdout.strip() == "the same file"
    assert sorted(done.stderr.split()) == sorted([*(str(n) for n in range(800)), "end"])


THREADS = """
import os, sys, threading
from flowportrait.media.containers import silence_native_stderr

def work(first):
    for number in range(first, first + 100):
        with silence_native_stderr():
            os.write(2, b"chatter\\n")
            print(f"{number}\\n", end="", file=sys.stderr)

before = os.fstat(2)
threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
after = os.fstat(2)
print("the same file" if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino) else "another file")
os.write(2, b"end\\n")
"""


def test_a_closed_standard_error_stays_closed_and_stops_nothing() -> None:
    code = (
        "import os, sys\nfrom flowportrait.media.containers import silence_native_stderr\n"
        "with silence_native_stderr(): pass\n"
        "os.close(2)\n"
        "with silence_native_stderr(), silence_native_stderr(): print('worked')\n"
        "try: os.fstat(2)\nexcept OSError: print('closed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["worked", "closed"]


def test_silence_in_this_process_keeps_what_python_prints(capfd: pytest.CaptureFixture[str]) -> None:
    def chatter() -> None:
        with silence_native_stderr():
            os.write(2, b"native")

    threads = [threading.Thread(target=chatter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again"


def test_garbage_is_collected_again_after_the_model_is_loaded(tmp_path: Path) -> None:
    before = gc.isenabled()
    with no_garbage_collection():
        assert not gc.isenabled()
        with no_garbage_collection():
            pass
        assert not gc.isenabled(), "the outer block goes on"
    assert gc.isenabled() == before
    assert cli.main(["animate", "--image", str(tmp_path / "none.png"), "--audio", "a.wav", "--output", "o.mp4"]) == 2
    assert gc.isenabled() == before
