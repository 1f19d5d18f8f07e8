# SPDX-License-Identifier: BSD-2-Clause
"""The order of the tasks, which of them run, and how a failure is told."""

from __future__ import annotations

import pytest

from snf_image.helper import runner
from snf_image.helper.errors import TaskError
from snf_image.helper.task import Context, Task
from snf_image.helper.tasks import CUSTOMIZING, GENERALIZING, OPERATIONS
from snf_image.protocol import Reply, TaskEnd, TaskStart
from tests.unit.snf_image.helper.support import context_of


def nothing(_context: Context) -> None:
    return


def test_the_real_tasks_have_the_contract_s_order() -> None:
    assert [task.name for task in runner.ordered(CUSTOMIZING)] == [
        "FixPartitionTable",
        "FilesystemResizeUnmounted",
        "MountImage",
        "AssignHostname",
        "ChangeMachineId",
        "ChangePassword",
        "ConfigureNetwork",
        "DeleteSSHKeys",
        "EnforcePersonality",
        "UmountImage",
    ]


@pytest.mark.parametrize("tasks", OPERATIONS.values(), ids=OPERATIONS)
def test_the_order_follows_from_declarations_alone(tasks: tuple[Task, ...]) -> None:
    turned = runner.ordered(list(reversed(tasks)))
    names = [task.name for task in turned]
    for task in tasks:
        assert all(names.index(other) < names.index(task.name) for other in task.after if other in names)
        assert all(names.index(other) > names.index(task.name) for other in task.before if other in names)
    assert names[-1] == "UmountImage"


def test_what_is_removed_is_trimmed_afterwards() -> None:
    names = [task.name for task in runner.ordered(list(reversed(GENERALIZING)))]
    assert names[0] == "MountImage"
    assert names[-2:] == ["TrimFilesystems", "UmountImage"]


def test_declared_names_exist() -> None:
    for task in {*CUSTOMIZING, *GENERALIZING}:
        names = {other.name for tasks in OPERATIONS.values() if task in tasks for other in tasks}
        assert {*task.after, *task.before} <= names


def test_a_circle_is_a_defect() -> None:
    tasks = [Task(name="a", run=nothing, after=("b",)), Task(name="b", run=nothing, after=("a",))]
    with pytest.raises(runner.OrderError, match="a, b"):
        runner.ordered(tasks)


def test_two_tasks_of_one_name_are_a_defect() -> None:
    with pytest.raises(runner.OrderError):
        runner.ordered([Task(name="a", run=nothing), Task(name="a", run=nothing)])


@pytest.mark.parametrize(
    ("properties", "skipped"),
    [
        ({}, set()),
        ({"exclude_task_assignhostname": "yes"}, {"AssignHostname"}),
        ({"EXCLUDE_TASK_AssignHostname": "no"}, set()),
        ({"EXCLUDE_TASK_MOUNTIMAGE": "yes"}, set()),
        ({"EXCLUDE_FILESYSTEMRESIZE_TASKS": "1"}, {"FilesystemResizeUnmounted"}),
        ({"CLOUD_INIT": "true"}, {"FilesystemResizeUnmounted", "FixPartitionTable"}),
        ({"EXCLUDE_MOUNTED_TASKS": "on"}, {task.name for task in CUSTOMIZING if task.needs_mount}),
        ({"EXCLUDE_ALL_TASKS": "set"}, {task.name for task in CUSTOMIZING}),
    ],
)
def test_properties_leave_tasks_out(properties: dict[str, str], skipped: set[str]) -> None:
    context = context_of(properties=properties)
    tasks = [Task(**{**task.__dict__, "applies": lambda _context: True}) for task in CUSTOMIZING]
    assert {task.name for task in tasks if not runner.is_wanted(task, context)} == skipped


def run(tasks: list[Task]) -> tuple[list[Reply], runner.TaskFailure | None]:
    sent: list[Reply] = []
    try:
        runner.run(tasks, context_of(), sent.append, lambda _task: None)
    except runner.TaskFailure as failure:
        return sent, failure
    return sent, None


def test_the_first_failure_ends_the_run() -> None:
    def fail(_context: Context) -> None:
        raise TaskError("no way")

    sent, failure = run([Task(name="a", run=nothing), Task(name="b", run=fail), Task(name="c", run=nothing)])
    assert sent == [TaskStart(task="a"), TaskEnd(task="a"), TaskStart(task="b")]
    assert failure is not None
    assert (failure.task, str(failure)) == ("b", "no way")


def test_an_error_of_the_system_is_told_as_one_sentence() -> None:
    def fail(_context: Context) -> None:
        raise PermissionError(1, "Operation not permitted", "etc/shadow")

    _, failure = run([Task(name="a", run=fail)])
    assert str(failure) == "Operation not permitted (etc/shadow)"


def test_a_task_without_work_says_nothing() -> None:
    sent, _ = run([Task(name="a", run=nothing, applies=lambda _context: False)])
    assert sent == []
