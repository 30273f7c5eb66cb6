"""The words the grammar knows: closed classes in full, verbs with their forms, and the commonest adjectives.

Everything that is not listed is told by its ending and its neighbours (``tagging``); a noun is what nothing else is.
"""

from __future__ import annotations

from functools import cache


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ARTICLES = _words("a an the")
DETERMINERS = ARTICLES | _words(
    "this that these those some any each every no another both all several many few various numerous multiple such "
    "what which"
)
POSSESSIVES = _words("its his her their my your our whose")
NUMBERS = _words("one two three four five six seven eight nine ten dozen")
PRONOUNS = _words(
    "it he she they we you i this that these those someone somebody something everyone everything there itself "
    "himself herself themselves him her them us me one who which what"
)
PREPOSITIONS = _words(
    "with without on in at of from to into onto over under above below behind beside besides between among amongst "
    "near by for about around across along through throughout toward towards against inside outside within upon off "
    "up down after before during beneath underneath past like unlike as despite amid alongside via atop"
)
#: Written as several words, taken as one.
COMPOUNDS = (
    "in front of", "on top of", "next to", "close to", "out of", "because of", "instead of", "away from",
    "along with", "as well as", "inside of", "outside of", "such as", "due to", "in the middle of", "in between",
    "on the back of", "at the top of", "at the bottom of", "on the side of", "at the edge of", "as if", "as though",
    "so that", "even though", "thumbs up", "close up", "each other", "one another", "a lot of", "about to",
)  # fmt: skip
#: Words after which a verb is completed without a noun ("looking up"); prepositions too where a noun follows.
PARTICLES = _words("up down out off away back over around together forward apart along aside in on")
#: Particles that stay with their verb even before a noun ("holding up a sign").
TIGHT_PARTICLES = _words("up out off away back")
#: Prepositions that may stand without a noun ("a cat inside").
LOOSE_PREPOSITIONS = _words("like past near inside outside behind below above underneath after before besides within")
COORDINATORS = _words("and or but & yet nor")
SUBORDINATORS = _words("while as because when if although though since until whereas where") | {
    "as if", "as though", "so that", "even though"
}  # fmt: skip
AUXILIARIES = _words("can could will would shall should may might must do does did has have had having")
BE = _words("is are was were be been being am 's 're 'm")
ADVERBS = _words(
    "very too so not also just quite rather still even only already always never often almost then now here there "
    "together apart away back again once well perhaps maybe however therefore overall outdoors indoors upside ahead "
    "somewhat slightly possibly instead much more most less least inward outward upward downward upwards downwards "
    "sideways forward n't nearly half fully partly"
)
#: Words in -ly that are no adverbs.
_NOT_ADVERBS = _words(
    "family lovely friendly silly ugly curly jelly belly bully holly fly early lonely only bubbly cuddly woolly "
    "elderly lively butterfly wobbly smelly wiggly squiggly burly hilly deadly holy sparkly prickly sly ally reply "
    "rely apply comply assembly italy monopoly"
)

ADJECTIVES = _words(
    "happy sad angry surprised scared afraid disgusted excited calm sleepy tired bored upset worried nervous anxious "
    "cheerful content proud shy embarrassed confused lonely grumpy furious mad joyful playful peaceful hungry sick "
    "big small little large tiny huge long short tall wide narrow round square flat fat thin thick chubby fluffy red "
    "blue green yellow orange black white brown pink purple grey gray golden silver colorful colourful bright dark "
    "pale light old young new cute adorable funny silly friendly lovely beautiful pretty nice good bad great sweet "
    "open shut closed empty full wet dry warm cold hot cool soft hard clean dirty messy alone ready alive asleep "
    "awake visible serious intense strong deep heavy high low blank gloomy tense distressed shocked relaxed other "
    "same bare barefoot apart upright inner outer upper lower left right front wavy hairy furry fuzzy shiny spiky "
    "sunny rainy snowy stormy cloudy cozy lazy crazy puffy watery sweaty scary creepy spooky moody dreamy aglow rosy "
    "teary tearful angry-looking sad-looking curly straight different"
)
_ADJECTIVE_ENDINGS = ("ful", "ous", "ish", "less", "able", "ible", "ic", "al", "ive", "-like", "-eyed", "-shaped",
                      "-looking", "-haired", "-faced")  # fmt: skip
