"""Every Python block of README.md and docs/ runs, and prints what it says.

The blocks of a page run from top to bottom and share their names. What a statement
prints is what its comments say, at the ends of its lines and right below it, each up to
a colon: a comma is as good as a new line, digits that are not written do not count, and
`...` is anything. Blocks with Python's prompt are doctests.
"""

import ast
import builtins
import doctest
import io
import re
import symtable
import tokenize
from contextlib import redirect_stdout
from pathlib import Path

import jax
import pytest

# The checker that knows NUMBER has no public name.
from _pytest.doctest import _get_checker, get_optionflags

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: str(page.relative_to(ROOT))
)


def blocks(page):
    """The Python blocks of a page, each in the line where it stands there."""
    text = page.read_text(encoding="utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield "\n" * text.count("\n", 0, block.start(1)) + block[1]


def has_prompts(block):
    """Whether a block shows Python's prompt."""
    return block.lstrip().startswith(">>> ")


def statements(block):
    """Each statement of a block, with the comments in its lines and right below it."""
    tokens = tokenize.generate_tokens(io.StringIO(block).readline)
    comments = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}
    whole_lines = {n for n, t in comments.items() if t.line.startswith("#")}
    for statement in ast.parse(block).body:
        end = (statement.end_lineno or statement.lineno) + 1
        while end in whole_lines:
            end += 1
        lines = range(statement.lineno, end)
        yield statement, [comments[n].string[1:] for n in lines if n in comments]


def tidy(lines):
    """One line, without the spaces by which NumPy makes columns inside of brackets."""
    line = ", ".join(line.strip() for line in lines)
    return re.sub(r"(?<=[\[(]) +| +(?=[\])])", "", line)


@pytest.fixture
def read(request, tmp_path, monkeypatch):
    """Reads a page as a user would, with JAX's defaults and in a folder of its own."""
    flags = get_optionflags(request.config) | doctest.ELLIPSIS
    checker = _get_checker()

    def run_statements(block, page, names):
        for statement, comments in statements(block):
            code = compile(ast.Module([statement], []), page, "exec")
            with redirect_stdout(io.StringIO()) as printed:
                exec(code, names)
            said = [comment.strip().split(": ")[0] for comment in comments]
            got = printed.getvalue().splitlines()
            if got or any(re.match(r"[\d\[({'\"-]", result) for result in said):
                right = checker.check_output(tidy(said), tidy(got), flags)
                where = f"{page.name}, line {statement.lineno}"
                assert right, f"{where} prints {tidy(got)}, but says {tidy(said)}"

    def run_prompts(block, page, names):
        test = doctest.DocTestParser().get_doctest(
            block, names, page.name, str(page), 0
        )
        runner = doctest.DocTestRunner(checker, verbose=False, optionflags=flags)
        with redirect_stdout(io.StringIO()) as complaint:
            failed = runner.run(test, clear_globs=False).failed
        assert not failed, complaint.getvalue()
        names.update(test.globs)

    def run_page(page):
        names = {"__name__": "__main__"}
        for block in blocks(page):
            (run_prompts if has_prompts(block) else run_statements)(block, page, names)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield run_page


# JAX 0.8 tells what make_mesh will do from 0.9 on, which suits the pages as well.
@pytest.mark.filterwarnings("ignore:The default axis_types:DeprecationWarning")
@every_page
def test_every_block_runs_and_prints_what_it_says(page, read):
    read(page)


@every_page
def test_no_block_is_passed_over(page):
    fences = re.findall(r"^ *(?:```|~~~).*$", page.read_text(encoding="utf-8"), re.M)
    assert set(fences) <= {"```python", "```text", "```"}


def bound_and_wanted(block):
    """The names that a block gives to those below it, and wants from those above."""
    code = doctest.script_from_examples(block) if has_prompts(block) else block
    tables = [symtable.symtable(code, "block", "exec")]
    bound = {s.get_name() for s in tables[0].get_symbols() if s.is_local()}
    wanted = set()
    for table in tables:
        tables += table.get_children()
        wanted |= {s.get_name() for s in table.get_symbols() if s.is_global()}
    return bound, wanted - bound - vars(builtins).keys()


@every_page
def test_a_block_can_be_copied_without_those_between_it_and_the_first(page):
    """Unless it says that it continues the block above."""
    first, above = set(), set()
    for block in blocks(page):
        bound, wanted = bound_and_wanted(block)
        if "# continues the block above" not in block:
            above = set()
        assert wanted <= first | above
        assert not bound & first, "the blocks below want what the first one gave"
        first, above = first or bound, above | bound


def page_of(code, tmp_path):
    """A page whose first block, from its third line on, is this code."""
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n```python\n{code}\n```\n")
    return page


@pytest.mark.parametrize(
    "code",
    [
        "print(0.126)  # 0.13: a comment after a colon",
        "for x in 1.04, 2:\n    print(x)  # 1.0, 2",
        "for x in 1, 2:\n    print(x)\n# 1: one\n# 2: two",
        "print([1,\n  2])  # [1, 2]\nprint(3)  # 3",
        "print('[ 1.  10. ] and more')\n# [1. 10.] ...",
        "x = 1  # what prints nothing may have any comment",
        "x = 1\n```\n```python\nprint(x)  # 1",
        ">>> x = 2.5\n\n```\n```python\n>>> x\n2.5",
    ],
)
def test_a_page_that_is_right_passes(code, read, tmp_path):
    read(page_of(code, tmp_path))


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("print(2)  # 3", "line 3 prints 2, but says 3"),
        ("print(0.126)  # 0.14", "prints 0.126, but says 0.14"),
        ("\nfor x in 1, 2:\n    print(x)  # 1, 3", "line 4 prints 1, 2, but says 1, 3"),
        ("print(2)\n# 2\n# 3", "prints 2, but says 2, 3"),
        ("print(2)\n\n# 2", "prints 2, but says "),
        ("print(2)  # two", "prints 2, but says two"),
        ("2  # 2", "prints , but says 2"),
        (">>> 2\n3", "line 3, in page.md"),
    ],
)
def test_a_page_that_is_wrong_is_refused(code, complaint, read, tmp_path):
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        read(page_of(code, tmp_path))


def test_a_name_that_no_block_defines_is_refused(read, tmp_path):
    page = page_of("x = 1\nprint(y)  # 1", tmp_path)
    with pytest.raises(NameError, match="'y'") as refused:
        read(page)
    assert str(refused.traceback[-1].path) == str(page)
    assert refused.traceback[-1].lineno == 3  # which pytest counts from 0
