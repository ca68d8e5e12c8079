"""Makes the site work without the network: its pages load nothing from elsewhere."""

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)


def as_mathml(formula: re.Match[str]) -> str:
    """Return a formula as MathML, which browsers draw without a script."""
    tag = formula["tag"]
    display = "inline" if tag == "span" else "block"
    drawn = convert(html.unescape(formula["tex"]), display=display)
    return f'<{tag} class="arithmatex" data-search-exclude>{drawn}</{tag}>'


def on_page_content(content: str, **_) -> str:
    """Replace the formulas of a page; MkDocs calls this once for each."""
    return FORMULA.sub(as_mathml, content)


def on_post_page(output: str, **_) -> str:
    """Keep the link to the repository from asking GitHub for the number of stars."""
    return output.replace(' data-md-component="source"', "")
