"""What tests of several folders need: a small real bundle, a linear graph over a picture's mean colour; SIGINT."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kcdp.bundle import Bundle, Manifest, write_bundle
from kcdp.graph import tagging_graph
from kcdp.labels import LABELS
from kcdp.preprocess import PreprocessSpec

SIZE = 32

#: A picture filled with this RGB colour gets this label from the tiny bundle.
COLOURS: dict[str, tuple[int, int, int]] = {
    "surprise": (255, 255, 0),
    "happy": (0, 255, 0),
    "disgust": (0, 255, 255),
    "fear": (255, 0, 255),
    "sad": (0, 0, 255),
    "anger": (255, 0, 0),
}


@pytest.fixture
def interrupts_are_heard() -> Iterator[None]:
    """A shell ignores SIGINT for what it runs in the background, and the tests may be run there."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="session")
def label_colours() -> dict[str, tuple[int, int, int]]:
    """label -> RGB of a solid picture that the tiny bundle gives that label."""
    return dict(COLOURS)


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Bundle]:
    """``make_bundle(path, input_name="images", output_name="logits", size=32, scale=4.0, bias=None, **manifest)``.

    Keywords the graph does not know replace fields of the manifest. ``scale`` is the sharpness of the
    decision, ``bias`` is added to the six logits; with ``fails_above=200`` the graph fails while it runs
    on a batch that holds a larger byte.
    """

    def make(
        path: str | Path,
        *,
        input_name: str = "images",
        output_name: str = "logits",
        size: int = SIZE,
        scale: float = 4.0,
        bias: Any = None,
        fails_above: int | None = None,
        **changes: Any,
    ) -> Bundle:
        graph = _graph(input_name, output_name, size, scale, bias, fails_above)
        manifest = Manifest(
            labels=LABELS,
            preprocess=PreprocessSpec(SIZE),
            graph=tagging_graph(SIZE),
            knowledge={"mode": "constant"},
            precision={"default": "float32"},
            target="portable",
            opset=18,
        )
        return write_bundle(
            path, replace(manifest, **changes), lambda folder: _put(folder / "model.onnx", graph), overwrite=True
        )

    return make


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Bundle]) -> Bundle:
    """Takes uint8 [N, 32, 32, 3]; solid ``label_colours`` get their label. Shared by the session: do not change it."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny.kcdp")


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _graph(input_name: str, output_name: str, size: int, scale: float, bias: Any, fails_above: int | None) -> bytes:
    """uint8 NHWC -> mean colour in 0..1 -> scale * (2 c.x - |c|^2): the nearest of the six colours wins."""
    from onnx import TensorProto, checker, helper, numpy_helper

    colours = np.array([COLOURS[label] for label in LABELS], np.float32) / 255
    offset = -scale * (colours**2).sum(axis=1) + (0 if bias is None else np.asarray(bias, np.float32))
    constants = {
        "range": np.array(255, np.float32),
        "axes": np.array([1, 2], np.int64),
        "weight": 2 * scale * colours,
        "bias": offset.astype(np.float32),
        "table": np.zeros(256 if fails_above is None else fails_above + 1, np.float32),
    }
    nodes = [
        helper.make_node("Cast", [input_name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "range"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["colour"], keepdims=0),
        helper.make_node("Gemm", ["colour", "weight", "bias"], ["nearness"], transB=1),
        helper.make_node("ReduceMax", ["float"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["zero"]),
        helper.make_node("Add", ["nearness", "zero"], [output_name]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    checker.check_model(model)
    return model.SerializeToString()
