"""Which tests one worker of pytest-xdist runs, because they share something that takes seconds.

The marker xdist_group would say it test by test, but has no effect with pytest 9.2 and xdist 3.8.
"""

from typing import Any

from xdist.scheduler import LoadScopeScheduling

# A word in the name of a test, and what the tests of that name share.
GROUPS = {
    "shard": "processes joined by gloo",
    "inductor": "Inductor, once it is imported",
    "test_cuda_code": "the machine code, once it is read",
    "test_mutations": "kernels with faults, once they are compiled",
}


def group_of(name: str) -> str:
    """The group of a test; its own name where it shares nothing."""
    return next((group for word, group in GROUPS.items() if word in name), name)


class Scheduling(LoadScopeScheduling):
    """Gives a worker that has little left the next group, those with the most tests first."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)

    def remove_node(self, node: Any) -> str | None:
        """Returns the test that a worker has died of, and gives what it has left to the others.

        Xdist 3.8 would also give them that test and those that are done, and then wait for ever.
        """
        groups = self.assigned_work[node]
        left = [
            (group, test) for group in groups for test, done in groups[group].items() if not done
        ]
        groups.clear()
        for group, test in left[1:]:
            groups.setdefault(group, {})[test] = False
        super().remove_node(node)
        return left[0][1] if left else None
