"""Finds the hot path of `on_vectors` in machine code, and counts what is on it.

It is one iteration of the main loop where all targets are 0 or 1. A group of logits has one
MUFU.EX2 for each, one MUFU.RCP too where gradients are written, loads of 16 bytes of logits and of
the targets, a store of 16 bytes or none, and no other access to memory but to shared memory.
Logits, and targets of 1 byte, are copied there some iterations before their turn (LDGSTS). With
sparse labels it is the path of groups without a positive; where others have theirs, shared memory
may be cleared on it under a condition.
"""

import re
from collections import deque
from operator import add, le
from typing import NamedTuple

import networkx as nx  # torch brings it

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(\S+)\s+)?(([A-Z]\w*)[\w.]*)\s*(.*?)\s*;", re.M)
WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
# Accesses to other memory, and ends of the kernel. Constants are read by LDC and ULDC.
NEVER = {"LD", "ST", "LDL", "STL", "STS", "LDSM", "UBLKCP"}
NEVER |= {"ATOM", "ATOMG", "ATOMS", "RED", "REDG", "EXIT", "RET"}
STREAMED = {"EF", "NA", "CI"}  # logits, targets and gradients: evict first, no allocation, ...
DOUBLES = {"DADD", "DMUL", "DFMA", "DSETP"}
SUMS = 2  # products of which a logarithm is taken at the end of a run; each takes one MUFU.RCP
Tally = tuple[int, ...]  # EX2, RCP, and the bytes that are copied to shared memory, loaded, stored


class Instruction(NamedTuple):
    address: int
    predicate: str  # "!P0", or "" where the instruction always runs
    opcode: str  # "LDG.E.EF.128"
    name: str  # "LDG"
    operands: str

    @property
    def width(self) -> int:
        """The bytes that an access to memory moves."""
        return next((WIDTHS[part] for part in self.opcode.split(".") if part in WIDTHS), 4)

    @property
    def is_branch(self) -> bool:
        # For sm_80 some are written "@P0 CALL.REL.NOINC 0x10"; nothing comes back from there.
        return self.name == "BRA" or (self.name == "CALL" and self.predicate != "")

    @property
    def is_conditional(self) -> bool:
        # "@P0 BRA 0x10", "@P0 BRA P1, 0x10", "BRA.U UP0, 0x10"
        return self.predicate != "" or (self.name == "BRA" and "," in self.operands)


class HotPath(NamedTuple):
    """Counts of one iteration: instructions of a warp, which are for one group a thread."""

    instructions: int  # where pos_weight is one number
    by_label: int | None  # where pos_weight varies and no target of the group is 1
    sums: int  # more of them where the sums are collected at the end of a run
    memory: int  # accesses to global memory
    doubles: int  # instructions in double precision
    branches: int  # branches with a condition
    ahead: tuple[int, ...]  # of `instructions` and of `by_label`


def instructions_of(text: str) -> list[Instruction]:
    return [Instruction(int(address, 16), *rest) for address, *rest in LINE.findall(text)]


def find(
    code: list[Instruction], lanes: int, targets: tuple[int, ...], sums: bool, slopes: bool
) -> dict[int, HotPath]:
    """Finds the hot paths of an `on_vectors` by the bytes of a target, which are 0 if it is sparse.

    A group has `lanes` logits; losses are added up and gradients written, or not.

    Raises:
        ValueError: if the code does not look as it should; the message says what is missing.
    """
    flow, first, last = _iteration(code)
    of_loop = {i.address: i for i in code if i.address in flow}
    tallies = {address: _tally(i) for address, i in of_loop.items()}
    exponentials = {address for address, tally in tallies.items() if tally and tally[0]}
    # Where pos_weight varies, the positives are taken one by one after the exponentials; FLO finds
    # the lowest bit of their mask.
    by_one = [address for address, i in of_loop.items() if i.name == "FLO"]
    if not by_one:
        raise ValueError("no FLO, which finds the positives where pos_weight varies")
    before = set().union(*(nx.ancestors(flow, address) for address in by_one))

    def path(wanted: Tally, left_out: set[int]) -> list[Instruction]:
        allowed = {**tallies, **dict.fromkeys(left_out)}
        return [of_loop[address] for address in _shortest(flow, first, last, allowed, wanted)]

    hot = {}
    for target in targets:
        early, late = (lanes, 0) if target == 1 else (0, lanes * target)
        wanted = (lanes, lanes * slopes, 16 + early, late, 16 * slopes)
        more = (lanes, lanes * slopes + SUMS, *wanted[2:])
        uniform = path(wanted, exponentials & before)
        collecting = path(more, exponentials & before) if sums else uniform
        if not (uniform and collecting):
            raise ValueError(f"no way through the main loop has {more if uniform else wanted}")
        # A group without a positive needs no pos_weight.
        by_label = path(wanted, exponentials - before) if target else uniform
        hot[target] = HotPath(
            instructions=len(uniform),
            by_label=len(by_label) or None,
            sums=len(collecting) - len(uniform),
            memory=sum(i.name in ("LDG", "LDGSTS", "STG") for i in uniform),
            doubles=sum(i.name in DOUBLES or "F64" in i.opcode.split(".") for i in uniform),
            branches=sum(i.is_branch and i.is_conditional for i in uniform),
            ahead=tuple(_ahead(one) for one in (uniform, by_label) if one),
        )
    return hot


