"""Pictures of several requests share runs of the graph; what waits is bounded; what nobody waits for never runs."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest
from server_parts import PNG, Gate, answer, head, listening, metric, png, serving, talk, until

from kcdp.bundle import Bundle
from kcdp.runtime.items import Item
from kcdp.runtime.server.app import make_app
from kcdp.runtime.server.guard import LINGER
from kcdp.runtime.tagger import Tagger


@pytest.fixture
def tagger(tiny_bundle: Bundle) -> Iterator[Tagger]:
    with Tagger.load(tiny_bundle.path, threads=1, batch_size=4) as opened:
        yield opened


def post(client: httpx.AsyncClient, count: int = 1, **more: Any) -> asyncio.Future[httpx.Response]:
    """A request with ``count`` pictures, begun."""
    return asyncio.ensure_future(client.post("/v1/tag", files=[("p", ("a.png", png()))] * count, **more))


def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    end = monotonic() + seconds
    while not condition():
        assert monotonic() < end, "it never happened"
        sleep(0.005)


def test_pictures_that_wait_for_the_graph_share_its_next_runs(tagger: Tagger) -> None:
    gate = Gate(tagger, open=False)

    async def script(client: httpx.AsyncClient) -> Any:
        first = post(client)
        await until(gate.reached.is_set)
        others = [post(client) for _ in range(10)]
        await until(lambda: metric(service, "kcdp_stage_seconds_count", stage="decode") == 11)
        gate.open()
        return await asyncio.gather(first, *others)

    with serving(tagger, batch_wait=0.0) as service:
        assert {response.status_code for response in talk(service, script)} == {200}
        assert [len(names) for names in gate.seen] == [1, 4, 4, 2]
        assert metric(service, "kcdp_batch_size_count") == 4 and metric(service, "kcdp_batch_size_sum") == 11
        assert metric(service, "kcdp_batch_size_bucket", le="4.0") == 4
        assert metric(service, "kcdp_batch_size_bucket", le="2.0") == 2


def test_an_idle_graph_waits_for_more_but_not_long(tagger: Tagger) -> None:
    gate = Gate(tagger)

    async def script(client: httpx.AsyncClient) -> Any:
        took = []
        for count in (4, 3):  # as many as a batch takes do not wait; fewer do
            begun = monotonic()
            await asyncio.gather(*(post(client) for _ in range(count)))
            took.append(monotonic() - begun)
        return took

    with serving(tagger, batch_wait=1.0) as service:
        full, short = talk(service, script)
    assert [len(names) for names in gate.seen] == [4, 3]
    assert full < 1.0 <= short < 3.0


def test_one_large_request_is_cut_into_batches_in_order(tagger: Tagger) -> None:
    gate = Gate(tagger)
    files = [("p", (f"{n}.png", png((255, 0, 0) if n % 3 else (0, 0, 255)))) for n in range(11)]

    async def script(client: httpx.AsyncClient) -> Any:
        return await client.post("/v1/tag", files=files)

    with serving(tagger, batch_wait=0.05) as service:
        rows = talk(service, script).json()["tags"]
    assert [(row["path"], row["label"]) for row in rows] == [
        (f"{n}.png", "anger" if n % 3 else "sad") for n in range(11)
    ]
    assert sorted(name for names in gate.seen for name in names) == sorted(name for _, (name, _) in files)
    assert max(map(len, gate.seen)) <= 4


def test_a_failing_batch_answers_all_its_requests_and_only_those(
    make_bundle: Callable[..., Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = make_bundle(tmp_path / "fails.kcdp", fails_above=200)
    with Tagger.load(bundle.path, threads=1, batch_size=2) as tagger, caplog.at_level(logging.ERROR):
        gate = Gate(tagger, open=False)

        async def script(client: httpx.AsyncClient) -> Any:
            begun = []
            for count, red in enumerate((100, 100, 255, 100, 100), 1):
                begun.append(asyncio.ensure_future(client.post("/v1/tag", content=png((red, 0, 0)), headers=PNG)))
                # one after the other, so that it is known which share a run
                await until(lambda n=count: metric(service, "kcdp_stage_seconds_count", stage="decode") == n)
                await until(gate.reached.is_set)
            gate.open()
            return [response.status_code for response in await asyncio.gather(*begun)]

        with serving(tagger, batch_wait=0.0) as service:
            assert talk(service, script) == [200, 500, 500, 200, 200]
            assert service.pipeline.length == 0
    assert len([record for record in caplog.records if record.name == "kcdp.server"]) == 1


def test_a_full_queue_refuses_and_takes_again(tagger: Tagger) -> None:
    gate = Gate(tagger, open=False)

    async def script(client: httpx.AsyncClient) -> Any:
        first = post(client, 2)
        await until(gate.reached.is_set)
        too_many = await post(client, 2)
        second = post(client)
        await until(lambda: service.pipeline.length == 3)
        refused, health = await post(client), await client.get("/healthz")
        gate.open()
        return too_many, refused, health, await first, await second, await post(client, 3)

    with serving(tagger, queue=3, max_pictures=3, batch_wait=0.0) as service:
        too_many, refused, health, *answered = talk(service, script)
        assert metric(service, "kcdp_pictures_total") == 6 and service.pipeline.length == 0
    assert [response.status_code for response in (health, *answered)] == [200] * 4
    assert too_many.status_code == refused.status_code == 503 and refused.headers["retry-after"] == "1"
    assert too_many.json()["error"]["received"] == "2 more while 2 pictures are on their way"
    assert refused.json()["error"] == {"received": "1 more while 3 pictures are on their way", "fix": "try again later",
                                       "expected": "room for them: at most 3 together"}  # fmt: skip


def test_a_request_that_takes_too_long_is_dropped_before_the_graph(tagger: Tagger) -> None:
    gate = Gate(tagger, open=False)

    async def script(client: httpx.AsyncClient) -> Any:
        first = post(client)
        await until(gate.reached.is_set)
        late = await post(client, 2)
        gate.open()
        return await first, late, await post(client)

    with serving(tagger, timeout=1.0, batch_wait=0.0) as service:
        first, late, after = talk(service, script)
        eventually(lambda: service.pipeline.length == 0)
        assert metric(service, "kcdp_pictures_dropped_total") == 2
    assert late.status_code == 504 and late.json()["error"]["received"] == "no tags within 1 s"
    assert first.status_code in (200, 504) and after.status_code == 200
    assert gate.seen == [["a.png"], ["a.png"]]


def test_pictures_of_a_client_that_has_gone_are_neither_decoded_nor_run(tagger: Tagger) -> None:
    """Told by ASGI: the body, then the end of the connection, while all decoding threads are busy."""
    busy, go, decoded = threading.Semaphore(0), threading.Event(), []
    prepare = tagger.prepare

    def slow(item: Item) -> Any:
        decoded.append(item.name)
        busy.release()
        assert go.wait(20)
        return prepare(item)

    tagger.prepare = slow  # type: ignore[method-assign, assignment]
    gate = Gate(tagger)

    async def run() -> None:
        app, sent = make_app(service), []
        scope = {"type": "http", "method": "POST", "path": "/v1/tag", "raw_path": b"/v1/tag", "query_string": b"",
                 "headers": [(b"content-type", b"image/png")], "http_version": "1.1", "scheme": "http",
                 "server": ("t", 80), "client": ("t", 1), "root_path": ""}  # fmt: skip

        async def one(last: asyncio.Event) -> None:
            messages = [{"type": "http.request", "body": png(), "more_body": False}]

            async def receive() -> Any:
                if messages:
                    return messages.pop()
                await last.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                sent.append(message)

            await app(dict(scope), receive, send)

        gone, never = asyncio.Event(), asyncio.Event()
        stays = [asyncio.ensure_future(one(never)) for _ in range(2)]
        await until(lambda: len(decoded) == 2)
        goes = asyncio.ensure_future(one(gone))
        await until(lambda: service.pipeline.length == 3)
        gone.set()
        await goes
        assert [m["status"] for m in sent if m["type"] == "http.response.start"] == [499]
        go.set()
        await asyncio.gather(*stays)
        await until(lambda: service.pipeline.length == 0)

    with serving(tagger, workers=2, batch_wait=0.0) as service:
        asyncio.run(run())
        assert metric(service, "kcdp_pictures_dropped_total") == 1 and len(decoded) == 2
        assert sum(map(len, gate.seen)) == 2 and service.running == 0
        assert metric(service, "kcdp_requests_total", path="/v1/tag", status="499") == 1


def test_a_client_that_closes_its_socket_is_noticed(tagger: Tagger) -> None:
    gate = Gate(tagger, open=False)
    with serving(tagger, batch_wait=0.0) as service, listening(service) as address:
        with socket.create_connection(address) as first:
            first.sendall(head(len(png())) + png())
            eventually(gate.reached.is_set)
            with socket.create_connection(address) as second:
                second.sendall(head(len(png())) + png())
                eventually(lambda: service.pipeline.length == 2)
            with socket.create_connection(address) as third:  # in the middle of its body
                third.sendall(head(len(png())) + png()[:10])
                eventually(lambda: service.running >= 2)
            eventually(lambda: service.running == 1)
            gate.open()
            assert answer(first).startswith(b"HTTP/1.1 200 ")
        eventually(lambda: service.pipeline.length == 0)
        assert metric(service, "kcdp_pictures_dropped_total") == 1 and len(gate.seen) == 1


def test_a_slow_client_does_not_hold_up_others(tagger: Tagger) -> None:
    with serving(tagger) as service, listening(service) as address, socket.create_connection(address) as slow:
        slow.sendall(head(len(png())))
        for byte in png()[:-1]:
            slow.sendall(bytes([byte]))
        with socket.create_connection(address) as other:
            other.sendall(head(len(png())) + png())
            assert answer(other).startswith(b"HTTP/1.1 200 ")
        slow.sendall(png()[-1:])
        assert answer(slow).startswith(b"HTTP/1.1 200 ")


def test_a_head_that_never_ends_is_closed(tagger: Tagger) -> None:
    with serving(tagger, idle=0.3) as service, listening(service) as address:
        begun = monotonic()
        with socket.create_connection(address) as silent, socket.create_connection(address) as dripping:
            dripping.sendall(b"POST /v1/tag HTTP/1.1\r\n")
            with socket.create_connection(address) as again:  # its second request's head
                again.sendall(b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n")
                assert answer(again).startswith(b"HTTP/1.1 200 ")
                again.sendall(b"GET /healthz HTTP/1.1\r\nX")
                for connection in (silent, dripping, again):
                    connection.settimeout(5)
                    assert connection.recv(100) == b""
        assert 0.25 < monotonic() - begun < 3


def test_a_refused_body_that_goes_on_is_closed(tagger: Tagger) -> None:
    with serving(tagger, max_bytes=1000) as service, listening(service) as address:
        begun, sent = monotonic(), 0
        with socket.create_connection(address) as endless:
            endless.sendall(head(10**9))
            assert answer(endless).startswith(b"HTTP/1.1 413 ")
            with pytest.raises(OSError, match=r"reset|pipe"):
                while monotonic() - begun < LINGER + 5:
                    endless.sendall(b"x" * 1000)
                    sent += 1000
                    sleep(0.02)
        assert LINGER - 0.5 < monotonic() - begun < LINGER + 3 and sent < 10**6
        with socket.create_connection(address) as polite:  # one that ends its body can go on
            polite.sendall(head(2000) + bytes(2000) + head(len(png())) + png())
            assert answer(polite).startswith(b"HTTP/1.1 413 ")
            assert answer(polite).startswith(b"HTTP/1.1 200 ")


def test_a_connection_too_many_is_told_so(tagger: Tagger) -> None:
    health = b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n"
    with serving(tagger, connections=2) as service, listening(service) as address:
        with socket.create_connection(address) as first, socket.create_connection(address) as second:
            for connection in (first, second):
                connection.sendall(health)
                assert answer(connection).startswith(b"HTTP/1.1 200 ")
            with socket.create_connection(address) as third:
                third.sendall(health)
                told = answer(third)
                assert told.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in told
                assert b'"received": "one connection too many"' in told and third.recv(1) == b""
            first.sendall(health)
            assert answer(first).startswith(b"HTTP/1.1 200 ")
        eventually(lambda: _healthy(address))


def _healthy(address: tuple[str, int]) -> bool:
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n")
        return answer(connection).startswith(b"HTTP/1.1 200 ")


def test_closing_waits_for_what_is_inside_and_takes_nothing_more(tagger: Tagger) -> None:
    gate = Gate(tagger, open=False)
    threads = threading.active_count()

    async def script(client: httpx.AsyncClient) -> Any:
        running = post(client)
        await until(gate.reached.is_set)
        stuck = service.close(0.05)
        late = await post(client)
        gate.open()
        return stuck, late.status_code, (await running).status_code

    with serving(tagger) as service:
        assert talk(service, script) == (False, 503, 200)
        assert service.close(5) and service.close(5)
    assert threading.active_count() == threads
