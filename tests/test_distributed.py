"""Two processes end as one does, and one that was killed goes on where it was."""

import os
import runpy
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "distributed.py"
SECONDS = 240  # after which a process that hangs is ended


def free_port():
    return runpy.run_path(str(SCRIPT))["free_port"]()


def arrays_of(file):
    with np.load(file) as arrays:
        return dict(arrays)


@pytest.fixture
def start(tmp_path):
    """Starts the script; what hangs is killed after a while, with all it started."""
    running = []
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent.parent)}
    environment.pop("XLA_FLAGS", None)
    files = ("--checkpoint", tmp_path / "kept", "--output", tmp_path / "two.npz")
    always = ("--processes", 2, "--devices", 4, *files)

    def end(process):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def start(*options):
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, (*always, *options))],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        timer = threading.Timer(SECONDS, end, [process])
        timer.start()
        running.append((process, timer))
        return process

    yield start
    for process, timer in running:
        timer.cancel()
        end(process)
        process.wait()
        process.stdout.close()


@pytest.fixture
def alone(tmp_path, monkeypatch, capsys):
    """What one process of eight devices ends with, which is this one."""
    file = tmp_path / "one.npz"
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output", str(file)])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "skip_nonfinite/total         1.0000" in capsys.readouterr().out
    return arrays_of(file)


def test_two_processes_of_which_one_was_killed_end_as_one_alone(start, alone, tmp_path):
    address = ("--coordinator", f"localhost:{free_port()}", "--process")
    first, second = (start(*address, number) for number in range(2))
    assert any(line.startswith("step   20") for line in first.stdout)
    second.kill()  # SIGKILL, which leaves no time to tidy up
    first.kill()
    again = start()  # which starts both
    said = again.stdout.read()
    assert again.wait() == 0, said
    assert "goes on after step" in said
    together = arrays_of(tmp_path / "two.npz")
    assert set(together) == set(alone)
    for name in alone:  # gloo adds up in an order of its own, XLA in that of devices
        np.testing.assert_allclose(together[name], alone[name], rtol=4e-7, atol=4e-7)
