"""The tagger and its session on a small real graph: right labels, rows in order, and refusals that say why."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_threads import in_threads
from PIL import Image

import kcdp
from kcdp.bundle import Bundle
from kcdp.errors import KcdpError
from kcdp.graph import GraphSpec, TensorSpec, tagging_graph
from kcdp.labels import LABELS
from kcdp.runtime import Tag, Tagger, choose, find_pictures, open_session
from kcdp.runtime.backends.base import ABSENT, UNUSABLE, Status
from kcdp.runtime.backends.options import SessionOptions
from kcdp.runtime.backends.provider_session import OnnxRuntimeSession
from kcdp.runtime.backends.registry import BACKENDS
from kcdp.runtime.session import NonFiniteLogits, Session
from kcdp.runtime.tagger import softmax

REPOSITORY = Path(kcdp.__file__).parents[1]


@pytest.fixture(scope="module")
def tagger(tiny_bundle: Bundle) -> Iterator[Tagger]:
    with Tagger.load(tiny_bundle.path, threads=1, batch_size=4) as opened:
        yield opened


@pytest.fixture()
def pictures(tmp_path: Path, label_colours: dict[str, tuple[int, int, int]]) -> list[Path]:
    """One solid picture for each label, in the order of the labels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (label, colour) in enumerate(label_colours.items()):
        Image.new("RGB", (40, 40), colour).save(folder / f"{number} {label}.png")
    return sorted(folder.iterdir())


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_the_first_form_of_every_sentence(tagger: Tagger, pictures: list[Path]) -> None:
    tags = tagger.tag(pictures)
    assert [tag.label for tag in tags] == list(LABELS)
    for tag, path in zip(tags, pictures, strict=True):
        assert isinstance(tag, Tag) and tag.path == str(path) and tag.error is None
        assert list(tag.scores) == list(LABELS) and tag.confidence == max(tag.scores.values())
        assert sum(tag.scores.values()) == pytest.approx(1, abs=1e-6)
    with pytest.raises(FrozenInstanceError):
        tags[0].label = "happy"  # type: ignore[misc]


def test_every_kind_of_source_gives_the_same_tag(tagger: Tagger, pictures: list[Path]) -> None:
    path = pictures[4]
    with Image.open(path) as image:
        sources: list[Any] = [path, str(path), path.read_bytes(), image, np.asarray(image)]
        tags = tagger.tag(sources)
        assert [tag.path for tag in tags] == [str(path), str(path), "<bytes 2>", str(path), "<array 4>"]
        assert {tag.label for tag in tags} == {"sad"} and len({tag.confidence for tag in tags}) == 1
        for source in sources:  # one source alone is a list of one
            (tag,) = tagger.tag(source)
            assert tag.scores == tags[0].scores
    (tag,) = tagger.tag(np.zeros((8, 8), np.uint8))
    assert tag.error is None
    assert [t.path for t in tagger.tag(noise(3))] == ["<array 0>", "<array 1>", "<array 2>"]


def test_rows_keep_their_order_and_broken_ones_are_rows(tagger: Tagger, pictures: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:60])
    missing = tmp_path / "missing.png"
    items: list[Any] = [missing, *pictures[:3], broken, *pictures[3:], tmp_path, b"", 5]
    tags = tagger.tag(items)
    assert [tag.label for tag in tags] == [None, *LABELS[:3], None, *LABELS[3:], None, None, None]
    assert tags[0] == Tag(str(missing), None, None, {}, f"{missing} does not exist; expected a picture file")
    assert str(tags[4].error).startswith(f"{broken} is truncated or damaged (")
    assert tags[8].error == f"{tmp_path} is a folder; expected a picture file"
    assert tags[9].error == "<bytes 9> is empty (0 bytes); expected a picture file; copy it again"
    assert str(tags[10].error).startswith("<int 10>: received int; expected a path")
    assert [tag.label for tag in tagger.tag([missing] * 9)] == [None] * 9, "whole batches may fail"


