"""The counter: on a terminal only, on one line, not too often."""

from __future__ import annotations

import io

import pytest

from kcdp.runtime.progress import Counter


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(("total", "of"), [(480, " of 480"), (None, "")])
def test_on_a_terminal(total: int | None, of: str) -> None:
    moment, stream = [0.0], Stream(True)
    counter = Counter(total, stream=stream, clock=lambda: moment[0])
    for _ in range(100):
        moment[0] += 0.02
        counter.step()
    texts = stream.getvalue().split("\r\x1b[K")
    assert 15 <= len(texts) <= 21 and all(text.endswith(" 50.0 a second") for text in texts[1:])
    assert texts[1] == f"1{of}, 50.0 a second" and "\n" not in stream.getvalue()
    counter.clear()
    counter.clear()
    assert stream.getvalue().endswith("a second\r\x1b[K")


@pytest.mark.parametrize(("terminal", "shown"), [(False, True), (True, False)])
def test_silent_elsewhere(terminal: bool, shown: bool) -> None:
    stream = Stream(terminal)
    counter = Counter(3, stream=stream, shown=shown)
    counter.step()
    counter.clear()
    assert stream.getvalue() == "" and counter.count == 1
