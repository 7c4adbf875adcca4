"""GPT-2 (Radford et al., 2019): tokens in, a loss or logits out.

Letters in shape comments:
    B  sequences      T  positions fed in     S  positions attended to (T and what a cache holds)
    C  n_embd         H  heads                D  size of a head, C / H
    L  layers         V  rows of the embedding (vocab_size, perhaps padded)

Only the architecture lives here. Optimizers, other people's weights and FLOP counts are elsewhere.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from overnight.config import ModelConfig
from overnight.models import head
from overnight.models.cache import KVCache
from overnight.models.linear import compute_dtype, linear


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def reset_parameters(self) -> None:
        """Nothing: `GPT.init_weights` or a checkpoint fills every tensor."""


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Nothing, as for Linear."""


class CausalSelfAttention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.n_head, self.dropout, self.layer = config.n_head, config.dropout, layer
        self.attend = {"flash": flash_attention, "manual": manual_attention}[config.attention]
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3 * self.n_head, C // self.n_head).transpose(1, 2).chunk(3, dim=1)
        # q, k, v: (B, H, T, D)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, H, S, D)
        y = self.attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(y))  # (B, T, C)


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """Attention that never holds the (T, S) scores (Dao et al., 2022), by torch's kernel for the device."""
    T, S = q.size(2), k.size(2)
    if mask is None and 1 < T < S:  # is_causal would align the mask to the wrong corner
        mask = looking_back(T, S, q.device)
    causal = mask is None and T == S
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale
    )


def manual_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """The same, spelt out: softmax(scale q k') v, looking back only unless a mask says otherwise. By default
    the scale is 1 / sqrt(D)."""
    scale = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    scores = scale * q @ k.transpose(-2, -1)  # (B, H, T, S)
    mask = looking_back(q.size(2), k.size(2), q.device) if mask is None else mask
    weights = F.softmax(scores.masked_fill(~mask, -math.inf), dim=-1)  # (B, H, T, S)
    return F.dropout(weights, dropout) @ v  # (B, H, T, D)


def looking_back(T: int, S: int, device: torch.device) -> Tensor:
    """Who attends to whom when T positions follow S - T cached ones: (T, S) bool."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate={"gelu_tanh": "tanh", "gelu": "none"}[config.activation])
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))  # (B, T, C)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, mask)
        return x + self.mlp(self.ln_2(x))  # (B, T, C)


class GPT(nn.Module):
    """config.vocab_size rows of embedding, of which the tokenizer has `n_tokens` ids; the rows beyond are
    padding for the hardware's sake and never get any probability."""

    def __init__(self, config: ModelConfig, n_tokens: int):
        super().__init__()
        assert isinstance(config.vocab_size, int), "vocab_size is resolved before a model is made"
        self.config, self.n_tokens = config, n_tokens
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config, layer) for layer in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)
        self.padding: Tensor | None  # added to the logits
        self.register_buffer("padding", head.padding(config.vocab_size, n_tokens), persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> "GPT":
        """GPT-2's initialisation: N(0, 0.02), what adds to the residual stream N(0, 0.02 / sqrt(2 L)).

        Drawn on the CPU, and without the padding, so that a seed means the same weights on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        residual = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                std = residual if name.endswith("c_proj.weight") else 0.02
                used = parameter.zero_()[: self.n_tokens] if name == "wte.weight" else parameter
                used.copy_(torch.empty(used.shape).normal_(0.0, std, generator=generator))
            else:
                parameter.fill_(1.0 if name.endswith(".weight") else 0.0)  # LayerNorm's gains; every bias
        return self

    def hidden(
        self,
        idx: Tensor,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The last layer's normalised output at each position: (B, T) int64 -> (B, T, C).

        With a cache, `idx` follows the positions in it, and joins them. positions, (B, T), and mask,
        (B, 1, T, T) bool, True where row attends to column, are for sequences with branches
        (evals/continuations.py); by default positions count up and each attends to all before it.
        """
        T, past = idx.size(1), cache.used if cache is not None else 0
        if positions is None:
            positions = torch.arange(past, past + T, device=idx.device)
        x = self.wte(idx) + self.wpe(positions)  # (B, T, C)
        if self.config.residual == "low" and compute_dtype(x.device) == torch.bfloat16:
            x = x.bfloat16()  # half the memory traffic of all that is not a product; norms compute in fp32
        x = self.drop(x)
        for block in self.h:
            x = block(x, cache, mask)
        if cache is not None:
            cache.used += T
        return self.ln_f(x)

    def logits(self, x: Tensor) -> Tensor:
        """Scores of the next token: (..., C) -> (..., V). The head is the token embedding ("tied")."""
        return linear(x, self.wte.weight, self.padding)

    def token_losses(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of each target in nats: (B, T), (B, T) -> (B, T) fp32."""
        x = self.hidden(idx).flatten(0, 1)  # (B T, C)
        return head.token_losses(x, self.wte.weight, self.padding, targets.flatten()).view_as(targets)

    def forward(self, idx: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """The mean of `token_losses`, a scalar: what training minimises.

        weight: the head's, where somebody keeps it in the type to compute in (parallel.CastOnce).
        """
        x = self.hidden(idx).flatten(0, 1)  # (B T, C)
        weight = self.wte.weight if weight is None else weight
        return head.mean_loss(x, weight, self.padding, targets.flatten(), self.config.logits == "whole")
