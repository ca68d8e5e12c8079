"""Every example runs, and says in one sentence what it cannot do."""

import importlib
import io
import os
import pickle
import runpy
import signal
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import oracles
import pytest
from flax import nnx
from zoo import STRATEGIES

EXAMPLES = Path(__file__).parent.parent / "examples"
CLASSIFIER = EXAMPLES / "image_classification.py"
TRANSFORMER = EXAMPLES / "transformer.py"
PRIVATE = EXAMPLES / "private_training.py"
SCRIPTS = sorted(f.stem for f in EXAMPLES.glob("*.py") if "__main__" in f.read_text())


def started(script, *arguments, folder):
    """Start a script as a user does, in a folder of its own, whose modules it finds."""
    path = os.pathsep.join(map(str, (folder, EXAMPLES.parent)))
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a script in this process, which has JAX already; what it prints."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        # As a user has them.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            if isinstance(script, Path):
                runpy.run_path(str(script), run_name="__main__")
            else:
                script.main()
        return capsys.readouterr().out

    return run


def test_an_example_starts_by_its_name_alone(tmp_path):
    done = started(EXAMPLES / "mlp_regression.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["static_dynamic"])
def test_an_example_runs_and_its_own_assertions_hold(run, name, tmp_path):
    assert run(EXAMPLES / f"{name}.py").strip()
    assert not list(tmp_path.iterdir())


def test_every_example_is_run():
    assert set(SCRIPTS) == {
        "demo",
        "distributed",  # by test_distributed
        "gradient_vs_weight_clipping",
        "image_classification",
        "linear_regression",
        "mlp_regression",
        "noisy_labels",
        "private_training",
        "recurrent",
        "static_dynamic",
        "transformer",
        "wgan",
    }


class OneLayer(nnx.Module):
    """In the place of the CNN, which test_the_classifier_learns_digits compiles."""

    def __init__(self, image_shape, rngs):
        self.layer = nnx.Linear(int(np.prod(image_shape)), 10, rngs=rngs)

    def __call__(self, images):
        return self.layer(images.reshape(len(images), -1))


def is_picture(file):
    """Whether a file begins as every PNG does and holds something."""
    content = file.read_bytes()
    return content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 10_000


@pytest.mark.parametrize(
    ("name", "smaller"),
    {
        "gradient_vs_weight_clipping": (),
        "linear_regression": (),
        "recurrent": ("--seeds", 1),
        "wgan": ("--steps", 500),
    }.items(),
)
def test_an_example_draws_a_picture_and_its_own_assertions_hold(
    run, name, smaller, tmp_path
):
    assert run(EXAMPLES / f"{name}.py", *smaller).strip()
    assert [f.name for f in tmp_path.iterdir()] == [f"{name}.png"]
    assert is_picture(tmp_path / f"{name}.png")


def test_the_classifier_learns_digits_and_draws_a_picture(run, tmp_path):
    assert "acts like a learning rate" in run(CLASSIFIER, "--epochs", 1)
    assert [f.name for f in tmp_path.iterdir()] == ["image_classification.png"]
    assert is_picture(tmp_path / "image_classification.png")


def test_the_demo_trains_both_ways_and_draws_them_in_one_picture(
    run, monkeypatch, tmp_path
):
    monkeypatch.setattr(importlib.import_module("bad_batches"), "CNN", OneLayer)
    said = run(EXAMPLES / "demo.py", "--epochs", 3)
    assert "with 1 of 33 batches bad, accuracy ends at" in said
    assert is_picture(tmp_path / "demo.png")


# As an import of JAX may treat the exception of an interrupt.
INTERRUPTED = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except BaseException:
    raise ImportError("initialization failed")
"""


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_interrupt_while_an_example_imports_is_told_in_one_line(name, tmp_path):
    for slow in "dp_accounting", "jax", "sklearn":
        (tmp_path / f"{slow}.py").write_text(INTERRUPTED)
    done = started(EXAMPLES / f"{name}.py", folder=tmp_path)
    told = f"{name}.py: it was interrupted before there was anything to show.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_an_interrupt_before_anything_is_kept_ends_the_program(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    command_line = importlib.import_module("command_line")
    with pytest.raises(SystemExit, match="2"), command_line.until_interrupted([]):
        signal.raise_signal(signal.SIGINT)
    told = "demo.py: it was interrupted before there was anything to show.\n"
    assert capsys.readouterr().err == told


def test_an_interrupt_later_on_draws_what_there_is(run, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("noisy_labels")
    trained = [[0.5] * example.EPOCHS]

    def train(*_):
        if not trained:
            signal.raise_signal(signal.SIGINT)
        return trained.pop()

    monkeypatch.setattr(example, "train", train)
    said = run(example)
    assert "no clipping            accuracy 50.0%\nInterrupted: this is what" in said
    assert is_picture(tmp_path / "noisy_labels.png")


def test_per_example_clipping_withstands_broken_digits(run, tmp_path):
    assert "per-example clipping" in run(EXAMPLES / "noisy_labels.py")
    assert is_picture(tmp_path / "noisy_labels.png")


def test_training_is_private_at_a_budget(run, tmp_path):
    pytest.importorskip("dp_accounting")
    said = run(PRIVATE, "--epsilon", 2, "--steps", 5, "--seeds", 1)
    assert "ε = 2 allows 5 steps with noise of" in said
    assert is_picture(tmp_path / "private_training.png")


@pytest.mark.parametrize("budget", [("--epsilon", 1, 0), ("--delta", 1)])
def test_a_budget_that_is_none_is_refused(monkeypatch, capsys, budget):
    told = refused(PRIVATE, monkeypatch, capsys, *map(str, budget))
    assert "--epsilon must be above 0, and --delta between 0 and 1" in told


def rows_of_images(count):
    """Pixels in CIFAR-10's order: all of red, then green, then blue."""
    return np.random.default_rng(0).integers(0, 256, (count, 3072), np.uint8)


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did, in which CIFAR-10's files were written."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, bytes):
            self.write(pickle.BINSTRING + struct.pack("<i", len(obj)) + obj)
        else:
            super().save(obj, save_persistent_id)


def python2_pickle(content):
    """The bytes of a file of CIFAR-10's own."""
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


def python3_pickle(content):
    """The bytes of a file that was saved anew."""
    return pickle.dumps(content)


def write_cifar(folder, count=4, dump=python3_pickle, batches=("data_batch_2",)):
    """A folder of a few images in CIFAR-10's own format; returns their pixels."""
    rows = rows_of_images(count)
    labels = [i % 10 for i in range(count)]
    for name in (*batches, "test_batch"):
        content = {b"batch_label": name.encode(), b"labels": labels, b"data": rows}
        (folder / name).write_bytes(dump(content))
    return rows


@pytest.fixture
def images(monkeypatch):
    """What image_data.py defines."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return runpy.run_path(str(EXAMPLES / "image_data.py"))


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
def test_cifar_is_read_in_its_own_format(images, tmp_path, dump):
    rows = write_cifar(tmp_path, 12, dump, ("data_batch_1", "data_batch_4"))
    read = images["cifar10"](tmp_path)
    assert read.name == "CIFAR-10 (2 of 5 batches)"
    assert read.train_images.shape == (24, 32, 32, 3)
    assert read.test_images.shape == (12, 32, 32, 3)
    assert read.train_images.dtype == np.uint8
    np.testing.assert_array_equal(read.test_labels, [*range(10), 0, 1])
    np.testing.assert_array_equal(read.train_labels, [*read.test_labels] * 2)
    row, column, color = 5, 7, 2
    pixels = read.test_images[:, row, column, color]
    np.testing.assert_array_equal(pixels, rows[:, color * 1024 + row * 32 + column])


def test_digits_are_split_without_a_share(images):
    read = images["digits"]()
    assert len(read.train_labels) + len(read.test_labels) == 1797
    assert read.train_images.shape[1:] == read.test_images.shape[1:] == (8, 8, 1)
    assert read.train_images.max() == read.test_images.max() == 255


# The CNN with limits for each of its units, and one layer with the others.
@pytest.mark.parametrize("name", ["agc", "aggc", "clip_value", "greedy_clip"])
def test_the_classifier_trains_on_cifar_with_any_strategy(
    run, monkeypatch, name, tmp_path
):
    if name != "agc":
        monkeypatch.setattr(importlib.import_module("image_training"), "CNN", OneLayer)
    write_cifar(tmp_path, count=16)
    picture = tmp_path / "picture.png"
    options = ("--epochs", 1, "--strategy", name, "--output", picture)
    said = run(CLASSIFIER, "--data", tmp_path, *options)
    assert "CIFAR-10 (1 of 5 batches): 16 images to train on, 16 to test." in said
    assert is_picture(picture)


def test_the_classifier_takes_every_strategy_of_the_library(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = runpy.run_path(str(EXAMPLES / "named_strategies.py"))
    offered = example["strategies"]()
    clips = [s for s in STRATEGIES if not isinstance(s.oracle, oracles.OfWeights)]
    # What has no limit, clips what another transformation gives, or takes the place of
    # the learning rate.
    others = {
        "error_feedback",
        "hyperball",
        "skip_above",
        "skip_nonfinite",
        "skip_spikes",
        "watch",
        "zero_nonfinite",
    }
    assert set(offered) == {s.factory.__name__ for s in clips} - others
    params = {"conv": np.ones((3, 3, 1, 4), np.float32), "dense": np.ones((4, 10))}
    params = jax.tree.map(np.float32, params)
    for name in offered:
        for limit in None, 50.0 if name == "autoclip" else 0.5:  # a percentile
            clip, used = example["build"](name, limit)
            assert used == (used if limit is None else limit)
            state = jax.eval_shape(clip.init, params)
        update = partial(clip.update, value=np.float32(1))
        _, after = jax.eval_shape(update, params, state, params)
        assert jax.tree.structure(after) == jax.tree.structure(state), name


def files_of(folder):
    """What every file in a folder holds."""
    return {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_run_resumes_from_its_checkpoint_and_ends_the_same(
    run, monkeypatch, tmp_path
):
    monkeypatch.setattr(importlib.import_module("image_training"), "CNN", OneLayer)
    options = ("--strategy", "autoclip", "--epochs")
    saved = ("--checkpoint", tmp_path / "run1")
    whole = run(CLASSIFIER, *options, 2).partition("name")[2]
    run(CLASSIFIER, *options, 1, *saved)
    resumed, _, report = run(CLASSIFIER, *options, 2, *saved).partition("name")
    assert "Resumed after epoch 1." in resumed
    assert report == whole


def test_a_checkpoint_that_is_not_of_the_run_is_refused_and_left(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = runpy.run_path(str(EXAMPLES / "checkpoints.py"))
    state, folder = {"w": np.arange(3.0)}, tmp_path / "run1"
    saved = example["Checkpoints"](folder, {"seed": 0})
    assert saved.latest(state) is None
    for epoch in 1, 2, 3:
        saved.save(epoch, {"w": np.arange(3.0) + epoch}, {"losses": [np.inf, epoch]})
    saved.wait()

    def refused(folder, seed=0):
        before = files_of(folder)
        with pytest.raises(example["CheckpointError"]) as refusal:
            example["Checkpoints"](folder, {"seed": seed}).latest(state)
        assert files_of(folder) == before
        return str(refusal.value)

    assert sorted(file.name for file in folder.iterdir()) == ["2", "3"]
    epoch, restored, told = example["Checkpoints"](folder, {"seed": 0}).latest(state)
    assert (epoch, told) == (3, {"losses": [np.inf, 3]})
    np.testing.assert_array_equal(restored["w"], [3, 4, 5])
    assert f"{folder}/3 is of another run, whose seed is 0 and not 1;" in refused(
        folder, seed=1
    )
    assert "something else than checkpoints, run1; name" in refused(tmp_path)
    (folder / "3" / "told" / "metadata").write_text("{")
    assert f"{folder}/3 is damaged or not a checkpoint of" in refused(folder)


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


WRONG_BATCHES = {
    "no pickle": b"not a pickle",
    "empty": b"",
    "cut short": python3_pickle({b"labels": [1], b"data": rows_of_images(1)})[:-100],
    "a list": python3_pickle([1, 2]),
    "no data": python3_pickle({b"labels": [1]}),
    "too few labels": python3_pickle({b"labels": [1], b"data": rows_of_images(2)}),
    "too large a label": python3_pickle({b"labels": [10], b"data": rows_of_images(1)}),
    "wrong shape": python3_pickle({b"labels": [1], b"data": rows_of_images(1)[:, 1:]}),
    "wrong type": python3_pickle({b"labels": [1], b"data": np.ones((1, 3072))}),
    "no images": python3_pickle({b"labels": [], b"data": rows_of_images(0)}),
}


def refused(script, monkeypatch, capsys, *arguments):
    """Run a script in this process; the one line that it says before it stops."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"{script.name}: ")
    assert said.err.endswith(".\n")
    assert said.err.count("\n") == 1
    return said.err


@pytest.fixture
def refusal(monkeypatch, capsys):
    """What the classifier refuses, and in which words."""
    return partial(refused, CLASSIFIER, monkeypatch, capsys)


@pytest.mark.parametrize("content", WRONG_BATCHES.values(), ids=WRONG_BATCHES)
def test_a_broken_batch_is_named(refusal, tmp_path, content):
    write_cifar(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(content)
    assert "data_batch_1 is broken or not one of" in refusal("--data", tmp_path)


def test_a_malicious_batch_is_not_obeyed(refusal, tmp_path):
    write_cifar(tmp_path)
    harm = tmp_path / "harm"
    (tmp_path / "test_batch").write_bytes(pickle.dumps(Malicious(harm)))
    assert f"it asks for {os.mkdir.__module__}.mkdir" in refusal("--data", tmp_path)
    assert not harm.exists()
    pickle.loads((tmp_path / "test_batch").read_bytes())
    assert harm.exists()  # so the batch was malicious indeed


def test_a_folder_that_is_not_there_or_holds_no_batches_is_named(refusal, tmp_path):
    missing = tmp_path / "missing"
    assert f"There is no folder {missing}." in refusal("--data", missing)
    assert f"{tmp_path} holds none of CIFAR-10's" in refusal("--data", tmp_path)
    write_cifar(tmp_path)
    (tmp_path / "test_batch").unlink()
    assert "test_batch: No such file" in refusal("--data", tmp_path)


def test_a_wrong_option_is_named(refusal, tmp_path):
    assert "There is no strategy clip_all" in refusal("--strategy", "clip_all")
    assert "max_norm must be at least 0, not -1.0" in refusal("--limit", "-1")
    assert "must be at least 0, not nan" in refusal("--limit", "nan")
    assert "--epochs: it must be a whole number, at least 1, " in refusal("--epochs", 0)
    for seed in (-1, 2**32, "x"):
        assert "from 0 to 4294967295, not" in refusal("--seed", seed)
    for output in (tmp_path, tmp_path / "missing" / "picture.png"):
        assert f"--output {output} cannot be written" in refusal("--output", output)


def test_a_refusal_is_one_sentence_for_the_shell_too(tmp_path):
    done = started(CLASSIFIER, "--epochs", 0, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "--epochs: it must be a whole number, at least 1, " in done.stderr


def test_the_transformer_learns_python_and_draws_a_picture(run, monkeypatch, tmp_path):
    # Six programs are compiled; attention has a test of its own.
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("transformer")
    for name, value in {"LAYERS": 0, "WIDTH": 16, "BATCH": 4, "CONTEXT": 16}.items():
        monkeypatch.setattr(example, name, value)
    assert "skip_spikes skipped 3 of the 3" in run(example, "--steps", 60)
    assert [f.name for f in tmp_path.iterdir()] == ["transformer.png"]
    assert is_picture(tmp_path / "transformer.png")


def test_the_transformer_predicts_each_character_from_the_ones_before(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("transformer")
    for name, value in {"LAYERS": 1, "WIDTH": 16}.items():
        monkeypatch.setattr(example, name, value)
    random = np.random.default_rng(0)
    model, shapes = nnx.split(
        nnx.eval_shape(lambda: example.Transformer(5, nnx.Rngs(0)))
    )
    params = jax.tree.map(lambda x: np.float32(random.normal(size=x.shape)), shapes)
    rows = random.integers(0, 5, (1, example.CONTEXT + 1))
    other = rows.copy()
    other[0, 40:] = (other[0, 40:] + 1) % 5
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        losses = jax.jit(partial(example.losses_of, model))
        one, two = losses(params, rows), losses(params, other)
    np.testing.assert_allclose(one[0, :39], two[0, :39], rtol=1e-5)
    assert not np.allclose(one[0, 39:], two[0, 39:])


@pytest.fixture
def texts(monkeypatch):
    """What text_data.py defines."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return runpy.run_path(str(EXAMPLES / "text_data.py"))


def test_a_text_is_read_in_order_and_its_end_is_held_out(texts, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("abcbé" * 20, encoding="utf-8")
    read = texts["text_file"](file)
    assert (read.name, read.characters) == ("text.txt", "abcé")
    whole = np.r_[read.train, read.test]
    np.testing.assert_array_equal(whole, [0, 1, 2, 1, 3] * 20)
    assert len(read.test) == 10
    rows = texts["windows"](whole, np.array([0, 7]), 4)
    np.testing.assert_array_equal(rows, [[0, 1, 2, 1], [2, 1, 3, 0]])


def test_the_standard_library_is_a_text(texts):
    read = texts["standard_library"]()
    assert len(read.train) > 300_000
    assert set("def class") <= set(read.characters)


def test_a_text_that_cannot_be_used_is_named(monkeypatch, capsys, tmp_path):
    refusal = partial(refused, TRANSFORMER, monkeypatch, capsys)
    missing = tmp_path / "missing.txt"
    assert f"{missing} cannot be read: No such file" in refusal("--data", missing)
    assert "cannot be read: Is a directory" in refusal("--data", tmp_path)
    binary, short = tmp_path / "binary", tmp_path / "short"
    binary.write_bytes(b"text \xff\xfe")
    assert "is not a text in UTF-8; byte 5" in refusal("--data", binary)
    for content in ("", "short"):
        short.write_text(content)
        assert "short is too short: it needs 1280 char" in refusal("--data", short)
    assert "--steps: it must be a whole number, at least 50, " in refusal("--steps", 49)
    assert f"--output {tmp_path} cannot be" in refusal("--output", tmp_path)


def test_a_checkpoint_of_which_a_letter_or_a_number_changed_is_refused(
    monkeypatch, tmp_path
):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = runpy.run_path(str(EXAMPLES / "checkpoints.py"))
    state, folder = {"w": np.arange(300.0)}, tmp_path / "run1"
    saved = example["Checkpoints"](folder, {})
    saved.save(1, state, {"losses": [3.0]})
    saved.wait()
    largest = max(
        (folder / "1" / "state" / "d").iterdir(), key=lambda f: f.stat().st_size
    )
    for file in folder / "1" / "told" / "metadata", largest:
        before = file.read_bytes()
        middle = before.find(b"losses") if b"losses" in before else len(before) // 2
        changed = bytes([before[middle] ^ 1])
        file.write_bytes(before[:middle] + changed + before[middle + 1 :])
        kept = files_of(folder)
        with pytest.raises(example["CheckpointError"], match="is damaged or not a"):
            example["Checkpoints"](folder, {}).latest(state)
        assert files_of(folder) == kept
        file.write_bytes(before)
    assert example["Checkpoints"](folder, {}).latest(state)[0] == 1