def test_stream_reads_two_batches_ahead_and_no_more(tagger: Tagger) -> None:
    taken: list[int] = []

    def items() -> Iterator[np.ndarray]:
        for number in range(1000):
            taken.append(number)
            yield np.full((32, 32, 3), number % 256, np.uint8)

    stream = tagger.stream(items())
    assert not taken, "nothing is read before the first tag is wanted"
    next(stream)
    assert len(taken) == 2 * tagger.batch_size
    assert len([next(stream) for _ in range(7)]) == 7 and len(taken) == 3 * tagger.batch_size


def test_an_error_of_the_iterable_is_not_swallowed(tagger: Tagger) -> None:
    def items() -> Iterator[bytes]:
        yield b""
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        tagger.tag(items())


def test_nothing_to_tag(tagger: Tagger) -> None:
    assert tagger.tag([]) == [] and tagger.predict(noise(0)).shape == (0, 6)
    with pytest.raises(KcdpError, match="items: received int; expected a picture or an iterable of pictures"):
        tagger.tag(3)  # type: ignore[arg-type]
    with pytest.raises(KcdpError, match="items: received NoneType"):
        tagger.stream(None)  # type: ignore[arg-type]


def test_predict_does_not_depend_on_the_batch_size(tiny_bundle: Bundle, tagger: Tagger) -> None:
    images = noise(11)
    probabilities = tagger.predict(images)
    assert probabilities.dtype == np.float32 and probabilities.shape == (11, 6)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(11), abs=1e-6)
    for batch_size in (1, 3, 64):
        with Tagger.load(tiny_bundle.path, batch_size=batch_size) as other:
            np.testing.assert_allclose(other.predict(images), probabilities, rtol=1e-5)
    assert np.array_equal(tagger.predict(images[::2, :, ::-1]), tagger.predict(images[::2, :, ::-1].copy()))


def test_temperature_flattens_and_keeps_the_decision(
    tmp_path: Path, make_bundle: Callable[..., Bundle], tagger: Tagger
) -> None:
    images = noise(5)
    with Tagger.load(make_bundle(tmp_path / "warm.kcdp", calibration={"temperature": 2.0}).path) as warm:
        got = warm.predict(images)
        logits = warm.session.run(images).astype(np.float64)
    powers = np.exp(logits / 2)
    np.testing.assert_allclose(got, powers / powers.sum(axis=1, keepdims=True), rtol=1e-6)
    assert np.array_equal(got.argmax(axis=1), tagger.predict(images).argmax(axis=1))
    assert (got.max(axis=1) < tagger.predict(images).max(axis=1)).all()


def test_softmax_is_stable() -> None:
    logits = np.array([[1e30, 0, -1e30, 0, 0, 0], [1000, 1000, 0, 0, 0, 0]], np.float32)
    for temperature in (1e-300, 1.0, 1e300):
        assert np.isfinite(softmax(logits, temperature)).all()
    np.testing.assert_allclose(softmax(logits), [[1, 0, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0, 0]])


@pytest.mark.parametrize("calibration", [{}, {"temperature": 0}, {"temperature": -1}, {"temperature": "1"}])
def test_a_senseless_temperature_is_refused(
    tmp_path: Path, make_bundle: Callable[..., Bundle], calibration: dict[str, Any]
) -> None:
    with pytest.raises(KcdpError) as caught:
        make_bundle(tmp_path / "b.kcdp", calibration=calibration)
    assert f'calibration is {calibration!r}; expected {{"temperature": a number above 0}}' in str(caught.value)


