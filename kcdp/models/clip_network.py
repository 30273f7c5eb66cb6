"""CLIP as a network: its image tower, and one vector for each class.

The vectors are the embeddings of six texts (zero-shot classification), and start there where they train: what is
frozen in front of them makes that a linear probe (both: Radford et al., ICML 2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from kcdp.config import Config
from kcdp.errors import KcdpError
from kcdp.knowledge.prompts import prompt_layout
from kcdp.knowledge.text import OpenClipText
from kcdp.labels import NUM_CLASSES
from kcdp.models.image_tower import ImageTower, load_image_tower
from kcdp.models.network import EmotionNetwork, NetworkOutput, one_expert
from kcdp.models.text_side import TextSide
from kcdp.settings import ModelConfig

#: The emotions as nouns, which is what a caption calls them, in the order of ``kcdp.labels.LABELS``.
NOUNS = ("surprise", "happiness", "disgust", "fear", "sadness", "anger")


class ClipNetwork(EmotionNetwork):
    """From bytes to logits: scale x (embedding . class vector) + bias, which is 0 at first.

    Args:
        tower: the image side.
        classes: float [6, D], of unit length: logits are then scaled cosines, as CLIP's own.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    scale: torch.Tensor

    def __init__(self, tower: ImageTower, classes: torch.Tensor) -> None:
        super().__init__()
        self.tower = tower.module
        self.visual = tower.width
        self.classes = nn.Parameter(classes.clone())
        self.bias = nn.Parameter(torch.zeros(NUM_CLASSES))
        self.register_buffer("scale", torch.tensor(tower.scale))
        self.register_buffer("mean", torch.tensor(tower.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(tower.deviation).reshape(3, 1, 1), persistent=False)

    def forward(
        self,
        images: torch.Tensor,
        knowledge: torch.Tensor | None = None,
        align: bool = False,
        latents: torch.Tensor | None = None,
    ) -> NetworkOutput:
        """See ``EmotionNetwork.forward``; v is the embedding, of unit length. Only the images are looked at."""
        scaled = (images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255.0 - self.mean) / self.deviation
        embedding = self.tower(scaled)
        with torch.autocast(images.device.type, enabled=False):  # times 100, 16 bits would not tell classes apart
            v = F.normalize(embedding.float(), dim=1)
            logits = self.scale * (v @ self.classes.T) + self.bias
        return NetworkOutput(logits, v, one_expert(logits))

    def is_backbone(self, name: str) -> bool:
        """The tower."""
        return name.startswith("tower.")

    def train(self, mode: bool = True) -> ClipNetwork:
        """A frozen tower stays in evaluation mode: its statistics, where it has any, are weights too."""
        super().train(mode)
        self.tower.train(mode and any(p.requires_grad for p in self.tower.parameters()))
        return self


def build_clip(config: Config, source: TextSide) -> ClipNetwork:
    """The network "clip" of a configuration: ``model.text`` names the weights of both towers.

    ``model.train_backbone``: whether the image tower trains; ``model.train_head``: whether class vectors and bias do.

    Raises:
        KcdpError: weights missing, damaged or not CLIP's, or pictures of another size than the tower takes.
    """
    model, text = config.model, config.model.text
    tower = load_image_tower(text.model, text.weights)
    if config.preprocess.size != tower.size:
        raise KcdpError(
            f"preprocess.size is {config.preprocess.size}", f"{tower.size}, the picture size of {text.weights}",
            f"add --set preprocess.size={tower.size}",
        )  # fmt: skip
    tower.module.requires_grad_(model.train_backbone)
    stored = source.state.get("classes")  # of a checkpoint: the text tower need not be opened
    built = ClipNetwork(tower, class_vectors(tower, model) if stored is None else torch.as_tensor(stored))
    built.classes.requires_grad_(model.train_head)
    built.bias.requires_grad_(model.train_head)
    if not model.train_backbone:
        built.external = frozenset(f"tower.{name}" for name in tower.module.state_dict())
    return built


def class_vectors(tower: ImageTower, model: ModelConfig) -> torch.Tensor:
    """Embeddings of the six texts that ``model.alignment.template`` makes of ``NOUNS``: float32 [6, D], of unit length.

    Raises:
        KcdpError: see ``OpenClipText`` and ``prompt_layout``.
    """
    encoder = OpenClipText(model.text.model, model.text.weights)
    texts = prompt_layout(encoder, model.alignment.template, words=NOUNS).texts
    ends = encoder.tokenize(texts).argmax(dim=1)  # end-of-text is the largest id
    states = encoder.encode(texts)[torch.arange(len(texts)), ends]
    return F.normalize(states @ tower.projection, dim=1)
