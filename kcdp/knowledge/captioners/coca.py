"""``coca``: CoCa (Yu et al. 2022, arXiv 2205.01917) as open_clip builds and loads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kcdp.data.dataset import Sample
from kcdp.errors import KcdpError, nearest, require
from kcdp.knowledge.captioners.base import Captioner, Request
from kcdp.knowledge.captioners.beam_search import beam_search
from kcdp.preprocess import to_rgb

MODEL = "coca_ViT-L-14"
BEAMS, SHORTEST, LONGEST = 4, 5, 30
_EXPECTED = "a weights file, a folder with open_clip_config.json and weights, or a name that open_clip knows"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")


class CocaCaptioner(Captioner):
    """A short caption by beam search; a picture goes through the vision tower once.

    Args:
        model: open_clip's CoCa, on its device.
        transform: open_clip's evaluation transform: RGB image to float [3, H, W].
        tokenizer: the model's tokenizer, CLIP's byte pairs.
        name: what the rows name as the captioner.
    """

    batch_size = 8

    def __init__(self, model: Any, transform: Any, tokenizer: Any, name: str) -> None:
        if not hasattr(model, "text_decoder"):
            raise KcdpError(f"{name} is no CoCa model", "a model with a text decoder", "choose another --model")
        if not hasattr(tokenizer, "sot_token_id"):
            raise KcdpError(f"{name} has no CLIP tokenizer", "a CoCa with CLIP's tokenizer, such as coca_ViT-L-14")
        self.name = name
        self._model, self._transform, self._tokenizer = model.eval(), transform, tokenizer
        self._device = next(model.parameters()).device

    @torch.no_grad()
    def caption(self, images: Sequence[Image.Image], samples: Sequence[Sample]) -> list[str]:
        pixels = torch.stack([self._transform(to_rgb(image)) for image in images]).to(self._device)
        seen = {name: value.repeat_interleave(BEAMS, 0) for name, value in self._see(pixels).items()}

        def next_logits(ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self._model(None, ids, output_labels=False, **seen)["logits"]
            return logits[:, -1]

        rows = beam_search(
            next_logits, len(images), start=self._tokenizer.sot_token_id, end=self._tokenizer.eot_token_id,
            beams=BEAMS, shortest=SHORTEST, longest=min(LONGEST, self._model.context_length - 1), device=self._device,
        )  # fmt: skip
        return [" ".join(self._tokenizer.decode(row).split()).rstrip(" .") for row in rows]

    def _see(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self._model(pixels)
        return {"image_latent": out["image_features"], "image_embs": out["image_embs"]}


def create(request: Request) -> CocaCaptioner:
    """See ``registry``. ``--model`` is a name of open_clip or a configuration file (.json) in its form."""
    open_clip = require("open_clip", "train")
    from kcdp.torch_device import resolve_device

    device = resolve_device(request.device)
    weights = request.needed_weights("coca", _EXPECTED)
    name, pretrained = _resolve(open_clip, weights, request.model)
    try:
        model, _, transform = open_clip.create_model_and_transforms(
            name, pretrained=pretrained, device=device, require_pretrained=True
        )
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip raises whatever its parts raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise KcdpError(
            f"CoCa from {weights} cannot be loaded ({reason[:300]})", _EXPECTED, "check --weights"
        ) from error
    shown = [] if pretrained is None else [Path(request.model or MODEL).stem]
    shown.append(Path(weights).name if Path(weights).expanduser().exists() else weights)
    return CocaCaptioner(model, transform, tokenizer, " ".join(["coca", *shown]))


def _resolve(open_clip: Any, weights: str, model: str | None) -> tuple[str, str | None]:
    """open_clip's (model name, pretrained), checked before open_clip could fall back to random weights."""
    path = Path(weights).expanduser()
    if path.is_dir():
        if not (path / "open_clip_config.json").is_file() or not any(any(path.glob(end)) for end in _WEIGHTS):
            raise KcdpError(f"{path} holds no CoCa model", "open_clip_config.json and weights in it", "check --weights")
        if model is not None:
            raise KcdpError(f"--model {model} with a folder of weights", fix="leave --model out: the folder names it")
        return f"local-dir:{path}", None
    name = _model_name(open_clip, model)
    if path.is_file():
        return name, str(path)
    if weights.startswith("hf-hub:"):
        return weights, None
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights not in tags:
        raise KcdpError(
            f"{weights} does not exist{nearest(weights, tags)}", f"{_EXPECTED}: {', '.join(tags) or 'none'}"
        )
    return name, weights


def _model_name(open_clip: Any, model: str | None) -> str:
    if model is None:
        return MODEL
    if model.endswith(".json"):
        path = Path(model).expanduser()
        if not path.is_file():
            raise KcdpError(f"--model {model} does not exist", "an open_clip configuration file")
        open_clip.add_model_config(path)
        model = path.stem
    names = [name for name in open_clip.list_models() if "coca" in name.lower()]
    if model not in open_clip.list_models():
        raise KcdpError(f"--model {model!r} is unknown{nearest(model, names)}", f"one of {', '.join(names)}")
    return model
