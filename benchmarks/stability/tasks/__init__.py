"""The tasks, by their names."""

from pathlib import Path

from benchmarks.stability.task import Task
from benchmarks.stability.tasks import (
    cartpole,
    cifar,
    convolutional,
    labels,
    recurrent,
    regression,
    transformer,
    wgan,
)


def tasks(data: Path | None = None) -> dict[str, Task]:
    """All tasks; the data are a text for the transformers, or the folder of CIFAR-10.

    The transformers read Python's manual by default.
    """
    text, folder = (None, data) if data and data.is_dir() else (data, None)
    modules = (recurrent, regression, labels, convolutional, wgan, cartpole)
    found = [task for module in modules for task in module.TASKS]
    found += [*transformer.tasks(text), *cifar.tasks(folder)]
    return {task.name: task for task in found}


def ready(data: Path | None) -> list[str]:
    """The names of the tasks whose data are there."""
    folder_given = data is not None and data.is_dir()
    return [name for name in tasks() if name != "cifar10" or folder_given]