_NOT_ADJECTIVES = _words(
    "animal festival hospital pedal medal meal seal metal music picnic fabric comic table vegetable cable dish fish "
    "handful mouthful armful spoonful goal coal signal crystal petal mammal professional individual arrival medical "
    "fence mosaic public plastic logic topic traffic olive dive hive wish brush rush bush"
)
#: Nouns in -ing and -ed.
ING_NOUNS = _words(
    "building painting clothing wedding evening morning ceiling king ring wing thing something everything nothing "
    "anything string spring sibling pudding earring bedding drawing feeling meaning being lightning duckling "
    "stocking icing frosting swing sling awning railing parking clearing greeting setting surrounding longing "
    "suffering warning blessing darling dumpling rigging"
)
ED_NOUNS = _words("bed seed weed feed speed reed sled shed breed steed bleed need hundred red bobsled creed greed deed")
#: Plural nouns that look like a verb's s-form; a verb only where an object follows at once.
NOUNS_IN_S = _words(
    "eyes hands faces arms tears hearts drops stripes wings toys clothes rings colors colours frames sports flowers "
    "features dots lines marks signs plants bags wraps tops drums rocks stars spots balloons ears glasses pants "
    "shades shapes peaks bows leaves ends backs lips sides"
)
#: The noun before "of" that only says how the next one is shown or counted.
MEDIA_NOUNS = _words(
    "picture photo photograph image sticker drawing illustration cartoon painting emoji view portrait close-up close "
    "depiction sketch rendering icon screenshot shot print photos images pictures version representation"
)
#: Their object is what the caption is about.
PRESENTING = _words(
    "show depict feature display portray illustrate present picture capture contain include represent see have"
)
#: Followed by another verb, of the same subject, that says what happens.
CATENATIVES = _words(
    "try appear seem want start begin continue keep like love enjoy need attempt prepare happen tend decide hope go "
    "use stop get come"
)
#: What people and animals do, not their hats and smiles.
ANIMATE = _words("look sit stand walk ride stare gaze sleep smile laugh cry eat drink talk sing play")
#: Followed by an adjective or a noun that describes the subject.
LINKING = _words("look seem appear feel become get remain stay turn sound grow keep go")

#: Verbs captions use, in their base form.
_REGULAR = """
accept add adjust admire aim amuse announce appear applaud approach argue arrive ask attach attack attempt bake
balance bare bark bask beam beg blend bless blink bloom blow blush bounce bow breathe brush burst call camp captivate
capture care carry cast catch celebrate chase chat check cheer chew chirp chop clap clench climb cling close clutch
collapse color colour comfort communicate compare concern connect consist contain contemplate continue contrast convey
cook cover cradle crash crawl crease create cross crouch crumble crumple cuddle cup curl curve dance dangle decorate
deliver demonstrate depict describe design dip direct disguise display dive divide dodge drag drape dream dress
dribble drift drip drool droop drop elicit embrace emphasize enclose encourage end engage enhance enjoy envelop erupt
evoke examine exhibit experience explode express extend face fasten feature fill fix flap flash flex flicker float
flow fold follow form frame frighten frown furrow gallop gasp gather gaze gesture giggle glance glare gleam glide
glitter glow grab grasp graze greet grimace grin grip groom growl guard hand happen heal help hike hover howl hug
hurry illustrate imitate imply include indicate inspire intend interact invite join juggle jump kick kiss kneel knit
knock lack laugh launch lean learn lick lift light like line listen live load lock look loom lounge love lower mark
match melt mourn move munch nap narrow nestle nibble nod note observe occur offer open own pack paddle paint pant park
part pat pause peek peer perch perform pet pick picture pile pinch place play plead point poke pose possess pounce
pour pout pray present press pretend print produce protrude provide pull pump punch purr purse push race raise reach
react read receive recline reflect relate relax release remain remove represent resemble resist respond rest reveal
roam roar roll row rub rush sail salute savor savour say scare scatter scold scowl scratch scream scrunch seat seem
serve share shed shield shimmer shiver shout show shower shrug sigh signal signify sip situate skate skateboard sketch
ski sleep slice slip slouch slump smell smile smirk smoke snarl sneer sneeze sniff snore snuggle soar sob sparkle
splash spray sprinkle sprint sprout squat squeeze squint stack stain stare start startle stay step stick stir stop
strain stream stretch stroke stroll struggle study stuff style suck suffer suggest support surf surprise surround
suspend swallow sweat swing swirl symbolize tap taste tear tease think threaten tie tilt tip toss touch tower trail
transform travel tremble trip trot tuck tug turn twinkle twirl twist type unfold use vary view visit vomit wag wait
walk wander wash watch wave wear weep welcome whisper whistle widen wilt wink wipe wish wonder work worry wrap wrinkle
yawn yell
"""
#: base: past and past participle, where they are not in -ed.
_IRREGULAR = """
bear:bore,borne|beat:beat,beaten|become:became,become|begin:began,begun|bend:bent|bind:bound|bite:bit,bitten
bleed:bled|blow:blew,blown|break:broke,broken|bring:brought|build:built|burn:burnt|buy:bought|carry:carried
catch:caught|choose:chose,chosen|cling:clung|come:came,come|creep:crept|cry:cried|cut:cut|dig:dug|do:did,done
draw:drew,drawn|dream:dreamt|drink:drank,drunk|drive:drove,driven|eat:ate,eaten|fall:fell,fallen|feed:fed|feel:felt
fight:fought|find:found|flee:fled|fling:flung|fly:flew,flown|freeze:froze,frozen|get:got,gotten|give:gave,given
go:went,gone|grow:grew,grown|hang:hung|have:had|hear:heard|hide:hid,hidden|hit:hit|hold:held|hurt:hurt|keep:kept
kneel:knelt|know:knew,known|lay:laid|lead:led|leap:leapt|leave:left|let:let|lie:lay,lain|light:lit|lose:lost|make:made
mean:meant|meet:met|need:needed|put:put|read:read|ride:rode,ridden|ring:rang,rung|rise:rose,risen|run:ran,run|say:said
see:saw,seen|send:sent|set:set|shake:shook,shaken|shed:shed|shine:shone|shoot:shot|show:showed,shown
shrink:shrank,shrunk|shut:shut|sing:sang,sung|sink:sank,sunk|sit:sat|sleep:slept|slide:slid|speak:spoke,spoken
spend:spent|spin:spun|spread:spread|stand:stood|steal:stole,stolen|stick:stuck|strike:struck|sweep:swept
swim:swam,swum|swing:swung|take:took,taken|teach:taught|tear:tore,torn|tell:told|think:thought|throw:threw,thrown
try:tried|wake:woke,woken|want:wanted|wear:wore,worn|weep:wept|win:won|wind:wound|write:wrote,written
"""
_DOUBLING = _words(
    "beg clap drag drip drop flap flip grab grin grip hug jog knit nap nod pat pet peg pin pop rub run shed shrug "
    "sip sit skip slip slap snap sob spin spit stop squat step swim tap tip trip tug wag wrap get put cut set hit "
    "dig win begin let scrub shut chat hop plan rip strip dip scan slam stir cup hum bat pad"
)


