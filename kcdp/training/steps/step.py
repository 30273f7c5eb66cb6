"""The frame of a training step, and how a batch of two domains passes a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from kcdp.config import Config
from kcdp.data.loader import Item
from kcdp.models.alignment import AlignmentOutput
from kcdp.models.collective import gather_rows, processes
from kcdp.models.moe import MoEOutput
from kcdp.models.network import EmotionNetwork, NetworkOutput


@dataclass
class StepResult:
    """What a step found. With several processes every one has the same: the rows of all.

    Attributes:
        loss: scalar to descend.
        parts: unweighted losses and measures by name, for the log.
        pseudo_labels: int64 [N] of the target batch; None where there are none.
        counted: float [N], 1 where the pseudo-label counted.
    """

    loss: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    pseudo_labels: torch.Tensor | None = None
    counted: torch.Tensor | None = None


class Step(nn.Module, ABC):
    """A method of training. What it trains beside the network (a discriminator) are its own parameters.

    Its parameters and buffers are stored with ``last.safetensors``, and are in no bundle.

    Args:
        config: weights and switches.
        class_weights: float [6], of the predictor's cross-entropy.

    Attributes:
        needs_target: whether a batch has unlabelled pictures of the target too.
    """

    needs_target: bool = False
    class_weights: torch.Tensor

    def __init__(self, config: Config, class_weights: torch.Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("class_weights", class_weights, persistent=False)

    @abstractmethod
    def forward(
        self, model: nn.Module, teacher: EmotionNetwork, source: Item, target: Item | None, progress: float
    ) -> StepResult:
        """Run the model and add up.

        Args:
            model: in training mode; called like an ``EmotionNetwork``.
            teacher: gives pseudo-labels, in evaluation mode (``in_evaluation``); may be the model itself.
            source, target: on the model's device, this process's share; the target's labels are not there.
            progress: share of all steps done, 0..1.
        """


def run_source(model: nn.Module, source: Item, knowledge: torch.Tensor | None, align: bool) -> NetworkOutput:
    """Source pictures through the network, as the rows of all processes."""
    return gathered(model(source.images, knowledge, align=align, latents=source.latents))


def run_both(
    model: nn.Module, source: Item, target: Item, knowledge: torch.Tensor | None, align: bool
) -> tuple[NetworkOutput, NetworkOutput]:
    """Both domains as one batch, so that statistics over the batch are of both; each as the rows of all processes.

    Args:
        target: its strong view is taken where there is one.
        knowledge: [N_source + N_target, T, W], or None.
    """
    seen = target.seen()
    images = torch.cat([source.images, seen.images])
    latents = joined(source.latents, seen.latents)
    output = model(images, knowledge, align=align, latents=latents)
    here, there = split_output(output, len(source.labels))
    return gathered(here), gathered(there)


def gathered(output: NetworkOutput) -> NetworkOutput:
    """An output with the rows of all processes; diffusion levels are left behind."""
    if processes() == 1:
        return output
    aligned, moe, knowledge = output.alignment, output.moe, output.knowledge
    return NetworkOutput(
        gather_rows(output.logits), gather_rows(output.v),
        MoEOutput(gather_rows(moe.logits), gather_rows(moe.gates), gather_rows(moe.chosen)),
        knowledge if knowledge is None or output.shared_knowledge else gather_rows(knowledge), {},
        aligned and AlignmentOutput(*(gather_rows(x) for x in (aligned.similarity, aligned.text, aligned.image))),
        output.shared_knowledge,
    )  # fmt: skip


def split_output(output: NetworkOutput, first: int) -> tuple[NetworkOutput, NetworkOutput]:
    """A batch's output as that of its first pictures and that of the others."""

    def part(rows: slice) -> NetworkOutput:
        aligned, moe, knowledge = output.alignment, output.moe, output.knowledge
        return NetworkOutput(
            output.logits[rows], output.v[rows], MoEOutput(moe.logits[rows], moe.gates[rows], moe.chosen[rows]),
            knowledge if knowledge is None or output.shared_knowledge else knowledge[rows],
            {name: level[rows] for name, level in output.levels.items()},
            aligned and AlignmentOutput(aligned.similarity[rows], aligned.text[rows], aligned.image[rows]),
            output.shared_knowledge,
        )  # fmt: skip

    return part(slice(0, first)), part(slice(first, None))


def in_evaluation(model: nn.Module, batch: Item, knowledge: torch.Tensor | None, align: bool) -> NetworkOutput:
    """The weak view of a batch through a network in evaluation mode, as the rows of all processes; no gradients."""
    model = getattr(model, "module", model)  # of several processes' wrapper
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(batch.images, knowledge, align=align, latents=batch.latents)
            return gathered(replace(output, levels={}))
    finally:
        model.train(was_training)


def joined(*parts: torch.Tensor | None) -> torch.Tensor | None:
    """All of them one below the other, or None where one is missing."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if len(there) == len(parts) else None


def rightness(result: StepResult, target: Item | None) -> dict[str, float]:
    """How many pseudo-labels are right, where that is known; for the log and nothing else.

    Args:
        target: this process's share, with labels.
    """
    if result.pseudo_labels is None or result.counted is None or target is None:
        return {}
    truth = gather_rows(target.labels.to(result.pseudo_labels.device))
    known = truth >= 0
    right = (result.pseudo_labels == truth)[known].float()
    counted = result.counted[known]
    if not len(right):
        return {}
    row = {"pseudo_accuracy": right.mean().item()}
    return row | ({"pseudo_accuracy_counted": (right * counted).sum().item() / counted.sum().item()}
                  if counted.any() else {})  # fmt: skip
