"""The numbers of docs/evidence.md and docs/choosing.md are those of the runs."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stability import command, summary, tables
from benchmarks.stability.tasks import tasks

DOCS = Path(__file__).parent.parent / "docs"
FOLDERS = [command.RESULTS, command.RESULTS.parent / "other_seeds"]
NUMBER = r"(\d+(?:\.\d+)?)"
SPREAD = re.compile(rf"{NUMBER}(%?)\s+\({NUMBER}\s+to\s+{NUMBER}\)")
NAMES = {
    "no clipping": "none",
    "clip_tensor_norm": "tensor",
    "clipped_grad": "per_example",
    "clip_global_norm": "global",
    "soft_clip_global_norm": "soft",
    "quantile_clip": "quantile",
    "clip_unit_norm": "unit",
    "clip_singular_values": "spectral",
    "clip_trust_ratio": "trust_ratio",
    "clip_value": "value",
    "spam_clip": "spam",
}


@pytest.fixture(scope="module")
def found():
    return {folder: summary.rows(folder, tasks()) for folder in FOLDERS}


def cells_of(text):
    """The cells of the lines of all tables in a text."""
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def table_after(page, title):
    """The cells of the table below a title, without its head."""
    _, _, rest = page.partition(f"## {title}\n")
    return cells_of(rest.partition("\n## ")[0])[2:]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_tables_are_what_the_files_of_the_runs_say(found, folder):
    written = (folder / "README.md").read_text()
    assert written == tables.page(folder, found[folder], tasks())


@pytest.mark.parametrize("page", ["evidence.md", "choosing.md"])
def test_every_spread_that_the_guide_quotes_is_that_of_a_run(found, page):
    spreads = np.array([row[6:9] for rows in found.values() for row in rows], float)
    tabled = (command.RESULTS / "README.md").read_text().splitlines()
    lines = (DOCS / page).read_text().splitlines()
    quoted = SPREAD.findall("\n".join(line for line in lines if line not in tabled))
    assert len(quoted) > 10
    for median, percent, lower, upper in quoted:
        told = np.array([median, lower, upper], float)
        digits = [len(x.partition(".")[2]) for x in (median, lower, upper)]
        unit = 0.01 if percent else 1.0
        # A file has four digits, so what is told may be rounded twice.
        slack = 0.51 * unit / 10.0 ** np.array(digits)
        near = (np.abs(spreads - told * unit) <= slack).all(axis=1)
        assert near.any(), f"{page}: {median}{percent} ({lower} to {upper})"


def test_how_often_each_is_near_the_best_is_told_as_it_was(found):
    rows, guide = found[command.RESULTS], (DOCS / "evidence.md").read_text()
    counted = {name: cells for name, *cells in cells_of(tables.standing(rows, tasks()))}
    for name, *told in table_after(guide, "How often each is near the best"):
        plain = name.split(",")[0].strip("`")
        tuned, default, _, _, same, wider = counted[NAMES.get(plain, plain)]
        expected = [tuned, default or "no default", same, wider.partition(",")[0]]
        assert told == [cell.removesuffix(" of 21") for cell in expected], name


def test_counts_and_ranges_of_rates_are_told_as_they_were(found):
    rows, guide = found[command.RESULTS], (DOCS / "choosing.md").read_text()
    near = summary.ratios(rows, tasks(), "default")
    names = ("aggc", "quantile", "adagc", "zclip", "autoclip")
    counts = [sum(x <= 1.1 for x in near[name].values()) for name in names]
    assert "{}, {}, {}, {} and {} of 21 cases".format(*counts) in guide
    adagn = np.array(list(near["adagn"].values()))
    told = f"of 2 of the best in {sum(adagn <= 2)} of 21 cases, within 1.1 in "
    assert f"{told}{sum(adagn <= 1.1)} |" in guide
    width = {(row.task, row.strategy): f"{row.usable:.0f}" for row in rows}
    tensor, whole, spectral = (
        width["convolutional32", name] for name in ("tensor", "global", "spectral")
    )
    told = f"a factor of {tensor} when clipped by tensor, {whole} when clipped as a"
    assert f"good learning rates span {told} whole" in guide
    told = f"a factor of {spectral}; by the norm of the whole, {whole} "
    assert f"good rates span {told}" in guide
    assert f"that span a factor of {width['recurrent50', 'clippy']}; without" in guide


def test_how_far_other_seeds_agree_is_told_as_it_was(found):
    first, second = ({row[:4]: row for row in found[folder]} for folder in FOLDERS)
    fixed, overlap, tuned, same = ({"regression": 0, "control": 0} for _ in range(4))
    for place, row in second.items():
        if row.kind == "default":
            fixed[row.task] += 1
            near = max(row.lower, first[place].lower) <= min(
                row.upper, first[place].upper
            )
            overlap[row.task] += near
        else:
            tuned[row.task] += 1
            same[row.task] += row.limit == first[place].limit
    guide = " ".join((DOCS / "evidence.md").read_text().split())
    what = "scores of defaults and strategies without a limit"
    assert f"of {fixed['regression']} {what}, {overlap['regression']} have" in guide
    assert f"overlap in {overlap['control']} of {fixed['control']} such scores" in guide
    every = f"only {sum(same.values())} of {sum(tuned.values())} cases"
    assert f"{every}, {same['control']} of {tuned['control']} in the control" in guide


@pytest.mark.parametrize(
    "title",
    [
        "What share is clipped at the best limit",
        "Is 0.5 too tight?",
        "What a step costs",
    ],
)
def test_the_other_tables_of_the_guide_are_those_of_the_runs(title):
    tabled = cells_of((command.RESULTS / "README.md").read_text())
    told = table_after((DOCS / "evidence.md").read_text(), title)
    assert len(told) > 2
    assert all(cells in tabled for cells in told)


def test_what_the_guide_concludes_holds_in_the_runs(found):
    score = {row[:4]: row.median for row in found[command.RESULTS]}

    def of(case, strategy, kind="default"):
        task, _, variant = case.partition(": ")
        return score[task, variant or "clean", strategy, kind]

    heavy, skewed = "regression: stable noise 1.2", "regression: skewed noise"
    spikes, bright = "transformer: spikes of 1000", "labels: 5% wrong and bright"
    # Clipping helps against heavy tails, spikes and steps that are too long.
    assert of(heavy, "none") > 10 * of(heavy, "global")
    assert of(spikes, "global") < 1.1 * of("transformer", "none") < of(spikes, "none")
    assert of("convolutional256", "none") > 2 * of("convolutional256", "global")
    # A constant limit leaves a bias, half of which error feedback takes away.
    assert of(skewed, "global") > 3 * of(skewed, "none")
    assert of(skewed, "global") > 2 * of(skewed, "error_feedback")
    assert of("regression: a rare feature", "global") > 2 * of(
        "regression: a rare feature", "none"
    )
    # Broken examples are found one by one, and a critic is flattened by its weights.
    assert of(bright, "per_example") < of(bright, "global", "tuned") / 3
    critics = [x for key, x in score.items() if key[0] == "wgan" and "weight" in key[2]]
    others = [x for key, x in score.items() if key[0] == "wgan"]
    assert max(critics) < min(x for x in others if x not in critics) / 2
    # In the control nothing helps much, and nothing hurts but hyperball.
    control = {key[2:]: x for key, x in score.items() if key[0] == "control"}
    assert control.pop(("hyperball", "default")) > 0.05
    assert max(control.values()) < 0.025
    assert min(control.values()) > 0.015
