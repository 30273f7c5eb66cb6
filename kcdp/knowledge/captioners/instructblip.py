"""``instructblip``: InstructBLIP (Dai et al. 2023, arXiv 2305.06500) as transformers builds and loads it.

The paper's captioner (there with FLAN-T5-XL as its language model) and its generation settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kcdp.data.dataset import Sample
from kcdp.errors import KcdpError, require
from kcdp.knowledge.captioners.base import Captioner, Request
from kcdp.preprocess import to_rgb

PROMPT = (
    "In one sentence, say who or what the picture shows, what the face expresses and what the body does, and which "
    "feeling the picture conveys."
)

#: The authors' settings: one long sentence that does not repeat itself.
GENERATION: dict[str, Any] = {
    "do_sample": False, "num_beams": 5, "min_new_tokens": 30, "max_new_tokens": 50, "repetition_penalty": 5.0,
}  # fmt: skip
_EXPECTED = "the folder of an InstructBLIP model in the layout of transformers (config.json, processor, weights)"


class InstructBlipCaptioner(Captioner):
    """One descriptive sentence: subject, expression and movement, feeling.

    Args:
        model: ``InstructBlipForConditionalGeneration``, on its device.
        processor: its ``InstructBlipProcessor``.
        name: what the rows name as the captioner.
    """

    batch_size = 4

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.name, self._model, self._processor = name, model.eval(), processor

    @torch.no_grad()
    def caption(self, images: Sequence[Image.Image], samples: Sequence[Sample]) -> list[str]:
        inputs = self._processor(
            images=[to_rgb(image) for image in images], text=[PROMPT] * len(images), padding=True, return_tensors="pt"
        )
        inputs = inputs.to(self._model.device, self._model.dtype)  # only floating-point entries change their type
        tokens = self._model.generate(**inputs, **GENERATION)
        texts: list[str] = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def create(request: Request) -> InstructBlipCaptioner:
    """See ``registry``. float32 on a CPU, bfloat16 on a GPU (FLAN-T5 overflows in float16)."""
    transformers = require("transformers", "instructblip")
    from kcdp.torch_device import resolve_device

    device = resolve_device(request.device)
    folder = Path(request.needed_weights("instructblip", _EXPECTED)).expanduser()
    if not (folder / "config.json").is_file():
        raise KcdpError(f"{folder} holds no config.json", _EXPECTED, "check --weights")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type != "instructblip":
            raise KcdpError(f"{folder} holds a model of type {config.model_type!r}", "instructblip", "check --weights")
        model = transformers.InstructBlipForConditionalGeneration.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True
        )
        processor = transformers.InstructBlipProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise KcdpError(f"InstructBLIP in {folder} cannot be loaded ({reason[:300]})", _EXPECTED) from error
    return InstructBlipCaptioner(model.to(device), processor, f"instructblip {folder.name}")
