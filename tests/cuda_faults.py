"""The faults, by header. Where two change the same text, or one contains another, both stay."""

from .faults import Fault
from .programs import MEMORY

FAULTS = {
    "kernel.h": [
        Fault(
            "sum of a block without its barrier",
            "barrier();",
            "",
            within="parts[thread() / 32] = v;\n  barrier();\n",
        ),
        Fault(
            "barrier that few threads reach",
            "barrier();",
            "if (thread() % 32 == 0) barrier();",
            within="parts[thread() / 32] = v;\n  barrier();\n",
        ),
        Fault("start without its barrier", "barrier();", "", within="  barrier();\n  return true;"),
        Fault("finish without its barrier", "barrier();", "", within="  barrier();  // before"),
        Fault("shuffle that leaves lanes out", "16", "8", within="int offset = 16;"),
        Fault(
            "shuffle that few lanes reach",
            "v += from_higher_lane(v, offset);",
            "if (thread() % 32 < offset) v += from_higher_lane(v, offset);",
        ),
        Fault("last element left out", "rest < problem.numel", "rest + 1 < problem.numel"),
        Fault(
            "an element too many",
            "i < problem.numel",
            "i <= problem.numel",
            within="i < problem.numel;",
            occurs=2,
        ),
        Fault(
            "blocks that overlap",
            "step * kLanes",
            "int64_t{kThreads} * kLanes",
            within="step * kLanes, left)",
        ),
        Fault(
            "a group loaded beyond the end",
            "left - idles > kAhead",
            "left > 0",
            sanitizers=MEMORY,
        ),
        Fault("last group left out", "(groups - first + step - 1)", "(groups - first)"),
        Fault("product of too many factors", "factors == Product<T>::kFactors", "factors < 0"),
        Fault("parts left out", "k += kThreads", "k += kThreads + 1"),
        Fault("factors that differ unseen", "differ > 0 ? nan : found", "found"),
        Fault(
            "guess compared with another number",
            "read_scalar<T>(problem.guessed)",
            "factor_of<T>(problem)",
        ),
        Fault("0 learned", "factor != 0", "true"),
        Fault(
            "guess not brought up to date",
            "problem.guessed",
            "problem.learned",
            within="(problem.guessed) = factor",
        ),
        Fault(
            "index of 32 bits",
            "int64_t{kThreads} * block()",
            "kThreads * block()",
            within="for (int64_t i = int64_t{kThreads} * block()",
            occurs=2,
        ),
        Fault("targets taken before the memory is prepared", "prepare();", ""),
        Fault("a group that a thread does not have", "left > idles", "left > 0", sanitizers=MEMORY),
        Fault("last round left out", "left > idles", "left > 1"),
    ],
    "stream.h": [
        Fault(
            "group taken before it has come",
            "wait_for_batches<kAhead>();",
            "wait_for_batches<kAhead + 1>();",
        ),
        Fault("end of a batch left out", "end_batch();", "if (is_there) end_batch();"),
        Fault(
            "groups of a thread in too few slots", "(slot_ + 1) % kSlots", "(slot_ + 1) % kAhead"
        ),
    ],
    "worker.h": [
        Fault("stride of another tensor", "problem_.y.strides[d]", "problem_.x.strides[d]"),
        Fault(
            "ignored target taken as hard",
            "problem.ignores",
            "false",
            within="marks_hard = problem.ignores",
        ),
        Fault("nothing divided by nothing", "divisor == 0", "divisor == -1"),
    ],
    "vector_worker.h": [
        Fault(
            "product not reset", "negatives_.value = positives_.value = 0;", "positives_.value = 0;"
        ),
        Fault(
            "pos_weight of another label",
            "i + lane",
            "i",
            within="(problem_, problem_.p, i + lane)",
            logits="cuda::Half",
        ),
        Fault(
            "group across two rows",
            "problem_.sizes[d]",
            "1 + problem_.sizes[d]",
            within="+ kLanes <= problem_.sizes[d]",
        ),
        Fault(
            "a part of a group without positives", "all |= word", "all = word", logits="cuda::Half"
        ),
        Fault("target of another label", "positives >> j & 1", "positives & 1"),
    ],
    "lanes.h": [
        Fault(
            "lane not written",
            "kLanes",
            "kLanes - 2",
            within="j < kLanes; j += 2)",
            logits="cuda::Half",
        ),
        Fault(
            "vector that is not aligned",
            "reinterpret_cast<uintptr_t>(at) % 16 == 0",
            "reinterpret_cast<uintptr_t>(at) % 4 == 0",
        ),
    ],
    "pack.h": [
        Fault("shift of a division", "l - 1", "l", within=", l - 1}"),
        Fault("output that is not aligned", "aligned(problem.out, 16)", "true"),
    ],
    "positives.h": [
        Fault(
            "marks of a tile before all have taken those of the last",
            "barrier();",
            "",
            within="barrier();  // all have taken",
        ),
        Fault(
            "targets taken before all are marked",
            "barrier();",
            "",
            within="    }\n    barrier();\n",
        ),
        Fault("marks that stay", "*mine_ = {};", ""),
        Fault(
            "marks of another thread",
            "shared_.groups + thread()",
            "shared_.groups",
            within="mine_ = shared_.groups + thread()",
        ),
        Fault("groups of one round for all", "mine_ += kThreads;", ""),
        Fault("places left out", "place += kThreads", "place += kThreads + 1"),
        Fault(
            "only one place of a thread",
            "while (element < end) element = mark(tile, place += kThreads);",
            "if (element < end) element = mark(tile, place += kThreads);",
        ),
        Fault(
            "next tile from a later place on",
            "place == next.place",
            "place < next.place + kThreads",
        ),
        Fault(
            "next tile from the last place on",
            "place",
            "place + 1",
            within="shared_.next = {place, element}",
        ),
        Fault(
            "a round too many without marks",
            "(next.element - begin) / kRound",
            "(next.element - begin) / kRound + 1",
        ),
        Fault("a tile that ends too late", "left < kRounds ? left : kRounds", "kRounds + 1"),
        Fault(
            "a tile beyond the last row",
            "if (end > problem_.numel) end = problem_.numel;",
            "",
            sanitizers=MEMORY,
        ),
        Fault("a label that does not count", "spot.counts", "true"),
        Fault("marks before the tile", "spot.element >= tile.begin", "true", sanitizers=MEMORY),
        Fault("marks after the tile", "spot.element < tile.end", "true", sanitizers=MEMORY),
        Fault(
            "row of a place off by one",
            "start_of_row(listed, middle) <= place",
            "start_of_row(listed, middle) < place",
        ),
        Fault("row after the tile not known", "tile.last_row + 2", "tile.last_row + 1"),
        Fault(
            "row beyond the last one", "tile.last_row + 2", "tile.last_row + 3", sanitizers=MEMORY
        ),
        Fault("labels below the window", "label < listed.first_label", "false"),
        Fault("labels above the window", "column >= listed.labels", "false"),
        Fault(
            "a label above the window in the next row",
            "start + listed.labels - 1",
            "start + listed.labels",
        ),
        Fault(
            "window left out",
            "listed.first_label + (i - row * listed.labels)",
            "i - row * listed.labels",
        ),
        Fault("a place beyond the end", "place >= listed.count", "false", sanitizers=MEMORY),
        Fault(
            "a row that starts below 0",
            "place < 0 ? 0 : place < listed.count ? place : listed.count",
            "place < listed.count ? place : listed.count",
            sanitizers=MEMORY,
        ),
        Fault(
            "a row that starts beyond the end",
            "place < listed.count ? place : listed.count",
            "place",
            sanitizers=MEMORY,
        ),
        Fault(
            "search that is off by one",
            "index_at(listed, listed.col, middle) < label",
            "index_at(listed, listed.col, middle) <= label",
        ),
        Fault(
            "search for a label in the next row", "rest.from < rest.to", "true", sanitizers=MEMORY
        ),
        Fault(
            "search for a label that is not there",
            "index_at(listed, listed.col, rest.from) == rest.label",
            "index_at(listed, listed.col, rest.from) >= rest.label",
        ),
        Fault(
            "row of 32 bits",
            "row * listed.labels",
            "static_cast<int>(row * listed.labels)",
            within="start = row * listed.labels,",
        ),
    ],
    "sparse_kernel.h": [
        Fault("rounds left out", "each + (block() < more)", "each"),
        Fault("parts that overlap", "each * block() + before", "each * block()"),
        Fault(
            "a block without a part",
            "part.count > 0",
            "true",
            within="if (part.count > 0) ",
            occurs=2,
            sanitizers=MEMORY,
        ),
        Fault("last positive left out", "is_positive(problem, rest)", "false"),
        Fault(
            "counts of 1 for 0",
            "is_positive(problem, i)",
            "!is_positive(problem, i)",
            within="is_positive(problem, i) ? T(1)",
        ),
    ],
}
