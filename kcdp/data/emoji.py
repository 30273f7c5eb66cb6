"""``emoji:DIR``: face emoji in several artworks, as ``kcdp data emoji --out DIR`` wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from kcdp.data.dataset import ImageDataset, Sample
from kcdp.decoding import decode
from kcdp.errors import KcdpError, nearest
from kcdp.files import read_json
from kcdp.labels import LABELS

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


class EmojiDataset(ImageDataset):
    """RGBA pictures with a transparent background. Keys are ``style/CODE``, the group is the style.

    The pictures have no splits of their own, and one by key would put the same face, drawn by two hands, on both
    sides: use all of it, or choose by style.

    Attributes:
        root: the folder.
        names: CLDR short name of each sample, in the samples' order.
    """

    def __init__(self, name: str, path: str | Path, styles: Sequence[str] | None = None) -> None:
        """
        Args:
            name: the dataset string.
            path: the folder that holds ``manifest.json``.
            styles: the artworks wanted, in this order; None for all in the manifest.

        Raises:
            KcdpError: no manifest, one that another version wrote, or a style it does not have.
        """
        self.root = Path(path).expanduser()
        manifest = read_manifest(self.root)
        available = list(manifest["styles"])
        wanted = available if styles is None else list(dict.fromkeys(styles))
        for style in wanted:
            if style not in available:
                raise KcdpError(
                    f"{self.root} has no style {style!r}{nearest(style, available)}", f"any of {', '.join(available)}"
                )
        pictures = [p for style in wanted for p in manifest["pictures"] if p["style"] == style]
        self.names = tuple(str(p["name"]) for p in pictures)
        self._files = tuple(str(p["file"]) for p in pictures)
        super().__init__(name, [_sample(p, self.root) for p in pictures])

    def image(self, index: int) -> Image.Image:
        """See ``ImageDataset.image``."""
        return decode(self.path_of(index))

    def path_of(self, index: int) -> Path:
        """See ``ImageDataset.path_of``."""
        return self.root / self._files[index]


def read_manifest(root: Path) -> dict[str, Any]:
    """The folder's manifest.

    Raises:
        KcdpError: it is missing, unreadable, or of a format this version does not know.
    """
    path, fix = root / MANIFEST, f"run: kcdp data emoji --out {root}"
    if not path.is_file():
        raise KcdpError(f"{root} has no {MANIFEST}", "a folder of emoji artwork", fix)
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("kind") != "emoji":
        raise KcdpError(f"{path} does not describe emoji artwork", "a folder of emoji artwork", fix)
    if manifest.get("format") != FORMAT_VERSION:
        raise KcdpError(f"{path} has format {manifest.get('format')!r}", str(FORMAT_VERSION), f"{fix} --overwrite")
    return manifest


def _sample(picture: dict[str, Any], root: Path) -> Sample:
    label = picture["label"]
    if label is not None and label not in LABELS:
        raise KcdpError(
            f"{root / MANIFEST}: {picture['code']} has the label {label!r}", f"null or one of {', '.join(LABELS)}"
        )
    key = f"{picture['style']}/{picture['code']}"
    return Sample(key, None if label is None else LABELS.index(label), group=picture["style"])
