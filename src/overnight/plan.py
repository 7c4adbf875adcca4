"""What a model costs: parameters, FLOPs, memory, time, disk. Arithmetic only; nothing is allocated."""

from collections.abc import Iterable

from overnight.config import Config, ModelConfig
from overnight.hardware import rows_at_once

CONVENTION = "6 N + 12 L C T: N without what is only looked up, attention in full"

# Of a device's memory, what `--micro-batch auto` counts on. On a CPU the rest is for everybody else.
SHARE = {"cuda": 0.9, "mps": 0.6, "cpu": 0.6}

# Python, torch and its libraries before there is a model: measured on a CPU (0.29 GB); on a GPU what the
# driver, the kernels and their workspaces take, a guess.
PROCESS = {"cuda": 1 << 30, "mps": 1 << 30, "cpu": 300 << 20}

# malloc keeps part of what is freed between steps. Measured for small models: 25 to 65% of the activations
# with oneDNN's products, 50 to 100% with MKL's, different in each process. SHARE leaves room for the rest.
HOLES = {"cuda": 0.05, "mps": 0.05, "cpu": 0.3}


MOST_TOKENS = 65_536  # at a time: matrix products gain nothing from more rows


def parameters_by_part(model: ModelConfig) -> dict[str, int]:
    """Numbers in each part of the model; GPT-2's head is the token embedding."""
    C, L, bias = model.n_embd, model.n_layer, int(model.bias)
    assert isinstance(model.vocab_size, int)
    if model.architecture == "modern":
        return {
            "token embedding": model.vocab_size * C,
            "attention": L * 4 * C * C,
            "MLP": L * 8 * C * C,
            "skips": L,
            "head": model.vocab_size * C,
        }
    return {
        "token embedding": model.vocab_size * C,
        "position embedding": model.block_size * C,
        "attention": L * (4 * C * C + bias * 4 * C),  # q, k, v and the projection
        "MLP": L * (8 * C * C + bias * 5 * C),
        "norms": (2 * L + 1) * (1 + bias) * C,
    }


def parameters(model: ModelConfig) -> int:
    """Numbers in the model, a tied head counted once."""
    return sum(parameters_by_part(model).values())


def multiplied(model: ModelConfig) -> int:
    """N: all parameters but those that are only looked up (positions, an embedding that is not the head)."""
    parts = parameters_by_part(model)
    looked_up = "token embedding" if model.architecture == "modern" else "position embedding"
    return sum(count for part, count in parts.items() if part != looked_up)


def flops_per_token(model: ModelConfig, causal: bool = False) -> float:
    """Forward and backward: 6 N + 12 L C T, with N the parameters that are multiplied, and attention counted
    in full (nanoGPT's convention; PaLM's appendix B) or, `causal`, only where it looks."""
    pairs = model.block_size / 2 if causal else model.block_size  # positions that one attends to
    return 6 * multiplied(model) + 12 * model.n_layer * model.n_embd * pairs


def run_tokens(config: Config) -> int:
    """Tokens that a run trains on."""
    if not config.optim.ramp_tokens:
        return config.steps * config.batch_tokens
    return sum(config.sequences(step) for step in range(config.steps)) * config.model.block_size


def memory(
    model: ModelConfig, micro_batch: int, precision: str, device: str, shards: int = 1
) -> dict[str, int]:
    """Bytes that training needs at its peak, by part, for `micro_batch` windows at a time.

    precision: of matrix products; bf16 and fp16 are autocast's, with fp32 weights. device: cpu, cuda, mps.
    shards: ranks that share the model (--parallel fsdp); its activations are computed again, not kept.
    """
    C, L, V, T = model.n_embd, model.n_layer, model.vocab_size, model.block_size
    assert isinstance(V, int)
    n, tokens = parameters(model), micro_batch * T
    half = precision in ("bf16", "fp16")
    width = 2 if half else 4
    # Kept for the backward pass, in numbers of size C a token and layer: the residual stream twice, in fp32;
    # normalised inputs (2), q, k, v (3), attention's output (1), the MLP's hidden layer before and after
    # GELU (8). Then what one layer's backward pass holds while it works.
    of_layer = C * (2 * 4 + 14 * width)
    if model.architecture == "modern":
        of_layer += 4 * C * width  # queries and keys normalised, and turned
    if model.dropout:
        of_layer += 2 * C * (4 if device == "cpu" else 1)  # the masks
    if model.attention == "manual" or (model.dropout and device == "cpu"):  # no fused kernel: the scores stay
        of_layer += (3 if model.dropout else 1) * width * model.n_head * T
    kept = of_layer + L * C * 4 if shards > 1 else L * of_layer
    kept += 10 * C * width
    if model.logits == "whole":
        # Log-probabilities, their gradient and the logits' in fp32; with autocast the logits as well.
        logits = tokens * V * (12 + (2 if half else 0) + (8 if model.architecture == "modern" else 0))
    else:
        # Of a part: logits and log-probabilities in fp32, with autocast the logits and their gradient too;
        # and what bounds the modern network's.
        # Of all: the token embedding's gradient in fp32, as a head (twice while it is scaled) and as a table;
        # that of the last layer's output.
        part = min(tokens, rows_at_once(device, V))
        of_part = 8 + (4 if half else 0) + (4 if model.architecture == "modern" else 0)
        logits = part * V * of_part + 3 * 4 * V * C + tokens * C * width
    parts = {
        "process": PROCESS[device],
        "weights": n * (6 if half else 4) // shards,  # autocast keeps a copy
        "gradients": 4 * n,
        "optimizer": 8 * n // shards,  # Muon's is smaller, but its products need as much for a moment
        "activations": int(tokens * kept * (1 + HOLES[device])),
        "logits": int(logits * (1 + HOLES[device])),
    }
    if device != "cuda":  # there it is the host's memory
        parts["copy to save"] = checkpoint_bytes(model)
    if shards > 1:
        # Whole while they work: the embeddings, a block and the next one. Gradients are whole until the last
        # micro-step; evaluations take their place with a whole copy of the weights.
        around = 2 * V if model.architecture == "modern" else V + T  # rows outside of the blocks
        parts["unsharded"] = (around * C + 2 * 12 * C * C) * (6 if half else 4)
    return parts


def memory_bytes(model: ModelConfig, micro_batch: int, precision: str, device: str, shards: int = 1) -> int:
    """The sum of `memory`."""
    return sum(memory(model, micro_batch, precision, device, shards).values())


def largest_micro_batch(
    model: ModelConfig, rows: int, precision: str, device: str, available: float, shards: int = 1
) -> int | None:
    """The largest divisor of `rows` (a rank's windows of a step) that fits in `available` bytes, and in
    MOST_TOKENS; None where not even one window does."""
    budget = available * SHARE[device]
    sizes = [n for n in divisors(rows) if n == 1 or n * model.block_size <= MOST_TOKENS]
    fits = [n for n in sizes if memory_bytes(model, n, precision, device, shards) <= budget]
    return max(fits, default=None)


def divisors(n: int) -> Iterable[int]:
    return (d for d in range(1, n + 1) if n % d == 0)


def checkpoint_bytes(model: ModelConfig, algorithm: str = "adamw") -> int:
    """A checkpoint in fp32: weights and AdamW's two moments or, of what is Muon's, one."""
    hidden = 12 * model.n_layer * model.n_embd**2
    return 12 * parameters(model) - (4 * hidden if algorithm == "muon" else 0)


def run_bytes(config: Config) -> int:
    """The checkpoints of a run at their most: the newest, the best, and one being written."""
    return (config.keep + 2) * checkpoint_bytes(config.model, config.optim.algorithm)
