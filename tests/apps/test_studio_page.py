"""Claims about what the studio's server accepts from its page, and what it makes of it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import pytest

from flowportrait import samples
from flowportrait.errors import BadInput
from flowportrait.media.audio import read_sound
from flowportrait.media.write_video import write_video
from flowportrait.pipelines.request import AnimateRequest, SpeakerTurn
from flowportrait.provenance.manifest import read_signature
from flowportrait.speech import offered_voices
from flowportrait.studio.form import VideoForm, check_offered_voice, installed_voices, page_choices, page_sentence
from flowportrait.studio.job import JobProgress, JobStopped, RenderJob
from flowportrait.studio.render_queue import RenderQueue
from flowportrait.studio.server import Studio, studio_app
from flowportrait.studio.storage import EXAMPLES, StudioLimits, open_uploads
from flowportrait.web_server import bind_listener, make_server
from tests.apps.test_http_abuse import answer
from tests.apps.test_studio import photo, speech

SESSION = "0123456789abcdef"


def footage(folder: Path, frames: int = 20) -> Path:
    """A short video of a face that moves a little."""
    path = folder / "footage.mp4"
    import cv2

    face = cv2.cvtColor(cv2.imread(str(samples.portrait_path("beard"))), cv2.COLOR_BGR2RGB)[::2, ::2]
    pictures = [np.roll(face, index // 4, axis=1) for index in range(frames)]
    write_video(path, pictures, np.zeros(frames * 640, np.float32))
    return path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Studio, httpx2.Client]]:
    """A running studio, and a client of it."""
    studio = Studio(tmp_path_factory.mktemp("studio"), StudioLimits(megabytes=1))
    with bind_listener("127.0.0.1", 0) as listener:
        server = make_server(studio_app(studio))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        with httpx2.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=120) as client:
            yield studio, client
        server.should_exit = server.force_exit = True
        thread.join(10)
    studio.close()


def put(client: httpx2.Client, kind: str, name: str, data: bytes) -> httpx2.Response:
    return client.put(
        "/api/files", params={"kind": kind, "name": name}, content=data,
        headers={"Content-Type": "application/octet-stream"},
    )  # fmt: skip


# --- The form ---


def test_a_form_without_changes_asks_for_what_animate_does_by_default() -> None:
    (request,) = VideoForm(photo="example-beard", text="Hello.").requests(EXAMPLES.__getitem__)
    assert request == AnimateRequest(image=samples.portrait_path("beard"), text="Hello.")


def test_settings_that_do_not_apply_to_a_kind_of_video_are_left_out(tmp_path: Path) -> None:
    files = {"v": tmp_path / "v.mp4", "a": tmp_path / "a.wav"}.__getitem__
    (dubbed,) = VideoForm(kind="video", video="v", speech="recording", audio="a", head=2, best_of=3,
                          whole=False, guide={"sync": 2.0}).requests(files)  # fmt: skip
    assert dubbed == AnimateRequest(video=tmp_path / "v.mp4", audio=tmp_path / "a.wav")
    dubbed.check_inputs()


def test_what_is_missing_in_a_form_is_said() -> None:
    for data, said in (
        ({"text": "Hi."}, "no photo yet"),
        ({"kind": "video"}, "no video yet"),
        ({"photo": "example-beard", "speech": "recording"}, "no recording yet"),
        ({"kind": "two", "left_photo": "example-beard"}, "on the left has no recording"),
        ({"kind": "two", "left_photo": "example-beard", "left_audio": "example-speech"}, "on the right has no photo"),
        ({"photo": "example-beard", "text": "Hi.", "voice": "os:system"}, "no voice 'os:system'"),
    ):
        with pytest.raises(BadInput, match=said):
            VideoForm.model_validate(data).requests(EXAMPLES.__getitem__)


def test_a_page_cannot_name_modules_to_import() -> None:
    for name in ("flowportrait.speech.voices:HeartVoice", "os:system"):
        with pytest.raises(BadInput, match="no voice"):
            check_offered_voice(name)
    for name in ("", "espeak:sw", *installed_voices()):
        check_offered_voice(name)


def test_without_voices_the_page_says_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offered_voices, "find_spec", lambda name: None)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    choices = page_choices(StudioLimits())
    assert choices["voices"] == {}
    assert "pip install 'flowportrait[voice]'" in choices["no_voices"]


def test_sentences_name_the_controls_of_the_page() -> None:
    with pytest.raises(BadInput) as error:
        AnimateRequest(image=Path("a.jpg"), size=63).check()
    assert page_sentence(str(error.value)).startswith("“Size of the face” 63 is not possible")
    assert "--" not in page_sentence("It was cut at the end of the video. --loop repeats it.")


# --- Files ---


def test_an_upload_is_looked_at_at_once(served: tuple[Studio, httpx2.Client], tmp_path: Path) -> None:
    studio, client = served
    found = put(client, "photo", "face.png", photo(tmp_path).read_bytes()).json()
    assert (found["faces"], found["notes"], found["name"]) == (1, [], "face.png")
    assert client.get(f"/api/files/{found['id']}/picture.jpg", params={"whole": False}).content[:2] == b"\xff\xd8"
    assert put(client, "audio", "a.wav", speech(tmp_path, 0.5).read_bytes()).json()["seconds"] == pytest.approx(0.5)
    before = list(studio.uploads.folder.iterdir())
    for kind, name, data, status, said in (
        ("photo", "holiday.jpg", b"no picture", 400, "holiday.jpg"),
        ("audio", "../../etc/passwd", b"no sound", 400, "passwd"),
        ("video", "v.mp4", b"no video", 400, "v.mp4"),
        ("motion", "m.csv", b"no motion", 400, "m.csv"),
        ("photo", "empty.png", b"", 400, "empty.png is empty"),
        ("program", "a.exe", b"x", 422, "kind is not possible"),
    ):
        refused = put(client, kind, name, data)
        assert refused.status_code == status, refused.text
        assert said in refused.json()["detail"]
        assert str(studio.folder) not in refused.text
    head = b"PUT /api/files?kind=photo&name=large.png HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % (2**20 + 1)
    status, said = answer(client.base_url.port, head)
    assert (status, "larger than 1 MiB" in said) == (413, True)
    assert list(studio.uploads.folder.iterdir()) == before, "what cannot be used is deleted"


def test_files_are_named_by_id_alone(served: tuple[Studio, httpx2.Client], tmp_path: Path) -> None:
    uploads = open_uploads(tmp_path)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("x")
    for token in ("secret", "..", "/etc/passwd", "0" * 32, ""):
        with pytest.raises(BadInput, match="no longer here"):
            uploads.path(token)
    _, client = served
    body = {"photo": "../../etc/passwd", "text": "Hi."}
    assert client.post(f"/api/sessions/{SESSION}/videos", json=body).status_code == 400
    assert client.post(f"/api/sessions/{SESSION}/videos", json={"image": "/etc/passwd"}).status_code == 422


def test_a_tab_sees_its_own_videos_alone(served: tuple[Studio, httpx2.Client]) -> None:
    studio, client = served
    job = RenderJob(studio.queue.folder / f"{'a' * 32}.mp4", AnimateRequest(image=EXAMPLES["example-beard"]), SESSION)
    job.done.set()
    studio.queue.jobs[job.name] = job
    assert [one["id"] for one in client.get(f"/api/sessions/{SESSION}/videos").json()] == [job.name]
    other = "f" * 16
    assert client.get(f"/api/sessions/{other}/videos").json() == []
    for method, path in (("POST", "/stop"), ("POST", "/score"), ("DELETE", "")):
        assert client.request(method, f"/api/sessions/{other}/videos/{job.name}{path}").status_code == 404
    assert client.delete(f"/api/sessions/{SESSION}/videos/{job.name}").status_code == 200
    assert studio.queue.jobs == {}


def test_the_page_may_load_nothing_from_elsewhere(served: tuple[Studio, httpx2.Client]) -> None:
    _, client = served
    page = client.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "style=" not in page.text


def test_the_page_is_served_before_any_network_is_imported() -> None:
    code = (
        "import sys, flowportrait.studio.server as server\n"
        "from pathlib import Path\n"
        "import tempfile\n"
        "server.studio_app(server.Studio(Path(tempfile.mkdtemp()), server.StudioLimits()))\n"
        "print(sorted({'torch', 'mediapipe', 'cv2', 'scipy', 'transformers', 'gradio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- Progress ---


def test_progress_has_a_share_and_an_estimate() -> None:
    job = RenderJob(Path("a.mp4"), AnimateRequest())
    progress = JobProgress(job, minutes=1)
    seen = []
    for _ in progress.progress(range(20), 20, "following the face"):
        job.stage_began -= 0.1  # as if every step took a tenth of a second
        seen.append((job.stage, job.fraction(), job.seconds_left()))
    assert seen[0] == ("following the face", 0.0, None), "too little is known at first"
    assert seen[10][1] == 0.5
    assert seen[10][2] == pytest.approx(1.1, abs=0.1)
    job.stop.set()
    with pytest.raises(JobStopped):
        next(iter(progress.progress(range(3), 3)))


def test_drawing_ends_in_time() -> None:
    with pytest.raises(BadInput, match=r"Stopped after 0 minutes"):
        next(iter(JobProgress(RenderJob(Path("a.mp4"), AnimateRequest()), minutes=0).progress(range(3), 3)))


# --- Videos that are not drawn live ---


def finished(queue: RenderQueue, request: AnimateRequest, suffix: str = ".mp4") -> tuple[RenderJob, Path]:
    job = queue.submit(request, suffix=suffix)
    assert job.done.wait(300)
    assert job.error is None, job.error
    path = queue.signed(job.name)
    assert path is not None
    return job, path


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[RenderQueue]:
    made = RenderQueue(tmp_path / "videos", StudioLimits(seconds=1))
    yield made
    made.close()


def size_and_frames(path: Path) -> tuple[int, int, int]:
    with av.open(str(path)) as video:
        frames = sum(1 for _ in video.decode(video=0))
        return video.streams.video[0].width, video.streams.video[0].height, frames


@pytest.mark.slow
def test_a_video_is_dubbed_and_signed(queue: RenderQueue, tmp_path: Path) -> None:
    job, path = finished(queue, AnimateRequest(video=footage(tmp_path), audio=speech(tmp_path, 2.0)))
    assert not job.live
    assert size_and_frames(path) == (320, 320, 20)
    assert read_signature(path).intact
    assert job.cut.is_set()
    assert any("--loop" in note for note in job.notes)


@pytest.mark.slow
def test_two_people_talk(queue: RenderQueue, tmp_path: Path) -> None:
    sound = speech(tmp_path, 0.6)
    turns = tuple(SpeakerTurn(index, samples.portrait_path(name), sound) for index, name in enumerate(
        ("beard", "astronaut")))  # fmt: skip
    _, path = finished(queue, AnimateRequest(speakers=turns, turns=True, size=128))
    width, height, frames = size_and_frames(path)
    assert (width, height) == (256, 128)
    assert frames == pytest.approx(25 * (0.6 + 0.3 + 0.6), abs=9)
    assert read_sound(path).samples.any()
    assert read_signature(path).intact


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mov", ".gif"])
def test_other_kinds_of_file(queue: RenderQueue, tmp_path: Path, suffix: str) -> None:
    wanted: dict[str, Any] = {"image": photo(tmp_path), "audio": speech(tmp_path, 0.4), "size": 128, "crop": True}
    job, path = finished(queue, AnimateRequest(**wanted), suffix)
    assert path.suffix == suffix
    assert size_and_frames(path)[:2] == (128, 128)
    assert not job.live


@pytest.mark.slow
def test_the_best_of_several_is_named(queue: RenderQueue, tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"image": photo(tmp_path), "audio": speech(tmp_path, 0.6), "size": 128, "crop": True}
    job, _ = finished(queue, AnimateRequest(**wanted, best_of=2))
    assert any("best of 2" in note for note in job.notes)


@pytest.mark.slow
def test_warnings_of_the_pipeline_are_notes_of_the_video(queue: RenderQueue, tmp_path: Path) -> None:
    quiet = tmp_path / "quiet.wav"
    import wave

    with wave.open(str(quiet), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(16_000) * 0.06) * 20).astype("<i2").tobytes())
    job, _ = finished(queue, AnimateRequest(image=photo(tmp_path), audio=quiet, size=128, crop=True))
    assert any("The recording is" in note for note in job.notes)
    with pytest.raises(BadInput, match=r"lasts 0\.10 s"):
        queue.submit(AnimateRequest(image=photo(tmp_path), audio=speech(tmp_path, 0.1)))