@pytest.mark.parametrize(
    ("images", "received"),
    [
        (noise(2).astype(np.float32), "float32 [2, 32, 32, 3]"),
        (noise(2)[0], "uint8 [32, 32, 3]"),
        (noise(2)[:, :16], "uint8 [2, 16, 32, 3]"),
        (noise(2).transpose(0, 3, 1, 2), "uint8 [2, 3, 32, 32]"),
        ([[1]], "list"),
    ],
)
def test_wrong_images_are_refused_before_the_library_sees_them(tagger: Tagger, images: Any, received: str) -> None:
    for function in (tagger.predict, tagger.session.run):
        with pytest.raises(KcdpError) as caught:
            function(images)
        assert str(caught.value).startswith(f"images: received {received}; expected ")
        assert "uint8 [N, 32, 32, 3]" in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4"])
def test_wrong_threads_and_batch_sizes(tiny_bundle: Bundle, value: Any) -> None:
    with pytest.raises(KcdpError, match=f"threads is {value!r}; expected a whole number from 1 to 1024, or None for"):
        Tagger.load(tiny_bundle.path, threads=value)
    with pytest.raises(KcdpError, match=f"batch_size is {value!r}; expected a whole number from 1"):
        Tagger.load(tiny_bundle.path, batch_size=value)


def test_options_reach_the_backend(tiny_bundle: Bundle, tmp_path: Path) -> None:
    options = SessionOptions(streams=1, cache=tmp_path / "cache")
    with Tagger.load(tiny_bundle.path, backend="openvino", options=options, threads=1) as tagger:
        assert tagger.describe()["threads"] == 1 and tagger.describe()["backend"] == "openvino"
    assert list((tmp_path / "cache" / "compiled").iterdir()), "the cache is where it was asked to be"
    assert choose(tiny_bundle.path) == choose(tiny_bundle)
    with Tagger.load(tiny_bundle.path, options=SessionOptions(threads=1), threads=1) as tagger:
        assert tagger.describe()["threads"] == 1
    with pytest.raises(KcdpError, match=r"^threads is 2 and options\.threads 3; expected one of the two$"):
        Tagger.load(tiny_bundle.path, options=SessionOptions(threads=3), threads=2)
    with pytest.raises(KcdpError, match=r"^device=1 for the backend onnxruntime; expected options that it takes: str"):
        Tagger.load(tiny_bundle.path, backend="onnxruntime", options=SessionOptions(device=1))


def test_options_of_another_kind(tiny_bundle: Bundle) -> None:
    for call in (Tagger.load, open_session, choose):
        with pytest.raises(KcdpError, match=r"^options is \{'threads': 1\}; expected kcdp\.runtime\.SessionOptions\("):
            call(tiny_bundle.path, options={"threads": 1})  # type: ignore[operator]


def test_an_open_file_is_no_list_of_pictures(tagger: Tagger, pictures: list[Path]) -> None:
    with pictures[0].open("rb") as file:
        with pytest.raises(KcdpError) as caught:
            tagger.tag(file)  # type: ignore[arg-type]
        assert str(caught.value) == (
            "items: received BufferedReader; expected a picture or an iterable of pictures; pass what it reads: "
            "file.read()"
        )
        assert tagger.tag(file.read())[0].label == LABELS[0]


def test_wrong_numbers_are_told_before_anything_is_opened() -> None:
    for wrong, said in (
        ({"batch_size": 0}, "batch_size is 0; expected a whole number from 1"),
        ({"readers": 0}, "readers is 0; expected a whole number from 1"),
        ({"threads": 0}, "threads is 0; expected a whole number from 1 to 1024, or None for all cores"),
        ({"min_confidence": 2}, "min_confidence is 2; expected a number from 0 to 1"),
    ):
        with pytest.raises(KcdpError, match=f"^{said}$"):
            Tagger.load("a folder/that is not there.kcdp", **wrong)  # type: ignore[arg-type]


