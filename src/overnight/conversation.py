"""`overnight sample -i`: prompts typed one after another, each gone on from at once."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from overnight.checks import LARGEST, LIMITS
from overnight.data.batches import key
from overnight.data.tokens import Tokenizer
from overnight.decode import Sampling
from overnight.errors import UserError, near
from overnight.generate import stream
from overnight.models.networks import Network

HELP = """\
Type a prompt: the model goes on from it. \\n stands for a new line. Enter alone: another text from the same
prompt. Ctrl-C ends a text, Ctrl-D (or :quit) the conversation.
  :temperature X   :top-k N   :top-p X   :length N   :seed N   change how it writes     :help   this"""


@dataclass
class Settings:
    """How texts are written; what a line that begins with a colon changes."""

    sampling: Sampling
    length: int
    seed: int
    texts: int = 0
    """Written since the seed was set: each gets a seed of its own from the two."""

    def change(self, line: str) -> str:
        """Obey ':name value'; what to say. Raises UserError for what is no setting or no value of it."""
        name, _, value = line[1:].strip().partition(" ")
        name = name.replace("_", "-")
        kinds: dict[str, Callable[[str], float]] = {
            "temperature": float, "top-k": int, "top-p": float, "length": int, "seed": int,
        }  # fmt: skip
        if name not in kinds:
            raise UserError(f"there is no setting ':{name}'.{near(name, kinds)} :help lists them.")
        try:
            number = kinds[name](value)
        except ValueError:
            raise UserError(f":{name} takes a number, not '{value}'.") from None
        least = {"temperature": 0, "top-k": 0, "top-p": 0, "length": 1, "seed": 0}[name]
        most = 1.0 if name == "top-p" else LIMITS.get(name, LARGEST)
        if not least <= number <= most or (name == "top-p" and number == 0):
            raise UserError(f":{name} {value} is out of range.")
        match name:
            case "seed":
                self.seed, self.texts = int(number), 0
            case "length":
                self.length = int(number)
            case "top-k":
                self.sampling = replace(self.sampling, top_k=int(number))
            case "top-p":
                self.sampling = replace(self.sampling, top_p=number)
            case "temperature":
                self.sampling = replace(self.sampling, temperature=number)
        return f"{name} {value}"


def lines(prompt: str) -> Iterator[str]:
    """What is typed, until Ctrl-D; arrow keys and history where the terminal has them."""
    try:
        import readline  # noqa: F401
    except ImportError:  # Windows
        pass
    while True:
        try:
            yield input(prompt)
        except EOFError:
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n")


def converse(
    model: Network, tokenizer: Tokenizer, settings: Settings, typed: Iterator[str], say: Callable[[str], None]
) -> None:
    """Go on from each line that is typed. say: shows a piece of text at once."""
    say(HELP + "\n")
    prompt = ""
    for line in typed:
        if line.strip() == ":quit":
            return
        if line.strip() == ":help":
            say(HELP + "\n")
            continue
        try:
            if line.startswith(":"):
                say(settings.change(line) + "\n")
                continue
            prompt = line.replace("\\n", "\n") or prompt
            seed = key(settings.seed, settings.texts) if settings.texts else settings.seed
            settings.texts += 1
            for piece in stream(model, tokenizer, [prompt], settings.length, settings.sampling, seed):
                say(piece)
        except UserError as error:
            say(f"{error}\n")
        except KeyboardInterrupt:
            say("\n")
