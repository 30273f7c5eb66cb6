"""Token states are CLIP's: compared with open_clip's own and the transformers library's, on the same random weights."""

from __future__ import annotations

import copy
import json
import resource
import sys
import time
import types
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from kcdp.errors import KcdpError
from kcdp.knowledge.text import OpenClipText, SeededText, TextEncoder

SOT, EOT = 49406, 49407
TEXTS = ["a happy cat", "A sticker of a small dog that cries loudly, with tears.", "", "word " * 100]
TEXT_CFG = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
NAME = "kcdp-test-quickgelu"


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.isfinite(a).all() and torch.allclose(a, b, rtol=1e-4, atol=2e-5))


def small_clip(quick_gelu: bool = True, kind: type = open_clip.CLIP) -> torch.nn.Module:
    """A whole CLIP model with random weights, its norms and biases not those of a fresh model."""
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=16, image_size=32)
    model = kind(24, vision, open_clip.CLIPTextCfg(**TEXT_CFG), quick_gelu=quick_gelu)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def write_folder(folder: Path, model: torch.nn.Module, **changes) -> Path:
    """open_clip's layout: weights and the description beside them."""
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
    description = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": TEXT_CFG} | changes
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": description}))
    return folder


@pytest.fixture(scope="module")
def clip():
    return small_clip()


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("weights") / "clip", clip)


@pytest.fixture(scope="module")
def encoder(folder):
    return OpenClipText(weights=folder)


@pytest.fixture(scope="module")
def named_model(folder, tmp_path_factory):
    """The small model's description, known to open_clip by name."""
    path = tmp_path_factory.mktemp("configs") / f"{NAME}.json"
    path.write_text(json.dumps(json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]))
    open_clip.add_model_config(path)
    return NAME


# --- the interface ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeded():
    return SeededText(16, tokens=12)


def test_shapes_and_what_comes_back(seeded):
    states = seeded.encode(["a cat", "two cats"])
    assert states.shape == (2, 12, 16) and (seeded.tokens, seeded.width) == (12, 16)
    assert states.dtype == torch.float32 and states.device.type == "cpu" and not states.requires_grad
    assert seeded.tokenize(["a cat", "two cats"]).dtype == torch.int64


def test_nothing_to_encode(seeded):
    assert seeded.encode([]).shape == (0, 12, 16) and seeded.tokenize([]).shape == (0, 12)


def test_texts_must_be_a_list_of_strings(seeded):
    assert fails(lambda: seeded.encode("a cat")) == "the texts are 'a cat'; expected a list of strings"
    assert fails(lambda: seeded.encode(["a", None])) == "the texts are None; expected a list of strings"


def test_batches_do_not_change_the_states(seeded):
    texts = [f"picture number {i}" for i in range(seeded.batch_size + 3)]
    states = seeded.encode(texts)
    assert len(states) == len(texts) and close(states[-1], seeded.encode(texts[-1:])[0])


def test_tokens_are_start_words_end_zeros(encoder):
    ids = encoder.tokenize(TEXTS)
    assert ids.shape == (4, 77) and torch.equal(ids, open_clip.tokenize(TEXTS))
    assert ids[0].tolist() == [SOT, 320, 900, 2368, EOT] + [0] * 72
    assert ids[2].tolist() == [SOT, EOT] + [0] * 75
    assert ids[3, 0] == SOT and ids[3, -1] == EOT and (ids[3, 1:-1] == 2653).all()  # cut, and ended