def _forms(base: str) -> dict[str, str]:
    """form -> "base", "s", "ing" or "ed"."""
    consonant_y = base.endswith("y") and base[-2] not in "aeiou"
    if base.endswith(("s", "x", "z", "ch", "sh", "o")):
        third = base + "es"
    else:
        third = base[:-1] + "ies" if consonant_y else base + "s"
    if base.endswith("ie"):
        stem_ing = base[:-2] + "y"
    elif base.endswith("e") and not base.endswith(("ee", "oe", "ye")):
        stem_ing = base[:-1]
    else:
        stem_ing = base + base[-1] if base in _DOUBLING else base
    if base.endswith("e"):
        past = base + "d"
    else:
        past = base[:-1] + "ied" if consonant_y else (base + base[-1] if base in _DOUBLING else base) + "ed"
    return {base: "base", third: "s", stem_ing + "ing": "ing", past: "ed"}


@cache
def verb_forms() -> dict[str, tuple[str, frozenset[str]]]:
    """form -> (base, kinds); kinds are some of "base", "s", "ing", "ed"."""
    table: dict[str, tuple[str, set[str]]] = {}

    def add(form: str, base: str, kind: str) -> None:
        table.setdefault(form, (base, set()))[1].add(kind)

    irregular = {}
    for entry in _IRREGULAR.replace("\n", "|").strip("|").split("|"):
        base, _, pasts = entry.partition(":")
        irregular[base] = pasts.split(",")
    for base in [*irregular, *_REGULAR.split()]:
        for form, kind in _forms(base).items():
            if not (kind == "ed" and base in irregular):
                add(form, base, kind)
        for form in irregular.get(base, ()):
            add(form, base, "ed")
    return {form: (base, frozenset(kinds)) for form, (base, kinds) in table.items()}


def present_participle(base: str) -> str:
    """The -ing form."""
    return next(form for form, kind in _forms(base).items() if kind == "ing")


def lemma(word: str) -> str:
    """The base form of a verb: by the table, else by taking its ending off (a guess good enough to compare with)."""
    if word in BE:
        return "be"
    if word in ("has", "had", "having"):
        return "have"
    if word in ("does", "did", "done", "doing"):
        return "do"
    known = verb_forms().get(word)
    if known:
        return known[0]
    for ending in ("ing", "ied", "ed", "es", "s"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            stem = word[: -len(ending)] + ("y" if ending == "ied" else "")
            return stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsz" else stem.rstrip("e")
    return word.rstrip("e")


def is_adverb(word: str) -> bool:
    """Listed, or in -ly."""
    return word in ADVERBS or (word.endswith("ly") and len(word) > 4 and word not in _NOT_ADVERBS)


def is_adjective(word: str) -> bool:
    """Listed, or by its ending."""
    if word in ADJECTIVES:
        return True
    return word.endswith(_ADJECTIVE_ENDINGS) and len(word) > 4 and word not in _NOT_ADJECTIVES
