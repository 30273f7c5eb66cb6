"""All experts in one product, the chosen answers gathered; the norm before them is part of its weights."""

from __future__ import annotations

import torch
from torch import nn

from kcdp.export.device.model import DeviceModel, PlainExperts
from kcdp.export.device.sharing import linear, parameter
from kcdp.models.collective import BatchNorm
from kcdp.models.moe import MixtureOfExperts

#: What becomes of the first layer where it is rounded: an error in a weight is multiplied by the mean of what it gets,
#: too, while the bias takes off the mean as it was.
FOLDED = "the norm before it is part of its weights, which bear rounding the worse; --skip-pass experts leaves it apart"


class GatheredExperts(nn.Module):
    """Gate and first layers in one product, all answers, of which the top ones are gathered and weighed.

    Args:
        moe: the trained mixture.
        scale, shift: [features] each, of the norm before it, to be folded; None: no norm.

    Attributes:
        folded: there was one.
    """

    def __init__(self, moe: MixtureOfExperts, scale: torch.Tensor | None, shift: torch.Tensor | None) -> None:
        super().__init__()
        weight = torch.cat([moe.gate.weight, moe.hidden.weight])
        bias = torch.cat([moe.gate.bias, moe.hidden.bias])
        self.folded = scale is not None
        if scale is not None and shift is not None:
            weight, bias = weight * scale, bias + weight @ shift
        self.first = linear(weight, bias)
        self.answer_weight = parameter(moe.answer_weight)
        self.answer_bias = parameter(moe.answer_bias.unsqueeze(1))
        self.experts, self.top_k, self.renormalize = moe.experts, moe.top_k, moe.renormalize

    def forward(self, joined: torch.Tensor) -> torch.Tensor:
        """[N, features] to logits [N, 6]."""
        first = self.first(joined)
        gates, chosen = torch.softmax(first[:, : self.experts], dim=1).topk(self.top_k, dim=1)
        if self.renormalize:
            gates = gates / gates.sum(dim=1, keepdim=True)
        hidden = torch.relu(first[:, self.experts :]).unflatten(1, (self.experts, 1, -1))
        answers = (hidden @ self.answer_weight + self.answer_bias).squeeze(2)  # [N, experts, 6]
        mine = answers.gather(1, chosen.unsqueeze(2).expand(-1, -1, answers.shape[2]))
        return (gates.unsqueeze(1) @ mine).squeeze(1)


def folded_weights(model: DeviceModel) -> dict[str, str]:
    """Name of a weight that a norm is part of -> what that means where it is rounded."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, GatheredExperts) and module.folded:
            found[f"{name}.first.weight"] = FOLDED
    return found


def gather_experts(model: DeviceModel) -> None:
    """Gates, hidden layers and the norm of v become one linear layer; top-k gates weigh gathered answers."""
    if not isinstance(model.moe, PlainExperts):
        return
    scale = shift = None
    with torch.no_grad():
        if isinstance(model.norm, BatchNorm):
            norm = model.norm
            assert norm.running_mean is not None and norm.running_var is not None
            scale = (norm.running_var + norm.eps).rsqrt()
            scale = scale if norm.weight is None else scale * norm.weight
            shift = -norm.running_mean * scale
            shift = shift if norm.bias is None else shift + norm.bias
            model.norm = nn.Identity()
        model.moe = GatheredExperts(model.moe.moe, scale, shift)