def test_a_training_loop_around_it_changes_nothing(encoder):
    plain = encoder.encode(TEXTS[:1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.encode(TEXTS[:1]), plain)
    assert not any(parameter.requires_grad for parameter in encoder.tower.parameters())
    torch.nn.Linear(32, 1)(plain).sum().backward()  # the states may be trained upon


# --- the states are CLIP's --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_states_against_the_pooled_text_of_open_clip(quick_gelu, tmp_path):
    """encode_text = the state at end-of-text, times the projection: what we leave out, put on top."""
    model = small_clip(quick_gelu)
    encoder = OpenClipText(weights=write_folder(tmp_path / "clip", model, quick_gelu=quick_gelu))
    ids = open_clip.tokenize(TEXTS)
    pooled = encoder.encode(TEXTS)[torch.arange(len(TEXTS)), ids.argmax(dim=1)]
    with torch.no_grad():
        assert close(pooled @ model.text_projection, model.encode_text(ids))
    other = OpenClipText(weights=write_folder(tmp_path / "clip", model, quick_gelu=not quick_gelu))
    assert other.name != encoder.name and not close(other.encode(TEXTS), encoder.encode(TEXTS))


def test_all_states_against_open_clips_text_transformer(clip, encoder):
    """Every position, padding included, from open_clip's class for a text tower of its own."""
    layers = open_clip.transformer
    text = layers.TextTransformer(
        width=32, heads=2, layers=2, output_dim=24, act_layer=layers.QuickGELU, output_tokens=True
    )
    text.load_state_dict({k: v for k, v in clip.state_dict().items() if not k.startswith(("visual", "logit"))})
    with torch.no_grad():
        assert close(encoder.encode(TEXTS), text.eval()(open_clip.tokenize(TEXTS))[1])


@pytest.fixture(scope="module")
def transformers_model(clip):
    """CLIPTextModel with the small model's weights, copied by hand."""
    config = CLIPTextConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, hidden_act="quick_gelu",
        eos_token_id=EOT, bos_token_id=SOT, pad_token_id=EOT,
    )  # fmt: skip
    model = CLIPTextModel(config).eval()
    own = dict(model.named_parameters())
    find = lambda end: next(own.pop(name) for name in list(own) if name.endswith(end))  # noqa: E731
    with torch.no_grad():
        find("token_embedding.weight").copy_(clip.token_embedding.weight)
        find("position_embedding.weight").copy_(clip.positional_embedding)
        for i, block in enumerate(clip.transformer.resblocks):
            layer = f"encoder.layers.{i}."
            for end in ("weight", "bias"):
                stacked = getattr(block.attn, f"in_proj_{end}")
                for name, part in zip("qkv", stacked.chunk(3), strict=True):
                    find(f"{layer}self_attn.{name}_proj.{end}").copy_(part)
                for name, module in (("self_attn.out_proj", block.attn.out_proj), ("layer_norm1", block.ln_1),
                                     ("layer_norm2", block.ln_2), ("mlp.fc1", block.mlp.c_fc),
                                     ("mlp.fc2", block.mlp.c_proj)):  # fmt: skip
                    find(f"{layer}{name}.{end}").copy_(getattr(module, end))
        find("final_layer_norm.weight").copy_(clip.ln_final.weight)
        find("final_layer_norm.bias").copy_(clip.ln_final.bias)
    assert not own
    return model


def test_states_against_the_transformers_library(encoder, transformers_model):
    with torch.no_grad():
        theirs = transformers_model(input_ids=encoder.tokenize(TEXTS)).last_hidden_state
    assert close(encoder.encode(TEXTS), theirs)


def test_zeros_or_end_of_text_as_padding(encoder, transformers_model):
    """Causal attention: other padding, as transformers has it, is felt behind the first end-of-text only."""
    ids = encoder.tokenize(TEXTS[:1])
    end = int(ids.argmax())
    padded = torch.where(torch.arange(77) > end, EOT, ids)
    with torch.no_grad():
        theirs = transformers_model(input_ids=padded).last_hidden_state
    ours = encoder.encode(TEXTS[:1])
    assert close(ours[:, : end + 1], theirs[:, : end + 1])
    assert not close(ours[:, end + 1 :], theirs[:, end + 1 :])


def test_what_comes_later_is_not_seen(encoder):
    short, long = encoder.encode(["a cat", "a cat sleeps"])
    assert torch.allclose(short[:3], long[:3], atol=1e-6) and not torch.allclose(short[3], long[3], atol=1e-2)


# --- where the weights come from --------------------------------------------------------------------------------------


