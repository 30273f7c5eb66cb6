"""An engine of Stable Diffusion 1.5's own size, random weights, built without a GPU. Minutes and gigabytes."""

from __future__ import annotations

import resource

import pytest
from engine_graphs import half_bundle
from test_real_size import SIZE, weights_folder  # noqa: F401

from kcdp.config import load_config
from kcdp.export.engine.builder import BuildOptions
from kcdp.export.engine.make import make_engine
from kcdp.export.engine.package import RTX, open_package

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (it exists for x86-64 Linux and Windows)")


@pytest.mark.slow
@pytest.mark.tensorrt
def test_an_engine_of_sd15_size_in_float16(weights_folder, tmp_path):  # noqa: F811
    config = load_config(
        "sd15",
        overrides=[f'model.backbone="{weights_folder}"', f"preprocess.size={SIZE}", "model.knowledge.mode=constant",
                   'model.text.kind="seeded"'],
    )  # fmt: skip
    bundle = half_bundle(tmp_path / "sd15.kcdp", config)
    size = sum(entry["bytes"] for entry in bundle.manifest.files.values())
    exported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    made = make_engine(bundle, open_package(RTX, None), BuildOptions(), tmp_path / "cache", progress=False)
    described = made.description
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"\ngraph {size / 1e9:.2f} GB; built in {described.build_seconds} s, engine {described.bytes / 1e9:.3f} GB, "
        f"memory {described.memory}, peak {exported:.1f} GB after the export, {peak:.1f} GB in all\n{described.kernels}"
    )
    assert size < 1.9e9 and abs(described.bytes - described.memory["weights"]) < 0.1e9
    products = {name for name in described.layers if name.startswith(("CONVOLUTION", "MATRIX_MULTIPLY"))}
    assert products == {"CONVOLUTION HALF", "MATRIX_MULTIPLY HALF"}
    assert described.kernels is not None and described.kernels["correlation Half"] > 60
    assert not {"gemm Float", "correlation Float"} & set(described.kernels)
    assert described.build_seconds < 300
