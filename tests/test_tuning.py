"""Choosing a limit: histories, suggestions, verdicts, and sweeps."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from unchecked import unchecked

import optaxclip
from optaxclip import tuning
from optaxclip.tuning import History, suggest_limit, verdict

PARAMS = {"body": {"kernel": jnp.ones(3), "bias": jnp.ones(1)}, "head": jnp.ones(2)}
LEAVES = ("body/bias", "body/kernel", "head")


def told(norms, limit, clipped=None, *, after=None, of_params=False):
    """The history of a clipper that shrinks."""
    norms, limit = np.asarray(norms, float), np.asarray(limit, float)
    limit = np.broadcast_to(limit, norms.shape)
    if after is None:
        after = np.where(norms > limit, limit, norms)
    if clipped is None:
        clipped = (~(norms <= limit) & np.isfinite(limit)).reshape(len(norms), -1)
        clipped = clipped.mean(axis=1)
    fields = {"pre_norm": norms, "post_norm": after, "limit": limit}
    fields["clipped_fraction"] = np.asarray(clipped, float)
    if of_params:
        fields["of_params"] = np.ones(len(norms), np.int32)
    return History.from_scan({f"clip/{k}": v for k, v in fields.items()})


def reports_of(transformation, sizes, names=None):
    """The reports of some steps, the updates of which are multiples of PARAMS."""
    state = transformation.init(PARAMS)
    update = jax.jit(transformation.update)
    for size in sizes:
        updates = jax.tree.map(lambda x, size=size: size * x, PARAMS)
        _, state = update(updates, state, PARAMS)
        yield optaxclip.report(state, names=names)


CHAIN = optax.chain(
    optaxclip.clip_tensor_norm(1.0),
    optaxclip.skip_nonfinite(optaxclip.clip_global_norm(1.0)),
)
SIZES = (0.5, np.nan, 2.0, 0.25)


@pytest.fixture(scope="module")
def reports():
    return list(reports_of(CHAIN, SIZES, names=PARAMS))


@pytest.fixture
def history(reports):
    history = History()
    for report in reports:
        history.append(report)
    return history


def test_a_history_gives_back_what_was_appended_by_name_and_field(history, reports):
    assert len(history) == 4
    assert history.names == ("clip_tensor_norm", "skip_nonfinite", "clip_global_norm")
    assert history.groups("clip_tensor_norm") == LEAVES
    assert history.groups("clip_global_norm") == ("",)
    wanted = [
        [r[f"clip_tensor_norm/pre_norm/{leaf}"] for leaf in LEAVES] for r in reports
    ]
    np.testing.assert_array_equal(history["clip_tensor_norm"]["pre_norm"], wanted)
    np.testing.assert_array_equal(history["skip_nonfinite"]["skipped"], [0, 1, 0, 0])
    assert list(history.columns) == list(reports[0])


def test_vectors_and_names_tell_the_same(history):
    vectors = History()
    for report in reports_of(CHAIN, SIZES):
        vectors.append(report)
    for name in history.names:
        for field, column in history[name].items():
            np.testing.assert_array_equal(vectors[name][field], column)
    assert vectors.groups("clip_tensor_norm") == ("0", "1", "2")


def test_a_path_or_a_name_may_look_like_a_field():
    columns = {
        "a/b/pre_norm/norm/scale": np.ones(2),
        "a/b/pre_norm/x/limit": np.ones(2),
    }
    history = History.from_scan(columns | {"a/b/limit": np.ones(2), "loss": np.ones(2)})
    assert history.names == ("a/b",)
    assert history.groups("a/b") == ("norm/scale", "x/limit")
    assert history["a/b"]["pre_norm"].shape == (2, 2)


def test_the_whole_and_the_parts_that_watch_measures_are_two_fields():
    history = History()
    watched = optaxclip.watch(params=False)
    for report in reports_of(watched, (1.0,), names=PARAMS):
        history.append(report)
    fields = history["watch"]
    assert fields["update_norm"].shape == (1,)
    assert fields["update_norm/each"].shape == (1, 3)
    assert history.groups("watch") == LEAVES


def test_a_report_outlives_the_donated_state_it_was_part_of():
    clip = optaxclip.clip_global_norm(1.0)
    step = jax.jit(clip.update, donate_argnums=1)
    state, history = clip.init(jnp.zeros(1)), History()
    for size in range(250):
        _, state = step(jnp.full(1, float(size)), state)
        history.append(optaxclip.report(state))
    np.testing.assert_array_equal(history["clip_global_norm"]["pre_norm"], range(250))


def test_a_history_survives_a_file_bit_by_bit(history, tmp_path):
    history.to_jsonl(tmp_path / "run.jsonl")
    read = History.from_jsonl(str(tmp_path / "run.jsonl"))
    assert list(read.columns) == list(history.columns)
    for key, column in history.columns.items():
        np.testing.assert_array_equal(read.columns[key], column)
    assert str(read) == str(history)


@pytest.mark.parametrize("kind", [bool, np.bool_, jnp.bool_])
def test_a_guard_may_report_bools(kind, tmp_path):
    history = History()
    for skipped in False, True, False:
        history.append({"guard/skipped": kind(skipped)})
    assert history.summary()["guard"].skipped == pytest.approx(1 / 3)
    history.to_jsonl(tmp_path / "run.jsonl")
    read = History.from_jsonl(tmp_path / "run.jsonl")
    np.testing.assert_array_equal(read["guard"]["skipped"], [False, True, False])


def test_a_file_is_json_also_where_numbers_are_not_finite(tmp_path):
    column = np.array([[np.inf, 1], [-np.inf, np.nan]])
    History.from_scan({"a/norm": column}).to_jsonl(tmp_path / "run.jsonl")

    def refuse(constant):
        raise ValueError(constant)

    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=refuse) for line in lines]
    assert parsed[1] == {"a/norm": ["-Infinity", "NaN"]}
    read = History.from_jsonl(tmp_path / "run.jsonl")
    np.testing.assert_array_equal(read["a"]["norm"], column)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1]",
        b"3",
        b"",
        b'{"a/norm": "high"}',
        b'{"a/norm": NaN}',
        b'{"a/norm": null}',
        b'{"a/norm": [1, [2]]}',
        b'{"a/norm": {"b": 1}}',
        b'{"a/norm": "\xff"}',
        b'{"b/norm": 1.0}',
        b'{"a/norm": [1.0]}',
    ],
)
def test_a_bad_file_is_one_sentence_that_names_the_line(line, tmp_path):
    file = tmp_path / "run.jsonl"
    file.write_bytes(b'{"a/norm": 1.0}\n' + line + b"\n")
    with pytest.raises(ValueError, match="line 2 of ") as refused:
        History.from_jsonl(file)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize(
    ("report", "complaint"),
    [
        ([1.0], "what optaxclip.report returned"),
        ({}, "is empty"),
        ({"a/norm": "1"}, "numbers and arrays, not '1' at a/norm"),
        ({"a/norm": np.array("1")}, "numbers and arrays, not .* at a/norm"),
        ({"a/norm": jnp.ones(3)}, "differs at a/norm"),
        ({"b/norm": 1.0}, "differs at a/norm"),
    ],
)
def test_what_is_no_report_or_another_one_is_refused(report, complaint):
    history = History()
    history.append({"a/norm": 1.0})
    with unchecked(), pytest.raises((TypeError, ValueError), match=complaint):
        history.append(report)


@pytest.mark.parametrize("key", [1, None, ("a", "b")])
def test_keys_that_are_not_strings_are_refused_at_once(key):
    with unchecked(), pytest.raises(TypeError, match="must have strings as keys"):
        History().append({key: 2.0})
    with unchecked(), pytest.raises(TypeError, match="must have strings as keys"):
        History.from_scan({key: np.ones(2)})


def test_under_jit_a_history_says_what_to_do_instead():
    with pytest.raises(TypeError, match="append it outside"):
        jax.jit(lambda x: History().append({"a/norm": x}))(1.0)


def test_a_scan_without_steps_in_front_is_refused():
    for stacked in ({"a/norm": np.ones(())}, {"a/x": np.ones(2), "a/y": np.ones(3)}):
        with pytest.raises(ValueError, match="leading axis of steps"):
            History.from_scan(stacked)


def test_a_summary_counts_and_ranks_as_numpy_does():
    norms = np.exp(np.random.default_rng(0).normal(size=400))
    norms[[5, 50]] = np.nan, np.inf
    total = told(norms, 2.0).summary(since=10)["clip"]
    later = norms[10:]
    finite = later[np.isfinite(later)]
    assert total.clipped == pytest.approx(np.mean(~(later <= 2)))
    assert (total.steps, total.not_finite, total.limit) == (390, 1, 2)
    wanted = np.quantile(finite, (0.5, 0.9, 0.99))
    np.testing.assert_allclose((total.p50, total.p90, total.p99), wanted)


def test_a_summary_has_each_group_and_shows_the_most_clipped():
    norms = np.tile(np.linspace(0.1, 2, 12), (5, 1))
    summary = told(norms, 1.0).summary()
    assert summary["clip/0"].clipped == 0
    assert summary["clip/11"].clipped == 1
    lines = str(summary).splitlines()
    assert len(lines) == 1 + 1 + 10 + 1
    assert "and 2 clipped less" in lines[-1]
    assert len({line.index("5") for line in lines[1:3]}) == 1, "columns are aligned"


@pytest.mark.parametrize("since", [-1, 5])
def test_since_a_step_that_there_is_not_is_refused(since):
    with pytest.raises(ValueError, match="below the number of steps, 5"):
        told(np.ones(5), 1.0).summary(since)


@pytest.mark.parametrize("since", [1.5, "a", None, True])
@pytest.mark.parametrize("look", [History.summary, verdict])
def test_since_what_is_no_number_of_steps_is_refused(look, since):
    with unchecked(), pytest.raises(TypeError, match=f"an int, not {since!r}; give"):
        look(told(np.ones(5), 1.0), since=since)
    with unchecked():
        assert look(told(np.ones(5), 1.0), since=np.int64(2))


def steps_of_nothing():
    """A generator, of which JAX warns among leaves."""
    yield {}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, "None"),
        ({"a": 1}, "a dict of 1 leaves"),
        ([{}], "a list of 0 leaves"),
        (steps_of_nothing(), "an object of type steps_of_nothing"),
        ([steps_of_nothing()], "a list of 1 leaves"),
    ],
)
def test_a_verdict_on_what_is_no_history_is_refused(given, shown):
    with unchecked(), pytest.raises(TypeError, match=f"a History, not {shown}; coll"):
        verdict(given)


def test_an_empty_history_prints():
    assert len(History()) == 0
    assert repr(History()) == "History of 0 steps of nothing"
    assert str(History()).startswith("name")
    assert verdict(History()) == {}


def test_a_history_of_no_step_and_of_several_states_at_once_is_summed_up():
    none = told(np.ones(0), 1.0, np.ones(0))
    assert np.isnan(none.summary()["clip"].clipped)
    assert verdict(none) == {"clip": "It has taken no step."}
    clip = optaxclip.clip_tensor_norm(1.0)
    states = jax.vmap(lambda _: clip.init(PARAMS))(jnp.arange(2))
    mapped = History()
    mapped.append(optaxclip.report(states, names=PARAMS))
    assert len(mapped.summary()) == 1 + 2 * 3
    assert "never acts" in verdict(mapped)["clip_tensor_norm"]


# The promise of suggest_limit, on norms like those of real runs.


def lognormal(random, steps):
    return np.exp(0.5 * random.standard_normal(steps))


def spiky(random, steps):
    norms = lognormal(random, steps)
    return np.where(random.random(steps) < 0.03, 1e6, norms)


def broken(random, steps):
    norms = lognormal(random, steps)
    norms[random.random(steps) < 0.05] = np.nan
    norms[random.random(steps) < 0.01] = np.inf
    return norms


def heavy(random, steps):
    return np.abs(random.standard_cauchy(steps))


@pytest.mark.parametrize("norms_like", [lognormal, spiky, broken, heavy])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_at_most_the_share_is_above_and_held_out_norms_agree(norms_like, share):
    random = np.random.default_rng(0)
    given, held_out = norms_like(random, 1000), norms_like(random, 20_000)
    limit = suggest_limit(given, share)
    assert share - 1 / 1000 <= np.mean(~(given <= limit)) <= share
    # Three standard deviations of a share of 1000 norms.
    assert np.mean(~(held_out <= limit)) == pytest.approx(
        share, abs=3 * np.sqrt(share * (1 - share) / 1000)
    )


@pytest.mark.parametrize(
    ("norms", "share", "limit"),
    [
        (np.arange(1, 101), 0.29, 71),  # 0.29 * 100 is a little less than 29
        ([1.0, 1.0, 1.0, 1.0], 0.1, 1.0),
        ([1.0, 2.0, 2.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0, 3.0], 0.0, 3.0),
        ([5.0], 0.1, 5.0),
        ([0.0] * 90 + list(range(1, 11)), 0.1, 9.0),  # zeros do not count
        (np.array([1, 2], np.int32), 0.5, 1.0),
        (jnp.arange(1.0, 11.0), 0.1, 9.0),
    ],
)
def test_ties_constants_and_zeros(norms, share, limit):
    assert suggest_limit(norms, share) == limit


def test_each_group_has_its_own_limit_and_one_without_gradients_none():
    norms = np.stack([np.arange(1, 11), 10 * np.arange(1, 11), np.zeros(10)], axis=1)
    np.testing.assert_array_equal(suggest_limit(norms), [9, 90, np.inf])
    np.testing.assert_array_equal(suggest_limit(told(norms, 1.0)), [9, 90, np.inf])


def test_a_history_gives_the_norms_of_its_only_clipper(history):
    assert suggest_limit(told([1.0, 2.0, 3.0], np.inf), 0.4) == 2.0
    with pytest.raises(ValueError, match="clip_tensor_norm, clip_global_norm"):
        suggest_limit(history)


@pytest.mark.parametrize(
    ("norms", "share", "complaint"),
    [
        ([1.0, np.nan], 0.1, "not finite in 50.0% of the steps, more than"),
        ([0.0, 0.0], 0.1, "one above 0"),
        ([-1.0], 0.1, "at least 0"),
        ([], 0.1, "one number a step"),
        (1.0, 0.1, "one number a step"),
        (np.ones((1, 1, 1)), 0.1, "one number a step"),
        ([[1.0, 2.0], [3.0]], 0.1, "3 leaves in rows of several lengths; give rows"),
        ([1.0], 10, "below 1"),
        ([1.0], -0.1, "at least 0"),
    ],
)
def test_norms_that_suggest_nothing_are_refused(norms, share, complaint):
    with pytest.raises(ValueError, match=complaint):
        suggest_limit(norms, share)
    with pytest.raises(TypeError, match="norms must be numbers"):
        suggest_limit(["a"])


# Verdicts.

USUAL = np.linspace(1, 2, 100)
CASES = {
    "infinite": (told(USUAL, np.inf), ["never acts", "above 1.9", "look again"]),
    "loose": (told(USUAL, 4.0), ["never acts: no norm was above 0.5 times"]),
    "guard": (told(USUAL[::-1], 1.9), ["10% of the steps: it guards"]),
    "more": (told(np.tile(USUAL[::10], 10), 1.5), ["50% of the steps: it does more"]),
    "tight": (
        told(USUAL, 0.5),
        ["all the steps: it acts like a learning rate 3 times lower", "before Adam"],
    ),
    "better": (told(USUAL, 0.5), ["A limit of 1.9 would", "look again"]),
    "zero": (told(USUAL, 0.0), ["a limit of 0 stops all learning"]),
    "dropped": (
        told(USUAL, 0.1, after=np.zeros(100)),
        ["Nothing is left of any update: all were above its limit."],
    ),
    "warm-up": (
        told(USUAL[::-1], np.where(np.arange(100) < 50, np.inf, 1.4)),
        ["no limit in the first 50 steps", "20% of the steps: it guards"],
    ),
    "spikes alone": (
        told(USUAL[::-1], np.where(USUAL[::-1] > 1.95, 0.9 * USUAL[::-1], np.inf)),
        ["It clipped 5% of the steps: it guards", "limit moves, here from 1.76 to 1.8"],
    ),
    "spikes of one group": (
        told(
            np.stack([USUAL[::-1], USUAL], 1),
            np.stack([np.where(USUAL[::-1] > 1.95, 1.9, np.inf), np.full(100, 3.0)], 1),
        ),
        ["never clipped 1, clipped 1 now and then; most of all 0, in 5% of the steps"],
    ),
    "percentile": (told(USUAL, 0.9 * USUAL), ["a learning rate 1.11", "by design"]),
    "normalized": (
        told(USUAL, 1.5, after=np.full(100, 1.5)),
        ["small norms up to its limit"],
    ),
    "band": (
        told(USUAL, 3.0, [0] * 99 + [1], after=np.maximum(USUAL, 1.1)),
        ["raised 10% of the norms"],
    ),
    "soft": (told(USUAL, 1.9, after=0.9 * USUAL), ["a soft curve"]),
    "numbers": (
        told(1.5 * USUAL, 1.0, np.full(100, 0.02)),
        [
            "2% of the numbers or units",
            "all the steps: it does more",
            "2.85 times as high would have clipped something in 10% of the steps",
        ],
    ),
    "diverged": (
        told(np.where(np.arange(100) < 60, USUAL, np.nan), 9.0),
        ["From step 60 on no step was finite: training diverged"],
    ),
    "broken": (
        told(np.where(np.arange(100) == 60, np.inf, USUAL), 9.0),
        ["1% of the steps were not finite, from step 60 on", "never acts"],
    ),
    "groups": (
        told(np.stack([USUAL / 9, USUAL, 2 * USUAL], 1), 1.95),
        ["never clipped 1, clipped 1 now and then, clipped 1 often", "most of all 2"],
    ),
    "one unlimited": (
        told(np.stack([USUAL, USUAL], 1), np.array([[1.9, np.inf]])),
        ["never clipped 1, clipped 1 now and then", "most of all 0, in 10% of the"],
    ),
    "lately": (
        told(np.sort(USUAL)[::-1], 1.8),
        ["20% of the steps", "In the last quarter it clipped none"],
    ),
    "weights": (
        told(USUAL, 0.5, of_params=True),
        ["it holds the parameters there"],
    ),
    "spheres": (
        told(USUAL, 1.5, after=np.full(100, 1.5), of_params=True),
        ["small norms up to its limit", "the parameters stay on spheres"],
    ),
    "no weights": (
        told(USUAL, 0.0, of_params=True),
        ["a limit of 0 makes them all 0"],
    ),
}


@pytest.mark.parametrize(("history", "said"), CASES.values(), ids=CASES)
def test_a_verdict_says_what_a_limit_does(history, said):
    (words,) = verdict(history).values()
    for part in said:
        assert part in words
    assert "look again" not in words or words.endswith("look again after a change.")


def test_steps_that_a_guard_skipped_do_not_speak_for_the_limit():
    skipped = (np.arange(100) < 20).astype(int)
    clip = told(np.where(skipped, 50.0, USUAL), 4.0).columns
    history = History.from_scan(clip | {"skip_above/skipped": skipped})
    words = verdict(history)
    assert words["clip"].startswith("It never acts")
    assert "from step 0 on; they were left out" in words["skip_above"]


def test_of_a_limit_whose_steps_were_all_skipped_nothing_is_said():
    history = told(USUAL, 1.5).columns | {"skip_above/skipped": np.ones(100, int)}
    assert verdict(History.from_scan(history))["clip"] == (
        "There is no step to judge by: all were skipped, or not finite."
    )


def test_a_guard_with_norms_is_judged_by_what_it_skipped():
    for limit, said in ((1.95, "5% of the steps: it guards"), (1.2, "raise its thres")):
        columns = {
            "norm": USUAL,
            "limit": np.full(100, limit),
            "skipped": limit < USUAL,
        }
        fields = {f"skip_above/{k}": v for k, v in columns.items()}
        assert said in verdict(History.from_scan(fields))["skip_above"]


def verdict_of(transformation, sizes=(1.0, 2.0)):
    """What is said after some steps."""
    history = History()
    for report in reports_of(transformation, sizes):
        history.append(report)
    return verdict(history)


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        (optaxclip.clip_weights(0.5, name="mine"), "it holds the parameters there"),
        (
            optaxclip.bound_weights(optaxclip.clip_global_norm(0.5, name="mine")),
            "it holds the parameters there",
        ),
        (optaxclip.normalize_weights(name="mine"), "on their spheres, by design"),
        (optaxclip.hyperball(0.1, name="mine"), "on their spheres, by design"),
    ],
    ids=("values", "any clipper", "spheres", "hyperball"),
)
def test_what_bounds_weights_is_known_by_its_report_whatever_it_is_called(bound, said):
    words = verdict_of(optax.chain(optax.sgd(0.1), bound))
    assert said in words["mine"]
    assert all(
        "it is a learning rate" in words[name] for name in words if name != "mine"
    )


def test_what_stands_twice_in_a_chain_is_judged_alike():
    words = verdict_of(optax.chain(*map(optaxclip.relative_update, (0.1, 0.2))))
    assert list(words) == ["relative_update", "relative_update_2"]
    assert set(words.values()) == {
        "It sets the length of every step, by design: it is a learning rate."
    }


@pytest.mark.parametrize("clip", [optaxclip.clip_global_norm, optaxclip.clip_value])
def test_under_error_feedback_no_limit_is_suggested_as_the_carry_moves_with_it(clip):
    sizes = tuple(range(1, 11))
    (words,) = verdict_of(optaxclip.error_feedback(clip(0.5)), sizes).values()
    assert "what it cuts off goes into the carry, for later steps" in words
    assert "would have clipped" not in words
    assert "would have clipped" in verdict_of(clip(0.5), sizes)[clip.__name__]


@pytest.mark.parametrize(
    ("norms", "limit", "better"),
    [
        ([1] * 50 + [5] * 50, 0.5, ""),
        ([2, 2, 2, 8], 0.5, ""),
        ([1, 2, 3, 4], 0.5, ""),
        ([4] * 20, np.inf, ""),
        ([0] * 10, np.inf, ""),
        ([1] * 15 + [7], 0.5, "A limit of 1 would have clipped 6.25% of the steps."),
        ([1.1] * 15 + [7], np.inf, "A limit of 1.1 would clip 6.25% of the steps."),
        (range(1, 20), 0.5, "A limit of 18 would have clipped 5.26% of the steps."),
        (np.arange(1000, 1001, 0.1), 0.5, "1000.8 would have clipped 10% of the"),
    ],
)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_better_limit_is_told_with_what_it_clips_or_not_at_all(
    norms, limit, better, kind
):
    words = verdict(told(np.array(norms, kind), limit))["clip"]
    assert better in words
    assert bool(better) == ("A limit of" in words) == ("look again" in words)


@pytest.mark.parametrize(
    ("norms", "said"),
    [
        ([1] * 50 + [5] * 50, "50% of the norms were above 1, and none above 5."),
        ([2, 2, 2, 8], "25% of the norms were above 2, and none above 8."),
        ([np.nan, 4, 4], "none of the norms were above 4."),
        ([0, 0], "all norms were 0."),
        ([1] * 10 + [2] * 9, "47.4% of the norms were above 1, and none above 2."),
        (USUAL, "50% of the norms were above 1.495, and 10% above 1.9."),
    ],
)
def test_what_norms_are_typical_is_true_of_ties_and_few_steps(norms, said):
    watched = History.from_scan({"watch/norm": np.array(norms, float)})
    assert said in verdict(watched)["watch"]


def test_verdicts_begin_where_they_are_told_to():
    norms = np.where(np.arange(100) < 50, 9.0, 1.0)
    assert "50% of the steps" in verdict(told(norms, 2.0))["clip"]
    assert "never acts" in verdict(told(norms, 2.0), since=50)["clip"]


# Sweeps.


def u_curve(limit, key):
    """Lowest at 1, with a spread of seeds, and lost beyond 50."""
    score = jnp.log(limit) ** 2 + 0.1 * jax.random.uniform(key)
    return jnp.where(limit > 50, jnp.nan, score)


def by_hand(train, limits, seeds):
    return [[train(x, jax.random.key(seed)) for seed in seeds] for x in limits]


@pytest.mark.parametrize("chunk", [None, 4])
def test_a_sweep_is_what_a_loop_over_limits_and_seeds_gives(chunk):
    limits, seeds = [3.0, 1.0, 0.1], [7, 2, 5]
    swept = tuning.sweep(u_curve, limits, seeds, chunk=chunk)
    np.testing.assert_array_equal(swept.limits, [0.1, 1.0, 3.0])
    np.testing.assert_array_equal(swept.seeds, seeds)
    wanted = by_hand(u_curve, (0.1, 1.0, 3.0), seeds)
    np.testing.assert_allclose(swept.scores, wanted, rtol=1e-5)
    assert (swept.best, swept.warnings) == (1.0, ())


def test_a_limit_that_is_given_twice_is_tried_once():
    once = tuning.sweep(u_curve, [0.01, 0.1], 2)
    twice = tuning.sweep(u_curve, [0.1, 0.01, 0.1], 2)
    np.testing.assert_array_equal(once.scores, twice.scores)
    assert once.warnings == twice.warnings != ()


def test_a_sweep_compiles_one_program():
    traced = []

    def train(limit, key):
        traced.append(limit)
        return limit + jax.random.uniform(key)

    tuning.sweep(train, [1.0, 2.0], 5, chunk=3)
    assert len(traced) <= 2, "once for its shape, once for the program"


def test_the_table_ranks_runs_that_diverged_last():
    scores = np.array([[1.0, 2.0, 9.0, np.nan], [4.0, np.nan, np.inf, -np.inf]])
    swept = tuning.Sweep(np.array([0.5, 2.0]), np.arange(4), scores)
    np.testing.assert_array_equal(swept.diverged, [0.25, 0.75])
    np.testing.assert_array_equal(swept.quartiles[0], [1.75, 5.5, np.inf])
    assert np.isinf(swept.medians[1])
    assert swept.best == 0.5
    assert "25.0% of the runs diverged" in str(swept)
    lines = str(swept).splitlines()
    assert lines[1].split() == [
        "0.5",
        "5.5",
        "1.75",
        "to",
        "inf",
        "25.0%",
        "<-",
        "best",
    ]


def swept(medians):
    limits = np.array([*np.geomspace(0.1, 10, len(medians) - 1), np.inf])
    return tuning.Sweep(limits, np.arange(1), np.array(medians)[:, None])


@pytest.mark.parametrize(
    ("medians", "warning"),
    [
        ([1.0, 2.0, 3.0, 4.0], "the lowest of the grid"),
        ([4.0, 3.0, 2.0, 1.0], "clipping does not help"),
        ([4.0, 1.0, 1.0, 1.0], "clipping does not help"),  # a tie goes to the loosest
        ([np.nan] * 4, "diverged with every limit"),
    ],
)
def test_a_best_limit_at_the_end_of_the_grid_is_a_warning(medians, warning):
    (said,) = swept(medians).warnings
    assert warning in said
    assert said in str(swept(medians))


def test_the_highest_finite_limit_is_a_warning_and_a_single_one_none():
    high = tuning.Sweep(np.array([1.0, 2.0]), np.arange(1), np.array([[2.0], [1.0]]))
    assert "highest of the grid" in high.warnings[0]
    assert tuning.sweep(u_curve, [1.0], 1).warnings == ()
    with pytest.raises(ValueError, match="no limit is best"):
        _ = swept([np.nan] * 4).best


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((1.0, [1.0], 2), "train must be a function"),
        (
            (lambda x, key: jnp.ones(3) * x, [1.0], 2),
            "one real number, the score, not an array of shape",
        ),
        ((lambda x, key: (x, x), [1.0], 2), "one real number, the score, not a tuple"),
        (
            (lambda x, key: jax.lax.complex(x, x), [1.0], 2),
            "one real number, .* and type complex64",
        ),
        ((lambda x, key: x > 1, [1.0], 2), "one real number, .* and type bool"),
        ((u_curve, [], 2), "limits must be a sequence"),
        ((u_curve, 1.0, 2), "limits must be a sequence"),
        ((u_curve, [-1.0], 2), "limits must be at least 0"),
        ((u_curve, [np.nan], 2), "limits must be at least 0"),
        ((u_curve, [1.0], 0), "seeds must be at least 1"),
        ((u_curve, [1.0], []), "seeds must be a number of seeds or"),
        ((u_curve, [1.0], [0.5]), "seeds must be a number of seeds or"),
        ((u_curve, [1.0], 2, {"chunk": 0}), "chunk must be at least 1"),
    ],
)
def test_what_cannot_be_swept_is_refused(arguments, complaint):
    *positional, options = arguments if len(arguments) == 4 else (*arguments, {})
    with unchecked(), pytest.raises((TypeError, ValueError), match=complaint):
        tuning.sweep(*positional, **options)


def test_a_sweep_shows_a_bar_where_tqdm_is_and_runs_where_it_is_not(
    monkeypatch, capsys
):
    tuning.sweep(u_curve, [1.0, 2.0], 2, chunk=2)
    assert "2/2" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    tuning.sweep(u_curve, [1.0, 2.0], 2, chunk=2)
    assert capsys.readouterr().err == ""


def test_folds_test_every_row_once_and_train_on_the_others():
    """Shown by scores that name the rows they were given."""
    rows, folds = 11, 5

    def mark(limit, key, train_rows, test_rows):
        assert (train_rows.shape, test_rows.shape) == ((9,), (2,))
        union = jnp.zeros(rows).at[train_rows].add(1).at[test_rows].add(1)
        apart = jnp.all(union == 1)
        return jnp.where(
            apart, limit + jnp.sum(2.0 ** test_rows.astype(float)), jnp.nan
        )

    swept = tuning.cross_validate(mark, [0.0, 1.0], rows, [3, 4], folds=folds)
    assert swept.scores.shape == (2, 2)
    np.testing.assert_allclose(swept.scores[1] - swept.scores[0], 1, rtol=1e-3)
    # All rows but one were tested, so that the sum lacks one power of two.
    lacking = 2.0**rows - 1 - folds * swept.scores[0]
    np.testing.assert_allclose(np.log2(lacking) % 1, 0, atol=1e-6)


def test_a_fold_that_diverges_makes_its_seed_diverge():
    def train(limit, key, train_rows, test_rows):
        return jnp.where(jnp.any(test_rows == 0), jnp.nan, limit)

    swept = tuning.cross_validate(train, [1.0], 6, 2, folds=3)
    np.testing.assert_array_equal(swept.diverged, [1.0])
    with pytest.raises(ValueError, match="folds must be at least 2 and at most"):
        tuning.cross_validate(train, [1.0], 6, 2, folds=7)
