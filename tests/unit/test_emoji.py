"""Emoji: the label table, the fetcher against a stand-in for npm, and the reader."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from kcdp.data import command, emoji_fetch
from kcdp.data.emoji import EmojiDataset
from kcdp.data.emoji_fetch import ALL, STYLES, fetch_emoji, load_faces, plain_code
from kcdp.data.registry import open_dataset
from kcdp.errors import KcdpError
from kcdp.labels import LABELS

HAPPY, CLOUDS, ANGRY, FROWN = "1F600", "1F636-200D-1F32B-FE0F", "1F620", "2639"
SOURCE = Path(__file__).parents[3] / "shared" / "data" / "emoji_labels.csv"

NPM = """#!{python}
import pathlib, shutil, sys
assert sys.argv[1] == "pack", sys.argv
store = pathlib.Path({store!r})
name = sys.argv[2].replace("@", "").replace("/", "-")
if not (store / name).exists():
    sys.stderr.write({stderr!r})
    sys.exit(1)
shutil.copy(store / name, name + "-1.2.3.tgz")
"""
NOT_FOUND = """npm warn Unknown user config "x".
npm error code E404
npm error 404 Not Found - GET https://example.invalid/name
npm error 404
npm error A complete log of this run can be found in: /somewhere/debug-0.log
"""


def pack(store: Path, package: str, files: dict[str, bytes], licence: str = "MIT") -> None:
    """An archive as npm writes it: everything below ``package/``."""
    about = {"name": package, "version": "1.2.3", "license": licence}
    with tarfile.open(store / package.replace("@", "").replace("/", "-"), "w:gz") as tar:
        for name, data in {"package.json": json.dumps(about).encode(), **files}.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def icon_set(names: dict[str, str], chars: dict[str, str]) -> dict[str, bytes]:
    """Square 32x32 icons: a filled circle of the given colour that leaves the corners free."""
    body = '<circle cx="16" cy="16" r="14" fill="{}"/>'
    icons = {name: {"body": body.format(colour)} for name, colour in names.items()}
    return {
        "icons.json": json.dumps({"prefix": "x", "icons": icons, "width": 32, "height": 32}).encode(),
        "chars.json": json.dumps(chars).encode(),
        "info.json": b"{}",
    }


def webp(colour: str, side: int = 256) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (side, side), colour).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder of archives, and an ``npm`` on PATH that hands them out."""
    store, programs = tmp_path / "store", tmp_path / "bin"
    store.mkdir()
    programs.mkdir()
    npm = programs / "npm"
    npm.write_text(NPM.format(python=sys.executable, store=str(store), stderr=NOT_FOUND))
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    pack(store, "@lobehub/fluent-emoji-3d", {
        "assets/1f600.webp": webp("yellow"), "assets/1f636-200d-1f32b-fe0f.webp": webp("grey"),
        "assets/2639-fe0f.webp": webp("orange"), "assets/1f4a1.webp": webp("white"),
    })  # fmt: skip
    return store


@pytest.fixture
def icon_store(store):
    pytest.importorskip("resvg_py", reason="drawing SVG needs kcdp[train]")
    names = {"grinning-face": "#ff0000", "face-in-clouds": "#00ff00", "angry-face": "#0000ff"}
    chars = {"1f600": "grinning-face", "1f636-200d-1f32b": "face-in-clouds", "1f620": "angry-face"}
    for style in ("noto", "twemoji", "fluent-flat", "openmoji"):
        pack(store, STYLES[style][0], icon_set(names, chars), licence="Apache-2.0")
    pack(store, STYLES["fluent"][0], icon_set(names, {}))
    return store


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_label_table():
    faces = load_faces()
    assert len(faces) == len({face.code for face in faces}) == 131
    assert Counter(face.label for face in faces if face.label) == {
        "happy": 30, "sad": 11, "surprise": 8, "anger": 6, "fear": 3, "disgust": 2,
    }  # fmt: skip
    assert all(face.label in (*LABELS, None) and face.code == face.code.upper() and face.name for face in faces)


