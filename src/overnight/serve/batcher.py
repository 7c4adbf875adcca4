"""The thread that owns the model: requests' texts join it and leave it, a step writes one token of each.

The asyncio side, in another thread, talks to it through `submit`, and hears from it through the Mailbox of
each Job.
"""

import contextlib
import logging
import math
import queue
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from overnight import resolve, saved, world
from overnight.data import tokens
from overnight.data.tokens import Tokenizer
from overnight.decode import NOT_A_NUMBER, Sampling
from overnight.errors import UserError
from overnight.memory import is_out_of_memory
from overnight.models.linear import compute_dtype
from overnight.models.networks import Network
from overnight.packing import packed
from overnight.runs import TOKENIZER, existing, read_config
from overnight.serve.jobs import Job
from overnight.slots import Drawn, Slots, Text, judged

MOST_ROWS = 32  # texts at a time
MEMORY_SHARE = 0.25  # of the device's, for what they have seen
LOOK_EVERY = 2.0  # seconds between looks for a newer checkpoint
LONGEST_TOKEN = 10_000  # bytes; GPT-2's longest has 128
PART = 128  # positions whose logits are held at a time

TOO_MUCH = "the device's memory does not hold so many texts of this length"
DIVERGED = "the model's output is not a number: its weights have diverged"
BROKEN = "the server made a mistake; its log says which"
log = logging.getLogger("overnight.serve")


