"""Pictures of what clipping did: what they say, and that nothing overlaps."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from unchecked import unchecked

from optaxclip import plotting, tuning
from optaxclip.tuning import History, Sweep

RANDOM = np.random.default_rng(0)
NORMS = np.exp(0.3 * RANDOM.standard_normal((300, 3))) * [1.0, 5.0, 0.1]
NORMS[100] *= 1e6
BROKEN = NORMS.copy()
BROKEN[50], BROKEN[51] = np.nan, np.inf
FINITE = np.where(np.isfinite(BROKEN[:, 0]), BROKEN[:, 0], np.nan)


def over(norms, of=None):
    """The share of norms above 2, in percent."""
    return f"{100 * np.sum(~(norms <= 2)) / (of or len(norms)):.3g}"


def told(norms, limit: Any = 2.0, **more):
    """The history of a clipper that shrinks, and what else there is."""
    limit = np.broadcast_to(float(limit), norms.shape)
    over = (~(norms <= limit) & np.isfinite(limit)).reshape(len(norms), -1)
    fields = {
        "pre_norm": norms,
        "post_norm": np.where(norms > limit, limit, norms),
        "limit": limit,
        "clipped_fraction": over.mean(axis=1),
    }
    return History.from_scan({f"clip/{k}": v for k, v in fields.items()} | more)


def named(norms):
    """The same with a long name for each group."""
    columns = told(norms).columns
    split = {}
    for key, column in columns.items():
        for i, leaf in enumerate(("embedding", "block/attention/query/kernel", "b")):
            split[f"{key}/{leaf}"] = column[:, i] if column.ndim > 1 else column
    return History.from_scan(split)


def swept(*medians, limits=(0.0, 0.01, 0.1, 1.0, 10.0, np.inf)):
    scores = np.array(medians)[:, None] * [0.7, 1.0, 1.4]
    return Sweep(np.array(limits)[: len(medians)], np.arange(3), scores)


SKIPPED = {"skip_above/skipped": (np.arange(300) > 290).astype(int)}
PICTURES = {
    "history": (
        lambda ax: plotting.plot_history(told(BROKEN[:, 0], **SKIPPED), ax=ax),
        f"clip: {over(BROKEN[:, 0])}% of 300 steps clipped, 9 skipped, 2 not finite",
    ),
    "one step": (
        lambda ax: plotting.plot_history(told(NORMS[:1, 0]), ax=ax),
        "clip: 0% of 1 steps clipped",
    ),
    "infinite": (
        lambda ax: plotting.plot_history(told(NORMS[:, 0], np.inf), ax=ax),
        "clip: 300 steps, none clipped by an infinite limit",
    ),
    "diverged": (
        lambda ax: plotting.plot_history(told(np.full(9, np.nan)), ax=ax),
        "clip: 100% of 9 steps clipped, 9 not finite",
    ),
    "zeros": (
        lambda ax: plotting.plot_history(told(NORMS[:, 0], 0.0), ax=ax),
        "clip: 100% of 300 steps clipped",
    ),
    "worst": (
        lambda ax: plotting.plot_history(told(BROKEN), ax=ax),
        f"clip: {over(BROKEN[:, 1])}% of 300 steps clipped, 2 not finite",
    ),
    "groups": (
        lambda ax: plotting.plot_groups(named(BROKEN), ax=ax),
        "clip: …/attention/query/kernel is clipped most, in "
        f"{over(NORMS[:, 1][np.isfinite(BROKEN[:, 1])], of=300)}% of 300 steps",
    ),
    "numbered": (
        lambda ax: plotting.plot_groups(told(NORMS, 9e9), ax=ax),
        "clip: nothing was clipped in 300 steps",
    ),
    "norms": (
        lambda ax: plotting.plot_norms(BROKEN[:, 0], ax=ax),
        f"300 norms: half above {np.nanmedian(FINITE):.3g}, the largest "
        f"{np.nanmax(FINITE):.3g}, 2 not finite",
    ),
    "same": (
        lambda ax: plotting.plot_norms(np.ones(5), [0.5, 1.0, 2.0, 3.0, 4.0], ax=ax),
        "5 norms: half above 1, the largest 1",
    ),
    "sweep": (
        lambda ax: plotting.plot_sweep(swept(9, 5, 0.1, 0.2, 4, np.nan), ax=ax),
        "Best limit 0.1: median score 0.1 of 3 runs",
    ),
    "edge": (
        lambda ax: plotting.plot_sweep(swept(-1.0, 2.0), ax=ax),
        "The best limit is the lowest of the grid: try lower ones.",
    ),
    "lost": (
        lambda ax: plotting.plot_sweep(swept(np.nan, np.nan), ax=ax),
        "Half of the runs or more diverged with every limit.",
    ),
    "single": (
        lambda ax: plotting.plot_sweep(swept(1.0), ax=ax),
        "Best limit 0: median score 1 of 3 runs",
    ),
}


def whole(ax):
    """The figure of some axes."""
    assert isinstance(ax.figure, Figure)
    return ax.figure


def drawn(draw, size=None):
    """The axes, laid out as they are saved, and what laid them out."""
    if size is None:
        ax = draw(None)
    else:
        given = Figure(figsize=size, dpi=100, layout="constrained").subplots()
        ax = draw(given)
        assert ax is given
    assert isinstance(ax, Axes)
    canvas = FigureCanvasAgg(whole(ax))
    canvas.draw()
    return ax, canvas.get_renderer()


@pytest.mark.parametrize("size", [None, (4, 3)], ids=["own", "400 px"])
@pytest.mark.parametrize(("draw", "title"), PICTURES.values(), ids=PICTURES)
def test_a_picture_says_what_is_seen_and_nothing_overlaps(draw, title, size):
    ax, renderer = drawn(draw, size)
    assert title in ax.get_title(loc="left").replace("\n", " ")
    inside = ax.get_window_extent()
    # The title at the left is the one that the functions set.
    heading = ax._left_title.get_window_extent(renderer)
    page = ax.figure.bbox
    assert heading.y0 >= inside.y1
    assert heading.y1 <= page.y1 + 1
    assert heading.x1 <= page.x1
    if legend := ax.get_legend():
        box = legend.get_window_extent(renderer)
        assert box.y0 >= inside.y1 - 1, "the legend lies above the data"
        assert box.y1 <= heading.y0 + 1, "and below the title"
        assert box.x1 <= page.x1
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        labels = [
            x.label1 for x in axis.get_major_ticks() if low <= x.get_loc() <= high
        ]
        boxes = [x.get_window_extent(renderer) for x in labels if x.get_text()]
        for box, following in itertools.pairwise(boxes):
            assert not box.overlaps(following)


def test_lines_hold_the_numbers_of_the_history():
    history = told(NORMS[:, 0], since=np.zeros(300))
    ax = plotting.plot_history(history, since=50)
    lines = {line.get_label(): np.asarray(line.get_xydata()) for line in ax.lines}
    np.testing.assert_array_equal(lines["before"][:, 1], NORMS[50:, 0])
    np.testing.assert_array_equal(lines["after"][:, 1], np.minimum(NORMS[50:, 0], 2))
    wanted = 50 + np.flatnonzero(NORMS[50:, 0] > 2)
    np.testing.assert_array_equal(lines["clipped"][:, 0], wanted)
    assert ax.get_yscale() == "log"
    calm = told(np.linspace(1.0, 2.0, 9), 1.5)
    assert plotting.plot_history(calm).get_yscale() == "linear"


def test_each_step_shows_the_group_that_is_the_most_above_its_limit():
    norms = np.array([[1.0, 4.0], [3.0, 2.0], [np.nan, 1.0]])
    columns = told(norms).columns | {"clip/limit": np.array([[1.0, 8.0]] * 3)}
    ax = plotting.plot_history(History.from_scan(columns))
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_array_equal(lines["before"], [1, 3, 1])
    np.testing.assert_array_equal(lines["limit"], [1, 1, 8])


def heat_map(norms):
    """The numbers behind the colors."""
    (image,) = plotting.plot_groups(told(norms)).images
    return np.ma.filled(np.ma.asarray(image.get_array()), np.nan)


def test_the_heat_map_holds_the_share_that_was_cut_off():
    norms = np.array([[1.0, 4.0], [3.0, np.nan]])
    np.testing.assert_allclose(heat_map(norms), [[0, 1 / 3], [0.5, np.nan]])
    many = np.ones((1000, 2)) * [1.0, 4.0]
    assert heat_map(many).shape == (2, 200)
    np.testing.assert_allclose(heat_map(many)[1], 0.5)


def test_shares_of_candidate_limits_are_those_of_all_norms():
    norms = [1.0, 2.0, 3.0, 4.0, np.nan]
    legend = plotting.plot_norms(norms, limits=[0.0, 3.0, np.inf]).get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["3: clips 40%"]


def test_matplotlib_is_asked_for_in_one_sentence_and_pyplot_not_at_all(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "sys.modules['matplotlib'] = None\n"
        "try:\n"
        "    import optaxclip.plotting\n"
        "except ImportError as error:\n"
        "    print(error)\n"
        "del sys.modules['matplotlib']\n"
        "from optaxclip import plotting\n"
        "plotting.plot_norms(np.ones(3)).figure.savefig('norms.png')\n"
        "print('matplotlib.pyplot' in sys.modules)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(plotting.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / "norms.png").is_file(), ran.stderr
    assert ran.stdout == (
        "optaxclip.plotting draws with matplotlib, which is not installed; run pip "
        "install 'optaxclip[plot]'.\nFalse\n"
    )


@pytest.mark.parametrize(
    ("draw", "complaint"),
    [
        (
            lambda: plotting.plot_history(History()),
            r"\(there is none\), not None",
        ),
        (lambda: plotting.plot_history(told(NORMS), "zclip"), r"\(clip\), not 'zclip'"),
        (lambda: plotting.plot_history(told(NORMS), since=300), "below the number of"),
        (lambda: plotting.plot_norms(NORMS), r"one number a step.*norms\[:, 0\]"),
        (lambda: plotting.plot_norms([0.0, np.nan]), "one above 0 that is finite"),
        (
            lambda: plotting.plot_groups(tuning.History.from_scan({"a/norm": NORMS})),
            "name must be that of a clipper, whose norms change, not 'a'",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, complaint):
    with pytest.raises(ValueError, match=complaint):
        draw()


@pytest.mark.parametrize("given", [None, {"a": 1}, [1.0]])
@pytest.mark.parametrize(
    ("draw", "wanted"),
    [
        (plotting.plot_history, "history must be a History"),
        (plotting.plot_groups, "history must be a History"),
        (plotting.plot_sweep, "sweep must be a Sweep"),
    ],
)
def test_what_is_no_history_or_sweep_is_refused_by_name(draw, wanted, given):
    with unchecked(), pytest.raises(TypeError, match=f"{wanted}, not (None|a )"):
        draw(given)