def test_closing(tiny_bundle: Bundle) -> None:
    tagger = Tagger.load(tiny_bundle.path)
    tagger.close()
    tagger.close()
    with pytest.raises(KcdpError, match="the tagger is closed; open the bundle again"):
        tagger.tag([np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(KcdpError, match=r"the session of .*tiny\.kcdp is closed; open the bundle again"):
        tagger.predict(noise(1))


def test_describe(tiny_bundle: Bundle, tagger: Tagger) -> None:
    import onnxruntime

    description = tagger.describe()
    first = "of onnxruntime-cuda, onnxruntime, openvino the first that runs this portable bundle of float32 here"
    assert description["why"].startswith(f"{first} (onnxruntime-cuda: ")
    assert json.loads(json.dumps(description)) == {
        "bundle": str(tiny_bundle.path), "batch_size": 4, "backend": "onnxruntime",
        "version": onnxruntime.__version__, "provider": "CPUExecutionProvider", "threads": 1, "streams": 1,
        "why": tagger.session.why, "precision": "float32",
        "input": "images uint8 [batch, 32, 32, 3]", "output": "logits float32 [batch, 6]",
    }  # fmt: skip


def test_eight_threads_get_what_one_gets(tiny_bundle: Bundle) -> None:
    batches = [noise(3, seed) for seed in range(8)]
    with Tagger.load(tiny_bundle.path, threads=1) as tagger:
        expected = [tagger.predict(batch) for batch in batches]
        wrong: list[int] = []

        def work(index: int) -> None:
            for _ in range(40):
                if not np.array_equal(tagger.predict(batches[index]), expected[index]):
                    wrong.append(index)

        in_threads(work, range(8))
    assert not wrong


def test_logits_that_are_not_finite(tmp_path: Path, make_bundle: Callable[..., Bundle], pictures: list[Path]) -> None:
    # white overflows float32 to infinity, black gives zeros
    scale = 1.2e38
    bundle = make_bundle(tmp_path / "hot.kcdp", scale=scale, bias=scale * np.array([2.0, 1, 2, 2, 1, 1]))
    white, black = np.full((1, 32, 32, 3), 255, np.uint8), np.zeros((1, 32, 32, 3), np.uint8)
    with Tagger.load(bundle.path) as tagger:
        with pytest.raises(NonFiniteLogits) as caught:
            tagger.predict(np.concatenate([black, white, black]))
        assert str(caught.value).startswith(
            "the graph gave logits that are not finite for picture 1 of the batch; expected finite numbers; export"
        )
        tags = tagger.tag([black[0], tmp_path / "missing.png", white[0], pictures[4]])
    assert tags[0].error is None and list(tags[0].scores.values()) == pytest.approx([1 / 6] * 6)
    assert str(tags[1].error).endswith("missing.png does not exist; expected a picture file")
    assert tags[2] == Tag("<array 2>", None, None, {}, "<array 2>: the graph gave logits that are not finite")
    assert tags[3].error is None and tags[3].scores["anger"] == 0


def copied(bundle: Bundle, target: Path) -> Path:
    shutil.copytree(bundle.path, target)
    return target


def test_one_changed_byte_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = copied(tiny_bundle, tmp_path / "changed.kcdp")
    data = bytearray((path / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "model.onnx").write_bytes(data)
    with pytest.raises(KcdpError, match=r"model\.onnx was changed or damaged: it has SHA-256 \w{12}…; expected SHA"):
        Tagger.load(path)
    (path / "model.onnx").write_bytes(data[:-1])
    with pytest.raises(KcdpError, match=rf"model\.onnx was changed or damaged: it has {len(data) - 1} bytes"):
        Tagger.load(path)
    (path / "model.onnx").unlink()
    with pytest.raises(KcdpError, match=r"model\.onnx is missing"):
        Tagger.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2, "needs_version": "0.9"}, 'bundle format 2, this is kcdp .*: pip install -U "kcdp>=0.9"'),
        ({"needs": ["onnx", "telepathy"]}, r"needs telepathy, this is kcdp .* \(format 1\)"),
        ({"labels": ["a", "b"]}, r"has the labels \['a', 'b'\]; expected \['surprise'"),
    ],
)  # fmt: skip
def test_a_manifest_this_version_does_not_understand(
    tiny_bundle: Bundle, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = copied(tiny_bundle, tmp_path / "newer.kcdp")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    with pytest.raises(KcdpError, match=message):
        Tagger.load(path)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(KcdpError, match=r"nothing\.kcdp is not there; expected a bundle folder"):
        Tagger.load(tmp_path / "nothing.kcdp")
    with pytest.raises(KcdpError, match=r"is a folder without manifest\.json; expected a bundle folder"):
        Tagger.load(str(tmp_path))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"input_name": "pictures"}, r"onnx has the inputs \['pictures'\]; expected \['images'\] as in the manifest"),
        ({"output_name": "scores"}, r"onnx has the outputs \['scores'\]; expected \['logits'\] as in the manifest"),
        ({"size": 48}, r"has the input images uint8 \[\?, 48, 48, 3\]; expected images uint8 \[batch, 32, 32, 3\]"),
    ],
)  # fmt: skip
def test_a_graph_that_is_not_what_the_manifest_says(
    tmp_path: Path, make_bundle: Callable[..., Bundle], graph: dict[str, Any], message: str
) -> None:
    bundle = make_bundle(tmp_path / "other.kcdp", **graph)
    with pytest.raises(KcdpError, match=message):
        OnnxRuntimeSession(bundle)


