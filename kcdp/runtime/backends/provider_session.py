"""ONNX Runtime with any of its execution providers. A provider that is not really active is an error."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from kcdp.bundle import MODEL, Bundle
from kcdp.engine_file import model_digest
from kcdp.errors import KcdpError, require
from kcdp.files import atomic_folder, make_folder, sha256_json
from kcdp.gpu import find_gpu
from kcdp.graph import PRODUCTS, SESSION_ENTRIES
from kcdp.runtime.backends.captured import CapturedRuns
from kcdp.runtime.backends.graph_file import AGAIN, cannot_open, session_options, tensors
from kcdp.runtime.backends.options import DEFAULTS, SessionOptions
from kcdp.runtime.backends.providers import CPU, PROVIDERS, Provider, compiled_folder, plugin_devices, unfit
from kcdp.runtime.processor import processors
from kcdp.runtime.session import Session, compare_signature


class OnnxRuntimeSession(Session):
    """A graph on one execution provider.

    Args:
        bundle: an opened bundle.
        options: see ``Provider.options`` for those that count.
        provider: a key of ``PROVIDERS``.

    Attributes:
        nodes: provider -> how many nodes it has; empty where ONNX Runtime does not tell, and on the processor, which
            has all of them.

    Raises:
        KcdpError: onnxruntime is not installed, the graph is damaged, it is not what the manifest describes, or another
            provider would run it.
    """

    def __init__(
        self, bundle: Bundle, options: SessionOptions = DEFAULTS, provider: str = "onnxruntime"
    ) -> None:
        super().__init__(bundle)
        self.options, self.row = options, PROVIDERS[provider]
        self.streams = options.streams or 1
        self.nodes: dict[str, int] = {}
        self._library = require("onnxruntime", "runtime")
        if (reason := unfit(self.row, bundle, options)) is not None:
            raise reason
        self._lock = threading.Lock() if self.row.alone or options.cuda_graph else None
        self._session: Any = self._open()
        manifest = bundle.manifest
        self._captured = CapturedRuns(
            self._library, self._session, self._output.name, len(manifest.labels), (self.row.device, options.device),
            self.row.graph_key,
        ) if options.cuda_graph else None  # fmt: skip
        try:
            path, graph = bundle.model_path, manifest.graph
            compare_signature(path, tensors(self._session.get_inputs()), graph.inputs, "input")
            compare_signature(path, tensors(self._session.get_outputs()), graph.outputs, "output")
        except KcdpError:
            self.close()
            raise

    def _open(self) -> Any:
        if not self.row.context:
            return self._create(self.bundle.model_path)
        folder = self._context_folder()
        if (folder / MODEL).is_file():
            return self._create(folder / MODEL)
        session = None
        make_folder(folder.parent)  # it stays: what the provider keeps by itself goes there too
        with contextlib.suppress(_NothingKept), atomic_folder(folder, overwrite=True, marker=MODEL) as temporary:
            path = temporary / MODEL
            session = self._create(self.bundle.model_path, {
                "ep.context_enable": "1", "ep.context_file_path": str(path), "ep.context_embed_mode": "0",
            })  # fmt: skip
            if not path.is_file():
                raise _NothingKept
        return session

    def _context_folder(self) -> Path:
        """Of what the provider has compiled: for this graph, these versions, this device and these settings."""
        plugin = import_module(self.row.plugin)
        folder = compiled_folder(self.options)
        key = [model_digest(self.bundle.manifest.files), self.row.provider, self._library.__version__,
               str(getattr(plugin, "__version__", "")), str(find_gpu(self.options.device)),
               self.row.settings(self.bundle, self.options, folder)]  # fmt: skip
        return folder / f"{self.bundle.path.resolve().stem}-{self.row.name}-{sha256_json(key)[:16]}"

    def _create(self, path: Path, entries: Mapping[str, str] = {}) -> Any:
        """An ``InferenceSession`` that is on the provider."""
        row, library = self.row, self._library
        settings = row.settings(self.bundle, self.options, compiled_folder(self.options))
        if "cache" in row.options:
            make_folder(compiled_folder(self.options))
        told = {} if row.provider == CPU else {**entries, _COUNTED: "1"}
        if row.partial:
            told["session.intra_op.allow_spinning"] = "0"  # two pools of threads share the processor
        options = self._session_options(told)
        try:
            if row.plugin:
                devices = plugin_devices(library, row, import_module(row.plugin), self.options)
                options.add_provider_for_devices(devices, settings)
                session = library.InferenceSession(str(path), options, enable_fallback=0)
            else:
                _preload(library, row)
                providers = [CPU] if row.provider == CPU else [(row.provider, settings), CPU]
                session = library.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
        except Exception as error:  # the library's exceptions share no base class
            fix = AGAIN if path == self.bundle.model_path else f"remove {path.parent}: it is only a cache"
            raise cannot_open(library, path, error, fix) from error
        session.disable_fallback()
        self._check_active(session)
        return session

    def _session_options(self, entries: Mapping[str, str]) -> Any:
        precision, threads = str(self.bundle.manifest.precision.get("default")), self.options.threads
        if self.streams > 1:
            threads = max(1, (threads or processors()) // self.streams)
        options = session_options(self._library, threads, {**SESSION_ENTRIES.get(precision, {}), **entries})
        if self.row.alone:
            options.enable_mem_pattern = False  # DirectML refuses it
        return options

    def _check_active(self, session: Any) -> None:
        """ONNX Runtime leaves out a provider that it cannot load, and gives the processor what a provider refuses."""
        row, taken = self.row, session.get_providers()
        asked = f"{self.bundle.path} was to run on {row.provider}"
        if taken[:1] != [row.provider]:
            raise KcdpError(f"{asked}, ONNX Runtime took {', '.join(taken) or 'none'}", fix=row.fix)
        if row.provider == CPU:
            return
        self.nodes, strays = _assigned(session, row.provider)
        others = ", ".join(f"{count} on {name}" for name, count in self.nodes.items() if name != row.provider)
        if self.nodes and row.provider not in self.nodes:
            raise KcdpError(f"{asked}, which took none of its nodes ({others})", fix="choose another backend")
        if strays and not row.partial:
            raise KcdpError(
                f"{asked}, but {len(strays)} of its products and convolutions are elsewhere, one of them "
                f"{min(strays)} ({others})", fix="choose another backend, or export for another target",
            )  # fmt: skip

    def _run(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        session = self._session
        try:
            if self._lock is None:
                (logits,) = session.run([self._output.name], feed)
            else:
                with self._lock:
                    if self._captured is not None:
                        return self._captured.run(feed)
                    (logits,) = session.run([self._output.name], feed)
        except Exception as error:
            raise self._library_failed("ONNX Runtime", feed, error) from error
        return np.asarray(logits)

    def _describe(self) -> dict[str, Any]:
        facts = {
            "backend": self.row.name, "version": self._library.__version__, "provider": self.row.provider,
            "threads": self.options.threads,
        }  # fmt: skip
        return {**facts, "nodes": dict(self.nodes)} if self.nodes else facts

    def _close(self) -> None:
        self._captured = self._session = None


class _NothingKept(Exception):
    """The provider wrote no context file."""


#: Tells ONNX Runtime (1.24 and later) to note which provider takes which node.
_COUNTED = "session.record_ep_graph_assignment_info"


def _assigned(session: Any, provider: str) -> tuple[dict[str, int], list[str]]:
    """Provider -> nodes, and the products that are not on ``provider``; both empty where it is not told."""
    try:
        subgraphs = session.get_provider_graph_assignment_info()
    except Exception:  # not in ONNX Runtime before 1.24
        return {}, []
    counts: dict[str, int] = {}
    strays = []
    for subgraph in subgraphs:
        nodes = subgraph.get_nodes()
        counts[subgraph.ep_name] = counts.get(subgraph.ep_name, 0) + len(nodes)
        if subgraph.ep_name != provider:
            strays += [f"{node.op_type} {node.name}" for node in nodes if node.op_type in PRODUCTS]
    return counts, strays


def _preload(library: Any, row: Provider) -> None:
    """CUDA's libraries out of NVIDIA's packages, where there are any."""
    if row.nvidia and hasattr(library, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # what it misses, ``_check_active`` finds
            library.preload_dlls()
