"""What can be said of a run, in sentences, the most important first.

A loss is judged only where the data proves itself to be a published corpus (evals/reference.py). Elsewhere
there are yardsticks: what guessing evenly would lose, what xz makes of the same text.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np

from overnight.data.manifest import Data
from overnight.evals import reference
from overnight.presets import usual_lr
from overnight.report.facts import Run, steadily
from overnight.terminal import count, duration
from overnight.visible import one_line, shell_path

ROSE = 0.01  # nats above its best at which a validation loss has risen
DEAD = 10  # updates in a row without any gradient
FAR_ABOVE = 1.0  # nats above guessing evenly; a model that has learnt nothing yet is up to half of one above

Tone = Literal["good", "plain", "warning", "bad"]


@dataclass(frozen=True)
class Sentence:
    tone: Tone
    text: str


def verdict(run: Run, now: datetime | None = None) -> list[Sentence]:
    """What one should know of a run in the morning."""
    now = now or datetime.now(UTC)
    return [*results(run), *health(run), *standing(run, now), *warnings(run, now)]


def results(run: Run) -> Iterator[Sentence]:
    """The losses and accuracies, beside published ones where there are any."""
    history = run.history
    if not len(history.val):
        if len(history.train):
            yield Sentence("plain", f"Not validated yet. Training loss {history.train.last('loss'):.4f}.")
        return
    loss, bits, tokens = run.loss, history.val.last("bits_per_byte"), history.val["tokens"][-1]
    after = f"after {count(tokens)} tokens"
    if math.isnan(loss):
        known = np.flatnonzero(np.isfinite(history.val["loss"]))
        was = history.val["step"][known[-1]] if len(known) else 0
        since = f" The last that was is of step {was:,.0f}." if len(known) else ""
        yield Sentence("bad", f"The validation loss {after} is not a number.{since}")
        return
    published = list(reference.standing(run.data.manifest, loss)) if run.data else []
    told = f"Validation loss {loss:.4f} {after}"
    if published:
        tone: Tone = "good" if all(one.better for one in published) else "plain"
        yield Sentence(tone, f"{told}: {'; '.join(map(str, published))}.")
    else:
        yield Sentence("plain", f"{told}, {bits:.4f} bits per byte.")
        if run.data:
            yield Sentence("plain", yardsticks(run, run.data))
    if len(history.hellaswag):
        yield hellaswag(run)


def health(run: Run) -> Iterator[Sentence]:
    """Whether the model still learns, and whether it has learnt anything."""
    history, remedy = run.history, "Start a new run with a lower learning rate"
    if run.config:
        remedy += f": --optim.lr {usual_lr(run.preset, run.config.optim.lr):g}"
    if dead := dead_updates(history.train["grad_norm"]):
        first = history.train["step"][-dead]
        yield Sentence(
            "bad",
            f"The gradient has been exactly 0 since step {first:,.0f} ({dead:,} updates): the model does not "
            f"learn any more, its activations are dead or have overflowed. {remedy}.",
        )
    loss, which = (run.loss, "validation") if len(history.val) else (recent_loss(run), "training")
    if (ids := run.vocabulary) and loss > math.log(ids) + FAR_ABOVE:
        yield Sentence(
            "bad",
            f"A {which} loss of {loss:,.4g} is far above {math.log(ids):.4f}, which guessing evenly among "
            f"{ids:,} tokens would lose: the weights have diverged. {remedy}.",
        )


def dead_updates(norms: np.ndarray) -> int:
    """How many updates at the end have had a gradient of exactly 0; 0 where so few say nothing."""
    alive = np.flatnonzero(norms != 0)
    dead = len(norms) - (int(alive[-1]) + 1 if len(alive) else 0)
    return dead if dead >= DEAD or dead == len(norms) else 0


def recent_loss(run: Run) -> float:
    """The training loss of the last updates, whatever one of them may have had."""
    return steadily(run.history.train["loss"][-DEAD:])


def yardsticks(run: Run, data: Data) -> str:
    """What a loss on a text of one's own can be held against."""
    said = ["No published result is on this text, so there is no verdict."]
    if run.xz is not None:
        said.append(f"`xz -9e` makes {run.xz:.4f} bits per byte of the same text.")
    ids = data.tokenizer.vocab_size
    said.append(f"Guessing evenly among {ids:,} tokens would lose {math.log(ids):.4f}.")
    return " ".join(said)


def hellaswag(run: Run) -> Sentence:
    asked, style = run.history.hellaswag, run.history.style
    acc_norm, items = asked.last("acc_norm"), asked.last("items")
    told = f"HellaSwag {acc_norm:.4f} (acc_norm, {style} style, {items:,.0f} items)"
    published = list(reference.standing_hellaswag(style, acc_norm, items))
    if not published:
        return Sentence("plain", told + ": published results are on other items.")
    return Sentence("good" if published[0].better else "plain", f"{told}: {'; '.join(map(str, published))}.")


