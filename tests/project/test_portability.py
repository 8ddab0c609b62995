"""The package assumes no POSIX system: what Windows lacks is used under a condition only, and text files are UTF-8."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests import ROOT

SOURCES = sorted((ROOT / "src").rglob("*.py"))
MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "readline", "crypt")
FUNCTIONS = {
    "os": ("fork", "forkpty", "getuid", "geteuid", "getgid", "getpgid", "setsid", "killpg", "mkfifo", "uname", "nice",
           "getloadavg", "sysconf", "sched_getaffinity", "chown", "fchmod", "O_NOFOLLOW", "O_NONBLOCK", "posix_spawn",
           "wait3", "wait4", "sendfile", "statvfs"),
    "signal": ("SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGPIPE", "SIGCHLD", "alarm",
               "setitimer", "pthread_sigmask", "sigwait"),
    "time": ("tzset",),
    "socket": ("AF_UNIX",),
}  # fmt: skip
"""What Python on Windows lacks."""
GUARDS = re.compile(r"win32|os\.name|hasattr\(|getattr\(|except (ImportError|ModuleNotFoundError|AttributeError)")


def posix_only(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each use of something that Windows lacks."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield node.lineno, node.module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in FUNCTIONS.get(node.value.id, ()):
                yield node.lineno, f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg == "preexec_fn":
            yield node.value.lineno, "preexec_fn"


def unguarded(text: str) -> list[str]:
    """Uses that no condition on the system stands before, in the twelve lines above or the line itself."""
    lines = text.splitlines()
    return [
        f"{line}: {name}"
        for line, name in posix_only(ast.parse(text))
        if not GUARDS.search("\n".join(lines[max(0, line - 13) : line + 2]))
    ]


def test_every_use_of_what_windows_lacks_has_a_condition() -> None:
    found = {path.relative_to(ROOT).as_posix(): unguarded(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path: uses for path, uses in found.items() if uses} == {}


def test_an_unconditional_use_is_found() -> None:
    assert unguarded("import os\nimport resource\n") == ["2: resource"]
    assert unguarded("import os, subprocess\nsubprocess.run([], preexec_fn=os.setsid)\n") != []
    assert unguarded("import sys\nif sys.platform != 'win32':\n    import resource\n") == []


def without_encoding(tree: ast.AST) -> Iterator[int]:
    """Lines that read or write a text file in the encoding of the system, which on Windows is not UTF-8."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(one.arg in (None, "encoding") for one in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        texts = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        text_mode = len(node.args) == 1 and any(set(text) <= set("rwax+t") for text in texts)
        if (name == "read_text" and not node.args) or (name == "write_text" and len(node.args) == 1):
            yield node.lineno
        elif name == "open" and isinstance(node.func, ast.Attribute):
            path = not (
                isinstance(node.func.value, ast.Name) and node.func.value.id in ("Image", "av", "tarfile", "wave")
            )
            if text_mode or (path and not node.args and [one.arg for one in node.keywords] in ([], ["newline"])):
                yield node.lineno


def test_text_files_are_read_and_written_as_utf_8_on_every_system() -> None:
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    found = {path: list(without_encoding(tree)) for path, tree in trees.items()}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_file_without_an_encoding_is_found() -> None:
    wrong = "path.read_text()", "path.write_text(text)", "path.open('w')", "path.open()", "path.open(newline='')"
    assert [list(without_encoding(ast.parse(line))) for line in wrong] == [[1]] * len(wrong)
    right = "path.read_text(encoding='utf-8')", "path.open('rb')", "Image.open(file)", "path.read_text('utf-8')"
    assert [list(without_encoding(ast.parse(line))) for line in right] == [[]] * len(right)
