"""Requests in the model's thread, without the server around it."""

import asyncio
from pathlib import Path

import torch

from overnight.decode import Sampling
from overnight.serve.batcher import Batcher
from overnight.serve.jobs import Job, Mailbox
from overnight.slots import Text


def job(length: int = 100) -> Job:
    return Job([Text([0], Sampling(0), 0)], length, Mailbox())


def test_abandoned_requests_are_dropped_wherever_they_wait(trained: Path) -> None:
    """Also after one that nobody has abandoned, which waits for a row."""

    async def ask() -> None:
        batcher = Batcher(str(trained), torch.device("cpu"), "fp32", rows=1)
        written, waits = job(), job()
        abandoned = [job() for _ in range(20)]
        for one in (written, waits, *abandoned):
            batcher.submit(one)
        assert batcher.loaded
        with batcher._slots(batcher.loaded) as slots:
            for _ in range(2):
                batcher._collect(wait=0.0)
                batcher._drop(slots)
                batcher._admit(slots)
                assert slots.texts == written.texts
                for one in abandoned:
                    one.gone = True
            assert list(batcher._waiting) == [waits]

    asyncio.run(ask())