def files_of(clip: torch.nn.Module, folder: Path, layout: str) -> Path:
    """The small model's weights in one of the layouts they are found in."""
    state, path = clip.state_dict(), folder / f"{layout}.pt"
    if layout == "safetensors":
        path = folder / "clip.safetensors"
        save_file(state, path)
    elif layout == "plain":
        torch.save(state, path)
    elif layout == "training":
        torch.save({"epoch": 3, "name": "x", "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    elif layout == "own tower":
        torch.save({k if k.startswith(("visual", "logit")) else f"text.{k}": v for k, v in state.items()}, path)
    elif layout == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace_module(clip, {"encode_text": open_clip.tokenize(["a"])})
            torch.jit.save(traced, path)
    return path


@pytest.mark.parametrize("layout", ["safetensors", "plain", "training", "own tower", "torchscript"])
def test_one_file_in_any_layout(layout, clip, encoder, named_model, tmp_path):
    found = OpenClipText(named_model, files_of(clip, tmp_path, layout))
    assert found.name == encoder.name  # the same weights are the same encoder, wherever they came from
    assert torch.equal(found.encode(TEXTS[:2]), encoder.encode(TEXTS[:2]))


def test_own_tower_is_what_open_clip_calls_so():
    names = small_clip(kind=open_clip.CustomTextCLIP).state_dict()
    assert {"text.token_embedding.weight", "text.positional_embedding", "text.ln_final.bias"} <= set(names)


def test_a_folder_of_the_transformers_library(encoder, transformers_model, tmp_path):
    transformers_model.save_pretrained(tmp_path / "text_encoder")
    found = OpenClipText("ViT-L-14-quickgelu", tmp_path / "text_encoder")  # the folder says what it is
    assert found.name == encoder.name


@pytest.mark.parametrize("others", [{}, {"vision_model.x": torch.zeros(1), "text_projection.weight": torch.zeros(1)}])
def test_transformers_weights_under_their_older_names(others, encoder, named_model, transformers_model, tmp_path):
    state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in transformers_model.state_dict().items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)
    save_file(state | others, tmp_path / "a.safetensors")
    assert OpenClipText(named_model, tmp_path / "a.safetensors").name == encoder.name


def test_half_precision_is_computed_in_float32(clip, encoder, named_model, tmp_path):
    save_file({k: v.half() for k, v in clip.state_dict().items()}, tmp_path / "half.safetensors")
    half = OpenClipText(named_model, tmp_path / "half.safetensors")
    assert half.encode(["a"]).dtype == torch.float32 and half.name != encoder.name
    assert torch.allclose(half.encode(TEXTS), encoder.encode(TEXTS), atol=0.1)


def test_a_pretrained_tag_is_fetched_where_no_such_file_exists(clip, encoder, named_model, tmp_path, monkeypatch):
    path = files_of(clip, tmp_path, "safetensors")
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: ["openai", "laion"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: {"asked": (model, tag), "quick_gelu": True})
    asked = []
    monkeypatch.setattr(open_clip, "download_pretrained", lambda cfg: asked.append(cfg["asked"]) or str(path))
    assert OpenClipText(named_model).name == encoder.name and asked == [(named_model, "openai")]

    def offline(cfg):
        raise OSError("no network\nand more")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    assert fails(lambda: OpenClipText(named_model)) == (
        f"the weights 'openai' of {named_model} cannot be fetched (no network); "
        "name a local file or folder of the weights instead"
    )


def test_the_visual_tower_is_not_even_read(clip, folder, named_model, monkeypatch, tmp_path):
    import kcdp.knowledge.text_weights as module

    read = []
    real = module.safe_open

    class Spy:
        def __init__(self, *args, **keywords):
            self.handle = real(*args, **keywords)

        def __enter__(self):
            inner = self.handle.__enter__()
            return types.SimpleNamespace(
                keys=inner.keys, get_tensor=lambda name: read.append(name) or inner.get_tensor(name)
            )

        def __exit__(self, *error):
            return self.handle.__exit__(*error)

    monkeypatch.setattr(module, "safe_open", Spy)
    OpenClipText(weights=folder)
    assert len(read) > 20 and not [name for name in read if "visual" in name or "projection" in name]


# --- what can be wrong with them --------------------------------------------------------------------------------------


def test_weights_that_are_not_there(named_model, tmp_path):
    assert fails(lambda: OpenClipText(weights=tmp_path / "clip.pt")) == (
        f"{tmp_path / 'clip.pt'} does not exist; expected a file or folder of CLIP weights; name one that exists"
    )
    assert fails(lambda: OpenClipText(weights="clip.safetensors")).startswith("clip.safetensors does not exist")
    assert fails(lambda: OpenClipText(named_model, "openai")) == (
        f"'openai' is neither a file nor a folder nor a pretrained tag of {named_model}; expected a path"
    )
    assert fails(lambda: OpenClipText(weights="openia")).startswith(
        "'openia' is neither a file nor a folder nor a pretrained tag of ViT-L-14-quickgelu (did you mean 'openai'?); "
    )
    assert fails(lambda: OpenClipText("ViT-L-14", "openai")) == (
        "ViT-L-14 has another activation than its weights 'openai'; name the model ViT-L-14-quickgelu"
    )
    (tmp_path / "empty").mkdir()
    assert fails(lambda: OpenClipText(weights=tmp_path / "empty")).startswith(f"{tmp_path / 'empty'} holds no weights")


def test_models_that_are_not_known_or_not_clips(clip, tmp_path):
    path = files_of(clip, tmp_path, "safetensors")
    assert fails(lambda: OpenClipText("ViT-L-14-quickglu", path)) == (
        "the text model 'ViT-L-14-quickglu' is unknown to open_clip (did you mean 'ViT-L-14-quickgelu'?); "
        "expected a name such as ViT-L-14-quickgelu"
    )
    for name in ("roberta-ViT-B-32", "ViT-B-16-SigLIP", "coca_ViT-B-32"):
        assert fails(lambda name=name: OpenClipText(name, path)).startswith(f"{name}: the text tower has ")


def test_plain_clip_models_are_known_by_name():
    from kcdp.knowledge.text_weights import _shape_of_model

    shapes = {
        name: _shape_of_model(name) for name in ("ViT-L-14-quickgelu", "ViT-L-14", "ViT-B-32", "RN50", "ViT-H-14")
    }
    assert (shapes["ViT-L-14-quickgelu"].width, shapes["ViT-L-14-quickgelu"].layers) == (768, 12)
    assert [shape.quick_gelu for shape in shapes.values()] == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("content", "ending"),
    [(b"", ".pt"), (b"hello world", ".pt"), (b"PK\3\4" + b"x" * 99, ".pt"), (b"x" * 99, ".safetensors")],
)
def test_damaged_files(content, ending, named_model, tmp_path):
    path = tmp_path / f"a{ending}"
    path.write_bytes(content)
    message = fails(lambda: OpenClipText(named_model, path))
    assert message.startswith(f"{path} cannot be read (") and message.endswith("CLIP weights: .safetensors or .pt")


