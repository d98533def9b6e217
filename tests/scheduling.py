"""Which tests one worker of pytest-xdist runs, because they share something that takes seconds.

The marker xdist_group would say it test by test, but has no effect with pytest 9.2 and xdist 3.8.
"""

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
