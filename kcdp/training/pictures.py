"""From a configuration to the pictures of a run, and what is known of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from kcdp.config import Config
from kcdp.data.dataset import ImageDataset
from kcdp.data.loader import TensorDataset
from kcdp.data.registry import open_datasets, parse_spec
from kcdp.errors import KcdpError
from kcdp.knowledge.text import TextEncoder
from kcdp.training.knowledge import KnowledgeReader
from kcdp.training.progress import Pictures


def open_pictures(config: Config) -> tuple[Pictures, TextEncoder | None]:
    """The augmented pictures to train on, the plain ones to validate on, each with its knowledge tokens.

    Returns:
        the pictures, and the text encoder where one had to be opened.

    Raises:
        KcdpError: a dataset cannot be opened, holds pictures without a label, or captions are missing.
    """
    data, training, text = config.data, config.training, config.model.text
    source = open_datasets(data.source, split="train")
    validation = _open_validation(data.validation, data.source)
    for name, dataset in (("source", source), ("validation", validation)):
        _require_labels(name, dataset)
    target = open_datasets(data.target, split="train") if data.target else None
    reader = KnowledgeReader(config) if data.captions else None

    if target is not None and reader is not None:
        _warn_of_labels(reader, target)

    def tensors(dataset: ImageDataset, prefix: str, augmentation: str, strong: str = "") -> TensorDataset:
        knowledge = None
        if reader is not None:
            knowledge = reader.read(dataset, prefix=prefix, measuring=dataset is validation)
        return TensorDataset(
            dataset, config.preprocess, augmentation, training.seed, strong=strong, knowledge=knowledge,
            views=training.views, tolerant=dataset is not validation,
        )  # fmt: skip

    strong = training.strong_augmentation if training.pseudo_labels.views == "weak-strong" else ""
    pictures = Pictures(
        tensors(source, text.source_prefix, training.augmentation),
        tensors(validation, text.source_prefix, "none"),
        None if target is None else tensors(target, text.target_prefix, training.augmentation, strong),
    )
    return pictures, None if reader is None else reader.encoder


def _warn_of_labels(reader: KnowledgeReader, target: ImageDataset) -> None:
    leaking = [file for file in reader.files if file.leaks_labels]
    keys = {sample.key for sample in target.samples}
    told = sum(row.leaks_labels and row.key in keys for file in leaking for row in file)
    if told and os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
        print(f"warning: {told} captions of the target may hold its labels: pseudo-labels can read them there, so no "
              "accuracy on these pictures counts", file=sys.stderr)  # fmt: skip


def _open_validation(named: Sequence[str], source: Sequence[str]) -> ImageDataset:
    if named:
        return open_datasets(named, split="val")
    try:
        return open_datasets(_validation_of(source), split="val")
    except KcdpError as error:
        told = "--validation" in f"{error.expected}{error.fix}"
        raise KcdpError(
            error.received, error.expected, error.fix if told else "name validation pictures: --validation SPEC"
        ) from None


def _validation_of(source: Sequence[str]) -> Sequence[str]:
    """The sources again; their own ``split=`` option, if any, must not decide the validation split."""
    for text in source:
        if "split" in parse_spec(text).options:
            raise KcdpError(
                f"--source {text!r} names a split, so its validation pictures are unknown",
                "--validation SPEC as well",
                "add it, or leave split= out of the source",
            )
    return source


def _require_labels(name: str, dataset: ImageDataset) -> None:
    unlabelled = int((dataset.labels < 0).sum())
    if unlabelled:
        raise KcdpError(
            f"{name} {dataset.name!r} has {unlabelled} pictures without a label of {len(dataset)}",
            "only labelled pictures",
            "add ?only=labelled",
        )
