"""The bundle: written whole, opened only when everything in it is what its manifest says."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from kcdp import __version__
from kcdp.bundle import FEATURES, FORMAT_VERSION, MANIFEST, MODEL, Bundle, Manifest, write_bundle
from kcdp.errors import KcdpError
from kcdp.files import sha256_file
from kcdp.graph import GraphSpec, tagging_graph
from kcdp.labels import LABELS
from kcdp.preprocess import PreprocessSpec

FILES = {MODEL: b"not a graph, but nobody runs it here", f"{MODEL}.data": bytes(range(256)) * 9, "notes.txt": b""}


def manifest(**changes: Any) -> Manifest:
    settings: dict[str, Any] = {
        "labels": LABELS, "preprocess": PreprocessSpec(64, background=(1, 2, 3)), "graph": tagging_graph(64),
        "knowledge": {"mode": "constant"}, "precision": {"default": "float32"}, "target": "portable", "opset": 20,
        "producers": {"kcdp": __version__}, "training": {"source": "synthetic:photos"}, "parity": {"passed": True},
        "calibration": {"temperature": 1.5},
    }  # fmt: skip
    return Manifest(**{**settings, **changes})


def fill(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).write_bytes(content)


def write(path: Path, **options: Any) -> Bundle:
    return write_bundle(path, manifest(), fill, **options)


def fails(call: Callable[[], Any]) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change a bundle's manifest on disk."""
    data = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    change(data)
    (path / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
    return path


def plain() -> dict[str, Any]:
    """A whole and right manifest as JSON has it."""
    entry = {"sha256": "0" * 64, "bytes": 1}
    return json.loads(json.dumps({**manifest().to_dict(), "files": {MODEL: entry}}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bundle, written."""
    return write(tmp_path / "a.kcdp").path


def test_what_is_written_is_what_is_opened(path):
    bundle = Bundle.open(path)
    assert bundle.path == path and bundle.model_path == path / MODEL and bundle.model_path.read_bytes() == FILES[MODEL]
    assert bundle.manifest == replace(manifest(), files=bundle.manifest.files, digest=bundle.manifest.digest)
    assert dict(bundle.manifest.files) == {
        name: {"sha256": sha256_file(path / name), "bytes": len(content)} for name, content in FILES.items()
    }
    assert sorted(os.listdir(path)) == sorted([*FILES, MANIFEST])


def test_writing_returns_the_opened_bundle_and_takes_strings(tmp_path):
    bundle = write_bundle(str(tmp_path / "b.kcdp"), manifest(), fill)
    assert Bundle.open(str(tmp_path / "b.kcdp")).manifest == bundle.manifest


def test_the_manifest_is_readable_json(path):
    data = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    assert data["format_version"] == FORMAT_VERSION and data["labels"] == list(LABELS)
    assert set(data) == {f.name for f in fields(Manifest)}
    assert data["preprocess"] == PreprocessSpec(64, background=(1, 2, 3)).to_dict()


def test_round_trip_of_the_manifest():
    data = plain()
    assert Manifest.from_dict(copy.deepcopy(data)).to_dict() == data


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_noticed(path, name):
    content = bytearray((path / name).read_bytes())
    if content:
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)
        message = fails(lambda: Bundle.open(path))
        assert message.startswith(f"{path / name} was changed or damaged: it has SHA-256 ")
        assert f"expected SHA-256 {hashlib.sha256(FILES[name]).hexdigest()[:12]}… as in {MANIFEST}" in message
    (path / name).write_bytes(bytes(content) + b"x")
    message = fails(lambda: Bundle.open(path))
    assert f"it has {len(content) + 1} bytes; expected {len(content)} bytes as in {MANIFEST}" in message
    assert message.endswith("copy or export the bundle again")
    (path / name).write_bytes(FILES[name])
    Bundle.open(path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(path, name):
    (path / name).unlink()
    assert fails(lambda: Bundle.open(path)) == (
        f"{path / name} is missing; expected every file that {MANIFEST} lists; copy the whole bundle again"
    )


def test_what_is_not_a_bundle(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    advice = "expected a bundle folder; make one with: python -m kcdp.export RUN --out NAME.kcdp"
    for name, found in (("no", "not there"), ("file", "a file"), ("folder", "a folder without manifest.json")):
        message = fails(lambda name=name: Bundle.open(tmp_path / name))
        assert message == f"{tmp_path / name} is {found}; {advice}"


@pytest.mark.parametrize(
    "name", ["../a.kcdp/model.onnx", "sub/model.onnx", "/etc/hostname", "..", ".", "", "./model.onnx", "model.onnx/"]
)
def test_a_manifest_cannot_point_outside_its_folder(path, name):
    edit(path, lambda data: data["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    assert fails(lambda: Bundle.open(path)) == (
        f"{path / MANIFEST} lists the file {name!r}; expected plain file names; do not use this bundle"
    )


def test_a_manifest_that_lists_no_model(path):
    edit(path, lambda data: data["files"].pop(MODEL))
    assert fails(lambda: Bundle.open(path)) == f"{path / MANIFEST} lists no {MODEL}; export the bundle again"


def test_a_newer_format_says_which_version_is_needed(path):
    edit(path, lambda data: data.update(format_version=2, needs_version="0.9.0", surprise={"new": True}))
    assert fails(lambda: Bundle.open(path)) == (
        f"{path / MANIFEST} has bundle format 2, this is kcdp {__version__} (format 1); "
        'run: pip install -U "kcdp>=0.9.0"'
    )


def test_an_ability_this_version_lacks_is_named(path):
    edit(path, lambda data: data.update(needs=["onnx", "knowledge-explicit", "int4"], needs_version="0.3.0"))
    message = fails(lambda: Bundle.open(path))
    assert message.startswith(
        f"{path / MANIFEST} has bundle format 1 and needs int4, knowledge-explicit, this is kcdp "
    )
    assert message.endswith('run: pip install -U "kcdp>=0.3.0"')


def test_this_version_can_do_what_its_own_bundles_need():
    assert set(manifest().needs) <= FEATURES


@pytest.mark.parametrize("mode", ["constant", "implicit"])
def test_a_bundle_says_where_its_knowledge_comes_from(tmp_path, mode):
    told = manifest(knowledge={"mode": mode}, needs=("onnx", f"knowledge-{mode}"))
    bundle = write_bundle(tmp_path / "a.kcdp", told, fill)
    assert Bundle.open(bundle.path).manifest.knowledge == {"mode": mode}
    data = json.loads((bundle.path / MANIFEST).read_text(encoding="utf-8"))
    assert data["knowledge"] == {"mode": mode} and data["needs"] == ["onnx", f"knowledge-{mode}"]


def test_knowledge_that_a_caption_would_have_to_give_is_no_ability_of_the_runtime(tmp_path):
    """The graph takes a picture and nothing else; such a bundle is neither written nor opened."""
    assert "knowledge-explicit" not in FEATURES
    for changes in ({"knowledge": {"mode": "explicit"}}, {"needs": ("onnx", "knowledge-explicit")}):
        fails(lambda changes=changes: write_bundle(tmp_path / "a.kcdp", manifest(**changes), fill))
    assert os.listdir(tmp_path) == []


def test_unknown_and_missing_fields_are_named(path):
    edit(path, lambda data: data.update(precison=data.pop("precision")))
    message = fails(lambda: Bundle.open(path))
    assert message == (
        f"{path / MANIFEST} has unknown fields ['precison'] (did you mean 'precision'?), lacks ['precision']; export "
        "the bundle again"
    )


@pytest.mark.parametrize("name", sorted(f.name for f in fields(Manifest)))
def test_no_field_may_be_missing(name):
    data = plain()
    del data[name]
    fails(lambda: Manifest.from_dict(data))


@pytest.mark.parametrize("labels", [list(reversed(LABELS)), list(LABELS[:5]), [*LABELS, "neutral"], []])
def test_other_labels_are_refused(path, labels):
    edit(path, lambda data: data.update(labels=labels))
    assert fails(lambda: Bundle.open(path)) == (
        f"{path / MANIFEST} has the labels {labels}; expected {list(LABELS)}; export the bundle again"
    )


def test_preprocessing_and_graph_must_agree_on_the_size(path):
    edit(path, lambda data: data["preprocess"].update(size=32))
    message = fails(lambda: Bundle.open(path))
    assert message.startswith(f"{path / MANIFEST}: pictures are prepared at 32 px, the graph takes another size")


MODES = '{"mode": "constant"}, {"mode": "implicit"} or {"mode": "input", ...}'


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("labels", "happy", "a list of names"),
        ("labels", [1], "a list of names"),
        ("preprocess", [], "an object"),
        ("graph", None, "an object"),
        ("knowledge", {"mode": "explicit"}, MODES),
        ("knowledge", {"mode": "implicit", "tokens": 48}, MODES),
        ("knowledge", {"mode": ["implicit"]}, MODES),
        ("knowledge", {}, MODES),
        ("knowledge", "constant", MODES),
        ("precision", {}, 'an object with "default"'),
        ("precision", "float32", 'an object with "default"'),
        ("target", "jetson", "one of portable, cpu, cuda, tensorrt, web"),
        ("opset", "20", "a whole number"),
        ("opset", True, "a whole number"),
        ("needs_version", 1, "a version"),
        ("calibration", {"temperature": 0}, '{"temperature": a number above 0}'),
        ("calibration", {"temperature": float("nan")}, '{"temperature": a number above 0}'),
        ("calibration", {"temperature": True}, '{"temperature": a number above 0}'),
        ("calibration", {"temperatur": 1.0}, '{"temperature": a number above 0}'),
        ("files", [], "an object of {sha256, bytes}"),
        ("files", {MODEL: {"sha256": "0", "bytes": "1"}}, "an object of {sha256, bytes}"),
        ("files", {MODEL: "0"}, "an object of {sha256, bytes}"),
        ("parity", [], "an object"),
        ("source", "run", "an object"),
    ],
)
def test_fields_of_the_wrong_kind(field, value, expected):
    message = fails(lambda: Manifest.from_dict({**plain(), field: value}, "here"))
    assert message == f"here: {field} is {repr(value)[:60]}; expected {expected}; export the bundle again"


def test_all_fields_of_the_wrong_kind_are_reported_at_once():
    message = fails(lambda: Manifest.from_dict({**plain(), "opset": None, "parity": 1}))
    assert "opset is None; expected a whole number | parity is 1; expected an object" in message


@pytest.mark.parametrize("version", [None, "1", 1.0, True, 0, -1])
def test_a_format_version_that_is_none(version):
    message = fails(lambda: Manifest.from_dict({**plain(), "format_version": version}))
    assert (
        message
        == f'{MANIFEST} is not a kcdp manifest; expected a JSON object with "format_version"; export the bundle again'
    )


@pytest.mark.parametrize("data", [None, [], "x", 3, {}])
def test_json_that_is_no_manifest(data):
    assert fails(lambda: Manifest.from_dict(data)).startswith(f"{MANIFEST} is not a kcdp manifest; expected ")


@pytest.mark.parametrize("needs", [None, "onnx", [1], {"onnx": 1}])
def test_needs_that_are_no_list_of_names(needs):
    message = fails(lambda: Manifest.from_dict({**plain(), "needs": needs}))
    assert message == f"{MANIFEST}: needs is {needs!r}; expected a list of names; export the bundle again"


def test_a_manifest_that_is_not_json(path):
    (path / MANIFEST).write_text("{")
    assert fails(lambda: Bundle.open(path)).startswith(f"{path / MANIFEST} is not valid JSON (")


JUNK = (None, True, 3, -1, 0.5, "x", "", [], [1], ["x"], [[]], {}, {"x": 1}, 10**400)


def places(data: Any, above: tuple = ()) -> list[tuple]:
    """The way to every value inside JSON data."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, value in inside for place in ((*above, key), *places(value, (*above, key)))]


def test_no_damage_to_a_manifest_gives_anything_but_one_line():
    """Every value replaced by every kind of junk: accepted, or refused in one line. Nothing else may come out."""
    refused = 0
    ways = places(plain())
    assert len(ways) > 60
    for way in ways:
        for junk in JUNK:
            data = plain()
            target = data
            for key in way[:-1]:
                target = target[key]
            target[way[-1]] = junk
            try:
                Manifest.from_dict(data)
            except KcdpError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > len(ways) * len(JUNK) / 2


def test_a_damaged_graph_is_one_line(path):
    edit(path, lambda data: data["graph"]["inputs"][0].pop("dtype"))
    message = fails(lambda: Bundle.open(path))
    assert message.startswith("the graph's description is damaged (") and message.endswith("export the bundle again")


def test_round_trip_of_the_graph():
    graph = tagging_graph(96)
    assert GraphSpec.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph
    assert graph.inputs[0].describe() == "images uint8 [batch, 96, 96, 3]"
    assert graph.outputs[0].describe() == "logits float32 [batch, 6]"
    assert GraphSpec.from_dict(tagging_graph(64).to_dict()) != graph


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [None, 64, 64]}, {"shape": [None, 64, 64, 0]}, {"shape": [None, 64, 64, "3"]}, {"axes": [1, 2, 3, 4]},
        {"name": 3}, {"dtype": None}, {"extra": 1}, {"shape": 3},
    ],
)  # fmt: skip
def test_a_tensor_that_makes_no_sense(change):
    data = tagging_graph(64).to_dict()
    data["inputs"][0].update(change)
    assert fails(lambda: GraphSpec.from_dict(data)).startswith("the graph's description is damaged (")


