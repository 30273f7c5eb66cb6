"""What activations hold on real pictures: which pictures, and ranges measured on them in bounded memory.

Nothing is copied out of the graph but its extremes and a sample: at Stable Diffusion 1.5's size the activations of one
picture are more than a gigabyte. One pass gives the range by every method of ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from tqdm import tqdm

from kcdp.data.dataset import ImageDataset
from kcdp.data.registry import open_dataset, open_datasets
from kcdp.errors import KcdpError, require
from kcdp.export.precision.layers import add_constant, weight_bytes
from kcdp.settings import DataConfig

#: The share of pictures that is held out to choose by.
HELD_OUT = 1 / 4
#: Numbers kept of each value over all pictures.
SAMPLES = 1 << 17
#: Weights of at least so many bytes are handed to a session as they lie in memory or on disk.
SHARED_BYTES = 1 << 12

#: One run's inputs by name.
Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Interval:
    """Smallest and largest value."""

    low: float
    high: float


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        pictures: to calibrate on and to choose by.
        batch: pictures in one run.
        trials: runs over the pictures held out that single layers, or groups of them, may take.
    """

    pictures: int
    batch: int
    trials: int


#: Half a minute for a model of a few million weights; three minutes for one of a thousand million, on two cores.
EFFORT, EFFORT_OF_LARGE = Effort(96, 8, 400), Effort(12, 3, 8)
#: A model of more bytes of weights is large.
LARGE = 1 << 29


def effort_for(model: ir.Model) -> Effort:
    """What can be afforded for a graph."""
    return EFFORT_OF_LARGE if weight_bytes(model.graph) > LARGE else EFFORT


def calibration_pictures(spec: str | None, data: DataConfig) -> ImageDataset:
    """Pictures to calibrate on: those of ``spec``, else the run's own training pictures.

    Args:
        spec: a dataset string.
        data: of the run; its validation and test pictures are not touched.

    Raises:
        KcdpError: the training pictures cannot be opened, or there are none.
    """
    if spec is not None:
        pictures = open_dataset(spec)
    else:
        try:
            pictures = open_datasets(
                (*data.source, *data.target) if not _weighted(data) else data.source, split="train"
            )
        except KcdpError as error:
            raise KcdpError(
                f"the run's training pictures cannot be opened ({error.received})",
                fix="name pictures to calibrate on with --calibration SPEC",
            ) from None
    if not len(pictures):
        raise KcdpError("no pictures to calibrate on", "at least one", "name some with --calibration SPEC")
    return pictures


def _weighted(data: DataConfig) -> bool:
    """A mixture has weights throughout or nowhere; source and target may differ in that."""
    return len({"weight=" in text for text in (*data.source, *data.target)}) > 1


def leave_out(images: np.ndarray, checked: np.ndarray) -> np.ndarray:
    """Pictures, uint8 [N, S, S, 3], without those that are in ``checked`` to the byte.

    Raises:
        KcdpError: none is left.
    """
    seen = {image.tobytes() for image in checked}
    kept = [i for i, image in enumerate(images) if image.tobytes() not in seen]
    if not kept:
        raise KcdpError(
            "all pictures to calibrate on are among those that the result is checked on", "others",
            "name others with --calibration SPEC",
        )  # fmt: skip
    return images[kept]


def split_feeds(inputs: Feed, batch: int, fill: bool = False) -> tuple[list[Feed], list[Feed]]:
    """Batches to calibrate on and batches held out, every fourth picture.

    Args:
        inputs: by name, N rows each; those of one row go with every batch.
        fill: see ``feeds_of``.
    """
    count = rows_of(inputs)
    held = np.arange(count) % round(1 / HELD_OUT) == 1
    if not held.any():  # a single picture has to serve for both
        return feeds_of(inputs, batch, fill), feeds_of(inputs, batch, fill)
    return tuple(
        feeds_of({name: a if len(a) != count else a[part] for name, a in inputs.items()}, batch, fill)
        for part in (~held, held)
    )  # type: ignore[return-value]


