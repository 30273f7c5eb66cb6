"""What a model needs of the text encoder: from a checkpoint, else from the encoder itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from kcdp.knowledge.embedding import constant_tokens
from kcdp.knowledge.open_text import open_text
from kcdp.knowledge.text import TextEncoder
from kcdp.settings import ModelConfig


class TextSide:
    """Answers from tensors that are there already; the encoder is opened when it is first asked.

    Args:
        model: describes the encoder.
        encoder: the same, where it is open already.
        state: trained tensors of a checkpoint, by name.

    Attributes:
        state: the same.
    """

    def __init__(self, model: ModelConfig, encoder: TextEncoder | None, state: Mapping[str, Any]) -> None:
        self.state = state
        self._model, self._encoder = model, encoder

    def get(self, name: str, ask: Callable[[TextEncoder], torch.Tensor]) -> torch.Tensor:
        """The buffer ``name``, or what ``ask`` has to say.

        Raises:
            KcdpError: see ``open_text``.
        """
        if name in self.state:
            return torch.as_tensor(self.state[name])
        if self._encoder is None:
            self._encoder = open_text(self._model)
        return ask(self._encoder)

    def constant_knowledge(self, tokens: int) -> torch.Tensor | None:
        """The states of ``model.knowledge.text``, float32 [1, tokens, W]; None where tokens are to be learned."""
        text = self._model.knowledge.text
        if not text:
            return None
        return self.get("knowledge.embedding", lambda encoder: constant_tokens(text, tokens, encoder).unsqueeze(0))
