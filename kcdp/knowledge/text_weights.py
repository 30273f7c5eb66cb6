"""Weights of a CLIP text tower from where they lie: one file, a folder, or open_clip's pretrained tags.

Only the text side is kept, under open_clip's names, in float32.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from kcdp.errors import KcdpError, nearest, require
from kcdp.files import read_json
from kcdp.knowledge.tower import TowerShape, parameter_shapes

Tensors = dict[str, torch.Tensor]
Side = Callable[[list[str], Callable[[str], torch.Tensor], str], Tensors]

_ENDINGS = (".safetensors", ".pt", ".pth", ".bin")
#: What a folder's weights are called: open_clip's names, then those of the transformers library.
_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")

#: What a text tower of open_clip may differ in; of any other setting only the default is built here.
_SETTINGS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
#: Settings that decide only what comes after the token states, or which width the model's projection has.
_PAST_THE_STATES = {"pool_type", "proj_type", "proj_bias", "eos_id", "pad_id", "output_tokens"}

#: transformers' name of a layer's part -> open_clip's.
_HF_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_HF_REST = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def load_text_weights(model: str, weights: str) -> tuple[TowerShape, Tensors]:
    """The sizes and the parameters, float32, of the text tower that ``weights`` names; see ``OpenClipText``.

    Raises:
        KcdpError: missing, damaged, or of another model.
    """
    shape = _shape_of_folder(Path(weights)) if os.path.isdir(weights) else None
    fix = name_the_model(model) if shape is None else "take weights and description from one source"
    path = find_weights(model, weights)
    shape = shape or _shape_of_model(model)
    return shape, fitting(parameter_shapes(shape), read_weights(path, _text_side), str(path), fix)


def name_the_model(model: str) -> str:
    """What to do where a file's tensors are not those of the model that was named."""
    return f"name the model that the weights are of, if it is not {model}"


def find_weights(model: str, weights: str) -> Path:
    """The file that ``weights`` names; see ``OpenClipText``.

    Raises:
        KcdpError: there is none, or it cannot be fetched.
    """
    if os.path.isdir(weights):
        return _file_of_folder(Path(weights))
    return Path(weights) if os.path.isfile(weights) else _download(model, weights)


def _shape_of_folder(folder: Path) -> TowerShape | None:
    """What the folder itself says; None where it says nothing."""
    for name, read in (("open_clip_config.json", _shape_of_open_clip), ("config.json", _shape_of_transformers)):
        if os.path.isfile(folder / name):
            return _described(read, read_json(folder / name), str(folder / name))
    return None


def _described(read: Callable[[Any], TowerShape], config: Any, where: str) -> TowerShape:
    try:
        return read(config)
    except KcdpError as error:
        raise KcdpError(f"{where}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise KcdpError(f"{where} is not understood ({type(error).__name__}: {error})", "a CLIP model") from None


def _file_of_folder(folder: Path) -> Path:
    for name in _FILES:
        if os.path.isfile(folder / name):
            return folder / name
    raise KcdpError(f"{folder} holds no weights", f"one of {', '.join(_FILES)}", "name the file of the weights")


def _shape_of_model(model: str) -> TowerShape:
    clip = require("open_clip", "train")
    known = clip.list_models()
    if model not in known:
        raise KcdpError(
            f"the text model {model!r} is unknown to open_clip{nearest(model, known)}",
            "a name such as ViT-L-14-quickgelu",
        )
    return _described(_shape_of_open_clip, clip.get_model_config(model), model)


def _shape_of_open_clip(config: Any) -> TowerShape:
    """From the JSON that describes an open_clip model."""
    config = config.get("model_cfg", config)
    text = config["text_cfg"]
    defaults = {f.name: f.default for f in fields(require("open_clip", "train").CLIPTextCfg)}
    usual = {name: defaults.get(name) for name in text} | {"tokenizer_kwargs": None}
    other = [k for k, v in text.items() if k not in _SETTINGS | _PAST_THE_STATES and v != usual[k]]
    if other:
        raise KcdpError(
            f"the text tower has {other[0]} = {text[other[0]]!r}",
            "CLIP's own text tower, such as that of ViT-L-14-quickgelu",
        )
    value = defaults | text
    return TowerShape(
        width=value["width"], layers=value["layers"], heads=value["heads"], tokens=value["context_length"],
        vocabulary=value["vocab_size"], mlp_ratio=value["mlp_ratio"], quick_gelu=bool(config.get("quick_gelu")),
    )  # fmt: skip


def _shape_of_transformers(config: Any) -> TowerShape:
    """From the config.json of transformers' ``CLIPTextModel`` or ``CLIPModel``; what it leaves out has a default."""
    text = config.get("text_config") or config
    width, activation = text.get("hidden_size", 512), text.get("hidden_act", "quick_gelu")
    kind, epsilon = config.get("model_type"), text.get("layer_norm_eps", 1e-5)
    for name, found, known in (
        ("model_type", kind, ("clip", "clip_text_model")),
        ("hidden_act", activation, ("quick_gelu", "gelu")),
        ("layer_norm_eps", epsilon, (1e-5,)),
    ):
        if found not in known:
            raise KcdpError(f"{name} is {found!r}", " or ".join(map(str, known)))
    return TowerShape(
        width=width, layers=text.get("num_hidden_layers", 12), heads=text.get("num_attention_heads", 8),
        tokens=text.get("max_position_embeddings", 77), vocabulary=text.get("vocab_size", 49408),
        mlp_ratio=text.get("intermediate_size", 2048) / width, quick_gelu=activation == "quick_gelu",
    )  # fmt: skip


def _download(model: str, weights: str) -> Path:
    """The file of a pretrained tag of open_clip, fetched where it is not in its cache."""
    if weights.endswith(_ENDINGS) or os.path.basename(weights) != weights:
        raise KcdpError(f"{weights} does not exist", "a file or folder of CLIP weights", "name one that exists")
    clip = require("open_clip", "train")
    shape = _shape_of_model(model)
    tags = clip.list_pretrained_tags_by_model(model)
    if weights not in tags:
        raise KcdpError(
            f"{weights!r} is neither a file nor a folder nor a pretrained tag of {model}{nearest(weights, tags)}",
            f"a path, or one of {', '.join(tags)}" if tags else "a path",
        )
    source = clip.get_pretrained_cfg(model, weights)
    if bool(source.get("quick_gelu")) != shape.quick_gelu:
        other = model.removesuffix("-quickgelu") if shape.quick_gelu else f"{model}-quickgelu"
        raise KcdpError(f"{model} has another activation than its weights {weights!r}", fix=f"name the model {other}")
    try:
        return Path(clip.download_pretrained(source))
    except Exception as error:  # the hub's client and urllib raise nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KcdpError(
            f"the weights {weights!r} of {model} cannot be fetched ({reason})",
            fix="name a local file or folder of the weights instead",
        ) from None


