"""The server's endpoints in this process: rows, refusals, limits, the token, and what broken graphs do to it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from server_parts import PNG, Gate, metric, png, serving, talk, until

from kcdp.bundle import Bundle
from kcdp.errors import KcdpError
from kcdp.labels import LABELS
from kcdp.runtime.command_serve import read_token
from kcdp.runtime.server.app import make_app
from kcdp.runtime.server.options import FULL_BODIES, ServerOptions
from kcdp.runtime.server.running import address_of, bind, others_can_reach
from kcdp.runtime.tagger import Tagger


@pytest.fixture
def tagger(tiny_bundle: Bundle) -> Iterator[Tagger]:
    with Tagger.load(tiny_bundle.path, threads=1, batch_size=4) as opened:
        yield opened


def said(response: httpx.Response) -> tuple[int, dict[str, str]]:
    """Status and the three parts of an error."""
    assert set(response.json()) == {"error"} and set(response.json()["error"]) == {"received", "expected", "fix"}
    return response.status_code, response.json()["error"]


def test_every_picture_is_a_row_in_order(tagger: Tagger, label_colours: dict[str, tuple[int, int, int]]) -> None:
    files = [("pictures", (f"{label}.png", png(colour))) for label, colour in label_colours.items()]
    files[2:2] = [("other", ("broken.png", png()[:40])), ("pictures", ("empty.png", b""))]

    async def script(client: httpx.AsyncClient) -> Any:
        return await client.post("/v1/tag", files=files)

    with serving(tagger) as service:
        response = talk(service, script)
        assert metric(service, "kcdp_pictures_total") == 8 and metric(service, "kcdp_picture_failures_total") == 2
    rows, model = response.json()["tags"], response.json()["model"]
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    names = ["surprise.png", "happy.png", "broken.png", "empty.png", *(f"{label}.png" for label in LABELS[2:])]
    assert [row["path"] for row in rows] == names
    assert [row["label"] for row in rows] == ["surprise", "happy", None, None, *LABELS[2:]]
    for row, tag in zip(rows[4:], tagger.tag([png(label_colours[label]) for label in LABELS[2:]]), strict=True):
        assert row["scores"] == {k: round(v, 6) for k, v in tag.scores.items()} and row["error"] is None
        assert row["confidence"] == max(row["scores"].values()) and (row["frames"], row["spread"]) == (1, 0.0)
    assert rows[2]["error"].startswith("broken.png is truncated or damaged") and rows[2]["scores"] == {}
    assert rows[3]["error"] == "empty.png is empty (0 bytes); expected a picture file; copy it again"
    assert rows[3]["frames"] == 0 and rows[3]["spread"] is None
    assert model == {"name": "tiny.kcdp", "digest": tagger.manifest.digest, "precision": "float32",
                     "backend": "onnxruntime"}  # fmt: skip


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/x-anything; q=1", "application/octet-stream"])
def test_one_picture_as_the_body(tagger: Tagger, kind: str) -> None:
    async def script(client: httpx.AsyncClient) -> Any:
        return await client.post("/v1/tag", content=png((0, 0, 255)), headers={"content-type": kind})

    with serving(tagger) as service:
        (row,) = talk(service, script).json()["tags"]
    assert (row["path"], row["label"]) == ("<picture 0>", "sad")


FORM = {"content-type": "multipart/form-data; boundary=x"}
TEXT = b'--x\r\nContent-Disposition: form-data; name="captionz"\r\n\r\nhi\r\n--x--\r\n'


@pytest.mark.parametrize(
    ("headers", "content", "status", "received", "fix"),
    [
        ({}, b"x", 415, "no Content-Type", "with curl: -F pictures=@a.png -F pictures=@b.webp"),
        ({"content-type": "text/plain"}, b"x", 415, "Content-Type text/plain",
         "with curl: -F pictures=@a.png -F pictures=@b.webp"),
        ({**PNG, "content-encoding": "gzip"}, b"x", 415, "Content-Encoding gzip", "send the pictures as they are"),
        (PNG, b"", 400, "an empty body", "with curl: --data-binary @a.png"),
        ({"content-type": "multipart/form-data"}, b"--x--", 400,
         "multipart/form-data that cannot be read (Missing boundary in multipart.)", ""),
        (FORM, b"nonsense", 400, "multipart/form-data that cannot be read (Invalid multipart data.)", ""),
        (FORM, TEXT[:-6], 400, "multipart/form-data that cannot be read (It ends before its last boundary.)", ""),
        (FORM, b"--x--\r\n", 422, "no pictures", "with curl: -F pictures=@a.png"),
        (FORM, TEXT, 422, "the text field 'captionz' (did you mean 'captions'?)",
         "send pictures as files: parts with a filename"),
        (FORM, TEXT.replace(b"captionz", b"captions"), 422, "no pictures", "with curl: -F pictures=@a.png"),
        (FORM, TEXT.replace(b"hi", b"x" * 5000), 400,
         "multipart/form-data that cannot be read (Part exceeded maximum size of 4KB.)", ""),
    ],
)  # fmt: skip
def test_requests_that_are_none(
    tagger: Tagger, headers: dict[str, str], content: bytes, status: int, received: str, fix: str
) -> None:
    async def script(client: httpx.AsyncClient) -> Any:
        bad = await client.post("/v1/tag", content=content, headers=headers)
        return bad, await client.post("/v1/tag", content=png(), headers=PNG)

    with serving(tagger) as service:
        bad, good = talk(service, script)
        assert said(bad)[0] == status and said(bad)[1]["received"] == received and said(bad)[1]["fix"] == fix
        assert good.status_code == 200 and service.running == 0
        assert metric(service, "kcdp_requests_total", path="/v1/tag", status=str(status)) == 1


def test_captions_are_for_bundles_that_take_them(tagger: Tagger, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [("pictures", (f"{n}.png", png())) for n in range(2)]
    (known,) = tagger.tag([png()])
    heard: list[Any] = []
    prepare = tagger.prepare
    monkeypatch.setattr(tagger, "prepare", lambda item: heard.append((item.name, item.caption)) or prepare(item))

    async def script(client: httpx.AsyncClient) -> Any:
        return [await client.post("/v1/tag", files=files, data={"captions": texts})
                for texts in (["a", ""], ["a"], ["a", "b", "c"])]  # fmt: skip

    with serving(tagger) as service:
        assert [said(response)[1]["received"] for response in talk(service, script)] == ["captions"] * 3 and not heard
        monkeypatch.setattr(type(tagger.session), "takes_knowledge", property(lambda _: True))
        monkeypatch.setattr(tagger, "finish", lambda prepared: [replace(known, path=one.name) for one in prepared])
        two, one, three = talk(service, script)
    assert two.status_code == one.status_code == 200
    assert sorted(heard[:2]) == sorted(heard[2:]) == [("0.png", "a"), ("1.png", None)]
    assert said(three)[0] == 422 and said(three)[1]["received"] == "3 captions for 2 pictures"


def test_other_paths_and_methods_are_said_in_the_same_form(tagger: Tagger) -> None:
    async def script(client: httpx.AsyncClient) -> Any:
        return await client.get("/v2"), await client.get("/v1/tag"), await client.get("/docs")

    with serving(tagger) as service:
        missing, wrong, docs = talk(service, script)
        assert metric(service, "kcdp_requests_total", path="other", status="404") == 2
    assert said(missing) == (404, {"received": "the path /v2", "fix": "", "expected":
                                   "one of /healthz, /metrics, /openapi.json, /v1/model, /v1/tag"})  # fmt: skip
    assert said(wrong) == (405, {"received": "GET /v1/tag", "expected": "POST", "fix": ""})
    assert wrong.headers["allow"] == "POST" and docs.status_code == 404


def test_the_model_describes_itself_without_paths_of_the_server(tagger: Tagger) -> None:
    async def script(client: httpx.AsyncClient) -> Any:
        return await client.get("/v1/model")

    with serving(tagger, max_bytes=1000) as service:
        response = talk(service, script)
    told = response.json()
    assert told["labels"] == list(LABELS) and told["preprocess"]["size"] == 32 and told["target"] == "portable"
    assert told["digest"] == tagger.manifest.digest and told["precision"] == {"default": "float32"}
    assert told["backend"] == tagger.session.describe() and told["captions"] is False and told["batch_size"] == 4
    assert told["limits"] == {"max_bytes": 1000, "max_pictures": 64, "timeout": 10.0}
    assert str(tagger.session.bundle.path.parent) not in response.text


@pytest.mark.parametrize("length", [True, False])
def test_a_body_is_read_no_further_than_is_allowed(tagger: Tagger, length: bool) -> None:
    taken: list[int] = []

    async def body() -> Any:
        for _ in range(1000):
            taken.append(100)
            yield b"x" * 100

    async def script(client: httpx.AsyncClient) -> Any:
        headers = {**PNG, **({"content-length": "100000"} if length else {})}
        return await client.post("/v1/tag", content=body(), headers=headers)

    with serving(tagger, max_bytes=1000) as service:
        status, error = said(talk(service, script))
    assert (status, error["expected"]) == (413, "at most 1000 bytes")
    assert error["received"] == ("a body of 100000 bytes" if length else "a body of more than 1000 bytes")
    assert sum(taken) <= (100 if length else 1100)


def test_pictures_of_a_request_are_limited(tagger: Tagger) -> None:
    async def script(client: httpx.AsyncClient) -> Any:
        return [await client.post("/v1/tag", files=[("p", ("a.png", png()))] * count) for count in (3, 4)]

    with serving(tagger, max_pictures=3) as service:
        fits, more = talk(service, script)
        assert metric(service, "kcdp_pictures_total") == 3
    assert fits.status_code == 200
    assert said(more) == (422, {"received": "more than 3 parts of one kind", "expected": "at most 3 pictures",
                                "fix": "send them in several requests"})  # fmt: skip


def test_files_are_never_spooled_to_disk(tagger: Tagger, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: pytest.fail("it went to disk"))

    async def script(client: httpx.AsyncClient) -> Any:
        return await client.post("/v1/tag", files={"p": ("big.png", png() + bytes(3_000_000))})

    with serving(tagger, max_bytes=4_000_000) as service:
        assert talk(service, script).json()["tags"][0]["label"] == "anger"


def test_bodies_together_are_limited(tagger: Tagger) -> None:
    """As many whole bodies as are allowed arrive and stop before their last byte; one more finds no room."""

    async def script(client: httpx.AsyncClient) -> Any:
        go, sent = asyncio.Event(), []

        async def body() -> Any:
            yield b"x" * 999
            sent.append(1)
            await go.wait()
            yield b"x"

        slow = [asyncio.ensure_future(client.post("/v1/tag", content=body(), headers=PNG)) for _ in range(FULL_BODIES)]
        await until(lambda: len(sent) == FULL_BODIES)
        refused = await client.post("/v1/tag", content=b"x" * 99, headers=PNG)
        go.set()
        return refused, await asyncio.gather(*slow), await client.post("/v1/tag", content=b"x" * 99, headers=PNG)

    with serving(tagger, max_bytes=1000) as service:
        refused, slow, after = talk(service, script)
    assert said(refused)[0] == 503 and said(refused)[1]["received"] == "a body while others fill the memory"
    assert refused.headers["retry-after"] == "1" and {r.status_code for r in slow} == {200}
    assert after.status_code == 200


def test_a_body_that_does_not_end_in_time(tagger: Tagger) -> None:
    async def script(client: httpx.AsyncClient) -> Any:
        async def body() -> Any:
            yield b"x"
            await asyncio.sleep(5)

        return await client.post("/v1/tag", content=body(), headers=PNG)

    with serving(tagger, timeout=0.1) as service:
        status, error = said(talk(service, script))
        assert service.running == 0 and metric(service, "kcdp_pictures_total") == 0
    assert (status, error["received"]) == (408, "not all of the request within 0.1 s")


@pytest.mark.parametrize(("name", "charset", "path"), [
    ("+2AA-", "utf-7", "\\ud800"), ("", "utf-8", "<picture 0>"), ("\u00e9.png", "utf-8", "\u00e9.png"),
    ("a.png", "nonsense", "a.png"), ("../../a.png", "utf-8", "../../a.png"),
])  # fmt: skip
def test_names_of_files(tagger: Tagger, name: str, charset: str, path: str) -> None:
    disposition = f'--x\r\nContent-Disposition: form-data; name="p"; filename="{name}"\r\n\r\n'.encode()

    async def script(client: httpx.AsyncClient) -> Any:
        kind = f"multipart/form-data; boundary=x; charset={charset}"
        content = disposition + png() + b"\r\n--x--\r\n"
        return await client.post("/v1/tag", content=content, headers={"content-type": kind})

    with serving(tagger) as service:
        (row,) = talk(service, script).json()["tags"]
    assert (row["path"], row["label"]) == (path, "anger")


def test_the_token(tagger: Tagger) -> None:
    tokens = {"none": None, "wrong": "Bearer secret2", "basic": "Basic secret", "right": "bearer secret"}

    async def script(client: httpx.AsyncClient) -> Any:
        answers = {}
        for name, value in tokens.items():
            headers = {**PNG, **({"authorization": value} if value else {})}
            for path in ("/v1/model", "/metrics", "/healthz"):
                answers[path, name] = await client.get(path, headers=headers)
            answers["/v1/tag", name] = await client.post("/v1/tag", headers=headers, content=png())
        return answers

    with serving(tagger, token="secret") as service:
        assert "secret" not in repr(service.options)
        answers = talk(service, script)
    for (path, name), response in answers.items():
        if path == "/healthz" or name == "right":
            assert response.status_code == 200, (path, name)
        else:
            status, error = said(response)
            assert status == 401 and response.headers["www-authenticate"] == 'Bearer realm="kcdp"'
            assert error["received"] == ("a wrong token" if name == "wrong" else "no token")


def test_a_wrong_token_is_refused_before_the_body_is_read(tagger: Tagger) -> None:
    async def script(client: httpx.AsyncClient) -> Any:
        async def body() -> Any:
            yield pytest.fail("it was read")

        return await client.post("/v1/tag", content=body(), headers=PNG)

    with serving(tagger, token="secret") as service:
        assert talk(service, script).status_code == 401


def test_a_graph_that_fails_answers_500_and_the_server_goes_on(
    make_bundle: Callable[..., Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = make_bundle(tmp_path / "fails.kcdp", fails_above=200)

    async def script(client: httpx.AsyncClient) -> Any:
        return [await client.post("/v1/tag", content=png(colour), headers=PNG)
                for colour in ((100, 0, 0), (255, 0, 0), (100, 0, 0))]  # fmt: skip

    with Tagger.load(bundle.path, threads=1) as tagger, serving(tagger) as service, caplog.at_level(logging.ERROR):
        before, failed, after = talk(service, script)
        assert metric(service, "kcdp_batch_failures_total") == 1 and service.pipeline.length == 0
    assert said(failed) == (500, {"received": "the model failed on a batch with these pictures", "expected": "tags",
                                  "fix": "see the server's log"})  # fmt: skip
    assert before.status_code == after.status_code == 200
    (record,) = [record for record in caplog.records if record.name == "kcdp.server"]
    assert record.getMessage().startswith("kcdp: error: ONNX Runtime failed on ") and "\n" not in record.getMessage()


def test_logits_that_are_not_finite_are_a_row(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "nan.kcdp", bias=[np.nan] * 6)

    async def script(client: httpx.AsyncClient) -> Any:
        return await client.post("/v1/tag", files={"p": ("a.png", png())})

    with Tagger.load(bundle.path, threads=1) as tagger, serving(tagger) as service:
        response = talk(service, script)
    (row,) = response.json()["tags"]
    assert response.status_code == 200 and row["label"] is None
    assert row["error"] == "a.png: the graph gave logits that are not finite"


def test_what_breaks_beside_pictures_and_graph_is_500_too(tagger: Tagger, caplog: pytest.LogCaptureFixture) -> None:
    prepare, broken = tagger.prepare, [True]

    def breaks(item: Any) -> Any:
        if broken.pop():
            raise MemoryError("no room")
        return prepare(item)

    tagger.prepare = breaks  # type: ignore[method-assign]

    async def script(client: httpx.AsyncClient) -> Any:
        first = await client.post("/v1/tag", content=png(), headers=PNG)
        broken.append(False)
        return first, await client.post("/v1/tag", content=png(), headers=PNG)

    with serving(tagger) as service:
        first, second = talk(service, script)
        assert service.pipeline.length == 0
    assert (first.status_code, second.status_code) == (500, 200)
    assert [record.getMessage() for record in caplog.records] == ["kcdp: error: MemoryError: no room"]


def test_draining(tagger: Tagger) -> None:
    gate = Gate(tagger, open=False)

    async def script(client: httpx.AsyncClient) -> Any:
        healthy = await client.get("/healthz")
        running = asyncio.ensure_future(client.post("/v1/tag", content=png(), headers=PNG))
        await until(gate.reached.is_set)
        service.draining = True
        late = await client.post("/v1/tag", content=png(), headers=PNG)
        health = await client.get("/healthz")
        gate.open()
        return healthy, late, health, await running

    with serving(tagger) as service:
        healthy, late, health, running = talk(service, script)
    assert (healthy.status_code, healthy.json()) == (200, {"status": "ready"})
    assert (health.status_code, health.json()) == (503, {"status": "draining"})
    assert said(late)[0] == 503 and late.headers["retry-after"] == "1" and running.status_code == 200


def test_two_servers_in_one_process_count_apart(tagger: Tagger) -> None:
    async def script(client: httpx.AsyncClient) -> Any:
        await client.post("/v1/tag", content=png(), headers=PNG)
        return await client.get("/metrics")

    with serving(tagger) as one, serving(tagger) as other:
        talk(one, script)
        page = talk(one, script)
        assert metric(one, "kcdp_pictures_total") == 2 and metric(other, "kcdp_pictures_total") == 0
    assert page.headers["content-type"].startswith("text/plain")
    for line in ("kcdp_pictures_total 2.0", "kcdp_queue_length 0.0", 'kcdp_batch_size_bucket{le="1.0"} 2.0',
                 'kcdp_requests_total{path="/v1/tag",status="200"} 2.0'):  # fmt: skip
        assert f"\n{line}\n" in page.text
    for stage in ("receive", "decode", "wait", "graph", "request"):
        assert f'kcdp_stage_seconds_count{{stage="{stage}"}} 2.0' in page.text


def test_options_that_make_no_sense_are_told_together() -> None:
    with pytest.raises(KcdpError) as told:
        ServerOptions(max_bytes=0, timeout=float("nan"), batch_wait=2, token="")
    assert str(told.value) == (
        "max_bytes is 0; expected a whole number from 1 | timeout is nan; expected seconds above 0, at most a day | "
        "batch_wait is 2; expected seconds, 0 to 1 | the token is empty or not plain text; expected printable ASCII "
        "without spaces"
    )
    with pytest.raises(KcdpError, match="queue is 2; expected at least max_pictures, 64"):
        ServerOptions(queue=2)


def test_where_the_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KCDP_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("KCDP_TOKEN", "fromenv")
    (tmp_path / "token").write_text(" fromfile\n")
    assert read_token(None) == "fromenv" and read_token(str(tmp_path / "token")) == "fromfile"
    with pytest.raises(KcdpError, match=r"--token-file .*none cannot be read \(No such file or directory\); expected"):
        read_token(str(tmp_path / "none"))


def test_addresses() -> None:
    with bind("127.0.0.1", 0) as opened:
        opened.listen()
        host, port = opened.getsockname()
        assert address_of(opened) == f"http://127.0.0.1:{port}" and not others_can_reach(opened)
        with pytest.raises(KcdpError) as told:
            bind("127.0.0.1", port)
    assert str(told.value) == (
        f"cannot listen on 127.0.0.1:{port} (Address already in use); expected a free address of this machine; "
        "choose another --port or --host"
    )
    with bind("0.0.0.0", 0) as opened:
        assert others_can_reach(opened)
    for host, port in (("no.such.host.invalid", 80), ("127.0.0.1", 99_999), ("203.0.113.9", 0)):
        with pytest.raises(KcdpError, match="; expected "):
            bind(host, port).close()


def test_a_missing_extra_is_named(tagger: Tagger, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    with serving(tagger) as service:
        for library in ("fastapi", "python_multipart"):
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, library, None)
                with pytest.raises(KcdpError, match=r'pip install "kcdp\[serve\]"'):
                    make_app(service)


def test_unsure(tiny_bundle: Bundle) -> None:
    """As ``kcdp tag`` says it, and as OpenAPI allows."""
    with Tagger.load(tiny_bundle.path, min_confidence=1.0) as tagger, serving(tagger) as service:

        async def script(client: httpx.AsyncClient) -> tuple[Any, Any, Any]:
            tagged = await client.post("/v1/tag", content=png((128, 128, 128)), headers=PNG)
            return tagged.json(), (await client.get("/v1/model")).json(), (await client.get("/openapi.json")).json()

        tagged, model, described = talk(service, script)
    assert [row["label"] for row in tagged["tags"]] == ["unsure"] and model["min_confidence"] == 1.0
    assert "unsure" in json.dumps(described["components"]["schemas"]["Tag"]["properties"]["label"])
