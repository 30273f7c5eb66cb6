"""Beam search over a decoder that is a plain function from token ids to the next token's logits.

open_clip's own ``CoCa.generate`` needs classes that transformers 5 no longer has; this needs neither.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

#: int64 [rows, T] -> float [rows, vocabulary]: the logits of token T + 1 of each row.
NextLogits = Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def beam_search(
    next_logits: NextLogits, batch: int, *, start: int, end: int, beams: int, shortest: int, longest: int,
    device: torch.device | str = "cpu",
) -> list[list[int]]:  # fmt: skip
    """The sequence of highest mean log-probability found for each of ``batch`` rows.

    Args:
        next_logits: called with ``batch * beams`` rows; the rows of one batch element stand together.
        start: token that every sequence begins with; not part of the result.
        end: token that ends one; counted in the mean, not part of the result.
        beams: sequences kept at each step.
        shortest, longest: bounds of a result's length. One that reaches ``longest`` is taken without its end.
    """
    ids = torch.full((batch, beams, 1), start, dtype=torch.long, device=device)
    scores = torch.full((batch, beams), -torch.inf, device=device)
    scores[:, 0] = 0.0  # all beams are the same at first: only one of them may branch
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(batch)]
    for length in range(longest):
        log_p = next_logits(ids.flatten(0, 1)).float().log_softmax(-1).unflatten(0, (batch, beams))
        ended = scores + log_p[..., end]
        if length >= shortest:
            _collect(finished, ids, ended, length + 1)
        log_p[..., end] = -torch.inf
        best, flat = (scores[..., None] + log_p).flatten(1).topk(beams, dim=1)
        parent, token = flat // log_p.shape[-1], flat % log_p.shape[-1]
        ids = torch.cat([ids.gather(1, parent[..., None].expand(-1, -1, ids.shape[2])), token[..., None]], dim=2)
        scores = best
        if all(done and max(done)[0] >= float(live) / longest for done, live in zip(finished, best[:, 0], strict=True)):
            break  # scores only fall, so no live sequence can reach a better mean any more
    else:
        _collect(finished, ids, scores, longest)
    return [max(done)[1] for done in finished]


def _collect(
    finished: list[list[tuple[float, list[int]]]], ids: torch.Tensor, scores: torch.Tensor, length: int
) -> None:
    """Adds each element's best sequence among these, with its mean log-probability."""
    best, beam = scores.max(dim=1)
    for element, done in enumerate(finished):
        if best[element] > -torch.inf:
            done.append((float(best[element]) / length, ids[element, beam[element], 1:].tolist()))
