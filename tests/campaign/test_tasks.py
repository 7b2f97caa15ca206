"""How a sample is cut into tasks: by what was done lately in half a second, with nothing lost or given twice."""

from __future__ import annotations

from kexecemu.campaign.tasks import Queue, Task

SAMPLE = [7 * position for position in range(1000)]


def sizes(queue: Queue, *done: int | None) -> list[int]:
    """How large the tasks are of which so many come back done, None for all."""
    found = []
    for some in done:
        task = queue.take()
        found.append(len(task.positions))
        queue.came_back(task, len(task.positions) if some is None else some)
    return found


def test_a_task_is_twice_as_large_as_the_last_that_was_done_whole_up_to_the_most() -> None:
    assert sizes(Queue([range(1000)], SAMPLE, 200), None, None, None, None) == [64, 128, 200, 200]
    assert sizes(Queue([range(1000)], SAMPLE, 20), None, None) == [20, 20]


def test_a_task_is_as_large_as_what_was_done_of_the_last_that_was_cut_off() -> None:
    assert sizes(Queue([range(1000)], SAMPLE, 200), 10, None, 1, 0, None) == [64, 10, 20, 1, 1]


def test_the_short_end_of_a_stretch_says_nothing_of_how_fast_it_goes() -> None:
    assert sizes(Queue([range(10), range(20, 1000)], SAMPLE, 200), None, None, None) == [10, 64, 128]


def test_what_is_not_done_of_a_task_is_given_again_before_anything_else() -> None:
    queue = Queue([range(100), range(200, 300)], SAMPLE, 200)
    first = queue.take()
    assert queue.came_back(first, 5) == Task(range(5), SAMPLE[:5])
    assert queue.take() == Task(range(5, 10), SAMPLE[5:10])
    seen = [*range(10)]
    while queue:
        task = queue.take()
        assert list(task.indices) == [SAMPLE[position] for position in task.positions]
        seen += queue.came_back(task, len(task.positions)).positions
    assert seen == [*range(100), *range(200, 300)]
