"""Captions on the device are what they are in training: graph, tokenizer, triples and what becomes of them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from kcdp.bundle import Bundle, Manifest
from kcdp.config import load_config
from kcdp.data.registry import open_dataset
from kcdp.errors import KcdpError
from kcdp.export import text_graph
from kcdp.export.text_graph import TextExport, compare_text, describe_text, export_text
from kcdp.graph import tagging_graph
from kcdp.knowledge.captions import Caption, CaptionFile
from kcdp.knowledge.embedding import knowledge_tokens
from kcdp.knowledge.text import SeededText, TextEncoder, _TowerText
from kcdp.knowledge.tower import TowerShape, parameter_shapes
from kcdp.labels import LABELS
from kcdp.preprocess import PreprocessSpec, picture_hash
from kcdp.runtime.text import KnowledgeEncoder, TextSession
from kcdp.settings import TextConfig
from kcdp.text_spec import read_knowledge
from kcdp.tokenizer import Tokenizer
from kcdp.training.knowledge import KnowledgeReader

GOLDEN = Path(__file__).parents[1] / "golden" / "triples.jsonl"
TOKENS, WIDTH = 14, 32
CAPTIONS = (
    "a panda bear holding a heart and wearing a hat", "dog eats cat", "", "😂🎉", "no triple here",
    "Crying loudly " * 40, "naÃ¯ve &amp; “so”", "a cat that cries loudly with tears, and a dog that laughs",
)  # fmt: skip


def random_tower(shape: TowerShape) -> TextEncoder:
    """Weights at random, its norms and biases not those of a fresh tower."""
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for name, size in parameter_shapes(shape).items():
        noise = torch.randn(size, generator=generator)
        if len(size) == 1:
            tensors[name] = 0.2 * noise + float(name.endswith("weight"))
        else:
            tensors[name] = noise * (0.5 if "embed" in name else size[-1] ** -0.5)
    return _TowerText("clip-text", shape, tensors, "cpu")


@pytest.fixture(scope="module")
def encoder() -> SeededText:
    return SeededText(WIDTH, tokens=TOKENS)


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    export_text(encoder, folder)
    return folder


def bundle_of(folder: Path, knowledge: dict) -> Bundle:
    manifest = Manifest(
        labels=LABELS, preprocess=PreprocessSpec(32), graph=tagging_graph(32), knowledge=knowledge,
        precision={"default": "float32"}, target="portable", opset=20,
    )  # fmt: skip
    return Bundle(folder, manifest)


def opened(folder: Path, encoder: TextEncoder, prefix: str = "", **settings) -> KnowledgeEncoder:
    knowledge = describe_text(encoder, TextConfig(kind="seeded", tokens=encoder.tokens, **settings), prefix=prefix)
    return KnowledgeEncoder.open(bundle_of(folder, knowledge), threads=1)


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the graph --------------------------------------------------------------------------------------------------------


def test_what_is_written(encoder, folder):
    assert sorted(file.name for file in folder.iterdir()) == ["text.onnx", "tokenizer.json"]
    model = onnx.load(folder / "text.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import] == [20]
    assert all(not node.domain and node.name for node in model.graph.node)
    assert not {"Shape", "If", "Loop", "Range"} & {node.op_type for node in model.graph.node}
    (given,), (made,) = model.graph.input, model.graph.output
    shape = [dim.dim_param or dim.dim_value for dim in made.type.tensor_type.shape.dim]
    assert (given.name, made.name, shape) == ("ids", "states", ["texts", TOKENS, WIDTH])


@pytest.mark.parametrize("quick", [False, True])
def test_states_are_those_of_the_tower(quick, tmp_path):
    tower = random_tower(TowerShape(24, 3, 4, 10, mlp_ratio=2.0, quick_gelu=quick))
    export = export_text(tower, tmp_path)
    assert export.precision == "float32" and export.largest < 2e-5 and export.cosine > 0.999999 and export.texts == 6
    assert export.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert json.loads(json.dumps(export.to_dict()))["files"] == ["text.onnx", "tokenizer.json"]
    session, tokenizer = (
        TextSession(tmp_path / "text.onnx", 10, 24, threads=1),
        Tokenizer.open(tmp_path / "tokenizer.json"),
    )
    for count in (1, 3, 8):
        texts = list(CAPTIONS[:count])
        np.testing.assert_allclose(session.run(tokenizer(texts, 10)), tower.encode(texts).numpy(), atol=1e-4, rtol=0)
    assert session.run(tokenizer([], 10)).shape == (0, 10, 24)


def test_half_precision_halves_the_file(encoder, folder, tmp_path):
    export = export_text(encoder, tmp_path, precision="float16")
    assert 1e-5 < export.largest < 5e-3 and export.cosine > 0.99999
    assert (tmp_path / "text.onnx").stat().st_size < 0.51 * (folder / "text.onnx").stat().st_size
    assert opened(tmp_path, encoder).tokens(["a cat"]).dtype == np.float32


def test_weights_beyond_what_fits_into_one_file(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(text_graph, "INLINE_LIMIT", 1000)
    export = export_text(encoder, tmp_path)
    assert export.files == ("text.onnx", "text.onnx.data", "tokenizer.json")
    assert (tmp_path / "text.onnx").stat().st_size < 100_000
    want = knowledge_tokens("a cat", [], encoder.encode).numpy()
    np.testing.assert_allclose(opened(tmp_path, encoder).tokens(["a cat"])[0], want, atol=1e-4)


def test_what_cannot_be_exported(encoder, tmp_path):
    class Other(SeededText):
        tower = None

        def __init__(self) -> None:
            self.name = "other"

    assert (
        fails(lambda: export_text(Other(), tmp_path)) == "other has no text tower; expected the text encoder of a run"
    )
    assert fails(lambda: export_text(encoder, tmp_path, precision="float61")) == (
        "precision of the text graph is 'float61' (did you mean 'float16'?); expected one of float32, float16"
    )
    large = SeededText(8, 1, 2, tokens=4)
    large.tower.token_embedding.weight.data[5] = 1e5
    assert fails(lambda: export_text(large, tmp_path, precision="float16")) == (
        "token_embedding.weight holds weights above 65504; expected weights that float16 can hold; "
        "export the text side in float32"
    )
    assert not list(tmp_path.iterdir())


# The twins: a graph or tokenizer that is not the encoder's is noticed.


def damaged(folder: Path, target: Path, name: str, change) -> Path:
    model = onnx.load(folder / "text.onnx")
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    values = onnx.numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, target / "text.onnx")
    return target / "text.onnx"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transformer.resblocks.1.mlp.c_proj.weight", 1.0),
        ("transformer.resblocks.0.attn.in_proj_bias", 0.5),
        ("ln_final.bias", 2e-3),
    ],
)
def test_twin_one_perturbed_weight(name, value, encoder, folder, tmp_path):
    def change(values: np.ndarray) -> None:
        values.flat[0] += value

    path, tokenizer = damaged(folder, tmp_path, name, change), Tokenizer.open(folder / "tokenizer.json")
    compare_text(folder / "text.onnx", tokenizer, encoder, text_graph.CHECKED, "float32")
    message = fails(lambda: compare_text(path, tokenizer, encoder, text_graph.CHECKED, "float32"))
    assert message.startswith("the text graph's states differ from the model's by ")


def test_twin_no_causal_mask(encoder, folder, tmp_path):
    path = damaged(folder, tmp_path, "causal_mask", lambda values: values.fill(0))
    tokenizer = Tokenizer.open(folder / "tokenizer.json")
    assert "differ" in fails(lambda: compare_text(path, tokenizer, encoder, text_graph.CHECKED, "float32"))


def test_twin_nan_on_either_side(encoder, folder, tmp_path):
    path = damaged(folder, tmp_path, "ln_final.bias", lambda values: values.fill(np.nan))
    tokenizer = Tokenizer.open(folder / "tokenizer.json")
    assert fails(lambda: compare_text(path, tokenizer, encoder, text_graph.CHECKED, "float32")) == (
        f"{path} gave states that are not finite; export the bundle again in float32"
    )
    sick = SeededText(WIDTH, tokens=TOKENS)
    sick.tower.ln_final.bias.data[0] = torch.nan
    message = fails(lambda: compare_text(folder / "text.onnx", tokenizer, sick, text_graph.CHECKED, "float32"))
    assert message.startswith("the text graph's states differ from the model's by nan")


def test_twin_a_failed_comparison_leaves_nothing(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(text_graph, "BOUNDS", {"float32": (0.0, 1.0)})
    assert "differ" in fails(lambda: export_text(encoder, tmp_path))
    assert not list(tmp_path.iterdir())


# --- captions to knowledge --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [" ", ""])
@pytest.mark.parametrize("prefix", ["", " a sticker of "])
def test_knowledge_is_that_of_training(prefix, separator, encoder, folder, tmp_path):
    """Through the very classes that training uses; only its cache rounds to float16."""
    overrides = (
        "model.text.kind=seeded", f"model.text.tokens={TOKENS}", f"model.knowledge.width={WIDTH}",
        f"model.knowledge.tokens={2 * TOKENS}", f'model.text.triple_separator="{separator}"', "preprocess.size=32",
    )  # fmt: skip
    texts = [*CAPTIONS, *(json.loads(line)["caption"] for line in GOLDEN.read_text(encoding="utf-8").splitlines()[:40])]
    dataset = open_dataset(f"synthetic:stickers?n={len(texts)}&size=32")
    file = tmp_path / "captions.jsonl"
    with CaptionFile(file) as captions:
        for i, text in enumerate(texts):
            captions.append(Caption(picture_hash(dataset.image(i)), dataset.samples[i].key, text, "told"))
    config = load_config("tiny", overrides=overrides, data={"data": {"source": "synthetic:stickers"}})
    reader = KnowledgeReader(config, [file])
    cached = reader.read(dataset, prefix=prefix)
    device = opened(folder, encoder, prefix, triple_separator=separator)
    got = device.tokens(texts)
    assert got.shape == (len(texts), 2 * TOKENS, WIDTH) and got.dtype == np.float32
    assert sum(len(device.triples(text)) > 1 for text in texts) > 5 and device.triples("dog eats cat") == (
        ["dogeatscat"] if not separator else []
    )
    for i, text in enumerate(texts):
        want = knowledge_tokens(text, reader._triples(text), encoder.encode, prefix=prefix).numpy()
        np.testing.assert_allclose(got[i], want, atol=1e-4, rtol=0)
        np.testing.assert_allclose(got[i], cached.tokens(i), atol=2e-2, rtol=0)


def test_triples_may_be_given(encoder, folder):
    device = opened(folder, encoder, extractor="spacy")
    given = [["cat sits", " "], [], ["cat sits", "cat sits"]]
    got = device.tokens(["a", "b", "a"], given)
    for row, caption, triples in zip(got, "aba", given, strict=True):
        want = knowledge_tokens(caption, triples, encoder.encode).numpy()
        np.testing.assert_allclose(row, want, atol=1e-4, rtol=0)
    assert fails(lambda: device.tokens(["a"])) == (
        "captions alone, of a model whose triples were read by a package that is not on the device; expected triples "
        "beside the captions; pass the texts that training had, [] for a picture without any"
    )


def test_a_text_is_encoded_once(encoder, folder, monkeypatch):
    device, asked = opened(folder, encoder), []
    run = device.session.run
    monkeypatch.setattr(device.session, "run", lambda ids: asked.append(len(ids)) or run(ids))
    first = device.tokens(["so sad", "so sad", "so glad"])
    again = device.tokens(["so glad", "so sad"])
    assert asked == [2] and np.array_equal(again, first[[2, 0]])
    again[:] = 0  # what the caller does with it is the caller's
    assert np.array_equal(device.tokens(["so sad"])[0], first[0]) and asked == [2]
    few = KnowledgeEncoder(folder, device.spec, threads=1, remembered=2)
    assert np.allclose(few.tokens([f"word{i}" for i in range(40)])[7], device.tokens(["word7"])[0], atol=1e-5)
    assert len(few._states) == 2


def test_threads_share_an_encoder(encoder, folder):
    device = KnowledgeEncoder(folder, read_knowledge(describe(encoder)), threads=1, remembered=3)
    want = {text: device.tokens([text])[0] for text in CAPTIONS}
    wrong: list[str] = []

    def work(seed: int) -> None:
        for i in range(40):
            text = CAPTIONS[(i * seed) % len(CAPTIONS)]
            if not np.allclose(device.tokens([text])[0], want[text], atol=1e-5):
                wrong.append(text)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in (1, 3, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def describe(encoder: TextEncoder) -> dict:
    return describe_text(encoder, TextConfig(kind="seeded", tokens=encoder.tokens), prefix="")


def test_what_is_no_caption(encoder, folder):
    device = opened(folder, encoder)
    assert device.tokens([]).shape == (0, 2 * TOKENS, WIDTH)
    assert fails(lambda: device.tokens("a cat")) == "the captions are 'a cat'; expected a list of strings"
    assert fails(lambda: device.tokens(["a", 3])) == "the captions are 3; expected a list of strings"
    assert fails(lambda: device.tokens(["a", "b"], [[]])) == (
        "triples of 1 pictures; expected of 2, one list for each caption"
    )
    assert fails(lambda: device.tokens(["a"], ["b c"])) == "the triples are the text 'b c'; expected a list of texts"


def test_bundles_that_take_no_captions(folder, encoder):
    message = fails(lambda: KnowledgeEncoder.open(bundle_of(folder, {"mode": "implicit"})))
    assert message == (
        f"{folder} takes no captions: its knowledge has the mode 'implicit'; "
        'expected a bundle of the mode "input" with a text graph; export with --knowledge input'
    )
    tokens_only = {**describe(encoder), "text": None}
    assert "takes no captions" in fails(lambda: KnowledgeEncoder.open(bundle_of(folder, tokens_only)))


def test_graphs_that_do_not_fit(encoder, folder, tmp_path):
    path = folder / "text.onnx"
    assert fails(lambda: TextSession(path, TOKENS + 1, WIDTH)) == (
        f"{path} has the input ids int64 [?, 14]; expected ids int64 [texts, 15] as in the manifest; "
        "export the bundle again"
    )
    assert fails(lambda: TextSession(path, TOKENS, WIDTH + 1)) == (
        f"{path} has the output states float32 [?, 14, 32]; expected states float32 [texts, 14, 33] as in the "
        "manifest; export the bundle again"
    )
    assert fails(lambda: TextSession(path, TOKENS, WIDTH, threads=0)).startswith(
        "threads is 0; expected a whole number"
    )
    (tmp_path / "text.onnx").write_bytes(path.read_bytes()[:-100])
    message = fails(lambda: TextSession(tmp_path / "text.onnx", TOKENS, WIDTH))
    assert message.startswith("ONNX Runtime ") and f"cannot open {tmp_path / 'text.onnx'} (" in message
    assert "[ONNXRuntimeError]" not in message
    assert "does not exist" in fails(lambda: KnowledgeEncoder(tmp_path, read_knowledge(describe(encoder))))
    session = TextSession(path, TOKENS, WIDTH, threads=1)
    message = fails(lambda: session.run(np.full((1, TOKENS), 60_000)))
    assert message.startswith(f"ONNX Runtime failed on {path} with 1 texts (")


def test_nothing_heavy_is_loaded(encoder, folder):
    """In a process of its own: no torch, no open_clip, no package that repairs text."""
    probe = (
        "import sys; from pathlib import Path; from kcdp.runtime.text import KnowledgeEncoder; "
        f"from kcdp.text_spec import read_knowledge; spec = read_knowledge({describe(encoder)!r}); "
        f"k = KnowledgeEncoder(Path({str(folder)!r}), spec, threads=1).tokens(['a cat that cries']); "
        "print(k.shape, [m for m in ('torch', 'open_clip', 'ftfy', 'regex', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"(1, {2 * TOKENS}, {WIDTH}) []"


# --- real size --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_at_the_size_of_vit_l(precision, tmp_path):
    """The text tower of CLIP ViT-L/14 with random weights; sizes and times are printed."""
    tower = random_tower(TowerShape(768, 12, 12, quick_gelu=True))
    start = time.perf_counter()
    export: TextExport = export_text(tower, tmp_path, precision=precision)
    written = time.perf_counter()
    device = KnowledgeEncoder(
        tmp_path, read_knowledge(describe_text(tower, TextConfig(), prefix="", precision=precision))
    )
    loaded = time.perf_counter()
    got = device.tokens(["a panda bear holding a heart"])
    done = time.perf_counter()
    print(
        f"\n{precision}: {export.bytes / 1e6:.0f} MB, written and compared in {written - start:.1f} s, "
        f"largest difference {export.largest:.1e}, opened in {loaded - written:.2f} s, "
        f"a caption and its triple in {done - loaded:.2f} s"
    )
    assert got.shape == (1, 154, 768)
    assert export.bytes < (500e6 if precision == "float32" else 250e6)
    want = knowledge_tokens(
        "a panda bear holding a heart", device.triples("a panda bear holding a heart"), tower.encode
    )
    np.testing.assert_allclose(got[0], want.numpy(), atol=1e-4 if precision == "float32" else 2e-2)
