"""Captions become knowledge tokens on the device: the bundle's text graph and its tokenizer, no PyTorch.

The same as ``kcdp.knowledge.embedding.knowledge_tokens`` makes in training: the caption's token states, and below them
the sum of its triples' states. (What training keeps on disk in between is rounded to float16; here nothing is.)
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcdp.bundle import Bundle
from kcdp.errors import KcdpError, require
from kcdp.graph import TensorSpec
from kcdp.knowledge.texts import knowledge_texts, rule_triples
from kcdp.runtime.backends.graph_file import cannot_open, session_options, tensors
from kcdp.runtime.backends.options import SessionOptions
from kcdp.runtime.backends.providers import CPU
from kcdp.runtime.session import compare_signature, first_line
from kcdp.text_spec import MODE, TextSpec, read_knowledge
from kcdp.tokenizer import Tokenizer

#: Texts that go through the graph at once.
BATCH_SIZE = 16
#: Texts whose states are kept. Of CLIP ViT-L/14, one is 237 kB.
REMEMBERED = 64


class TextSession:
    """The text graph on ONNX Runtime's CPU provider. Several threads may use one session at once.

    Args:
        path: ``text.onnx``.
        context, width: tokens of a text, and their width.
        threads: how many threads one ``run`` may use; None leaves it to ONNX Runtime (all cores).

    Raises:
        KcdpError: onnxruntime is not installed, the graph is damaged, or it takes or gives something else.
    """

    def __init__(self, path: Path, context: int, width: int, threads: int | None = None) -> None:
        threads = SessionOptions(threads=threads).threads
        self.path, self.context, self.width = path, context, width
        library = require("onnxruntime", "runtime")
        options = session_options(library, threads, {})
        try:
            self._session: Any = library.InferenceSession(str(path), options, providers=[CPU])
        except Exception as error:  # the library's exceptions share no base class
            raise cannot_open(library, path, error) from error
        ids = TensorSpec("ids", "int64", ("texts", "tokens"), (None, context))
        states = TensorSpec("states", "float32", ("texts", "tokens", "width"), (None, context, width))
        compare_signature(path, tensors(self._session.get_inputs()), [ids], "input")
        compare_signature(path, tensors(self._session.get_outputs()), [states], "output")

    def run(self, ids: np.ndarray) -> np.ndarray:
        """int64 [N, context] to float32 [N, context, width], finite.

        Raises:
            KcdpError: a failure inside the library, or states that are not finite.
        """
        if not len(ids):
            return np.empty((0, self.context, self.width), np.float32)
        try:
            (states,) = self._session.run(["states"], {"ids": ids})
        except Exception as error:
            raise KcdpError(
                f"ONNX Runtime failed on {self.path} with {len(ids)} texts ({first_line(error)})",
                fix="export the bundle again",
            ) from error
        found = np.asarray(states)
        if not np.isfinite(found).all():
            raise KcdpError(f"{self.path} gave states that are not finite", fix="export the bundle again in float32")
        return found


class KnowledgeEncoder:
    """Captions in, knowledge tokens out. Several threads may use one encoder at once.

    A text that comes again is not computed again, while it is among the last ones.

    Args:
        folder: where the files are.
        spec: what they are.
        threads: see ``TextSession``.
        remembered: how many texts' states are kept.

    Attributes:
        spec: the same.

    Raises:
        KcdpError: a file is missing or damaged, or the files do not belong together.
    """

    def __init__(
        self, folder: Path, spec: TextSpec, *, threads: int | None = None, remembered: int = REMEMBERED
    ) -> None:
        self.spec = spec
        self.tokenizer = Tokenizer.open(folder / spec.tokenizer)
        self.session = TextSession(folder / spec.graph, spec.context, spec.width, threads)
        self._remembered = remembered
        self._states: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, bundle: Bundle, *, threads: int | None = None, remembered: int = REMEMBERED) -> KnowledgeEncoder:
        """The text side of an opened bundle.

        Raises:
            KcdpError: the bundle has none, or see the class.
        """
        knowledge = bundle.manifest.knowledge
        spec = read_knowledge(knowledge, str(bundle.path)) if knowledge.get("mode") == MODE else None
        if spec is None:
            raise KcdpError(
                f"{bundle.path} takes no captions: its knowledge has the mode {knowledge.get('mode')!r}",
                'a bundle of the mode "input" with a text graph', "export with --knowledge input",
            )  # fmt: skip
        return cls(bundle.path, spec, threads=threads, remembered=remembered)

    def tokens(self, captions: Sequence[str], triples: Sequence[Sequence[str]] | None = None) -> np.ndarray:
        """Knowledge of pictures, one caption for each; a caption may be empty.

        Args:
            captions: one sentence about each picture, without the prefix.
            triples: "subject verb object" texts of each picture, in place of those that the device reads out of the
                captions. A picture without any has its caption there again.

        Returns:
            float32 [N, 2 context, width]: the caption's states, then the sum of the triples'.

        Raises:
            KcdpError: not lists of texts, not as many triples as captions, or none where they have to be given.
        """
        wrong = [caption for caption in captions if not isinstance(caption, str)]
        if isinstance(captions, str) or wrong:
            raise KcdpError(
                f"the captions are {captions if isinstance(captions, str) else wrong[0]!r}", "a list of strings"
            )
        if triples is None:
            triples = [self.triples(caption) for caption in captions]
        if len(triples) != len(captions):
            raise KcdpError(f"triples of {len(triples)} pictures", f"of {len(captions)}, one list for each caption")
        wanted = [
            knowledge_texts(caption, own, prefix=self.spec.prefix)
            for caption, own in zip(captions, triples, strict=True)
        ]
        states = self.encode([text for texts in wanted for text in texts])
        context = self.spec.context
        out = np.empty((len(captions), self.spec.tokens, self.spec.width), np.float32)
        for row, (first, *summed) in zip(out, wanted, strict=True):
            row[:context] = states[first]
            np.sum([states[text] for text in summed], axis=0, out=row[context:])
        return out

    def triples(self, caption: str) -> list[str]:
        """Triples of a caption, as in training.

        Raises:
            KcdpError: the model was trained with another reader of triples than the one that is on the device.
        """
        if self.spec.extractor != "rules":
            raise KcdpError(
                "captions alone, of a model whose triples were read by a package that is not on the device",
                "triples beside the captions", "pass the texts that training had, [] for a picture without any",
            )  # fmt: skip
        return rule_triples(caption, self.spec.separator)

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Each different text's states, float32 [context, width], read-only."""
        unique = list(dict.fromkeys(texts))
        found: dict[str, np.ndarray] = {}
        with self._lock:
            for text in unique:
                if text in self._states:
                    self._states.move_to_end(text)
                    found[text] = self._states[text]
        missing = [text for text in unique if text not in found]
        for start in range(0, len(missing), BATCH_SIZE):
            part = missing[start : start + BATCH_SIZE]
            states = self.session.run(self.tokenizer(part, self.spec.context))
            for text, own in zip(part, states, strict=True):
                found[text] = own.copy()  # a view would keep the whole batch
                found[text].flags.writeable = False
        with self._lock:
            for text in missing:
                self._states[text] = found[text]
            while len(self._states) > self._remembered:
                self._states.popitem(last=False)
        return found
