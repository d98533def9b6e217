"""Finds the hot path of `on_vectors` in machine code, and counts what is on it.

It is one iteration of the main loop where all targets are 0 or 1. A group of logits has one
MUFU.EX2 for each, one MUFU.RCP too where gradients are written, loads of 16 bytes of logits and of
the targets, a store of 16 bytes or none, and no other access to memory but to shared memory.
Logits, and targets of 1 byte, are copied there some iterations before their turn (LDGSTS). With
sparse labels it is the path of groups without a positive.
"""

import re
from operator import add, le
from typing import NamedTuple

import networkx as nx  # torch brings it

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(\S+)\s+)?(([A-Z]\w*)[\w.]*)\s*(.*?)\s*;", re.M)
WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
# Accesses to other memory, and calls of subroutines.
NEVER = {"LD", "ST", "LDL", "STL", "LDSM", "ATOM", "ATOMG", "ATOMS", "RED", "REDG", "CALL"}
LEAVES = {"BRA", "BRX", "BRXU", "JMP", "JMX", "EXIT", "RET"}
DOUBLES = {"DADD", "DMUL", "DFMA", "DSETP"}
SUMS = 2  # products of which a logarithm is taken at the end of a run; each takes one MUFU.RCP
START, END = -1, -2  # before the first instruction of an iteration, and after the last one
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
    def is_conditional(self) -> bool:
        # "@P0 BRA 0x10", "@P0 BRA P1, 0x10", "BRA.U UP0, 0x10"
        return self.predicate != "" or (self.name == "BRA" and "," in self.operands)

    @property
    def tally(self) -> Tally:
        special = (self.opcode.startswith(f"MUFU.{name}") for name in ("EX2", "RCP"))
        moved = (self.width * (self.name == name) for name in ("LDGSTS", "LDG", "STG"))
        return (*map(int, special), *moved)


class HotPath(NamedTuple):
    """Counts of one iteration: instructions of a warp, which are for one group a thread."""

    instructions: int  # where pos_weight is one number
    by_label: int  # where pos_weight varies and no target of the group is 1
    sums: int  # more of them where the sums are collected at the end of a run
    memory: int  # accesses to global memory
    doubles: int  # instructions in double precision
    branches: int  # branches with a condition
    ahead: tuple[int, int]  # of `instructions` and of `by_label`


def instructions_of(text: str) -> list[Instruction]:
    # For sm_80 some branches are written "@P0 CALL.REL.NOINC 0x10"; nothing comes back from there.
    text = re.sub(r"(@\S+\s+)CALL\b", r"\1BRA", text)
    return [Instruction(int(address, 16), *rest) for address, *rest in LINE.findall(text)]


def find(
    code: list[Instruction], lanes: int, targets: tuple[int, ...], sums: bool, slopes: bool
) -> dict[int, HotPath]:
    """Finds the hot paths of an `on_vectors` by the bytes of a target, which are 0 if it is sparse.

    A group has `lanes` logits; losses are added up and gradients written, or not.

    Raises:
        ValueError: if the code does not look as it should; the message says what is missing.
    """
    flow = _iteration(code)
    loop = {i.address: i for i in code if i.address in flow}
    # Where pos_weight varies, the positives are taken one by one after the exponentials; FLO finds
    # the lowest bit of their mask.
    positives = [address for address, i in loop.items() if i.name == "FLO"]
    before = set().union(*(nx.ancestors(flow, address) for address in positives))
    tallies = {address: i.tally for address, i in loop.items() if any(i.tally)}
    exponentials = {address for address, tally in tallies.items() if tally[0]}
    flow.remove_nodes_from([address for address, i in loop.items() if i.name in NEVER])
    at_once, one_by_one = (
        flow.subgraph(flow.nodes - left_out).copy()
        for left_out in (exponentials & before, exponentials - before)
    )
    hot = {}
    for target in targets:
        early, late = (lanes, 0) if target == 1 else (0, lanes * target)
        wanted = (lanes, lanes * slopes, 16 + early, late, 16 * slopes)
        more = (lanes, lanes * slopes + SUMS * sums, *wanted[2:])
        # A group of sparse labels without a positive needs no pos_weight.
        flows = at_once, one_by_one if target else at_once
        uniform, by_label = ([loop[a] for a in _shortest(flow, tallies, wanted)] for flow in flows)
        hot[target] = HotPath(
            instructions=len(uniform),
            by_label=len(by_label),
            sums=len(_shortest(at_once, tallies, more)) - len(uniform),
            memory=sum(i.name in ("LDG", "LDGSTS", "STG") for i in uniform),
            doubles=sum(i.name in DOUBLES or ".F64" in i.opcode for i in uniform),
            branches=sum(i.name == "BRA" and i.is_conditional for i in uniform),
            ahead=(_ahead(uniform), _ahead(by_label)),
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


def _iteration(code: list[Instruction]) -> nx.DiGraph:
    """Finds an iteration of the outermost loop around the copies of logits to shared memory.

    It says which instruction may follow which, by their addresses, from START to END.
    """
    flow = nx.DiGraph()
    for this, following in zip(code, [*code[1:], None], strict=True):
        if this.name == "BRA":
            flow.add_edge(this.address, int(this.operands.split(", ")[-1], 16))
        # A call is an instruction like others, for its subroutine comes back to it.
        if following and (this.is_conditional or this.name not in LEAVES):
            flow.add_edge(this.address, following.address)
    copies = {i.address for i in code if i.name == "LDGSTS" and i.width == 16}
    loops = [some for some in nx.strongly_connected_components(flow) if some & copies]
    loop = max(loops, key=len, default=set())
    entries = [address for address in loop if not loop.issuperset(flow.predecessors(address))]
    if len(loop) < 2 or len(entries) != 1:
        raise ValueError(f"no main loop, or not one entry to it: {len(entries)}")
    edges = flow.subgraph(loop).edges
    ends = [(address, END if to == entries[0] else to) for address, to in edges]
    return nx.DiGraph([(START, entries[0]), *ends])


def _shortest(flow: nx.DiGraph, tallies: dict[int, Tally], wanted: Tally) -> list[int]:
    """Finds the shortest path with just what is wanted; a place of the breadth-first search is an
    address and what was counted before it."""
    places: list[tuple[int, Tally]] = [(START, (0,) * len(wanted))]
    came_from = {}
    for place in places:  # which grow meanwhile
        for address in flow[place[0]]:
            own = tallies.get(address)
            following = address, tuple(map(add, place[1], own)) if own else place[1]
            if following not in came_from and all(map(le, following[1], wanted)):
                came_from[following] = place
                places.append(following)
        if (END, wanted) in came_from:
            break
    path = [(END, wanted)]
    if path[0] not in came_from:
        raise ValueError(f"no way through the main loop has {wanted}")
    while path[-1] in came_from:
        path.append(came_from[path[-1]])
    return [address for address, _ in path[-2:0:-1]]
