"""A report is one page that needs nothing else and says what was measured."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from flowportrait.evaluation.comparison import compare_systems
from flowportrait.evaluation.report import draw_contact_sheet, write_animated_webp, write_html_report
from flowportrait.media.write_video import write_video


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "grey.mp4"
    write_video(path, [np.full((64, 64, 3), 40 + 5 * i, np.uint8) for i in range(20)], None)
    return path


def rows(shift: float) -> dict:
    return {f"c{i}": {"frames": 75, "frames_without_face": 1, "ler": 0.3 + 0.01 * i + shift} for i in range(12)}


def test_the_page_is_self_contained_and_complete(tmp_path, video) -> None:
    comparison = compare_systems({"real": rows(-0.2), "before": rows(0.0), "a<b": rows(-0.1)}, baseline="before")
    curves = [{"iteration": i, "reward": 0.1 * i, "kl": 0.0} for i in range(5)]
    path = write_html_report(
        tmp_path / "report.html",
        title="Before & after",
        comparison=comparison,
        videos={"before": video, "a<b": video},
        curves=curves,
        notes=["A note."],
    )
    page = path.read_text()
    assert not re.search(r"""(src|href)=['"]?(?!data:|#)\w""", page)
    assert page.count("data:video/mp4;base64,") == 2
    assert page.count("data:image/jpeg;base64,") == 2
    assert "Before &amp; after" in page
    assert "a&lt;b" in page
    assert "a<b" not in page
    assert "A note." in page
    assert "reward" in page
    assert "{{" not in page
    assert [p.name for p in tmp_path.glob(".report*")] == []


def test_without_real_footage_the_page_says_so(tmp_path) -> None:
    comparison = compare_systems({"only": rows(0.0)})
    page = write_html_report(
        tmp_path / "r.html", title="t", comparison=comparison, videos={}, curves=None, notes=[]
    ).read_text()
    assert "No real footage was given" in page
    assert "<video" not in page.split("</style>")[1].split("<script>")[0]


def test_a_moving_picture_shows_videos_beside_each_other_at_their_own_pace(video, tmp_path) -> None:
    target = tmp_path / "moving.webp"
    write_animated_webp([video, video], target, side=64, seconds=0.4)
    with Image.open(target) as picture:
        assert picture.size == (128, 64)
        assert picture.n_frames == 5
        for number in range(5):
            picture.seek(number)
            assert np.abs(np.asarray(picture.convert("RGB"), int) - (40 + 5 * 2 * number)).mean() < 4
        assert picture.info["duration"] == 80


def test_a_contact_sheet_has_a_column_per_frame_even_without_a_face(video) -> None:
    assert draw_contact_sheet(video, columns=4).shape[1] == 4 * 192 + 3 * 4
    assert draw_contact_sheet(video, columns=50).shape[1] == 20 * 192 + 19 * 4