# --- writing ----------------------------------------------------------------------------------------------------------


def test_a_bundle_is_replaced_only_when_asked_to(path):
    (path / "old.txt").write_text("x")
    message = fails(lambda: write(path))
    assert message == f"{path} exists already; expected a new name; choose another --out or add --overwrite"
    assert (path / "old.txt").exists()
    write(path, overwrite=True)
    assert sorted(os.listdir(path)) == sorted([*FILES, MANIFEST])


@pytest.mark.parametrize("content", [(), ("photo.jpg",), (MODEL,), (MODEL, "config.json"), (MANIFEST,)])
def test_a_folder_that_is_not_a_bundle_is_never_replaced(tmp_path, content):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in content:
        (folder / name).write_text("precious")
    message = fails(lambda: write(folder, overwrite=True))
    assert "expected a folder that kcdp made; choose another --out; other folders are never overwritten" in message
    assert sorted(os.listdir(folder)) == sorted(content)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_while_filling_leaves_nothing_behind(tmp_path, overwrite):
    path = tmp_path / "a.kcdp"
    if overwrite:
        write(path)

    def stumble(folder: Path) -> None:
        fill(folder)
        (folder / MODEL).write_bytes(b"half")
        raise RuntimeError("the exporter fell over")

    with pytest.raises(RuntimeError, match="fell over"):
        write_bundle(path, manifest(), stumble, overwrite=overwrite)
    assert os.listdir(tmp_path) == (["a.kcdp"] if overwrite else [])
    if overwrite:
        assert Bundle.open(path).model_path.read_bytes() == FILES[MODEL]


