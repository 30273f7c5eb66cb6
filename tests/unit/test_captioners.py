"""The captioners: what each says, what each refuses, and the models behind two of them at a tiny size."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from kcdp.data import synthetic
from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.drawing import photo
from kcdp.data.drawing.characters import CHARACTERS
from kcdp.data.drawing.expressions import PROPS
from kcdp.data.drawing.scene import CUES
from kcdp.data.emoji_fetch import load_faces
from kcdp.data.registry import open_dataset
from kcdp.errors import KcdpError
from kcdp.knowledge.captioners import drawn
from kcdp.knowledge.captioners.base import Captioner, Request
from kcdp.knowledge.captioners.registry import CAPTIONERS, open_captioner
from kcdp.labels import DATASET_CLASSES, LABELS
from kcdp.preprocess import picture_hash


class Pictures(ImageDataset):
    """Solid pictures under the given keys, told apart by their size."""

    def __init__(self, *keys: str, name: str = "folder:x") -> None:
        super().__init__(name, [Sample(key, None) for key in keys])

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (8 + range(len(self))[index], 8), "red")


def opened(name: str, dataset: ImageDataset, weights: object = None, model: str | None = None) -> Captioner:
    return open_captioner(name, Request(dataset, None if weights is None else str(weights), model, "cpu"))


def captions(captioner: Captioner, dataset: ImageDataset) -> list[str]:
    return captioner.caption([dataset.image(i) for i in range(len(dataset))], dataset.samples)


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The table.


def test_the_table():
    assert list(CAPTIONERS) == ["coca", "instructblip", "file", "emoji", "drawn", "none"]
    assert all(entry.help and entry.module.endswith(name) for name, entry in CAPTIONERS.items())


@pytest.mark.parametrize(
    ("name", "weights", "model", "message"),
    [
        ("cocoa", None, None, "captioner 'cocoa' is unknown (did you mean 'coca'?); "
                              "expected one of coca, instructblip, file, emoji, drawn, none"),
        ("none", "x", None, "captioner 'none' takes no --weights; leave --weights x out"),
        ("file", "x.csv", "y", "captioner 'file' takes no --model; leave --model y out"),
        ("emoji", None, None, "captioner 'emoji' cannot describe 'folder:x'; expected a dataset emoji:...; "
                              "choose another --captioner"),
        ("drawn", None, None, "captioner 'drawn' cannot describe 'folder:x'; expected a dataset synthetic:...; "
                              "choose another --captioner"),
        ("file", None, None, "captioner 'file' has no weights; expected a .json, .jsonl or .csv file; add --weights"),
        ("coca", None, None, "captioner 'coca' has no weights; expected a weights file, a folder with "
                             "open_clip_config.json and weights, or a name that open_clip knows; add --weights"),
        ("instructblip", None, None, "captioner 'instructblip' has no weights; expected the folder of an InstructBLIP "
                                     "model in the layout of transformers (config.json, processor, weights); "
                                     "add --weights"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_served(name, weights, model, message):
    assert fails(lambda: opened(name, Pictures("a"), weights, model)) == message


@pytest.mark.parametrize(("name", "package", "extra"), [("coca", "open_clip", "train"),
                                                        ("instructblip", "transformers", "instructblip")])  # fmt: skip
def test_a_missing_package_names_its_extra(monkeypatch, name, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    assert fails(lambda: opened(name, Pictures("a"), "x")) == (
        f"the package '{package}' is not installed; run: pip install \"kcdp[{extra}]\""
    )


def test_none_says_nothing():
    assert captions(opened("none", Pictures("a", "b")), Pictures("a", "b")) == ["", ""]


# emoji.


def test_emoji_are_told_by_their_names():
    data = Pictures("noto/1F600", "twemoji/1f636-200d-1f32b-fe0f", "x/1F636-200D-1F32B", name="emoji:x")
    captioner = opened("emoji", data)
    assert captions(captioner, data) == ["grinning face", "face in clouds", "face in clouds"]
    assert captioner.leaks_labels and captioner.name == "emoji"
    assert len(load_faces()) == 131
    other = Pictures("noto/1F9FF", name="emoji:x")
    assert fails(lambda: captions(captioner, other)) == (
        "'noto/1F9FF' is none of the 131 face emoji; expected a key that ends in a code point"
    )


def test_no_other_captioner_leaks_labels(tmp_path):
    (tmp_path / "c.json").write_text("{}")
    assert not opened("none", Pictures("a")).leaks_labels
    assert not opened("file", Pictures("a"), tmp_path / "c.json").leaks_labels
    assert not opened("drawn", open_dataset("synthetic:stickers?n=1")).leaks_labels


# file.

FORMS = {
    "object.json": '{"happy/1.png": "one", "sad/2.png": " two\\n words "}',
    "pairs.json": '[["happy/1.png", "one"], ["sad/2.png", "two words"]]',
    "objects.json": '[{"image": "happy/1.png", "caption": "one"}, {"file_name": "sad/2.png", "text": "two words"}]',
    "rows.jsonl": '{"path": "happy/1.png", "caption": "one"}\n\n["sad/2.png", "two words"]\n',
    "table.csv": '\ufefffile,id,caption\nhappy/1.png,7,one\nsad/2.png,8,"two\nwords"\n',
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_file(tmp_path, name):
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    data = Pictures("happy/1.png", "sad/2.png")
    captioner = opened("file", data, tmp_path / name)
    assert captions(captioner, data) == ["one", "two words"]
    assert captioner.name == f"file {name}"


def test_keys_are_hashes_exact_paths_or_ends_of_paths(tmp_path):
    data = Pictures("happy/1.png", "2.png", "deep/er/3.png", "1.png")
    path = tmp_path / "c.json"
    path.write_text(json.dumps({
        "/data/SER/Images/happy/1.png": "by a longer path", picture_hash(data.image(1)): "by hash",
        "2.png": "not me", "C:\\x\\3.png": "not me either", "er/3.png": "by a shorter path", "1.png": "exactly",
    }))  # fmt: skip
    assert captions(opened("file", data, path), data) == ["by a longer path", "by hash", "by a shorter path", "exactly"]


def test_an_end_that_fits_twice(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"train/1.png": "a", "test/1.png": "b", "x/2.png": "c", "y/2.png": "c"}')
    captioner = opened("file", Pictures("1.png"), path)
    assert fails(lambda: captions(captioner, Pictures("1.png"))) == (
        f"{path}: '1.png' could be 'train/1.png' or 'test/1.png'; expected one path with that end; "
        "write longer paths into the file"
    )
    assert captions(captioner, Pictures("2.png")) == ["c"]  # both say the same
    path.write_text('{"1.png": "a", "3.png": "b"}')
    two = Pictures("sad/1.png", "happy/1.png", "happy/3.png")
    captioner = opened("file", two, path)
    assert fails(lambda: captions(captioner, two)) == (
        f"{path}: '1.png' could be 'sad/1.png' or 'happy/1.png'; expected one path with that end; "
        "write longer paths into the file"
    )
    assert captioner.caption([two.image(2)], two.samples[2:]) == ["b"]
    assert fails(lambda: captions(captioner, Pictures("11.png"))) == (
        f"{path} has no caption for '11.png'; expected its path or its hash among the keys"
    )


def test_a_captions_file_of_this_package_is_one_of_them(tmp_path):
    path = tmp_path / "c.jsonl"
    row = {"hash": picture_hash(Pictures("a").image(0)), "key": "other", "caption": "x", "captioner": "y"}
    path.write_text(json.dumps(row) + "\n")
    assert captions(opened("file", Pictures("a"), path), Pictures("a")) == ["x"]
    path.write_text(json.dumps({**row, "leaks_labels": True}) + "\n")
    assert opened("file", Pictures("a"), path).leaks_labels


ENTRIES = (
    "expected pairs [path, caption], objects with one of image, file_name, image_path, path, file, key or hash and one "
    "of caption, text, or one object path -> caption"
)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", '["a dog", "a cat"]',
         f"entry 1 is a text alone; {ENTRIES}; captions are never matched by their position"),
        ("c.json", '[["a.png", "x", "y"]]', f"entry 1 is a list of 3; {ENTRIES}"),
        ("c.json", "[3]", f"entry 1 is int; {ENTRIES}"),
        ("c.json", '[["a.png", "x"], {"image": "a.png", "label": 3}]',
         f"entry 2 is an object with image, label; {ENTRIES}"),
        ("c.json", "[{}]", f"entry 1 is an object with nothing; {ENTRIES}"),
        ("c.json", '"x"', f"holds str; {ENTRIES}"),
        ("c.json", '[["a.png", "x"], ["a.png", "y"]]',
         "holds two different captions for 'a.png'; expected one caption for a picture"),
        ("c.csv", "file,label\na,1\n", "has the columns file, label; expected one of caption, text among them"),
        ("c.csv", "", "has the columns none; expected one of image, file_name, image_path, path, file, key, hash among "
                      "them"),
        ("c.txt", "", "is a .txt file; expected one of .json, .jsonl, .csv"),
        ("c", "", "is a nameless kind of file; expected one of .json, .jsonl, .csv"),
    ],
)  # fmt: skip
def test_files_that_are_none(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    assert fails(lambda: opened("file", Pictures("a"), path)) == f"{path} {message}"


def test_files_that_cannot_be_read(tmp_path):
    for name in ("no.jsonl", "no.csv"):
        message = fails(lambda name=name: opened("file", Pictures("a"), tmp_path / name))
        assert message == f"{tmp_path / name} does not exist; expected a file of captions"
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'["a", "\xff"]')
    assert fails(lambda: opened("file", Pictures("a"), bad)).startswith(f"{bad} cannot be read ('utf-8' codec can't")
    bad.write_text('["a", "b"]\n{')
    assert fails(lambda: opened("file", Pictures("a"), bad)).startswith(f"{bad} line 2 is not JSON (Expecting property")


# drawn.

#: What would tell the emotion: the labels, the datasets' words for them, and their synonyms.
SYNONYMS = (
    "joy joyful cheer cheerful glad delight delighted pleased smile smiles smiling grin grinning laugh laughing "
    "laughter love loving fun funny afraid scare scared scary fright frightened terror terrified horror horrified "
    "panic worry worried nervous anxious mad furious fury rage enraged annoyed upset outrage hostile frown frowning "
    "scowl glare glaring sorrow sorrowful grief unhappy gloomy gloom depressed miserable cry crying cries weep "
    "weeping sob sobbing gross yuck sick nausea nauseous revolted repulsed revulsion aversion vomit vomiting stink "
    "stinking shock shocked astonish astonished amaze amazed startle startled stunned wonder exciting excited emotion "
    "emotional mood feeling expression happily sadly angrily fearfully"
)
TELLING = {*LABELS, *SYNONYMS.split(), *(str(name) for table in DATASET_CLASSES.values() for name in table)}


@pytest.fixture(scope="module", params=["stickers", "photos"])
def told(request) -> tuple[ImageDataset, list[str]]:
    data = open_dataset(f"synthetic:{request.param}?n=900&seed=3&size=32")
    captioner = opened("drawn", data)
    return data, captioner.caption([], data.samples)


def test_drawn_captions_never_tell_the_emotion(told):
    words = {word for caption in told[1] for word in re.findall(r"[a-z]+", caption.lower())}
    assert len(words) > 60 and not words & TELLING
    every = [t for group in drawn.GROUPS for _, things, acts in group for t in (*things, *acts)]
    every += [t for table in (drawn.SIGNS, drawn.CHARACTERS, drawn.CUES) for texts in table.values() for t in texts]
    assert not {word for text in every for word in re.findall(r"[a-z]+", text.lower())} & TELLING


def test_the_guard_sees_a_telling_word(monkeypatch):
    monkeypatch.setitem(drawn.CHARACTERS, "cat", ("a sad cat",))
    data = open_dataset("synthetic:stickers?n=60&size=32")
    words = {word for caption in opened("drawn", data).caption([], data.samples) for word in caption.split()}
    assert words & TELLING == {"sad"}


def test_drawn_captions_are_hints_and_no_labels(told):
    """A bag of words learnt on 600 captions; it finds 0.89 (stickers) and 0.87 (photos)."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    data, texts = told
    bags = CountVectorizer(ngram_range=(1, 2)).fit_transform(texts)
    model = LogisticRegression(max_iter=500).fit(bags[:600], data.labels[:600])
    assert 0.75 < model.score(bags[600:], data.labels[600:]) < 0.95


