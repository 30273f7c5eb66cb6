"""Load on ``kcdp serve`` over the loopback: requests, failures, latency, pictures a second, memory; then a kill.

    python benchmarks/server.py --model B.kcdp --seconds 300 --out results/server.json

Clients with connections that stay open send one picture after the other, each as soon as the last was answered, so that
the server is always full. Every answer's label is compared with what the tagger says of the same picture. In the end
the server is killed in the middle of batches and started again at once on the same port. The last line is one JSON
object; clients and server share this machine, so the server alone could do more.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measuring import cpu_name
from PIL import Image

from kcdp.files import write_json
from kcdp.runtime import Tagger


def main() -> int:
    """Load, then kill and restart. Exit status 1 where a request failed or the restart did."""
    parser = argparse.ArgumentParser(description="Load on kcdp serve over the loopback.")
    parser.add_argument("--model", type=Path, required=True, metavar="NAME.kcdp", help="the bundle")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--clients", type=int, default=32, help="connections at once (default: 32)")
    parser.add_argument("--pictures", type=int, default=1, help="pictures of a request (default: 1)")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures that are sent (default: 128)")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    parser.add_argument("serve", nargs="*", help="after --: more arguments for kcdp serve")
    args = parser.parse_args()
    bodies, labels = make_requests(args)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(args, folder)
        load = asyncio.run(run_load(args, server, bodies, labels))
        restart = kill_and_restart(args, server, folder, bodies)
    result = {
        "benchmark": "server", "date": time.strftime("%Y-%m-%d"), "machine": machine(),
        "settings": {"model": args.model.name, "clients": args.clients, "pictures": args.pictures, "size": args.size,
                     "seconds": args.seconds, "serve": args.serve, "backend": server.backend},
        "load": load, "kill_and_restart": restart,
    }  # fmt: skip
    print(f"{load['requests']} requests, {load['failures']} failed; {load['pictures_per_s']:.1f} pictures/s; "
          f"p50 {load['p50_ms']:.1f} ms, p99 {load['p99_ms']:.1f} ms; server's memory "
          f"{' -> '.join(str(load['rss_mib'][when]) for when in ('start', 'middle', 'end'))} MiB")  # fmt: skip
    print(json.dumps(result))
    if args.out:
        write_json(args.out, result)
    return 1 if load["failures"] or not restart["answered"] else 0


class Server:
    """A running ``kcdp serve``."""

    def __init__(self, args: argparse.Namespace, folder: str, *more: str) -> None:
        environment = {**os.environ, "TMPDIR": folder}
        line = [sys.executable, "-m", "kcdp", "serve", "--model", str(args.model), *(more or ("--port", "0"))]
        begun = time.perf_counter()
        self.process = subprocess.Popen([*line, *args.serve], env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        said = self.process.stdout.readline()
        self.seconds = time.perf_counter() - begun
        found = re.match(r"http://(.*):(\d+) serves .* \((.*)\)", said)
        if not found:
            raise SystemExit(f"kcdp serve did not start: {said}")
        self.host, self.port, self.backend = found[1], int(found[2]), found[3]
        self.watched = psutil.Process(self.process.pid)
        self.files = sorted(path.name for path in Path(folder).rglob("*"))

    @property
    def rss(self) -> float:
        """Resident memory in MiB."""
        return round(self.watched.memory_info().rss / 2**20, 1)

    def metrics(self) -> dict[str, float]:
        """The counters and sums that tell how large batches were."""
        with urllib.request.urlopen(f"http://{self.host}:{self.port}/metrics") as page:
            lines = page.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("kcdp_"))
        return {name: float(value) for name, value in pairs}


def make_requests(args: argparse.Namespace) -> tuple[list[bytes], list[list[str]]]:
    """Whole HTTP requests of different noisy pictures, and the labels that the tagger gives them."""
    random = np.random.default_rng(0)
    requests, labels = [], []
    with Tagger.load(args.model) as tagger:
        for _ in range(16):
            pictures = []
            for _ in range(args.pictures):
                colour = random.integers(0, 200, 3)
                noise = random.integers(0, 56, (args.size, args.size, 3))
                stream = io.BytesIO()
                Image.fromarray((colour + noise).astype(np.uint8)).save(stream, "PNG")
                pictures.append(stream.getvalue())
            requests.append(request(pictures))
            labels.append([str(tag.label) for tag in tagger.tag(pictures)])
    return requests, labels


def request(pictures: list[bytes]) -> bytes:
    """One picture as the body, several as multipart/form-data."""
    if len(pictures) == 1:
        kind, body = "image/png", pictures[0]
    else:
        part = b'--x\r\nContent-Disposition: form-data; name="pictures"; filename="a.png"\r\n\r\n%b\r\n'
        kind, body = "multipart/form-data; boundary=x", b"".join(part % picture for picture in pictures) + b"--x--\r\n"
    head = f"POST /v1/tag HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def run_load(
    args: argparse.Namespace, server: Server, bodies: list[bytes], labels: list[list[str]]
) -> dict[str, Any]:
    """Requests, failures by kind, latency, throughput, batches, memory; the first second is not counted."""
    failures: Counter[str] = Counter()
    times: list[float] = []
    begun = time.perf_counter()
    warm, end = begun + min(1.0, args.seconds / 10), begun + args.seconds

    async def client(number: int) -> None:
        reader = writer = None
        while (start := time.perf_counter()) < end:
            which = (number + len(times)) % len(bodies)
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection(server.host, server.port)
                writer.write(bodies[which])
                status, answer = await read_answer(reader)
            except (OSError, asyncio.IncompleteReadError) as error:
                failures[type(error).__name__] += 1
                reader = writer = None
                continue
            if status != 200:
                failures[str(status)] += 1
            elif [row["label"] for row in answer["tags"]] != labels[which]:
                failures["another label"] += 1
            if start >= warm:
                times.append(time.perf_counter() - start)
        if writer is not None:
            writer.close()

    async def memory() -> dict[str, float]:
        seen = {}
        for name, when in (("start", warm), ("middle", (warm + end) / 2), ("end", end - 0.2)):
            await asyncio.sleep(max(0.0, when - time.perf_counter()))
            seen[name] = server.rss
        return seen

    before = server.rss
    rss, *_ = await asyncio.gather(memory(), *(client(number) for number in range(args.clients)))
    took = time.perf_counter() - warm
    counted = await asyncio.to_thread(server.metrics)
    milliseconds = np.sort(times) * 1e3
    return {
        "requests": len(times), "failures": sum(failures.values()), "failures_by_kind": dict(failures),
        "seconds": round(took, 2), "pictures_per_s": round(len(times) * args.pictures / took, 2),
        "p50_ms": round(float(np.percentile(milliseconds, 50)), 2),
        "p99_ms": round(float(np.percentile(milliseconds, 99)), 2), "max_ms": round(float(milliseconds[-1]), 2),
        "mean_batch": round(counted["kcdp_batch_size_sum"] / counted["kcdp_batch_size_count"], 2),
        "rss_mib": {"before": before, **rss},
    }  # fmt: skip


async def read_answer(reader: Any) -> tuple[int, Any]:
    """Status and JSON of one answer on a connection that stays open."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return int(head.split()[1]), json.loads(await reader.readexactly(int(length[1]) if length else 0) or b"{}")


