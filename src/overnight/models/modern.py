"""GPT-2 with what has been learnt since: tokens in, a loss or logits out. docs/recipes.md says what each
difference is worth.

    norms           root mean square without gains; one more on the embedding
    positions       rotary: queries and keys are turned by angles that grow with the position
    attention       queries and keys normalised, their products scaled by 0.12 (for heads of 128)
    MLP             ReLU squared
    at the start    what adds to the residual stream is 0, and so is the head, which is its own matrix
    logits          bounded: 15 z / sqrt(z z + 225), in fp32
    skip            each block also sees the embedding, as much as it learns to
    biases          none

Letters as in gpt2.py: B sequences, T positions fed in, S attended to, C n_embd, H heads, D size of a head,
L layers, V rows of the embedding.
"""

import math

import torch
from torch import Tensor, nn

from overnight.config import ModelConfig
from overnight.models import head
from overnight.models.cache import KVCache
from overnight.models.gpt2 import Embedding, Linear, flash_attention, manual_attention
from overnight.models.linear import compute_dtype
from overnight.models.pointwise import relu_squared, rms_norm

# Of attention's products for heads of 128, where 1 / sqrt(D) is 0.088; for others in the same proportion.
SCALE = 0.12
SOFTCAP = 15.0  # no logit is larger
SLOWEST = 10_000.0  # positions, over 2 pi, in which the slowest angle turns once (Su et al., 2021)

Rotation = tuple[Tensor, Tensor]  # cosines and sines of each position: (T, 1, D/2) or (B, T, 1, D/2)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.n_head, self.layer = config.n_head, layer
        self.scale = SCALE * math.sqrt(128 / (config.n_embd // config.n_head))
        self.attend = {"flash": flash_attention, "manual": manual_attention}[config.attention]
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3 * self.n_head, C // self.n_head)  # (B, T, 3 H, D)
        qk, v = qkv.split([2 * self.n_head, self.n_head], dim=2)
        qk = rotate(rms_norm(qk), rotation).to(v.dtype)
        q, k, v = (part.transpose(1, 2) for part in (*qk.chunk(2, dim=2), v))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, H, S, D)
        y = self.attend(q, k, v, mask, scale=self.scale)  # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # (B, T, C)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair of channels (i, i + D/2) by its angle: (B, T, H, D) -> the same. The product of a query
    and a key then depends on how far apart they are, not on where they stand."""
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(relu_squared(self.c_fc(x)))  # (B, T, C)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attn = CausalSelfAttention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotation: Rotation, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        x = x + self.attn(rms_norm(x), rotation, cache, mask)
        return x + self.mlp(rms_norm(x))  # (B, T, C)


class ModernGPT(nn.Module):
    """The same in its methods as gpt2.GPT, padding included."""

    def __init__(self, config: ModelConfig, n_tokens: int):
        super().__init__()
        assert isinstance(config.vocab_size, int), "vocab_size is resolved before a model is made"
        self.config, self.n_tokens = config, n_tokens
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList([Block(config, layer) for layer in range(config.n_layer)])
        self.skips = nn.Parameter(torch.empty(config.n_layer))
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        self.padding: Tensor | None  # added to the logits
        self.register_buffer("padding", head.padding(config.vocab_size, n_tokens), persistent=False)
        D = config.n_embd // config.n_head
        turns = SLOWEST ** -torch.linspace(0, 1, D // 2)  # radians a position, of each pair of channels
        angles = torch.outer(torch.arange(config.block_size), turns)[:, None]  # (block_size, 1, D/2)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> "ModernGPT":
        """Tokens N(0, 1); what reads the residual stream N(0, 1 / (4 C)); what writes to it, the head and the
        skips 0. Drawn as gpt2.GPT's are."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            std = 1.0 if name == "wte.weight" else 0.5 / math.sqrt(self.config.n_embd)
            parameter.zero_()
            if name.endswith(("wte.weight", "c_attn.weight", "c_fc.weight")):
                used = parameter[: self.n_tokens] if name == "wte.weight" else parameter
                used.copy_(torch.empty(used.shape).normal_(0.0, std, generator=generator))
        return self

    def hidden(
        self,
        idx: Tensor,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The last layer's normalised output at each position, (B, T) int64 -> (B, T, C), as gpt2.GPT's."""
        T, past = idx.size(1), cache.used if cache is not None else 0
        if positions is None:
            positions = torch.arange(past, past + T, device=idx.device)
        rotation = self.cos[positions], self.sin[positions]
        embedded = self.wte(idx)  # (B, T, C)
        if self.config.residual == "low" and compute_dtype(idx.device) == torch.bfloat16:
            embedded = embedded.bfloat16()  # half the memory traffic of all that is not a product
        x = embedded = rms_norm(embedded)
        for skip, block in zip(self.skips.to(x.dtype), self.h, strict=True):
            x = block(x + skip * embedded, rotation, cache, mask)
        if cache is not None:
            cache.used += T
        return rms_norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """Scores of the next token: (..., C) -> (..., V) fp32."""
        z = head.softcapped(self.lm_head(x).float(), SOFTCAP)
        return z if self.padding is None else z + self.padding

    def token_losses(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of each target in nats: (B, T), (B, T) -> (B, T) fp32."""
        x = self.hidden(idx).flatten(0, 1)  # (B T, C)
        losses = head.token_losses(x, self.lm_head.weight, self.padding, targets.flatten(), SOFTCAP)
        return losses.view_as(targets)

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """The mean of `token_losses`, a scalar: what training minimises."""
        x = self.hidden(idx).flatten(0, 1)  # (B T, C)
        whole = self.config.logits == "whole"
        return head.mean_loss(x, self.lm_head.weight, self.padding, targets.flatten(), whole, SOFTCAP)