def test_drawn_captions_are_varied_and_short(told):
    data, texts = told
    for label in range(len(LABELS)):
        own = [text for text, sample in zip(texts, data.samples, strict=True) if sample.label == label]
        assert len(own) == 150 and len(set(own)) > 120
    assert max(len(text.split()) for text in texts) <= 50  # CLIP reads 77 tokens
    assert all(text == " ".join(text.split()) and "{" not in text and not text.endswith(".") for text in texts)


def test_drawn_captions_are_deterministic_and_know_subsets(told):
    data, texts = told
    hidden = open_dataset(data.name + "&labelled=no&limit=50")
    index = {sample.key: i for i, sample in enumerate(data.samples)}
    again = opened("drawn", hidden).caption([], hidden.samples)
    assert again == [texts[index[sample.key]] for sample in hidden.samples]
    natural = open_dataset(data.name.replace("&seed", "&prior=natural&seed"))
    assert opened("drawn", natural).caption([], natural.samples) != texts


def test_drawn_says_only_what_is_drawn(told):
    data, texts = told
    faces = synthetic.SyntheticFaces(data.name.split(":")[1].split("?")[0], n=900, seed=3, size=32)
    shown = {"tear": ("tear", "stream", "joytears"), "steam": ("steam",), "sparkles": ("sparkles",),
             "stars": ("sparkles",), "heart": ("hearts",), "vein": ("vein",), "slime": ("vomit",)}  # fmt: skip
    for index, text in enumerate(texts):
        subject = faces.subject(index)
        for word, props in shown.items():
            if re.search(rf"\b{word}s?\b", text):
                assert set(props) & set(subject.expression.props), text
        if re.search(r"(?<!half-)closed eyes|closing|\bshut\b", text):
            assert subject.expression.eyes != "open"
        if "tongue" in text:
            assert subject.expression.tongue > 0.3
        if "glasses" in text or "beard" in text:
            assert subject.person and (subject.person.glasses or subject.person.beard)
        if "raised eyebrows" in text:
            assert subject.expression.brow_inner > 0.4


