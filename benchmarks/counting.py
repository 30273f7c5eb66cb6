"""Work and memory of training, counted on tensors without content: no weights, no GPU, a minute of one core.

The model's own code runs on torch's fake tensors, which have a shape, a type and a device. Its multiplications are
counted on the way forward and back. What it keeps for the way back is counted on the way forward, on fake tensors of a
CUDA device, so that mixed precision chooses types as it does there.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from kcdp.models.cliea import Cliea
from kcdp.models.diffusion_features import DiffusionFeatures
from kcdp.models.kadap import Kadap, visual_width
from kcdp.models.latents import LatentEncoder
from kcdp.models.lora import add_lora
from kcdp.settings import HeadConfig

GIB = 2**30


def count(sizes: Sequence[int]) -> dict[str, Any]:
    """Parameters; and for each size of picture "gmac" of one picture, and "gib" with 1 and with 2 pictures."""
    result: dict[str, Any] = {
        "benchmark": "estimate", "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "parameters": {},
        "sizes": {str(size): {"gmac": {"backward": {}}, "gib": {}} for size in sizes},
    }  # fmt: skip
    for kind in ("adapters", "whole"):
        with torch.device("meta"):
            model = build(whole=kind == "whole")
        result["parameters"] |= {
            "all": sum(p.numel() for p in model.parameters()),
            f"trained, {kind}": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        for size in sizes:
            found = result["sizes"][str(size)]
            with FakeTensorMode():
                found["gmac"] |= count_forward(materialise(model, "cpu"), size)
                found["gmac"]["backward"][kind] = count_backward(model, size)
                materialise(model, "cuda")
                found["gib"][kind] = count_kept(model, size, 16 if kind == "adapters" else 32)
                if kind == "adapters":
                    found["gib"] |= count_passing(model, size)
                    found["gib"]["adapters, float32"] = count_kept(model, size, 32)
    return result


def build(whole: bool) -> Any:
    """Stable Diffusion 1.5's shapes with the heads of the profile ``paper``; as released where all of it trains."""
    unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    autoencoder = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    unet.conv_norm_out = unet.conv_act = unet.conv_out = None
    features, head = DiffusionFeatures(unet, LatentEncoder(autoencoder), tokens=154), HeadConfig()
    features.requires_grad_(whole)
    features.encoder.requires_grad_(False)
    prompts = torch.zeros(6, 7, 768)
    alignment = Cliea(prompts, torch.zeros(6, dtype=torch.int64), visual_width(features, head))
    model = Kadap(features, head, None, alignment)
    if not whole:
        add_lora(unet, rank=8, alpha=8.0, dropout=0.0)
    return model.train()


def materialise(model: Any, device: str) -> Any:
    """The same model with fake tensors on a device."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                fake = torch.empty(value.shape, device=device)
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.zeros(value.shape, dtype=value.dtype, device=device)
    return model


def inputs(size: int, pictures: int, device: str) -> tuple[Any, Any, Any]:
    """Images, knowledge tokens and latents."""
    images = torch.empty(pictures, size, size, 3, dtype=torch.uint8, device=device)
    knowledge = torch.empty(pictures, 154, 768, device=device)
    return images, knowledge, torch.empty(pictures, 4, size // 8, size // 8, device=device)


def count_forward(model: Any, size: int) -> dict[str, float]:
    """GMAC of one picture on the way forward."""
    images, knowledge, latents = inputs(size, 1, "cpu")
    with torch.no_grad(), FlopCounterMode(display=False) as encoder:
        model.encode(images)
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model(None, knowledge, align=True, latents=latents)
    return {"encoder": encoder.get_total_flops() / 2e9, "forward": forward.get_total_flops() / 2e9}


def count_backward(model: Any, size: int) -> float:
    """GMAC of one picture on the way back, from logits and similarities."""
    _, knowledge, latents = inputs(size, 1, "cpu")
    output = model(None, knowledge, align=True, latents=latents)
    loss = output.logits.mean() + output.alignment.similarity.mean()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    model.zero_grad(set_to_none=True)
    return backward.get_total_flops() / 2e9


def count_passing(model: Any, size: int) -> dict[str, list[float]]:
    """GiB that come and go with 1 and 2 pictures where nothing is kept: encoder, and the network behind it."""
    found: dict[str, list[float]] = {"encoder, passing": [], "forward, passing": []}
    for pictures in (1, 2):
        images, knowledge, latents = inputs(size, pictures, "cuda")
        with torch.no_grad(), on_gpu(16), Live(model, images) as live:
            model.encode(images)
        found["encoder, passing"].append(live.peak / GIB)
        with torch.no_grad(), on_gpu(16), Live(model, knowledge, latents) as live:
            model(None, knowledge, align=True, latents=latents)
        found["forward, passing"].append(live.peak / GIB)
    return found


def count_kept(model: Any, size: int, bits: int) -> dict[str, list[float]]:
    """GiB kept for the way back with 1 and 2 pictures, plain and with checkpointing, and of that the largest layer."""
    found: dict[str, list[float]] = {"kept": [], "kept, checkpointing": [], "largest layer": []}
    features, run = model.features, model.features._run
    for pictures in (1, 2):
        _, knowledge, latents = inputs(size, pictures, "cuda")
        layers: list[int] = []
        for name, checkpointing in (("kept", False), ("kept, checkpointing", True)):
            features.checkpointing = checkpointing
            with on_gpu(bits), Live(model, knowledge, latents) as live:
                features._run = noting(run, live, layers)
                output = model(None, knowledge, align=True, latents=latents)
                found[name].append(live.now / GIB)
                del output
            features._run = run
        found["largest layer"].append(max(layers) / GIB)
    features.checkpointing = False
    return found


def noting(run: Callable[..., Any], live: Live, layers: list[int]) -> Callable[..., Any]:
    """``run``, and what each call of it has left behind."""

    def layer(*arguments: Any) -> Any:
        before = live.now
        output = run(*arguments)
        layers.append(live.now - before)
        return output

    return layer


@contextmanager
def on_gpu(bits: int) -> Iterator[None]:
    """Autocast to bfloat16 as on a CUDA GPU, and its attention, where no GPU is."""

    def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> Any:
        if q.dtype == torch.float32:
            return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0]
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]

    with ExitStack() as stack:
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda *_, **__: True))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", attention))
        stack.enter_context(torch.autocast("cuda", torch.bfloat16, enabled=bits == 16))
        yield


class Live(TorchDispatchMode):
    """Bytes of all storages that were made inside and are still there: ``now``, and ``peak`` at most.

    Args:
        model, given: tensors that were there before.
    """

    def __init__(self, model: torch.nn.Module, *given: torch.Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        there = [*model.parameters(), *model.buffers(), *given]
        self._known = {tensor.untyped_storage()._cdata for tensor in there}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return output

    def _note(self, storage: Any) -> None:
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, name: int, count: int) -> None:
        self._known.discard(name)
        self.now -= count
