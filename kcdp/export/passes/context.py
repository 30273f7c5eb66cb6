"""What is known of the text before a picture comes: keys and values of a constant text, or projections in one step."""

from __future__ import annotations

import torch
from torch import nn

from kcdp.export.device.attention import Attention, KeysValues
from kcdp.export.device.model import DeviceModel
from kcdp.export.device.sharing import linear
from kcdp.export.passes.lora import merged
from kcdp.models.implicit_knowledge import ImplicitKnowledge
from kcdp.models.kadap import ConstantKnowledge


class ConstantKeysValues(nn.Module):
    """Keys [1, heads, d, T] and values [1, heads, T, d] of a text that never changes."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("keys", keys.detach().contiguous(), persistent=False)
        self.register_buffer("values", values.detach().contiguous(), persistent=False)

    def forward(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The context makes no difference."""
        return self.keys, self.values


class ConstantMean(nn.Module):
    """The mean of tokens that never change, [1, W]."""

    mean: torch.Tensor

    def __init__(self, mean: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().contiguous(), persistent=False)

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """The context makes no difference."""
        return self.mean


class HiddenKnowledge(nn.Module):
    """The adapter of implicit knowledge up to its last hidden states, [N, T, hidden]: what follows is linear."""

    def __init__(self, knowledge: ImplicitKnowledge) -> None:
        super().__init__()
        self.knowledge = knowledge
        self.norm = knowledge.output[0]
        knowledge.output = nn.Sequential(nn.Identity())

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """[N, C, h, w] to [N, T, hidden]."""
        return self.norm(self.knowledge.predict(latents))


class Shifted(nn.Module):
    """A linear layer whose bias is another one for each token: W x + b_t."""

    shift: torch.Tensor

    def __init__(self, weight: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.linear = linear(weight, None)
        self.register_buffer("shift", shift.detach().contiguous(), persistent=False)

    @property
    def out_features(self) -> int:
        return self.linear.out_features

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, T, in] to [N, T, out]; shift [1, T, out]."""
        return self.linear(hidden) + self.shift


class ShiftedMean(nn.Module):
    """The mean of tokens that are an affine function of hidden states."""

    def __init__(self, shifted: Shifted) -> None:
        super().__init__()
        self.linear = linear(shifted.linear.weight, shifted.shift.mean(dim=1)[0])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, T, hidden] to [N, W]."""
        return self.linear(hidden.mean(dim=1))


def fold_context(model: DeviceModel) -> None:
    """Keys and values of constant knowledge become constants.

    Implicit knowledge is base + tanh(gate) (W h + b), affine in its hidden states h, which are narrower than a token:
    K (base + tanh(gate) (W h + b)) = (K diag(tanh(gate)) W) h + K (base + tanh(gate) b). The same for values and for
    the mean token. Knowledge that the caller gives leaves nothing to fold.
    """
    knowledge = model.knowledge
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    crossing = [layer for layer in attentions if isinstance(layer.keys_values, KeysValues) and layer.crosses]
    with torch.no_grad():
        if isinstance(knowledge, ConstantKnowledge):
            for layer in crossing:
                layer.keys_values = ConstantKeysValues(*layer.keys_values(knowledge.embedding))
            if model.context_mean is not None:
                model.context_mean = ConstantMean(knowledge.embedding.mean(dim=1))
            model.knowledge = NoContext()
        elif isinstance(knowledge, ImplicitKnowledge):
            gate, last = torch.tanh(knowledge.gate), knowledge.output[1]
            assert isinstance(last, nn.Linear)
            if last.in_features >= last.out_features:
                return
            tokens = Shifted(gate[:, None] * last.weight, knowledge.base + gate * last.bias)
            for layer in crossing:
                assert isinstance(layer.keys_values, KeysValues)
                layer.keys_values.to_k = _compose(layer.keys_values.to_k, tokens)
                layer.keys_values.to_v = _compose(layer.keys_values.to_v, tokens)
            if model.context_mean is not None:
                model.context_mean = ShiftedMean(tokens)
            model.knowledge = HiddenKnowledge(knowledge)


class NoContext(nn.Module):
    """Stands where knowledge was: nothing looks at its answer."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """The latents, as they are."""
        return latents


def _compose(projection: nn.Module, tokens: Shifted) -> Shifted:
    weight, bias = merged(projection).weight, merged(projection).bias
    shift = tokens.shift @ weight.T
    return Shifted(weight @ tokens.linear.weight, shift if bias is None else shift + bias)
