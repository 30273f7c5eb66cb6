"""The endpoints: tags, the model, health, metrics; what OpenAPI says of them is what they do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from kcdp import __version__
from kcdp.decoding import readable_formats
from kcdp.errors import KcdpError, require
from kcdp.runtime.media.frames import stickers_here
from kcdp.runtime.server.problems import STATUSES, ClientGone, Problem, error_body, problem
from kcdp.runtime.server.schema import Schema, make_schema, model_brief, model_info, row
from kcdp.runtime.server.service import Service

TAG = "/v1/tag"
_PATHS = frozenset({TAG, "/v1/model", "/healthz", "/metrics", "/openapi.json"})
#: What a request is counted under that was closed by its client.
_CLIENT_GONE = 499
_PICTURES = ("application/octet-stream", "image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp")


def make_app(service: Service) -> Any:
    """The ASGI application (a FastAPI one) of a service. Whoever made the service closes it.

    Raises:
        KcdpError: fastapi or python-multipart is not installed.
    """
    fastapi, responses = require("fastapi", "serve"), require("fastapi.responses", "serve")
    require("python_multipart", "serve")
    schema, own = make_schema(service.tagger.manifest.labels), _Endpoints(service, responses)
    app = fastapi.FastAPI(
        title="kcdp", version=__version__, summary="Emotions of stickers", docs_url=None, redoc_url=None
    )
    locked: dict[str, Any] = {}
    refusals: dict[int, dict[str, Any]] = {}
    if service.options.token is not None:
        security = require("fastapi.security", "serve")
        locked["dependencies"] = [fastapi.Security(_gate(service, fastapi, security))]
        refusals = _refusals(schema, {401: "No bearer token, or a wrong one."})

    app.add_api_route(
        TAG, _with_request(own.tag, fastapi.Request), methods=["POST"], response_model=schema.tags,
        responses={**_refusals(schema, STATUSES), **refusals}, summary="Tag pictures",
        openapi_extra={"requestBody": _request_body(service)}, **locked,
    )  # fmt: skip
    app.add_api_route(
        "/v1/model", own.model, response_model=schema.model, responses=refusals, summary="The model", **locked
    )
    app.add_api_route(
        "/healthz", own.health, response_model=schema.health, summary="Whether requests are taken",
        responses={503: {"model": schema.health, "description": "The server is about to end."}},
    )  # fmt: skip
    app.add_api_route(
        "/metrics", own.metrics, response_class=responses.Response, summary="Counters for Prometheus",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **refusals}, **locked,
    )  # fmt: skip
    app.add_exception_handler(Problem, own.refuse)
    app.add_exception_handler(require("starlette.exceptions", "serve").HTTPException, own.refuse_http)
    app.add_middleware(Counting, service=service)
    return app


class _Endpoints:
    """What answers; JSON is written as it is, not looked over again by pydantic."""

    def __init__(self, service: Service, responses: Any) -> None:
        self._service, self._json, self._plain = service, responses.JSONResponse, responses.Response
        self._brief = model_brief(service.tagger)

    async def tag(self, request: Any) -> Any:
        """A row for each picture, in their order; a picture that cannot be read is a row with its error.

        Send either multipart/form-data with files, or one picture as the body.
        """
        try:
            with self._service.metrics.timed("request"):
                tags = await self._service.tag(request)
        except ClientGone:
            return self._plain(status_code=_CLIENT_GONE)
        except asyncio.CancelledError:
            if not self._service.draining:
                raise
            raise problem(503, "a request that was not done when the server ended", "", "try again") from None
        return self._json({"tags": [row(tag) for tag in tags], "model": self._brief})

    async def model(self) -> Any:
        """Labels, preprocessing, precision, what runs it, and what one request may be."""
        return self._json(model_info(self._service.tagger, self._service.options))

    async def health(self) -> Any:
        """200 while requests are taken, 503 once the server is about to end."""
        draining = self._service.draining
        return self._json({"status": "draining" if draining else "ready"}, status_code=503 if draining else 200)

    async def metrics(self) -> Any:
        """Prometheus' text format."""
        page, kind = self._service.metrics.page()
        return self._plain(page, media_type=kind)

    async def refuse(self, request: Any, refusal: Problem) -> Any:
        """The answer to a request that cannot be answered as it was meant."""
        return self._json(error_body(refusal.error), status_code=refusal.status, headers=refusal.headers)

    async def refuse_http(self, request: Any, error: Any) -> Any:
        """An address or a method that is not there, in the same form."""
        path = str(request.url.path)
        if error.status_code == 405:
            said = KcdpError(f"{request.method} {path}", error.headers.get("Allow", "another method"))
        elif error.status_code == 404:
            said = KcdpError(f"the path {path}", f"one of {', '.join(sorted(_PATHS))}")
        else:
            said = KcdpError(str(error.detail))
        return self._json(error_body(said), status_code=error.status_code, headers=error.headers)


class Counting:
    """ASGI middleware: requests by path and status, and how many are running."""

    def __init__(self, app: Callable[..., Awaitable[None]], service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes everything on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, status = scope["path"] if scope["path"] in _PATHS else "other", 500

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._service.running += path == TAG
        try:
            await self._app(scope, receive, sending)
        finally:
            self._service.running -= path == TAG
            self._service.metrics.requests.labels(path, str(status)).inc()


def _gate(service: Service, fastapi: Any, security: Any) -> Callable[..., Awaitable[None]]:
    """A dependency that lets nobody in without the token; it comes before the body is read."""
    bearer = fastapi.Security(security.HTTPBearer(auto_error=False, description="The server's token."))

    async def let_in(credentials: Any = bearer) -> None:
        if not service.admits(credentials.credentials if credentials else None):
            raise problem(
                401, "a wrong token" if credentials else "no token", "Authorization: Bearer TOKEN",
                "ask whoever runs the server for its token",
            )  # fmt: skip

    return let_in


def _with_request(endpoint: Callable[..., Any], request_class: Any) -> Callable[..., Any]:
    """The endpoint, said to take a request: annotations cannot name a class that is imported late."""

    async def tag(request: Any) -> Any:
        return await endpoint(request)

    tag.__doc__, tag.__annotations__ = endpoint.__doc__, {"request": request_class}
    return tag


def _refusals(schema: Schema, statuses: Any) -> dict[int, dict[str, Any]]:
    """The answers that are errors; 503 and 401 with their header."""
    named = {503: "Retry-After", 401: "WWW-Authenticate"}
    found: dict[int, dict[str, Any]] = {}
    for status, description in statuses.items():
        found[status] = {"model": schema.error, "description": description}
        if status in named:
            found[status]["headers"] = {named[status]: {"required": True, "schema": {"type": "string"}}}
    return found


def _request_body(service: Service) -> dict[str, Any]:
    picture = {"type": "string", "format": "binary"}
    most = service.options.max_pictures
    told = f"{readable_formats(stickers_here())}, told by content."
    fields: dict[str, Any] = {
        "pictures": {"type": "array", "items": picture, "minItems": 1, "maxItems": most, "description": told}
    }
    if service.tagger.session.takes_knowledge:
        fields["captions"] = {"type": "array", "items": {"type": "string", "maxLength": 1000}, "maxItems": most,
                              "description": "What is said about each picture, in their order."}  # fmt: skip
    form = {"type": "object", "properties": fields, "required": ["pictures"], "additionalProperties": False}
    raw = {"schema": {**picture, "minLength": 1}}
    return {"required": True, "content": {"multipart/form-data": {"schema": form}, **dict.fromkeys(_PICTURES, raw)}}