def kill_and_restart(args: argparse.Namespace, server: Server, folder: str, bodies: list[bytes]) -> dict[str, Any]:
    """SIGKILL while every client waits for an answer; the same port again at once, what was left behind, one answer."""

    async def kill() -> int:
        streams = [await asyncio.open_connection(server.host, server.port) for _ in range(args.clients)]
        for _, writer in streams:
            writer.write(bodies[0] * 50)  # pipelined: the server is in the middle of some batch whenever it is killed
        await asyncio.sleep(0.05)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        for _, writer in streams:
            writer.close()
        return len(streams)

    async def one() -> int:
        reader, writer = await asyncio.open_connection(again.host, again.port)
        writer.write(bodies[0])
        status, _ = await read_answer(reader)
        writer.close()
        return status

    clients = asyncio.run(kill())
    left = sorted({path.name for path in Path(folder).rglob("*")} - set(server.files))
    again = Server(args, folder, "--port", str(server.port))
    answered = asyncio.run(one()) == 200
    again.process.terminate()
    status = again.process.wait(30)
    return {
        "clients_cut_off": clients, "left_behind": left, "same_port": again.port == server.port,
        "seconds_to_start": round(again.seconds, 2), "answered": answered, "exit_status_after_sigterm": status,
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    libraries = ("kcdp", "onnxruntime", "fastapi", "uvicorn")
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(),
            **{name: version(name) for name in libraries}}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
