# SPDX-License-Identifier: BSD-2-Clause
"""Puts the tasks in order, decides which apply, runs them, and stops at the first failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from snf_image.helper.errors import TaskError
from snf_image.helper.task import Context, Task
from snf_image.protocol import Reply, TaskEnd, TaskStart

Send = Callable[[Reply], None]


class OrderError(Exception):
    """The tasks' declarations contradict each other: a defect of the helper."""


def ordered(tasks: Sequence[Task]) -> list[Task]:
    """The tasks so that every `after` and `before` holds; the given order decides where those are silent."""
    names = {task.name for task in tasks}
    if len(names) != len(tasks):
        raise OrderError("two tasks have the same name")
    waits = {task.name: {name for name in task.after if name in names} for task in tasks}
    for task in tasks:
        for name in task.before:
            if name in names:
                waits[name].add(task.name)
    result: list[Task] = []
    left = list(tasks)
    done: set[str] = set()
    while left:
        ready = next((each for each in left if waits[each.name] <= done), None)
        if ready is None:
            raise OrderError(f"the tasks {', '.join(each.name for each in left)} wait for each other")
        left.remove(ready)
        done.add(ready.name)
        result.append(ready)
    return result


def is_wanted(task: Task, context: Context) -> bool:
    """Whether the properties leave the task in, and it has something to do."""
    is_set = context.properties.is_set
    if is_set("EXCLUDE_ALL_TASKS"):
        return False
    if task.excludable and is_set(f"EXCLUDE_TASK_{task.name}"):
        return False
    if task.needs_mount and is_set("EXCLUDE_MOUNTED_TASKS"):
        return False
    if task.resizes and is_set("EXCLUDE_FILESYSTEMRESIZE_TASKS"):
        return False
    if task.left_to_cloud_init and is_set("CLOUD_INIT"):
        return False
    return task.applies(context)


class TaskFailure(Exception):
    """A task failed; `task` is its name, the text the reason."""

    def __init__(self, task: str, reason: str) -> None:
        super().__init__(reason)
        self.task = task


def run(tasks: Sequence[Task], context: Context, send: Send, on_task: Callable[[str | None], None]) -> None:
    """Run what is wanted, in order. TaskFailure names the task that failed, whatever went wrong in it."""
    for task in ordered(tasks):
        on_task(task.name)
        try:
            if not is_wanted(task, context):
                continue
            send(TaskStart(task=task.name))
            task.run(context)
        except TaskError as error:
            raise TaskFailure(task.name, str(error)) from error
        except OSError as error:
            place = f" ({error.filename})" if error.filename else ""
            raise TaskFailure(task.name, f"{error.strerror}{place}") from error
        send(TaskEnd(task=task.name))
    on_task(None)
