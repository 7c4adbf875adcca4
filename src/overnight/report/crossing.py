"""When one run had what another ended with: recipes are compared by what the same loss costs."""

from collections.abc import Iterator, Sequence

import numpy as np

from overnight.report import facts
from overnight.report.facts import Run
from overnight.terminal import count, duration


def crossings(compared: Sequence[Run]) -> Iterator[str]:
    """A sentence for each run whose last validation loss the best of them had earlier; none where nothing
    says that their data are the same.

    Losses are compared over the same validation tokens: those of most of the best run's validations. The
    best has it at the first validation that is no worse, which may be as late as its validations are rare.
    """
    fingerprints = {run.extra.get("data_fingerprint") for run in compared}
    if len(compared) < 2 or len(fingerprints) > 1 or None in fingerprints or not facts.same_data([*compared]):
        return
    best = min(compared, key=lambda run: run.loss if np.isfinite(run.loss) else np.inf)
    val = best.history.val
    alike = val.most_alike("val_tokens")
    for run in compared:
        theirs = run.history.val
        same = np.flatnonzero(np.isin(theirs["val_tokens"], val["val_tokens"][alike]))
        if run is best or not len(same) or not np.isfinite(wanted := theirs["loss"][same[-1]]):
            continue
        reached = np.flatnonzero(alike & (val["loss"] <= wanted))
        if len(reached):
            at, end = reached[0], same[-1]
            few, many = (columns["tokens"][row] for columns, row in ((val, at), (theirs, end)))
            short, long = (3600 * columns["hours"][row] for columns, row in ((val, at), (theirs, end)))
            yield (
                f"{best.name} has {run.name}'s {wanted:.4f} after {count(few)} tokens in place of "
                f"{count(many)} ({few / many:.0%}) and {duration(short)} in place of {duration(long)}."
            )
