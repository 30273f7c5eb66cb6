"""The device's tokenizer gives every text the ids of open_clip's, however broken the text is."""

from __future__ import annotations

import base64
import csv
import html.entities
import json
import random
import time
from pathlib import Path

import ftfy
import numpy as np
import open_clip
import pytest
import regex

import kcdp.data
from kcdp.data.registry import open_dataset
from kcdp.errors import KcdpError
from kcdp.export.text_tables import EXAMPLES, PROBES, check_tokenizer, write_tokenizer
from kcdp.files import write_json
from kcdp.knowledge.captioners.base import Request
from kcdp.knowledge.captioners.registry import open_captioner
from kcdp.tokenizer import FIRST_MERGE, Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "triples.jsonl"
#: Encodings that text is most often mistaken for.
MISTAKEN = (
    "latin-1", "windows-1252", "windows-1251", "windows-1250", "windows-1253", "windows-1254", "windows-1257",
    "iso-8859-2", "macroman", "cp437",
)  # fmt: skip
WORDS = (
    "cat", "dog's", "I've", "they'LL", "don't", "CRYING", "won't,", "à la", "fácil", "naïve", "Über", "straße",
    "ſo", "'ſ", "12:45", "3.14", "#1!!", "<start_of_text>", "<END_OF_TEXT>", "<ſtart_of_text>", "ﬁne", "ĳs",
    "ŉ", "ＡＢＣ", "ｶﾞ", "“so”", "‘it’s’", "…", "–", "\u0345", "α\u0345", "İ", "ẞ", "\u212a", "\u212b",
    "e\u0301\u0345", "²", "Ⅷ", "٣", "😂", "👩\u200d👩\u200d👧", "🇩🇪🇫🇷", "👍🏽", "❤\ufe0f", "1\ufe0f\u20e3",
    "🏴\U000e0067\U000e0062\U000e007f", "漢字カナ", "안녕", "\u0645\u0631\u062d\u0628\u0627", "\u202bab\u202c",
    "\u200f", "\u200e", "\u2066x\u2069", "\ufeff", "\ufffc", "\ufffd", "\x00", "\x07", "\x1f", "\x7f", "\x85",
    "\x9f", "\x1b[31mred\x1b[0m", "\t", "\r", "\r\n", "\n", "\u2028", "\u3000", "\xa0", "\ud83d\ude00",
    "\ud83d", "\ude00\ud83d", "&amp;", "&AMP", "&lt;b&gt;", "&amp;amp;lt;", "&#128512;", "&#x85;", "&#xd800;",
    "&NTILDE;", "&nTILDE;", "&hearts", "&notit;", "schÃ¶n", "â€œsoâ€\x9d", "Ã la", "Ð¿Ñ€Ð¸", "ï¿½", "Â£5",
    "ã\x81\x82", "ðŸ˜‚", "\xed\xa0\xbd\xed\xb8\x80", "\xed\xa0\x80\xed\xb0\n", "\xc0\x80", "Ã©\xc0\n",
    "don‚Äôt", "вЂ™",
)  # fmt: skip
RANGES = (
    (0x20, 0x7E), (0, 0x9F), (0x80, 0x17F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x9FF), (0x1100, 0x11FF),
    (0x1E00, 0x20CF), (0x2100, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xD800, 0xDFFF), (0xF900, 0xFFFF),
    (0x10000, 0x1FFFF), (0x1F300, 0x1FAFF), (0, 0x10FFFF),
)  # fmt: skip


