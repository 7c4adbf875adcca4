"""Reads the losses as they come in: updates that did not happen, and spikes."""

import math
from collections import deque
from collections.abc import Iterable

WINDOW = 128  # losses that a new one is compared with
LEAST = 32  # of them, before anything is called a spike
HALVINGS = 16  # GradScaler begins at 2**16 and halves its scale each time the gradients overflow
SIGMAS = 6.0  # above their mean; PaLM's authors (2022, section 5.1) met about 20 spikes in a run


class BadSteps(Exception):
    """So many updates in a row did not happen that there is no sense in going on; up to `step`."""

    def __init__(self, step: int, count: int):
        super().__init__(f"{count} updates up to step {step} did not happen")
        self.step, self.count = step, count


class Watch:
    """What the last losses were. `bad_steps`: updates in a row, up to now, that did not happen; those with
    which fp16 finds the scale of its gradients (`scaled`) are part of the method and do not count."""

    def __init__(self, bad_steps: int, losses: Iterable[float], scaled: bool):
        self.bad_steps = bad_steps
        self._losses = deque(losses, WINDOW)
        self._scaled, self._overflows = scaled, 0

    def nonfinite(self, loss: float, grad_norm: float) -> bool:
        """Whether the update of this loss and gradient norm did not happen: the rule of `train_step`."""
        bad = not math.isfinite(loss + grad_norm)
        self._overflows = self._overflows + 1 if bad and self._scaled and math.isfinite(loss) else 0
        if not 0 < self._overflows <= HALVINGS:
            self.bad_steps = self.bad_steps + 1 if bad else 0
        return bad

    def spike(self, loss: float) -> float:
        """By how many standard deviations a finite loss stands out above the ones before it; 0 if not by
        enough to be a spike."""
        before = self._losses
        sigmas = 0.0
        if len(before) >= LEAST:
            mean = sum(before) / len(before)
            deviation = math.sqrt(sum((one - mean) ** 2 for one in before) / len(before))
            above = (loss - mean) / max(deviation, 1e-6 * abs(mean), 1e-12)
            sigmas = above if above > SIGMAS else 0.0
        before.append(loss)
        return sigmas
