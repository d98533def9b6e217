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
        Fault("shuffle that leaves lanes out", "16", "8", within="int offset = 16;"),
        Fault(
            "shuffle that few lanes reach",
            "v += from_higher_lane(v, offset);",
            "if (thread() % 32 < offset) v += from_higher_lane(v, offset);",
        ),
        Fault("last positive left out", "targets.is_positive(rest)", "false"),
        Fault("last element left out", "rest < problem.numel", "rest + 1 < problem.numel"),
        Fault(
            "an element too many to count",
            "i < problem.numel",
            "i <= problem.numel",
            within="i < problem.numel;",
        ),
        Fault("a row too many to count", "row < csr.num_rows", "row <= csr.num_rows"),
        Fault(
            "an element that a thread does not have",
            "left > share.missing",
            "left > 0",
            within="if (left > share.missing) work.element(",
            sanitizers=MEMORY,
        ),
        Fault(
            "a group loaded beyond the end",
            "left - share.missing > kAhead",
            "left > 0",
            sanitizers=MEMORY,
        ),
        Fault("product of too many factors", "factors == Work::kUncollected", "factors < 0"),
        Fault("sums left out", "k += kThreads", "k += kThreads + 1"),
        Fault(
            "grad_output of one block not kept",
            "blocks() == 1",
            "false",
            within="kMode == Mode::kLossAndGrad && blocks() == 1",
        ),
        Fault(
            "grad_output compared with itself",
            "*static_cast<const T*>(workspace.used)",
            "*static_cast<const T*>(problem.grad_output.data)",
        ),
        Fault("0 expected", "grad_output != 0", "true"),
        Fault(
            "grad_output of the gradient not brought up to date",
            "workspace.used",
            "workspace.expected",
            within="(workspace.used) = grad_output;\n  // 0",
        ),
        Fault(
            "count by an index of 32 bits",
            "int64_t{kThreads} * block()",
            "kThreads * block()",
            within="for (int64_t i = int64_t{kThreads} * block()",
        ),
        Fault(
            "counts of 1 for 0",
            "counts_positives",
            "!counts_positives",
            within="counts_positives ?",
        ),
        Fault("labels above the columns counted", "csr.first_label + csr.num_labels", "INT64_MAX"),
        Fault(
            "labels below the columns counted",
            "csr.first_label",
            "0",
            within="begin, end, csr.first_label)",
        ),
        Fault("targets set before the memory is prepared", "targets.prepare(share);", ""),
        Fault(
            "a group that a thread does not have",
            "left > share.missing",
            "left > 0",
            within="if (left > share.missing) {",
            sanitizers=MEMORY,
        ),
        Fault(
            "last round left out",
            "left > share.missing",
            "left > 1",
            within="if (left > share.missing) {",
        ),
        Fault("output that is not aligned", "aligned(problem.out, 16)", "true"),
    ],
    "prefetch.h": [
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
    "thread.h": [
        Fault("stride of another tensor", "problem_.y.strides[d]", "problem_.x.strides[d]"),
        Fault(
            "grad_output of all elements", "shared_.scale.high * grad_output", "shared_.scale.high"
        ),
        Fault("nothing divided by nothing", "divisor == 0", "divisor == -1"),
    ],
    "vector_thread.h": [
        Fault("product not reset", "negatives_.value = 0;", ""),
        Fault(
            "pos_weight of another label",
            "i + lane",
            "i",
            within="(problem_, problem_.p, i + lane)",
            logits="Half",
        ),
        Fault(
            "group across two rows",
            "problem_.sizes[d]",
            "1 + problem_.sizes[d]",
            within="+ kLanes <= problem_.sizes[d]",
        ),
        Fault("a part of a group without positives", "all |= word", "all = word", logits="Half"),
        Fault("target of another label", "positives >> j & 1", "positives & 1"),
    ],
    "elements.h": [
        Fault(
            "lane not written",
            "kLanes",
            "kLanes - 2",
            within="j < kLanes; j += 2)",
            logits="Half",
        ),
        Fault(
            "vector that is not aligned",
            "reinterpret_cast<uintptr_t>(at) % 16 == 0",
            "reinterpret_cast<uintptr_t>(at) % 4 == 0",
        ),
    ],
    "targets.h": [
        Fault(
            "targets of a tile before all have taken those of the last",
            "barrier();",
            "",
            within="barrier();  // all have taken",
        ),
        Fault(
            "targets taken before all are set",
            "barrier();",
            "",
            within="    }\n    barrier();\n",
        ),
        Fault("targets that stay", "*own_ = {};", ""),
        Fault(
            "targets of another thread",
            "shared_.groups + thread()",
            "shared_.groups",
            within="own_ = shared_.groups + thread()",
        ),
        Fault("groups of one round for all", "own_ += kThreads;", ""),
        Fault("entries left out", "position.entry + kThreads", "position.entry + kThreads + 1"),
        Fault(
            "only one entry of a thread",
            "while (position.element < end) position = put(tile, position.entry + kThreads);",
            "if (position.element < end) position = put(tile, position.entry + kThreads);",
        ),
        Fault(
            "next tile from a later entry on",
            "position.entry == next.entry",
            "position.entry < next.entry + kThreads",
        ),
        Fault(
            "next tile from the last entry on",
            "shared_.next = position;",
            "shared_.next = {position.entry + 1, position.element, false};",
        ),
        Fault(
            "a round too many without a tile",
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
        Fault("a label that does not count", "position.counts", "true"),
        Fault(
            "targets before the tile", "position.element >= tile.begin", "true", sanitizers=MEMORY
        ),
        Fault("targets after the tile", "position.element < tile.end", "true", sanitizers=MEMORY),
        Fault(
            "row of an entry off by one",
            "start_of_row(csr_, middle) <= entry",
            "start_of_row(csr_, middle) < entry",
        ),
        Fault("row after the tile not known", "tile.last_row + 2", "tile.last_row + 1"),
        Fault(
            "row beyond the last one", "tile.last_row + 2", "tile.last_row + 3", sanitizers=MEMORY
        ),
        Fault("labels below the columns", "label < csr_.first_label", "false"),
        Fault("labels above the columns", "column >= csr_.num_labels", "false"),
        Fault(
            "a label above the columns in the next row",
            "start + csr_.num_labels - 1",
            "start + csr_.num_labels",
        ),
        Fault(
            "first label left out",
            "csr_.first_label + (i - row * csr_.num_labels)",
            "i - row * csr_.num_labels",
            logits="Half",
        ),
        Fault("an entry beyond the end", "entry >= csr_.count", "false", sanitizers=MEMORY),
        Fault("a row that starts below 0", "entry < 0", "false", sanitizers=MEMORY),
        Fault(
            "a row that starts beyond the end",
            "entry < csr.count ? entry : csr.count",
            "entry",
            sanitizers=MEMORY,
        ),
        Fault(
            "search that is off by one",
            "index_at(csr, csr.col_indices, middle) < label",
            "index_at(csr, csr.col_indices, middle) <= label",
        ),
        Fault(
            "search for a label in the next row",
            "place.entry < place.end",
            "true",
            sanitizers=MEMORY,
        ),
        Fault(
            "search for a label that is not there",
            "index_at(csr_, csr_.col_indices, place.entry) == place.label",
            "index_at(csr_, csr_.col_indices, place.entry) >= place.label",
        ),
        Fault(
            "row of 32 bits",
            "row * csr_.num_labels",
            "static_cast<int>(row * csr_.num_labels)",
            within="start = row * csr_.num_labels;",
        ),
        Fault("last group left out", "(groups - first + step - 1)", "(groups - first)"),
        Fault(
            "blocks that overlap",
            "step * kLanes",
            "int64_t{kThreads} * kLanes",
            within="first * kLanes, step * kLanes, count",
        ),
        Fault(
            "index of 32 bits",
            "int64_t{kThreads} * block()",
            "kThreads * block()",
        ),
        Fault("rounds left out", "each + (block() < more)", "each"),
        Fault("blocks with the same rounds", "each * block() + before", "each * block()"),
        Fault("a block without rounds", "if (share.count == 0) return;", "", sanitizers=MEMORY),
    ],
    "../terms.h": [
        Fault(
            "alpha of the other term",
            "Math::select(positive, alphas.positive, alphas.negative)",
            "Math::select(positive, alphas.negative, alphas.positive)",
        ),
        Fault(
            "power of the other term",
            "Math::select(above, zero, bounded)",
            "Math::select(above, bounded, zero)",
            within="Math::select(above, zero, bounded);",
        ),
        Fault(
            "slope of focal without its power's", "Math::fma(gamma * v, bounded_softplus, u)", "u"
        ),
        Fault(
            "infinity times an alpha of 0",
            "c == Math::set(0)",
            "false",
            within="c == Math::set(0), c * z_",
        ),
        Fault("infinity times a slope of 0", "magnitude_ > most", "false"),
        Fault(
            "positive of focal on the other side",
            "Math::select(positive, -x, x)",
            "x",
            within="const Focal mirrored(Math::select(positive, -x, x)",
        ),
    ],
    "../problem.h": [
        Fault("shift of a division", "l - 1", "l", within=", l - 1}"),
    ],
}
