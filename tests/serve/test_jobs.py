"""Tokens that nobody takes do not pile up."""

import asyncio

from overnight.decode import Sampling
from overnight.serve.jobs import MOST_UNTAKEN, Job, Mailbox
from overnight.slots import Drawn, Text


def test_a_text_ends_when_its_client_is_far_behind() -> None:
    async def write() -> None:
        mailbox = Mailbox()
        job = Job([Text([0], Sampling(), 0)], 10**9, mailbox)
        for _ in range(3):  # as long as they are taken, any number may come
            for token in range(MOST_UNTAKEN):
                job.tell(0, Drawn(token))
            assert job.wants(0)
            assert len(await mailbox.take()) == MOST_UNTAKEN
        for token in range(MOST_UNTAKEN + 1):
            job.tell(0, Drawn(token))
        assert not job.wants(0)
        job.tell(0, Drawn(1))
        assert mailbox.full
        assert len(await mailbox.take()) == MOST_UNTAKEN

    asyncio.run(write())


def test_who_waits_for_a_token_hears_that_there_will_be_none() -> None:
    async def write() -> None:
        mailbox = Mailbox()
        job = Job([Text([0], Sampling(), 0)], 10**9, mailbox)
        for token in range(MOST_UNTAKEN + 1):
            job.tell(0, Drawn(token))
        assert await asyncio.wait_for(mailbox.take(), 60)
        assert await asyncio.wait_for(mailbox.take(), 60) == []

    asyncio.run(write())
