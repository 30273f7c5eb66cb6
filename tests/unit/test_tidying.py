"""The clean-up after torch's exporter: as thorough as its own on a network of the kind, and the same function."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from kcdp.export.tidying import tidy


class Network(torch.nn.Module):
    """What a diffusion model is made of, and some nodes that do nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.project = torch.nn.GroupNorm(4, 8), torch.nn.Linear(8, 8)

    def forward(self, x):
        x = torch.nn.functional.pad(x, (0, 1, 0, 1))
        x = self.last(torch.nn.functional.silu(self.norm(self.first(x)))) * 1.0 + 0.0
        tokens = x.flatten(2).transpose(1, 2).transpose(1, 2).transpose(1, 2)
        q = self.project(tokens).unflatten(2, (2, 4)).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(q, q, q).mean((1, 2))


def exported(network, example):
    return torch.onnx.export(
        network, (example,), dynamo=True, opset_version=20, verbose=False, optimize=False, input_names=["x"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
    )  # fmt: skip


def answers(model, x):
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_it_is_as_thorough_as_the_exporter_s_own_and_exact():
    network, example = Network().eval(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    program = exported(network, example)
    ours, theirs = program.model.clone(), program
    before = len(list(ours.graph))
    tidy(ours)
    theirs.optimize()
    kinds = [Counter(node.op_type for node in model.graph) for model in (ours, theirs.model)]
    assert kinds[0] == kinds[1] and sum(kinds[0].values()) < before / 2
    assert not kinds[0]["CastLike"] and not kinds[0]["Constant"] and not kinds[0]["Pad"]
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    np.testing.assert_allclose(answers(ours, x.numpy()), network(x).detach().numpy(), rtol=1e-5, atol=1e-6)
