"""What goes between a request and the model's thread: a Job there, tokens back through its Mailbox."""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field

from overnight.slots import Drawn, Text

MOST_UNTAKEN = 16_384  # tokens that wait for a client to read those before them

Ended = str
"""Why a text ended: stop (<|endoftext|>), length, or what went wrong."""


class Mailbox:
    """From the model's thread to the coroutine of a request: (which text, what of it).

    Each time that the coroutine's thread wakes, it takes a core from the model for a moment, so it is woken
    for the first token that it waits for and for the end of a text; between them it rests, and looks.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._there, self._ended = asyncio.Event(), asyncio.Event()
        self._items: deque[tuple[int, Drawn | Ended]] = deque()
        self._listening = False
        self.full = False
        """Whether tokens were lost, because nobody took those before them; the texts end then."""

    def put(self, which: int, what: Drawn | Ended) -> None:
        """Called by the model's thread."""
        self.full = self.full or len(self._items) >= MOST_UNTAKEN
        if self.full:
            self._wake(self._ended)
            self._wake(self._there)
            return
        self._items.append((which, what))
        if isinstance(what, Ended):
            self._wake(self._ended)
        if self._listening:  # looked at behind the item's coming, and set before items are looked at
            self._wake(self._there)

    def _wake(self, event: asyncio.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the server has stopped meanwhile
            self._loop.call_soon_threadsafe(event.set)

    async def take(self) -> list[tuple[int, Drawn | Ended]]:
        """All that has come since; waits for the first."""
        self._there.clear()
        self._listening = True
        if not self._items and not self.full:
            await self._there.wait()
        self._listening = False
        return [self._items.popleft() for _ in range(len(self._items))]

    async def rest(self, seconds: float) -> None:
        """Let more come, for so long or until a text has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        self._ended.clear()


@dataclass(eq=False)
class Job:
    """The texts of one prompt, which is read once for all of them."""

    texts: list[Text]
    length: int
    """Tokens of each, at most; 0: only the prompt is judged."""
    mailbox: Mailbox
    first: int = 0
    """The number of the first text in the mailbox."""
    judge_prompt: bool = False
    """Whether to tell the probabilities of the prompt's own tokens too, to the first text."""
    gone: bool = False
    """Whether nobody waits for any of it any more."""
    unwanted: set[int] = field(default_factory=set)
    """Texts that nobody waits for any more."""
    begun: int = 0
    """How many have joined the others that are being written."""

    def __post_init__(self) -> None:
        self.prompt = len(self.texts[0].ids)

    def tell(self, which: int, what: Drawn | Ended) -> None:
        self.mailbox.put(self.first + which, what)

    def wants(self, which: int) -> bool:
        return not self.gone and not self.mailbox.full and which not in self.unwanted
