"""Stable Diffusion 1.5's own sizes, random weights: load from disk, one pass, export, gate. Minutes and gigabytes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from kcdp.config import load_config
from kcdp.models.build import build_model, trainable_state
from kcdp.training.checkpoint import save_checkpoint

SIZE = 256


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory):
    """A folder as the hub has it: unet and vae in diffusers layout, 3.8 GB of random numbers."""
    folder = tmp_path_factory.mktemp("sd15")
    torch.manual_seed(0)
    UNet2DConditionModel(cross_attention_dim=768, sample_size=64).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae")  # fmt: skip
    yield folder
    for file in folder.rglob("*.safetensors"):
        file.unlink()


@pytest.mark.slow
def test_sd15_size_goes_through_features_checkpoint_export_and_gate(weights_folder, tmp_path):
    config = load_config(
        "sd15",
        overrides=[f'model.backbone="{weights_folder}"', f"preprocess.size={SIZE}", "model.knowledge.mode=constant",
                   'model.text.kind="seeded"'],
        data={"data": {"source": "synthetic:photos?n=60&size=256"}},
    )  # fmt: skip
    model = build_model(config).eval()
    adapters = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert sum(p.numel() for p in adapters.values()) == 8 * 99_456
    for name, parameter in adapters.items():
        if "lora_B" in name:  # they start at zero, and what is merged would be nothing
            torch.nn.init.normal_(parameter, std=0.01)
    images = torch.randint(0, 256, (1, SIZE, SIZE, 3), dtype=torch.uint8)
    started = time.perf_counter()
    with torch.inference_mode():
        output = model(images)
    seconds = time.perf_counter() - started
    assert [tuple(level.shape[1:]) for level in output.levels.values()] == [
        (320, 32, 32), (794, 16, 16), (1434, 8, 8), (1280, 4, 4),
    ]  # fmt: skip
    assert torch.isfinite(output.logits).all()
    stored = trainable_state(model)
    assert {name for name in stored if name.startswith("features.")} == set(adapters), "frozen weights stay out"
    assert any(name.startswith("alignment.") for name in stored) and "knowledge.embedding" in stored
    del stored

    run = tmp_path / "run"
    run.mkdir()
    save_checkpoint(run / "best.safetensors", model, config, {"step": 0})
    megabytes = (run / "best.safetensors").stat().st_size / 1e6
    assert megabytes < 40
    del model, output

    bundle = tmp_path / "sd15.kcdp"
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "kcdp.export", str(run), "--out", str(bundle),
         "--check-images", "synthetic:photos?n=10&size=256", "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    export_seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    parity = facts["parity"]
    assert parity["passed"] and parity["pictures"] == 10
    assert {file.name for file in bundle.iterdir()} == {
        "manifest.json", "model.onnx", "model.onnx.data", "parity.md", "parity.png",
    }  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"\nSD 1.5 size, {SIZE} px, batch 1: one pass in PyTorch {seconds:.1f} s; checkpoint {megabytes:.1f} MB; "
        f"export and gate {export_seconds:.0f} s, peak memory {peak:.1f} GiB, bundle {facts['bytes'] / 1e9:.2f} GB; "
        f"parity {json.dumps(parity['runtimes'][0]['batch_sizes'])}"
    )
    assert peak < 18 and export_seconds < 600
