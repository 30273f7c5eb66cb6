"""Files beside the pictures: what is in them, and that nobody else's is replaced."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kcdp.errors import KcdpError
from kcdp.labels import LABELS
from kcdp.runtime.items import Item
from kcdp.runtime.rows import row
from kcdp.runtime.sidecars import NAMESPACE, Sidecars, json_sidecar, xmp_sidecar
from kcdp.runtime.tagger import Tag

MODEL = "ab" * 32
SCORES = dict(zip(LABELS, (0.05, 0.5, 0.2, 0.15, 0.0999999, 0.0000001), strict=True))
DC, RDF = "{http://purl.org/dc/elements/1.1/}", "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
OWN = f"{{{NAMESPACE}}}"


def tag(path: str, label: str = "happy") -> Tag:
    return Tag(path, label, 0.5, SCORES, frames=24, spread=0.125)


def test_json_is_the_row_with_the_digest(tmp_path: Path) -> None:
    name = "日本 \udcff\n<&>.png"
    assert json.loads(json_sidecar(tag(name), MODEL)) == {**row(tag(name)), "model": MODEL}
    path = tmp_path / "a.b.png"
    sidecars = Sidecars("json", MODEL)
    sidecars.add(Item(str(path), str(path)), tag(str(path)))
    assert json.loads((tmp_path / "a.b.png.json").read_bytes())["path"] == str(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.b.png.json"], "no temporary file"


def test_xmp_holds_the_keyword_and_the_scores() -> None:
    data = xmp_sidecar(tag("<&>.png"), MODEL)
    root = ElementTree.fromstring(data.decode("utf-8").removeprefix("<?xml version='1.0' encoding='utf-8'?>\n"))
    (described,) = root.findall(f"{RDF}RDF/{RDF}Description")
    assert described.get(f"{RDF}about") == ""
    assert [li.text for li in described.findall(f"{DC}subject/{RDF}Bag/{RDF}li")] == ["happy"]
    simple = {name: described.findtext(f"{OWN}{name}") for name in ("label", "confidence", "frames", "spread", "model")}
    assert simple == {
        "label": "happy", "confidence": "0.500000", "frames": "24", "spread": "0.125000", "model": MODEL,
    }  # fmt: skip
    scores = described.find(f"{OWN}scores")
    assert scores is not None and scores.get(f"{RDF}parseType") == "Resource"
    assert {child.tag.removeprefix(OWN): float(child.text or "") for child in scores} == pytest.approx(SCORES, abs=1e-6)
    assert "e-" not in data.decode(), "small numbers are written out"


def test_xmp_is_in_the_form_that_its_specification_asks_for(tmp_path: Path) -> None:
    """ISO 16684-1: one rdf:Description with property elements, plain text, an array or a structure in each; numbers
    without exponents; the prefixes that readers look for. The picture's name is not in it."""
    found = replace(tag("a.png"), spread=1e-6)
    data = xmp_sidecar(found, MODEL)
    text = data.decode("utf-8")
    assert text.startswith("<?xml version='1.0' encoding='utf-8'?>\n<x:xmpmeta ") and text.count("<rdf:RDF>") == 1
    assert '<rdf:Description rdf:about="">' in text and "<dc:subject>" in text and "<kcdp:label>" in text
    top = ElementTree.fromstring(data)
    assert [element.tag for element in top] == [f"{RDF}RDF"] and [e.tag for e in top[0]] == [f"{RDF}Description"]
    properties = list(top[0][0])
    assert len({element.tag for element in properties}) == len(properties) == 7
    for element in properties:
        assert element.tag.startswith((DC, OWN))
        if not len(element):
            assert not element.attrib and re.fullmatch(r"[a-z]+|\d+(\.\d+)?|[0-9a-f]{64}", element.text or "")
        elif element.tag == f"{DC}subject":
            assert [(bag.tag, [li.tag for li in bag]) for bag in element] == [(f"{RDF}Bag", [f"{RDF}li"])]
        else:
            assert element.attrib == {f"{RDF}parseType": "Resource"} and len(element) == len(LABELS)
            assert all(child.tag.startswith(OWN) and re.fullmatch(r"\d\.\d{6}", child.text or "") for child in element)
    odd = tmp_path / "<&>\"' \n日本 {x}.png"
    Sidecars("xmp", MODEL).add(Item(str(odd), str(odd)), replace(found, path=str(odd)))
    assert Path(f"{odd}.xmp").read_bytes() == data
    escaped = ElementTree.fromstring(xmp_sidecar(replace(found, label="<&>]]>"), MODEL))
    assert escaped.findtext(f".//{OWN}label") == "<&>]]>"


