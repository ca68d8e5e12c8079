"""The tasks, by their names."""

from pathlib import Path

from benchmarks.stability.task import Task
from benchmarks.stability.tasks import (
    cartpole,
    convolutional,
    labels,
    recurrent,
    regression,
    transformer,
    wgan,
)


def tasks(text: Path | None = None) -> dict[str, Task]:
    """All tasks; the transformers read the text, or else Python's manual."""
    modules = (recurrent, regression, labels, convolutional, wgan, cartpole)
    found = [task for module in modules for task in module.TASKS]
    return {task.name: task for task in (*found, *transformer.tasks(text))}
