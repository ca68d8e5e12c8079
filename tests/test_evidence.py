"""The numbers of docs/evidence.md and docs/choosing.md are those of the runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stability import command, summary, tables
from benchmarks.stability.measures import capped
from benchmarks.stability.strategies import STRATEGIES
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
    cases = len(summary.shared(rows))
    counted = {name: cells for name, *cells in cells_of(tables.standing(rows, tasks()))}
    for name, *told in table_after(guide, "How often each is near the best"):
        plain = name.split(",")[0].strip("`")
        tuned, default, _, _, same, wider = counted[NAMES.get(plain, plain)]
        expected = [tuned, default or "no default", same, wider.partition(",")[0]]
        assert told == [cell.removesuffix(f" of {cases}") for cell in expected], name


def test_counts_and_ranges_of_rates_are_told_as_they_were(found):
    rows, guide = found[command.RESULTS], (DOCS / "choosing.md").read_text()
    cases = len(summary.shared(rows))
    near = summary.ratios(rows, tasks(), "default")
    names = ("aggc", "quantile", "adagc", "zclip", "autoclip")
    counts = [sum(x <= 1.1 for x in near[name].values()) for name in names]
    told = "{}, {}, {}, {} and {}".format(*counts)
    assert f"near the best in {told} of {cases} cases" in guide
    adagn = np.array(list(near["adagn"].values()))
    told = f"of 2 of the best in {sum(adagn <= 2)} of {cases} cases, within 1.1 in "
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


def test_what_the_guide_says_of_all_cases_is_told_as_it_was(found):
    rows = found[command.RESULTS]
    guide = " ".join((DOCS / "evidence.md").read_text().split())
    shared = summary.shared(rows)
    cases, names = len(shared), [name for name in STRATEGIES if name != "none"]
    names = [name for name in names if STRATEGIES[name].only != ("cifar10",)]
    told = f"{len(names)} strategies, two of them for one task alone, and no clipping, "
    told += f"on {cases} cases of {len({task for task, _ in shared})} small tasks"
    assert told in guide
    counted = {name: cells for name, *cells in cells_of(tables.standing(rows, tasks()))}
    near, same = counted["autoclip"][1].split()[0], counted["autoclip"][4]
    told = f"in {same} cases, but within 1.1 of the best strategy in {near};"
    assert f"within 1.1 of the best percentile {told}" in guide
    twice, widths = counted["adagn"][3], re.findall(r"\d+", counted["adagn"][5])
    told = f"the range was wider in {widths[0]} and narrower in {widths[1]}."
    assert f"`adagn` was within twice the best in {twice} cases; {told}" in guide
    score = {row[:4]: row for row in rows}
    for kind in ("default", "tuned"):
        both = [[score[*case, x, kind] for x in ("soft", "global")] for case in shared]
        overlap = sum(max(x.lower, y.lower) <= min(x.upper, y.upper) for x, y in both)
        assert f"in all {overlap} cases" in (DOCS / "choosing.md").read_text()


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


def by_rate(task, strategy, kind):
    """The rates, and the scores of (rates, seeds) of a task's clean variant."""
    file = command.RESULTS / task / f"{strategy}.json"
    said = json.loads(file.read_text())
    scores = summary.array(said["variants"]["clean"][kind]["score"])
    return said["rates"], capped(scores, tasks()[task].failed)


def test_scores_at_single_rates_are_told_as_they_were():
    guide = " ".join((DOCS / "evidence.md").read_text().split())
    rates, images = by_rate("cifar10", "none", "default")
    highest = [
        np.median(by_rate("cifar10", *one)[1][-1])
        for one in (("trust_ratio", "tuned"), ("clippy", "default"))
    ]
    told = "had {:.1%} and {:.1%} at the highest rate, where no clipping had {:.1%}"
    assert told.format(*highest, np.median(images[-1])) in guide
    one, half = (
        np.median(by_rate("cifar10", *which)[1][rates.index(0.01)])
        for which in (("none", "default"), ("global_0.5", "default"))
    )
    told = f"{half:.1%} at 0.5 and {one:.1%} without]"
    assert told in (DOCS / "choosing.md").read_text()
    rates, narrow = by_rate("transformer_bf16", "none", "default")
    _, wide = by_rate("transformer", "none", "default")
    told = [
        f"{np.median(x):.1f} in place of {np.median(y):.1f} at {rate:g}"
        for rate, x, y in zip(rates[1:3], narrow[1:3], wide[1:3], strict=True)
    ]
    assert " and ".join(told) in guide
    failed = [
        (by_rate(task, strategy, "default")[1][-1] >= 30).sum()
        for task in ("transformer_bf16", "transformer")
        for strategy in ("none", "global")
    ]
    told = "{} and {} of 10 seeds failed, where in float32 {} did with either"
    assert told.format(*failed) in guide
    assert failed[2] == failed[3]
    # At these rates bfloat16 costs with every strategy.
    for file in (command.RESULTS / "transformer_bf16").glob("*.json"):
        kind = "default" if STRATEGIES[file.stem].default else "tuned"
        kind = kind if STRATEGIES[file.stem].trials else "default"
        _, narrow = by_rate("transformer_bf16", file.stem, kind)
        _, wide = by_rate("transformer", file.stem, kind)
        assert (np.median(narrow, 1) >= np.median(wide, 1))[1:3].all(), file.stem


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
    # Small limits on parts learn 100 symbols, and those on the whole do not.
    long = {key[2:]: x for key, x in score.items() if key[0] == "recurrent100"}
    assert min(long, key=lambda one: long[one]) == ("spectral", "tuned")
    assert min(x for key, x in long.items() if key[0] in ("none", "global")) == 0.7
    learned = {
        row.strategy: round(10 * row.solved)
        for row in found[command.RESULTS]
        if row.task == "recurrent100" and row.solved > 0
    }
    assert learned == {"spectral": 3, "value": 2, "unit": 1}
    # On CIFAR-10 all are alike, and in bfloat16 all are as in float32.
    images = {key[2:]: x for key, x in score.items() if key[0] == "cifar10"}
    assert min(images, key=lambda one: images[one]) == ("spectral", "tuned")
    assert max(images.values()) < 1.085 * min(images.values())
    pairs = [
        (x, score["transformer", *key[1:]])
        for key, x in score.items()
        if key[0] == "transformer_bf16"
    ]
    assert len(pairs) == 40
    assert all(abs(narrow / wide - 1) < 0.04 for narrow, wide in pairs)
    # In the control nothing helps much, and nothing hurts but hyperball.
    control = {key[2:]: x for key, x in score.items() if key[0] == "control"}
    assert control.pop(("hyperball", "default")) > 0.05
    assert max(control.values()) < 0.025
    assert min(control.values()) > 0.015
