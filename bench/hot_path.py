"""The way through the main loop of `on_vectors` that hard targets take, found in machine code.

On it a group of logits has one MUFU.EX2 for each, one MUFU.RCP too where gradients are written,
loads of 16 bytes of logits and of the targets, a store of 16 bytes or none, and no other access to
memory but to shared memory. Logits, and targets of 1 byte, are copied there some groups before
their turn (LDGSTS). With sparse labels it is the way of groups without a positive; where others
have theirs, shared memory may be cleared on it under a condition.
"""

import heapq
from itertools import count
from operator import add, le
from typing import NamedTuple

from .sass import Block, Instruction, Loop, blocks_of, main_loop, predecessors, reached

# What the hot path has no use for: other memory, calls. Constants (LDC, ULDC) are none of it.
FOREIGN = {"LD", "ST", "LDL", "STL", "STS", "LDSM", "UBLKCP"}
FOREIGN |= {"ATOM", "ATOMG", "ATOMS", "RED", "REDG", "EXIT", "RET"}
STREAMED = {"EF", "NA", "CI"}  # evict first, no allocation, invalidate: as the GPU has them
DOUBLES = {"DADD", "DMUL", "DFMA", "DSETP"}
SUMS = 2  # products of which a logarithm is taken at the end of a run; each takes one MUFU.RCP


class Tally(NamedTuple):
    exponentials: int = 0
    reciprocals: int = 0
    copied: int = 0  # bytes, to shared memory
    loaded: int = 0  # bytes
    stored: int = 0  # bytes

    def plus(self, other: "Tally") -> "Tally":
        return Tally(*map(add, self, other))

    def within(self, limit: "Tally") -> bool:
        return all(map(le, self, limit))


class Path(NamedTuple):
    """One iteration. The counts are instructions of a warp, each for one group a thread."""

    blocks: tuple[Block, ...]

    @property
    def instructions(self) -> int:
        return sum(len(block.instructions) for block in self.blocks)

    @property
    def branches(self) -> int:
        """Those with a condition."""
        return sum(len(block.successors) > 1 for block in self.blocks)

    @property
    def doubles(self) -> int:
        """Those in double precision."""
        every = [i for block in self.blocks for i in block.instructions]
        return sum(i.name in DOUBLES or "F64" in i.opcode.split(".") for i in every)

    @property
    def ahead(self) -> int:
        """How many iterations after it has started a copy to shared memory it is waited for.

        The copies of an iteration are a batch, which LDGDEPBAR ends; DEPBAR.LE waits for all but a
        number of the last ones. 0 where the copies are not made so.
        """
        order = {"LDGSTS": 0, "LDGDEPBAR": 1, "DEPBAR": 2}
        found = [i for block in self.blocks for i in block.instructions if i.name in order]
        steps = [order[i.name] for i in found]
        if steps != sorted(steps) or steps[-2:] != [1, 2] or steps.count(1) != 1:
            return 0
        return int(found[-1].operands.split(", ")[1], 16)

    def count(self, *names: str) -> int:
        return sum(i.name in names for block in self.blocks for i in block.instructions)


class HotPaths(NamedTuple):
    uniform: Path  # pos_weight is one number
    collecting: Path | None  # and the sums are collected; None where there is no sum
    by_label: Path | None  # pos_weight varies, no target of the group is 1


