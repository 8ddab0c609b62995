"""Claims about ``flowportrait serve`` as a process: wrong options are a sentence, and Ctrl-C is a clean end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from flowportrait.cli import main
from flowportrait.commands.serve import check_origin, parse_ice_server
from flowportrait.errors import BadInput

WORDS = [sys.executable, "-m", "flowportrait", "serve", "--port", "0", "--size", "128"]


@pytest.mark.parametrize(("options", "words"), [
    (["--image", "nowhere.jpg"], "nowhere.jpg"), (["--size", "100"], "128"), (["--size", "129"], "even"),
    (["--size", "2000"], "1024"), (["--sessions", "0"], "at least 1"), (["--token", "short"], "16"),
    (["--token", "with blanks in its middle"], "blanks"), (["--origin", "example.org"], "https://example.org"),
    (["--origin", "https://example.org/path"], "without a path"), (["--ice-server", "http://example.org"], "stun"),
    (["--ice-server", "turn:example.org"], "login"), (["--certificate", "nowhere.pem"], "certificate"),
    (["--set", "letters=0"], "letters"), (["--set", "nothing=1"], "nothing"),
], ids=lambda one: " ".join(one) if isinstance(one, list) else "")  # fmt: skip
def test_options_that_cannot_be_used_are_a_sentence_before_anything_is_loaded(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the networks were loaded")

    monkeypatch.setattr("flowportrait.commands.serve._open_process", load)
    monkeypatch.setattr(sys, "argv", ["flowportrait", "serve", "--port", "0", *options])
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(main())
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_a_port_in_use_is_a_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(sys, "argv", ["flowportrait", "serve", "--port", port])
        with pytest.raises(SystemExit) as caught:
            raise SystemExit(main())
    assert caught.value.code == 2
    assert port in capsys.readouterr().err


def test_origins_and_ice_servers_are_read_as_browsers_write_them() -> None:
    assert check_origin("HTTPS://Example.org:8443/") == "https://example.org:8443"
    for wrong in (
        "https://user@example.org",
        "https://example.org?x",
        "ftp://example.org",
        "https://",
        "https://[",
        "*",
    ):
        with pytest.raises(BadInput, match="is no origin"):
            check_origin(wrong)
    server = parse_ice_server("turn:me:a%40b@example.org:3478?transport=tcp")
    assert (server.urls, server.username, server.credential) == (("turn:example.org:3478?transport=tcp",), "me", "a@b")


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command_answers_and_ends_on_ctrl_c(host: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as stream, subprocess.Popen([*WORDS, "--host", host], stderr=stream, stdout=stream) as process:
        try:
            address = None
            for _ in range(900):
                if address := re.search(r"is at (http://\S+?)/(?:#token=(\S+))? ", log.read_text()):
                    break
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.1)
            assert address is not None, log.read_text()
            url = re.sub("//[^:]+:", "//127.0.0.1:", address[1])
            assert httpx2.get(f"{url}/healthz").json()["size"] == 128
            assert (address[2] is None) == (host == "127.0.0.1")
            assert httpx2.get(f"{url}/live/config").status_code == (200 if address[2] is None else 401)
            process.send_signal(signal.SIGINT)
            assert process.wait(15) in (0, 130)
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()
