"""CLIP's image tower (Radford et al., ICML 2021), built by open_clip, with weights from one file.

The file is found as that of the text tower is; see ``kcdp.knowledge.text_weights``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kcdp.errors import KcdpError, nearest, require
from kcdp.files import read_json
from kcdp.knowledge.text_weights import Tensors, find_weights, fitting, name_the_model, read_weights

#: Of OpenAI's training pictures scaled to 0..1, by channel: what most CLIP models subtract and divide by.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_DESCRIPTION = "open_clip_config.json"


@dataclass(frozen=True)
class ImageTower:
    """The image side, and what compares it with texts.

    Attributes:
        module: float32 [N, 3, size, size], normalised, to [N, D], not of unit length.
        size: side of the pictures.
        mean, deviation: what pictures scaled to 0..1 are normalised with, by channel.
        scale: cosines are multiplied by it: exp of the trained logit scale, 100 in OpenAI's models.
        projection: float32 [W, D], from the text's state at end-of-text to the shared space.
    """

    module: nn.Module
    size: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    scale: float
    projection: torch.Tensor

    @property
    def width(self) -> int:
        """D, the entries of an embedding."""
        return self.projection.shape[1]


def load_image_tower(model: str, weights: str) -> ImageTower:
    """The image tower that ``weights`` names, in evaluation mode.

    Args:
        model, weights: as for ``OpenClipText``, but folders are of open_clip's layout.

    Raises:
        KcdpError: missing, damaged, of another model, or no CLIP image tower.
    """
    clip = require("open_clip", "train")
    folder = Path(weights) if os.path.isdir(weights) else None
    if folder is not None and not os.path.isfile(folder / _DESCRIPTION):
        raise KcdpError(f"{folder} has no {_DESCRIPTION}", "a CLIP model in open_clip's layout", "name such a folder")
    path = find_weights(model, weights)
    where = model if folder is None else str(folder / _DESCRIPTION)
    described = _described(clip, model, weights) if folder is None else read_json(folder / _DESCRIPTION)
    try:
        module, size, mean, deviation = _empty_tower(clip, described)
    except KcdpError as error:
        raise KcdpError(f"{where}: {error}") from None
    except Exception as error:  # a description from anywhere; open_clip's classes raise nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KcdpError(f"{where} is not understood ({type(error).__name__}: {reason})", "a CLIP model") from None
    tensors = read_weights(path, _image_side)
    expected = {f"visual.{name}": tuple(value.shape) for name, value in module.state_dict().items()}
    projection = tensors["text_projection"].shape
    expected |= {"text_projection": (projection[0], described_width(described)), "logit_scale": ()}
    found = fitting(expected, tensors, str(path), name_the_model(model))
    scale, text = float(found.pop("logit_scale").exp()), found.pop("text_projection")
    module.load_state_dict({name.removeprefix("visual."): value for name, value in found.items()}, assign=True)
    left = [name for name, value in module.named_buffers() if value.is_meta]
    if left:
        raise KcdpError(f"{where} describes an image tower with {left[0]}", "CLIP's own image tower")
    return ImageTower(module.eval(), size, mean, deviation, scale, text)


def described_width(described: Mapping[str, Any]) -> int:
    """Entries of an embedding, as open_clip's description says."""
    return int(described.get("model_cfg", described)["embed_dim"])


def _described(clip: Any, model: str, weights: str) -> Mapping[str, Any]:
    """open_clip's description of a model that it knows by name."""
    known = clip.list_models()
    if model not in known:
        raise KcdpError(
            f"the model {model!r} is unknown to open_clip{nearest(model, known)}", "a name such as ViT-L-14-quickgelu"
        )
    tag = {} if os.path.isfile(weights) else clip.get_pretrained_cfg(model, weights)
    preprocess = {name: tag[name] for name in ("mean", "std") if tag.get(name)}
    return {"model_cfg": clip.get_model_config(model), "preprocess_cfg": preprocess}


def _empty_tower(
    clip: Any, described: Mapping[str, Any]
) -> tuple[nn.Module, int, tuple[float, ...], tuple[float, ...]]:
    """The tower without any memory; its picture size; mean and deviation."""
    config, preprocess = described.get("model_cfg", described), described.get("preprocess_cfg") or {}
    vision = clip.CLIPVisionCfg(**config["vision_cfg"])
    if vision.timm_model_name or config.get("custom_text"):
        raise KcdpError(
            f"its image tower is {vision.timm_model_name or 'one of several parts'!r}", "CLIP's own image tower, such "
            "as that of ViT-L-14-quickgelu",
        )  # fmt: skip
    with torch.device("meta"):  # shapes only: nothing is drawn, nothing is allocated
        whole = clip.CLIP(
            config["embed_dim"], vision, clip.CLIPTextCfg(layers=1), quick_gelu=bool(config.get("quick_gelu"))
        )
    sides = vision.image_size if isinstance(vision.image_size, (tuple, list)) else (vision.image_size,) * 2
    if sides[0] != sides[1]:
        raise KcdpError(f"its pictures are {sides[0]} x {sides[1]}", "square pictures")
    mean, deviation = preprocess.get("mean") or CLIP_MEAN, preprocess.get("std") or CLIP_STD
    return whole.visual, int(sides[0]), tuple(mean), tuple(deviation)


def _image_side(names: list[str], get: Callable[[str], torch.Tensor], where: str) -> Tensors:
    """Keeps the image tower, the projection of texts, and the scale of cosines."""
    tensors: Tensors = {}
    for name in names:
        plain = name.removeprefix("module.")
        if plain.startswith("visual.") or plain in ("text_projection", "text.text_projection", "logit_scale"):
            tensors[plain.removeprefix("text.")] = get(name)
    for needed, what in (("visual.", "image tower"), ("text_projection", "text_projection"),
                         ("logit_scale", "logit_scale")):  # fmt: skip
        if not any(name.startswith(needed) for name in tensors):
            raise KcdpError(f"{where} holds no CLIP {what}", "weights of open_clip or OpenAI's CLIP")
    return tensors
