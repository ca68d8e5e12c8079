"""Writes the formulas of the site as MathML, which browsers draw without a script."""

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)


def as_mathml(formula: re.Match[str]) -> str:
    """Return a formula of the extension `arithmatex` in MathML, within its element."""
    tag = formula["tag"]
    display = "inline" if tag == "span" else "block"
    drawn = convert(html.unescape(formula["tex"]), display=display)
    return f'<{tag} class="arithmatex" data-search-exclude>{drawn}</{tag}>'


def on_page_content(content: str, **_) -> str:
    """Replace every formula of a page; MkDocs calls this once for each page."""
    return FORMULA.sub(as_mathml, content)
