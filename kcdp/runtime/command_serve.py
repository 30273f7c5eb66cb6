"""``kcdp serve --model NAME.kcdp``: pictures in by HTTP, rows out."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from kcdp.errors import KcdpError
from kcdp.runtime.server.options import ServerOptions
from kcdp.runtime.tag_checks import check_numbers

#: Exit statuses beside those of ``kcdp.cli``: 1 says that requests were cut off when the server ended.
ALL_ANSWERED, SOME_CUT_OFF = 0, 1
TOKEN_VARIABLE = "KCDP_TOKEN"

_EPILOG = """\
with curl:
  curl -F pictures=@a.png -F pictures=@b.webp http://127.0.0.1:8000/v1/tag
  curl -H "Content-Type: image/png" --data-binary @a.png http://127.0.0.1:8000/v1/tag
also: GET /v1/model, /healthz, /metrics, /openapi.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``run``."""
    parser.epilog = _EPILOG
    parser.add_argument("--model", required=True, metavar="NAME.kcdp", help="the bundle to tag with")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (default: 8000)")
    parser.add_argument("--token-file", metavar="FILE", help=f"bearer token for clients (default: ${TOKEN_VARIABLE})")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="default: the best here, see kcdp doctor")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads of a batch (default: all cores)")
    parser.add_argument(
        "--min-confidence", type=float, default=0.0, metavar="X", help="0..1; below, the label is 'unsure' (default: 0)"
    )
    default = ServerOptions()
    for option, kind, unit, value, meaning in (
        ("--batch-size", int, "N", 16, "pictures that are run together"),
        ("--batch-wait-ms", float, "MS", default.batch_wait * 1e3, "how long a picture waits for others"),
        ("--workers-decode", int, "N", default.workers, "threads that read pictures"),
        ("--max-bytes", int, "N", default.max_bytes, "bytes of a request at most"),
        ("--max-pictures", int, "N", default.max_pictures, "pictures of a request at most"),
        ("--queue", int, "N", default.queue, "pictures on their way at most, before 503"),
        ("--connections", int, "N", default.connections, "connections at most"),
        ("--timeout", float, "SECONDS", default.timeout, "time of a request"),
        ("--grace", float, "SECONDS", default.grace, "time for running requests when told to end"),
    ):
        help_text = f"{meaning} (default: {value:.16g})"
        parser.add_argument(option, type=kind, default=value, metavar=unit, help=help_text)
    parser.add_argument("--access-log", action="store_true", help="print a line for each request")


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT.

    Returns:
        0 when all requests that had begun were answered, 1 when some were cut off.

    Raises:
        KcdpError: a bundle, an address or a setting that cannot be used; a missing extra.
    """
    check_numbers(args)
    if not 0 <= args.batch_wait_ms <= 1e3:
        raise KcdpError(f"--batch-wait-ms is {args.batch_wait_ms:g}", "a number from 0 to 1000")
    options = ServerOptions(
        max_bytes=args.max_bytes, max_pictures=args.max_pictures, timeout=args.timeout, queue=args.queue,
        batch_wait=args.batch_wait_ms / 1e3, workers=args.workers_decode, connections=args.connections,
        grace=args.grace, token=read_token(args.token_file),
    )  # fmt: skip
    from kcdp.runtime.server.app import make_app
    from kcdp.runtime.server.running import address_of, bind, make_server, others_can_reach, serve
    from kcdp.runtime.server.service import Service
    from kcdp.runtime.tagger import Tagger

    opened = bind(args.host, args.port)
    with opened, Tagger.load(
        args.model, backend=args.backend, threads=args.threads, batch_size=args.batch_size,
        min_confidence=args.min_confidence,
    ) as tagger:  # fmt: skip
        service = Service(tagger, options)
        server = make_server(make_app(service), options, access_log=args.access_log)
        if options.token is None and others_can_reach(opened):
            print(
                f"kcdp: warning: {address_of(opened)} can be reached from other machines and asks for no token; "
                f"use --token-file or {TOKEN_VARIABLE}", file=sys.stderr, flush=True,
            )  # fmt: skip
        backend = _one_line(tagger.session.describe())
        answered = serve(
            server, service, opened,
            lambda: print(f"{address_of(opened)} serves {args.model} ({backend})", flush=True),
        )  # fmt: skip
        if not answered:
            print(f"kcdp: error: not all requests were answered within {options.grace:g} s", file=sys.stderr)
        status = ALL_ANSWERED if answered else SOME_CUT_OFF
        if not service.close(1.0):
            _end_now(status)  # a picture that nobody waits for keeps a thread busy: the process must not wait for it
    return status


def read_token(file: str | None) -> str | None:
    """The token: the file's content without the white space around it, else the environment's, else None.

    Raises:
        KcdpError: the file cannot be read.
    """
    if file is None:
        return os.environ.get(TOKEN_VARIABLE)
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise KcdpError(f"--token-file {file} cannot be read ({reason})", "a file with a token") from None


def _one_line(description: dict[str, object]) -> str:
    """backend, version and the rest of a session's description that fits a line."""
    words = [f"{description.get('backend')} {description.get('version', '')}".strip()]
    return ", ".join(words + [str(description[key]) for key in ("provider", "precision") if description.get(key)])


def _end_now(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
