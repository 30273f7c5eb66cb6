"""A model's answers for a whole dataset, in order, without touching its weights."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from kcdp.data.dataset import ImageDataset
from kcdp.data.loader import TensorDataset, evaluation_batches
from kcdp.models.kadap import Kadap
from kcdp.preprocess import PreprocessSpec
from kcdp.training.device import autocast


def predict_logits(
    model: Kadap,
    data: ImageDataset | TensorDataset,
    spec: PreprocessSpec,
    *,
    device: torch.device,
    batch_size: int = 64,
    dtype: torch.dtype | None = None,
    progress: str = "",
) -> np.ndarray:
    """Logits of every picture.

    Args:
        data: a dataset, or one already wrapped (its cache is then used; it must have no augmentation).
        dtype: 16-bit type for mixed precision, None for float32.
        progress: what to write before the progress bar; empty: no bar.

    Returns:
        float32 [N, 6].
    """
    tensors = data if isinstance(data, TensorDataset) else TensorDataset(data, spec)
    was_training = model.training
    model.eval()
    rows = []
    try:
        with torch.inference_mode(), autocast(device, dtype):
            batches = evaluation_batches(tensors, batch_size)
            silent = None if progress else True  # None: only on a terminal
            for images, _ in tqdm(batches, desc=progress, disable=silent, leave=False, unit="batch"):
                rows.append(model(images.to(device)).logits.float().cpu().numpy())
    finally:
        model.train(was_training)
    return np.concatenate(rows)
