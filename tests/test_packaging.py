"""What is said of the package in several places is the same in all of them."""

import re
import tomllib
from pathlib import Path

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
    links = re.findall(r"\]\((.*?)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert link.startswith("https://"), link
        if link.startswith(ours):
            file = link.removeprefix(f"{ours}/blob/main/").partition("#")[0]
            assert (ROOT / file).is_file(), link
