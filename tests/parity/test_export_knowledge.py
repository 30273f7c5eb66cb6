"""What becomes of each kind of knowledge, and of adapters, in the exported graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel

from kcdp.bundle import Bundle
from kcdp.cli import main
from kcdp.config import Config, load_config
from kcdp.data.registry import open_dataset
from kcdp.errors import KcdpError
from kcdp.knowledge.embedding import knowledge_tokens
from kcdp.knowledge.open_text import open_text
from kcdp.knowledge.triples import open_extractor, triples_text
from kcdp.models.build import build_model
from kcdp.models.lora import lora_parameters
from kcdp.runtime import Tagger
from kcdp.runtime.backends.provider_session import OnnxRuntimeSession
from kcdp.runtime.items import Item
from kcdp.runtime.tagger import softmax
from kcdp.runtime.text import KnowledgeEncoder
from kcdp.training.checkpoint import load_model, save_checkpoint

SOURCE = "synthetic:photos?n=60&size=48"
CHECK = ("--check-images", "synthetic:photos?n=9&size=48")


def scramble(model: torch.nn.Module) -> None:
    """Every trained parameter moves, so that no adapter and no gate stays at zero; normalisation sees real numbers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def save(config: Config, run: Path) -> Path:
    run.mkdir()
    model = build_model(config)
    scramble(model)
    save_checkpoint(run / "best.safetensors", model.eval(), config, {"step": 0})
    return run


def logits_of(run: Path, pictures: list) -> np.ndarray:
    model, checkpoint = load_model(run)
    with torch.inference_mode():
        return model(torch.from_numpy(checkpoint.config.preprocess.apply_batch(pictures))).logits.numpy()


def agree(run: Path, bundle: Path) -> None:
    dataset = open_dataset("synthetic:stickers?n=6&size=60")
    pictures = [dataset.image(i) for i in range(len(dataset))]
    want = logits_of(run, pictures)
    assert np.abs(want - want[0]).max() > 1e-4, "pictures make a difference"
    with Tagger.load(bundle, batch_size=4) as tagger:
        scores = np.array([list(tag.scores.values()) for tag in tagger.tag(pictures)])
    shifted = want - want.max(axis=1, keepdims=True)
    np.testing.assert_allclose(scores, np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True), atol=1e-5)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(5)
    UNet2DConditionModel(
        block_out_channels=(8, 16, 24, 32), norm_num_groups=4, cross_attention_dim=24, attention_head_dim=2,
        layers_per_block=1,
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1), decoder_block_out_channels=(8, 8),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(folder / "vae")  # fmt: skip
    return folder


def adapted(backbone: Path, *overrides: str) -> Config:
    return load_config("sd15", overrides=(
        f"model.backbone={backbone}", "model.encoder.kind=tiny", "model.lora.rank=3", "model.knowledge.mode=constant",
        "model.knowledge.tokens=5", "model.knowledge.width=24", "model.alignment.kind=none", "preprocess.size=32",
        "model.head.pyramid_channels=8", *overrides,
    ), data={"data": {"source": SOURCE}})  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "extra"),
    [
        ("implicit", ()), pytest.param("constant", (), marks=pytest.mark.slow),
        pytest.param("constant", ("model.knowledge.text='a small sticker'",), marks=pytest.mark.slow),
    ],
    ids=["implicit", "learned", "text"],
)
def test_a_picture_is_all_that_a_bundle_takes(tmp_path, mode, extra):
    config = load_config("tiny", overrides=(f"model.knowledge.mode={mode}", *extra), data={"data": {"source": SOURCE}})
    run, bundle = save(config, tmp_path / "run"), tmp_path / "model.kcdp"
    assert main(["export", str(run), "--out", str(bundle), *CHECK]) == 0
    manifest = Bundle.open(bundle).manifest
    assert manifest.knowledge == {"mode": mode} and manifest.needs == ("onnx", f"knowledge-{mode}")
    assert [tensor.name for tensor in manifest.graph.inputs] == ["images"]
    agree(run, bundle)


def test_the_implicit_knowledge_in_the_graph_is_the_picture_s_own(tmp_path):
    config = load_config("tiny", overrides=("model.knowledge.mode=implicit",))
    model, _ = load_model(save(config, tmp_path / "run"))
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    knowledge = model(images).knowledge
    assert knowledge.shape == (3, 48, 32) and not torch.allclose(knowledge[0], knowledge[1])


