"""A yardstick that people know: how small `xz -9e` makes the same text."""

import lzma

from overnight.data.manifest import Data

MOST_BYTES = 4 << 20  # xz -9e does about 1 MB a second


def xz_bits_per_byte(data: Data, predicted: int) -> float | None:
    """Bits a byte that xz needs for the text of the first `predicted` validation tokens, which it has
    never seen before (the model has seen training text like it); None for more than 4 MiB."""
    tokens = data.split("val").read(1, predicted) if predicted <= MOST_BYTES else None
    if tokens is None or not len(tokens) or int(tokens.max()) >= data.tokenizer.vocab_size:
        return None
    if not 0 < int(data.tokenizer.byte_lengths[tokens].sum()) <= MOST_BYTES:  # a token may be a megabyte
        return None
    text = data.tokenizer.decode_bytes(tokens.tolist())
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
