"""The inspection of machine code counts what it says, on code written by hand."""

from pathlib import Path

import pytest

from bench import hot_path, inspect_cuda, sass
from bench.cuda_code import Code, Facts, kernel_of
from bench.hot_path import HotPaths
from bench.prediction import predict

GROUP = 2  # logits of 8 bytes, targets of 4
PREFIX = "_ZN12weighted_bce4cuda"
# The loop begins at 0x10: 8 instructions, of which 4 copy logits three iterations before their turn
# and take those that have come. Then 4 with one weight, or 5 with one for each label and
# one positive at a time after them. The sums are collected by 2 more before the end of 2.
LOOP = """
0x00       S2R R0, SR_TID.X
0x10  @!P0 LDGSTS.E.BYPASS.128 [R3], desc[UR4][R2.64]
0x12       LDGDEPBAR
0x14       DEPBAR.LE SB0, 0x3
0x16       LDS.128 R4, [R3+0x1000]
0x20       LDG.E.EF.64 R8, desc[UR4][R6.64]
0x30       ISETP.NE.AND P1, PT, R1, RZ, PT
0x40       DADD R2, R2, R2
0x50   @P1 BRA P2, 0xb0
0x60       MUFU.EX2 R10, R4
0x70       MUFU.EX2 R11, R5
0x80       FADD R10, R10, R11
0x90   @P3 CALL.REL.NOINC 0x140
0xa0       BRA 0x140
0xb0       MUFU.EX2 R10, R4
0xc0       MUFU.EX2 R11, R5
0xd0       FADD R10, R10, R11
0xe0       FADD R10, R10, R11
0xf0       BRA.U !UP0, 0x140
0x100      FLO.U32.SH R12, R13
0x110      LDG.E R14, desc[UR4][R16.64]
0x120      MUFU.EX2 R10, R14
0x130  @P4 BRA 0x100
0x140      ISETP.NE.AND P5, PT, R1, 0x60, PT
0x150  @P5 BRA 0x180
0x160      MUFU.RCP R1, R1
0x170      MUFU.RCP R2, R2
0x180  @P6 BRA 0x10
0x190      EXIT
"""


def printed(code: str) -> list[str]:
    """As cuobjdump prints it."""
    lines = ["\tcode for sm_90", f"\t\tFunction : {PREFIX}10on_vectors", '\t.headerflags\t@"EF"']
    for line in code.strip().splitlines():
        address, rest = line.split(maxsplit=1)
        lines.append(f"        /*{int(address, 16):04x}*/    {rest} ;    /* 0x00000a0000017a02 */")
        lines.append("                                          /* 0x000fe40000000f00 */")
    return lines


def instructions(code: str) -> list[sass.Instruction]:
    ((architecture, name, found),) = sass.functions(printed(code))
    assert (architecture, name) == ("sm_90", f"{PREFIX}10on_vectors")
    return found


def paths(code: str) -> HotPaths:
    return hot_path.find(instructions(code), GROUP, (4,), sums=True, slopes=False)[4]


def test_hot_path_of_sparse_labels_has_no_positive() -> None:
    """It may clear shared memory, under a condition; pos_weight plays no part."""
    sparse = LOOP.replace("     LDG.E.EF.64 R8, desc[UR4][R6.64]", "@!P0 STS.64 [R6], RZ")
    found = hot_path.find(instructions(sparse), GROUP, (0,), sums=True, slopes=False)[0]
    assert found.uniform.instructions == 8 + 4 + 2 + 1
    assert found.by_label == found.uniform
    always = sparse.replace("@!P0 STS.64", "STS.64")
    with pytest.raises(ValueError, match="no way through the main loop"):
        hot_path.find(instructions(always), GROUP, (0,), sums=True, slopes=False)


def test_all_instructions_are_read() -> None:
    code = instructions(LOOP)
    assert len(code) == 29
    copy = sass.Instruction(16, "!P0", "LDGSTS.E.BYPASS.128", "LDGSTS", "[R3], desc[UR4][R2.64]")
    assert code[1] == copy
    assert [i.width for i in code if i.name in ("LDG", "LDGSTS")] == [16, 8, 4]


