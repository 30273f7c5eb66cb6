"""A map of the visual features v in two dimensions, to see whether emotions lie apart and domains together."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kcdp.files import atomic_file
from kcdp.labels import LABELS
from kcdp.training.reports.measurement import Answers

#: Fewer pictures than this make no map.
FEWEST = 10
PERPLEXITY, COMPONENTS = 30.0, 50


@dataclass(frozen=True)
class Embedding:
    """A map of pictures.

    Attributes:
        places: float64 [N, 2]; distances between far groups mean little in t-SNE.
        labels: int64 [N], index in LABELS.
        domains: int64 [N], index in ``names``.
        names: dataset strings.
        keys: of the pictures.
    """

    places: np.ndarray
    labels: np.ndarray
    domains: np.ndarray
    names: tuple[str, ...]
    keys: tuple[str, ...]


def embed(answers: Sequence[Answers], limit: int, seed: int) -> Embedding | None:
    """t-SNE (van der Maaten and Hinton, JMLR 2008) of the v of some of the pictures.

    v is brought to its first principal components before, as the authors did.

    Args:
        answers: labelled datasets; each gives as many pictures as the others, as far as it has them.
        limit: of pictures in all.
        seed: of the choice and of the map.

    Returns:
        None where there are fewer than ``FEWEST`` pictures.
    """
    from sklearn.manifold import TSNE

    generator = np.random.default_rng(seed)
    shares = fair_shares([len(one.data) for one in answers], limit)
    chosen = [np.sort(generator.permutation(len(one.data))[:n]) for one, n in zip(answers, shares, strict=True)]
    v = np.concatenate([one.predictions.v[rows] for one, rows in zip(answers, chosen, strict=True)])
    if len(v) < FEWEST:
        return None
    # In 64 bits: features that are all alike must not become differences by rounding.
    centred = v.astype(np.float64) - v.mean(axis=0, dtype=np.float64)
    directions, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    reduced = directions[:, :COMPONENTS] * lengths[:COMPONENTS]
    start = reduced[:, :2] if reduced.shape[1] > 1 else np.pad(reduced, ((0, 0), (0, 1)))
    spread = max(float(start[:, 0].std()), 1e-12)  # TSNE's own scaling divides by it, zero or not
    tsne = TSNE(
        init=1e-4 * start / spread, perplexity=min(PERPLEXITY, (len(v) - 1) / 3), random_state=seed, n_jobs=1
    )  # fmt: skip
    return Embedding(
        places=tsne.fit_transform(reduced).astype(np.float64),
        labels=np.concatenate([one.data.labels[rows] for one, rows in zip(answers, chosen, strict=True)]),
        domains=np.repeat(np.arange(len(answers)), [len(rows) for rows in chosen]),
        names=tuple(one.name if one.role == "measured" else f"{one.name} ({one.role})" for one in answers),
        keys=tuple(one.data.samples[i].key for one, rows in zip(answers, chosen, strict=True) for i in rows),
    )


def fair_shares(sizes: Sequence[int], limit: int) -> list[int]:
    """How many pictures each dataset gives: the same number, and what one of them lacks is shared by the others.

    Returns:
        one number for each of ``sizes``, none above it; their sum is the smaller of ``limit`` and the sum of sizes.
    """
    shares = [0] * len(sizes)
    left = limit
    for rank, number in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        shares[number] = min(sizes[number], left // (len(sizes) - rank))
        left -= shares[number]
    return shares


def write_embedding(path: Path, embedding: Embedding) -> None:
    """CSV with a header: dataset, key, label, x, y."""
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with atomic_file(path) as temporary, temporary.open("w", **options) as handle:
        rows = csv.writer(handle)
        rows.writerow(("dataset", "key", "label", "x", "y"))
        columns = (embedding.keys, embedding.labels, embedding.domains, embedding.places)
        for key, label, domain, (x, y) in zip(*columns, strict=True):
            rows.writerow([embedding.names[domain], key, LABELS[label], f"{x:.4f}", f"{y:.4f}"])