def test_a_configuration_that_json_cannot_hold_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError):
        write_bundle(tmp_path / "a.kcdp", manifest(configuration={"x": float("nan")}), fill)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "filler", "part"),
    [
        ({}, lambda folder: None, f"lists no {MODEL}"),
        ({"needs": ("onnx", "int4")}, fill, "needs int4"),
        ({"graph": tagging_graph(32)}, fill, "the graph takes another size"),
    ],
)
def test_a_bundle_that_could_not_be_opened_is_not_written(path, changes, filler, part):
    before = Bundle.open(path)
    assert part in fails(lambda: write_bundle(path, manifest(**changes), filler, overwrite=True))
    assert Bundle.open(path) == before and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("field", "value"),
    [("calibration", {"temperature": 0.01}), ("parity", {"passed": False}), ("source", {"sha256": "another"})],
)
def test_a_manifest_that_was_edited_is_refused(path, field, value):
    data = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    (path / MANIFEST).write_text(json.dumps({**data, field: value}), encoding="utf-8")
    with pytest.raises(KcdpError, match=r"manifest.json was changed or damaged: its contents do not match its digest"):
        Bundle.open(path)


def test_a_manifest_that_was_only_laid_out_anew_is_accepted(path):
    data = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    (path / MANIFEST).write_text(json.dumps(dict(reversed(data.items()))), encoding="utf-8")
    assert Bundle.open(path).manifest.digest == data["digest"]
