"""The graph of a definition's tasks: order, cycles, what can never run. Values in, values out; linear in its size."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_CYCLES = 10
"""Most cycles that one check reports."""

MAX_DRAWN = 12
"""Most task ids in the drawing of a cycle."""

Edges = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Order:
    """`tasks` in an order in which each follows what it depends on; `cycles` are what hinders one, each as a path."""

    tasks: tuple[str, ...]
    cycles: tuple[tuple[str, ...], ...]


def order_tasks(depends_on: Edges) -> Order:
    """Return a topological order, stable: of the tasks that are free, the one written first comes first.

    Args:
        depends_on: For each task the tasks before it. Ids that are no key are ignored.

    Source: A. B. Kahn, Topological sorting of large networks, 1962.
    """
    rank = {task_id: index for index, task_id in enumerate(depends_on)}
    before = {
        task_id: {name for name in names if name in rank and name != task_id}
        for task_id, names in depends_on.items()
    }
    dependents = dependents_of(before)
    waiting = {task_id: len(names) for task_id, names in before.items()}
    free = [rank[task_id] for task_id, count in waiting.items() if count == 0]
    names_by_rank = list(depends_on)
    ordered: list[str] = []
    while free:
        task_id = names_by_rank[heapq.heappop(free)]
        ordered.append(task_id)
        for name in dependents[task_id]:
            waiting[name] -= 1
            if waiting[name] == 0:
                heapq.heappush(free, rank[name])
    done = set(ordered)
    stuck = {task_id: names - done for task_id, names in before.items() if task_id not in done}
    return Order(tuple(ordered), _cycles(stuck, rank))


def dependents_of(depends_on: Mapping[str, Sequence[str] | set[str]]) -> dict[str, list[str]]:
    """Return for each task the tasks that depend on it, in the order they are written."""
    dependents: dict[str, list[str]] = {task_id: [] for task_id in depends_on}
    for task_id, names in depends_on.items():
        for name in names:
            if name in dependents:
                dependents[name].append(task_id)
    return dependents


def _cycles(stuck: Mapping[str, set[str]], rank: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    """Return cycles that share no task, found by a depth-first walk along "waits for" that keeps its own stack."""
    found: list[tuple[str, ...]] = []
    done: set[str] = set()
    for start in stuck:
        path: list[str] = [start]
        place = {start: 0}
        branches = [iter(sorted(stuck[start], key=rank.__getitem__))]
        while branches and start not in done and len(found) < MAX_CYCLES:
            following = next(branches[-1], None)
            if following is None:
                branches.pop()
                left = path.pop()
                del place[left]
                done.add(left)
            elif following in place:
                cycle = path[place[following] :]
                found.append(_rotated(cycle, rank))
                done.update(path)
                break
            elif following not in done:
                place[following] = len(path)
                path.append(following)
                branches.append(iter(sorted(stuck[following], key=rank.__getitem__)))
    return tuple(found)


def _rotated(cycle: list[str], rank: Mapping[str, int]) -> tuple[str, ...]:
    """Return the cycle beginning, and ending, with the task that is written first."""
    first = min(range(len(cycle)), key=lambda index: rank[cycle[index]])
    turned = cycle[first:] + cycle[:first]
    return (*turned, turned[0])


def draw_cycle(cycle: Sequence[str]) -> str:
    """Return `a -> b -> a`, shortened in the middle when it is long; each task waits for the one after it."""
    if len(cycle) <= MAX_DRAWN:
        return " -> ".join(cycle)
    half = MAX_DRAWN // 2
    left_out = len(cycle) - 2 * half
    return " -> ".join([*cycle[:half], f"... {left_out} more ...", *cycle[-half:]])


def ancestors_of(ordered: Sequence[str], depends_on: Edges) -> dict[str, int]:
    """Return for each task everything before it, as a bit set: bit i stands for `ordered[i]`."""
    bit = {task_id: index for index, task_id in enumerate(ordered)}
    before: dict[str, int] = {}
    for task_id in ordered:
        gathered = 0
        for name in depends_on[task_id]:
            if name in before:
                gathered |= before[name] | (1 << bit[name])
        before[task_id] = gathered
    return before


def unreachable_tasks(ordered: Sequence[str], depends_on: Edges, called_by: Edges) -> list[str]:
    """Return the tasks that can never run, in order.

    A task on call runs only when one that calls for it can; a task whose every dependency can never run
    is skipped with them.

    Args:
        called_by: For each task on call (a fallback, a reconcile task) the tasks that name it.
    """
    calls: dict[str, list[str]] = {task_id: [] for task_id in ordered}
    for task_id, users in called_by.items():
        for user in users:
            calls[user].append(task_id)
    waits_for = {
        task_id: [name for name in names if name not in called_by.get(task_id, ())]
        for task_id, names in depends_on.items()
    }
    feeds = dependents_of(waits_for)
    fed = {task_id for task_id in ordered if not waits_for[task_id]}
    called = {task_id for task_id in ordered if task_id not in called_by}
    reachable = fed & called
    frontier = list(reachable)
    while frontier:
        task_id = frontier.pop()
        fed.update(feeds[task_id])
        called.update(calls[task_id])
        for name in (*feeds[task_id], *calls[task_id]):
            if name in fed and name in called and name not in reachable:
                reachable.add(name)
                frontier.append(name)
    return [task_id for task_id in ordered if task_id not in reachable]
