"""The bundle: one folder that holds a graph and everything needed to run it rightly.

``manifest.json`` describes the graph, the preprocessing and where the model came from, and holds the SHA-256
of every other file. The runtime opens a graph only after the hashes agree.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kcdp import __version__
from kcdp.errors import KcdpError, nearest
from kcdp.files import atomic_folder, check_replaceable, read_json, sha256_file, sha256_json, write_json
from kcdp.graph import GraphSpec
from kcdp.labels import LABELS
from kcdp.preprocess import PreprocessSpec
from kcdp.text_spec import read_knowledge

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"

#: What this version's runtime knows how to do. A bundle names what it needs of these.
FEATURES = frozenset({
    "onnx", "knowledge-constant", "knowledge-implicit", "knowledge-input", "batch-fixed", "pixels-scaled",
    "operators-cuda",
})  # fmt: skip
#: What a graph was written for; ``kcdp.export.targets`` says what each is.
TARGET_NAMES = ("portable", "cpu", "cuda", "tensorrt", "web")


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself; one JSON object.

    Attributes:
        labels: class names in the order of the logits.
        preprocess: how a picture becomes the graph's input.
        graph: names, dtypes, axes and shapes of the graph's inputs and outputs.
        knowledge: where the knowledge tokens come from: {"mode": "constant"}, the same for all pictures, or
            {"mode": "implicit"}, predicted from the picture; the graph holds either. {"mode": "input", ...}: the
            caller gives them, see ``kcdp.text_spec``.
        precision: {"default": "float32"}, with exceptions by node name.
        target: which kind of runtime the graph was written for, one of ``TARGET_NAMES``.
        opset: ONNX operator set.
        scaling: {} where the graph takes bytes; {"scale": [...], "shift": [...]} of a plain export, by channel (or one
            for all): its input is byte * scale + shift.
        export: how the graph was made: passes, what was narrowed and why, operators by type, batch profile.
        needs: the abilities a runtime must have, from ``FEATURES``.
        needs_version: the first kcdp version that has them.
        producers: package name -> version that wrote the bundle.
        source: {"checkpoint", "sha256", "revision"}: the file name and SHA-256 of the checkpoint that was exported, and
            the git commit of the kcdp that exported it ("-dirty" where files differed, "" where it was installed).
        configuration: the training configuration, whole.
        training: {"source", "validation", "progress"}: its data by name, and how far it had come, with what was
            measured then.
        calibration: {"temperature": T}: probabilities are softmax(logits / T).
        parity: the report of the parity gate.
        files: file name -> {"sha256", "bytes"}; filled in by ``write_bundle``.
        format_version: version of this layout.
        digest: SHA-256 over everything else here, as canonical JSON; filled in by ``write_bundle``.
    """

    labels: tuple[str, ...]
    preprocess: PreprocessSpec
    graph: GraphSpec
    knowledge: Mapping[str, Any]
    precision: Mapping[str, str]
    target: str
    opset: int
    needs: tuple[str, ...] = ("onnx", "knowledge-constant")
    scaling: Mapping[str, Any] = field(default_factory=dict)
    export: Mapping[str, Any] = field(default_factory=dict)
    needs_version: str = "0.1.0"
    producers: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, float] = field(default_factory=lambda: {"temperature": 1.0})
    parity: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    digest: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``from_dict`` is the inverse."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["preprocess"], plain["graph"] = self.preprocess.to_dict(), self.graph.to_dict()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, data: Any, where: str = MANIFEST) -> Manifest:
        """Checks the version and the needed abilities before anything else.

        Raises:
            KcdpError: a newer format, an ability this version lacks, or missing or unknown fields.
        """
        again = "export the bundle again"
        version = data.get("format_version") if isinstance(data, dict) else None
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise KcdpError(f"{where} is not a kcdp manifest", 'a JSON object with "format_version"', again)
        needs = data.get("needs")
        if not _list_of_strings(needs):
            raise KcdpError(f"{where}: needs is {needs!r}", "a list of names", again)
        unmet = sorted(set(needs) - FEATURES)
        if version > FORMAT_VERSION or unmet:
            missing = f" and needs {', '.join(unmet)}" if unmet else ""
            raise KcdpError(
                f"{where} has bundle format {version}{missing}, this is kcdp {__version__} (format {FORMAT_VERSION})",
                fix=f'run: pip install -U "kcdp>={data.get("needs_version", "?")}"',
            )
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(set(data) - set(known))
        missing_fields = sorted(set(known) - set(data))
        if unknown or missing_fields:
            hint = nearest(unknown[0], known) if unknown else ""
            found = f"has unknown fields {unknown}{hint}" if unknown else ""
            lacks = f"lacks {missing_fields}" if missing_fields else ""
            raise KcdpError(f"{where} {', '.join(filter(None, (found, lacks)))}", fix=again)
        wrong = [f"{name} is {data[name]!r:.60}; expected {kind}" for name, (kind, right) in _FIELD_KINDS.items()
                 if not right(data[name])]  # fmt: skip
        if wrong:
            raise KcdpError(f"{where}: {' | '.join(wrong)}", fix=again)
        values = dict(data)
        values["preprocess"] = PreprocessSpec.from_dict(data["preprocess"])
        values["graph"] = GraphSpec.from_dict(data["graph"])
        values["labels"], values["needs"] = tuple(data["labels"]), tuple(needs)
        size = values["preprocess"].size
        sides = [tuple(n for n, axis in zip(t.shape, t.axes, strict=True) if axis in ("height", "width"))
                 for t in values["graph"].inputs if t.name == "images"]  # fmt: skip
        if sides != [(size, size)]:
            raise KcdpError(f"{where}: pictures are prepared at {size} px, the graph takes another size", fix=again)
        tokens = [list(t.shape[1:]) for t in values["graph"].inputs if t.name == "knowledge"]
        given = data["knowledge"]
        if tokens != ([[given["tokens"], given["width"]]] if given["mode"] == "input" else []):
            raise KcdpError(f"{where}: knowledge is {given!r:.80}, the graph takes {tokens or 'none'}", fix=again)
        if values["labels"] != LABELS:
            raise KcdpError(f"{where} has the labels {list(values['labels'])}", f"{list(LABELS)}", again)
        return cls(**values)


