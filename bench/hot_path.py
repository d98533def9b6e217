"""Finds the hot path of `on_vectors` in machine code, and counts what is on it.

The hot path is an iteration of the main loop in which all targets are 0 or 1. A group of logits has
a MUFU.EX2 for each logit, a MUFU.RCP for each if gradients are written, loads of 16 bytes of logits
and of the targets, at most one store of 16 bytes, and no other access to memory except shared
memory. Logits, and targets of 1 byte, are copied there some iterations before their use (LDGSTS).
With sparse labels it is the path of groups without a positive.
"""

import re
from itertools import pairwise
from operator import add, le
from typing import NamedTuple

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(\S+)\s+)?(([A-Z]\w*)[\w.]*)\s*(.*?)\s*;", re.M)
WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
GLOBAL = ("LDGSTS", "LDG", "STG")  # from global to shared memory, from global memory, and to it
# Accesses to other memory, and calls of subroutines.
NEVER = {"LD", "ST", "LDL", "STL", "LDSM", "ATOM", "ATOMG", "ATOMS", "RED", "REDG", "CALL"}
LEAVES = {"BRA", "BRX", "BRXU", "JMP", "JMX", "EXIT", "RET"}
DOUBLES = {"DADD", "DMUL", "DFMA", "DSETP"}
RUN = 96  # elements of which a product takes the logarithms: kFactors in cuda/thread_math.h
SUMS = 2  # products of which a logarithm is taken at the end of a run; each takes one MUFU.RCP


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
    def targets(self) -> list[int]:
        """The address that a branch goes to; empty for another instruction."""
        return [int(self.operands.split(", ")[-1], 16)] if self.name == "BRA" else []


Path = tuple[Instruction, ...]
Tally = tuple[int, ...]  # MUFU.EX2 without and with positives after it, MUFU.RCP, bytes by GLOBAL


def instructions_of(text: str) -> list[Instruction]:
    # For sm_80 some branches are written "@P0 CALL.REL.NOINC 0x10"; nothing comes back from there.
    text = re.sub(r"(@\S+\s+)CALL\b", r"\1BRA", text)
    return [Instruction(int(address, 16), *rest) for address, *rest in LINE.findall(text)]


def find(
    code: list[Instruction], lanes: int, targets: tuple[int, ...], mode: str
) -> dict[int, dict[str, float]]:
    """Counts what is on the hot paths of an `on_vectors`, by the bytes of a target (0 if sparse).

    A group has `lanes` logits. The counts are columns of the report, which explains them. A path
    that the code does not have is left out.
    """
    gradients, counts = "gradient" in mode, {}
    reciprocals = lanes * gradients
    more = reciprocals + (SUMS if "loss" in mode else 0)
    paths = _paths(code, (lanes, lanes, more, 16 * (1 + gradients) + lanes * max(targets)))
    for target in targets:
        moved = 16 * (1 + gradients) + lanes * target
        path = paths.get((lanes, 0, reciprocals, moved))
        # A group of sparse labels without a positive needs no pos_weight.
        varied = paths.get((0, lanes, reciprocals, moved)) if target else path
        summing = paths.get((lanes, 0, more, moved))
        if path and varied and summing:
            counts[target] = {
                "bytes": moved // lanes,
                "instructions": len(path) / lanes,
                "sums": (len(summing) - len(path)) / RUN,
                "p varies": len(varied) / lanes,
                "MUFU": sum(i.name == "MUFU" for i in path) / lanes,
                "memory": sum(i.name in GLOBAL for i in path) / lanes,
                "float64": sum(i.name in DOUBLES or ".F64" in i.opcode for i in path),
                "branches": sum(i.name == "BRA" and i.is_conditional for i in path),
                "ahead": min(_ahead(path), _ahead(varied)),
            }
    return counts


def _ahead(path: Path) -> int:
    """How many iterations after its start a copy to shared memory is waited for.

    LDGDEPBAR ends the batch of copies of an iteration; DEPBAR.LE waits for all but a number of the
    last batches. 0 where the copies are not made so.
    """
    steps = [i for i in path if i.name in ("LDGSTS", "LDGDEPBAR", "DEPBAR")]
    in_order = re.fullmatch("(LDGSTS )*LDGDEPBAR DEPBAR", " ".join(i.name for i in steps))
    return int(steps[-1].operands.split(", ")[1], 16) if in_order else 0


def _paths(code: list[Instruction], most: Tally) -> dict[Tally, Path]:
    """Finds the shortest path of each tally, up to the most, through one iteration.

    The main loop is the outermost one around the copies of logits to shared memory. A path only
    goes forward, until it is at the start again: a hot path has no loop of its own.
    """
    copies = [i.address for i in code if i.name == "LDGSTS" and i.width == 16]
    starts = [to for i in code for to in i.targets if any(to <= c < i.address for c in copies)]
    start = min(starts, default=-1)
    paths: dict[int, dict[Tally, Path]] = {start: {(0,) * len(most): ()}}  # from here to the start
    before_positives = set()
    for i, after in reversed([one for one in pairwise(code) if one[0].address >= start]):
        # A call is an instruction like others, for its subroutine comes back to it.
        goes_on = i.is_conditional or i.name not in LEAVES
        following = i.targets + [after.address] * goes_on
        # Where pos_weight varies, the positives are taken one by one after the exponentials; FLO
        # finds the lowest bit of their mask.
        if i.name == "FLO" or not before_positives.isdisjoint(following):
            before_positives.add(i.address)
        exponential, before = "MUFU.EX2" in i.opcode, i.address in before_positives
        moved = i.width if i.name in GLOBAL else 0
        own = exponential and not before, exponential and before, "MUFU.RCP" in i.opcode, moved
        shortest: dict[Tally, Path] = {}
        for rest, path in (one for to in following for one in paths.get(to, {}).items()):
            tally = tuple(map(add, own, rest))
            is_shorter = tally not in shortest or len(path) + 1 < len(shortest[tally])
            if is_shorter and i.name not in NEVER and all(map(le, tally, most)):
                shortest[tally] = (i, *path)
        paths[i.address] = shortest
    return paths[start]
