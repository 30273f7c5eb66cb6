"""Drawn faces: reproducible, in both domains what they claim to be, learnable, and with a real gap between them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from kcdp.data import synthetic
from kcdp.data.drawing.characters import CHARACTERS
from kcdp.data.drawing.expressions import _RECIPES, PROPS, Expression, sample_expression
from kcdp.data.drawing.props import MIDDLE, OVER, UNDER
from kcdp.data.synthetic import DOMAINS, NATURAL_SHARES, SyntheticFaces, draw_face
from kcdp.errors import KcdpError
from kcdp.labels import LABELS
from kcdp.preprocess import to_rgb

MODES = {"photos": "RGB", "stickers": "RGBA"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_pictures_depend_on_the_index_and_not_on_order_or_n(domain):
    forwards, backwards = SyntheticFaces(domain, 12, 3, 64), SyntheticFaces(domain, 40, 3, 64)
    first = [forwards.image(i).tobytes() for i in range(12)]
    assert [backwards.image(i).tobytes() for i in reversed(range(12))] == first[::-1]
    assert forwards.image(-1).tobytes() == first[11]
    assert len(set(first)) == 12
    assert [s.key for s in forwards.samples] == [s.key for s in backwards.samples[:12]]
    with pytest.raises(IndexError):
        forwards.image(12)


@pytest.mark.parametrize("domain", DOMAINS)
def test_another_process_with_another_hash_seed_draws_the_same_bytes(domain):
    code = (
        "import hashlib; from kcdp.data.synthetic import SyntheticFaces; "
        f"print(hashlib.sha256(SyntheticFaces({domain!r}, 9, 5, 48).image(8).tobytes()).hexdigest())"
    )
    run = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2")
    ]
    assert run[0].stdout == run[1].stdout


def test_seeds_and_domains_share_no_picture():
    pictures = {
        d: [to_rgb(SyntheticFaces(d, 6, s, 48).image(i)).tobytes() for s in (0, 1) for i in range(6)] for d in DOMAINS
    }
    assert len({*pictures["photos"], *pictures["stickers"]}) == 24


def test_global_random_state_is_neither_used_nor_changed():
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    a = SyntheticFaces("photos", 1, 0, 48).image(0)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    np.random.seed(8)  # noqa: NPY002
    assert SyntheticFaces("photos", 1, 0, 48).image(0).tobytes() == a.tobytes()


@pytest.mark.parametrize("domain", DOMAINS)
def test_samples(domain):
    data = SyntheticFaces(domain, 60, 2, 64)
    assert data.class_counts() == dict.fromkeys(LABELS, 10)
    assert data.labels.tolist() == [i % 6 for i in range(60)]
    assert data.samples[7].key == f"{domain}-2-000007"
    assert len({s.key for s in data.samples}) == 60
    assert all(s.split is None for s in data.samples)
    assert data.name == f"synthetic-{domain}" and SyntheticFaces(domain, 1, name="mine").name == "mine"
    groups = {s.group for s in data.samples}
    assert groups == {""} if domain == "photos" else groups == set(CHARACTERS)


def test_unlabelled_pictures_are_the_labelled_ones():
    shown, hidden = SyntheticFaces("stickers", 6, 0, 48), SyntheticFaces("stickers", 6, 0, 48, labelled=False)
    assert hidden.labels.tolist() == [-1] * 6
    assert hidden.class_counts()["unlabelled"] == 6
    assert all(shown.image(i).tobytes() == hidden.image(i).tobytes() for i in range(6))


def test_natural_prior():
    data = SyntheticFaces("stickers", 1200, 0, 64, prior="natural")
    shares = np.bincount(data.labels, minlength=6) / 1200
    assert np.abs(shares - NATURAL_SHARES).max() < 0.05
    assert sum(NATURAL_SHARES) == pytest.approx(1.0)
    assert SyntheticFaces("stickers", 50, 0, 64, prior="natural").labels.tolist() == data.labels[:50].tolist()


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("size", [32, 96, 200])
def test_mode_and_size(domain, size):
    for emotion in LABELS:
        image = draw_face(domain, emotion, np.random.default_rng([size, LABELS.index(emotion)]), size)
        assert image.mode == MODES[domain] and image.size == (size, size)


def test_stickers_are_cut_out_and_photos_are_noisy():
    stickers = SyntheticFaces("stickers", 96, 0, 64)
    for i in range(96):
        alpha = np.asarray(stickers.image(i))[..., 3]
        assert not alpha[[0, 0, -1, -1], [0, -1, 0, -1]].any(), stickers.samples[i].key
        assert (alpha[24:40, 24:40] == 255).all(), stickers.samples[i].key
        assert 0.2 < (alpha > 127).mean() < 0.8
    photo = np.asarray(SyntheticFaces("photos", 1, 0, 128).image(0).convert("L"), np.float32)
    assert np.abs(np.diff(photo[:12, :40], axis=1)).mean() > 0.5  # flat colour would give 0


def test_characters_differ_in_shape_and_share_their_colours():
    from kcdp.data.drawing.sticker import draw_sticker

    face = Expression("happy", mouth_curve=0.9)
    shapes = {c: np.asarray(draw_sticker(face, c, np.random.default_rng(0), 64))[..., 3].tobytes() for c in CHARACTERS}
    assert len(CHARACTERS) == 8
    assert len(set(shapes.values())) >= 7  # the two robots have the same outline


def test_every_prop_is_drawn_by_someone_and_none_is_unknown():
    assert set(PROPS) == {*UNDER, *MIDDLE, *OVER}
    assert {p for recipe in _RECIPES.values() for p in (*recipe.props, *recipe.fallback)} == set(PROPS)
    assert tuple(_RECIPES) == LABELS


def test_expressions_follow_the_action_units():
    mean = {}
    for emotion in LABELS:
        faces = [sample_expression(emotion, np.random.default_rng([1, i])) for i in range(60)]
        names = ("brow_inner", "brow_outer", "eye_open", "pupil", "mouth_curve", "mouth_open", "nose_wrinkle", "cheek")
        mean[emotion] = {name: np.mean([getattr(f, name) for f in faces]) for name in names}
        assert len({f.props for f in faces}) > 3 and len({f.eyes + f.teeth for f in faces}) > 1
    assert mean["surprise"]["brow_inner"] > 0.5 < mean["surprise"]["brow_outer"]  # AU 1 + 2
    assert mean["surprise"]["mouth_open"] > 0.2  # AU 26
    assert mean["happy"]["mouth_curve"] > 0.5 < mean["happy"]["cheek"]  # AU 6 + 12
    assert mean["disgust"]["nose_wrinkle"] > 0.5  # AU 9
    assert mean["fear"]["brow_inner"] > 0.5 > mean["fear"]["brow_outer"] and mean["fear"]["eye_open"] > 1.2
    assert mean["sad"]["brow_inner"] > 0.3 and mean["sad"]["mouth_curve"] < -0.5  # AU 1 + 15
    assert mean["anger"]["brow_inner"] < -0.5  # AU 4
    assert mean["fear"]["pupil"] == min(m["pupil"] for m in mean.values())


def test_strength_scales_an_expression_and_keeps_it_in_range():
    face = Expression("happy", mouth_curve=1.0, cheek=1.0, mouth_open=0.6)
    assert face.scaled(0.0).mouth_curve == Expression("happy").mouth_curve
    assert face.scaled(1.0) == face
    assert face.scaled(9.0).mouth_open == 0.72 and face.scaled(9.0).mouth_curve == 1.2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"domain": "photo"}, ("domain is 'photo'", "did you mean 'photos'", "one of photos, stickers")),
        ({"domain": "x"}, ("domain is 'x'", "one of photos, stickers")),
        ({"prior": "natrual"}, ("prior is 'natrual'", "did you mean 'natural'", "balanced, natural")),
        ({"n": 0}, ("n is 0", "a whole number, at least 1", "change n")),
        ({"n": 2.5}, ("n is 2.5", "a whole number")),
        ({"n": True}, ("n is True", "a whole number")),
        ({"seed": -1}, ("seed is -1", "at least 0")),
        ({"size": 31}, ("size is 31", "a whole number from 32 to 512", "change size")),
        ({"size": 513}, ("size is 513", "32 to 512")),
    ],
)
def test_mistakes_are_one_line(arguments, words):
    with pytest.raises(KcdpError) as caught:
        SyntheticFaces(**{"domain": "photos", "n": 6, **arguments})
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_draw_face_names_its_mistakes():
    rng = np.random.default_rng(0)
    with pytest.raises(KcdpError, match=r"emotion is 'joy'.*one of surprise, happy"):
        draw_face("photos", "joy", rng, 64)
    with pytest.raises(KcdpError, match=r"domain is 'cartoons'"):
        draw_face("cartoons", "happy", rng, 64)
    with pytest.raises(KcdpError, match=r"size is 1024"):
        draw_face("photos", "happy", rng, 1024)


def test_the_module_needs_no_torch():
    code = "import sys, kcdp.data.synthetic; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


def _pixels(domain: str, n: int, size: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Grey pictures [n, 24, 24] with local contrast only (a 7x7 mean removed), and their labels."""
    data = SyntheticFaces(domain, n, 0)
    grey = [to_rgb(data.image(i)).convert("L").resize((size, size), Image.Resampling.BOX) for i in range(n)]
    images = np.stack([np.asarray(image, np.float64) for image in grey])
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3)), mode="edge")
    local = sum(padded[:, i : i + size, j : j + size] for i in range(7) for j in range(7)) / 49
    contrast = images - local
    contrast /= np.sqrt((contrast**2).mean(axis=(1, 2), keepdims=True))
    return contrast[:, 4:20, 5:19].reshape(n, -1), data.labels


