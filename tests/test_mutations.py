"""The CUDA kernels with a fault in them, each of which the program that runs them must notice."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_native import NATIVE, ROOT, compiled, run, skip_without_compiler

CSRC = ROOT / "csrc"


class Fault(NamedTuple):
    name: str
    header: str
    text: str
    instead: str
    occurs: int = 1
    logits: str = "float"
    sanitizers: str | None = None  # where nothing else can see a read out of bounds


FAULTS = [
    Fault(
        "sum of a block without its barrier",
        "kernel.h",
        "parts[thread() / 32] = v;\n  barrier();\n",
        "parts[thread() / 32] = v;\n",
    ),
    Fault(
        "barrier that few threads reach",
        "kernel.h",
        "parts[thread() / 32] = v;\n  barrier();\n",
        "parts[thread() / 32] = v, barrier();\n",
    ),
    Fault(
        "start without its barrier", "kernel.h", "  barrier();\n  return true;", "  return true;"
    ),
    Fault("finish without its barrier", "kernel.h", "  barrier();  // before", "  // before"),
    Fault("shuffle that leaves lanes out", "kernel.h", "int offset = 16;", "int offset = 8;"),
    Fault(
        "shuffle that few lanes reach",
        "kernel.h",
        "v += from_higher_lane(v, offset);",
        "if (thread() % 32 < offset) v += from_higher_lane(v, offset);",
    ),
    Fault("last element left out", "kernel.h", "rest < problem.numel", "rest + 1 < problem.numel"),
    Fault("an element too many", "kernel.h", "i < problem.numel;", "i <= problem.numel;", 2),
    Fault(
        "blocks that overlap",
        "kernel.h",
        "step * kLanes, left)",
        "int64_t{kThreads} * kLanes, left)",
    ),
    Fault(
        "a group loaded beyond the end",
        "kernel.h",
        "stream.load(left - idles > kAhead)",
        "stream.load(left > 0)",
        sanitizers="address",
    ),
    Fault(
        "group taken before it has come",
        "stream.h",
        "batches<kAhead>",
        "batches<kAhead + 1>",
    ),
    Fault(
        "end of a batch left out",
        "stream.h",
        "    end_batch();",
        "    if (is_there) end_batch();",
    ),
    Fault("groups of a thread in too few slots", "stream.h", "kAhead + 1;", "kAhead;"),
    Fault("last group left out", "kernel.h", "(groups - first + step - 1)", "(groups - first)"),
    Fault(
        "product of too many factors",
        "kernel.h",
        "if (factors == Product<T>::kFactors)",
        "if (factors < 0)",
    ),
    Fault("parts left out", "kernel.h", "k += kThreads)", "k += kThreads + 1)"),
    Fault("factors that differ unseen", "kernel.h", "differ > 0 ? nan : found", "found"),
    Fault(
        "guess compared with another number",
        "kernel.h",
        "read_scalar<T>(problem.guessed) ==",
        "factor_of<T>(problem) ==",
    ),
    Fault("0 learned", "kernel.h", "if (factor != 0) *", "*"),
    Fault(
        "guess not brought up to date",
        "kernel.h",
        "(problem.guessed) = factor",
        "(problem.learned) = factor",
    ),
    Fault(
        "index of 32 bits",
        "kernel.h",
        "for (int64_t i = int64_t{kThreads} * block()",
        "for (int64_t i = kThreads * block()",
        2,
    ),
    Fault("stride of another tensor", "worker.h", "problem_.y.strides[d]", "problem_.x.strides[d]"),
    Fault("product not reset", "vector_worker.h", "negatives_.value = positives_", "positives_"),
    Fault(
        "pos_weight of another label",
        "vector_worker.h",
        "(problem_, problem_.p, i + lane)",
        "(problem_, problem_.p, i)",
        logits="cuda::Half",
    ),
    Fault(
        "group across two rows",
        "vector_worker.h",
        "+ kLanes <= problem_",
        "+ kLanes <= 1 + problem_",
    ),
    Fault(
        "ignored target taken as hard", "worker.h", "marks_hard = problem.ignores", "marks_hard = 0"
    ),
    Fault("nothing divided by nothing", "worker.h", "divisor == 0 &&", "divisor == -1 &&"),
    Fault(
        "lane not written",
        "lanes.h",
        "for (int j = 0; j < kLanes; j += 2)",
        "for (int j = 0; j < kLanes - 2; j += 2)",
        logits="cuda::BFloat16",
    ),
    Fault("vector that is not aligned", "lanes.h", "(at) % 16 == 0", "(at) % 4 == 0"),
    Fault("shift of a division", "pack.h", ", l - 1}", ", l}"),
    Fault("output that is not aligned", "pack.h", "aligned(problem.out, 16)", "true"),
    # Sparse labels.
    Fault(
        "marks of a tile before all have taken those of the last",
        "positives.h",
        "    barrier();  // all have taken",
        "    // all have taken",
    ),
    Fault(
        "targets taken before all are marked",
        "positives.h",
        "    }\n    barrier();\n",
        "    }\n",
    ),
    Fault("targets taken before the memory is prepared", "kernel.h", "  prepare();\n", ""),
    Fault("marks that stay", "positives.h", "*mine_ = {};", ""),
    Fault(
        "marks of another thread",
        "positives.h",
        "mine_ = shared_.groups + thread()",
        "mine_ = shared_.groups",
    ),
    Fault("groups of one round for all", "positives.h", "mine_ += kThreads;", ""),
    Fault("places left out", "positives.h", "place += kThreads)", "place += kThreads + 1)"),
    Fault(
        "only one place of a thread", "positives.h", "while (element < end)", "if (element < end)"
    ),
    Fault(
        "next tile from a later place on",
        "positives.h",
        "if (place == next.place ||",
        "if (place < next.place + kThreads ||",
    ),
    Fault(
        "next tile from the last place on",
        "positives.h",
        "shared_.next = {place, element}",
        "shared_.next = {place + 1, element}",
    ),
    Fault(
        "a round too many without marks", "positives.h", "begin) / kRound;", "begin) / kRound + 1;"
    ),
    Fault(
        "a tile that ends too late", "positives.h", "left < kRounds ? left : kRounds", "kRounds + 1"
    ),
    Fault(
        "a tile beyond the last row",
        "positives.h",
        "if (end > problem_.numel) end = problem_.numel;",
        "",
        sanitizers="address",
    ),
    Fault(
        "row of a place off by one",
        "positives.h",
        "<= place ? row : above",
        "< place ? row : above",
    ),
    Fault("row after the tile not known", "positives.h", "tile.last_row + 2", "tile.last_row + 1"),
    Fault(
        "row beyond the last one",
        "positives.h",
        "tile.last_row + 2",
        "tile.last_row + 3",
        sanitizers="address",
    ),
    Fault(
        "labels below the window", "positives.h", "if (label < listed.first_label)", "if (false)"
    ),
    Fault("labels above the window", "positives.h", "if (column >= listed.labels)", "if (false)"),
    Fault(
        "a label above the window in the next row",
        "positives.h",
        "{start + listed.labels - 1, false}",
        "{start + listed.labels, false}",
    ),
    Fault("a label that does not count", "positives.h", "if (spot.counts && ", "if ("),
    Fault("window left out", "positives.h", "label = listed.first_label + (", "label = ("),
    Fault(
        "marks before the tile",
        "positives.h",
        "spot.element >= tile.begin && ",
        "",
        sanitizers="undefined",
    ),
    Fault(
        "marks after the tile",
        "positives.h",
        " && spot.element < tile.end",
        "",
        sanitizers="undefined",
    ),
    Fault(
        "a place beyond the end",
        "positives.h",
        "if (place >= listed.count)",
        "if (false)",
        sanitizers="address",
    ),
    Fault(
        "a row that starts below 0",
        "positives.h",
        "place < 0 ? 0 : place <",
        "place <",
        sanitizers="address",
    ),
    Fault(
        "a row that starts beyond the end",
        "positives.h",
        "place < listed.count ? place : listed.count",
        "place",
        sanitizers="address",
    ),
    Fault("search that is off by one", "positives.h", "middle) < label", "middle) <= label"),
    Fault(
        "search for a label in the next row",
        "positives.h",
        "rest.from < rest.to && ",
        "",
        sanitizers="address",
    ),
    Fault("search for a label that is not there", "positives.h", "== rest.label", ">= rest.label"),
    Fault(
        "row of 32 bits",
        "positives.h",
        "start = row * listed.labels,",
        "start = static_cast<int>(row * listed.labels),",
    ),
    Fault("rounds left out", "sparse_kernel.h", "each + (block() < more)", "each"),
    Fault("parts that overlap", "sparse_kernel.h", "each * block() + before", "each * block()"),
    Fault(
        "a block without a part",
        "sparse_kernel.h",
        "if (part.count > 0) ",
        "",
        2,
        sanitizers="address",
    ),
    Fault(
        "a group that a thread does not have",
        "kernel.h",
        "if (left > idles)",
        "if (left > 0)",
        sanitizers="address",
    ),
    Fault("last round left out", "kernel.h", "if (left > idles)", "if (left > 1)"),
    Fault("last positive left out", "sparse_kernel.h", "is_positive(problem, rest))", "false)"),
    Fault("counts of 1 for 0", "sparse_kernel.h", "? T(1) : T(0)", "? T(0) : T(1)"),
    Fault(
        "a part of a group without positives",
        "vector_worker.h",
        "all |= word",
        "all = word",
        logits="cuda::Half",
    ),
    Fault("target of another label", "vector_worker.h", "positives >> j & 1", "positives & 1"),
]


def passes(csrc: Path, folder: Path, logits: str, sanitizers: str | None = None) -> bool:
    program = folder / "program"
    flags = ("-O0", "-g0", f"-DNATIVE_LOGITS={logits}", f"-I{csrc}")
    build = compiled(sanitizers, [NATIVE / "cuda_kernels.cpp"], program, flags)
    assert build.returncode == 0, build.stderr[:8000]
    return run(program, "short").returncode == 0


@pytest.mark.parametrize("logits", sorted({fault.logits for fault in FAULTS}))
def test_the_program_passes_without_a_fault(logits: str, tmp_path: Path) -> None:
    skip_without_compiler()
    assert passes(CSRC, tmp_path, logits)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_noticed(fault: Fault, tmp_path: Path) -> None:
    skip_without_compiler()
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc, ignore=lambda _, names: [n for n in names if n.endswith(".cpp")])
    header = csrc / "cuda" / fault.header
    text = header.read_text(encoding="utf-8")
    assert text.count(fault.text) == fault.occurs, "the kernels have changed: so must the fault"
    header.write_text(text.replace(fault.text, fault.instead), encoding="utf-8")
    assert not passes(csrc, tmp_path, fault.logits, fault.sanitizers)
