"""A server on loopback that answers as a model would, or fails in a way that is said beforehand; and keeps count."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
GOOD = '{"rationale": "Looks right.", "errors": [{"start": 0.1, "end": 0.2, "what": "soft p"}], "score": 4}'

Script = Callable[[int, dict[str, Any]], str]
"""(how-manieth request, its body) to the name of a fault or ``ok``."""


class FaultyServer:
    """``script`` says what happens to each request; ``happened`` counts it; ``reply`` writes a good answer's text."""

    def __init__(
        self, script: Script, reply: Callable[[dict[str, Any]], str] = lambda body: GOOD, port: int = 0
    ) -> None:
        self.happened: Counter[str] = Counter()
        self.times: list[float] = []
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self.over = threading.Event()
        outer, lock = self, threading.Lock()
        inside = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                nonlocal inside
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    inside += 1
                    outer.most_at_once = max(outer.most_at_once, inside)
                    number = len(outer.times)
                    outer.times.append(time.monotonic())
                    outer.bodies.append(body)
                    fault = script(number, body)
                    outer.happened[fault] += 1
                try:
                    getattr(self, fault)(body)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with lock:
                        inside -= 1

            def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, length: int = -1) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data) if length < 0 else length))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()

            def _completion(self, text: str | None, finish: str = "stop", refusal: str | None = None) -> bytes:
                message = {"role": "assistant", "content": text, "refusal": refusal}
                return json.dumps({
                    "id": "c", "object": "chat.completion", "created": 0, "model": "test", "usage": USAGE,
                    "choices": [{"index": 0, "finish_reason": finish, "message": message, "logprobs": None}],
                }).encode()  # fmt: skip

            def ok(self, body: dict[str, Any]) -> None:
                self._send(200, self._completion(reply(body)))

            def slow(self, body: dict[str, Any]) -> None:
                outer.over.wait(30)

            def busy(self, body: dict[str, Any]) -> None:
                self._send(429, b'{"error": {"message": "busy"}}', {"Retry-After": "0.3"})

            def broken(self, body: dict[str, Any]) -> None:
                self._send(500, b"oops")

            def cut(self, body: dict[str, Any]) -> None:
                # Gone in the middle of the body.
                self._send(200, self._completion(reply(body))[:40], length=400)
                self.close_connection = True

            def garbage(self, body: dict[str, Any]) -> None:
                self._send(200, b'{"choices": [{"mess')

            def truncated(self, body: dict[str, Any]) -> None:
                self._send(200, self._completion(GOOD[:40], "length"))

            def chatter(self, body: dict[str, Any]) -> None:
                self._send(200, self._completion("What a lovely face!"))

            def declines(self, body: dict[str, Any]) -> None:
                self._send(200, self._completion(None, refusal="I cannot judge people."))

            def eleven(self, body: dict[str, Any]) -> None:
                self._send(200, self._completion(GOOD.replace('"score": 4', '"score": 11')))

            def no_logprobs(self, body: dict[str, Any]) -> None:
                self._send(400, b'{"error": {"message": "logprobs are not supported by this model"}}')

            def no_temperature(self, body: dict[str, Any]) -> None:
                self._send(400, b'{"error": {"message": "Unsupported value: temperature"}}')

            def no_max_tokens(self, body: dict[str, Any]) -> None:
                self._send(400, b'{"error": {"message": "max_tokens: use max_completion_tokens instead"}}')

            def no_schema(self, body: dict[str, Any]) -> None:
                self._send(400, b'{"error": {"message": "response_format of type json_schema is not available"}}')

            def unprocessable(self, body: dict[str, Any]) -> None:
                self._send(422, b'{"error": {"message": "extra fields not permitted"}}')

            def unauthorised(self, body: dict[str, Any]) -> None:
                self._send(401, b'{"error": {"message": "bad key"}}')

            def log_message(self, *_: object) -> None:
                pass

        class Loopback(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Loopback(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> FaultyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Gone: connections are refused from now on."""
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
