"""The benchmark of strategies and limits, at its reduced size."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.stability import command, measures, summary
from benchmarks.stability.pair import REDUCED
from benchmarks.stability.runner import Runner, outcomes, pairs_of
from benchmarks.stability.strategies import STRATEGIES
from benchmarks.stability.tasks import tasks

ROOT = Path(__file__).parent.parent
TASK = "regression"


def measured(folder, strategy):
    """What the reduced run of one strategy writes."""
    runner = Runner(folder, None, REDUCED)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert runner((TASK, strategy)).startswith(f"{TASK} {strategy}: ")
    return json.loads((folder / TASK / f"{strategy}.json").read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with the reduced runs of two strategies, and what is in it."""
    folder = tmp_path_factory.mktemp("results")
    return folder, {name: measured(folder, name) for name in ("none", "global")}


def test_clipping_rescues_runs_that_explode(results):
    """At a rate of 1 each step of SGD overshoots; one of norm 1 does not."""
    failed = tasks()[TASK].failed
    for variant in tasks()[TASK].variants:
        none, clipped = (
            np.array(
                results[1][name]["variants"][variant]["default"]["score"][-1], float
            )
            for name in ("none", "global")
        )
        assert (measures.capped(none, failed) == failed).all(), variant
        assert (measures.capped(clipped, failed) < failed / 2).all(), variant


def test_a_file_says_what_was_run_and_where(results):
    for name, found in results[1].items():
        assert (found["task"], found["strategy"]) == (TASK, name)
        assert found["steps"] == tasks()[TASK].steps // 10
        assert found["size"]["seeds"] == REDUCED.seeds
        assert {"jax", "optax", "optaxclip", "python"} <= set(found["versions"])
        assert found["machine"]["device"]
        assert found["command"].startswith("python -m benchmarks.stability")
        trials, rates = len(STRATEGIES[name].trials), len(found["rates"])
        for cases in found["variants"].values():
            assert len(cases["tuning"]) == trials
            for kind, limit in cases["limits"].items():
                assert limit is None or kind == "default" or limit in found["trials"]
                assert np.shape(cases[kind]["score"]) == (rates, REDUCED.seeds)
                for share in ("clipped", "spikes"):
                    assert np.shape(cases[kind][share]) == (rates,)
                    assert all(0 <= x <= 1 for x in cases[kind][share])


def test_nothing_is_clipped_without_a_clipper(results):
    none, clipped = (results[1][name]["variants"] for name in ("none", "global"))
    for variant, cases in none.items():
        assert cases["limits"] == {"default": None}
        assert not any(cases["default"]["clipped"])
        assert any(clipped[variant]["default"]["clipped"])


def test_the_same_seeds_give_the_same_scores(results, tmp_path):
    once, again = results[1]["global"], measured(tmp_path, "global")
    assert once["variants"] == again["variants"]


def test_only_what_is_missing_is_run(results, monkeypatch, capsys):
    folder = results[0]
    before = (folder / TASK / "none.json").stat().st_mtime_ns
    arguments = ["--reduced", "--output", str(folder), "--tasks", TASK]
    arguments += ["--strategies", "none", "global"]
    monkeypatch.setattr(sys, "argv", ["stability", *arguments])
    command.main()
    assert capsys.readouterr().out == "2 of 2 are there.\n"
    assert (folder / TASK / "none.json").stat().st_mtime_ns == before
    runner = Runner(folder, None, REDUCED)
    assert runner.missing([(TASK, "none"), (TASK, "agc")]) == [(TASK, "agc")]
    assert {file.suffix for file in (folder / TASK).iterdir()} == {".json"}


def test_a_run_that_breaks_is_told_and_does_not_stop_the_others(capsys):
    pairs: list[Any] = [("a", "b"), None]
    assert dict(outcomes("".join, pairs, jobs=1)) == {("a", "b"): "ab", None: None}
    assert "TypeError" in capsys.readouterr().err


def test_tables_and_pictures_are_made_from_the_files(results, monkeypatch):
    folder = results[0]
    monkeypatch.setattr(command.pictures, "draw_maps", lambda *_: None)
    command.write_figures(folder)
    page = (folder / "README.md").read_text()
    cases = results[1]["global"]["variants"]["skewed noise"]
    scores = np.array(cases["default"]["score"], float)
    assert f"{np.median(scores, 1).min():.3g}" in page
    assert (folder / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_results_of_another_task_are_not_mixed_up(results):
    folder, found = results
    told = summary.rows(folder, tasks())
    assert {row.strategy for row in told} == set(found)
    for row in told:
        case = found[row.strategy]["variants"][row.variant][row.kind]
        place = found[row.strategy]["rates"].index(row.rate)
        assert row.clipped == case["clipped"][place]
        assert row.median == np.median(case["score"][place])
        assert row.lower <= row.median <= row.upper


def test_every_strategy_is_for_some_task_and_has_its_default_among_its_trials():
    pairs = pairs_of(list(tasks()), list(STRATEGIES))
    assert {strategy for _, strategy in pairs} == set(STRATEGIES)
    assert {task for task, _ in pairs} == set(tasks())
    assert ("wgan", "weights") in pairs
    assert (TASK, "weights") not in pairs
    for name, strategy in STRATEGIES.items():
        assert len(strategy.trials) in (0, 5), name
        assert list(strategy.trials) == sorted(strategy.trials)
        if strategy.trials and strategy.default is not None:
            assert strategy.default in strategy.trials, name


def test_the_measures_of_scores():
    scores = np.array([[0.1, np.nan, np.inf], [0.2, 0.3, 7.0]])
    np.testing.assert_array_equal(
        measures.capped(scores, 1.0), [[0.1, 1.0, 1.0], [0.2, 0.3, 1.0]]
    )
    # At the second rate, the best, one of three runs failed, and above it all.
    rates = np.array([[2.0, 2.0, 2.0], [0.2, 0.3, 7.0], [np.nan, np.inf, 1.0]])
    assert measures.diverged(rates, 1.0) == pytest.approx(4 / 6)
    medians, rates = np.array([0.9, 0.1, 0.15, 0.2, 0.5]), np.array([1, 3, 10, 30, 100])
    assert measures.usable(medians, rates, good=0.2) == 10.0
    assert measures.usable(medians, rates, good=0.5) == pytest.approx(100 / 3)
    assert measures.usable(medians, rates, good=0.1) == 1.0
    assert measures.usable(medians, rates, good=0.05) == 0.0
    assert measures.sensitivity(medians) == pytest.approx(medians.mean() - 0.1)
    trials = np.array([[[0.4], [0.2]], [[0.9], [0.1]], [[0.3], [0.1]], [[2.0], [0.2]]])
    assert measures.best_trial(trials, failed=1.0) == 2


def test_a_spike_is_seven_deviations_above_the_last_hundred_losses():
    losses = np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32)
    losses[1, [150, 200]] = 30.0
    losses[2, 250:] = np.nan
    shares = measures.spike_share(losses)
    np.testing.assert_allclose(shares * 200, [0, 2, 50], atol=1e-9)


def test_the_pictures_of_the_page_are_those_of_the_results():
    for shown, drawn in ("profile", "profile"), ("recurrent", "recurrent50_clean"):
        page = ROOT / "docs" / "images" / f"stability_{shown}.png"
        assert page.read_bytes() == (command.RESULTS / f"{drawn}.png").read_bytes()