def _ahead(path: list[Instruction]) -> int:
    """How many iterations after its start a copy to shared memory is waited for.

    LDGDEPBAR ends the batch of copies of an iteration; DEPBAR.LE waits for all but a number of the
    last batches. 0 where the copies are not made so.
    """
    steps = [i for i in path if i.name in ("LDGSTS", "LDGDEPBAR", "DEPBAR")]
    if not re.fullmatch("(LDGSTS )*LDGDEPBAR DEPBAR", " ".join(i.name for i in steps)):
        return 0
    return int(steps[-1].operands.split(", ")[1], 16)


def _iteration(code: list[Instruction]) -> tuple[nx.DiGraph, int, set[int]]:
    """Finds an iteration of the outermost loop around the copies of logits to shared memory.

    Returns:
        Which instruction may follow which, by their addresses; the first one; the last ones.
    """
    flow = nx.DiGraph()
    for this, following in zip(code, [*code[1:], None], strict=True):
        if this.name in ("BRX", "BRXU", "JMP", "JMX"):
            raise ValueError(f"a branch whose target is not known: {this.opcode} {this.operands}")
        if this.is_branch:
            flow.add_edge(this.address, int(this.operands.split(", ")[-1], 16))
        # A call is an instruction like others, for its subroutine comes back to it.
        leaves = this.is_branch or this.name in ("EXIT", "RET")
        if following and (this.is_conditional or not leaves):
            flow.add_edge(this.address, following.address)
    copies = {i.address for i in code if i.name == "LDGSTS" and i.width == 16}
    loops = [some for some in nx.strongly_connected_components(flow) if some & copies]
    loop = max(loops, key=len, default=set())
    entries = [address for address in loop if not loop.issuperset(flow.predecessors(address))]
    if len(loop) < 2 or len(entries) != 1:
        raise ValueError(f"no main loop, or not one entry to it: {len(entries)}")
    flow = flow.subgraph(loop).copy()
    last = set(flow.predecessors(entries[0]))
    flow.remove_edges_from([(address, entries[0]) for address in last])
    return flow, entries[0], last


def _tally(i: Instruction) -> Tally | None:
    """What an instruction adds; None if it is on no hot path."""
    kinds = i.opcode.split(".")
    is_clearing = i.name == "STS" and i.predicate
    if (i.name in NEVER and not is_clearing) or (i.name == "CALL" and not i.is_branch):
        return None
    if i.name in ("LDG", "STG") and STREAMED.isdisjoint(kinds):
        return None
    if i.name == "MUFU":
        return {"EX2": (1, 0, 0, 0, 0), "RCP": (0, 1, 0, 0, 0)}.get(kinds[1])
    return (0, 0, *(i.width * (i.name == name) for name in ("LDGSTS", "LDG", "STG")))


def _shortest(
    flow: nx.DiGraph, first: int, last: set[int], tallies: dict[int, Tally | None], wanted: Tally
) -> list[int]:
    """Finds the shortest path with just what is wanted; it is empty if there is none.

    A breadth-first search, where what was counted so far is part of a place.
    """
    came_from = {}
    ahead = deque([(first, (0,) * len(wanted), None)])
    while ahead:
        address, tally, previous = ahead.popleft()
        own = tallies[address]
        if own is None:
            continue
        tally = tuple(map(add, tally, own)) if any(own) else tally
        place = address, tally
        if place in came_from or not all(map(le, tally, wanted)):
            continue
        came_from[place] = previous
        if address in last and tally == wanted:
            path = [place]
            while previous := came_from[path[-1]]:
                path.append(previous)
            return [address for address, _ in reversed(path)]
        ahead += ((successor, tally, place) for successor in flow[address])
    return []
