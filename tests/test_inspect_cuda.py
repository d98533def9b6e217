"""The inspection of machine code counts what it says, on code written by hand."""

from pathlib import Path

import pytest

from bench import hot_path, inspect_cuda
from bench.inspect_cuda import Code, kernel_of

PREFIX = "_ZN12weighted_bce4cuda"
ARGUMENTS = "EEvNS_7ProblemENS0_9WorkspaceE"
VECTORS = f"{PREFIX}10on_vectorsINS0_8BceAloneEfLNS0_7TargetsE1ELNS_4ModeE0E{ARGUMENTS}"
GROUP = 2  # logits of 8 bytes, targets of 4
# The loop begins at 0x10: 8 instructions, of which 4 copy logits three iterations before their turn
# and take those that have come. Then 4 with one weight, or 5 with one for each label and
# one positive at a time after them. The sums are collected by 2 more before the end of 2.
LOOP = """
0000       S2R R0, SR_TID.X
0010  @!P0 LDGSTS.E.BYPASS.128 [R3], desc[UR4][R2.64]
0012       LDGDEPBAR
0014       DEPBAR.LE SB0, 0x3
0016       LDS.128 R4, [R3+0x1000]
0020       LDG.E.EF.64 R8, desc[UR4][R6.64]
0030       ISETP.NE.AND P1, PT, R1, RZ, PT
0040       DADD R2, R2, R2
0050   @P1 BRA P2, 0xb0
0060       MUFU.EX2 R10, R4
0070       MUFU.EX2 R11, R5
0080       FADD R10, R10, R11
0090   @P3 CALL.REL.NOINC 0x140
00a0       BRA 0x140
00b0       MUFU.EX2 R10, R4
00c0       MUFU.EX2 R11, R5
00d0       FADD R10, R10, R11
00e0       FADD R10, R10, R11
00f0       BRA.U !UP0, 0x140
0100      FLO.U32.SH R12, R13
0110      LDG.E R14, desc[UR4][R16.64]
0120      MUFU.EX2 R10, R14
0130  @P4 BRA 0x100
0140      ISETP.NE.AND P5, PT, R1, 0x60, PT
0150  @P5 BRA 0x180
0160      MUFU.RCP R1, R1
0170      MUFU.RCP R2, R2
0180  @P6 BRA 0x10
0190      EXIT
"""
UNIFORM, BY_LABEL = 8 + 4 + 2 + 1, 8 + 5 + 2 + 1
FACTS = dict.fromkeys(("stack", "local", "spills", "16-byte stores"), 0)
FACTS |= {"registers": 60, "shared bytes": 80, "16-byte loads": 1}
HOT = {"bytes": 5, "instructions": 27.0, "sums": 56 / 96, "p varies": 28.75, "MUFU": 2.0}
HOT |= {"memory": 0.5, "float64": 0, "branches": 4, "ahead": 3}
KERNEL = kernel_of(VECTORS)._replace(facts=FACTS, hot={1: HOT})


def printed(code: str) -> str:
    """The code as cuobjdump prints it, by address."""
    lines = [(line[:4], line[4:]) for line in sorted(code.strip().splitlines())]
    encoding = "/* 0x000fe40000000f00 */"
    return "".join(f"  /*{at}*/  {rest} ;  {encoding}\n  {encoding}\n" for at, rest in lines)


def found(code: str, target: int = 4) -> dict[str, float]:
    instructions = hot_path.instructions_of(printed(code))
    return hot_path.find(instructions, GROUP, (target,), "loss").get(target, {})


def replaced(old: str, new: str) -> str:
    assert old in LOOP
    return LOOP.replace(old, new)


def test_all_instructions_are_read() -> None:
    code = hot_path.instructions_of(printed(LOOP))
    assert len(code) == len(LOOP.strip().splitlines())
    operands = "[R3], desc[UR4][R2.64]"
    assert code[1] == (16, "!P0", "LDGSTS.E.BYPASS.128", "LDGSTS", operands)
    assert [i.width for i in code if i.name in ("LDG", "LDGSTS")] == [16, 8, 4]


def test_counts_of_the_hot_path() -> None:
    assert found(LOOP) == {
        **{"bytes": (16 + 8) / GROUP, "instructions": UNIFORM / GROUP, "sums": 2 / 96},
        **{"p varies": BY_LABEL / GROUP, "MUFU": 1, "memory": 2 / GROUP, "float64": 1},
        **{"branches": 4, "ahead": 3},
    }
    # Positives tell the paths apart, and not their lengths.
    shorter = found(replaced("00d0       FADD R10, R10, R11\n00e0       FADD R10, R10, R11\n", ""))
    assert (shorter["instructions"], shorter["p varies"]) == (UNIFORM / 2, (BY_LABEL - 2) / 2)
    outermost = found(replaced("0190      EXIT", "0190  @P7 BRA 0x0\n01a0      EXIT"))
    assert outermost["instructions"] == (2 + UNIFORM) / GROUP


def test_hot_path_of_sparse_labels_has_no_positive() -> None:
    """It may clear shared memory, under a condition; pos_weight plays no part."""
    sparse = replaced("     LDG.E.EF.64 R8, desc[UR4][R6.64]", "@!P0 STS.64 [R6], RZ")
    path = found(sparse, target=0)
    assert (path["instructions"], path["p varies"]) == (UNIFORM / GROUP, UNIFORM / GROUP)