def read_weights(path: Path, side: Side) -> Tensors:
    """What ``side`` takes of a file's tensors, as stored.

    Args:
        side: is given the names, a way to read one, and the file's name.

    Raises:
        KcdpError: the file is damaged, or what ``side`` raises.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as handle:
                return side(list(handle.keys()), handle.get_tensor, str(path))
        state = _unpickle(path)
        state = {k: v for k, v in state.get("state_dict", state).items() if isinstance(v, torch.Tensor)}
        return side(list(state), state.__getitem__, str(path))
    except KcdpError:
        raise
    except Exception as error:  # a file from anywhere: torch.load raises nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise KcdpError(f"{path} cannot be read ({reason})", "CLIP weights: .safetensors or .pt") from None


def _unpickle(path: Path) -> Mapping[str, Any]:
    """A dictionary of tensors, or the parameters of a TorchScript archive, which is how OpenAI publishes CLIP."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            script = any(name.endswith("/constants.pkl") for name in archive.namelist())
        if script:
            with warnings.catch_warnings():  # torch has deprecated the format, not the file
                warnings.simplefilter("ignore")
                return torch.jit.load(path, map_location="cpu").state_dict()
    state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _text_side(names: list[str], get: Callable[[str], torch.Tensor], where: str) -> Tensors:
    """Keeps the text tower and renames it, whichever of the three layouts the names are of."""
    plain = {name.removeprefix("module."): name for name in names}
    for prefix in ("text_model.", ""):
        if f"{prefix}embeddings.token_embedding.weight" in plain:
            own = {k.removeprefix(prefix): get(name) for k, name in plain.items() if k.startswith(prefix)}
            return _from_transformers(own)
    for prefix in ("text.", ""):
        if f"{prefix}token_embedding.weight" in plain:
            tensors = {k.removeprefix(prefix): name for k, name in plain.items() if k.startswith(prefix)}
            kept = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.")
            return {k: get(name) for k, name in tensors.items() if k.startswith(kept)}
    raise KcdpError(f"{where} holds no CLIP text tower", "weights of open_clip, OpenAI's CLIP or CLIPTextModel")


def _from_transformers(tensors: Tensors) -> Tensors:
    """open_clip's names; query, key and value stacked to one matrix, as torch's attention has them."""
    renamed: Tensors = {new: tensors[old] for old, new in _HF_REST.items() if old in tensors}
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layers.")}
    for layer in layers:
        old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for end in ("weight", "bias"):
            for part, name in _HF_LAYER.items():
                if f"{old}{part}.{end}" in tensors:
                    renamed[f"{new}{name}.{end}"] = tensors[f"{old}{part}.{end}"]
            parts = [tensors.get(f"{old}self_attn.{x}_proj.{end}") for x in "qkv"]
            stacked = [part for part in parts if part is not None]
            if len(stacked) == 3:
                renamed[f"{new}attn.in_proj_{end}"] = torch.cat(stacked)
    return renamed


def fitting(expected: Mapping[str, tuple[int, ...]], tensors: Tensors, where: str, fix: str) -> Tensors:
    """The tensors in float32, every one of them there, of the right shape, and finite.

    Raises:
        KcdpError: the first that is not.
    """
    for name in [*expected, *sorted(set(tensors) - set(expected))]:
        found = tuple(tensors[name].shape) if name in tensors else "missing"
        if found != expected.get(name):
            raise KcdpError(f"{where}: {name} is {found}", f"{expected.get(name, 'no such tensor')}", fix)
        if not torch.isfinite(tensors[name]).all():
            raise KcdpError(f"{where}: {name} holds NaN or infinity", "finite weights", "take another copy of the file")
    return {name: tensors[name].detach().float().contiguous() for name in expected}
