"""When one run had what another ended with: recipes are compared by what the same loss costs."""

from collections.abc import Iterator, Sequence

import numpy as np

from overnight.report import facts
from overnight.report.facts import Run
from overnight.terminal import count, duration


def crossings(compared: Sequence[Run]) -> Iterator[str]:
    """A sentence for each run whose last validation loss the best of them had after fewer tokens.

    Only of runs whose data are known to be the same, and which began with random weights. Losses are compared
    over the same validation tokens: those of most of the best run's validations. The best has a loss at the
    first validation that is no worse, which may be as late as its validations are rare. Times are compared on
    the same machine only.
    """
    fingerprints = {run.extra.get("data_fingerprint") for run in compared}
    fresh = [run for run in compared if run.config and not run.config.init_from]
    if len(fresh) < 2 or None in fingerprints or not facts.same_data([*compared]):
        return
    best = min(fresh, key=lambda run: run.loss if np.isfinite(run.loss) else np.inf)
    val = best.history.val
    alike = val.most_alike("val_tokens")
    for run in fresh:
        theirs = run.history.val
        same = np.flatnonzero(np.isin(theirs["val_tokens"], val["val_tokens"][alike]))
        if run is best or not len(same) or not np.isfinite(wanted := theirs["loss"][end := same[-1]]):
            continue
        reached = np.flatnonzero(alike & (val["loss"] <= wanted))
        if not len(reached) or not val["tokens"][at := reached[0]] < theirs["tokens"][end]:
            continue
        few, many = val["tokens"][at], theirs["tokens"][end]
        told = f"{best.name} has {run.name}'s {wanted:.4f} after {count(few)} tokens"
        told += f" in place of {count(many)} ({few / many:.0%})"
        if run.machine == best.machine:
            short, long = 3600 * val["hours"][at], 3600 * theirs["hours"][end]
            told += f", and {duration(short)} in place of {duration(long)}"
        yield f"{told}."
