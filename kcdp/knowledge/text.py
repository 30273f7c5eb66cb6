"""Texts become token states: the interface, CLIP's text tower, and a seeded stand-in where no weights exist.

Tokens are those of open_clip's tokenizer: start-of-text, the words in lower case as byte-pair pieces, end-of-text,
then zeros up to the context length. (The transformers library, and with it the text encoder that Stable Diffusion was
trained with, repeats end-of-text instead. The attention is causal, so only the states behind the first
end-of-text differ; open_clip is followed here.) A longer text is cut, its last token is end-of-text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from kcdp.errors import KcdpError, require
from kcdp.knowledge.text_weights import load_text_weights
from kcdp.knowledge.tower import TextTower, TowerShape, fingerprint, parameter_shapes


class TextEncoder(ABC):
    """Texts in, token states out. Implementations provide ``_tokenize`` and ``_states``.

    Attributes:
        name: identity: encoders of one name give one text the same states. Holds a hash of the weights.
        tokens: tokens per text, padding included (77 for CLIP).
        width: width of a token state (768 for CLIP ViT-L/14).
        batch_size: texts per pass.
    """

    name: str
    tokens: int
    width: int
    batch_size: int = 64

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """int64 [N, tokens]: start-of-text, words, end-of-text (the largest id of a row), zeros.

        Raises:
            KcdpError: not a list of strings.
        """
        wrong = [text for text in texts if not isinstance(text, str)]
        if isinstance(texts, str) or wrong:
            raise KcdpError(f"the texts are {texts if isinstance(texts, str) else wrong[0]!r}", "a list of strings")
        return self._tokenize(list(texts)) if texts else torch.empty(0, self.tokens, dtype=torch.int64)

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Token states after the final LayerNorm: no pooling, no projection.

        Returns:
            float32 [N, tokens, width] on the CPU. Padding has states too.

        Raises:
            KcdpError: not a list of strings.
        """
        batches = self.tokenize(texts).split(self.batch_size)
        with torch.no_grad():
            states = [self._states(ids).float().cpu() for ids in batches if len(ids)]
        return torch.cat(states) if states else torch.empty(0, self.tokens, self.width)

    @abstractmethod
    def _tokenize(self, texts: list[str]) -> torch.Tensor:
        """int64 [N, tokens] of one text or more."""

    @abstractmethod
    def _states(self, ids: torch.Tensor) -> torch.Tensor:
        """[N, tokens, width] of at most ``batch_size`` rows of ids."""


class _TowerText(TextEncoder):
    """A text tower behind open_clip's tokenizer.

    Attributes:
        shape: the tower's sizes.
        tower: token ids to states; frozen, in evaluation mode. What an exporter of the text side exports.
    """

    def __init__(self, kind: str, shape: TowerShape, tensors: dict[str, torch.Tensor], device: str) -> None:
        self.name = f"{kind}-{shape.width}x{shape.layers}-{fingerprint(shape, tensors)}"
        self.tokens, self.width, self.shape = shape.tokens, shape.width, shape
        self.tower = TextTower(shape, tensors).to(device)
        self._device = device

    def _tokenize(self, texts: list[str]) -> torch.Tensor:
        ids: torch.Tensor = require("open_clip", "train").tokenize(texts, context_length=self.tokens)
        return ids

    def _states(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(torch.device(self._device).type, enabled=False):
            states: torch.Tensor = self.tower(ids.to(self._device))
        return states


class OpenClipText(_TowerText):
    """The text tower of a CLIP model; its visual tower is never built.

    Args:
        model: open_clip's name of the model. For OpenAI's weights it must be a "-quickgelu" one. Not asked
            where ``weights`` is a folder that describes its model itself.
        weights: a file (``.safetensors``, ``.pt``, OpenAI's TorchScript included, ``.bin``); a folder in open_clip's or
            transformers' layout (``text_encoder`` of Stable Diffusion, say); or, where nothing of that name
            exists and there is a network, a pretrained tag of open_clip such as "openai".
        device: where the tower runs.

    Raises:
        KcdpError: weights missing, damaged or of another model; model unknown.
    """

    def __init__(self, model: str = "ViT-L-14-quickgelu", weights: str = "openai", *, device: str = "cpu") -> None:
        shape, tensors = load_text_weights(model, str(weights))
        super().__init__("clip-text", shape, tensors, device)


class SeededText(_TowerText):
    """Fixed random features of words, for models made from scratch where no CLIP weights are at hand.

    A text tower of CLIP's form whose weights are drawn from ``seed`` and never trained. It tells texts apart by
    their words and the words' order, the same on every machine; it knows nothing of what a word means: "sad" is as
    far from "unhappy" as from "happy".

    Args:
        width: width of a token state.
        layers, heads: of the transformer.
        seed: of the weights.
        tokens: context length; 32 keeps small models small.

    Raises:
        KcdpError: sizes out of range or heads that do not divide the width.
    """

    def __init__(
        self, width: int, layers: int = 2, heads: int = 4, seed: int = 0, *, tokens: int = 77, device: str = "cpu"
    ) -> None:
        if seed < 0:
            raise KcdpError(f"seed of the text encoder is {seed}", "0 or more")
        shape = TowerShape(width, layers, heads, tokens)
        super().__init__("seeded-text", shape, _seeded_tensors(shape, seed), device)


def _seeded_tensors(shape: TowerShape, seed: int) -> dict[str, torch.Tensor]:
    """Weights by name. Uniform numbers of numpy: the same bits everywhere, whatever the processor.

    A token's embedding (deviation 1) outweighs its position (0.5) and what the blocks add, so that a word's state is
    above all its own.
    """
    random = np.random.default_rng(seed)
    tensors = {}
    for name, size in parameter_shapes(shape).items():
        if len(size) == 1:
            value = np.full(size, float(name.endswith("weight")), dtype=np.float32)  # norms 1, biases 0
        else:
            spread = {"token_embedding.weight": 1.0, "positional_embedding": 0.5}.get(name, size[-1] ** -0.5)
            value = random.random(size, dtype=np.float32)
            value -= np.float32(0.5)
            value *= np.float32(spread * 12**0.5)
        tensors[name] = torch.from_numpy(value)
    return tensors
