"""Brings face emoji from six artwork packages of the npm registry and draws them as PNG.

``emoji_labels.csv`` beside this module lists the 131 faces: code point, CLDR short name and emotion. The emotion is
given where at least two of three independent sources agree and none disagrees (60 faces): human ratings (EmoTag1200,
MIT licence), CLDR keywords, and the wording of Emojipedia. It is meant for measuring, not for training.

The artwork is fetched by each user with the npm client and is not part of this package; every set's own licence
holds and is written to the manifest.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from kcdp.data.emoji import FORMAT_VERSION, MANIFEST, read_manifest
from kcdp.decoding import decode
from kcdp.errors import KcdpError, nearest, require
from kcdp.files import atomic_folder, sha256_file, write_json
from kcdp.labels import LABELS

NOTE = "The labels are for measuring: do not train on them. Each style is under its own licence, named here."
_NPM_SECONDS = 600
_JSON_FILES = ("package/package.json", "package/icons.json", "package/chars.json")


@dataclass(frozen=True)
class Face:
    """One face emoji.

    Attributes:
        code: code points in upper-case hexadecimal, joined by hyphens ("1F636-200D-1F32B-FE0F").
        name: CLDR short name.
        label: one of LABELS where the sources agree, else None.
    """

    code: str
    name: str
    label: str | None


@dataclass(frozen=True)
class Package:
    """A fetched artwork package: what it says of itself, and the bytes of its JSON and WebP files by path."""

    name: str
    version: str
    licence: str
    files: Mapping[str, bytes]

    def json(self, file: str) -> dict[str, Any]:
        """A JSON file at the package's top; empty where it is absent."""
        return json.loads(self.files.get(f"package/{file}", b"{}"))


def _draw_webp(package: Package, faces: Sequence[Face], size: int) -> Iterator[tuple[Face, Image.Image]]:
    """WebP files named by code point; made smaller where asked, never larger."""
    by_code = {plain_code(PurePosixPath(file).stem): file for file in package.files if file.endswith(".webp")}
    for face in faces:
        file = by_code.get(plain_code(face.code))
        if file is not None:
            image = decode(package.files[file], name=f"{package.name}:{file}").convert("RGBA")
            image.thumbnail((size, size), Image.Resampling.LANCZOS)
            yield face, image


def _draw_svg(package: Package, faces: Sequence[Face], size: int) -> Iterator[tuple[Face, Image.Image]]:
    """SVG bodies in ``icons.json``; ``chars.json`` maps code points to their names.

    Where that map is empty (fluent-emoji 1.2 ships ``{}``) the icon is looked up by the CLDR name, hyphenated. Faces
    that the set still has under an older name (hugging, knocked-out, pouting) are then not found.
    """
    resvg = require("resvg_py", "train")
    icons = package.json("icons.json")
    by_code = {plain_code(code): name for code, name in package.json("chars.json").items()}
    for face in faces:
        name = by_code.get(plain_code(face.code)) if by_code else re.sub(r"[^a-z0-9]+", "-", face.name.lower())
        icon = icons.get("icons", {}).get(name)
        if icon is not None:
            box = [icon.get(key, icons.get(key, default)) for key, default in _VIEW_BOX]
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{size}" '
                f'height="{size}" viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
            )
            try:
                data = resvg.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
            except ValueError as error:
                raise KcdpError(
                    f"{package.name} {package.version}: the icon {name!r} cannot be drawn ({error})",
                    fix="leave this style out with --styles",
                ) from None
            yield face, decode(bytes(data), name=f"{package.name}:{name}").convert("RGBA")


#: Iconify's fields of an icon set or an icon, with the format's own defaults.
_VIEW_BOX = (("left", 0), ("top", 0), ("width", 16), ("height", 16))

Draw = Callable[[Package, Sequence[Face], int], Iterator[tuple[Face, Image.Image]]]

#: style -> the npm package, and how its pictures are read.
STYLES: dict[str, tuple[str, Draw]] = {
    "fluent-3d": ("@lobehub/fluent-emoji-3d", _draw_webp),
    "noto": ("@iconify-json/noto", _draw_svg),
    "twemoji": ("@iconify-json/twemoji", _draw_svg),
    "fluent": ("@iconify-json/fluent-emoji", _draw_svg),
    "fluent-flat": ("@iconify-json/fluent-emoji-flat", _draw_svg),
    "openmoji": ("@iconify-json/openmoji", _draw_svg),
}
ALL: tuple[str, ...] = tuple(STYLES)