@pytest.mark.data
@pytest.mark.skipif(not SOURCE.exists(), reason="emoji_labels.csv is not in ../shared/data beside the repository")
def test_label_table_agrees_with_its_source():
    with SOURCE.open(encoding="utf-8", newline="") as handle:
        wanted = [(row["hex"], row["name"], row["two_or_more_agree"] or None) for row in csv.DictReader(handle)]
    assert [(face.code, face.name, face.label) for face in load_faces()] == wanted


def test_plain_code_drops_the_variation_selector_only():
    assert plain_code(CLOUDS) == "1f636-200d-1f32b" and plain_code("2639-fe0f") == plain_code("2639") == "2639"
    codes = [plain_code(face.code) for face in load_faces()]
    assert len(set(codes)) == len(codes)


def test_fetch_writes_every_style_and_a_manifest(icon_store, tmp_path):
    out = fetch_emoji(tmp_path / "art", size=64, progress=False)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert list(manifest["styles"]) == list(ALL) and "measuring" in manifest["note"]
    assert {style: about["count"] for style, about in manifest["styles"].items()} == dict.fromkeys(ALL, 3)
    assert manifest["styles"]["noto"] == {
        "package": "@iconify-json/noto", "version": "1.2.3", "licence": "Apache-2.0", "count": 3,
    }  # fmt: skip
    assert len(manifest["pictures"]) == 18
    for picture in manifest["pictures"]:
        path = out / picture["file"]
        assert picture["file"] == f"{picture['style']}/{picture['code']}.png"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == picture["sha256"]
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGBA", (64, 64))
    written = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert written == {p["file"] for p in manifest["pictures"]} | {"manifest.json"}
    assert {p["label"] for p in manifest["pictures"] if p["code"] == CLOUDS} == {None}
    assert {p["label"] for p in manifest["pictures"] if p["code"] == HAPPY} == {"happy"}


def test_faces_are_found_under_their_code_or_else_their_name(icon_store, tmp_path):
    out = fetch_emoji(tmp_path / "art", styles=["noto", "fluent"], progress=False)
    for style in ("noto", "fluent"):
        for code, colour in ((HAPPY, (255, 0, 0)), (CLOUDS, (0, 255, 0)), (ANGRY, (0, 0, 255))):
            with Image.open(out / style / f"{code}.png") as image:
                assert image.size == (256, 256)
                assert image.getpixel((128, 128)) == (*colour, 255)
                assert image.getpixel((1, 1))[3] == 0  # the corner stays transparent, nothing is cropped
                assert image.getchannel("A").getbbox() == (16, 16, 240, 240)


def test_webp_is_never_enlarged(store, tmp_path):
    out = fetch_emoji(tmp_path / "art", styles=["fluent-3d"], size=512, progress=False)
    with Image.open(out / "fluent-3d" / f"{FROWN}.png") as image:
        assert image.size == (256, 256) and image.getpixel((9, 9)) == (255, 165, 0, 255)


def test_existing_folder(store, tmp_path):
    out = tmp_path / "art"
    fetch_emoji(out, styles=["fluent-3d"], progress=False)
    stray = out / "fluent-3d" / "stray.png"
    stray.touch()
    message = fails(lambda: fetch_emoji(out, styles=["fluent-3d"], progress=False))
    assert message == f"{out} exists already; expected a new name; choose another --out or add --overwrite"
    fetch_emoji(out, styles=["fluent-3d"], progress=False, overwrite=True)
    assert not stray.exists() and (out / "manifest.json").exists()


def test_overwrite_spares_folders_of_others(store, tmp_path):
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    message = fails(lambda: fetch_emoji(other, progress=False, overwrite=True))
    assert message == (
        f"{other} was not written by this command; expected a folder of emoji artwork to replace; choose another --out"
    )
    assert (other / "chapter.txt").exists()


def test_npm_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    message = fails(lambda: fetch_emoji(tmp_path / "art", progress=False))
    assert message == (
        "npm is not installed; expected the npm client on PATH; install Node.js or use synthetic:stickers instead"
    )


