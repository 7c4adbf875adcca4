"""The network against an independent one (transformers), and against itself under every option."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from overnight.config import ModelConfig
from overnight.models.cache import KVCache
from overnight.models.gpt2 import GPT

TINY = ModelConfig(n_layer=2, n_head=3, n_embd=24, block_size=16, vocab_size=40)
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def far_from_initial(model: torch.nn.Module) -> torch.nn.Module:
    """Weights as large as a trained model's, norms and biases included, so that every term matters."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            draw = torch.empty(parameter.shape).normal_(0, 1, generator=generator)
            scale = 0.7 / math.sqrt(parameter.shape[-1]) if parameter.dim() == 2 else 0.3
            parameter.copy_(draw * scale + (parameter.dim() == 1) * 0.5)
    return model.eval()


def their_model(config: ModelConfig, n_tokens: int) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=n_tokens, n_positions=config.block_size, n_embd=config.n_embd,
            n_layer=config.n_layer, n_head=config.n_head,
            activation_function="gelu_new" if config.activation == "gelu_tanh" else "gelu",
        )
    )  # fmt: skip
    return far_from_initial(theirs)


def with_their_weights(config: ModelConfig, theirs: torch.nn.Module, n_tokens: int) -> GPT:
    """Their Conv1D keeps matrices transposed; else the names are ours."""
    model = GPT(config, n_tokens)
    weights = {name.removeprefix("transformer."): tensor for name, tensor in theirs.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = weights.pop(name)
            parameter.fill_(9.0)  # whatever the padding rows hold must not matter
            target = parameter[:n_tokens] if name == "wte.weight" else parameter
            target.copy_(tensor.T if name.endswith(CONV1D) else tensor)
    assert not weights
    return model.eval()


def logits(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    return model.logits(model.hidden(ids))


@pytest.mark.parametrize(
    ("n_layer", "n_head", "n_embd"),
    [(12, 12, 768), (2, 16, 1024), (2, 20, 1280), (2, 25, 1600)],
    ids=["124m-full-depth", "350m-width", "774m-width", "1558m-width"],
)
def test_logits_equal_transformers_at_gpt2s_widths(n_layer: int, n_head: int, n_embd: int) -> None:
    vocabulary = 1000
    config = ModelConfig(n_layer, n_head, n_embd, block_size=96, vocab_size=1024)
    theirs = their_model(config, vocabulary)
    model = with_their_weights(config, theirs, vocabulary)
    ids = torch.randint(0, vocabulary, (2, 96), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, ours = theirs(ids).logits, logits(model, ids)
    assert expected.std() > 0.3, "the oracle's logits say something"
    assert (ours[..., :vocabulary] - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
@pytest.mark.parametrize("attention", ["flash", "manual"])
def test_every_option_equals_transformers(activation: str, attention: str) -> None:
    config = replace(TINY, activation=activation, attention=attention)
    theirs = their_model(config, 37)
    model = with_their_weights(config, theirs, 37)
    ids = torch.randint(0, 37, (3, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(logits(model, ids)[..., :37], theirs(ids).logits, atol=1e-5, rtol=0)


def test_gradients_equal_transformers() -> None:
    theirs = their_model(TINY, 37)
    model = with_their_weights(TINY, theirs, 37)
    ids = torch.randint(0, 37, (3, 17), generator=torch.Generator().manual_seed(1))
    model(ids[:, :-1], ids[:, 1:]).backward()
    their_logits = theirs(ids[:, :-1]).logits
    F.cross_entropy(their_logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    expected = {name.removeprefix("transformer."): p.grad for name, p in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        gradient = parameter.grad[:37] if name == "wte.weight" else parameter.grad
        wanted = expected[name].T if name.endswith(CONV1D) else expected[name]
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-4, msg=name)


def test_padding_is_inert() -> None:
    """No loss, no probability and no gradient comes from rows beyond the tokenizer's ids."""
    model = far_from_initial(GPT(TINY, 37))
    bare = GPT(replace(TINY, vocab_size=37), 37)
    weights = model.state_dict()
    bare.load_state_dict(weights | {"wte.weight": weights["wte.weight"][:37]})
    ids = torch.randint(0, 37, (2, 17), generator=torch.Generator().manual_seed(1))
    loss, bare_loss = model(ids[:, :-1], ids[:, 1:]), bare(ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close(loss, bare_loss)
    assert (logits(model, ids[:, :-1]).softmax(-1)[..., 37:] == 0).all()
    loss.backward()
    assert (model.wte.weight.grad[37:] == 0).all()
    assert (model.wte.weight.grad[:37] != 0).any()


def test_a_model_without_biases_has_none() -> None:
    model = GPT(replace(TINY, bias=False), 40)
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    with_zeros = GPT(TINY, 40)
    far_from_initial(model)
    with_zeros.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in with_zeros.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    ids = torch.arange(16)[None]
    torch.testing.assert_close(logits(model, ids), logits(with_zeros.eval(), ids))


def test_no_position_sees_the_future() -> None:
    model = far_from_initial(GPT(TINY, 40))
    ids = torch.randint(0, 40, (1, 16), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 40
    before, after = logits(model, ids), logits(model, changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


@pytest.mark.parametrize("attention", ["flash", "manual"])
@pytest.mark.parametrize("cuts", [[1] * 16, [5, 1, 1, 9], [16], [3, 4, 9]])
def test_the_cache_changes_nothing(attention: str, cuts: list[int]) -> None:
    model = far_from_initial(GPT(replace(TINY, attention=attention), 40))
    ids = torch.randint(0, 40, (3, 16), generator=torch.Generator().manual_seed(1))
    cache = KVCache(model.config, 3, 16, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        pieces = [model.logits(model.hidden(piece, cache)) for piece in ids.split(cuts, dim=1)]
        whole = logits(model, ids)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=0)


def test_initialisation_is_gpt2s() -> None:
    config = ModelConfig(n_layer=8, n_head=4, n_embd=256, block_size=128, vocab_size=2048)
    model = GPT(config, 2048).init_weights(seed=3)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        else:
            wanted = 0.02 / math.sqrt(2 * 8) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(wanted, rel=0.02), name
            assert abs(parameter.mean().item()) < wanted / 50, name
    again = GPT(config, 2048).init_weights(seed=3)
    other = GPT(config, 2048).init_weights(seed=4)
    assert torch.equal(model.wpe.weight, again.wpe.weight)
    assert not torch.equal(model.wpe.weight, other.wpe.weight)


def test_an_untrained_model_guesses_evenly() -> None:
    model = GPT(replace(TINY, vocab_size=64), 37).init_weights(seed=1)
    ids = torch.randint(0, 37, (8, 17), generator=torch.Generator().manual_seed(1))
    assert model(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(math.log(37), abs=0.05)


def test_the_loss_is_the_mean_of_the_tokens_losses() -> None:
    model = far_from_initial(GPT(TINY, 37))
    ids = torch.randint(0, 37, (4, 17), generator=torch.Generator().manual_seed(1))
    each = model.token_losses(ids[:, :-1], ids[:, 1:])
    assert each.shape == (4, 16)
    torch.testing.assert_close(each.mean(), model(ids[:, :-1], ids[:, 1:]))


def test_dropout_acts_in_training_only() -> None:
    model = far_from_initial(GPT(replace(TINY, dropout=0.3), 37))
    ids = torch.randint(0, 37, (2, 16), generator=torch.Generator().manual_seed(1))
    assert torch.equal(logits(model, ids), logits(model, ids))
    model.train()
    torch.manual_seed(1)
    first = logits(model, ids)
    second = logits(model, ids)
    torch.manual_seed(1)
    assert not torch.allclose(first, second)
    assert torch.equal(first, logits(model, ids)), "the seed decides the masks"