def test_drawn_words_exist_for_everything_that_can_be_drawn():
    assert set(drawn.SIGNS) == set(PROPS) and set(drawn.CHARACTERS) == set(CHARACTERS)
    assert set(drawn.CUES) == {cue for cues in CUES.values() for cue in cues}


def test_a_subject_is_what_is_drawn(monkeypatch):
    """``SyntheticFaces.subject`` draws its numbers in the order of ``draw_photo`` and ``draw_sticker``."""
    seen = []

    def spy(function):
        def wrapped(*args):
            seen.append(function(*args))
            return seen[-1]

        return wrapped

    monkeypatch.setattr(photo, "sample_person", spy(photo.sample_person))
    monkeypatch.setattr(photo, "choose_cue", spy(photo.choose_cue))
    faces = synthetic.SyntheticFaces("photos", n=24, size=32)
    for index in range(24):
        seen.clear()
        faces.image(index)
        assert seen == [faces.subject(index).person, faces.subject(index).cue]
    drawn_with = []
    monkeypatch.setattr(synthetic, "draw_sticker", lambda e, c, *rest: drawn_with.append((e, c)))
    stickers = synthetic.SyntheticFaces("stickers", n=24, size=32)
    for index in range(-1, 24):
        stickers.image(index)
        subject = stickers.subject(index)
        assert drawn_with[-1] == (subject.expression, subject.character) and subject.person is None
    with pytest.raises(IndexError):
        stickers.subject(24)