def test_blocks_end_at_branches_and_begin_at_targets() -> None:
    blocks = sass.blocks_of(instructions(LOOP))
    assert list(blocks) == [0, 0x10, 0x60, 0xA0, 0xB0, 0x100, 0x140, 0x160, 0x180, 0x190]
    assert blocks[0x10].successors == (0xB0, 0x60)
    assert blocks[0x60].successors == (0x140, 0xA0)
    assert blocks[0xA0].successors == (0x140,)
    assert blocks[0xB0].successors == (0x140, 0x100)
    assert blocks[0x180].successors == (0x10, 0x190)
    assert blocks[0x190].successors == ()


def test_main_loop_is_the_one_around_the_loads() -> None:
    loop = sass.main_loop(sass.blocks_of(instructions(LOOP)), hot_path.is_load_ahead)
    assert loop.header == 0x10
    assert list(loop.blocks) == [0x10, 0x60, 0xA0, 0xB0, 0x100, 0x140, 0x160, 0x180]


def test_instructions_of_the_hot_paths() -> None:
    found = paths(LOOP)
    assert found.uniform.instructions == 8 + 4 + 2 + 1
    assert (found.uniform.branches, found.uniform.doubles) == (4, 1)
    assert found.uniform.count("LDG", "LDGSTS", "STG") == 2
    assert found.collecting is not None
    assert found.collecting.instructions == found.uniform.instructions + 2
    assert found.by_label is not None
    assert found.by_label.instructions == 8 + 5 + 2 + 1


@pytest.mark.parametrize(
    ("old", "new", "iterations"),
    [
        ("", "", 3),
        ("SB0, 0x3", "SB0, 0x1", 1),
        ("SB0, 0x3", "SB0, 0x0", 0),
        # Waits before the batch ends, for batches from before the loop, or outside of it.
        ("0x12       LDGDEPBAR", "0x15       LDGDEPBAR", 0),
        ("0x12       LDGDEPBAR", "0x08       LDGDEPBAR", 0),
        ("0x14       DEPBAR.LE SB0, 0x3", "0x08       DEPBAR.LE SB0, 0x3", 0),
    ],
)
def test_copies_are_ahead_by_what_is_not_waited_for(old: str, new: str, iterations: int) -> None:
    changed = LOOP.replace(old, new)
    assert (changed == LOOP) == (old == "")
    lines = sorted(changed.strip().splitlines(), key=lambda line: int(line.split()[0], 16))
    assert paths("\n".join(lines)).uniform.ahead == iterations


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("LDGSTS.E.BYPASS.128 [R3]", "LDG.E.EF.128 R4", "0 entries to the main loop"),
        ("LDGSTS.E.BYPASS.128", "LDGSTS.E.BYPASS.64", "0 entries to the main loop"),
        ("LDG.E.EF.64", "LDG.E.EF", "no way through the main loop"),
        ("0x80       FADD", "0x80       MUFU.RCP", "no way through the main loop"),
        ("0x80       FADD R10, R10, R11", "0x80       STL [R1], R2", "no way through"),
        ("@P3 CALL.REL.NOINC", "CALL.REL.NOINC", "no way through"),
        ("MUFU.RCP R2, R2", "FADD R2, R2, R2", "no way through the main loop"),
        ("FLO.U32.SH", "MOV", "no FLO"),
        ("BRA.U !UP0, 0x140", "BRX R2 -0x10", "target is not known"),
        ("S2R R0, SR_TID.X", "@P0 BRA 0x60", "2 entries to the main loop"),
    ],
)
def test_other_code_is_an_error(old: str, new: str, missing: str) -> None:
    assert old in LOOP
    with pytest.raises(ValueError, match=missing):
        paths(LOOP.replace(old, new))


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        (
            "10on_vectorsINS_3BceENS_8BFloat16ELNS0_7TargetsE1ELNS_4ModeE1EEEvNS_7ProblemENS0_9WorkspaceE",
            "on_vectors bfloat16, 1-byte targets, loss and gradient",
        ),
        (
            "10on_vectorsINS_3BceEfLNS0_7TargetsE2ELNS_4ModeE0EEEvNS_7ProblemENS0_9WorkspaceE",
            "on_vectors float32, larger targets, loss",
        ),
        (
            "11on_elementsINS_5FocalEdLNS0_7TargetsE2ELNS_4ModeE3EEEvNS_7ProblemENS0_9WorkspaceE",
            "on_elements float64, focal, larger targets, unreduced loss",
        ),
        (
            "10on_vectorsINS_5FocalENS_4HalfELNS0_7TargetsE0ELNS_4ModeE2EEEvNS_7ProblemENS0_9WorkspaceE",
            "on_vectors float16, focal, sparse labels, gradient",
        ),
        ("20count_sparse_targetsIdEEvNS_7ProblemENS0_9WorkspaceE", "count_sparse_targets float64"),
        ("13count_targetsIfEEvNS_7ProblemENS0_9WorkspaceE", "count_targets float32"),
        ("6finishIffEEvNS_7ProblemENS0_9WorkspaceEi", "finish float32"),
        ("6finishIdfEEvNS_7ProblemENS0_9WorkspaceEi", "finish float64 of float32"),
        (
            "20remember_grad_outputIfEEvNS_7ProblemENS0_9WorkspaceE",
            "remember_grad_output float32",
        ),
        ("5otherIfEEvv", f"{PREFIX}5otherIfEEvv"),
    ],
)
def test_names(mangled: str, name: str) -> None:
    assert str(kernel_of(PREFIX + mangled)) == name