def any_word(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.5:
        return draw.choice(WORDS)
    if kind < 0.6:
        name = draw.choice(sorted(html.entities.html5))
        return f"&{draw.choice((name, name.upper(), name.lower()))}{draw.choice(('', ';'))}"
    low, high = draw.choice(RANGES)
    return "".join(chr(draw.randint(low, high)) for _ in range(draw.randint(1, 5)))


def mistaken(text: str, draw: random.Random) -> str:
    """UTF-8, read in another encoding; where that encoding has no such byte, it is lost or kept."""
    data, encoding = text.encode("utf-8", "surrogatepass"), draw.choice(MISTAKEN)
    read = data.decode(encoding, "replace") if draw.random() < 0.6 else "".join(map(chr, data))
    return read.replace("\xa0", " ") if draw.random() < 0.3 else read


def any_text(draw: random.Random) -> str:
    text = draw.choice(("", " ", "  ", "\n")).join(any_word(draw) for _ in range(draw.randint(0, 9)))
    kind = draw.random()
    if kind < 0.4:
        text = mistaken(text, draw)
        if kind < 0.15:
            text = f"{text} {any_word(draw)}"
        elif kind < 0.2:
            text = mistaken(text, draw)
    return text


def drawn_captions() -> list[str]:
    """What the project itself says of pictures."""
    dataset = open_dataset("synthetic:stickers?n=60&size=32")
    captioner = open_captioner("drawn", Request(dataset, None, None, "cpu"))
    texts = captioner.caption([dataset.image(i) for i in range(len(dataset))], dataset.samples)
    with (Path(kcdp.data.__file__).parent / "emoji_labels.csv").open(encoding="utf-8") as handle:
        texts += [row["name"] for row in csv.DictReader(handle)]
        handle.seek(0)
        texts += [chr(int(row["code"].split("-")[0], 16)) for row in csv.DictReader(handle)]
    return texts + [json.loads(line)["caption"] for line in GOLDEN.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(path) -> Tokenizer:
    return Tokenizer.open(path)


@pytest.fixture
def data(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_thousands_of_broken_texts(tokenizer):
    draw = random.Random(20)
    texts = [any_text(draw) for _ in range(4000)]
    check_tokenizer(tokenizer, texts)
    changed = sum(ftfy.fix_text(text) != text for text in texts)
    assert changed > 2000, "the texts are broken indeed"
    assert [text for text in texts if tokenizer._repair(text) != ftfy.fix_text(text)] == []


def test_plain_and_long_texts(tokenizer):
    draw = random.Random(21)
    texts = ["", " ", "\n\t ", "\u200b", "a" * 3000, "Ab1! " * 500, "漢" * 400, "😂" * 400, "x" * 20 + "\n" * 20]
    texts += ["".join(draw.choices("ab'ſs1 é", k=draw.randint(1, 40))) for _ in range(1000)]
    check_tokenizer(tokenizer, texts)
    check_tokenizer(tokenizer, texts, context=8)


def test_the_captions_of_the_project(tokenizer):
    texts = drawn_captions()
    assert len(texts) > 300
    check_tokenizer(tokenizer, texts)
    ids = tokenizer(texts, 77)
    assert not [text for text, row in zip(texts, ids, strict=True) if tokenizer.end not in row]


def test_every_character_of_the_first_planes_in_a_word(tokenizer):
    """Letters, digits and the rest are told apart as the original does, beyond what Python's tables know."""
    source = open_clip.tokenizer.SimpleTokenizer()
    everything = [chr(code) for code in (*range(0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x20000, 3))]
    text = "".join(f"a{char}" for char in everything if not char.isspace())
    assert tokenizer._pattern.findall(text) == source.pat.findall(text)
    assert regex.fullmatch(r"\p{L}", "\U00010d4a"), "a letter of Unicode 16"


def test_rows_are_cut_padded_and_ended(tokenizer):
    rows = tokenizer(["a b", "word " * 100, ""], 6)
    assert rows.dtype == np.int64 and rows.shape == (3, 6)
    assert rows[0].tolist() == [tokenizer.start, 320, 321, tokenizer.end, 0, 0]
    assert rows[1, -1] == tokenizer.end and 0 not in rows[1]
    assert rows[2].tolist() == [tokenizer.start, tokenizer.end, 0, 0, 0, 0]
    assert tokenizer([], 6).shape == (0, 6) and tokenizer.vocabulary == 49408


def test_what_is_no_text_is_refused(tokenizer):
    assert fails(lambda: tokenizer("a cat", 77)) == "the texts are 'a cat'; expected a list of strings"
    assert fails(lambda: tokenizer(["a", None], 77)) == "the texts are None; expected a list of strings"
    assert fails(lambda: tokenizer(["a"], 2)) == "the context length is 2; expected 3 or more: start, a word, end"


def test_it_is_small_and_opens_at_once(path):
    assert path.stat().st_size < 400_000
    start = time.perf_counter()
    Tokenizer.open(path)
    assert time.perf_counter() - start < 0.2
    tokenizer = Tokenizer.open(path)
    start = time.perf_counter()
    tokenizer.ids("a" * 50_000)
    assert time.perf_counter() - start < 5, "a long word costs little more than its length"


def test_the_file_says_what_it_was_made_from(data):
    assert data["made_from"].startswith("open_clip_torch ")
    assert [text for text, _ in data["examples"]] == list(EXAMPLES)


# The twins: a tokenizer that is not open_clip's is noticed.


def changed_merges(data: dict, change) -> dict:
    merges = np.frombuffer(base64.b64decode(data["merges"]), "<u2").reshape(-1, 2).copy()
    changed = change(merges)
    return {**data, "merges": base64.b64encode((merges if changed is None else changed).tobytes()).decode()}


def swap(first: int, second: int):
    def change(merges: np.ndarray) -> None:
        merges[[first, second]] = merges[[second, first]]

    return change


def test_twin_a_swapped_merge_of_common_pieces_is_refused_by_the_file_itself(data):
    message = fails(lambda: Tokenizer(changed_merges(data, swap(0, 2)), "t.json"))
    assert message.startswith("t.json gives its own example ") and message.endswith("copy or export the bundle again")


def test_twin_a_swapped_merge_is_seen_beside_open_clip(data):
    """Two whole words of the vocabulary's end, which no example holds."""
    merges = np.frombuffer(base64.b64decode(data["merges"]), "<u2").reshape(-1, 2)
    pieces = {i: piece for piece, i in open_clip.tokenizer.SimpleTokenizer().encoder.items()}
    late = [i for i in range(40_000, len(merges)) if merges[i].max() < 30_000]
    words = {pieces[FIRST_MERGE + i].removesuffix("</w>"): i for i in late if pieces[FIRST_MERGE + i].endswith("</w>")}
    word, other = [word for word in words if word.isascii() and word.isalpha()][:2]
    damaged = Tokenizer(changed_merges(data, swap(words[word], words[other])))
    check_tokenizer(damaged, list(EXAMPLES))
    message = fails(lambda: check_tokenizer(damaged, ["two cats", f"a {word}"]))
    assert message.startswith(
        f"the exported tokenizer gives 'a {word}' the id {FIRST_MERGE + words[other]} at place 2; "
    )
    assert f"expected {FIRST_MERGE + words[word]}, as open_clip_torch " in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"format": 2}, "t.json has the format 2; expected 1; export the bundle again, or update kcdp"),
        (lambda d: [1], "t.json has the format None; expected 1; export the bundle again, or update kcdp"),
        (lambda d: {k: v for k, v in d.items() if k != "merges"}, "t.json is damaged (KeyError('merges')); "),
        (lambda d: d | {"merges": d["merges"][:-5]}, "t.json is damaged ("),
        (lambda d: d | {"merges": ""}, "t.json is damaged: a merge is there twice, or of pieces that come after it; "),
        (lambda d: changed_merges(d, lambda m: m[::-1]), "t.json is damaged: a merge is there twice, or of pieces "),
        (lambda d: changed_merges(d, lambda m: m[[0, *range(len(m) - 1)]]), "t.json is damaged: a merge is there twi"),
        (lambda d: changed_merges(d, lambda m: m[:-1]), "t.json gives its own example "),
        (lambda d: d | {"characters": {"letters": [1]}}, "t.json is damaged ("),
        (lambda d: d | {"repair": {}}, "the tokenizer's tables for broken text are damaged (KeyError('translations'))"),
        (lambda d: d | {"repair": d["repair"] | {"encodings": ["latin-x"]}}, "the tokenizer's tables for broken text"),
        (lambda d: d | {"repair": d["repair"] | {"translations": []}}, "t.json gives its own example 'ﬁancée"),
    ],
)  # fmt: skip
def test_twin_damaged_files(change, message, data):
    assert fails(lambda: Tokenizer(change(data), "t.json")).startswith(message)


def test_twin_files_that_are_missing_or_no_json(tmp_path):
    assert (
        fails(lambda: Tokenizer.open(tmp_path / "a.json"))
        == f"{tmp_path / 'a.json'} does not exist; expected a JSON file"
    )
    (tmp_path / "a.json").write_text("{")
    assert "is not valid JSON" in fails(lambda: Tokenizer.open(tmp_path / "a.json"))
    write_json(tmp_path / "a.json", {})
    assert "has the format None" in fails(lambda: Tokenizer.open(tmp_path / "a.json"))


def test_twin_another_repair_is_seen(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "_repair", lambda text: text)
    assert fails(lambda: check_tokenizer(tokenizer, [text for text in PROBES if text.isprintable()])).startswith(
        "the exported tokenizer gives "
    )


def test_twin_packages_of_another_kind(monkeypatch, tmp_path):
    import ftfy.chardata

    monkeypatch.delattr(ftfy.chardata, "LIGATURES")
    message = fails(lambda: write_tokenizer(tmp_path / "a.json"))
    assert message.startswith("the tokenizer of open_clip_torch ") and "is not understood (AttributeError" in message
    assert not list(tmp_path.iterdir())
