"""What the programs print is whole: at any width, in a pipe, and with brackets."""

import io
import re
from collections.abc import Callable

import pytest

pytest.importorskip("rich")
pytest.importorskip("psutil")

from rich.console import Console

from bench import report
from bench.names import OURS, STEP
from bench.records import Change, Row
from bench.settings import Setting
from examples.report import AT_BEST, AT_HALF, PROBABILITIES
from tools.terminal import console_of, progress_on, say, show

WIDTHS = (20, 60, 80, 200)
SETTING = Setting(1024, 16384, threads=2)
LAYER = SETTING._replace(features=768, busy=2, target="sparse")
Print = Callable[[Console], None]


def measured(setting: Setting, key: str) -> Row:
    times = {"seconds": 0.1234, "p20": 0.1212, "p80": 0.1313, "times_copy": 101.5}
    times |= {"times_ours": 12.34, "times_products": 1.25, "gigabytes_per_second": 123.4}
    times |= {"share_of_copy": 0.98, "peak_gradients": 2.75, "beyond_bytes": 2**31}
    times |= {"loss_error": 2e-7, "gradient_error": 1e-6, "mean": 0.15, "p95": 0.25, "worst": 0.35}
    return Row(setting, STEP, False, key, rounds=[0.1] * 200, **times)  # type: ignore[arg-type]


ROWS = [measured(SETTING, key) for key in (OURS, "scatter", "bce-plain")]
LAYERS = [measured(LAYER, key) for key in (OURS, "scatter", "unfused")]
CHANGES = [Change(ROWS[1], "times_ours", 1.25, 3.75, True), Change(LAYERS[0], "p80", 1, 2, False)]
SCATTER = "zeros().scatter_, then F.bce_with_logits"
EXAMPLE = ("ours, SquaredHinge", *["123.4\n±12.3"] * 9)


def of_example(headers: tuple[str, ...]) -> Print:
    return lambda console: show(console, headers, [EXAMPLE[: len(headers)]])


TABLES: dict[str, tuple[Print, tuple[str, ...]]] = {
    "group": (
        lambda console: report.show_group(console, ROWS),
        (
            *(SCATTER, "123.4", "121.2 to 131.3", "12.34x", "101.5x"),
            *("98%", "2.75", "2e-07", "1e-06"),
        ),
    ),
    "busy layer": (
        lambda console: report.show_group(console, LAYERS),
        ("150.0", "250.0", "350.0", "200", "1.25x", "2048"),
    ),
    "overview": (
        lambda console: report.show_summary(console, [ROWS, LAYERS]),
        (
            "1024x16384 float32 bool 0.5% 2t step",
            "1024x768x16384 float32 sparse 0.5% 2t 2b step",
            *("12.34x", "bce-plain", "scatter"),
        ),
    ),
    "changes": (
        lambda console: report.show_changes(console, CHANGES, 0.25),
        (SCATTER, "times ours", "3.75", "worse", "better"),
    ),
    "half": (of_example(AT_HALF), (*EXAMPLE[:1], "123.4", "±12.3", "peak")),
    "best": (of_example(AT_BEST), (*EXAMPLE[:1], "123.4", "±12.3", "P@5")),
    "probabilities": (of_example(PROBABILITIES), (*EXAMPLE[:1], "123.4", "±12.3", "calib.")),
}


def printed(show_it: Print, width: int, is_terminal: bool, encoding: str = "utf-8") -> str:
    """What is printed; where only ASCII can be, another character is an error."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    show_it(Console(width=width, file=file, force_terminal=is_terminal, color_system=None))
    file.flush()
    return raw.getvalue().decode(encoding)


def words_of(text: str) -> list[str]:
    return sorted(re.findall(r"[^\s─]+", text))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("width", WIDTHS)
def test_tables_are_whole(name: str, width: int) -> None:
    """A narrow terminal has the cells of a wide one and repeats names; a pipe has one table."""
    show_it, words = TABLES[name]
    narrow, wide = (printed(show_it, w, True) for w in (width, 10_000))
    assert "…" not in narrow
    for word in words:
        assert word in narrow
    assert set(words_of(narrow)) == set(words_of(wide))
    if width >= 80:
        assert max(map(len, narrow.splitlines())) <= width
    pipe = printed(show_it, width, False)
    tables = pipe[: pipe.rindex("─")].splitlines()
    assert tables == printed(show_it, 10_000, False)[: pipe.rindex("─")].splitlines()
    assert sum(line.startswith("─") for line in tables) == (2 if name == "changes" else 1)


@pytest.mark.parametrize("name", ["half", "best", "probabilities"])
def test_tables_of_the_examples_need_no_second_part_at_80_columns(name: str) -> None:
    assert printed(TABLES[name][0], 80, True).count(EXAMPLE[0]) == 1


@pytest.mark.parametrize("name", TABLES)
def test_consoles_that_can_print_ascii_alone(name: str) -> None:
    show_it, words = TABLES[name]
    shown = printed(show_it, 80, True, "ascii")
    for word in words:
        assert word.replace("±", "+-") in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_columns_are_aligned() -> None:
    rows = [["a", "1", "x"], ["bcd", "23.5\n±.5", "-"]]
    text = printed(lambda console: show(console, ["", "two words", "%"], rows), 80, True)
    assert text.splitlines() == [
        "       two",
        "     words  %",
        "─────────────",
        "a        1  x",
        "bcd   23.5  -",
        "       ±.5",
    ]
    parts = printed(lambda console: show(console, ["", "two words", "%"], rows), 10, True)
    assert len(parts.split("\n\n")) == 2


BRACKETS = "weighted_bce[cuda] [bold]rows[/] :smile: [rows, labels] /a/[b]/c"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_brackets_are_text(is_terminal: bool) -> None:
    def work(console: Console) -> None:
        say(console, BRACKETS)
        show(console, ["[head]", "[x]"], [["[red]a", "[/]"]], BRACKETS, BRACKETS)

    text = printed(work, 200, is_terminal)
    assert text.replace("\n  ", " ").count(BRACKETS) == 3
    for word in ("[head]", "[x]", "[red]a", "[/]"):
        assert word in text


def test_messages_break_between_words_on_terminals_alone() -> None:
    line = "saved in /a/path/that-is-longer-than-the-terminal/is and more words that go on"
    assert printed(lambda console: say(console, line), 30, False) == f"{line}\n"
    text = printed(lambda console: say(console, line), 30, True)
    assert "\n/a/path/that-is-longer-than-the-terminal/is\n" in text
    assert text.split() == line.split()


def test_bars_have_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with progress_on(console) as progress:
        progress.add_task("data[cuda]", total=1)
    assert "data[cuda]" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("columns", ["", "60", "200"])
def test_a_pipe_is_no_terminal(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "dumb")
    report.show_group(console_of(), LAYERS)
    assert capsys.readouterr().out.count("─\n") == 1