def test_a_file_cut_short(clip, named_model, tmp_path):
    for layout in ("safetensors", "plain", "torchscript"):
        path = files_of(clip, tmp_path, layout)
        path.write_bytes(path.read_bytes()[:-2000])
        assert fails(lambda path=path: OpenClipText(named_model, path)).startswith(f"{path} cannot be read (")


def test_code_in_a_pickle_is_not_run(named_model, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"token_embedding.weight": Evil()}, tmp_path / "a.pt")
    assert "cannot be read" in fails(lambda: OpenClipText(named_model, tmp_path / "a.pt"))
    assert not (tmp_path / "ran").exists()


def test_files_that_hold_something_else(clip, named_model, tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    assert "cannot be read ('list' object" in fails(lambda: OpenClipText(named_model, tmp_path / "list.pt"))
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert fails(lambda: OpenClipText(named_model, tmp_path / "other.safetensors")) == (
        f"{tmp_path / 'other.safetensors'} holds no CLIP text tower; "
        "expected weights of open_clip, OpenAI's CLIP or CLIPTextModel"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("ln_final.bias"), "ln_final.bias is missing; expected (32,)"),
        (
            lambda s: s.update({"positional_embedding": torch.zeros(76, 32)}),
            "positional_embedding is (76, 32); expected (77, 32)",
        ),
        (
            lambda s: s.update({"transformer.resblocks.2.ln_1.bias": torch.zeros(32)}),
            "transformer.resblocks.2.ln_1.bias is (32,); expected no such tensor",
        ),
    ],
)
def test_weights_of_another_model(change, message, clip, named_model, tmp_path):
    state = copy.copy(clip.state_dict())
    change(state)
    save_file(state, tmp_path / "a.safetensors")
    assert fails(lambda: OpenClipText(named_model, tmp_path / "a.safetensors")) == (
        f"{tmp_path / 'a.safetensors'}: {message}; name the model that the weights are of, if it is not {named_model}"
    )