def test_drawn_knows_its_own_pictures_only():
    captioner = opened("drawn", open_dataset("synthetic:photos?n=2"))
    assert fails(lambda: captioner.caption([], [Sample("photos-0-000002", 1)])) == (
        "'synthetic:photos?n=2' has no picture 'photos-0-000002'; expected a sample of that dataset"
    )


def test_photos_show_less_than_stickers():
    subject = synthetic.SyntheticFaces("photos", n=1).subject(0)
    loud = replace(subject.expression, props=("steam", "tear", "hearts"), teeth="fangs", tint=1.0)
    photos = [drawn.describe(replace(subject, expression=loud), str(key)) for key in range(50)]
    stickers = [drawn.describe(synthetic.Subject(loud, "cat"), str(key)) for key in range(50)]
    for word in ("steam", "heart", "pointed"):
        assert any(word in text for text in stickers) and not any(word in text for text in photos)
    assert all("cat" in text for text in stickers)
    for texts in (photos, stickers):  # about half of the signs are overlooked
        assert 10 < sum("tear" in text for text in texts) < 40


# Beam search.


def test_beam_search_finds_the_best_of_all_sequences():
    import itertools

    import torch

    from kcdp.knowledge.captioners.beam_search import beam_search

    vocabulary, end, longest = 4, 3, 4
    table = torch.randn(2, vocabulary + 1, vocabulary, generator=torch.Generator().manual_seed(0)) * 2

    def log_p(element: int, sequence: list[int]) -> float:
        """Each token's probability depends on the one before it and on the position."""
        total, before = 0.0, vocabulary
        for position, token in enumerate(sequence):
            total += float((table[element, before] * (1 + position % 2)).log_softmax(-1)[token])
            before = token
        return total

    def best(element: int) -> list[int]:
        candidates = []
        for length in range(1, longest + 1):
            for words in itertools.product(range(3), repeat=length):
                if length < longest:
                    candidates.append((log_p(element, [*words, end]) / (length + 1), [*words]))
                else:
                    candidates.append((log_p(element, [*words]) / length, [*words]))
        return max(candidates)[1]

    beams = 81

    def next_logits(ids: torch.Tensor) -> torch.Tensor:
        element = torch.arange(2).repeat_interleave(beams)
        return table[element, ids[:, -1]] * (1 + (ids.shape[1] - 1) % 2)

    found = beam_search(next_logits, 2, start=vocabulary, end=end, beams=beams, shortest=1, longest=longest)
    assert found == [best(0), best(1)]