def _list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _input_knowledge(value: Any) -> bool:
    if not _object(value) or value.get("mode") != "input":
        return False
    read_knowledge(value, MANIFEST)  # says itself what is wrong
    return True


def _scaling(value: Any) -> bool:
    return _object(value) and set(value) == {"scale", "shift"} and all(
        isinstance(numbers, list) and len(numbers) in (1, 3) and all(isinstance(n, float) for n in numbers)
        for numbers in value.values()
    )  # fmt: skip


def _file_entries(value: Any) -> bool:
    return _object(value) and all(
        _object(entry) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        for entry in value.values()
    )


def _temperature(value: Any) -> bool:
    if not _object(value) or set(value) != {"temperature"}:
        return False
    temperature = value["temperature"]
    return isinstance(temperature, (int, float)) and not isinstance(temperature, bool) and 0 < temperature < 1e6


#: manifest field -> (what it must be, how to tell)
_FIELD_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "labels": ("a list of names", _list_of_strings),
    "preprocess": ("an object", _object),
    "graph": ("an object", _object),
    "knowledge": (
        '{"mode": "constant"}, {"mode": "implicit"} or {"mode": "input", ...}',
        lambda value: value in ({"mode": "constant"}, {"mode": "implicit"}) or _input_knowledge(value),
    ),
    "precision": ('an object with "default"', lambda value: _object(value) and isinstance(value.get("default"), str)),
    "target": (f"one of {', '.join(TARGET_NAMES)}", lambda value: value in TARGET_NAMES),
    "scaling": ('{} or {"scale": [...], "shift": [...]}', lambda value: value == {} or _scaling(value)),
    "opset": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "needs_version": ("a version", lambda value: isinstance(value, str)),
    "calibration": ('{"temperature": a number above 0}', _temperature),
    "files": ("an object of {sha256, bytes}", _file_entries),
    **dict.fromkeys(("producers", "source", "configuration", "training", "parity", "export"), ("an object", _object)),
}


