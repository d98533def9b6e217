"""Machine code of NVIDIA GPUs, as `cuobjdump -sass` prints it: instructions, blocks, a loop."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(\S+)\s+)?(([A-Z]\w*)[\w.]*)\s*(.*?)\s*;")
WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


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
    def is_branch(self) -> bool:
        # For sm_80 some are written "@P0 CALL.REL.NOINC 0x10"; nothing comes back from there.
        return self.name == "BRA" or (self.name == "CALL" and self.predicate != "")

    @property
    def ends_block(self) -> bool:
        return self.is_branch or self.name in ("EXIT", "RET")

    @property
    def target(self) -> int:
        """Where a branch leads."""
        return int(self.operands.split(", ")[-1], 16)


class Block(NamedTuple):
    """Instructions that run one after the other, and the addresses of what may follow."""

    instructions: tuple[Instruction, ...]
    successors: tuple[int, ...]

    @property
    def address(self) -> int:
        return self.instructions[0].address


Blocks = dict[int, Block]  # by address


class Loop(NamedTuple):
    header: int
    blocks: Blocks  # of one iteration


def functions(lines: Iterable[str]) -> Iterator[tuple[str, str, list[Instruction]]]:
    """Yields architecture, mangled name and instructions of each function in cuobjdump's output."""
    architecture, name = "", ""
    found: list[Instruction] = []
    for line in lines:
        match = LINE.match(line)
        if match:
            address, predicate, opcode, short, operands = match.groups()
            found.append(Instruction(int(address, 16), predicate or "", opcode, short, operands))
            continue
        words = line.split()
        if words[:2] == ["code", "for"] or words[:2] == ["Function", ":"]:
            if found:
                yield architecture, name, found
            found = []
            if words[0] == "code":
                architecture = words[2]
            else:
                name = words[2]
    if found:
        yield architecture, name, found


def blocks_of(code: list[Instruction]) -> Blocks:
    """The basic blocks. A call is an instruction like others, for its subroutine comes back to it.

    Raises:
        ValueError: if a branch leads to where a register says.
    """
    starts = {code[0].address}
    for this, following in zip(code, [*code[1:], None], strict=True):
        if this.name in ("BRX", "BRXU", "JMP", "JMX"):
            raise ValueError(f"a branch whose target is not known: {this.opcode} {this.operands}")
        if this.is_branch:
            starts.add(this.target)
        if this.ends_block and following:
            starts.add(following.address)
    blocks: Blocks = {}
    block: list[Instruction] = []
    for this, following in zip(code, [*code[1:], None], strict=True):
        block.append(this)
        if following is None or following.address in starts:
            next_address = following.address if following else None
            blocks[block[0].address] = Block(tuple(block), _successors(this, next_address))
            block = []
    return blocks


def _successors(last: Instruction, following: int | None) -> tuple[int, ...]:
    ends = last.ends_block and not last.is_conditional
    after = [] if ends or following is None else [following]
    target = [last.target] if last.is_branch else []
    return tuple(dict.fromkeys(target + after))


def main_loop(blocks: Blocks, works: Callable[[Instruction], bool]) -> Loop:
    """The outermost loop around the instructions that `works` knows as its own.

    Raises:
        ValueError: if there is none, or if it has several entries.
    """
    before = predecessors(blocks)
    after = {address: set(block.successors) for address, block in blocks.items()}
    body: set[int] = set()
    for address, block in blocks.items():
        if address not in body and any(map(works, block.instructions)):
            around = reached(after[address], after) & reached({address}, before)
            if address in around and len(around) > len(body):
                body = around
    entries = [address for address in body if before[address] - body]
    if len(entries) != 1:
        raise ValueError(f"{len(entries)} entries to the main loop instead of one")
    return Loop(entries[0], {address: blocks[address] for address in sorted(body)})


def predecessors(blocks: Blocks) -> dict[int, set[int]]:
    before: dict[int, set[int]] = {address: set() for address in blocks}
    for address, block in blocks.items():
        for successor in block.successors:
            if successor in before:
                before[successor].add(address)
    return before


def reached(start: set[int], neighbours: dict[int, set[int]]) -> set[int]:
    """All that can be reached from the start, itself included."""
    found, ahead = set(start), list(start)
    while ahead:
        new = neighbours.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found
