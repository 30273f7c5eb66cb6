"""What tests of the baselines' steps share; light, for the processes that one of them starts."""

from __future__ import annotations

import torch
from torch import nn

from kcdp.config import Config, load_config
from kcdp.data.loader import Item
from kcdp.models.collective import own_rows
from kcdp.models.network import EmotionNetwork, NetworkOutput, one_expert
from kcdp.training.baselines import adversary, mcc
from kcdp.training.baselines.cdan import CdanStep
from kcdp.training.baselines.dann import DannStep
from kcdp.training.baselines.fixmatch import FixMatchStep
from kcdp.training.baselines.mcc import MccStep, class_confusion

STEPS = {"dann": DannStep, "cdan": CdanStep, "mcc": MccStep, "fixmatch": FixMatchStep}
EVEN = torch.ones(6)


def tiny(profile: str, *overrides: str) -> Config:
    return load_config("tiny", profile=profile, overrides=("training.mixed_precision=no", *overrides))


def item(count: int = 6, seed: int = 0, strong: bool = False) -> Item:
    generator = torch.Generator().manual_seed(seed)

    def images() -> torch.Tensor:
        return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)

    return Item(images(), torch.arange(count) % 6, images() if strong else None)


def hidden(batch: Item) -> Item:
    """As the trainer gives the target: without labels."""
    return batch._replace(labels=torch.empty(0))


class Told(EmotionNetwork):
    """A network whose v is the colour of the first pixel, and whose logits are a linear map of it."""

    def __init__(self, features: int = 3) -> None:
        super().__init__()
        self.visual = features
        self.scale = nn.Parameter(torch.ones(features))
        self.classes = nn.Parameter(3 * torch.randn(6, features))

    def forward(self, images, knowledge=None, align=False, latents=None) -> NetworkOutput:
        v = images[:, 0, 0].float() / 255.0 * self.scale
        logits = v @ self.classes.T
        return NetworkOutput(logits, v, one_expert(logits))


def gradients(name: str, rank: int | None = None) -> dict[str, torch.Tensor]:
    """Of one step, and the discriminator's statistics; of two processes, each gives half of the rows."""
    torch.manual_seed(1)
    model = Told()
    step = STEPS[name](tiny(name, "training.pseudo_labels.confidence=0.2"), EVEN, model)
    source, target = item(8, 1), item(4, 2, strong=name == "fixmatch")
    called: nn.Module = model
    if rank is not None:
        source, target = source.parts(2)[rank], target.parts(2)[rank]
        called = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    step(called, model, source, hidden(target), 0.3).loss.backward()
    named = (*model.named_parameters(), *step.named_parameters())
    found = {key: p.grad for key, p in named if p.grad is not None}
    return found | {key: value for key, value in step.named_buffers() if "running_" in key}


def one_of_two(rank: int, folder: str) -> None:
    """A process that leaves its gradients in a file; "alone": where MCC looks at its own rows only."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    adversary.HIDDEN = 16
    found = {name: gradients(name, rank) for name in STEPS}
    mcc.class_confusion = lambda logits: class_confusion(own_rows(logits))
    torch.save(found | {"alone": gradients("mcc", rank)}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
