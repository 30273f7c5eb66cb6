"""Every dataset's own classes against the method's table, written out here a second time."""

from __future__ import annotations

import pytest

from kcdp.errors import KcdpError
from kcdp.labels import DATASET_CLASSES, LABELS, NUM_CLASSES, map_class

DROPPED = "(dropped)"

MIKELS = {
    "amusement": "happy", "anger": "anger", "awe": "surprise", "contentment": "happy", "disgust": "disgust",
    "excitement": "surprise", "fear": "fear", "sadness": "sad",
}  # fmt: skip

TABLE: dict[str, dict[str | int, str]] = {
    "emoset": MIKELS,
    "ser30k": {
        "surprise": "surprise", "happiness": "happy", "sadness": "sad", "anger": "anger", "disgust": "disgust",
        "fear": "fear", "neutral": DROPPED,
        1: "surprise", 2: "happy", 3: "disgust", 4: "fear", 5: "sad", 6: "anger", 7: DROPPED,
    },
    "fi": {
        **MIKELS,
        0: "happy", 1: "anger", 2: "surprise", 3: "happy", 4: "disgust", 5: "surprise", 6: "fear", 7: "sad",
    },
    "emotion6": {
        "anger": "anger", "disgust": "disgust", "fear": "fear", "joy": "happy", "sadness": "sad",
        "surprise": "surprise",
    },
    "emo8": MIKELS,
    "fer2013": {
        "angry": "anger", "anger": "anger", "disgust": "disgust", "fear": "fear", "happy": "happy", "sad": "sad",
        "surprise": "surprise", "neutral": DROPPED,
        0: "anger", 1: "disgust", 2: "fear", 3: "happy", 4: "sad", 5: "surprise", 6: DROPPED,
    },
    "folder": {
        "surprise": "surprise", "surprised": "surprise", "excitement": "surprise", "awe": "surprise",
        "happy": "happy", "happiness": "happy", "joy": "happy", "contentment": "happy", "amusement": "happy",
        "disgust": "disgust", "disgusted": "disgust", "fear": "fear", "fearful": "fear",
        "sad": "sad", "sadness": "sad", "anger": "anger", "angry": "anger", "neutral": DROPPED,
    },
}  # fmt: skip


TABLE["csv"] = TABLE["folder"]


def name_of(dataset: str, raw: str | int) -> str:
    index = map_class(dataset, raw)
    return DROPPED if index is None else LABELS[index]


def test_the_six_labels_and_their_order():
    assert LABELS == ("surprise", "happy", "disgust", "fear", "sad", "anger") and NUM_CLASSES == 6


def test_there_is_a_row_for_every_dataset():
    assert set(TABLE) == set(DATASET_CLASSES) and len(TABLE) == 8


@pytest.mark.parametrize("dataset", TABLE)
def test_every_class_of_a_dataset(dataset):
    assert {raw: name_of(dataset, raw) for raw in DATASET_CLASSES[dataset]} == TABLE[dataset]


@pytest.mark.parametrize("dataset", TABLE)
def test_every_dataset_knows_all_six_labels(dataset):
    assert set(TABLE[dataset].values()) - {DROPPED} == set(LABELS)


def test_case_and_spaces_around_a_name_do_not_matter():
    assert map_class("emoset", " Awe ") == map_class("emoset", "awe") == 0
    assert map_class("fer2013", "NEUTRAL") is None


def test_numbers_are_the_datasets_own():
    assert [map_class(name, 1) for name in ("ser30k", "fi", "fer2013")] == [0, 5, 2]


@pytest.mark.parametrize(
    ("dataset", "raw"),
    [("ser30k", 0), ("ser30k", 8), ("fi", 8), ("fi", -1), ("fer2013", 7), ("emoset", 0), ("emotion6", "neutral"),
     ("emo8", "joy"), ("emoset", ""), ("folder", 1)],
)  # fmt: skip
def test_a_class_that_a_dataset_does_not_have(dataset, raw):
    with pytest.raises(KcdpError) as caught:
        map_class(dataset, raw)
    assert str(caught.value).startswith(f"{dataset}: class {raw!r} is unknown")


def test_an_unknown_class_names_the_nearest_and_all_valid_ones():
    with pytest.raises(KcdpError) as caught:
        map_class("emotion6", "Angre")
    assert str(caught.value) == (
        "emotion6: class 'Angre' is unknown (did you mean 'anger'?); expected one of anger, disgust, fear, joy, "
        "sadness, surprise; rename the class or leave those pictures out"
    )
