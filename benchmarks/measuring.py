"""What the benchmarks of training share: random weights in real shapes, memory, and what machine it was."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def random_backbone(folder: Path) -> Path:
    """U-Net and autoencoder of Stable Diffusion 1.5's shapes, random, in diffusers layout: 3.8 GB."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    UNet2DConditionModel(cross_attention_dim=768, sample_size=64).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae")  # fmt: skip
    return folder


def random_text(file: Path) -> Path:
    """The text tower of CLIP ViT-L/14's shapes, random, as open_clip makes it: 0.5 GB."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-L-14-quickgelu", pretrained=None)
    kept = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.")
    save_file({k: v.contiguous() for k, v in model.state_dict().items() if k.startswith(kept)}, file)
    return file


def forget_peak(device: str = "cpu") -> None:
    """The peak is that of the steps, not of loading (Linux)."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak(device: str = "cpu") -> float:
    """GiB at most since ``forget_peak``: of a GPU what torch had allocated, else this process's resident memory."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    return memory("VmHWM")


def memory(what: str) -> float:
    """GiB of this process's memory, "VmRSS" now or "VmHWM" at most; "MemAvailable" of the machine (Linux)."""
    file = "/proc/meminfo" if what == "MemAvailable" else "/proc/self/status"
    lines = Path(file).read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 2**20


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the numbers belong to."""
    found = {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.system()}
    if device.startswith("cuda"):
        import torch

        found["gpu"] = torch.cuda.get_device_name(device)
    return found | {"python": platform.python_version(), **{name: version(name) for name in ("torch", "kcdp")}}


def cpu_name() -> str:
    """The processor, as it calls itself."""
    file = Path("/proc/cpuinfo")
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