def test_adapters_are_merged(backbone, tmp_path):
    run, bundle = save(adapted(backbone), tmp_path / "run"), tmp_path / "model.kcdp"
    model, _ = load_model(run)
    assert lora_parameters(model.features.unet) > 0
    assert main(["export", str(run), "--out", str(bundle), *CHECK]) == 0
    agree(run, bundle)
    weights = {t.name: tuple(t.dims) for t in onnx.load(str(bundle / "model.onnx")).graph.initializer}
    products = [shape for shape in weights.values() if len(shape) == 2]
    assert len(products) > 10 and not any(3 in shape for shape in products), "no product has the adapters' rank"


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run that is told by captions."""
    config = load_config("tiny", overrides=("model.knowledge.mode=explicit",), data={"data": {"source": SOURCE}})
    return save(config, tmp_path_factory.mktemp("told") / "run")


def passes_the_gate_again(run: Path, bundle: Path, capsys) -> None:
    """``check``, with the trained model told what the bundle is told."""
    capsys.readouterr()
    assert main(["export", "check", str(bundle), "--run", str(run), *CHECK, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first = Bundle.open(bundle).manifest.parity["runtimes"][0]["batch_sizes"]["1"]
    assert found["passed"] and found["runtimes"][0]["batch_sizes"]["1"]["logits"] == first["logits"]


def test_captions_on_the_device(told, tmp_path, capsys):
    """From a caption to logits without PyTorch, as the trained model answers with that caption."""
    out = tmp_path / "model.kcdp"
    assert main(["export", str(told), "--out", str(out), *CHECK]) == 0
    printed = capsys.readouterr().out
    assert "text: states within" in printed
    assert printed.splitlines()[-1] == f"next: kcdp tag PICTURES --model {out}"
    bundle = Bundle.open(out)
    assert {"model.onnx", "text.onnx", "tokenizer.json", "parity.md"} <= set(bundle.manifest.files)
    assert bundle.manifest.needs == ("onnx", "knowledge-input") and bundle.manifest.parity["text"]["texts"] > 1
    assert main(["export", "info", str(out)]) == 0
    assert "knowledge float32 [batch, 48, 32]" in capsys.readouterr().out
    passes_the_gate_again(told, out, capsys)

    model, checkpoint = load_model(told)
    pictures = open_dataset("synthetic:stickers?n=3&size=48")
    images = checkpoint.config.preprocess.apply_batch([pictures.image(i) for i in range(3)])
    captions = ["a cat hugs a dog", "", "thumbs up \N{THUMBS UP SIGN}"]
    encoder = open_text(checkpoint.config.model)
    rules = open_extractor("rules")
    knowledge = torch.stack([
        knowledge_tokens(text, [] if (found := triples_text(text, rules, " ")) == [text] else found, encoder.encode)
        for text in captions
    ])  # fmt: skip
    with torch.inference_mode():
        want = model(torch.from_numpy(images), knowledge).logits.numpy()
    tokens = KnowledgeEncoder.open(bundle).tokens(captions)
    with OnnxRuntimeSession(bundle) as session:
        np.testing.assert_allclose(session.run(images, tokens), want, atol=1e-4)
        with pytest.raises(KcdpError, match="no knowledge given to"):
            session.run(images)
        with pytest.raises(KcdpError, match=r"received float32 \[2, 48, 32\]; expected float32 \[3, 48, 32\]"):
            session.run(images, tokens[:2])
        with Tagger(session, batch_size=2) as tagger:  # captions go to batches with their pictures
            items = [Item(f"{i}", pictures.image(i), caption or None) for i, caption in enumerate(captions)]
            scores = np.array([list(tag.scores.values()) for tag in tagger.tag(items)])
    np.testing.assert_allclose(scores, softmax(want), atol=1e-5)


def test_one_text_for_all_pictures(told, tmp_path, capsys):
    out = tmp_path / "model.kcdp"
    arguments = ["--knowledge", "constant", "--text", "a sticker", *CHECK]
    assert main(["export", str(told), "--out", str(out), *arguments]) == 0
    manifest = Bundle.open(out).manifest
    assert manifest.knowledge == {"mode": "constant"} and manifest.parity["passed"]
    assert [tensor.name for tensor in manifest.graph.inputs] == ["images"]
    passes_the_gate_again(told, out, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--knowledge", "implicit"], "expected input, constant; teach an adapter: kcdp train"),
        (["--knowledge", "constant"], 'expected the one text of all pictures; add --text "a sticker"'),
        (["--text", "a sticker"], "expected no text: it is for --knowledge constant"),
    ],
)
def test_knowledge_that_a_run_does_not_offer(told, tmp_path, capsys, arguments, message):
    assert main(["export", str(told), "--out", str(tmp_path / "model.kcdp"), *arguments, *CHECK]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "model.kcdp").exists()
