"""CUDA graphs under ONNX Runtime: for each batch size the kernels are recorded once and replayed ever after.

A recorded graph reads and writes at fixed addresses, so that every size has its own bound input and output. Never run
on a GPU; the binding itself is tested on the processor, where nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Each size keeps its memory on the card.
MOST_SIZES = 64


@dataclass(frozen=True)
class Captured:
    """One batch size.

    Attributes:
        binding: of the values below.
        inputs: by name, on the card.
        output: float32 [N, 6], on the card.
        options: of the run; hold the number of the recorded graph.
    """

    binding: Any
    inputs: Mapping[str, Any]
    output: Any
    options: Any


class CapturedRuns:
    """Runs of one session, one at a time.

    Args:
        library: the package onnxruntime.
        session: of it, opened with CUDA graphs.
        output: name of the logits.
        width: how many.
        place: ONNX Runtime's name of the memory, and the card's number: ("cuda", 0).
        key: what the provider calls the number of a recorded graph.
    """

    def __init__(self, library: Any, session: Any, output: str, width: int, place: tuple[str, int], key: str) -> None:
        self._library, self._session, self._key = library, session, key
        self._output, self._width, self._place = output, width, place
        self._sizes: dict[int, Captured] = {}

    def run(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 [N, 6]. The caller sees to it that no other run is under way.

        Raises:
            ValueError: so many batch sizes that the card would fill up.
        """
        count = len(next(iter(feed.values())))
        held = self._sizes.get(count)
        if held is None and len(self._sizes) >= MOST_SIZES:
            raise ValueError(f"cuda_graph: more than {MOST_SIZES} batch sizes")
        if held is None:
            held = self._sizes[count] = self._bind(feed, count)
        else:
            for name, array in feed.items():
                held.inputs[name].update_inplace(array)
        self._session.run_with_iobinding(held.binding, held.options)
        return np.array(held.output.numpy())  # copied: on the processor it is the bound memory itself

    def _bind(self, feed: Mapping[str, np.ndarray], count: int) -> Captured:
        values = self._library.OrtValue
        binding = self._session.io_binding()
        inputs = {name: values.ortvalue_from_numpy(array, *self._place) for name, array in feed.items()}
        output = values.ortvalue_from_shape_and_type([count, self._width], np.float32, *self._place)
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(self._output, output)
        return Captured(binding, inputs, output, self._options(len(self._sizes) + 1))  # 0 is ONNX Runtime's own

    def _options(self, graph: int) -> Any:
        options = self._library.RunOptions()
        options.add_run_config_entry(self._key, str(graph))
        return options
