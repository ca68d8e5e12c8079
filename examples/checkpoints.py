"""Checkpoints of a run, written by Orbax: one an epoch, of which the last two are kept.

A checkpoint is written under another name and renamed when it is complete, so that a
run that is killed meanwhile resumes from the one before.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message says why in one sentence."""


class Checkpoints:
    """The checkpoints in a folder.

    Args:
      folder: it is made if it is missing.
      run: the settings of the run, as JSON takes them; a checkpoint of a run with other
        settings is refused.
    """

    def __init__(self, folder: Path, run: dict[str, Any]):
        self._folder, self._run = folder.absolute(), run
        try:
            self._folder.mkdir(exist_ok=True)
            files = sorted(file.name for file in self._folder.iterdir())
        except OSError as error:
            raise CheckpointError(
                f"{folder} cannot hold checkpoints: {error.strerror}."
            ) from error
        foreign = [name for name in files if not name.split(".")[0].isdigit()]
        if foreign:
            raise CheckpointError(
                f"{folder} holds something else than checkpoints, {foreign[0]}; name "
                "another folder, or a new one."
            )
        options = ocp.CheckpointManagerOptions(max_to_keep=2, save_root_metadata=False)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, epoch: int, state: Any, told: dict[str, Any]) -> None:
        """Write the state and what JSON can tell of the run, in the background."""
        # Copies, since the next step may write over the arrays of this one.
        state = jax.tree.map(np.array, state)
        told = {"run": self._run, "told": told, "checksum": checksum(state, told)}
        self._manager.save(
            epoch,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), told=ocp.args.JsonSave(told)
            ),
        )

    def wait(self) -> None:
        """Wait until all is written."""
        self._manager.wait_until_finished()

    def latest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Read the last epoch, its state and what was told; None if there is none.

        Args:
          like: a state of the same structure, shapes and types.
        """
        epoch = self._manager.latest_step()
        if epoch is None:
            return None
        place = self._folder / str(epoch)
        told = self._restore(epoch, told=ocp.args.JsonRestore())["told"]
        theirs = told.get("run", {})
        for key in self._run:
            if theirs.get(key) != self._run[key]:
                raise CheckpointError(
                    f"{place} is of another run, whose {key} is {theirs.get(key)} and "
                    f"not {self._run[key]}; name another folder."
                )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, jax.device_get(like))
        state = self._restore(epoch, state=ocp.args.StandardRestore(abstract))["state"]
        if checksum(state, told.get("told")) != told.get("checksum"):
            raise self._damaged(epoch, "its numbers are not those that were saved")
        return epoch, state, told["told"]

    def _restore(self, epoch: int, **items: Any) -> Any:
        try:
            return self._manager.restore(epoch, args=ocp.args.Composite(**items))
        except Exception as error:  # A broken file can raise anything.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise self._damaged(epoch, reason[:100]) from error

    def _damaged(self, epoch: int, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self._folder / str(epoch)} is damaged or not a checkpoint of this "
            f"example ({reason}): delete it, and the run resumes from the one before, "
            "or name another folder."
        )


def checksum(state: Any, told: Any) -> int:
    """Return a number that differs if any of the arrays does, or what was told."""
    number = zlib.crc32(json.dumps(told, sort_keys=True).encode())
    for leaf in jax.tree.leaves(state):
        number = zlib.crc32(np.asarray(leaf).tobytes(), number)
    return number