@pytest.mark.parametrize(
    ("old", "new", "iterations"),
    [
        ("SB0, 0x3", "SB0, 0x1", 1),
        ("SB0, 0x3", "SB0, 0x0", 0),
        # Waits before the batch ends, for batches from before the loop, or outside of it.
        ("0012       LDGDEPBAR", "0015       LDGDEPBAR", 0),
        ("0012       LDGDEPBAR", "0008       LDGDEPBAR", 0),
        ("0014       DEPBAR.LE SB0, 0x3", "0008       DEPBAR.LE SB0, 0x3", 0),
        # There is no main loop with copies of 16 bytes.
        ("LDGSTS.E.BYPASS.128 [R3]", "LDG.E.EF.128 R4", None),
        ("LDGSTS.E.BYPASS.128", "LDGSTS.E.BYPASS.64", None),
        ("@P6 BRA 0x10", "@P6 BRA 0x12", None),
        # No way through the main loop has what is wanted.
        ("LDG.E.EF.64", "LDG.E.EF", None),
        ("0080       FADD", "0080       MUFU.RCP", None),
        ("0080       FADD R10, R10, R11", "0080       STL [R1], R2", None),
        ("@P3 CALL.REL.NOINC", "CALL.REL.NOINC", None),
        ("MUFU.RCP R2, R2", "FADD R2, R2, R2", None),
        ("FLO.U32.SH", "MOV", None),
        ("BRA.U !UP0, 0x140", "BRX R2 -0x10", None),
    ],
)
def test_copies_are_ahead_by_what_is_not_waited_for(
    old: str, new: str, iterations: int | None
) -> None:
    """Other code has no hot path."""
    assert found(replaced(old, new)).get("ahead") == iterations


NAMES = {
    "10on_vectorsINS0_8BceAloneENS_8BFloat16ELNS0_7TargetsE1ELNS_4ModeE1E": (
        "on_vectors bfloat16, 1-byte targets, loss and gradient"
    ),
    "11on_elementsINS0_9AllOthersEdLNS0_7TargetsE2ELNS_4ModeE3E": (
        "on_elements float64, other losses, larger targets, unreduced loss"
    ),
    "20count_sparse_targetsINS_4HalfE": "count_sparse_targets float16",
    "6finishIff": "finish float32",
    "6finishIdf": "finish float64 of float32",
    "5otherILi3E": f"{PREFIX}5otherILi3E{ARGUMENTS}",
}


def test_names() -> None:
    assert {name: str(kernel_of(PREFIX + name + ARGUMENTS)) for name in NAMES} == NAMES


def test_facts_of_a_kernel() -> None:
    """Both accesses of 16 bytes; a spill is counted, and is on no hot path."""
    usage = "  REG:60 STACK:8 SHARED:80 LOCAL:4 CONSTANT[0]:3584"
    spilling = replaced("0080       FADD R10, R10, R11", "0080       STL [R1], R2")
    code = hot_path.instructions_of(printed(spilling + "0200 STG.E.128 [R1], R2\n"))
    kernel = inspect_cuda.with_facts(kernel_of(VECTORS), usage, code)
    assert kernel.facts == FACTS | {"stack": 8, "local": 4, "spills": 1, "16-byte stores": 1}
    assert kernel.hot == {}
    cells = inspect_cuda.cells_of(Code("13.0", {"sm_80": [kernel]}))
    assert cells == {("Registers of all kernels", str(kernel), "sm_80"): "60"}


@pytest.mark.parametrize(("instructions", "limit"), [(27.0, "memory"), (100.0, "issue")])
def test_prediction(instructions: float, limit: str) -> None:
    """An element has 4 + 1 bytes; 56 instructions more, and 2 MUFU, are in each run of 96."""
    hot = HOT | {"instructions": instructions}
    cells = inspect_cuda.cells_of(Code("13.0", {"sm_90": [KERNEL._replace(hot={1: hot})]}))
    elements = 4.3e12 / 5 / 132 / 1.98e9
    issue = elements * (instructions + 56 / 96) / 128
    assert {cell[2]: cells[cell] for cell in cells if cell[0] == "Hot paths, sm_90"} == {
        **{"bytes": "5", "instructions": f"{instructions:.2f}", "sums": "0.58"},
        **{"p varies": "28.75", "MUFU": "2.00", "memory": "0.50", "float64": "0"},
        **{"branches": "4", "ahead": "3", "issue": f"{issue:.0%}", "first limit": limit},
        "MUFU rate": f"{elements * (2 + 2 / 96) / 16:.0%}",
        "of a copy": f"{1 / max(1, issue):.0%}",
    }


def test_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All that is no table stays; a kernel may be missing for a GPU."""
    other = KERNEL._replace(name="a", facts=FACTS | {"registers": 70}, hot={})
    both = Code("13.0.88", {"sm_80": [KERNEL, other], "sm_90": [KERNEL]})
    monkeypatch.setattr(inspect_cuda, "built", lambda: both)
    path = tmp_path / "report.md"
    inspect_cuda.main(["--out", str(path)])
    written = path.read_text(encoding="utf-8")
    assert f"| {KERNEL} | 60 | 60 |\n| {other} | 70 | none |\n" in written
    assert "\nnvcc 13.0.88 for sm_80, sm_90\n" in written
    before = inspect_cuda.REPORT.read_text(encoding="utf-8")
    prose = [line for line in before.splitlines() if line[:1] not in ("|", "n")]
    assert [line for line in written.splitlines() if line[:1] not in ("|", "n")] == prose


def test_code_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspect_cuda, "extension", None)
    assert inspect_cuda.main([]) == 2
    assert f"{inspect_cuda.PROGRAM}: there are no CUDA kernels: " in capsys.readouterr().err