def standing(run: Run, now: datetime) -> Iterator[Sentence]:
    """Where the run is, how long it took and, if it goes on, takes."""
    history, state = run.history, run.state(now)
    done = f"{history.step:,} of {run.steps:,} steps" if run.steps else f"{history.step:,} steps"
    took = f"{duration(3600 * history.hours)} of training"
    rate = steadily(history.train["tokens_per_second"])
    pace = f", {rate:,.0f} tokens/s" if rate == rate else ""
    left = run.seconds_left()
    match state:
        case "complete":
            yield Sentence("good", f"Complete: {done}, {took}{pace}, on {run.machine}.")
        case "training":
            wait = f", about {duration(left)} left" if left else ""
            yield Sentence("plain", f"Training: {done}, {took} so far{pace}{wait}.")
        case "stopped":
            ended = history.events_named("preempted", "interrupted")[-1]["name"]
            yield Sentence("warning", f"Stopped ({ended}) after {done}, saved. The same command goes on.")
        case "gave up":
            yield Sentence("bad", f"Gave up after {done}: the loss would not stay finite.")
        case _ if history.session is None:
            yield Sentence("warning", "Nothing is recorded of this run.")
        case _:
            time = history.last_time
            last = f": the last record is of {time:%Y-%m-%d %H:%M:%S} UTC" if time else ""
            yield Sentence(
                "bad",
                f"Ended without a word after {done}{last}. "
                "The same command goes on from the newest checkpoint.",
            )


def rising(run: Run) -> Iterator[Sentence]:
    """Whether the losses of the same tokens, which the last validation of all of them is not one of, have
    risen from their best."""
    val = run.history.val
    same = val.most_alike("val_tokens")
    steps, losses = val["step"][same], val["loss"][same]
    if np.isfinite(losses).sum() < 2 or not losses[-1] > (best := np.nanmin(losses)) + ROSE:
        return
    at = int(steps[np.nanargmin(losses)])
    there = (run.path / "checkpoints" / f"step_{at:08d}").is_dir()
    kept = f" Its checkpoint is there: {shell_path(f'{run.path}@{at}')}." if there else ""
    yield Sentence(
        "warning",
        f"The validation loss was best at step {at:,} ({best:.4f}) and has risen since, "
        f"to {losses[-1]:.4f} at step {steps[-1]:,.0f}.{kept}",
    )


def warnings(run: Run, now: datetime) -> Iterator[Sentence]:
    """What should make one look twice."""
    history = run.history
    yield from rising(run)
    if unusual := history.events_named("unusual_loss"):
        detail = unusual[-1]["detail"].get("detail")
        what = (
            one_line(detail[:500]) if isinstance(detail, str) else "the loss is not normal for this recipe."
        )
        yield Sentence("bad", f"Step {unusual[-1]['step']:,}: {what}")
    if happened := trouble(run):
        grave = {"nonfinite", "gone_back", "save_failed", "records_mended", "unusual_loss"}
        tone: Tone = "warning" if history.events_named(*grave) else "plain"
        yield Sentence(tone, f"On the way: {', '.join(happened)}.")
    elif history.step:
        calm = ", no interruption" if run.state(now) in ("complete", "training") else ""
        yield Sentence("plain", f"On the way: no loss spike, no update that was not finite{calm}.")
    if history.damaged:
        lines, were = ("line", "was") if history.damaged == 1 else ("lines", "were")
        yield Sentence("warning", f"{history.damaged:,} damaged {lines} of records.jsonl {were} left out.")
    if history.events.left_out:
        yield Sentence("warning", f"The first {history.events.left_out:,} events are too many to be counted.")
    for problem in run.problems:
        yield Sentence("warning", problem)


# Event -> what to call it once, and several times.
TROUBLE = {
    "spike": ("loss spike", "loss spikes"),
    "nonfinite": ("update that was not finite", "updates that were not finite"),
    "gone_back": ("return to an earlier checkpoint", "returns to an earlier checkpoint"),
    "save_failed": ("save that failed", "saves that failed"),
    "records_mended": (
        "change of its records by another program",
        "changes of its records by other programs",
    ),
    "data_touched": ("change of its data by another program", "changes of its data by other programs"),
    "unusual_loss": ("validation outside its recipe's band", "validations outside their recipe's band"),
    "preempted": ("preemption", "preemptions"),
    "interrupted": ("interruption", "interruptions"),
    "resume": ("resume", "resumes"),
}


def trouble(run: Run) -> list[str]:
    """What happened that should not, and how often: '2 loss spikes'."""
    counts = {name: run.history.count(name) for name in TROUBLE}
    counts["resume"] -= min(counts["resume"], counts["gone_back"])  # each way back is a resume too
    return [f"{count} {TROUBLE[name][count > 1]}" for name, count in counts.items() if count]
