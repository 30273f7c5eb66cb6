"""What a training measures of its model now and then, on source pictures that it does not train on."""

from __future__ import annotations

from typing import Any

import numpy as np

from kcdp.config import Config
from kcdp.data.loader import TensorDataset
from kcdp.errors import KcdpError
from kcdp.models.network import EmotionNetwork
from kcdp.training.engine import Engine
from kcdp.training.metrics import classification_metrics
from kcdp.training.predict import predict_logits

#: What of the metrics is kept in checkpoints and the log.
KEPT = ("n", "accuracy", "balanced_accuracy", "macro_f1", "recall", "constant_baseline")


def validation_metrics(
    model: EmotionNetwork, validation: TensorDataset, config: Config, engine: Engine
) -> dict[str, Any]:
    """Metrics of a model; several processes share the pictures, and each gets the whole answer."""
    training, share = config.training, engine.share
    if training.validation_sample:
        validation = _sample(validation, training.validation_sample, engine)
    mine = range(share.rank, len(validation), share.world)

    def answer() -> list[tuple[int, int]]:
        if not mine:  # fewer pictures than processes
            return []
        try:
            logits = predict_logits(
                model, validation if share.world == 1 else validation.subset(mine), config.preprocess,
                device=engine.device, dtype=engine.dtype, batch_size=2 * training.batch_size,
                progress="validate" if engine.is_main else "",
            )  # fmt: skip
        except KcdpError as error:
            raise KcdpError(
                f"validation picture: {error.received}", error.expected,
                f"look at them with: kcdp data check '{validation.dataset.name}'",
            ) from None  # fmt: skip
        return list(zip(mine, logits.argmax(1).tolist(), strict=True))

    answers = dict(engine.collect(engine.together(answer)))
    predictions = np.array([answers[i] for i in range(len(validation))])
    metrics = classification_metrics(validation.labels, predictions)
    return {name: metrics[name] for name in KEPT}


def _sample(data: TensorDataset, count: int, engine: Engine) -> TensorDataset:
    """Some of the pictures, other ones every time, whatever the seed: the released evaluation.

    Every process takes those that the first one has drawn.
    """
    drawn = np.random.default_rng().permutation(len(data))[:count].tolist()
    return data.subset(sorted(engine.collect(drawn)[: len(drawn)]))
