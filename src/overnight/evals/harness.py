"""Our models in EleutherAI's lm-eval: all of its tasks, asked of the same model in the same way."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from overnight.data.tokens import Tokenizer
from overnight.decode import Sampling
from overnight.errors import UserError
from overnight.evals.continuations import Item, Score, score
from overnight.generate import generate
from overnight.models.networks import Network
from overnight.world import World

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    raise UserError("--harness needs EleutherAI's lm-eval: pip install 'overnight[eval]'") from None

Autocast = Callable[[], AbstractContextManager]


class OvernightLM(TemplateLM):
    """A model as lm-eval asks for it: likelihoods of continuations and of texts, and greedy or drawn text."""

    def __init__(self, model: Network, tokenizer: Tokenizer, world: World, autocast: Autocast):
        super().__init__()
        self.model, self.tokenizer, self.world, self.autocast = model, tokenizer, world, autocast

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eot

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.tokenizer.encode(string).tolist()

    def _score(self, items: Sequence[Item]) -> list[Score]:
        found = score(self.model, items, self.world, self.autocast)
        return [one for of_item in found for one in of_item]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Requests that follow each other with one context become one item, encoded once."""
        items: list[Item] = []
        for texts, context, continuation in requests:
            if not continuation:  # it is merged into the context's last token, or empty
                raise UserError(f"lm-eval asks how likely {texts[1]!r} is, which has no token of its own.")
            if items and items[-1].context == context:
                items[-1].continuations.append(continuation)
            else:
                items.append(Item(context, [continuation]))
        return [(one.log_likelihood, one.greedy) for one in self._score(items)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, each token predicted once, in lm-eval's windows: the last one reaches back."""
        size, found = self.model.config.block_size, []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            pairs = map(make_disjoint_window, get_rolling_token_windows(ids, self.prefix_token_id, size, 1))
            windows = [Item(context, [continuation]) for context, continuation in pairs]
            found.append(float(np.sum([one.log_likelihood for one in self._score(windows)])))
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Text up to one of the `until` strings, <|endoftext|> or max_gen_toks."""
        return [self._generate(*request.args) for request in requests]

    def _generate(self, prompt: str, how: dict[str, Any]) -> str:
        how = dict(normalize_gen_kwargs(how | {"until": how.get("until") or []}))
        until, length = [stop for stop in how["until"] if stop], how["max_gen_toks"]
        sampling = Sampling(how["temperature"] if how["do_sample"] else 0.0)
        ids = self.tok_encode(prompt) or [self.prefix_token_id]
        ids = ids[-max(1, self.model.config.block_size - length) :]
        written: list[int] = []
        text = ""
        with self.autocast():
            start = torch.tensor(ids, device=self.world.device)
            for (token,) in generate(self.model, [start], length, sampling, 0, self.tokenizer.vocab_size):
                if token == self.eot_token_id:
                    break
                written.append(token)
                text = self.tokenizer.decode(written)
                if any(stop in text for stop in until):
                    break
        return postprocess_generated_text(text, until, None)


def harness(
    model: Network, tokenizer: Tokenizer, tasks: Sequence[str], items: int, world: World, autocast: Autocast
) -> dict[str, dict[str, Any]]:
    """lm-eval's results: task -> {metric: value}. items: of each task, 0 for all.

    Raises UserError for a task that lm-eval does not have, and for data that it cannot fetch.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    matched = {task: manager.match_tasks([task]) for task in tasks}  # 'arc_*' is several
    unknown = [task for task, names in matched.items() if not names]
    if unknown:
        raise UserError(f"lm-eval has no task {', '.join(unknown)} (`lm-eval ls tasks` lists them).")
    lm = OvernightLM(model, tokenizer, world, autocast)
    names = [name for names in matched.values() for name in names]
    try:
        found = simple_evaluate(
            lm, tasks=names, limit=items or None, bootstrap_iters=0, task_manager=manager, log_samples=False
        )
    except OSError as error:  # the hub's errors, offline mode included, are all of this kind
        raise UserError(
            f"lm-eval cannot read its data: {error}", "Tasks fetch theirs from the hub, or from its cache."
        ) from None
    return {task: numbers(results) for task, results in found["results"].items()}


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's 'acc,none' as 'acc'; standard errors and names are left out."""
    return {
        name.removesuffix(",none"): value
        for name, value in results.items()
        if isinstance(value, int | float) and "stderr" not in name
    }