# CoCa.


@pytest.fixture(scope="module")
def coca(tmp_path_factory) -> Path:
    """tiny_coca.json, tiny.pt and the folder hub/ as a hub repository holds it; random weights."""
    import open_clip
    import torch

    folder = tmp_path_factory.mktemp("coca")
    text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16,
                       "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**text, "attn_pooler_heads": 2},
        "custom_text": True,
    }  # fmt: skip
    (folder / "tiny_coca.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny_coca.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny_coca")
    with torch.no_grad():  # open_clip begins so quietly that the picture would make no difference
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    torch.save(model.state_dict(), folder / "tiny.pt")
    hub = folder / "hub"
    hub.mkdir()
    (hub / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.save(model.state_dict(), hub / "open_clip_pytorch_model.bin")
    return folder


def test_coca_captions(coca):
    data = open_dataset("synthetic:stickers?n=5&size=48")
    captioner = opened("coca", data, coca / "tiny.pt", str(coca / "tiny_coca.json"))
    assert captioner.name == "coca tiny_coca tiny.pt"
    texts = captions(captioner, data)
    assert len(texts) == 5 and all(texts)
    alone = [captioner.caption([data.image(i)], [data.samples[i]])[0] for i in range(5)]
    assert alone == texts  # a batch changes nothing
    hub = opened("coca", data, coca / "hub")
    assert hub.name == "coca hub" and captions(hub, data) == texts


def test_coca_beams_see_what_the_plain_model_sees(coca, monkeypatch):
    import torch

    from kcdp.knowledge.captioners import coca as module

    seen = {}

    def spy(next_logits, batch, **options):
        ids = torch.tensor([49406, 7, 9]).expand(batch * options["beams"], 3)
        seen.update(ids=ids, logits=next_logits(ids), **options)
        return [[320, 1929]] * batch

    monkeypatch.setattr(module, "beam_search", spy)
    data = open_dataset("synthetic:photos?n=2&size=48")
    captioner = opened("coca", data, coca / "hub")
    assert captions(captioner, data) == ["a dog", "a dog"]
    assert (seen["beams"], seen["shortest"], seen["longest"]) == (4, 5, 23)  # 23: the tiny model's context
    assert (seen["start"], seen["end"]) == (49406, 49407)
    pixels = torch.stack([captioner._transform(data.image(i)) for i in (0, 0, 0, 0, 1, 1, 1, 1)])
    with torch.no_grad():
        plain = captioner._model(pixels, seen["ids"], output_labels=False)["logits"][:, -1]
    torch.testing.assert_close(seen["logits"], plain, atol=1e-4, rtol=1e-4)
    assert (seen["logits"][0] - seen["logits"][4]).abs().max() > 0.01  # two pictures


def test_coca_weights_that_are_none(coca, tmp_path):
    data = Pictures("a")
    wanted = "expected a weights file, a folder with open_clip_config.json and weights, or a name that open_clip knows"
    assert fails(lambda: opened("coca", data, tmp_path)) == (
        f"{tmp_path} holds no CoCa model; expected open_clip_config.json and weights in it; check --weights"
    )
    assert fails(lambda: opened("coca", data, coca / "hub", "coca_base")) == (
        "--model coca_base with a folder of weights; leave --model out: the folder names it"
    )
    message = fails(lambda: opened("coca", data, "mscoco_finetuned_laion2b"))
    assert message.startswith("mscoco_finetuned_laion2b does not exist (did you mean 'mscoco_finetuned_laion2b_")
    assert f"{wanted}: laion2b_s13b_b90k, mscoco" in message
    message = fails(lambda: opened("coca", data, coca / "tiny.pt", "coca_bse"))
    assert message.startswith("--model 'coca_bse' is unknown (did you mean 'coca_base'?); expected one of coca_base, ")
    assert "coca_ViT-L-14" in message
    assert fails(lambda: opened("coca", data, coca / "tiny.pt", "no.json")) == (
        "--model no.json does not exist; expected an open_clip configuration file"
    )
    garbage = tmp_path / "garbage.pt"
    garbage.write_bytes(b"no weights")
    message = fails(lambda: opened("coca", data, garbage, str(coca / "tiny_coca.json")))
    assert message.startswith(f"CoCa from {garbage} cannot be loaded (") and message.endswith(
        f"; {wanted}; check --weights"
    )


def test_coca_wants_a_text_decoder(tmp_path):
    import open_clip
    import torch

    config = {"embed_dim": 8, "vision_cfg": {"image_size": 16, "layers": 1, "width": 8, "head_width": 8,
              "patch_size": 8}, "text_cfg": {"width": 8, "heads": 1, "layers": 1, "context_length": 8}}  # fmt: skip
    (tmp_path / "plain_clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "plain_clip.json")
    torch.save(open_clip.create_model("plain_clip").state_dict(), tmp_path / "w.pt")
    assert fails(lambda: opened("coca", Pictures("a"), tmp_path / "w.pt", str(tmp_path / "plain_clip.json"))) == (
        "coca plain_clip w.pt is no CoCa model; expected a model with a text decoder; choose another --model"
    )


def test_a_device_that_is_not_there(coca):
    request = Request(Pictures("a"), str(coca / "hub"), None, "cuda:99")
    assert fails(lambda: open_captioner("coca", request)).startswith("device 'cuda:99' cannot be used (")


# InstructBLIP.


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> Path:
    """A random InstructBLIP of a few thousand weights, with tokenizers of a few words, saved as transformers does."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("blip")
    words = ["say", "who", "the", "picture", "shows", "face", "a", "dog", "sits"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"\u2581{word}", -3.0) for word in words)]
    pieces += [(letter, -6.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyzI,."]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=2))
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    unigram.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=unigram, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    queries = transformers.BertTokenizer(vocab=str(folder / "vocab.txt"))
    images = transformers.BlipImageProcessor(size={"height": 28, "width": 28})
    processor = transformers.InstructBlipProcessor(images, tokenizer, queries, num_query_tokens=4)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = transformers.InstructBlipConfig(
        vision_config={**small, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14, "initializer_range": 0.5},
        qformer_config={**small, "num_hidden_layers": 2, "vocab_size": len(queries), "initializer_range": 0.5},
        text_config=transformers.T5Config(
            vocab_size=len(processor.tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
            decoder_start_token_id=0,
        ).to_dict(),
        num_query_tokens=4,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.InstructBlipForConditionalGeneration(config).save_pretrained(folder / "tiny")
    processor.save_pretrained(folder / "tiny")
    return folder / "tiny"


def test_instructblip_captions(blip, monkeypatch):
    from kcdp.knowledge.captioners import instructblip

    data = open_dataset("synthetic:stickers?n=3&size=48")
    captioner = opened("instructblip", data, blip)
    assert captioner.name == "instructblip tiny"
    calls = []
    generate = captioner._model.generate
    monkeypatch.setattr(captioner._model, "generate", lambda **inputs: calls.append(inputs) or generate(**inputs))
    texts = captions(captioner, data)
    assert len(texts) == 3 and all(texts) and all(text == " ".join(text.split()) for text in texts)
    (inputs,) = calls
    assert {key: inputs[key] for key in instructblip.GENERATION} == {
        "do_sample": False, "num_beams": 5, "min_new_tokens": 30, "max_new_tokens": 50, "repetition_penalty": 5.0,
    }  # fmt: skip
    assert inputs["pixel_values"].shape == (3, 3, 28, 28) and inputs["input_ids"].shape[0] == 3
    assert captions(captioner, data) == texts
    lengths = [len(row) for row in generate(**{**inputs, "num_beams": 1})]
    assert all(30 <= length <= 51 for length in lengths)


def test_instructblip_is_asked_what_the_paper_asks():
    from kcdp.knowledge.captioners.instructblip import PROMPT

    assert PROMPT.count(".") == 1  # one sentence, asking for one
    for word in ("one sentence", "who or what", "face", "body", "feeling"):
        assert word in PROMPT


def test_instructblip_folders_that_are_none(blip, tmp_path):
    wanted = (
        "expected the folder of an InstructBLIP model in the layout of transformers (config.json, processor, weights)"
    )
    assert fails(lambda: opened("instructblip", Pictures("a"), tmp_path)) == (
        f"{tmp_path} holds no config.json; {wanted}; check --weights"
    )
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert fails(lambda: opened("instructblip", Pictures("a"), tmp_path)) == (
        f"{tmp_path} holds a model of type 't5'; expected instructblip; check --weights"
    )
    (tmp_path / "config.json").write_text((blip / "config.json").read_text())
    message = fails(lambda: opened("instructblip", Pictures("a"), tmp_path))
    assert message.startswith(f"InstructBLIP in {tmp_path} cannot be loaded (") and message.endswith(f"; {wanted}")
