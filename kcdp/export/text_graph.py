"""The text side of a bundle: CLIP's text tower as ``text.onnx``, its tokenizer, and what the manifest says of them.

What is written is compared with the PyTorch tower and with open_clip's tokenizer before anybody gets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from kcdp.errors import KcdpError, nearest
from kcdp.export.text_tables import check_tokenizer, write_tokenizer
from kcdp.export.text_tower import tower_graph
from kcdp.knowledge.text import TextEncoder
from kcdp.knowledge.tower import TextTower
from kcdp.runtime.text import TextSession
from kcdp.settings import TextConfig
from kcdp.text_spec import PRECISIONS, TEXT_GRAPH, TextSpec
from kcdp.tokenizer import TOKENIZER, Tokenizer

#: Above this many bytes, weights go to a file beside the graph (protobuf ends at 2 GiB).
INLINE_LIMIT = 1_900_000_000
#: Precision of the stored weights -> how far a state may be from PyTorch's: |got - want| <= bound * (1 + |want|), and
#: least cosine of a token. Half precision rounds a weight by up to 1 part in 2048, which moved the states of 12 layers
#: of the width 768 by 3e-3 at most; those weights were random, and trained ones have a few larger states.
BOUNDS = {"float32": (1e-4, 0.999999), "float16": (3e-2, 0.9999)}
#: What the graph is checked on, at two numbers of texts.
CHECKED = (
    ("a sticker of a cat",),
    ("", "A person is crying.", "🎉😂 party & more", "word " * 100, "two people who laugh, in front of a house"),
)


@dataclass(frozen=True)
class TextExport:
    """What was written, and how near it is.

    Attributes:
        files: names of the files.
        bytes: their size together.
        precision: of the weights.
        texts: how many texts were compared.
        largest: largest difference of a state from PyTorch's.
        cosine: least cosine of a token's state and PyTorch's.
    """

    files: tuple[str, ...]
    bytes: int
    precision: str
    texts: int
    largest: float
    cosine: float

    def to_dict(self) -> dict[str, Any]:
        """For a manifest's parity report; plain JSON types."""
        return {**vars(self), "files": list(self.files)}


def describe_text(encoder: TextEncoder, text: TextConfig, *, prefix: str, precision: str = "float32") -> dict[str, Any]:
    """The manifest's ``knowledge`` of a bundle that takes captions: mode "input", tokens, width, and the text side.

    Args:
        encoder: what was given to ``export_text``.
        text: the run's settings: separator and reader of triples. The device has the built-in reader, "rules";
            with another, callers have to pass triples themselves.
        prefix: put before every caption; ``text.target_prefix`` for pictures like those of the target.
        precision: as given to ``export_text``.
    """
    extractor = "rules" if text.extractor == "rules" else "given"
    return TextSpec(
        encoder.tokens, encoder.width, encoder.name, prefix, extractor, text.triple_separator, precision
    ).to_knowledge()


def export_text(encoder: TextEncoder, folder: Path, *, precision: str = "float32") -> TextExport:
    """Write ``text.onnx`` and ``tokenizer.json``, and compare both with the encoder.

    The graph: "ids" int64 [texts, tokens] to "states" float32 [texts, tokens, width], the number of texts free.

    Args:
        encoder: one with a text tower (``SeededText``, ``OpenClipText``).
        folder: exists.
        precision: of the stored weights. In "float16" vectors and arithmetic stay in float32.

    Raises:
        KcdpError: no tower, an unknown precision, weights beyond half precision, or states or ids that are not the
            encoder's; then nothing is left in the folder.
    """
    tower = getattr(encoder, "tower", None)
    if not isinstance(tower, TextTower):
        raise KcdpError(f"{encoder.name} has no text tower", "the text encoder of a run")
    if precision not in PRECISIONS:
        raise KcdpError(f"precision of the text graph is {precision!r}{nearest(precision, PRECISIONS)}",
                        f"one of {', '.join(PRECISIONS)}")  # fmt: skip
    path, data = folder / TEXT_GRAPH, f"{TEXT_GRAPH}.data"
    try:
        model = tower_graph(tower, encoder.shape, half=precision == "float16")  # type: ignore[attr-defined]
        weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
        ir.save(model, path, external_data=data if weights > INLINE_LIMIT else None)
        del model
        tokenizer = write_tokenizer(folder / TOKENIZER)
        texts = [text for group in CHECKED for text in group]
        check_tokenizer(tokenizer, texts, encoder.tokens)
        largest, cosine = compare_text(path, tokenizer, encoder, CHECKED, precision)
    except BaseException:
        for name in (TEXT_GRAPH, data, TOKENIZER):
            (folder / name).unlink(missing_ok=True)
        raise
    files = tuple(name for name in (TEXT_GRAPH, data, TOKENIZER) if (folder / name).exists())
    size = sum((folder / name).stat().st_size for name in files)
    return TextExport(files, size, precision, len(texts), largest, cosine)


def compare_text(
    path: Path, tokenizer: Tokenizer, encoder: TextEncoder, groups: Sequence[Sequence[str]], precision: str
) -> tuple[float, float]:
    """Run the graph on each group of texts, by its own tokenizer, and hold it to ``BOUNDS``.

    Returns:
        largest difference of a state, least cosine of a token.

    Raises:
        KcdpError: it is not the encoder's tower.
    """
    bound, least = BOUNDS[precision]
    session = TextSession(path, encoder.tokens, encoder.width)
    largest, cosine = 0.0, 1.0
    for texts in groups:
        want = encoder.encode(texts).numpy().astype(np.float64)
        got = session.run(tokenizer(texts, encoder.tokens)).astype(np.float64)
        lengths = np.linalg.norm(got, axis=2) * np.linalg.norm(want, axis=2)
        cosine = min(cosine, float(((got * want).sum(axis=2) / np.maximum(lengths, 1e-12)).min()))
        difference = np.abs(got - want)
        largest = max(largest, float(difference.max()))
        # written so that NaN on either side fails
        if not ((difference <= bound * (1 + np.abs(want))).all() and cosine >= least):
            raise KcdpError(
                f"the text graph's states differ from the model's by {difference.max():.2g}, least cosine {cosine:.6f}",
                f"at most {bound:g} of 1 + the state, cosine {least:g} ({precision})",
                "report the text encoder and the versions of onnx and onnxruntime",
            )
    return largest, cosine
