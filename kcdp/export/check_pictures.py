"""What a graph is checked on: pictures, and sentences for a graph that is told what they show."""

from __future__ import annotations

import numpy as np
import torch

from kcdp.data.dataset import ImageDataset
from kcdp.data.registry import open_dataset, open_datasets
from kcdp.errors import KcdpError
from kcdp.knowledge.embedding import constant_tokens
from kcdp.knowledge.text import TextEncoder
from kcdp.preprocess import PreprocessSpec
from kcdp.settings import DataConfig

#: How many of a run's own pictures are taken.
CHECK_PICTURES = 200
#: Told in turn about pictures that come without words. They need not be true: both sides are told the same.
SENTENCES = (
    "a sticker", "a happy dog with its tongue out", "a person crying in the rain", "an angry face, red with rage",
    "two friends surprised by a birthday cake", "a child afraid of the dark", "somebody who smells rotten fish", "😂",
)  # fmt: skip


def check_pictures(spec: str | None, data: DataConfig) -> ImageDataset:
    """Those of ``--check-images``, else up to ``CHECK_PICTURES`` of the run's validation pictures, spread over them.

    Args:
        spec: a dataset string.
        data: of the run.

    Raises:
        KcdpError: they cannot be opened, or there are none.
    """
    if spec is not None:
        pictures = open_dataset(spec)
    else:
        try:
            pictures = open_datasets(data.validation or data.source, split="val")
        except KcdpError as error:
            raise KcdpError(
                f"the run's validation pictures cannot be opened ({error.received})",
                fix="name others with --check-images SPEC",
            ) from None
        step = max(1, len(pictures) // CHECK_PICTURES)
        pictures = pictures.subset(range(0, len(pictures), step)[:CHECK_PICTURES])
    if not len(pictures):
        raise KcdpError("no pictures to check the graph on", "at least one", "name some with --check-images")
    return pictures


def check_inputs(
    pictures: ImageDataset, preprocess: PreprocessSpec, encoder: TextEncoder | None = None, tokens: int = 0
) -> dict[str, np.ndarray]:
    """The graph's inputs by name.

    Args:
        encoder: of a graph that takes knowledge; None: it does not.
        tokens: how many knowledge tokens it takes.

    Returns:
        "images" uint8 [N, S, S, 3] and, with an encoder, "knowledge" float32 [N, tokens, W]: of the words that come
        with a picture, else of one of ``SENTENCES``.
    """
    inputs = {"images": preprocess.apply_batch([pictures.image(i) for i in range(len(pictures))])}
    if encoder is not None:
        texts = [sample.text or SENTENCES[i % len(SENTENCES)] for i, sample in enumerate(pictures.samples)]
        states = {text: constant_tokens(text, tokens, encoder) for text in dict.fromkeys(texts)}
        inputs["knowledge"] = torch.stack([states[text] for text in texts]).float().cpu().numpy()
    return inputs
