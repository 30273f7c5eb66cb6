"""What OpenAPI says of the server is what it does: schemathesis sends valid and invalid requests, always the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from server_parts import serving

from kcdp.bundle import Bundle
from kcdp.runtime.server import app as endpoints
from kcdp.runtime.server.app import make_app
from kcdp.runtime.server.service import Service
from kcdp.runtime.tagger import Tagger

TOKEN = "secret"
LET_IN = {"Authorization": f"Bearer {TOKEN}"}
OPERATIONS = {("/v1/tag", "post"), ("/v1/model", "get"), ("/healthz", "get"), ("/metrics", "get")}


@pytest.fixture(scope="module")
def service(tiny_bundle: Bundle) -> Iterator[Service]:
    with Tagger.load(tiny_bundle.path, threads=1) as tagger:
        with serving(tagger, token=TOKEN, max_pictures=8, queue=64, batch_wait=0.0) as opened:
            yield opened


@pytest.fixture(scope="module")
def described(service: Service) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", make_app(service))


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(
    max_examples=40, derandomize=True, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_every_endpoint_does_what_is_said(case: schemathesis.Case) -> None:
    case.call_and_validate(headers=LET_IN)


def test_nothing_is_left_out(described: Any) -> None:
    document = described.raw_schema
    assert {(path, method) for path, item in document["paths"].items() for method in item} == OPERATIONS
    said = {path: set(item[method]["responses"]) for path, item in document["paths"].items() for method in item}
    assert said["/v1/tag"] == {"200", "400", "401", "408", "413", "415", "422", "500", "503", "504"}
    assert said["/v1/model"] == said["/metrics"] == {"200", "401"} and said["/healthz"] == {"200", "503"}
    body = document["paths"]["/v1/tag"]["post"]["requestBody"]
    assert body["required"] and len(body["content"]) == 7
    locked = {path for path, item in document["paths"].items() for method in item if item[method].get("security")}
    assert locked == {"/v1/tag", "/v1/model", "/metrics"}


def test_without_a_token_nothing_is_locked(tiny_bundle: Bundle) -> None:
    with Tagger.load(tiny_bundle.path, threads=1) as tagger, serving(tagger) as service:
        document = make_app(service).openapi()
    assert "securitySchemes" not in document["components"]
    assert not [
        1 for item in document["paths"].values() for operation in item.values() if "401" in operation["responses"]
    ]


@pytest.mark.parametrize("broken", [{"label": "joy"}, {"confidence": 1.5}, {"scores": {"joy": 1.0}}, {"more": 1}])
def test_twin_an_answer_of_another_shape_is_found(
    described: Any, monkeypatch: pytest.MonkeyPatch, broken: dict[str, Any]
) -> None:
    row = endpoints.row
    case = described["/v1/tag"]["POST"].Case(body=b"x", media_type="image/png")
    case.call_and_validate(headers=LET_IN)
    monkeypatch.setattr(endpoints, "row", lambda tag: {**row(tag), **broken})
    with pytest.raises(Exception, match="Response violates schema"):
        case.call_and_validate(headers=LET_IN)
