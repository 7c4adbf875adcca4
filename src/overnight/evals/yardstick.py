"""A yardstick that people know: how small `xz -9e` makes the same text."""

import lzma

from overnight.data.manifest import Data

MOST_BYTES = 4 << 20  # xz -9e does about 1 MB a second


def xz_bits_per_byte(data: Data, predicted: int) -> float | None:
    """Bits a byte that xz needs for the text of the first `predicted` validation tokens, which it has
    never seen before (the model has seen training text like it); None for more than 4 MiB."""
    tokens = data.split("val").read(1, predicted) if predicted <= MOST_BYTES else None
    text = data.tokenizer.decode_bytes(tokens.tolist()) if tokens is not None else b""
    if not 0 < len(text) <= MOST_BYTES:
        return None
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
