"""The tasks, by their names."""

from benchmarks.stability.task import Task
from benchmarks.stability.tasks import recurrent, regression

TASKS: dict[str, Task] = {
    task.name: task
    for module in (recurrent, regression)
    for task in module.TASKS
}
