"""``kcdp serve`` as a process: its one line, its end by a signal, being killed, and mistakes in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_parts import answer, head, heavy_png, png

import kcdp
from kcdp.bundle import Bundle
from kcdp.cli import main

REPOSITORY = Path(kcdp.__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")


class Server:
    """A running ``kcdp serve`` whose files, if it makes any, lie in ``folder``."""

    def __init__(self, bundle: Bundle, folder: Path, *arguments: str) -> None:
        home = folder.with_name("home")
        for path in (folder, home):
            path.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder), "KCDP_TOKEN": "",
                       "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(home)}  # fmt: skip
        del environment["KCDP_TOKEN"]
        line = [sys.executable, "-m", "kcdp", "serve", "--model", str(bundle.path), "--threads", "1", *arguments]
        self.process = subprocess.Popen(
            line, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        self.line = self.process.stdout.readline()
        found = re.search(r"http://([\d.]+):(\d+) ", self.line)
        assert found, self.process.communicate()
        self.address = ("127.0.0.1", int(found[2]))

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def ask(self, request: bytes) -> tuple[int, Any]:
        """Status and JSON of one request on a connection of its own."""
        with self.connect() as connection:
            connection.sendall(request)
            return parsed(answer(connection))

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Exit status and the rest of both streams after a signal."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


def parsed(response: bytes) -> tuple[int, Any]:
    before, _, body = response.partition(b"\r\n\r\n")
    return int(before.split()[1]), json.loads(body)


def tag_request(picture: bytes) -> bytes:
    return head(len(picture)) + picture


def left_behind(tmp_path: Path) -> set[str]:
    """What the server has made; ONNX Runtime keeps notes of its own, in the home and one among temporary files."""
    return {path.name for path in (tmp_path / "folder").rglob("*")} - {".ses"}


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n"


@pytest.fixture
def start(tiny_bundle: Bundle, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """``start(*arguments)``: a server on a free port, ended after the test."""
    started: list[Server] = []

    def begin(*arguments: str) -> Server:
        port = () if "--port" in arguments else ("--port", "0")
        started.append(Server(tiny_bundle, tmp_path / "folder", *port, *arguments))
        return started[-1]

    yield begin
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_requests_are_answered_before_the_end(
    start: Callable[..., Server], tiny_bundle: Bundle, number: int
) -> None:
    server = start()
    assert re.fullmatch(
        rf"http://127\.0\.0\.1:\d+ serves {re.escape(str(tiny_bundle.path))} "
        r"\(onnxruntime [\d.]+, CPUExecutionProvider, float32\)\n", server.line,
    )  # fmt: skip
    assert server.ask(HEALTH) == (200, {"status": "ready"})
    with server.connect() as running, server.connect() as idle:
        idle.sendall(HEALTH)
        assert parsed(answer(idle))[0] == 200
        running.sendall(tag_request(png())[:-10])  # begun, and not wholly sent
        time.sleep(0.3)
        server.process.send_signal(number)
        end = time.monotonic() + 5
        while server.ask(HEALTH) != (503, {"status": "draining"}):
            assert time.monotonic() < end
        assert server.ask(tag_request(png()))[0] == 503
        running.sendall(png()[-10:])
        status, told = parsed(answer(running))
        assert status == 200 and told["tags"][0]["label"] == "anger"
        assert idle.recv(1) == b""
    out, err = server.process.communicate(timeout=10)
    assert (server.process.returncode, out, err) == (0, "", "")


def test_grace_has_an_end(start: Callable[..., Server]) -> None:
    server = start("--grace", "0.5")
    with server.connect() as running:
        running.sendall(tag_request(png())[:-10])
        time.sleep(0.3)
        begun = time.monotonic()
        status, out, err = server.end()
        assert parsed(answer(running))[0] == 503
    assert time.monotonic() - begun < 3
    assert status == 1 and out == ""
    assert len(err.splitlines()) == 2
    assert err.splitlines()[-1] == "kcdp: error: not all requests were answered within 0.5 s"


def test_killed_in_the_middle_of_a_batch_and_started_again(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start("--batch-wait-ms", "1000")
    assert left_behind(tmp_path) == set()
    waiting = [server.connect() for _ in range(4)]
    for connection in waiting:
        connection.sendall(tag_request(heavy_png(64)))
    time.sleep(0.3)
    server.process.kill()
    assert server.process.wait(5) == -signal.SIGKILL
    for connection in waiting:
        with connection:
            assert answer(connection) == b""
    assert left_behind(tmp_path) == set()
    again = start("--port", str(server.address[1]))
    assert again.address == server.address
    status, told = again.ask(tag_request(png()))
    assert status == 200 and told["tags"][0]["label"] == "anger"
    assert again.end() == (0, "", "")
    assert left_behind(tmp_path) == set()


def test_only_mistakes_and_wanted_lines_are_printed(start: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    server = start("--access-log", "--token-file", str(tmp_path / "token"), "--host", "0.0.0.0")
    assert server.ask(HEALTH)[0] == 200
    assert server.ask(tag_request(png()))[0] == 401
    let_in = head(len(png()), more="Authorization: Bearer secret\r\n") + png()
    assert server.ask(let_in)[0] == 200
    with server.connect() as nonsense:
        nonsense.sendall(b"\x00\x01\x02\r\n\r\n")
        assert answer(nonsense).startswith(b"HTTP/1.1 400 ")
    status, out, err = server.end()
    assert status == 0 and err == ""
    assert [re.sub(r".*\"(.*)\" (\d+).*", r"\1 \2", line) for line in out.splitlines()] == [
        "GET /healthz HTTP/1.1 200", "POST /v1/tag HTTP/1.1 401", "POST /v1/tag HTTP/1.1 200",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threads", "0"], "--threads is 0; expected a whole number from 1"),
        (["--threads", "2000"], "--threads is 2000; expected at most 1024; leave it out for all cores"),
        (["--batch-size", "0"], "--batch-size is 0; expected a whole number from 1"),
        (["--workers-decode", "0"], "--workers-decode is 0; expected a whole number from 1"),
        (["--max-bytes", "-1"], "--max-bytes is -1; expected a whole number from 1"),
        (["--min-confidence", "2"], "--min-confidence is 2; expected a number from 0 to 1"),
        (["--batch-wait-ms", "5000"], "--batch-wait-ms is 5000; expected a number from 0 to 1000"),
        (["--queue", "3"], "queue is 3; expected at least max_pictures, 64"),
        (["--port", "70000"], "the port 70000; expected 0 to 65535"),
    ],
)
def test_mistakes_are_told_before_a_model_is_opened(
    arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--model", "folder/that-is-not-there.kcdp", *arguments]) == 2
    assert capfd.readouterr() == ("", f"kcdp: error: {said}\n")


def test_an_open_server_without_a_token_is_warned_about_and_a_taken_port_is_told(
    start: Callable[..., Server], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    server = start("--host", "0.0.0.0")
    port = server.address[1]
    line = [sys.executable, "-m", "kcdp", "serve", "--model", str(tiny_bundle.path), "--port", str(port)]
    second = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    assert second.returncode == 2 and second.stdout == ""
    assert second.stderr == (
        f"kcdp: error: cannot listen on 127.0.0.1:{port} (Address already in use); expected a free address of this "
        "machine; choose another --port or --host\n"
    )
    assert server.end() == (0, "", (
        f"kcdp: warning: http://0.0.0.0:{port} can be reached from other machines and asks for no token; "
        "use --token-file or KCDP_TOKEN\n"
    ))  # fmt: skip