def fetch_emoji(
    out: Path, *, size: int = 256, styles: Sequence[str] = ALL, progress: bool = True, overwrite: bool = False
) -> Path:
    """Writes ``OUT/<style>/<CODE>.png`` and ``OUT/manifest.json``, the whole folder or nothing.

    Args:
        out: the folder to make.
        size: side of the PNG in pixels, 16..1024 (fluent-3d is drawn at 256 and never enlarged).
        styles: which artworks, from ``ALL``.
        progress: show a bar on stderr.
        overwrite: replace a folder that an earlier call wrote.

    Returns:
        ``out``. The pictures are RGBA, 8 bits, with a transparent background.

    Raises:
        KcdpError: unknown style; npm or resvg_py is not installed; no network; ``out`` cannot be written.
    """
    out = Path(out).expanduser()
    _check_request(out, size, styles, overwrite)
    npm = _find_npm()
    faces = load_faces()
    bar = require("tqdm", "train").tqdm if progress else None
    manifest: dict[str, Any] = {
        "kind": "emoji", "format": FORMAT_VERSION, "note": NOTE, "size": size, "labels": list(LABELS),
        "styles": {}, "pictures": [],
    }  # fmt: skip
    with atomic_folder(out, overwrite=overwrite, marker=MANIFEST) as folder, tempfile.TemporaryDirectory() as downloads:
        for style in bar(styles, desc="emoji", unit="style") if bar else styles:
            package_name, draw = STYLES[style]
            package = _read_package(package_name, _download(npm, package_name, Path(downloads) / style))
            pictures = [_write(folder, style, face, image) for face, image in draw(package, faces, size)]
            if not pictures:
                raise KcdpError(
                    f"{package.name} {package.version} holds none of the {len(faces)} faces",
                    "icons.json with chars.json, or WebP files named by code point",
                    "leave this style out with --styles",
                )
            manifest["styles"][style] = {
                "package": package.name, "version": package.version, "licence": package.licence,
                "count": len(pictures),
            }  # fmt: skip
            manifest["pictures"] += pictures
        write_json(folder / MANIFEST, manifest)
    return out


def load_faces() -> tuple[Face, ...]:
    """The 131 faces of ``emoji_labels.csv``, in CLDR order."""
    text = resources.files("kcdp.data").joinpath("emoji_labels.csv").read_text(encoding="utf-8")
    return tuple(Face(row["code"], row["name"], row["label"] or None) for row in csv.DictReader(text.splitlines()))


def plain_code(code: str) -> str:
    """Lower-case, without the variation selector FE0F, which some sets write and some leave out."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def _check_request(out: Path, size: int, styles: Sequence[str], overwrite: bool) -> None:
    for style in styles:
        if style not in STYLES:
            raise KcdpError(f"style {style!r} is unknown{nearest(style, ALL)}", f"any of {', '.join(ALL)}")
    if not styles or len(set(styles)) != len(styles):
        raise KcdpError(f"the styles are {','.join(styles)!r}", f"any of {', '.join(ALL)}, each once")
    if not 16 <= size <= 1024:
        raise KcdpError(f"size is {size}", "a whole number from 16 to 1024")
    if overwrite and out.exists():
        try:
            read_manifest(out)
        except KcdpError:
            raise KcdpError(
                f"{out} was not written by this command", "a folder of emoji artwork to replace", "choose another --out"
            ) from None


def _find_npm() -> str:
    npm = shutil.which("npm")
    if npm is None:
        raise KcdpError(
            "npm is not installed", "the npm client on PATH", "install Node.js or use synthetic:stickers instead"
        )
    return npm


def _download(npm: str, package: str, folder: Path) -> Path:
    """``npm pack`` into ``folder``; npm itself checks the archive's hash."""
    folder.mkdir()
    command = [npm, "pack", package, "--ignore-scripts"]
    fix = "check the network, or use synthetic:stickers instead"
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_NPM_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise KcdpError(f"npm pack {package} took more than {_NPM_SECONDS} s", fix=fix) from None
    if done.returncode != 0:
        said = _npm_reason(done.stderr.decode("utf-8", "replace"))
        raise KcdpError(f"npm pack {package} failed: {said}", fix=fix)
    archives = sorted(folder.glob("*.tgz"))
    if len(archives) != 1:
        raise KcdpError(f"npm pack {package} left {len(archives)} archives", "one .tgz", "update npm")
    return archives[0]


def _npm_reason(stderr: str) -> str:
    """The line that gives npm's reason. After it come advice and the path of a log file, before it error codes."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [re.sub(r"^npm (error|ERR!) *", "", line) for line in lines if re.match(r"npm (error|ERR!)", line)]
    reasons = [line for line in errors if line and not re.match(r"(code|syscall|errno) ", line)]
    return (reasons or errors[-1:] or lines[-1:] or ["no message"])[0]


def _read_package(name: str, archive: Path) -> Package:
    try:
        with tarfile.open(archive) as tar:  # one pass: going back in a compressed archive starts it over
            wanted = (member for member in tar if member.name.endswith((".webp", *_JSON_FILES)))
            files = {member.name: handle.read() for member in wanted if (handle := tar.extractfile(member))}
        about = json.loads(files.get("package/package.json", b"{}"))
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise KcdpError(f"the archive of {name} is damaged ({error})", fix="run the command again") from None
    return Package(name, str(about.get("version", "unknown")), str(about.get("license", "unknown")), files)


def _write(folder: Path, style: str, face: Face, image: Image.Image) -> dict[str, Any]:
    file = f"{style}/{face.code}.png"
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    buffer = BytesIO()
    image.save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    return {
        "style": style, "code": face.code, "name": face.name, "label": face.label, "file": file,
        "sha256": sha256_file(path),
    }  # fmt: skip
