"""A model's answers for a whole dataset, in order, without touching its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from kcdp.data.dataset import ImageDataset
from kcdp.data.loader import TensorDataset, evaluation_batches
from kcdp.models.network import EmotionNetwork
from kcdp.preprocess import PreprocessSpec
from kcdp.torch_device import autocast


@dataclass(frozen=True)
class Predictions:
    """A model's answers for N pictures, in order.

    Attributes:
        logits: float32 [N, 6].
        gates: float32 [N, experts], rows sum to 1.
        chosen: float32 [N, experts], 1 where an expert answered.
        v: float32 [N, V], the pooled visual feature.
    """

    logits: np.ndarray
    gates: np.ndarray
    chosen: np.ndarray
    v: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """float64 [N, 6], softmax of the logits; rows sum to 1."""
        return softmax(self.logits)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities of logits divided by a temperature.

    Args:
        logits: float [N, C].
        temperature: above 0; above 1 it makes the model less sure.

    Returns:
        float64 [N, C], rows sum to 1.
    """
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def predict(
    model: EmotionNetwork,
    data: ImageDataset | TensorDataset,
    spec: PreprocessSpec,
    *,
    device: torch.device,
    batch_size: int = 64,
    dtype: torch.dtype | None = None,
    progress: str = "",
) -> Predictions:
    """Answers for every picture.

    Args:
        data: a dataset, or one already wrapped (its cache and its knowledge are then used; it must have no
            augmentation).
        dtype: 16-bit type for mixed precision, None for float32.
        progress: what to write before the progress bar; empty: no bar.
    """
    tensors = data if isinstance(data, TensorDataset) else TensorDataset(data, spec)
    was_training = model.training
    model.eval()
    rows = []
    try:
        with torch.inference_mode(), autocast(device, dtype):
            batches = evaluation_batches(tensors, batch_size)
            silent = None if progress else True  # None: only on a terminal
            for batch in tqdm(batches, desc=progress, disable=silent, leave=False, unit="batch"):
                # What is predicted from the picture is not measured with what a captioner has told of it.
                told = batch.knowledge if model.knowledge is None else None
                images, told, latents = (
                    None if part is None else part.to(device) for part in (batch.images, told, batch.latents)
                )
                output = model(images, told, latents=latents)
                parts = (output.logits, output.moe.gates, output.moe.chosen, output.v)
                rows.append([part.float().cpu().numpy() for part in parts])
    finally:
        model.train(was_training)
    return Predictions(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def predict_logits(
    model: EmotionNetwork,
    data: ImageDataset | TensorDataset,
    spec: PreprocessSpec,
    *,
    device: torch.device,
    **options: Any,
) -> np.ndarray:
    """Only the logits of ``predict``: float32 [N, 6]."""
    return predict(model, data, spec, device=device, **options).logits