def find(
    code: list[Instruction], lanes: int, targets: tuple[int, ...], sums: bool, slopes: bool
) -> dict[int, HotPaths]:
    """The hot paths of a kernel, by the bytes of a target.

    Args:
        code: of `on_vectors`.
        lanes: logits in a group.
        targets: bytes of one, 0 with sparse labels; several where the kernel finds out.
        sums: whether losses are added up.
        slopes: whether gradients are written.

    Raises:
        ValueError: if the code does not look as it should; the message says what is missing.
    """
    loop = main_loop(blocks_of(code), is_load_ahead)
    near_positives = before_positives(loop)
    uniform = {a: b for a, b in loop.blocks.items() if not (has_ex2(b) and a in near_positives)}
    by_label = {a: b for a, b in loop.blocks.items() if not has_ex2(b) or a in near_positives}
    found = {}
    for target in targets:
        early, late = (1, 0) if target == 1 else (0, target)
        wanted = Tally(lanes, lanes * slopes, 16 + lanes * early, lanes * late, 16 * slopes)
        more = wanted._replace(reciprocals=wanted.reciprocals + SUMS)
        hot = shortest(Loop(loop.header, uniform), wanted)
        collecting = shortest(Loop(loop.header, uniform), more) if sums else None
        if hot is None or (sums and collecting is None):
            missing = more if hot else wanted
            raise ValueError(f"no way through the main loop has {missing}")
        # A group without a positive needs no pos_weight.
        varying = shortest(Loop(loop.header, by_label), wanted) if target else hot
        found[target] = HotPaths(hot, collecting, varying)
    return found


def is_streamed(i: Instruction) -> bool:
    """Of logits, targets or gradients. What else is in memory is read in the common way."""
    return i.name in ("LDG", "STG") and not STREAMED.isdisjoint(i.opcode.split("."))


def is_load_ahead(i: Instruction) -> bool:
    return i.name == "LDGSTS" and i.width == 16


def has_ex2(block: Block) -> bool:
    return any(i.opcode.startswith("MUFU.EX2") for i in block.instructions)


def before_positives(loop: Loop) -> set[int]:
    """The blocks after which, in the same iteration, the positives may be taken one by one.

    That is what pos_weight needs where it varies; the lowest bit of a mask is found by FLO.
    """
    by_one = {a for a, b in loop.blocks.items() if any(i.name == "FLO" for i in b.instructions)}
    if not by_one:
        raise ValueError("no FLO, which finds the positives where pos_weight varies")
    before = predecessors(loop.blocks)
    before[loop.header] = set()
    return reached(by_one, before)


def tally_of(block: Block) -> Tally | None:
    """None for a block that is on no hot path."""
    tally = Tally()
    for i in block.instructions:
        if i.name in FOREIGN and not (i.name == "STS" and i.predicate):
            return None
        if i.name == "CALL" and not i.is_branch:
            return None
        if i.name == "LDGSTS":
            tally = tally.plus(Tally(copied=i.width))
        elif i.name in ("LDG", "STG"):
            if not is_streamed(i):
                return None
            moved = Tally(loaded=i.width) if i.name == "LDG" else Tally(stored=i.width)
            tally = tally.plus(moved)
        elif i.name == "MUFU":
            kind = i.opcode.split(".")[1]
            if kind not in ("EX2", "RCP"):
                return None
            tally = tally.plus(Tally(exponentials=kind == "EX2", reciprocals=kind == "RCP"))
    return tally


def shortest(loop: Loop, wanted: Tally) -> Path | None:
    """The way from the header back to it with the fewest instructions that has just what is wanted.

    Dijkstra's algorithm, where what was counted so far is part of a place.
    """
    tallies = {address: tally_of(block) for address, block in loop.blocks.items()}
    order = count()  # of equally long ways, the first
    ahead: list[tuple[int, int, int, Tally, tuple[int, ...]]] = []
    done: set[tuple[int, Tally]] = set()

    def go(address: int, length: int, sofar: Tally, way: tuple[int, ...]) -> None:
        own = tallies.get(address)
        if own is None:
            return
        total = sofar.plus(own) if any(own) else sofar
        if (address, total) not in done and total.within(wanted):
            length += len(loop.blocks[address].instructions)
            heapq.heappush(ahead, (length, next(order), address, total, (*way, address)))

    go(loop.header, 0, Tally(), ())
    while ahead:
        length, _, address, tally, way = heapq.heappop(ahead)
        if (address, tally) in done:
            continue
        done.add((address, tally))
        for successor in loop.blocks[address].successors:
            if successor != loop.header:
                go(successor, length, tally, way)
            elif tally == wanted:
                return Path(tuple(loop.blocks[a] for a in way))
    return None