def _ridge(x: np.ndarray, y: np.ndarray, strength: float = 50.0):
    """A linear classifier by ridge regression on one-hot labels; returns the function that predicts."""
    mean = x.mean(axis=0)
    z = x - mean
    weights = z.T @ np.linalg.solve(z @ z.T + strength * np.eye(len(z)), np.eye(6)[y] - 1 / 6)
    return lambda q: ((q - mean) @ weights).argmax(axis=1)


def _accuracy(x, y, other_x, other_y) -> tuple[float, float]:
    """Three-fold: trained on two thirds of one domain, accuracy on the rest of it and on the same rows of the other."""
    fold, inside, across = np.arange(len(y)) * 3 // len(y), [], []
    for k in range(3):
        predict = _ridge(x[fold != k], y[fold != k])
        inside.append((predict(x[fold == k]) == y[fold == k]).mean())
        across.append((predict(other_x[fold == k]) == other_y[fold == k]).mean())
    return float(np.mean(inside)), float(np.mean(across))


def test_a_linear_classifier_learns_each_domain_and_loses_much_on_the_other():
    photos, stickers = _pixels("photos", 360), _pixels("stickers", 360)
    from_photos = _accuracy(*photos, *stickers)
    from_stickers = _accuracy(*stickers, *photos)
    print(f"photos {from_photos[0]:.3f} -> stickers {from_photos[1]:.3f}")
    print(f"stickers {from_stickers[0]:.3f} -> photos {from_stickers[1]:.3f}")
    for inside, across in (from_photos, from_stickers):
        assert inside > 0.36  # chance is 0.167
        assert across < inside - 0.08
    shuffled = np.random.default_rng(0).permutation(photos[1])
    assert _accuracy(photos[0], shuffled, *stickers)[0] < 0.26  # the twin that must fail: no label, no skill


def test_no_single_colour_gives_the_stickers_away():
    data = SyntheticFaces("stickers", 360, 0, 48)
    colours = np.stack([np.asarray(to_rgb(data.image(i)), np.float64).mean(axis=(0, 1)) / 255 for i in range(360)])
    features = np.concatenate([colours, colours**2, colours * colours[:, [1, 2, 0]]], axis=1)
    inside, _ = _accuracy(features, data.labels, features, data.labels)
    assert inside < 0.42


def test_the_domain_position_is_fixed():
    assert synthetic.DOMAINS == ("photos", "stickers")  # part of every picture's seed