def test_a_manifest_whose_graph_the_session_cannot_feed(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> None:
    good = tagging_graph(32)
    caption = TensorSpec("caption", "int64", ("batch", "token"), (None, 77))
    with pytest.raises(KcdpError) as caught:
        OnnxRuntimeSession(make_bundle(tmp_path / "fed.kcdp", graph=GraphSpec((*good.inputs, caption), good.outputs)))
    assert "fed.kcdp describes its graph as images uint8 ['N', " in str(caught.value)
    assert "; expected images uint8 ['N', 32, 32, 3] -> logits float32 ['N', 6]; export" in str(caught.value)
    with pytest.raises(KcdpError, match="pictures are prepared at 32 px, the graph takes another size"):
        make_bundle(tmp_path / "other.kcdp", graph=tagging_graph(48))


def test_a_damaged_graph_is_one_line(tiny_bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for content in (b"", b"no graph at all", tiny_bundle.model_path.read_bytes()[:200]):
        path = copied(tiny_bundle, tmp_path / f"damaged{len(content)}.kcdp")
        (path / "model.onnx").write_bytes(content)
        with pytest.raises(KcdpError) as caught:
            OnnxRuntimeSession(replace(tiny_bundle, path=path))
        assert "cannot open" in str(caught.value) and f"{path / 'model.onnx'} (" in str(caught.value)
        assert "\n" not in str(caught.value) and "ONNXRuntimeError" not in str(caught.value)
    assert capfd.readouterr().err == "", "ONNX Runtime itself prints nothing"


def test_a_graph_that_fails_is_one_line(
    tmp_path: Path, make_bundle: Callable[..., Bundle], capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "dark.kcdp", fails_above=100)
    with OnnxRuntimeSession(bundle, SessionOptions(threads=1)) as session:
        assert session.run(noise(3) // 4).shape == (3, 6)
        with pytest.raises(KcdpError) as caught:
            session.run(noise(3))
    assert str(caught.value).startswith(f"ONNX Runtime failed on {bundle.model_path} with 3 pictures (")
    assert str(caught.value).endswith("); try a smaller batch, or export the bundle again")
    assert capfd.readouterr().err == "", "ONNX Runtime itself prints nothing"


@pytest.mark.parametrize("logits", [np.zeros((2, 5), np.float32), np.zeros((1, 6), np.float32), np.zeros((2, 6))])
def test_whatever_a_session_returns_is_checked(tiny_bundle: Bundle, logits: np.ndarray) -> None:
    class Wrong(Session):
        def _run(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
            return logits

        def _describe(self) -> dict[str, Any]:
            return {}

        def _close(self) -> None:
            pass

    with Wrong(tiny_bundle) as session, pytest.raises(KcdpError) as caught:
        session.run(noise(2))
    got = f"{tiny_bundle.model_path} gave {logits.dtype} {list(logits.shape)}"
    assert str(caught.value) == f"{got}; expected float32 [2, 6]; export the bundle again"


def test_a_missing_library_names_the_install_line(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(KcdpError) as caught:
        Tagger.load(tiny_bundle.path, backend="onnxruntime")
    missing = "the package 'onnxruntime' is not installed; run: pip install \"kcdp[runtime]\""
    assert str(caught.value) == f"the backend onnxruntime is not installed: {missing}"
    monkeypatch.setitem(sys.modules, "openvino", None)
    state = Status(ABSENT)
    monkeypatch.setattr(BACKENDS["tensorrt-rtx"], "status", lambda options: state)
    with pytest.raises(KcdpError) as caught:
        Tagger.load(tiny_bundle.path)
    assert str(caught.value) == missing, "nothing at all: one advice"
    state = Status(UNUSABLE)
    with pytest.raises(KcdpError) as caught:
        Tagger.load(tiny_bundle.path)
    assert str(caught.value).startswith(f"nothing here runs {tiny_bundle.path} (portable, float32): onnxruntime-cuda: ")
    assert f"onnxruntime: not installed: {missing}; openvino: not installed: " in str(caught.value)
    assert str(caught.value).endswith('; run: pip install "kcdp[openvino]"')


def test_find_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("s/b.PNG", "s/a.webp", "s/notes.txt", "s/.hidden.png", "s/t/c.gif", "s/.u/d.png", "s/e.png/f.bmp"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("s/broken.jpg").symlink_to("nowhere")
    Path("s/loop").symlink_to("../s")
    flat = ["s/a.webp", "s/b.PNG", "s/broken.jpg"]
    assert list(find_pictures("s")) == flat
    assert list(find_pictures([Path("s")], recursive=True)) == [*flat, "s/e.png/f.bmp", "s/t/c.gif"]
    explicit = ["s/notes.txt", "./missing.png", "s/.hidden.png", "s/.u"]
    assert list(find_pictures(explicit)) == [*explicit[:3], "s/.u/d.png"]
    assert list(find_pictures(["s/t", "s/t"])) == ["s/t/c.gif"] * 2
    assert list(find_pictures("s/loop/t")) == ["s/loop/t/c.gif"]


def test_a_folder_that_cannot_be_read_becomes_an_error_row(
    tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refuse)
    monkeypatch.setattr("os.access", lambda *_: False)
    (tag,) = tagger.tag(find_pictures(tmp_path))
    assert tag.error == f"{tmp_path} is a folder that cannot be read; expected a picture file"


def test_importing_the_runtime_loads_no_library() -> None:
    code = (
        "import sys, kcdp.runtime, kcdp.runtime.command\n"
        "assert not {'torch', 'onnxruntime', 'onnx', 'numpy', 'PIL'} & set(sys.modules), sorted(sys.modules)\n"
        "from kcdp.runtime import Tag, Tagger, find_pictures\n"
        "assert not {'torch', 'onnxruntime', 'onnx'} & set(sys.modules)\n"
        "assert set(kcdp.runtime.__all__) <= set(dir(kcdp.runtime))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
    with pytest.raises(AttributeError, match="has no attribute 'Taggger'"):
        kcdp.runtime.Taggger  # noqa: B018


def test_tagging_loads_no_torch(tiny_bundle: Bundle) -> None:
    code = (
        "import sys\nfrom kcdp.runtime import Tagger\n"
        f"tags = Tagger.load({str(tiny_bundle.path)!r}).tag('nowhere.png')\n"
        "assert tags[0].error and 'onnxruntime' in sys.modules\n"
        "assert not {'torch', 'onnx', 'torchvision'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