def test_weights_that_are_not_finite(clip, named_model, tmp_path):
    state = copy.deepcopy(clip.state_dict())
    state["ln_final.bias"][3] = float("nan")
    save_file(state, tmp_path / "a.safetensors")
    assert "ln_final.bias holds NaN or infinity" in fails(lambda: OpenClipText(named_model, tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("open_clip_config.json", "{", "is not valid JSON"),
        ("open_clip_config.json", "[]", "is not understood (AttributeError"),
        ("open_clip_config.json", '{"model_cfg": {}}', "is not understood (KeyError: 'text_cfg')"),
        ("open_clip_config.json", '{"text_cfg": {"heads": 3, "width": 32}}', "heads of the text encoder is 3;"),
        ("open_clip_config.json", '{"text_cfg": {"width": "32"}}', "width of the text encoder is '32';"),
        ("open_clip_config.json", '{"text_cfg": {"vocab_size": 100}}', "vocabulary of the text encoder is 100;"),
        ("open_clip_config.json", '{"text_cfg": {"no_causal_mask": true}}', "text tower has no_causal_mask = True;"),
        ("config.json", '{"model_type": "t5"}', "model_type is 't5'; expected clip or clip_text_model"),
        ("config.json", '{"model_type": "clip", "text_config": {"hidden_act": "relu"}}', "hidden_act is 'relu';"),
        ("config.json", '{"model_type": "clip_text_model", "layer_norm_eps": 1e-6}', "layer_norm_eps is 1e-06;"),
    ],
)  # fmt: skip
def test_folders_whose_description_is_wrong(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = fails(lambda: OpenClipText(weights=tmp_path))
    assert found.startswith(str(tmp_path / name)) and message in found


def test_a_folder_that_contradicts_itself(clip, tmp_path):
    write_folder(tmp_path, clip, text_cfg=TEXT_CFG | {"layers": 1})
    assert fails(lambda: OpenClipText(weights=tmp_path)).endswith("take weights and description from one source")


def test_without_open_clip(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert fails(lambda: SeededText(8)) == (
        """the package 'open_clip' is not installed; run: pip install "kcdp[train]\""""
    )


# --- the seeded stand-in ----------------------------------------------------------------------------------------------


def test_the_seed_decides_all(seeded):
    state = torch.random.get_rng_state()
    again, other = SeededText(16, tokens=12), SeededText(16, seed=1, tokens=12)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again.name == seeded.name != other.name
    assert torch.equal(again.encode(TEXTS), seeded.encode(TEXTS))
    assert not torch.allclose(other.encode(TEXTS), seeded.encode(TEXTS), atol=0.5)
    assert isinstance(seeded, TextEncoder) and not any(p.requires_grad for p in seeded.tower.parameters())


def test_the_weights_are_the_same_on_every_machine():
    """A golden: a cache made on one machine is found on another."""
    assert SeededText(8, layers=1, heads=2, seed=3, tokens=8).name == "seeded-text-8x1-3d91dc7bc73487aa"


def test_words_and_their_order_are_told_apart():
    states = SeededText(64, tokens=12).encode(["a happy cat", "a sad cat", "sad a cat", "so sad"])
    states = torch.nn.functional.normalize(states, dim=-1)
    same_word, other_word = states[1, 2] @ states[3, 2], states[0, 2] @ states[1, 2]
    assert same_word > other_word + 0.2
    assert states[1, 3] @ states[2, 3] < 0.999  # "cat" after the same words in another order


def test_states_are_normalised(seeded):
    states = seeded.encode(TEXTS)
    assert states.mean(dim=-1).abs().max() < 1e-5 and (states.var(dim=-1, correction=0) - 1).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 10}, "heads of the text encoder is 4; expected a divisor of its width 10"),
        ({"width": 0}, "width of the text encoder is 0; expected a whole number from 1"),
        ({"width": 8, "layers": 0}, "layers of the text encoder is 0; expected a whole number from 1"),
        ({"width": 8, "tokens": 2}, "tokens of the text encoder is 2; expected a whole number from 3"),
        ({"width": 8, "seed": -1}, "seed of the text encoder is -1; expected 0 or more"),
    ],
)
def test_sizes_out_of_range(arguments, message):
    assert fails(lambda: SeededText(**arguments)) == message


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_on_a_gpu(seeded):
    states = SeededText(16, tokens=12, device="cuda").encode(TEXTS)
    assert states.device.type == "cpu" and torch.allclose(states, seeded.encode(TEXTS), atol=1e-3)


# --- real size --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_at_the_size_of_vit_l(tmp_path):
    """The text tower of ViT-L/14 with random weights: compared with open_clip's, time and memory printed."""
    layers = open_clip.transformer
    text = layers.TextTransformer(
        width=768, heads=12, layers=12, output_dim=768, act_layer=layers.QuickGELU, output_tokens=True
    ).eval()
    ids = open_clip.tokenize(TEXTS)
    with torch.no_grad():
        expected = text(ids)[1]
    save_file(text.state_dict(), tmp_path / "text.safetensors")
    del text
    start = time.perf_counter()
    encoder = OpenClipText("ViT-L-14-quickgelu", tmp_path / "text.safetensors")
    loaded = time.perf_counter()
    states = encoder.encode(TEXTS)
    done = time.perf_counter()
    parameters = sum(p.numel() for p in encoder.tower.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\nViT-L/14 text tower: {parameters / 1e6:.1f} M parameters, loaded in {loaded - start:.1f} s, "
        f"{(done - loaded) / len(TEXTS):.2f} s a text on {torch.get_num_threads()} thread(s), peak {peak:.1f} GiB"
    )
    assert states.shape == (4, 77, 768) and close(states, expected)
    assert 122e6 < parameters < 124e6
