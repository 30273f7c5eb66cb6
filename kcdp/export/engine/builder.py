"""From a parsed network to the bytes of an engine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from kcdp.errors import KcdpError
from kcdp.export.engine.batches import BatchRange, add_profile
from kcdp.export.engine.capabilities import set_capabilities
from kcdp.export.engine.layer_report import Kernel, parse_report
from kcdp.export.engine.network import ParsedNetwork
from kcdp.export.engine.package import RTX, Native
from kcdp.export.engine.progress import BuildProgress, make_monitor
from kcdp.export.engine.timing import keep_timings, use_timings

#: Raised whenever this code builds engines otherwise: it is part of every engine's key.
REVISION = 1


@dataclass(frozen=True)
class BuildOptions:
    """What the user chose.

    Attributes:
        batches: for a graph whose batch is free.
        capabilities: cards to build for ("SM89"); ``tensorrt-rtx`` alone.
        workspace: most memory in MiB that a kernel may use for scratch; None: whatever the card has.
    """

    batches: BatchRange | None = None
    capabilities: tuple[str, ...] = ()
    workspace: int | None = None

    def key(self) -> dict[str, int | None]:
        """What of it changes the engine and stands nowhere else in its key."""
        return {"revision": REVISION, "workspace": self.workspace}


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in memory.

    Attributes:
        data: its bytes.
        kernels: of the builder's report; None where that could not be read.
        memory: bytes for weights and activations, as far as the builder said.
        seconds: wall clock.
    """

    data: memoryview
    kernels: list[Kernel] | None
    memory: dict[str, int]
    seconds: float


def build_engine(
    parsed: ParsedNetwork, options: BuildOptions, timings: Path | None = None, *, progress: bool = False
) -> BuiltEngine:
    """Build.

    Args:
        timings: file of kernel timings to use and to extend; None: none are kept.
        progress: draw a bar.

    Raises:
        KcdpError: options that do not fit the graph, or the builder gave up; its reason is in the message.
        KeyboardInterrupt: Ctrl-C.
    """
    trt: Native = parsed.package.module
    builder: Native = parsed.builder
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it the layer report holds no types
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    if parsed.package.name == RTX:
        set_capabilities(options.capabilities, trt, config)
    elif timings is not None:
        use_timings(config, timings)
    add_profile(parsed, config, options.batches)
    bar = BuildProgress(progress, parsed.messages)
    monitor = make_monitor(trt, bar)  # the configuration does not keep it alive
    config.progress_monitor = monitor
    start = time.perf_counter()
    engine = builder.build_serialized_network(parsed.network, config)
    seconds = time.perf_counter() - start
    bar.close()
    if engine is None:
        raise KcdpError(f"{parsed.package.label} gave up building: {parsed.messages.reason()}")
    if parsed.package.name != RTX and timings is not None:
        keep_timings(config, timings)
    says = {"weights": "Total Weights Memory", "activations": "Total Activation Memory"}
    memory = {name: size for name, text in says.items() if (size := parsed.messages.bytes_of(text)) is not None}
    return BuiltEngine(memoryview(engine), parse_report(parsed.messages.report), memory, seconds)
