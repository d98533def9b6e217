"""The faults, by header. Where two change the same text, or one contains another, both stay."""

import re

from .faults import Fault
from .programs import MEMORY

# In a header: the name of a fault, its text and what replaces it. The text is in « », with what
# surrounds it, where it would be ambiguous. The logits are float, or half where that is said;
# (memory) is for a sanitizer, where nothing else can see an access out of bounds.
TABLE = r"""
kernel.h
    sum of a block without its barrier: parts[thread() / 32] = v;\n  «barrier();»\n =>
    barrier that few threads reach: parts[thread() / 32] = v;\n  «barrier();»\n
        => if (thread() % 32 == 0) barrier();
    start without its barrier:   «barrier();»\n  return true; =>
    shuffle that leaves lanes out: int offset = «16»; => 8
    shuffle that few lanes reach: v += from_higher_lane(v, offset);
        => if (thread() % 32 < offset) v += from_higher_lane(v, offset);
    last positive left out: targets.is_positive(rest) => false
    last element left out: rest < problem.numel => rest + 1 < problem.numel
    an element too many to count: «i < problem.numel»; => i <= problem.numel
    a row too many to count: row < csr.num_rows => row <= csr.num_rows
    an element that a thread does not have (memory): if («left > share.missing») work.element(
        => left > 0
    a group loaded beyond the end (memory): left - share.missing > kAhead => left > 0
    product of too many factors: factors == Work::kUncollected => factors < 0
    sums left out: k += kThreads => k += kThreads + 1
    grad_output of one block not kept: kMode == Mode::kLossAndGrad && «blocks() == 1» => false
    grad_output compared with itself: *static_cast<const T*>(workspace.used)
        => *static_cast<const T*>(problem.grad_output.data)
    0 expected: grad_output != 0 => true
    grad_output of the gradient not brought up to date: («workspace.used») = grad_output;\n  // 0
        => workspace.expected
    count by an index of 32 bits: for (int64_t i = «int64_t{kThreads} * block()»
        => kThreads * block()
    counts of 1 for 0: «counts_positives» ? => !counts_positives
    labels above the columns counted: csr.first_label + csr.num_labels => INT64_MAX
    labels below the columns counted: begin, end, «csr.first_label») => 0
    targets set before the memory is prepared: targets.prepare(share); =>
    a group that a thread does not have (memory): if («left > share.missing») { => left > 0
    last round left out: if («left > share.missing») { => left > 1
    output that is not aligned: aligned(problem.out, 16) => true
prefetch.h
    group taken before it has come: wait_for_batches<kAhead>(); => wait_for_batches<kAhead + 1>();
    end of a batch left out: end_batch(); => if (is_there) end_batch();
    groups of a thread in too few slots: (slot_ + 1) % kSlots => (slot_ + 1) % kAhead
thread.h
    stride of another tensor: problem_.y.strides[d] => problem_.x.strides[d]
    grad_output of all elements: shared_.scale.high * of.grad_output
        => shared_.scale.high
    nothing divided by nothing: divisor == 0 => divisor == -1
group_thread.h
    product not reset: negatives_.value = 0; =>
    logarithm of a positive among those of negatives:
        «positives_».times_one_plus(term.logarithm) => negatives_
unrolled_thread.h
    pos_weight of another label (half): (problem_, problem_.p, «i + lane») => i
    group across two rows: + kLanes <= «problem_.sizes[d]» => 1 + problem_.sizes[d]
    a part of a group without positives (half): all |= word => all = word
    target of another label: positives >> j & 1 => positives & 1
pairwise_thread.h
    factors of another element: factors_at(«i + j», i => i
    target of the first label: Base::factors_at(i + j, i + j, «positives >> j & 1») => positives & 1
    positive of the first label: positives >> k & 1 => positives & 1
    result in place of a logit that is needed: counts ? result : x => result
    positives computed as negatives: Terms::kIsMirrored && !shared_.own_p ? 0 : «positives» => 0
elements.h
    lane not written (half): j < «kLanes»; j += 2) => kLanes - 2
    vector that is not aligned: reinterpret_cast<uintptr_t>(at) % 16 == 0
        => reinterpret_cast<uintptr_t>(at) % 4 == 0
targets.h
    targets of a tile before all have taken those of the last: «barrier();»  // all have taken =>
    targets taken before all are set:     }\n    «barrier();»\n =>
    targets that stay: *own_ = {}; =>
    targets of another thread: own_ = «shared_.groups + thread()» => shared_.groups
    groups of one round for all: own_ += kThreads; =>
    entries left out: position.entry + kThreads => position.entry + kThreads + 1
    only one entry of a thread:
        while (position.element < end) position = put(tile, position.entry + kThreads);
        => if (position.element < end) position = put(tile, position.entry + kThreads);
    next tile from a later entry on: position.entry == next.entry
        => position.entry < next.entry + kThreads
    next tile from the last entry on: shared_.next = position;
        => shared_.next = {position.entry + 1, position.element, false};
    a round too many without a tile: (next.element - begin) / kRound
        => (next.element - begin) / kRound + 1
    a tile that ends too late: left < kRounds ? left : kRounds => kRounds + 1
    a tile beyond the last row (memory): if (end > problem_.numel) end = problem_.numel; =>
    a label that does not count: position.counts => true
    targets before the tile (memory): position.element >= tile.begin => true
    targets after the tile (memory): position.element < tile.end => true
    row of an entry off by one: start_of_row(csr_, middle) <= entry
        => start_of_row(csr_, middle) < entry
    row after the tile not known: tile.last_row + 2 => tile.last_row + 1
    row beyond the last one (memory): tile.last_row + 2 => tile.last_row + 3
    labels below the columns: label < csr_.first_label => false
    labels above the columns: column >= csr_.num_labels => false
    a label above the columns in the next row: start + csr_.num_labels - 1
        => start + csr_.num_labels
    first label left out: csr_.first_label + (i - row * csr_.num_labels)
        => i - row * csr_.num_labels
    an entry beyond the end (memory): entry >= csr_.count => false
    a row that starts below 0 (memory): entry < 0 => false
    a row that starts beyond the end (memory): entry < csr.count ? entry : csr.count => entry
    search that is off by one: index_at(csr, csr.col_indices, middle) < label
        => index_at(csr, csr.col_indices, middle) <= label
    search for a label in the next row (memory): place.entry < place.end => true
    search for a label that is not there:
        index_at(csr_, csr_.col_indices, place.entry) == place.label
        => index_at(csr_, csr_.col_indices, place.entry) >= place.label
    row of 32 bits: start = «row * csr_.num_labels»; => static_cast<int>(row * csr_.num_labels)
    last group left out: (groups - first + step - 1) => (groups - first)
    blocks that overlap: first * kLanes, «step * kLanes», count => int64_t{kThreads} * kLanes
    index of 32 bits: int64_t{kThreads} * block() => kThreads * block()
    rounds left out: each + (block() < more) => each
    blocks with the same rounds: each * block() + before => each * block()
    a block without rounds (memory): if (share.count == 0) return; =>
../terms.h
    factor of the other term: Math::select(positive, factors.positive, factors.negative)
        => Math::select(positive, factors.negative, factors.positive)
    positive of a mirrored loss on the other side: Math::select(positive, -x, x) => x
    infinity times a coefficient of 0: (c == Math::set(0)) & (v == v) => false
../logistic.h
    softplus on the other side: Math::select(«above_», magnitude_, Math::set(0)) + log => below_
    real power of the other term: at.minus_log_u(log) => log
    slope of focal without its power's: Math::fma(gamma * at.v(), bounded, at.u()) => at.u()
    infinity times a slope of 0: softplus > most => false
    whole power of the other term: whole_power<Math>(«at.u_pair()» => at.v_pair()
    power of a whole exponent off by one: n > «2» => 1
../losses.h
    alpha of the other term: Math::select(positive, alphas.positive, alphas.negative)
        => Math::select(positive, alphas.negative, alphas.positive)
    positive of focal on the other side: const Focal mirrored(«Math::select(positive, -x, x)» => x
    squared hinge of another margin: const V margin = «Math::set(1) + x» => Math::set(2) + x
    squared hinge below its margin: Math::set(0) > margin => false
    slope of the squared hinge: positive + positive => positive
    value of poly-1 without its polynomial:
        «Math::fma(parameters_.epsilon, u, Math::max(x, Math::set(0)))»
        => Math::max(x, Math::set(0))
    slope of poly-1 by the other sigmoid: Math::fma(parameters_.epsilon, «v», Math::set(1)) => u
    value of Hill without its sigmoid: of_value.below) + «change»; => Math::set(0)
    value of Hill below 0: of_value.above, «of_value.below» => of_value.above
    slope of Hill: Math::fma(«Math::set(3)», change => Math::set(2)
    margin of Hill on the other side: sum(x_, «-parameters_.margin.high») => parameters_.margin.high
    sign of the slope of Hill: plain.rest, «-factor * plain.slope» => factor * plain.slope
../asymmetric.h
    edge of a clip: d.high > zero => true
    a clip of 0 that clips: = «parameters_.clips» => true
    power of a clipped sigmoid: gamma.whole - 1 => gamma.whole
    gamma of the other term: at_.mirrored(), «parameters_.gamma_pos» => parameters_.gamma_neg
    a power that is not a constant: detaches ? Math::set(0) : gamma_neg.gamma
        => gamma_neg.gamma
    slope of a clipped power: «power * parameters_.of_negative», v * log => Math::set(0)
    sign of the slope of a positive: plain.rest, «-factor * plain.slope» => factor * plain.slope
../problem.h
    shift of a division: , «l - 1»} => l
"""


def _faults(table: str) -> dict[str, list[Fault]]:
    faults: dict[str, list[Fault]] = {}
    for section in re.split(r"^(?=\S)", table, flags=re.MULTILINE)[1:]:
        header, *entries = re.split(r"\n {4}(?=\S)", section.strip())
        faults[header] = [_fault(re.sub(r"\n +", " ", entry)) for entry in entries]
    return faults


def _fault(entry: str) -> Fault:
    match = re.fullmatch(r"([^:]+?)(?: \((half|memory)\))?: (.+?) =>(?: (.+))?", entry)
    assert match is not None, entry
    name, kind, surroundings, instead = match.groups(default="")
    surroundings = surroundings.replace(r"\n", "\n")
    text = surroundings.rpartition("«")[2]
    return Fault(
        name,
        text.partition("»")[0],
        instead,
        within=re.sub("[«»]", "", surroundings) if "«" in surroundings else "",
        logits="Half" if kind == "half" else "float",
        sanitizers=MEMORY if kind == "memory" else "",
    )


FAULTS = _faults(TABLE)
