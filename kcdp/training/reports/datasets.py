"""Which pictures an evaluation looks at, and which of them the model has seen before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kcdp.config import Config
from kcdp.data.dataset import ImageDataset
from kcdp.data.registry import native_splits, open_dataset, open_datasets, parse_spec
from kcdp.errors import KcdpError
from kcdp.training.reports.specs import specs

if TYPE_CHECKING:
    from kcdp.data.loader import TensorDataset


def open_for_evaluation(data: str) -> ImageDataset:
    """The labelled pictures of the dataset's own test split, or of all of it where it has no splits of its own.

    A ``split=`` in the dataset string wins.
    """
    return labelled(_test_split(data))


def open_neutral(data: str) -> ImageDataset:
    """Pictures without an emotion: the dataset's own test split, or all of it where it has no splits of its own.

    Raises:
        KcdpError: some of them have a label.
    """
    dataset = _test_split(data)
    with_label = int((dataset.labels >= 0).sum())
    if with_label:
        raise KcdpError(
            f"--neutral {data!r} has {with_label} pictures with a label of {len(dataset)}",
            "pictures that show none of the six emotions, without labels",
            "choose them, where the dataset knows them, by neutral=only",
        )
    return dataset


def open_validation(config: Config) -> ImageDataset:
    """The labelled pictures that chose the run's best checkpoint.

    Raises:
        KcdpError: the run names none, or they cannot be opened here.
    """
    named = specs(config.data.validation) or specs(config.data.source)
    if not named:
        raise KcdpError("the run's configuration names no source")
    if not specs(config.data.validation):
        for spec in named:
            if "split" in parse_spec(spec).options:
                raise KcdpError(f"the run's source {spec!r} names a split and the run no validation pictures")
    return labelled(open_datasets(named, split="val"))


def _test_split(data: str) -> ImageDataset:
    dataset = open_dataset(data)
    if "split" not in parse_spec(data).options and "test" in native_splits(dataset):
        dataset = open_dataset(data, split="test")
    return dataset


def labelled(dataset: ImageDataset) -> ImageDataset:
    """The labelled pictures of a dataset.

    Raises:
        KcdpError: there are none.
    """
    indices = (dataset.labels >= 0).nonzero()[0].tolist()
    if not indices:
        raise KcdpError(f"{dataset.name!r} has no labelled picture", "pictures with labels", "name another dataset")
    return dataset if len(indices) == len(dataset) else dataset.subset(indices)


def with_knowledge(dataset: ImageDataset, config: Config, captions: Sequence[str], domain: str) -> TensorDataset:
    """The pictures as tensors, each with its knowledge tokens where the model is told them.

    Args:
        captions: captions files; empty: those the model was trained with.
        domain: "source" or "target", whose prefix is put before the captions.

    Raises:
        KcdpError: captions missing, captions that may name the label, or captions for a model that takes none.
    """
    from kcdp.data.loader import TensorDataset
    from kcdp.training.knowledge import KnowledgeReader

    mode, text = config.model.knowledge.mode, config.model.text
    if mode != "explicit":
        if captions:
            raise KcdpError(
                f'--captions for a model of the knowledge mode "{mode}"', "none: it takes the picture alone",
                "leave out --captions",
            )  # fmt: skip
        return TensorDataset(dataset, config.preprocess)
    prefix = text.source_prefix if domain == "source" else text.target_prefix
    knowledge = KnowledgeReader(config, captions).read(dataset, prefix=prefix, measuring=True)
    return TensorDataset(dataset, config.preprocess, knowledge=knowledge)


def warnings(data: str, config: Config) -> list[str]:
    """What must be said of measuring on these pictures: that the model was trained on, adapted to or chosen by them.

    Returns:
        at most one sentence, without a full stop; empty where nothing is known against it.
    """
    seen = config.data
    trained = [(spec, "trained on") for spec in specs(seen.source)]
    adapted = [(spec, "adapted, without labels, to") for spec in specs(seen.target)]
    before = [(spec, "started from one that had seen") for spec in specs(seen.ancestors)]
    for spec, how in (*trained, *adapted, *before):
        if _share_pictures(data, spec, "train"):
            return [f"this model was {how} some of these pictures; add split=test"]
    if config.training.select == "validation" and validated(data, config):
        return ["this model's checkpoint was chosen by some of these pictures; add split=test"]
    return []


def validated(data: str, config: Config) -> bool:
    """Whether what is measured has pictures in common with the run's validation pictures."""
    named = specs(config.data.validation) or specs(config.data.source)
    return any(_share_pictures(data, spec, "val") for spec in named)


def measured_split(data: str) -> str:
    """The split of a dataset string that is measured: its own, else "test", or "all" where it has no splits."""
    named = parse_spec(data).options.get("split")
    return named or ("test" if "test" in native_splits(open_dataset(data)) else "all")


def same_place(data: str, other: str) -> bool:
    """Whether two dataset strings are of one kind and one path: the options may differ."""
    first, second = parse_spec(data), parse_spec(other)
    return (first.kind, first.path) == (second.kind, second.path)


def _share_pictures(data: str, other: str, split: str) -> bool:
    """Whether what is measured has pictures in common with what another dataset string has in a split.

    Strings that differ in more than the kind's common options are compared by the keys of their pictures.
    """
    if not same_place(data, other):
        return False
    first, second = parse_spec(data), parse_spec(other)
    if first.own_options == second.own_options:
        measured, taken = measured_split(data), second.options.get("split", split)
        return measured == taken or "all" in (measured, taken)
    try:
        keys = {sample.key for sample in open_dataset(other, split=split).samples}
    except KcdpError:  # it is not here any more
        return False
    return any(sample.key in keys for sample in _test_split(data).samples)
