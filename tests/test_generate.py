"""Sampling: what is drawn, that the cache changes nothing, and that no id is outside the vocabulary."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from overnight import packing
from overnight.config import ModelConfig
from overnight.data.tokens import train_bpe, train_char
from overnight.decode import NOT_A_NUMBER, Decoder, Sampling, draw
from overnight.errors import Failure
from overnight.generate import continuations, generate, stream, texts
from overnight.models.gpt2 import GPT
from overnight.models.networks import Network, build
from overnight.packing import packed

CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=64)
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module", params=["gpt2", "modern"])
def model(request: pytest.FixtureRequest) -> Network:
    """Confident enough to have opinions; 40 ids of 64 rows."""
    modern = {"architecture": "modern", "bias": False, "activation": "relu2"}
    model = build(replace(CONFIG, **modern) if request.param == "modern" else CONFIG, 40)
    model.init_weights(seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if request.param == "modern":  # much of which begins at 0
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
            else:
                parameter.mul_(12 if parameter.dim() == 2 else 1)
    return model.eval()


def without_cache(model: Network, window: torch.Tensor) -> torch.Tensor:
    return model.logits(model.hidden(window)[:, -1])[:, : model.n_tokens]


@pytest.mark.parametrize("prompt_length", [1, 5, 12, 30])
def test_generation_equals_the_full_forward_pass(model: Network, prompt_length: int) -> None:
    """Greedy tokens are the full pass's best over the window in use, far beyond the block size. When the
    positions are used up, the window is the second half of the context."""
    prompt = torch.randint(0, 40, (3, prompt_length), generator=torch.Generator().manual_seed(2))
    window, used = prompt[:, -12:], min(12, prompt_length)
    for tokens in generate(model, prompt, 40, GREEDY, seed=1):
        drawn = torch.tensor(tokens)
        if used > 12:
            window, used = window[:, -6:], 6
        logits = without_cache(model, window)
        best = logits.max(dim=1).values
        assert ((best - logits.gather(1, drawn[:, None])[:, 0]) <= 1e-4).all()
        window, used = torch.cat([window, drawn[:, None]], dim=1), used + 1


def test_drawn_logits_equal_the_full_pass_within_1e_4(
    model: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(logits: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(logits.clone())
        return logits.argmax(dim=-1)

    monkeypatch.setattr("overnight.decode.draw", spy)
    prompt = torch.randint(0, 40, (2, 4), generator=torch.Generator().manual_seed(2))
    window = prompt
    for step, drawn in enumerate(generate(model, prompt, 8, GREEDY, seed=1)):
        torch.testing.assert_close(seen[step], without_cache(model, window), atol=1e-4, rtol=0)
        window = torch.cat([window, torch.tensor(drawn)[:, None]], dim=1)
    assert len(seen) == 8


def test_the_seed_decides(model: Network) -> None:
    prompt = torch.zeros(2, 1, dtype=torch.long)

    def run(seed: int) -> list:
        return list(generate(model, prompt, 30, Sampling(), seed))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_no_id_is_outside_the_vocabulary() -> None:
    """Even when the padding rows are the model's favourites."""
    model = GPT(CONFIG, 40).init_weights(seed=1)
    with torch.no_grad():
        model.wte.weight[40:] += 50
    drawn = list(generate(model, torch.zeros(8, 1, dtype=torch.long), 50, Sampling(5.0), 1))
    assert max(map(max, drawn)) < 40


LENGTHS = [3, 1, 12, 7, 30]  # prompts; the context is 12


def prompts_of(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 40, (length,), generator=generator) for length in lengths]


def test_prompts_of_many_lengths_go_on_as_each_would_alone(model: Network) -> None:
    """Far beyond the block size, where each of them starts anew at a time of its own."""
    prompts = prompts_of(LENGTHS)
    together = list(generate(model, prompts, 40, GREEDY, seed=1))
    for row, prompt in enumerate(prompts):
        alone = [token for (token,) in generate(model, [prompt], 40, GREEDY, seed=1)]
        assert [tokens[row] for tokens in together] == alone


@pytest.mark.parametrize("lengths", [[4], [5, 5], LENGTHS], ids=str)
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(top_k=10)], ids=["greedy", "drawn"])
def test_steps_of_one_shape_draw_the_same(model: Network, lengths: list[int], sampling: Sampling) -> None:
    """What a GPU launches as a captured graph, here without the capture."""

    def run(static: bool) -> list[list[int]]:
        with torch.no_grad():
            decoder = Decoder(model, prompts_of(lengths), 40, sampling, 3, 40, static)
            return [decoder.step().tolist() for _ in range(40)]

    assert run(static=True) == run(static=False)


def test_a_static_step_makes_the_same_shapes_each_time(model: Network) -> None:
    shapes = []

    class Shapes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            shapes[-1].append((str(function), [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]))
            return function(*args, **(kwargs or {}))

    with torch.no_grad():
        decoder = Decoder(model, prompts_of([3, 5]), 6, Sampling(), 3, 40, static=True)
        decoder.step()
        for _ in range(5):
            shapes.append([])
            with Shapes():
                decoder.step()
    assert all(one == shapes[0] for one in shapes)


def test_what_is_not_a_number_is_said_and_fed_to_nobody(model: Network) -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, torch.nan], [torch.inf, 0.0], [-torch.inf, -torch.inf]])
    for sampling in (GREEDY, Sampling()):
        drawn = draw(logits, sampling, torch.ones(4, 2)).tolist()
        assert drawn == [1, NOT_A_NUMBER, NOT_A_NUMBER, NOT_A_NUMBER]
    broken = GPT(CONFIG, 40).init_weights(seed=1)
    with torch.no_grad():
        broken.ln_f.weight.fill_(torch.nan)
    for sampling in (GREEDY, Sampling()):
        with pytest.raises(Failure, match="diverged"):
            list(generate(broken, [torch.tensor([1])], 3, sampling, seed=1))


