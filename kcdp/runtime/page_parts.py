"""The unchanging parts of the page that ``kcdp tag --html`` writes: style, script, controls."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape

from kcdp.cards import COLOURS
from kcdp.runtime.rows import TAGGED_AS
from kcdp.runtime.sorting import FAILED

#: What can be chosen, in the order shown; each is the ``data-label`` of its cards.
CHOICES: tuple[str, ...] = ("all", *TAGGED_AS, FAILED)

_STYLE = (
    """
:root { color-scheme: light dark; --paper: #f3f4f6; --card: #fff; --ink: #1f2329; --faint: #59606b; --line: #d6d9de; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171a; --card: #22262b; --ink: #eceef1; --faint: #a8b0bb; --line: #3a4048; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: 1rem; background: var(--paper); color: var(--ink); font: 15px/1.4 system-ui, sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 .3rem; }
form { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: 1rem 0; align-items: center; }
form[hidden] { display: none; }
fieldset { border: 0; padding: 0; margin: 0; display: flex; flex-wrap: wrap; gap: .3rem .9rem; }
legend { float: left; margin-right: .9rem; padding: 0; }
label { white-space: nowrap; }
#cards { list-style: none; margin: 0; padding: 0; display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; min-width: 0;
  border-top: .3rem solid var(--emotion, var(--line)); content-visibility: auto; contain-intrinsic-size: auto 22rem; }
.card[hidden] { display: none; }
.picture { display: flex; justify-content: center; align-items: center; height: 10rem; background: #fff; color: #59606b;
  border-radius: .3rem; overflow: hidden; text-align: center; font-size: .8rem; padding: .2rem; }
.picture img { max-width: 100%; max-height: 100%; object-fit: contain; }
.name { margin: .4rem 0 0; font-size: .8rem; color: var(--faint); overflow-wrap: anywhere; }
.found { margin: .2rem 0; font-weight: 600; }
.reason { margin: .2rem 0; overflow-wrap: anywhere; }
.scores { list-style: none; margin: 0; padding: 0; font-size: .75rem; }
.scores li { display: grid; grid-template-columns: 4.2em 1fr 2.6em; gap: .4em; align-items: center; }
.bar { height: .5em; background: var(--line); border-radius: .25em; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--emotion); }
.scores span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
"""
    + "\n".join(f".{label} {{ --emotion: rgb({r}, {g}, {b}); }}" for label, (r, g, b) in COLOURS.items())
    + "\n"
)

_SCRIPT = """
"use strict";
const list = document.getElementById("cards"), cards = [...list.children], form = document.forms[0];
const counts = {all: cards.length};
for (const card of cards) counts[card.dataset.label] = (counts[card.dataset.label] || 0) + 1;
for (const radio of form.elements.show) {
  const count = counts[radio.value] || 0;
  radio.nextElementSibling.textContent = `${radio.value} (${count})`;
  radio.parentElement.hidden = !count && radio.value !== "all";
}
let last = "given";
function arrange() {
  const show = form.elements.show.value, order = form.elements.order.value;
  const sorted = order === "given" ? cards : [...cards].sort((one, other) => {
    const difference = Number(other.dataset.confidence) - Number(one.dataset.confidence);
    if ((one.dataset.label === "failed") !== (other.dataset.label === "failed"))
      return one.dataset.label === "failed" ? 1 : -1;
    return order === "surest" ? difference : -difference;
  });
  for (const card of cards) card.hidden = show !== "all" && card.dataset.label !== show;
  if (order !== last) list.append(...sorted);
  last = order;
  document.getElementById("shown").textContent = `${cards.filter(card => !card.hidden).length} shown`;
}
form.addEventListener("change", arrange);
document.getElementById("summary").append(...document.querySelectorAll("footer p"));
form.hidden = false;
arrange();
"""

_DIGEST = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_DIGEST}'; base-uri 'none'; "
    "form-action 'none'"
)
_RADIOS = "".join(
    f'<label><input type="radio" name="show" value="{name}"{" checked" if name == "all" else ""}> '
    f"<span>{name}</span></label>\n"
    for name in CHOICES
)

HEAD = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>Tagged pictures</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>Tagged pictures</h1>
<div id="summary"></div>
<form hidden autocomplete="off">
<fieldset><legend>Show</legend>
{_RADIOS}</fieldset>
<label>Order <select name="order">
<option value="given">as tagged</option>
<option value="surest">surest first</option>
<option value="least">least sure first</option>
</select></label>
<output id="shown" aria-live="polite"></output>
</form>
</header>
<main>
<ul id="cards">
"""



def tail(paragraphs: Iterable[str]) -> str:
    """All that follows the cards, with the paragraphs (plain text) of the footer."""
    footer = "".join(f"<p>{escape(text)}</p>\n" for text in paragraphs)
    return f"</ul>\n</main>\n<footer>\n{footer}</footer>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
