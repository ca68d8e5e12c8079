"""What is said of the package in several places is the same in all of them."""

import re
import tomllib
from pathlib import Path

import optaxclip
from optaxclip import plotting

ROOT = Path(__file__).parent.parent


def test_the_citation_and_the_changelog_name_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {project['version']}\n" in citation
    (newest, *_) = re.findall(r"^## \[(.*?)\]", changes, re.MULTILINE)
    assert newest == project["version"]


def test_readme_links_work_on_the_package_index_too():
    """There is no folder there that a relative link could start from."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = project["urls"]["Repository"]
    raw = ours.replace("//github.com", "//raw.githubusercontent.com")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((.*?)\)", readme)
    pictures = re.findall(r'src="(.*?)"', readme)
    assert links
    assert pictures
    for link in links + pictures:
        assert link.startswith("https://"), link
        if link.startswith((ours, raw)):
            file = re.sub(f"^({ours}/blob|{raw})/main/", "", link).partition("#")[0]
            assert (ROOT / file).is_file(), link


def quoted(page):
    """The names that a page shows as code, without their arguments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return set(re.findall(r"`(?:\w+\.)*(\w+)(?:\(.*?\))?`", text))


def test_the_readme_and_the_idea_name_every_strategy():
    files = (Path(optaxclip.__file__).parent / "strategies").glob("*.py")
    code = "".join(map(Path.read_text, files))
    written = set(re.findall(r"^def ([a-z]\w+)", code, re.MULTILINE))
    assert "zclip" in written
    for page in ("README.md", "docs/idea.md"):
        assert written <= quoted(page), page


def test_every_public_name_has_one_entry_in_the_api_and_its_index_names_all_entries():
    pages = [file.read_text(encoding="utf-8") for file in (ROOT / "docs/api").glob("*")]
    entries = [
        entry.rpartition(".")[2]
        for page in pages
        for entry in re.findall(r"^::: optaxclip\.(\S+)$", page, re.MULTILINE)
    ]
    public = {name for name in optaxclip.__all__ if callable(getattr(optaxclip, name))}
    public |= {*optaxclip.tuning.__all__, *plotting.__all__}
    assert public <= set(entries)
    assert len(entries) == len(set(entries))
    assert set(entries) - {"responses"} <= quoted("docs/api/index.md")
