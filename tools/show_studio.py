"""Start the studio as a user would, time it, make a video with one click, and take a picture of the page.

    python -m tools.show_studio docs/images/studio.webp [--also FOLDER]

It prints the seconds from the command to a page that can be used, from the click to the video on the screen, and to the
finished file. It needs Chromium and playwright (the extra ``dev``).
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH, HEIGHT = 1280, 900
OPEN_MOUTH_SECONDS = 3.2
"""A moment of the example's sentence at which the mouth is open."""
PATIENCE = 300_000
"""Milliseconds to wait for the browser."""


def main() -> None:
    """Start, time, click, and take pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="picture of the page with a video that plays, .webp")
    parser.add_argument("--also", type=Path, help="folder for pictures of a phone and of the dark page")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        began = time.monotonic()
        command = [sys.executable, "-m", "flowportrait.cli", "studio", "--port", "0", "--folder", folder]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            address = server.stderr.readline().split(" at ")[1].split(" (")[0]
            page = open_page(browser, address)
            load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
            print(f"page usable after {time.monotonic() - began:.1f} s ({processor_seconds(server.pid)}at {load})")
            time_one_click(page, server.pid)
            save(page, options.picture)
            if options.also:
                take_more(browser, address, options.also)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
        browser.close()


def processor_seconds(pid: int) -> str:
    """Return how much processor time a process used, where Linux tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{(int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK'):.1f} s of processor "


def open_page(browser: Any, address: str, width: int = WIDTH, height: int = HEIGHT, **context: Any) -> Any:
    """Return a page that is ready to be used."""
    page = browser.new_context(viewport={"width": width, "height": height}, **context).new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    return page


def time_one_click(page: Any, pid: int) -> None:
    """Make the example speak, and leave the page in the middle of its sentence."""
    began = time.monotonic()
    page.click("#go")
    page.wait_for_selector("#screens video")
    print(f"video on the screen after {time.monotonic() - began:.1f} s")
    page.wait_for_selector("#download:visible")
    seconds = page.evaluate("document.querySelector('.result small').textContent")
    print(f"finished after {time.monotonic() - began:.1f} s ({processor_seconds(pid)}in all): {seconds}")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    page.click(".result .show")
    page.mouse.move(300, 30)
    while page.evaluate("document.querySelector('#screens video')?.currentTime ?? 0") < 0.1:
        page.wait_for_timeout(20)
    page.evaluate("document.querySelector('#screens video').pause()")
    page.evaluate(f"document.querySelector('#screens video').currentTime = {OPEN_MOUTH_SECONDS}")
    page.evaluate("document.querySelector('#screens video').controls = false")
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(500)


def save(page: Any, path: Path) -> None:
    """Write a picture of what the browser shows as webp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(path, quality=84, method=6)
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


def take_more(browser: Any, address: str, folder: Path) -> None:
    """Write pictures of a phone, of the dark page, and of every group of settings."""
    folder.mkdir(parents=True, exist_ok=True)
    phone, dark = open_page(browser, address, 390, 844), open_page(browser, address, color_scheme="dark")
    dark_phone = open_page(browser, address, 390, 844, color_scheme="dark")
    for name, page in (("phone", phone), ("dark", dark), ("dark-phone", dark_phone)):
        page.wait_for_timeout(500)
        page.screenshot(path=folder / f"studio-{name}.png")
    for kind in ("two", "photo"):
        dark.check(f"[name=kind][value={kind}]")
        dark.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        dark.screenshot(path=folder / f"studio-{kind}.png", full_page=True)


if __name__ == "__main__":
    main()
