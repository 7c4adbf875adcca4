"""What is measured of a run while it trains: validation loss, HellaSwag, samples; each said and recorded."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager

from overnight import errors
from overnight.config import Config
from overnight.data.batches import key
from overnight.data.manifest import Data
from overnight.decode import Sampling
from overnight.evals import reference
from overnight.evals.hellaswag import Question, hellaswag
from overnight.evals.loss import validation
from overnight.generate import collect, continuations
from overnight.models.networks import Network
from overnight.records import Records
from overnight.terminal import Status
from overnight.visible import visible
from overnight.world import World


class Evaluator:
    """Measures the plain model, whose shapes may change, never the compiled or sharded one. Every rank has
    one; records is None on all but the first. `tokens`: trained on so far, for the records. Each raises
    Abandoned, and records nothing, where `asked` says meanwhile that the run should stop."""

    def __init__(
        self,
        config: Config,
        data: Data,
        questions: list[Question],
        world: World,
        autocast: Callable[[], AbstractContextManager],
        records: Records | None,
        status: Status,
        asked: Callable[[], object] = lambda: "",
    ):
        self.asked = asked
        self.config, self.data, self.questions = config, data, questions
        self.world, self.autocast, self.records, self.status = world, autocast, records, status

    def progress(self, step: int, what: str) -> Callable[[int, int], object]:
        def show(done: int, total: int) -> object:
            self.status.update(lambda: f"step {step:,}: {what} {done:,} of {total:,}")
            return self.asked()

        return show

    def validate(self, model: Network, step: int, tokens: int, limit: int | None) -> dict[str, float]:
        """Loss, bits_per_byte and tokens of the first `limit` tokens of the validation split, or of all."""
        found = dict(
            validation(
                model, self.data.split("val"), self.data.tokenizer.byte_lengths,
                self.config.model.block_size, limit, self.world, self.autocast,
                self.progress(step, "validating, window"),
            )
        )  # fmt: skip
        loss, bits, predicted = found["loss"], found["bits_per_byte"], int(found["tokens"])
        if self.records:
            self.records.val(step, tokens, loss, bits, predicted)
        self.status.say(
            f"step {step:,}: validation loss {loss:.4f}, {bits:.4f} bits per byte ({predicted:,} tokens)"
        )
        if warning := reference.unusual(self.data.manifest, self.config, step, loss):
            if self.records:
                self.records.event(step, tokens, "unusual_loss", {"loss": loss, "detail": warning})
            self.status.say(f"step {step:,}: {warning}")
        if step == self.config.steps:
            for line in reference.standing(self.data.manifest, loss):
                self.status.say(f"step {step:,}: validation loss {line}")
        return {"loss": loss, "bits_per_byte": bits, "tokens": predicted}

    def hellaswag(self, model: Network, step: int, tokens: int) -> None:
        """HellaSwag in the lecture's style, on config.hellaswag_items questions."""
        found = dict(
            hellaswag(
                model, self.data.tokenizer, self.questions, "completion", self.world, self.autocast,
                self.progress(step, "HellaSwag, batch"),
            )
        )  # fmt: skip
        acc, acc_norm, style, items = (found[name] for name in ("acc", "acc_norm", "style", "items"))
        if self.records:
            self.records.hellaswag(step, tokens, acc, acc_norm, style, items)
        self.status.say(
            f"step {step:,}: HellaSwag acc_norm {acc_norm:.4f}, acc {acc:.4f} ({style}, {items:,} items)"
        )
        if step == self.config.steps:
            for line in reference.standing_hellaswag(style, acc_norm, items):
                self.status.say(f"step {step:,}: HellaSwag {line}")

    def sample(self, model: Network, step: int, tokens: int) -> None:
        """What the model writes now. The first rank does it alone, and alone may abandon it."""
        if self.records is None:
            return
        wanted = self.config.sample
        seed = key(self.config.seed, step)
        try:
            with self.autocast():
                rows = continuations(
                    model, self.data.tokenizer, [wanted.prompt] * wanted.count, wanted.length,
                    Sampling(), seed,
                )  # fmt: skip
                written = collect(self.data.tokenizer, self.until_asked(rows), wanted.count)
        except errors.Failure as error:
            self.records.event(step, tokens, "nonfinite", {"in": "sample"})
            self.status.say(f"step {step:,}: no sample: {error}")
            return
        for text in written:
            self.records.sample(step, tokens, wanted.prompt, text)
        first_line = " ".join((wanted.prompt + written[0]).split())[:90]
        self.status.say(f"step {step:,}: sample: {visible(first_line)}")

    def until_asked(self, rows: Iterable[list[int | None]]) -> Iterator[list[int | None]]:
        for row in rows:
            if self.asked():
                raise errors.Abandoned
            yield row
