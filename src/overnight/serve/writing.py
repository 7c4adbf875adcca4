"""One text of an answer while it is written: tokens become text, stop strings end it."""

import codecs
from typing import Any

from overnight.data.tokens import Tokenizer
from overnight.slots import Drawn


class Writing:
    """Takes tokens, gives what may be shown of them.

    What might be the beginning of a stop string is held back until that is known, and so is the beginning of
    a character whose other bytes are still to come.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), judged: bool = False):
        self.tokenizer, self.stop, self.judged = tokenizer, stop, judged
        self.text = ""
        self.tokens: list[tuple[int, Drawn]] = []
        """Where in the text each token begins."""
        self.finish = ""
        """Why it has ended: stop or length."""
        self.offset = 0
        """Of the text's beginning in what the client has (an echoed prompt is before it)."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._given = 0
        self._given_tokens = 0

    def add(self, drawn: Drawn) -> None:
        """One token more; nothing once it has ended."""
        if self.finish:
            return
        self.tokens.append((len(self.text), drawn))
        before = len(self.text)
        self.text += self._decoder.decode(self.tokenizer.decode_bytes([drawn.token]))
        self._look_for_stops(before)

    def end(self, reason: str) -> None:
        if not self.finish:
            before = len(self.text)
            self.text += self._decoder.decode(b"", final=True)
            self._look_for_stops(before)
            self.finish = self.finish or reason

    def _look_for_stops(self, before: int) -> None:
        if not self.stop:
            return
        begin = max(0, before - max(map(len, self.stop)))
        found = [at for one in self.stop if (at := self.text.find(one, begin)) >= 0]
        if found:
            self.text, self.finish = self.text[: min(found)], "stop"
            self.tokens = [(at, drawn) for at, drawn in self.tokens if at < len(self.text)]

    def safe(self) -> int:
        """How much of the text cannot become a stop string any more."""
        if self.finish:
            return len(self.text)
        longest = max(
            (
                length
                for one in self.stop
                for length in range(1, min(len(one), len(self.text) + 1))
                if self.text.endswith(one[:length])
            ),
            default=0,
        )
        return max(self._given, len(self.text) - longest)

    def take(self) -> tuple[str, dict[str, Any] | None]:
        """What is new and may be shown: text, and its tokens' probabilities if they were asked for."""
        safe = self.safe()
        piece, self._given = self.text[self._given : safe], safe
        end = self._given_tokens
        while end < len(self.tokens) and (self.finish or self.tokens[end][0] < safe):
            end += 1
        fresh, self._given_tokens = self.tokens[self._given_tokens : end], end
        return piece, self.probabilities(fresh) if self.judged else None

    def probabilities(self, tokens: list[tuple[int, Drawn]]) -> dict[str, Any]:
        """OpenAI's `logprobs`."""
        return {
            "tokens": [self.named(drawn.token) for _, drawn in tokens],
            "token_logprobs": [drawn.logprob for _, drawn in tokens],
            "top_logprobs": [
                {self.named(token): logprob for token, logprob in drawn.likeliest}
                if drawn.likeliest
                else None
                for _, drawn in tokens
            ],
            "text_offset": [self.offset + at for at, _ in tokens],
        }

    def named(self, token: int) -> str:
        r"""A token as text or, where it is a part of a character, as OpenAI writes it: bytes:\xe2\x80."""
        raw = self.tokenizer.decode_bytes([token])
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def echoed(writing: Writing, ids: tuple[int, ...], judged: list[Drawn]) -> dict[str, Any]:
    """The prompt's own tokens in `logprobs`: nobody foresaw the first."""
    at, tokens = 0, []
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for drawn in [Drawn(ids[0]), *judged]:
        tokens.append((at - writing.offset, drawn))
        at += len(decoder.decode(writing.tokenizer.decode_bytes([drawn.token])))
    return writing.probabilities(tokens)
