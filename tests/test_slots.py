"""Texts that come and go are those that `generate` writes one by one."""

import random
from dataclasses import replace

import pytest
import torch

from overnight.config import ModelConfig
from overnight.decode import NOT_A_NUMBER, Sampling
from overnight.generate import generate
from overnight.models.gpt2 import GPT
from overnight.models.networks import Network, build
from overnight.slots import Slots, Text

N_IDS = 90
CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=96)


@pytest.fixture(scope="module", params=["gpt2", "modern"])
def model(request: pytest.FixtureRequest) -> Network:
    modern = {"architecture": "modern", "bias": False, "activation": "relu2"}
    model = build(replace(CONFIG, **modern) if request.param == "modern" else CONFIG, N_IDS).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter in model.parameters():  # larger than at init, so that texts depend on what came before
            parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.3, generator=generator))
    return model


def alone(model: Network, prompt: list[int], length: int, sampling: Sampling, seed: int) -> list[int]:
    rows = generate(model, [torch.tensor(prompt)], length, sampling, seed, N_IDS)
    return [token for [token] in rows]


@torch.no_grad()
@pytest.mark.parametrize(
    "sampling", [Sampling(0), Sampling(1.0), Sampling(0.8, top_k=5), Sampling(top_p=0.7)]
)
def test_each_text_is_the_one_written_alone(model: Network, sampling: Sampling) -> None:
    """Whenever it joins, whoever is beside it, beyond the end of its positions, and whoever leaves."""
    draw = random.Random(3)
    slots, waiting, wanted, written = Slots(model, 4, N_IDS), [], {}, {}
    for seed in range(12):
        prompt = [draw.randrange(N_IDS) for _ in range(draw.choice([1, 3, 15, 16, 17, 40]))]
        text = Text(list(prompt), sampling, seed)
        waiting.append(text)
        wanted[text] = (prompt, draw.randrange(1, 50))
        written[text] = []
    while waiting or slots.texts:
        if waiting and slots.free and draw.random() < 0.4:
            text = waiting.pop(0)
            drawn = slots.join([text])
            written[text].append(drawn[0].token)
        elif slots.texts:
            for text, one in zip(list(slots.texts), slots.step(), strict=True):
                written[text].append(one.token)
        slots.leave([text for text in list(slots.texts) if len(written[text]) >= wanted[text][1]])
    for text, (prompt, length) in wanted.items():
        assert written[text][:length] == alone(model, prompt, length, sampling, text.seed)


@torch.no_grad()
def test_samples_of_one_prompt_read_it_once(model: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    slots, reads = Slots(model, 3, N_IDS), []
    monkeypatch.setattr(slots, "read", lambda *args: reads.append(1) or Slots.read(slots, *args))
    texts = [Text([1, 2, 3], Sampling(), seed) for seed in (1, 2, 3)]
    drawn = [[one.token] for one in slots.join(texts)]
    for _ in range(8):
        for tokens, one in zip(drawn, slots.step(), strict=True):
            tokens.append(one.token)
    assert len(reads) == 1
    assert drawn == [alone(model, [1, 2, 3], 9, Sampling(), seed) for seed in (1, 2, 3)]


@torch.no_grad()
def test_probabilities_are_the_models(model: Network) -> None:
    """As a full forward pass has them, whatever temperature the token was drawn with."""
    slots = Slots(model, 2, N_IDS)
    text = Text([4, 5], Sampling(0.5, top_k=3), 1, alternatives=4)
    slots.join([Text([9], Sampling(), 0)])  # a neighbour that asks for none
    drawn = [slots.join([text])[0]]
    neighbour, mine = slots.step()
    assert neighbour.logprob is None
    drawn.append(mine)
    for i, one in enumerate(drawn):
        logprobs = model.logits(model.hidden(torch.tensor([text.ids[: 2 + i]])))[0, -1, :N_IDS].log_softmax(
            -1
        )
        assert one.logprob == pytest.approx(logprobs[one.token].item(), abs=1e-4)
        best = logprobs.topk(4)
        assert [token for token, _ in one.likeliest] == best.indices.tolist()
        assert [logprob for _, logprob in one.likeliest] == pytest.approx(best.values.tolist(), abs=1e-4)


@torch.no_grad()
def test_scores_that_are_no_numbers_are_told() -> None:
    model = GPT(CONFIG, N_IDS).eval()
    model.init_weights(1)
    model.ln_f.weight.fill_(float("nan"))
    slots = Slots(model, 1, N_IDS)
    assert slots.join([Text([1], Sampling(), 0)])[0].token == NOT_A_NUMBER
