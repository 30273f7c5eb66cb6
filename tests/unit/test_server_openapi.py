"""What OpenAPI says of the server is what it does: schemathesis sends valid and invalid requests, always the same."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis.configuration import set_hypothesis_home_dir
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.engine import events, from_schema
from schemathesis.openapi.checks import JsonSchemaError
from server_parts import metric, serving

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
    limits = {"max_pictures": 8, "queue": 64, "batch_wait": 0.0}
    with Tagger.load(tiny_bundle.path, threads=1) as tagger, serving(tagger, token=TOKEN, **limits) as opened:
        yield opened


@pytest.fixture(scope="module")
def described(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Any:
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))  # not into the project's folder
    config = SchemathesisConfig.from_dict({
        "seed": 1, "headers": LET_IN, "phases": {"stateful": {"enabled": False}}, "cache": {"enabled": False},
        "generation": {"max-examples": 60, "deterministic": True, "database": "none"},
    })  # fmt: skip
    return schemathesis.openapi.from_asgi("/openapi.json", make_app(service), config=config)


def test_every_endpoint_does_what_is_said(described: Any, service: Service) -> None:
    """Every check that schemathesis has, on requests at the edges of what is said and on random ones."""
    checks: Counter[str] = Counter()
    problems, tried = [], set()
    for event in from_schema(described).execute():
        if isinstance(event, (events.NonFatalError, events.FatalError)):
            problems.append(repr(event))
        elif isinstance(event, events.ScenarioFinished):
            tried.add(event.recorder.label)
            for check in itertools.chain(*event.recorder.checks.values()):
                checks[check.name] += 1
                if check.failure_info:
                    problems.append(f"{event.recorder.label}: {check.name}: {check.failure_info.failure.message}")
    assert not problems, "\n".join(problems)
    assert tried == {f"{method.upper()} {path}" for path, method in OPERATIONS}
    wanted = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "unsupported_method",
              "response_headers_conformance", "response_schema_conformance", "ignored_auth", "negative_data_rejection",
              "positive_data_acceptance")  # fmt: skip
    assert all(checks[name] > 30 for name in wanted), checks
    for status in ("200", "400", "401", "405", "415", "422"):  # both sides were tried, and pictures were among it
        assert metric(service, "kcdp_requests_total", path="/v1/tag", status=status) > 0
    assert metric(service, "kcdp_pictures_total") > metric(service, "kcdp_picture_failures_total") > 0


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
    with pytest.raises(FailureGroup) as found:
        case.call_and_validate(headers=LET_IN)
    assert [type(failure) for failure in found.value.exceptions] == [JsonSchemaError]
