"""What the server answers: rows, the model's description, errors; as objects and as what OpenAPI says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from kcdp import __version__
from kcdp.errors import require
from kcdp.runtime.rows import UNSURE, row
from kcdp.runtime.server.options import ServerOptions
from kcdp.runtime.tagger import Tagger

__all__ = ["Schema", "make_schema", "model_brief", "model_info", "row"]

def model_brief(tagger: Tagger) -> dict[str, Any]:
    """What stands beside the rows: which model made them."""
    manifest = tagger.manifest
    return {
        "name": tagger.session.bundle.path.name,
        "digest": manifest.digest,
        "precision": str(manifest.precision.get("default", "unknown")),
        "backend": str(tagger.session.describe().get("backend", "unknown")),
    }


def model_info(tagger: Tagger, options: ServerOptions) -> dict[str, Any]:
    """All that a client may want to know before it sends pictures. No paths of the server's."""
    manifest = tagger.manifest
    return {
        "name": tagger.session.bundle.path.name,
        "digest": manifest.digest,
        "labels": list(manifest.labels),
        "preprocess": manifest.preprocess.to_dict(),
        "precision": dict(manifest.precision),
        "target": manifest.target,
        "knowledge": str(manifest.knowledge["mode"]),
        "captions": tagger.session.takes_knowledge,
        "backend": tagger.session.describe(),
        "batch_size": tagger.batch_size,
        "min_confidence": tagger.min_confidence,
        "limits": {name: getattr(options, name) for name in ("max_bytes", "max_pictures", "timeout")},
        "version": __version__,
    }


@dataclass(frozen=True)
class Schema:
    """pydantic models of the answers; only OpenAPI reads them."""

    tags: Any
    model: Any
    health: Any
    error: Any


def make_schema(labels: tuple[str, ...]) -> Schema:
    """The models for a bundle's labels.

    Raises:
        KcdpError: pydantic is not installed.
    """
    library = require("pydantic", "serve")
    make: Any = library.create_model

    def strict(name: str, doc: str, /, **fields: Any) -> Any:
        config = library.ConfigDict(extra="forbid")
        return make(name, __doc__=doc, __config__=config, **{k: _required(v) for k, v in fields.items()})

    label: Any = Literal[labels]
    tagged_as = (*labels, UNSURE)
    named: Any = Literal[tagged_as]
    probability: Any = Annotated[float, library.Field(ge=0, le=1)]
    tag: Any = strict(
        "Tag", "One picture: its tag, or why there is none.", path=str, label=named | None,
        confidence=probability | None, scores=dict[label, probability], error=str | None,
        frames=Annotated[int, library.Field(ge=0)], spread=probability | None,
    )  # fmt: skip
    brief = strict("ModelBrief", "Which model made the tags.", name=str, digest=str, precision=str, backend=str)
    limits = strict("Limits", "What one request may be.", max_bytes=int, max_pictures=int, timeout=float)
    return Schema(
        tags=strict("Tags", "Rows in the order of the pictures.", tags=list[tag], model=brief),
        model=strict(
            "Model", "The model and how it is run.", name=str, digest=str, labels=list[label],
            preprocess=dict[str, Any], precision=dict[str, str], target=str, knowledge=str, captions=bool,
            backend=dict[str, Any], batch_size=int, min_confidence=probability, limits=limits, version=str,
        ),
        health=strict("Health", "Whether requests are taken.", status=Literal["ready", "draining"]),
        error=strict(
            "Problem", "A request that was refused.",
            error=strict("ProblemError", "One line in three parts; the last two may be empty.",
                         received=str, expected=str, fix=str),
        ),
    )  # fmt: skip


def _required(kind: Any) -> tuple[Any, Any]:
    return kind, ...