class Batcher:
    """A MODEL, served. Begins with its newest checkpoint and goes on to newer ones whenever nothing is being
    written. Raises UserError where there is no such MODEL; a run may have its first checkpoint later."""

    def __init__(self, name: str, device: torch.device, precision: str, tokenizer: str = "", rows: int = 0):
        self.name, self.device, self.wanted_precision = name, device, precision
        self.own_tokenizer, self.wanted_rows = tokenizer, rows
        base, step = ("", "") if name.startswith(resolve.OTHERS) else resolve.split_step(name)
        self.run = existing(base) if base else None
        self.follows = self.run is not None and not step
        self.loaded: resolve.Loaded | None = None
        self.error = ""
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._owners: dict[Text, tuple[Job, int]] = {}
        self._looked = -LOOK_EVERY
        self._tried: tuple[int, ...] | None = None
        """The newest checkpoint when one was last loaded, or could not be."""
        self.closing = False
        try:
            self._tried = self._newest() if self.follows else None
            self.loaded = resolve.load(self.name, self.device, self.own_tokenizer)
        except UserError as error:
            if not self.follows:
                raise
            self.error = str(error)
        own = self.loaded.tokenizer if self.loaded else tokens.load(Path(self.run or "") / TOKENIZER)
        if own is None:
            raise UserError(f"{name} comes without its tokenizer: give --tokenizer FILE.")
        if own.byte_lengths.max() > LONGEST_TOKEN:
            raise UserError(
                f"the tokenizer of {name} has tokens of over {LONGEST_TOKEN:,} bytes: use another."
            )
        self.tokenizer: Tokenizer = own
        if self.loaded:
            self.block_size = self.loaded.weights.config.block_size
            self._try_out(self.loaded)
        else:
            assert self.run is not None
            self.block_size = read_config(self.run)[0].model.block_size

    def _try_out(self, loaded: resolve.Loaded) -> None:
        """Write one token, so that what this machine cannot do is told before anybody asks."""
        try:
            with self._slots(loaded) as slots:
                slots.join([Text([self.tokenizer.eot], Sampling(0), 0)])
        except (RuntimeError, MemoryError) as error:
            wrong = f"cannot compute on {self.device} in --precision {self.wanted_precision}"
            if is_out_of_memory(error):
                wrong = "there is no memory for so many texts at a time: give fewer --rows"
            raise UserError(f"{wrong} ({next(iter(str(error).splitlines()), '')[:200]}).") from None

    @contextlib.contextmanager
    def _slots(self, loaded: resolve.Loaded) -> Iterator[Slots]:
        """Room for texts, and what it takes to compute them."""
        model = loaded.model
        precision = resolve.precision(self.wanted_precision, loaded, self.device)
        with torch.no_grad(), world.use_precision(precision, self.device)():
            rows = self.wanted_rows or rows_that_fit(model)
            with packed(model, rows):
                yield Slots(model, rows, min(model.n_tokens, self.tokenizer.vocab_size))

    def submit(self, job: Job) -> None:
        self._inbox.put(job)

    def close(self) -> None:
        """Let `work` return."""
        self.closing = True
        self._inbox.put(None)

    # What follows runs in the thread of `work`.

    def work(self) -> None:
        """Write what is asked for, until `close`."""
        while not self.closing:
            try:
                self._refresh()
                if self.loaded is not None:
                    self._serve(self.loaded)
                    continue
                reason = self.error
            except Exception as error:
                log.exception("the model's thread")
                reason = TOO_MUCH if is_out_of_memory(error) else BROKEN
            self._collect(wait=LOOK_EVERY)  # those who asked meanwhile are told too
            self._fail(reason)

    def _serve(self, loaded: resolve.Loaded) -> None:
        """Write with one checkpoint until there is a newer one and nothing is being written."""
        with self._slots(loaded) as slots:
            while not self.closing:
                idle = not slots.texts and not self._waiting
                self._collect(wait=LOOK_EVERY if idle else 0.0)
                if not slots.texts and self._refresh():
                    return
                self._drop(slots)
                self._admit(slots)
                if slots.texts:
                    self._deliver(slots, list(slots.texts), slots.step())

    def _collect(self, wait: float) -> None:
        """Take in what was submitted; wait for the first if there is nothing else to do."""
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._inbox.get(timeout=wait) if wait else self._inbox.get_nowait()
                wait = 0.0
                if job is not None:
                    self._waiting.append(job)

    def _refresh(self) -> bool:
        """Load a newer checkpoint, if a look is due and there is one."""
        now = time.monotonic()
        if self.run is None or not self.follows or now - self._looked < LOOK_EVERY:
            return False
        self._looked = now
        newest = self._newest()
        if newest is None or newest == self._tried:
            return False
        self._tried = newest
        try:
            loaded = resolve.load(self.name, self.device, self.own_tokenizer)
        except UserError:  # being taken away, or damaged: the old one stays
            return False
        if problem := self.problem(loaded):
            log.error("%s", problem)
            self.error = problem
            return False
        self.loaded, self.error = loaded, ""
        return True

    def _newest(self) -> tuple[int, ...] | None:
        """The newest checkpoint of the run: its step, and what of its files differs after the run was deleted
        and trained again, or once they have been copied completely."""
        assert self.run is not None
        try:
            step = saved.list_steps(self.run)[-1]
            folder = saved.folder(self.run, step)
            files = [(folder / name).stat() for name in (saved.STATE, saved.WEIGHTS)]
        except (IndexError, OSError):  # there is none, or it is being deleted
            return None
        return step, *(part for file in files for part in (file.st_ino, file.st_size, file.st_mtime_ns))

    def problem(self, loaded: resolve.Loaded) -> str:
        """Why a later checkpoint cannot be served; "" if it can. Waiting prompts were encoded, and shortened,
        with the tokenizer and block size that the server started with."""
        same_tokenizer = loaded.tokenizer and loaded.tokenizer.sha256 == self.tokenizer.sha256
        if same_tokenizer and loaded.weights.config.block_size == self.block_size:
            return ""
        return (
            f"{loaded.origin} has another tokenizer or block size than the run had before: "
            "it is not served. Restart `overnight serve`."
        )

    def _drop(self, slots: Slots) -> None:
        """Drop the texts whose clients are gone, those that wait in the queue too."""
        self._waiting = deque(job for job in self._waiting if not job.gone)
        self._leave(
            slots, [text for text in slots.texts if not self._owners[text][0].wants(self._owners[text][1])]
        )

    def _admit(self, slots: Slots) -> None:
        """Begin the texts that have waited longest, one prompt between two steps, so that those that are
        being written go on."""
        if not self._waiting or not slots.free:
            return
        job = self._waiting[0]
        if job.judge_prompt:
            job.judge_prompt = False
            judged = judge(slots.model, slots.n_ids, job.texts[0])
            if any(map(diverged, judged)):
                self._waiting.popleft()
                job.tell(0, DIVERGED)
                return
            for drawn in judged:
                job.tell(0, drawn)
        together = job.texts[job.begun : job.begun + slots.free] if job.length else []
        for text in together:
            self._owners[text] = (job, job.begun)
            job.begun += 1
        if not job.length or job.begun == len(job.texts):
            self._waiting.popleft()
        if together:
            self._deliver(slots, together, slots.join(together))
        else:
            for which in range(len(job.texts)):
                job.tell(which, "length")

    def _deliver(self, slots: Slots, texts: Sequence[Text], drawn: Sequence[Drawn]) -> None:
        """Tell everybody what was written, and let go of the texts that have ended."""
        over = []
        for text, one in zip(texts, drawn, strict=True):
            job, which = self._owners[text]
            reason = ""
            if diverged(one):
                reason = DIVERGED
            elif one.token == self.tokenizer.eot:
                reason = "stop"
            else:
                job.tell(which, one)
                reason = "length" if len(text.ids) - job.prompt == job.length else ""
            if reason:
                job.tell(which, reason)
                over.append(text)
        self._leave(slots, over)

    def _leave(self, slots: Slots, texts: list[Text]) -> None:
        slots.leave(texts)
        for text in texts:
            del self._owners[text]

    def _fail(self, reason: str) -> None:
        """Tell everybody who waits what went wrong."""
        for job, which in self._owners.values():
            job.tell(which, reason)
        for job in self._waiting:
            for which in range(job.begun, len(job.texts)):
                job.tell(which, reason)
        self._owners.clear()
        self._waiting.clear()


def judge(model: Network, n_ids: int, text: Text) -> list[Drawn]:
    """The prompt's own tokens from the second on, each with its probability after those before it."""
    ids = torch.tensor([text.ids], device=model.wte.weight.device)  # (1, T)
    hidden = model.hidden(ids)[0, :-1]  # (T - 1, C)
    told = []
    for begin in range(0, len(hidden), PART):
        for row, token in zip(
            model.logits(hidden[begin : begin + PART])[:, :n_ids].float(), text.ids[begin + 1 :], strict=False
        ):
            told.append(judged(row, token, text.alternatives or 0))
    return told


def diverged(drawn: Drawn) -> bool:
    """Whether the token, or one of the probabilities, is not a number."""
    logprobs = [logprob for _, logprob in drawn.likeliest]
    return drawn.token == NOT_A_NUMBER or not all(map(math.isfinite, [drawn.logprob or 0.0, *logprobs]))


def rows_that_fit(model: Network) -> int:
    """Texts at a time: as many as their keys and values leave room for, up to MOST_ROWS."""
    config, device = model.config, model.wte.weight.device
    one = 2 * config.n_layer * config.n_embd * config.block_size * compute_dtype(device).itemsize
    return max(1, min(MOST_ROWS, int(MEMORY_SHARE * world.device_memory(device, 1) / one)))
