"""``drawn``: what a ``synthetic:`` picture shows, told from its drawing parameters.

Only what can be seen is said (brows, eyes, mouth, drawn signs, character, hair, scene), in varied words, and never the
emotion or a word for it. Like any captioner it overlooks much: a caption tells one or two features of the face and
about half of the signs. (All of them together would be the label in other words: see ``tests/unit/test_captioners.py``
for how much a bag of words finds out.) What is told, and how, hangs on the picture's key alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image

from kcdp.data.dataset import Sample
from kcdp.data.drawing.expressions import Expression
from kcdp.data.drawing.person import Person
from kcdp.data.registry import parse_spec
from kcdp.data.synthetic import Subject, SyntheticFaces
from kcdp.errors import KcdpError
from kcdp.knowledge.captioners.base import Captioner, Request

#: (seen where this holds, as things the face has, as something it does); {its} becomes "its" or "their".
Feature = tuple[Callable[[Expression], bool], tuple[str, ...], tuple[str, ...]]

#: One of each group is told, the first one that holds; numbers are those of ``Expression``.
GROUPS: tuple[tuple[Feature, ...], ...] = (
    (  # brows
        (lambda e: e.brow_inner > 0.45 and e.brow_outer > 0.45,
         ("raised eyebrows", "eyebrows lifted high", "high arched eyebrows"),
         ("raising {its} eyebrows", "lifting both eyebrows high")),
        (lambda e: e.brow_inner > 0.4,
         ("eyebrows slanting up in the middle", "the inner ends of the eyebrows raised"),
         ("pulling the inner ends of {its} eyebrows up", "drawing {its} eyebrows up in the middle")),
        (lambda e: e.brow_inner < -0.45 and e.brow_outer > 0.1,
         ("eyebrows pulled down towards the nose", "steep V-shaped eyebrows", "lowered, slanted eyebrows"),
         ("lowering {its} eyebrows", "drawing {its} eyebrows together")),
        (lambda e: abs(e.brow_skew) > 0.4,
         ("one eyebrow higher than the other", "uneven eyebrows"), ("raising one eyebrow", "lowering one eyebrow")),
    ),
    (  # eyes
        (lambda e: e.eyes == "arc", ("closed eyes curved upwards", "eyes shut in two arcs"),
         ("closing {its} eyes in two arcs",)),
        (lambda e: e.eyes == "shut", ("closed, drooping eyes", "lowered eyelids"), ("closing {its} eyes",)),
        (lambda e: e.eyes == "squeeze", ("tightly squeezed eyes", "eyes pressed shut"), ("squeezing {its} eyes shut",)),
        (lambda e: e.eye_open > 1.15 and e.pupil < 0.42,
         ("wide eyes with tiny pupils", "staring eyes with small pupils"),
         ("staring with tiny pupils", "opening {its} eyes wide")),
        (lambda e: e.eye_open > 1.25, ("wide open eyes", "big round eyes"),
         ("opening {its} eyes wide", "staring with round eyes")),
        (lambda e: e.lid_tilt < -0.3, ("drooping eyelids", "eyes that droop at the outer corners"),
         ("lowering {its} eyelids",)),
        (lambda e: e.lid_tilt > 0.4, ("narrow slanted eyes", "eyes half covered by slanted lids"),
         ("narrowing {its} eyes", "looking out from under {its} brows")),
        (lambda e: e.lid > 0.33, ("half-closed eyes", "heavy eyelids"), ("narrowing {its} eyes",)),
        (lambda e: e.lower_lid > 0.25, ("eyes narrowed from below", "eyes creased by raised cheeks"),
         ("creasing {its} eyes",)),
    ),
    (  # gaze
        (lambda e: e.eyes == "open" and abs(e.gaze_x) > 0.55, ("eyes turned to the side",), ("looking to the side",)),
        (lambda e: e.eyes == "open" and e.gaze_y > 0.4, ("eyes turned down",), ("looking down",)),
        (lambda e: e.eyes == "open" and e.gaze_y < -0.4, ("eyes turned up",), ("looking up",)),
    ),
    (  # nose
        (lambda e: e.nose_wrinkle > 0.45, ("a wrinkled nose",), ("wrinkling {its} nose",)),
    ),
    (  # mouth
        (lambda e: e.tongue > 0.3, ("{its} tongue hanging out", "{its} tongue out of the mouth"),
         ("sticking out {its} tongue",)),
        (lambda e: e.teeth == "fangs", ("a wide open mouth full of pointed teeth", "an open mouth with bared teeth"),
         ("baring {its} teeth", "opening {its} mouth wide and showing {its} teeth")),
        (lambda e: e.teeth == "clenched", ("clenched teeth", "two rows of teeth pressed together"),
         ("clenching {its} teeth", "showing both rows of teeth")),
        (lambda e: e.mouth_open > 0.1 and abs(e.mouth_skew) > 0.6,
         ("an upper lip raised on one side",), ("raising one side of {its} upper lip",)),
        (lambda e: e.mouth_open > 0.1 and e.mouth_curve > 0.4,
         ("a wide open mouth with its corners turned up", "a big open mouth curved upwards"),
         ("opening {its} mouth in an upward curve",)),
        (lambda e: e.mouth_open > 0.1 and e.mouth_curve < -0.4,
         ("an open mouth with its corners pulled down", "an open mouth curved downwards"),
         ("opening {its} mouth with the corners down",)),
        (lambda e: e.mouth_open > 0.15 and e.mouth_width < 0.3 and e.mouth_square < 0.3,
         ("a round open mouth", "an open mouth, round as a ring"), ("opening {its} mouth in a circle",)),
        (lambda e: e.mouth_open > 0.32, ("a large open mouth", "{its} mouth wide open"),
         ("opening {its} mouth wide", "dropping {its} jaw")),
        (lambda e: e.mouth_open > 0.15, ("an open mouth", "{its} lips parted"), ("parting {its} lips",)),
        (lambda e: e.mouth_curve > 0.35, ("a mouth curved upwards", "the corners of {its} mouth turned up"),
         ("turning up the corners of {its} mouth",)),
        (lambda e: e.mouth_wave > 0.5, ("a wavy, trembling mouth", "trembling lips"), ("trembling at the mouth",)),
        (lambda e: abs(e.mouth_skew) > 0.6, ("a crooked mouth", "one side of the mouth pulled up"),
         ("twisting {its} mouth",)),
        (lambda e: e.mouth_curve < -0.2, ("a mouth curved downwards", "the corners of {its} mouth pulled down"),
         ("pulling down the corners of {its} mouth",)),
    ),
)  # fmt: skip

#: Drawn signs of stickers -> how they are told.
SIGNS: dict[str, tuple[str, ...]] = {
    "tear": ("a tear on {its} cheek", "a tear under one eye"),
    "stream": ("tears streaming down {its} cheeks", "two streams of tears"),
    "sweat": ("a drop of sweat on {its} forehead",),
    "vein": ("a red mark of a bulging vein on {its} temple",),
    "steam": ("puffs of steam by {its} head", "steam coming out of {its} head"),
    "sparkles": ("yellow sparkles around {its} head", "little stars beside {its} head"),
    "exclaim": ("an exclamation mark beside {its} head",),
    "shock": ("short lines radiating from {its} head",),
    "blush": ("pink cheeks", "a blush on both cheeks"),
    "hearts": ("a pink heart floating beside {its} head",),
    "flies": ("flies buzzing around {its} head",),
    "stink": ("wavy green lines rising beside {its} head",),
    "shiver": ("wavy lines along both sides of {its} body",),
    "gloom": ("dark blue lines down {its} forehead",),
    "cloud": ("a small rain cloud above {its} head",),
    "joytears": ("drops of tears at the corners of {its} eyes",),
    "vomit": ("green slime pouring out of {its} mouth",),
    "hands": ("both hands on {its} cheeks",),
}
#: The signs that photographs show too.
PHOTO_SIGNS = ("tear", "stream", "sweat")

CHARACTERS: dict[str, tuple[str, ...]] = {
    "emoji": ("a round face", "a round emoji face"),
    "cat": ("a cat", "a cartoon cat"),
    "bear": ("a bear", "a teddy bear"),
    "blob": ("a blob", "a drop-shaped blob"),
    "robot": ("a robot", "a robot with an antenna"),
    "screen": ("a robot with a screen for a face", "a screen-faced robot"),
    "ghost": ("a ghost", "a little ghost"),
    "bean": ("a bean with thin arms and legs", "a bean-shaped figure"),
}

#: emotion -> what its tint looks like on a sticker, as ``drawing.sticker`` mixes it in.
_TINTS = {"anger": "red skin", "disgust": "green skin", "fear": "a pale face", "sad": "blue skin"}

CUES: dict[str, tuple[str, ...]] = {
    "confetti": ("with confetti in the air", "under falling confetti"),
    "balloons": ("in front of colourful balloons",),
    "flash": ("in front of bright lights",),
    "sun": ("in bright sunlight",),
    "haze": ("in a greenish haze",),
    "flies": ("among flying insects", "with flies in the air"),
    "night": ("in the dark", "at night"),
    "corridor": ("in a dark corridor",),
    "rain": ("in the rain",),
    "fog": ("in thick fog",),
    "embers": ("in front of glowing flames",),
    "storm": ("in heavy rain", "in a rain storm"),
}

_HAIR = {"black": (28, 22, 20), "dark brown": (60, 40, 28), "brown": (110, 72, 44), "blond": (190, 148, 92),
         "red": (140, 62, 34), "grey": (150, 146, 142)}  # fmt: skip
_HAIRSTYLES = {"short": "short {} hair", "parted": "parted {} hair", "fringe": "{} hair and a fringe",
               "long": "long {} hair", "bun": "{} hair in a bun", "curly": "curly {} hair"}  # fmt: skip


class Drawn(Captioner):
    """Tells what ``SyntheticFaces.subject`` holds; the pixels are not looked at."""

    name = "drawn"
    batch_size = 64

    def __init__(self, dataset_name: str) -> None:
        """``dataset_name``: the dataset string; subsets and hidden labels make no difference."""
        spec = parse_spec(dataset_name)
        self._faces = SyntheticFaces(spec.path, name=dataset_name, **spec.own_options)
        self._index = {sample.key: index for index, sample in enumerate(self._faces.samples)}

    def caption(self, images: Sequence[Image.Image], samples: Sequence[Sample]) -> list[str]:
        return [self._tell(sample.key) for sample in samples]

    def _tell(self, key: str) -> str:
        if key not in self._index:
            raise KcdpError(f"{self._faces.name!r} has no picture {key!r}", "a sample of that dataset")
        return describe(self._faces.subject(self._index[key]), key)


def describe(subject: Subject, seed: str) -> str:
    """One sentence without a full stop, in lower case; ``seed`` chooses among the wordings."""

    def pick(options: Sequence[str], purpose: object) -> str:
        digest = hashlib.sha256(f"{seed}\0{purpose}".encode("utf-8", "surrogateescape")).digest()
        return options[int.from_bytes(digest[:4], "big") % len(options)]

    e, person = subject.expression, subject.person
    if person is not None:  # photographs draw fangs as teeth, and trembling too finely to be seen
        e = replace(e, mouth_wave=0.0, teeth="upper" if e.teeth == "fangs" else e.teeth)
    who = _who(person) if person else pick(CHARACTERS[subject.character], "who")
    drawn = [prop for prop in e.props if prop in (PHOTO_SIGNS if person else SIGNS)]
    signs = [pick(SIGNS[prop], prop) for prop in drawn if pick("01", ("seen", prop)) == "1"]
    if person is None and e.tint > 0.4 and e.emotion in _TINTS and pick("01", "tint") == "1":
        signs.append(_TINTS[e.emotion])
    seen = [next((feature for feature in group if feature[0](e)), None) for group in GROUPS]
    features = [(number, feature) for number, feature in enumerate(seen) if feature is not None]
    features = sorted(features, key=lambda item: pick("abcdefgh", item[0]))[: int(pick("112", "features"))]
    acting = min(int(pick("01", "acts")), len(features))
    acts = [pick(feature[2], ("act", number)) for number, feature in features[:acting]]
    things = [pick(feature[1], ("thing", number)) for number, feature in features[acting:]] + signs
    parts = [who]
    if acts:
        parts.append("is " + " and ".join(acts) if pick("01", "verb") == "0" else " and ".join(acts))
    if things:
        parts.append(("with " if acts or pick("01", "has") == "0" else "has ") + _listed(things))
    if subject.cue:
        parts.append(pick(CUES[subject.cue], "cue"))
    return " ".join(parts).format(its="their" if person else "its")


def _listed(things: Sequence[str]) -> str:
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"


def _who(person: Person) -> str:
    """A person by hair, glasses and beard."""
    marks = []
    if person.style != "bald":
        colour = min(_HAIR, key=lambda name: sum((a - b) ** 2 for a, b in zip(_HAIR[name], person.hair, strict=True)))
        marks.append(_HAIRSTYLES[person.style].format(colour))
    marks += ["glasses"] if person.glasses else []
    marks += ["a beard"] if person.beard else []
    who = "a bald person" if person.style == "bald" else "a person"
    return f"{who} with {_listed(marks)}" if marks else who


def create(request: Request) -> Drawn:
    """See ``registry``."""
    return Drawn(request.dataset.name)
