"""What attention has seen already, for generating a token at a time.

Letters as in gpt2.py: B sequences, H heads, D size of a head, T positions fed in, S attended to, L layers.
"""

import torch
from torch import Tensor

from overnight.config import ModelConfig


class KVCache:
    """The keys and values of the positions seen so far, so that each new token costs one position's work.

    Room for `length` positions of `batch` sequences; `used` of them are filled.
    """

    def __init__(
        self, config: ModelConfig, batch: int, length: int, device: torch.device, dtype: torch.dtype
    ):
        head_size = config.n_embd // config.n_head
        shape = (config.n_layer, batch, config.n_head, length, head_size)
        # Zeros: what a mask hides is multiplied by 0, and 0 times what is not a number is not one either.
        self.keys = torch.zeros(shape, device=device, dtype=dtype).unbind()  # L x (B, H, length, D)
        self.values = torch.zeros(shape, device=device, dtype=dtype).unbind()  # L x (B, H, length, D)
        self.length, self.used = length, 0
        self.at: Tensor | None = None

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values, (B, H, T, D); all up to here, (B, H, S, D), come back.

        Where `at`, (T,) int64, says the places, `used` is not asked, and the whole cache comes back: shapes
        do not change from token to token, and a mask has to hide what is not filled.
        """
        keys, values, T = self.keys[layer], self.values[layer], k.size(2)
        if self.at is not None:
            return keys.index_copy_(2, self.at, k), values.index_copy_(2, self.at, v)
        keys.narrow(2, self.used, T).copy_(k)
        values.narrow(2, self.used, T).copy_(v)
        return keys.narrow(2, 0, self.used + T), values.narrow(2, 0, self.used + T)