def test_npm_failing_leaves_nothing_behind(store, tmp_path):
    before = sorted(p.name for p in tmp_path.iterdir())
    message = fails(lambda: fetch_emoji(tmp_path / "art", styles=["fluent-3d", "twemoji"], progress=False))
    assert message == (
        "npm pack @iconify-json/twemoji failed: 404 Not Found - GET https://example.invalid/name; "
        "check the network, or use synthetic:stickers instead"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (
            "npm ERR! code ENOTFOUND\nnpm ERR! errno X\nnpm ERR! network request failed\nnpm ERR! more",
            "network request",
        ),
        ("npm warn x\nsh: syntax error\n", "sh: syntax error"),
        ("npm error code EACCES\n", "code EACCES"),
        ("", "no message"),
    ],
)
def test_npm_reason(stderr, reason):
    assert emoji_fetch._npm_reason(stderr).startswith(reason)


def test_npm_that_takes_too_long(store, tmp_path, monkeypatch):
    def slow(*args, **kwargs):
        raise subprocess.TimeoutExpired("npm", 600)

    monkeypatch.setattr(emoji_fetch.subprocess, "run", slow)
    message = fails(lambda: fetch_emoji(tmp_path / "art", styles=["noto"], progress=False))
    assert message == (
        "npm pack @iconify-json/noto took more than 600 s; check the network, or use synthetic:stickers instead"
    )


def test_npm_that_writes_nothing(store, tmp_path):
    (tmp_path / "bin" / "npm").write_text(f"#!{sys.executable}\n")
    message = fails(lambda: fetch_emoji(tmp_path / "art", styles=["noto"], progress=False))
    assert message == "npm pack @iconify-json/noto left 0 archives; expected one .tgz; update npm"


def test_package_of_another_layout(store, tmp_path):
    pack(store, "@lobehub/fluent-emoji-3d", {"pictures/grinning.webp": webp("red")})
    message = fails(lambda: fetch_emoji(tmp_path / "art", styles=["fluent-3d"], progress=False))
    assert message == (
        "@lobehub/fluent-emoji-3d 1.2.3 holds none of the 131 faces; expected icons.json with chars.json, or WebP "
        "files named by code point; leave this style out with --styles"
    )


def test_icon_that_is_no_svg(icon_store, tmp_path):
    icons = icon_set({"grinning-face": "red"}, {"1f600": "grinning-face"})
    pack(icon_store, STYLES["noto"][0], {**icons, "icons.json": icons["icons.json"].replace(b"<circle", b"<<")})
    message = fails(lambda: fetch_emoji(tmp_path / "art", styles=["noto"], progress=False))
    assert message.startswith("@iconify-json/noto 1.2.3: the icon 'grinning-face' cannot be drawn (")
    assert message.endswith("leave this style out with --styles")


@pytest.mark.parametrize("damage", [b"no archive", None])
def test_damaged_archive(store, tmp_path, damage):
    archive = store / "lobehub-fluent-emoji-3d"
    archive.write_bytes(damage or archive.read_bytes()[:300])
    message = fails(lambda: fetch_emoji(tmp_path / "art", styles=["fluent-3d"], progress=False))
    assert message.startswith("the archive of @lobehub/fluent-emoji-3d is damaged (")
    assert message.endswith("run the command again")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"styles": ["notto"]}, f"style 'notto' is unknown (did you mean 'noto'?); expected any of {', '.join(ALL)}"),
        ({"styles": []}, f"the styles are ''; expected any of {', '.join(ALL)}, each once"),
        ({"styles": ["noto"] * 2}, f"the styles are 'noto,noto'; expected any of {', '.join(ALL)}, each once"),
        ({"size": 8}, "size is 8; expected a whole number from 16 to 1024"),
    ],
)
def test_wrong_requests(tmp_path, kwargs, message):
    assert fails(lambda: fetch_emoji(tmp_path / "art", progress=False, **kwargs)) == message


def test_svg_without_its_package_names_the_extra(store, tmp_path, monkeypatch):
    pack(store, STYLES["noto"][0], icon_set({"grinning-face": "red"}, {"1f600": "grinning-face"}))
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    message = fails(lambda: fetch_emoji(tmp_path / "art", styles=["noto"], progress=False))
    assert message == "the package 'resvg_py' is not installed; run: pip install \"kcdp[train]\""


