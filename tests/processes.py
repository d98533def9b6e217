"""Processes joined by gloo, started once, that run one check after another."""

import faulthandler
import os
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Check = Callable[[int], None]
TIMEOUT = timedelta(minutes=2)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@cache
def mesh_of(*shape: int) -> Any:
    """A device mesh of these processes, the same one each time: torch.compile of 2.13 fails where
    what DTensors remember is of another mesh that is equal."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape, mesh_dim_names=("first", "second")[: len(shape)])


class Processes:
    """Runs a function of the module of a test, given the number of processes, in all of them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pipes: list[Connection] = []

    def __call__(self, check: Check) -> None:
        if not self.pipes:
            self._start()
        for pipe in self.pipes:
            pipe.send(check)
        waiting = list(self.pipes)
        while waiting:
            for pipe in wait(waiting):
                try:
                    error = pipe.recv()  # type: ignore[union-attr]
                except EOFError:
                    error = "a process has died; what it said is on stderr"
                if error is not None:
                    self.stop()  # the others may wait for this one
                    raise AssertionError(error)
                waiting.remove(pipe)  # type: ignore[arg-type]

    def _start(self) -> None:
        port, context = free_port(), mp.get_context("spawn")
        self.running = []
        for rank in range(self.number):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(there, rank, self.number, port), daemon=True
            )
            process.start()
            there.close()
            self.pipes.append(here)
            self.running.append(process)

    def stop(self) -> None:
        for pipe, process in zip(self.pipes, self.running if self.pipes else (), strict=True):
            pipe.close()
            process.kill()
            process.join()
        self.pipes = []


def _serve(pipe: Connection, rank: int, number: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    faulthandler.enable()  # a process that dies says where
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=number, timeout=TIMEOUT)
    while True:
        try:
            check = pipe.recv()
        except EOFError:
            return
        error: Any = None
        try:
            torch.manual_seed(0)
            check(number)
        except BaseException:
            error = f"process {rank} of {number}:\n{traceback.format_exc()}"
        pipe.send(error)