def frequencies(sampling: Sampling, probabilities: list[float], n: int = 4000) -> dict[int, float]:
    logits = torch.tensor(probabilities).log().expand(n, -1)
    noise = torch.empty(logits.shape).exponential_(generator=torch.Generator().manual_seed(1))
    drawn = draw(logits, sampling, noise).tolist()
    return {token: count / n for token, count in sorted(Counter(drawn).items())}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), {0: 0.1, 1: 0.4, 2: 0.3, 3: 0.2}),
        (Sampling(top_k=2), {1: 4 / 7, 2: 3 / 7}),
        (Sampling(top_k=9), {0: 0.1, 1: 0.4, 2: 0.3, 3: 0.2}),
        (Sampling(top_p=0.5), {1: 4 / 7, 2: 3 / 7}),
        (Sampling(top_p=0.3), {1: 1.0}),
        (Sampling(temperature=0.5), {0: 1 / 30, 1: 16 / 30, 2: 9 / 30, 3: 4 / 30}),
        (Sampling(temperature=0), {1: 1.0}),
        (Sampling(temperature=0.5, top_k=3, top_p=0.6), {1: 16 / 25, 2: 9 / 25}),
    ],
    ids=str,
)
def test_tokens_are_drawn_with_their_probabilities(sampling: Sampling, expected: dict) -> None:
    """Probabilities 0.1, 0.4, 0.3, 0.2: what each setting makes of them, worked out by hand."""
    found = frequencies(sampling, [0.1, 0.4, 0.3, 0.2])
    assert found.keys() == expected.keys()
    assert all(abs(found[token] - expected[token]) < 0.03 for token in expected)


def rigged(order: list[int]) -> GPT:
    """A model that follows each id of `order` by the next, whatever came before."""
    model = GPT(ModelConfig(1, 1, 64, 8, vocab_size=64), 64).init_weights(seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.ln_f.weight.fill_(1)
        model.wte.weight.copy_(torch.eye(64))
        successor = torch.arange(64)
        successor[order[:-1]] = torch.tensor(order[1:])
        # The MLP moves each one-hot residual to its successor: GELU(20 x) is 20 for the id at hand, 0 else.
        model.h[0].ln_2.weight.fill_(1)
        model.h[0].mlp.c_fc.weight[:64] = torch.eye(64)
        model.h[0].mlp.c_proj.weight[successor, torch.arange(64)] = 5.0
    return model.eval()


def test_endoftext_ends_a_text() -> None:
    tokenizer = train_char(["".join(map(chr, range(0x20, 0x20 + 63)))])
    a, b, c = (int(tokenizer.encode(letter)[0]) for letter in "ABC")
    model = rigged([a, b, c, tokenizer.eot])
    assert texts(model, tokenizer, ["A", "A"], 20, GREEDY, seed=1) == ["BC", "BC"]
    assert "".join(stream(model, tokenizer, ["A"], 20, GREEDY, seed=1)) == "ABC\n"
    assert list(continuations(model, tokenizer, ["A"], 20, GREEDY, seed=1)) == [[b], [c]]


def test_a_stream_is_the_text(model: Network) -> None:
    tokenizer = train_bpe(iter(["naïve café 你好 " * 20]), 300)
    big = GPT(ModelConfig(1, 2, 16, 12, vocab_size=tokenizer.vocab_size), tokenizer.vocab_size)
    big.init_weights(seed=5)
    written = texts(big, tokenizer, ["caf"] * 3, 60, Sampling(), seed=9)
    streamed = "".join(stream(big, tokenizer, ["caf"] * 3, 60, Sampling(), seed=9))
    first = streamed.split("-" * 40)[0]
    visible_text = first.removeprefix("caf").removesuffix("\n")
    assert len(visible_text) > 10
    assert [c for c in visible_text if c.isalnum()] == [c for c in written[0] if c.isalnum()]


def test_a_stream_is_the_models_own_text() -> None:
    """Also where that has escape codes: who shows it on a terminal makes them visible."""
    tokenizer = train_char(["".join(map(chr, range(63)))])
    escape, bell = int(tokenizer.encode("\x1b")[0]), int(tokenizer.encode("\x07")[0])
    model = rigged([escape, bell, tokenizer.eot])
    assert "".join(stream(model, tokenizer, ["\x1b"], 5, GREEDY, seed=1)) == "\x1b\x07\n"


@pytest.mark.parametrize("rows", [1, 2, 8, 64])
def test_packed_weights_change_nothing_but_rounding(
    model: GPT, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "uses_onednn", lambda: False)  # else one row would not be packed
    ids = torch.randint(0, 40, (rows, 5), generator=torch.Generator().manual_seed(3))
    plain_many, plain_one = model.hidden(ids), model.logits(model.hidden(ids[:, :1]))
    with packed(model, rows):
        torch.testing.assert_close(model.hidden(ids), plain_many, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.logits(model.hidden(ids[:, :1])), plain_one, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.hidden(ids), plain_many), "the methods are the model's own again"
    assert "logits" not in vars(model)


def test_in_low_precision_weights_are_cast_once(model: Network) -> None:
    ids = torch.randint(0, 40, (2, 5), generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        cast_each_time = model.logits(model.hidden(ids))
        with packed(model, 2), Casts() as casts:
            assert torch.equal(model.logits(model.hidden(ids)), cast_each_time)
    assert not casts.weights


class Casts(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what has the shape of a weight and changes its type."""

    weights = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "_to_copy" in str(function) and args[0].dim() == 2:
            self.weights += 1
        return function(*args, **(kwargs or {}))