@pytest.fixture
def artwork(store, tmp_path):
    """Two styles on disk; the second is written by hand."""
    out = fetch_emoji(tmp_path / "art", styles=["fluent-3d"], size=32, progress=False)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    first = [p for p in manifest["pictures"] if p["code"] in (HAPPY, CLOUDS)]
    shutil.copytree(out / "fluent-3d", out / "noto")
    manifest["styles"]["noto"] = manifest["styles"]["fluent-3d"]
    manifest["pictures"] += [
        {**p, "style": "noto", "file": p["file"].replace("fluent-3d", "noto")} for p in first
    ]  # fmt: skip
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return out


def test_reader(artwork):
    data = open_dataset(f"emoji:{artwork}")
    assert [(s.key, s.label, s.split, s.group) for s in data.samples] == [
        (f"fluent-3d/{HAPPY}", LABELS.index("happy"), None, "fluent-3d"),
        (f"fluent-3d/{CLOUDS}", None, None, "fluent-3d"),
        (f"fluent-3d/{FROWN}", LABELS.index("sad"), None, "fluent-3d"),
        (f"noto/{HAPPY}", LABELS.index("happy"), None, "noto"),
        (f"noto/{CLOUDS}", None, None, "noto"),
    ]
    assert data.names[1] == "face in clouds"
    assert (data.image(2).mode, data.image(2).size) == ("RGBA", (32, 32))


def test_reader_by_style_and_label(artwork):
    data = open_dataset(f"emoji:{artwork}?styles=noto,fluent-3d&only=labelled")
    assert [s.key for s in data.samples] == [f"noto/{HAPPY}", f"fluent-3d/{HAPPY}", f"fluent-3d/{FROWN}"]
    assert len(open_dataset(f"emoji:{artwork}?styles=noto")) == 2


def test_reader_errors(artwork, tmp_path):
    assert fails(lambda: EmojiDataset("x", tmp_path)) == (
        f"{tmp_path} has no manifest.json; expected a folder of emoji artwork; run: kcdp data emoji --out {tmp_path}"
    )
    assert fails(lambda: EmojiDataset("x", artwork, ["notto"])) == (
        f"{artwork} has no style 'notto' (did you mean 'noto'?); expected any of fluent-3d, noto"
    )
    data = EmojiDataset("x", artwork)
    (artwork / data.samples[0].group / f"{HAPPY}.png").unlink()
    assert f"{artwork / 'fluent-3d' / HAPPY}.png does not exist" in fails(lambda: data.image(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "bundle"}, "does not describe emoji artwork; expected a folder of emoji artwork; run: kcdp data emo"),
        ({"format": 2}, "has format 2; expected 1; run: kcdp data emoji --out "),
    ],
)
def test_manifests_of_others(artwork, change, message):
    path = artwork / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    assert fails(lambda: EmojiDataset("x", artwork)).startswith(f"{path} {message}")


def test_manifest_with_a_label_of_its_own(artwork):
    path = artwork / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"happy"', '"glee"'), encoding="utf-8")
    assert fails(lambda: EmojiDataset("x", artwork)) == (
        f"{path}: {HAPPY} has the label 'glee'; expected null or one of {', '.join(LABELS)}"
    )


def test_command_prints_what_to_do_next(store, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / "art"
    args = parser.parse_args(["emoji", "--out", str(out), "--styles", "fluent-3d", "--size", "32", "--quiet"])
    assert command.run(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["fluent-3d", "3", "pictures", "@lobehub/fluent-emoji-3d", "1.2.3", "(MIT)"]
    assert lines[-1] == f'next: kcdp evaluate RUN --data "emoji:{out}?styles=fluent-3d&only=labelled" --out REPORT'
    assert len(open_dataset(lines[-1].split('"')[1])) == 2


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_real_packages(tmp_path):
    pytest.importorskip("resvg_py", reason="drawing SVG needs kcdp[train]")
    if os.environ.get("KCDP_OFFLINE"):
        pytest.skip("KCDP_OFFLINE is set")
    out = fetch_emoji(tmp_path / "art", styles=["noto", "fluent-flat"], size=64, progress=False)
    assert len(EmojiDataset("x", out, ["noto"])) == 131 and len(EmojiDataset("x", out, ["fluent-flat"])) >= 129