def test_prediction() -> None:
    """15 instructions for 2 elements of 8 + 4 bytes, 2 more and 2 MUFU in each run of 96."""
    said = predict(paths(LOOP), lanes=GROUP, logit=8, target=4, slopes=False)
    elements = 4.3e12 / 12 / 132 / 1.98e9
    assert said.bytes == 12
    assert said.issue == pytest.approx(elements * (7.5 + 2 / 96) / 128)
    assert said.mufu == pytest.approx(elements * (1 + 2 / 96) / 16)
    assert (said.limit, said.speed) == ("memory", 1)
    slow = said._replace(mufu=1.25, issue=1.1)
    assert (slow.limit, slow.speed) == ("MUFU", 0.8)


def test_check_tells_whether_a_report_is_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = kernel_of(f"{PREFIX}10on_vectorsINS_3BceEfLNS0_7TargetsE1ELNS_4ModeE0EEEv")
    facts = Facts(60, 80, 0, 0, 0, 3, 0, {1: paths(LOOP)}, "")
    code = Code("13.0.88", ("sm_90",), {"sm_90": {kernel: facts}})
    monkeypatch.setattr(inspect_cuda, "built", lambda: code)
    path = tmp_path / "folder" / "report.md"
    assert inspect_cuda.main(["--out", str(path)]) == 0
    assert inspect_cuda.main(["--check", str(path)]) == 0
    assert capsys.readouterr() == ("", "")
    more = facts._replace(registers=61, stack=8)
    monkeypatch.setattr(
        inspect_cuda, "built", lambda: code._replace(kernels={"sm_90": {kernel: more}})
    )
    assert inspect_cuda.main(["--check", str(path)]) == 1
    assert "+| on_vectors float32, 1-byte targets, loss | 61, stack 8 |" in capsys.readouterr().out
    monkeypatch.setattr(inspect_cuda, "built", lambda: code._replace(nvcc="12.9.86"))
    assert inspect_cuda.main(["--check", str(path)]) == 2
    assert "is not of nvcc 12.9.86 for sm_90" in capsys.readouterr().err
    assert inspect_cuda.main(["--check", str(tmp_path / "none")]) == 2


def test_code_for_one_gpu_is_compared_with_its_part_of_a_report() -> None:
    vectors = kernel_of(f"{PREFIX}10on_vectorsINS_3BceEfLNS0_7TargetsE1ELNS_4ModeE0EEEv")
    facts = Facts(60, 80, 0, 0, 0, 3, 0, {1: paths(LOOP)}, "")
    kernels = {vectors: facts, kernel_of(f"{PREFIX}13count_targetsIfEEv"): facts._replace(hot={})}
    other = {kernel: facts._replace(registers=70) for kernel, facts in kernels.items()}
    names = ("sm_80", "sm_90", "compute_90")
    written = inspect_cuda.report(Code("13.0.88", names, {"sm_80": other, "sm_90": kernels}))
    one = Code("13.0.88", ("sm_90", "compute_90"), {"sm_90": kernels})
    assert inspect_cuda.differences(one, written) == ""
    changed = inspect_cuda.differences(one._replace(kernels={"sm_90": other}), written)
    assert changed is not None
    assert "-| count_targets float32 | 60 |\n" in changed
    assert "+| count_targets float32 | 70 |" in changed
    assert inspect_cuda.differences(one._replace(kernels={"sm_120": kernels}), written) is None
    assert inspect_cuda.differences(one._replace(nvcc="13.1.5"), written) is None
