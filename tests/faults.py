"""Faults of the CUDA kernels, and a copy of the headers that has all of them at once.

A number that the program reads when it starts (tests/native/fault.h) tells which one is real.
"""

import re
from typing import NamedTuple


class Fault(NamedTuple):
    """An expression of a header, or a statement with its semicolon, and what replaces it."""

    name: str
    text: str
    instead: str
    within: str = ""  # the text with what surrounds it, where it would be ambiguous
    logits: str = "float"
    sanitizers: str = ""  # where nothing else can see an access out of bounds

    def span(self, source: str) -> tuple[int, int]:
        """Returns where the text begins and ends in the source of its header."""
        within = self.within or self.text
        assert within.count(self.text) == 1, f"{self.name}: the text is ambiguous"
        starts = [match.start() for match in re.finditer(re.escape(within), source)]
        assert len(starts) == 1, f"{self.name}: the kernels have changed, so must the fault"
        begin = starts[0] + within.index(self.text)
        return begin, begin + len(self.text)

    def around(self, number: int) -> tuple[str, str]:
        """Returns what to write before and after the text."""
        if self.text.endswith(";"):
            return f"{{ if (native::fault == {number}) {{ {self.instead} }} else {{ ", " } }"
        return f"(native::fault == {number} ? ({self.instead}) : (", "))"


def with_faults(source: str, faults: dict[int, Fault]) -> str:
    """Returns the source of a header with all of its faults, which are given by their numbers."""
    spans = [(*fault.span(source), number) for number, fault in faults.items()]
    spans.sort(key=lambda span: (span[0], -span[1]))  # a span before those that lie within it
    before: dict[int, str] = {}
    after: dict[int, str] = {}
    outer: list[int] = []  # where the spans end that have begun
    for begin, end, number in spans:
        outer = [other for other in outer if other > begin]
        assert end <= min(outer, default=end), f"{faults[number].name}: cuts another fault's text"
        outer.append(end)
        opening, closing = faults[number].around(number)
        before[begin] = before.get(begin, "") + opening
        after[end] = closing + after.get(end, "")
    for at in sorted({*before, *after}, reverse=True):
        source = source[:at] + after.get(at, "") + before.get(at, "") + source[at:]
    return '#include "fault.h"\n' + source