@dataclass(frozen=True)
class Bundle:
    """A checked bundle on disk: ``path`` is its folder, ``manifest`` what it says of itself."""

    path: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """The ONNX graph."""
        return self.path / MODEL

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read the manifest and compare every file's size and SHA-256 with it.

        Raises:
            KcdpError: not a bundle, made for a newer version, or a file is missing or was changed.
        """
        path = Path(path)
        if not os.path.isfile(path / MANIFEST):
            found = "a file" if os.path.isfile(path) else "not there"
            found = "a folder without manifest.json" if os.path.isdir(path) else found
            raise KcdpError(
                f"{path} is {found}", "a bundle folder", "make one with: python -m kcdp.export RUN --out NAME.kcdp"
            )
        manifest = Manifest.from_dict(read_json(path / MANIFEST), str(path / MANIFEST))
        needed = [MODEL]
        if manifest.knowledge["mode"] == "input" and (text := read_knowledge(manifest.knowledge, MANIFEST)) is not None:
            needed += text.files()
        for name in needed:
            if name not in manifest.files:
                raise KcdpError(f"{path / MANIFEST} lists no {name}", fix="export the bundle again")
        for name, entry in manifest.files.items():
            _check_file(path, name, entry)
        _check_digest(path)
        return cls(path, manifest)


def _check_digest(folder: Path) -> None:
    data = read_json(folder / MANIFEST)
    if data.get("digest") != _digest(data):
        raise KcdpError(
            f"{folder / MANIFEST} was changed or damaged: its contents do not match its digest",
            fix="copy or export the bundle again",
        )


def _digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its digest."""
    return sha256_json({key: value for key, value in data.items() if key != "digest"})


def _check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    if Path(name).name != name or name in ("", ".", ".."):
        raise KcdpError(f"{folder / MANIFEST} lists the file {name!r}", "plain file names", "do not use this bundle")
    file = folder / name
    if not file.is_file():
        raise KcdpError(f"{file} is missing", f"every file that {MANIFEST} lists", "copy the whole bundle again")
    size, digest = file.stat().st_size, None
    if size == entry.get("bytes"):
        digest = sha256_file(file)
        if digest == entry.get("sha256"):
            return
    got = f"{size} bytes" if digest is None else f"SHA-256 {digest[:12]}…"
    want = f"{entry.get('bytes')} bytes" if digest is None else f"SHA-256 {str(entry.get('sha256'))[:12]}…"
    raise KcdpError(
        f"{file} was changed or damaged: it has {got}", f"{want} as in {MANIFEST}", "copy or export the bundle again"
    )


#: Only a folder that holds these is a bundle, and may be replaced by one.
_MARKERS = (MODEL, MANIFEST)


def check_target(path: str | Path, overwrite: bool) -> None:
    """Raises KcdpError now if ``write_bundle`` would refuse ``path`` later: work is better not done in vain."""
    check_replaceable(Path(os.path.realpath(path)), overwrite, _MARKERS)


def write_bundle(
    path: str | Path, manifest: Manifest, fill: Callable[[Path], None], *, overwrite: bool = False
) -> Bundle:
    """Write a bundle whole or not at all.

    Args:
        path: the bundle's folder, by convention ``NAME.kcdp``.
        manifest: everything but ``files``.
        fill: called with a temporary folder, into which it writes ``model.onnx`` and what goes with it.
        overwrite: replace an existing bundle.

    Returns:
        The bundle, opened and checked like any other.

    Raises:
        KcdpError: ``path`` exists and ``overwrite`` is False, or what stands there is not a bundle.
    """
    with atomic_folder(path, overwrite=overwrite, marker=_MARKERS) as temporary:
        fill(temporary)
        files = {
            file.name: {"sha256": sha256_file(file), "bytes": file.stat().st_size}
            for file in sorted(temporary.iterdir())
            if file.is_file()
        }
        data = {**manifest.to_dict(), "files": files}
        write_json(temporary / MANIFEST, {**data, "digest": _digest(data)})
        written = Bundle.open(temporary).manifest  # before it takes the place of another
    return Bundle(Path(path), written)