def test_unsure_is_no_keyword() -> None:
    root = ElementTree.fromstring(xmp_sidecar(tag("a.png", "unsure"), MODEL))
    assert not list(root.iter(f"{DC}subject")) and [e.text for e in root.iter(f"{OWN}label")] == ["unsure"]


@pytest.mark.parametrize("kind", ["json", "xmp"])
def test_ours_is_renewed_and_others_are_kept(tmp_path: Path, kind: str) -> None:
    picture, path = tmp_path / "a.png", tmp_path / f"a.png.{kind}"
    item, sidecars = Item(str(picture), str(picture)), Sidecars(kind, MODEL)
    for label in ("happy", "unsure", "sad"):
        sidecars.add(item, tag(str(picture), label))
        assert label in path.read_text()
    edited = {
        "json": [b"{}", b"[]", b"", b"{", b"\xff\xfe", b'{"rating": 5}'],
        "xmp": [
            b"", b"<x", b"<!DOCTYPE x [<!ENTITY a 'b'>]>" + path.read_bytes(), b"<a/>",
            path.read_bytes().replace(b"kcdp 0", b"Adobe XMP Core 0"),
            path.read_bytes().replace(b"</rdf:Bag>", b"<rdf:li>holiday</rdf:li></rdf:Bag>"),
            path.read_bytes().replace(b"<rdf:li>sad<", b"<rdf:li>my own<"),
            path.read_bytes().replace(b"</rdf:Description>", b"<dc:creator>me</dc:creator></rdf:Description>"),
            path.read_bytes().replace(b'rdf:about=""', b'rdf:about="" kcdp:rating="5"'),
        ],
    }  # fmt: skip
    for data in edited[kind]:
        path.write_bytes(data)
        with pytest.raises(KcdpError) as caught:
            sidecars.add(item, tag(str(picture)))
        assert str(caught.value) == f"{path} is there already and not of kcdp; move it away or add --overwrite"
        assert path.read_bytes() == data
    Sidecars(kind, MODEL, overwrite=True).add(item, tag(str(picture), "fear"))
    assert "fear" in path.read_text()
    assert sidecars.told() == ["sidecars written: 3"]


def test_a_folder_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.png.json").mkdir()
    item = Item(str(tmp_path / "a.png"), str(tmp_path / "a.png"))
    with pytest.raises(KcdpError, match=r"a\.png\.json is there already and not of kcdp"):
        Sidecars("json", MODEL).add(item, tag(item.name))
    with pytest.raises(KcdpError, match=r"a\.png\.json is a folder; expected the name of a file"):
        Sidecars("json", MODEL, overwrite=True).add(item, tag(item.name))


def test_what_has_no_place_is_counted_and_what_failed_has_none(tmp_path: Path) -> None:
    sidecars = Sidecars("xmp", MODEL)
    sidecars.add(Item("pack.zip/a.png", lambda: b""), tag("pack.zip/a.png"))
    sidecars.add(Item("<bytes>", b"x"), tag("<bytes>"))
    broken = str(tmp_path / "b.png")
    sidecars.add(Item(broken, broken), replace(tag(broken), label=None, confidence=None, scores={}, error="broken"))
    assert sidecars.told() == [
        "sidecars written: 0", "pictures without a place for a sidecar (entries of archives): 2"
    ] and not list(tmp_path.iterdir())  # fmt: skip
