"""`GET /v1/models` and `POST /v1/completions`, as OpenAI's clients expect them."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from overnight.data.batches import key
from overnight.serve import fields
from overnight.serve.batcher import Batcher
from overnight.serve.fields import Asked, Limits
from overnight.serve.jobs import Job, Mailbox
from overnight.serve.refusal import Refusal
from overnight.serve.writing import Writing, echoed
from overnight.slots import Drawn, Text

FLUSH = 0.05  # seconds: what is written meanwhile goes out together
UNSEEN = 0.5  # seconds between looks at what nobody sees before its end


class Completions:
    """Answers of one served model."""

    def __init__(self, batcher: Batcher, model: str, limits: Limits, stopping: asyncio.Event):
        self.batcher, self.model, self.limits, self.stopping = batcher, model, limits, stopping
        self.open_texts = self.open_echo = 0
        """Texts, and echoed characters, of all answers that are being written or sent."""
        self.created = int(time.time())

    async def models(self, request: Request) -> Response:
        about = {"id": self.model, "object": "model", "created": self.created, "owned_by": "overnight"}
        return JSONResponse({"object": "list", "data": [about]})

    async def create(self, request: Request) -> Response:
        """One request, all at once or as a stream of events."""
        batcher = self.batcher
        asked = fields.read(
            await request.body(), self.model, batcher.tokenizer, batcher.block_size, self.limits
        )
        if batcher.loaded is None:
            raise Refusal(503, batcher.error or "There is no checkpoint yet.", code="no_checkpoint")
        if self.stopping.is_set():
            raise Refusal(503, "The server is stopping.")
        done = self.hold(asked)
        answer = Answer(self, asked)
        if asked.stream:
            return Events(answer.events(), done)
        try:
            return Whole(await answer.whole(request), done)
        except BaseException:
            done()
            raise

    def hold(self, asked: Asked) -> Callable[[], None]:
        """Count the request until the returned function is called. Raises Refusal if the server is full."""
        texts, echo = asked.n * len(asked.prompts), asked.n * sum(map(len, asked.shown))
        if self.open_texts + texts > self.limits.waiting:
            raise Refusal(429, "Too many texts are being written: try again.", code="rate_limit_exceeded")
        if self.open_echo + echo > self.limits.echo:
            raise Refusal(429, "Too many prompts are being echoed: try again.", code="rate_limit_exceeded")
        self.open_texts += texts
        self.open_echo += echo

        def done() -> None:
            self.open_texts -= texts
            self.open_echo -= echo

        return done


class Answer:
    """The texts of one request. Whatever way it is left, the model's thread forgets it."""

    def __init__(self, server: Completions, asked: Asked):
        self.server, self.asked = server, asked
        self.head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": server.model,
        }
        self.mailbox = Mailbox()
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        self.writings: list[Writing] = []
        self.jobs: list[Job] = []
        judge = asked.echo and asked.logprobs is not None
        for number, ids in enumerate(asked.prompts):
            # The first is what `overnight sample` writes with this seed.
            seeds = [seed % 2**63 if k == 0 else key(seed % 2**63, k) for k in range(asked.n)]
            texts = [Text(list(ids), asked.sampling, one, asked.logprobs) for one in seeds]
            self.jobs.append(Job(texts, asked.max_tokens, self.mailbox, number * asked.n, judge))
            for _ in texts:
                writing = Writing(server.batcher.tokenizer, asked.stop, asked.logprobs is not None)
                writing.offset = len(asked.shown[number]) if asked.echo else 0
                self.writings.append(writing)
        self.judged: list[list[Drawn]] = [[] for _ in asked.prompts]
        self.tokens = 0

    async def pieces(self) -> AsyncGenerator[list[int]]:
        """The numbers of the texts that have something new, until all have ended."""
        server, end = self.server, time.monotonic() + self.server.limits.seconds
        pause = FLUSH if self.asked.stream or self.asked.stop else UNSEEN
        stopping = asyncio.create_task(server.stopping.wait())
        taking: asyncio.Task[list[tuple[int, Drawn | str]]] | None = None
        try:
            for job in self.jobs:
                server.batcher.submit(job)
            while not self.finished():
                left = end - time.monotonic()
                taking = asyncio.create_task(self.mailbox.take())
                await asyncio.wait({taking, stopping}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if stopping.done():
                    raise Refusal(503, "The server is stopping.")
                if not taking.done() or left <= 0:
                    told = f"This took over {server.limits.seconds:,.0f} seconds: ask for fewer tokens."
                    raise Refusal(400, told, code="timeout")
                if self.mailbox.full:
                    raise Refusal(400, "The text comes faster than it is read.", code="too_slow")
                touched = {which: None for which, what in taking.result() if self.hear(which, what)}
                if touched:
                    yield list(touched)
                if not self.finished():
                    await self.mailbox.rest(pause)
        finally:
            for job in self.jobs:
                job.gone = True
            waits = [task for task in (stopping, taking) if task]
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def finished(self) -> bool:
        return all(writing.finish for writing in self.writings)

    def hear(self, which: int, what: Drawn | str) -> bool:
        """Take in what the model's thread says of a text."""
        job, writing = self.jobs[which // self.asked.n], self.writings[which]
        if isinstance(what, str):
            if what not in ("stop", "length"):
                raise Refusal(500, what)
            writing.end(what)
        elif job.prompt - 1 > len(judged := self.judged[which // self.asked.n]) and self.judges(which):
            judged.append(what)
            return False
        else:
            self.tokens += not writing.finish
            writing.add(what)
            if writing.finish:
                job.unwanted.add(which % self.asked.n)
        return True

    def judges(self, which: int) -> bool:
        """Whether what is told of this text begins with its prompt's probabilities."""
        return self.asked.echo and self.asked.logprobs is not None and which % self.asked.n == 0

    def choice(self, which: int, first: bool) -> dict[str, Any]:
        """What is new of a text, behind its prompt if that is to be echoed."""
        writing, prompt = self.writings[which], which // self.asked.n
        text, logprobs = writing.take()
        if first and self.asked.echo:
            text = self.asked.shown[prompt] + text
            if logprobs is not None:
                before = echoed(writing, self.asked.prompts[prompt], self.judged[prompt])
                logprobs = {name: before[name] + logprobs[name] for name in before}
        return {"text": text, "index": which, "logprobs": logprobs, "finish_reason": writing.finish or None}

    def usage(self) -> dict[str, int]:
        prompt = self.asked.prompt_tokens
        return {
            "prompt_tokens": prompt, "completion_tokens": self.tokens, "total_tokens": prompt + self.tokens
        }  # fmt: skip

    async def whole(self, request: Request) -> bytes:
        """The answer at once, as JSON. A client that goes away meanwhile ends it."""

        async def write() -> None:
            async with aclosing(self.pieces()) as pieces:
                async for _ in pieces:
                    pass

        writing, leaving = asyncio.create_task(write()), asyncio.create_task(gone(request))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                raise Refusal(400, "The client has gone.")
            writing.result()
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)
        return await asyncio.to_thread(self.complete)

    def complete(self) -> bytes:
        """The whole answer as JSON."""
        choices = (self.choice(which, first=True) for which in range(len(self.writings)))
        return self.encoded(choices, usage=self.usage())

    def encoded(self, choices: Iterable[dict[str, Any]], **rest: Any) -> bytes:
        """An answer or a part of it as JSON. Each text on its own: json.dumps lets no other thread run
        before it returns."""
        texts = b",".join(compact(choice) for choice in choices)
        return b'{"choices":[' + texts + b"]," + compact(self.head | rest)[1:]

    def step(self, touched: list[int], begun: set[int], ended: set[int]) -> bytes:
        """The event for what is new of the texts `touched`, if anything; notes which have begun and ended."""
        choices = [self.choice(which, which not in begun) for which in touched if which not in ended]
        choices = [one for one in choices if one["text"] or one["finish_reason"]]
        begun |= {choice["index"] for choice in choices}
        ended |= {choice["index"] for choice in choices if choice["finish_reason"]}
        return b"data: " + self.encoded(choices) + b"\n\n" if choices else b""

    async def events(self) -> AsyncGenerator[bytes]:
        """The answer as it is written: server-sent events, [DONE] last."""
        begun: set[int] = set()
        ended: set[int] = set()
        try:
            async with aclosing(self.pieces()) as pieces:
                async for touched in pieces:
                    # Probabilities can take seconds to encode; text takes less than handing it to a thread.
                    step = partial(self.step, touched, begun, ended)
                    if said := step() if self.asked.logprobs is None else await asyncio.to_thread(step):
                        yield said
            if self.asked.usage:
                yield event(self.head | {"choices": [], "usage": self.usage()})
            yield b"data: [DONE]\n\n"
        except Refusal as refusal:
            yield event(refusal.described())


class Whole(Response):
    """An answer at once. `done` is called when the client has read all but the last pieces, or has gone."""

    media_type = "application/json"

    def __init__(self, content: bytes, done: Callable[[], None]):
        super().__init__(content)
        self.done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.done()


class Events(StreamingResponse):
    """A stream of server-sent events. However it ends, its source is closed at once, and `done` is called."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncGenerator[Any, None], done: Callable[[], None] = lambda: None):
        super().__init__(content)
        self.source, self.done = content, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self.source):
                await super().__call__(scope, receive, send)
        finally:
            self.done()


def compact(content: dict[str, Any]) -> bytes:
    """JSON in ASCII: some clients end the line of an event at U+2028 or U+0085."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def event(content: dict[str, Any]) -> bytes:
    return b"data: " + compact(content) + b"\n\n"


async def gone(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
