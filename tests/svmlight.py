"""Data for the examples, in the format of the extreme classification repository."""

import random

ROWS, FEATURES, LABELS = 80, 40, 12


def lines() -> list[str]:
    """Each label has a feature that gives it away; the first row has no label."""
    chosen = random.Random(0)
    rows = [" 3:1.5 7:0.25"]
    while len(rows) < ROWS:
        labels = sorted(chosen.sample(range(LABELS), chosen.randint(1, 3)))
        features = sorted({*labels, *chosen.sample(range(LABELS, FEATURES), 4)})
        rows.append(",".join(map(str, labels)) + "".join(f" {i}:1" for i in features))
    return rows


def text(labels: int = LABELS) -> str:
    return "\n".join([f"{ROWS} {FEATURES} {labels}", *lines()]) + "\n"
