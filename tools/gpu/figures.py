"""The part that measures: runs of `python -m bench`, the most telling one first."""

import json
from pathlib import Path

from .part import Failed, Part, Row, Setup
from .processes import Command

NEEDED = ("matplotlib", "psutil", "rich")
EACH = "--dtypes float32,bfloat16,float16 --passes step,forward"
OTHERS = "masked,bce,bce-float,bce-plain,scatter"
AGAINST = f"--against scaled,scaled-changing,inplace,{OTHERS}"
# A run has a name, what it may take of the part's time, and what the benchmark is given. It may be
# cut short, unless it is the main one.
RUNS = (
    ("main", 0.5, f"--shapes 2^28 {EACH} --targets bool,sparse {AGAINST} --seconds 0.8"),
    (
        "layers",
        0.3,
        "--shapes 1024x768x131072,1024x768x670091 --dtypes bfloat16 --passes step "
        "--against fused-step,unfused,bce --seconds 1",
    ),
    ("small", 0.5, f"--shapes 2^24,2^20 {EACH} --targets bool,sparse {AGAINST} --seconds 0.3"),
    (
        "largest",
        0.3,
        "--shapes largest --dtypes float32,bfloat16,float16 --targets bool,sparse --passes step "
        "--against scaled,scaled-changing,inplace,masked,bce,bce-plain --seconds 0.8",
    ),
    # Compiling may take long: it has two sizes, and a process of its own.
    (
        "compile",
        0.35,
        "--shapes 2^28,2^20 --dtypes float32,bfloat16,float16 --targets bool --passes step "
        "--against compile --seconds 0.5",
    ),
)


def steps(setup: Setup) -> str:
    missing = [name for name in NEEDED if not setup.machine.has(name)]
    if missing:
        raise Failed(f"the benchmark needs {' and '.join(missing)}")
    for name, share, given in RUNS:
        where = ("--out", setup.folder / name)
        arguments = setup.module("bench", "--quick", *given.split(), *where)
        setup.run(Command(name, arguments, share, may_be_late=name != "main"))
    return ""


def results(folder: Path) -> list[Row]:
    """A row for each baseline of each group, as far as the benchmark has come."""
    rows = []
    for name, *_ in RUNS:
        path = folder / name / "results.json"
        if path.exists():
            rows += [{"run": name, **row} for row in json.loads(path.read_text())["rows"]]
    return rows


PART = Part("figures", 150, steps, results)