def feeds_of(inputs: Feed, batch: int, fill: bool = False) -> list[Feed]:
    """Rows in batches; inputs of one row go with every batch.

    Args:
        fill: the last batch is full, too, with the first rows again: for graphs of a fixed batch.
    """
    count = rows_of(inputs)
    found: list[Feed] = []
    for start in range(0, count, batch):
        rows = np.arange(start, start + batch) % count if fill else np.arange(start, min(start + batch, count))
        found.append({name: a[rows] if len(a) == count else a for name, a in inputs.items()})
    return found


def rows_of(feed: Feed) -> int:
    """Pictures in a batch."""
    return max(len(array) for array in feed.values())


@dataclass(frozen=True)
class Calibration:
    """What values held.

    Attributes:
        extremes: value name -> exact smallest and largest.
        samples: value name -> float32 [n], drawn at random places.
    """

    extremes: Mapping[str, Interval]
    samples: Mapping[str, np.ndarray]

    def ranges(self, method: str, levels: int = 256) -> dict[str, Interval]:
        """Ranges by a method of ``METHODS``.

        Args:
            levels: how many numbers the integers can tell apart.
        """
        choose = METHODS[method]
        return {name: choose(self.extremes[name], self.samples[name], levels) for name in self.extremes}


def collect(
    model: ir.Model, names: Collection[str], feeds: Iterable[Feed], *, samples: int = SAMPLES, progress: bool = False
) -> Calibration:
    """Run a graph and keep the extremes and samples of some of its float32 values.

    Raises:
        KcdpError: a value does not exist, or it was not finite.
    """
    feeds, order = list(feeds), sorted(names)
    if not order:
        return Calibration({}, {})
    probe = model.clone()
    values = {value.name: value for node in probe.graph for value in node.outputs}
    values.update({value.name: value for value in probe.graph.inputs})
    missing = [name for name in order if name not in values]
    if missing:
        raise KcdpError(f"the graph has no value {missing[0]!r}", fix="calibrate the graph that is quantised")
    _measure(probe.graph, [values[name] for name in order], -(-samples // len(feeds)))
    session = open_session(probe)
    low, high, kept = np.full(len(order), np.inf), np.full(len(order), -np.inf), []
    for feed in tqdm(feeds, desc="calibration", disable=not progress, leave=False):
        lows, highs, drawn = session.run(["kcdp.low", "kcdp.high", "kcdp.drawn"], dict(feed))
        low, high = np.minimum(low, lows), np.maximum(high, highs)
        kept.append(drawn)
    broken = [name for name, a, b in zip(order, low, high, strict=True) if not (np.isfinite(a) and np.isfinite(b))]
    if broken:
        raise KcdpError(f"{broken[0]!r} is not finite on the calibration pictures", fix="check the model and pictures")
    drawn = np.concatenate(kept, axis=1)
    extremes = {name: Interval(float(a), float(b)) for name, a, b in zip(order, low, high, strict=True)}
    return Calibration(extremes, dict(zip(order, drawn, strict=True)))


def _measure(graph: ir.Graph, values: Sequence[ir.Value], samples: int) -> None:
    """Three outputs for all values together: smallest [V], largest [V], numbers from random places [V, samples]."""
    places = np.sort(np.random.default_rng(0).random(samples))
    where = add_constant(graph, "kcdp.places", places)
    row = add_constant(graph, "kcdp.row", np.array([1, -1], np.int64))
    flat = add_constant(graph, "kcdp.flat", np.array([-1], np.int64))
    columns: dict[str, list[ir.Value]] = {"kcdp.low": [], "kcdp.high": [], "kcdp.drawn": []}

    nodes: list[ir.Node] = []

    def apply(kind: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        nodes.append(ir.node(kind, inputs, attributes))
        return nodes[-1].outputs[0]

    for value in values:
        nodes.clear()
        numbers = apply("Reshape", [value, flat])
        size = apply("Cast", [apply("Size", [numbers])], to=ir.DataType.DOUBLE)
        index = apply("Cast", [apply("Floor", [apply("Mul", [where, size])])], to=ir.DataType.INT64)
        columns["kcdp.low"].append(apply("Reshape", [apply("ReduceMin", [numbers], keepdims=0), flat]))
        columns["kcdp.high"].append(apply("Reshape", [apply("ReduceMax", [numbers], keepdims=0), flat]))
        columns["kcdp.drawn"].append(apply("Reshape", [apply("Gather", [numbers, index]), row]))
        insert_behind(graph, value, nodes)
    add_outputs(graph, columns)


def insert_behind(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Put nodes where a value is made, so that it can be forgotten soon: sessions here run nodes in their order."""
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)


def add_outputs(graph: ir.Graph, columns: Mapping[str, Sequence[ir.Value]]) -> None:
    """Each name becomes an output, its values of float32 one after the other along the first axis."""
    for name, parts in columns.items():
        node = ir.node("Concat", parts, {"axis": 0})
        node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
        graph.append(node)
        graph.outputs.append(node.outputs[0])


def open_session(model: ir.Model, optimise: bool = True) -> Any:
    """An ONNX Runtime session on the CPU for a graph in memory; its weights are not copied.

    Args:
        optimise: False runs the graph node by node as it is written.
    """
    onnxruntime = require("onnxruntime", "export")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    tensors = {name: value.const_value for name, value in model.graph.initializers.items() if value.const_value}
    arrays = {name: np.ascontiguousarray(t.numpy()) for name, t in tensors.items() if t.nbytes >= SHARED_BYTES}
    try:
        for name, tensor in tensors.items():
            model.graph.initializers[name].const_value = _stub(name, tensor, arrays.get(name))
        proto = ir.to_proto(model).SerializeToString()
    finally:
        for name, tensor in tensors.items():
            model.graph.initializers[name].const_value = tensor
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    options.add_external_initializers(list(arrays), values)
    return _Session(onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"]), arrays)


def _stub(name: str, tensor: ir.TensorProtocol, shared: np.ndarray | None) -> ir.TensorProtocol:
    """What stands in the graph for a tensor: the tensor itself while it is small, wherever it lies."""
    if shared is not None:
        return ir.ExternalTensor("shared", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(shared.shape), name=name)
    return ir.tensor(tensor.numpy(), name=name) if isinstance(tensor, ir.ExternalTensor) else tensor


class _Session:
    """Keeps the arrays alive that a session reads."""

    def __init__(self, session: Any, arrays: Mapping[str, np.ndarray]) -> None:
        self._session, self._arrays = session, arrays

    def run(self, names: Sequence[str], feed: Feed) -> list[np.ndarray]:
        result: list[np.ndarray] = self._session.run(list(names), dict(feed))
        return result


def _whole(extremes: Interval, samples: np.ndarray, levels: int) -> Interval:
    return extremes


def _percentile(extremes: Interval, samples: np.ndarray, levels: int) -> Interval:
    """99.99 % of the numbers, by halves."""
    low, high = np.quantile(samples, [0.00005, 0.99995])
    return Interval(float(low), float(high))


def _least_error(extremes: Interval, samples: np.ndarray, levels: int) -> Interval:
    """The range whose rounding and cutting off together make the least mean square error, one end after the other."""
    low, high = min(extremes.low, 0.0), max(extremes.high, 0.0)
    if high <= low:
        return extremes
    counts, edges = np.histogram(samples, bins=BINS, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2

    def error(a: float, b: float) -> float:
        outside = centres - np.clip(centres, a, b)
        inside = ((b - a) / (levels - 1)) ** 2 / 12 * counts.sum()
        return float((outside**2 * counts).sum() + inside)

    best = (low, high)
    for _ in range(2):
        best = min(((best[0] * share, best[1] * share) for share in SHARES), key=lambda pair: error(*pair))
        best = min(((best[0] * share, best[1]) for share in SHARES), key=lambda pair: error(*pair))
        best = min(((best[0], best[1] * share) for share in SHARES), key=lambda pair: error(*pair))
    return Interval(*best)


BINS = 4096
SHARES = np.linspace(0.3, 1.0, 36)
#: How the range of a value follows from what it held.
METHODS: Mapping[str, Callable[[Interval, np.ndarray, int], Interval]] = {
    "min-max": _whole, "percentile": _percentile, "least-error": _least_error,
}  # fmt: skip
