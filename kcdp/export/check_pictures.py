"""The pictures that a graph is checked on, and how they reach it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kcdp.data.dataset import ImageDataset
from kcdp.data.registry import open_dataset, open_datasets
from kcdp.errors import KcdpError
from kcdp.settings import DataConfig

#: How many of a run's own pictures are taken.
CHECK_PICTURES = 200

Feed = Mapping[str, np.ndarray]


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
        pictures = pictures.spread(CHECK_PICTURES)
    if not len(pictures):
        raise KcdpError("no pictures to check the graph on", "at least one", "name some with --check-images")
    return pictures


def preparation(scaling: Mapping[str, Any]) -> Callable[[dict[str, np.ndarray]], Feed]:
    """What a bundle's graph takes, from bytes: themselves or, of a plain export, scaled pictures with channels first.

    Args:
        scaling: of the manifest.
    """
    if not scaling:
        return dict
    scale, shift = (np.array(scaling[name], np.float32).reshape(1, -1, 1, 1) for name in ("scale", "shift"))

    def prepare(feed: dict[str, np.ndarray]) -> Feed:
        return {**feed, "images": feed["images"].transpose(0, 3, 1, 2).astype(np.float32) * scale + shift}

    return prepare
