"""Where a bundle's knowledge comes from: what a run offers, and what was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kcdp.errors import KcdpError
from kcdp.knowledge.embedding import constant_tokens, knowledge_tokens
from kcdp.knowledge.open_text import open_text
from kcdp.knowledge.text import TextEncoder
from kcdp.knowledge.triples import open_extractor, triples_text
from kcdp.models.kadap import Kadap
from kcdp.settings import ModelConfig

#: A run's knowledge mode -> what its bundles can be, the first by default.
OFFERS = {
    "constant": ("constant",),
    "implicit": ("implicit", "input", "constant"),
    "explicit": ("input", "constant"),
}


@dataclass(frozen=True)
class KnowledgeChoice:
    """What the graph does about knowledge.

    Attributes:
        mode: "input", "constant" or "implicit".
        fixed: float32 [1, T, W]: a text's tokens, for a "constant" bundle of a run that is told by captions; else None.
        text: that text.
        encoder: the run's text encoder, for "input"; else None.
    """

    mode: str
    fixed: torch.Tensor | None = None
    text: str = ""
    encoder: TextEncoder | None = None


def choose_knowledge(model: Kadap, config: ModelConfig, wanted: str | None, text: str | None) -> KnowledgeChoice:
    """Decide.

    Args:
        wanted: ``--knowledge``; None: the default of the run's own mode.
        text: ``--text``: the sentence of a "constant" bundle of a run that is told by captions.

    Raises:
        KcdpError: the run does not offer it, or a text where none can be used.
    """
    own = config.knowledge.mode
    offered = OFFERS[own]
    mode = offered[0] if wanted is None else wanted
    if mode not in offered:
        hint = ""
        if mode == "implicit":
            hint = ("teach an adapter: kcdp train --source SPEC --captions FILE --set model.knowledge.mode=implicit "
                    "--set training.implicit=distill --set training.init_from=RUN --out RUN2")  # fmt: skip
        raise KcdpError(f"--knowledge {mode} of a run with the knowledge mode {own!r}", ", ".join(offered), hint)
    takes_text = mode == "constant" and own != "constant"
    if text is not None and not takes_text:
        raise KcdpError(
            f"--text with --knowledge {mode} of a run with the knowledge mode {own!r}",
            "no text: it is for --knowledge constant of a run that is told by captions",
        )
    if not takes_text:
        return KnowledgeChoice(mode, encoder=open_text(config) if mode == "input" else None)
    if not text:
        raise KcdpError(
            f"--knowledge constant of a run with the knowledge mode {own!r}", "the one text of all pictures",
            'add --text "a sticker"',
        )  # fmt: skip
    fixed = constant_tokens(text, model.features.tokens, open_text(config)).unsqueeze(0)
    return KnowledgeChoice(mode, fixed, text)


#: Texts that stand for captions when a graph that takes knowledge is measured and compared; the last gives no triple.
SENTENCES = (
    "a yellow duck waves its wings and laughs happily", "a woman covers her face with both hands and cries",
    "a cat stares at an empty bowl", "an angry man shouts at the phone", "two friends hug each other in the rain",
    "a ghost jumps out of a box", "a child holds a melting ice cream and sobs", "thumbs up",
)  # fmt: skip


def sample_knowledge(encoder: TextEncoder, count: int) -> np.ndarray:
    """Knowledge tokens of sample sentences, in turn, float32 [count, T, W]."""
    extractor = open_extractor("rules")
    made = [
        knowledge_tokens(text, triples_text(text, extractor, " "), encoder.encode).numpy()
        for text in SENTENCES[: max(1, min(count, len(SENTENCES)))]
    ]
    return np.stack([made[i % len(made)] for i in range(count)])
