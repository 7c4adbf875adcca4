"""The hub, through huggingface_hub: a model's files; and for all that asks it, what its errors mean and how
long to go on trying."""

import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from overnight.errors import Failure, UserError
from overnight.terminal import duration

T = TypeVar("T")

LONGEST_WAIT = 60.0  # seconds between two tries, unless the hub asks for more
MAY_PASS = (408, 416, 429)  # of the statuses 4xx; all others mean that asking again is useless
JITTER = random.SystemRandom()  # so that nobody's seeds are touched


class NoSuchFile(UserError):
    """A repository that is there does not have the file."""


class Broken(Exception):
    """An answer of the hub is not what was asked for; it may be the next time."""


def quiet() -> None:
    """Import huggingface_hub (it reads the environment then) and silence it: what goes wrong is said here."""
    from huggingface_hub import utils

    utils.logging.set_verbosity_error()


def fetch(repository: str, file: str, revision: str | None = None) -> Path:
    """A file of a model repository, in the hub's cache. Raises UserError where it cannot be had (NoSuchFile
    if that is all that is wrong), Failure when the hub does not answer as it should."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    quiet()

    missing = NoSuchFile(f"hf:{repository} has no {file}: it is no model that Overnight reads.")
    cached = hub.try_to_load_from_cache(repository, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None:  # the cache knows that there is none
        raise missing
    try:
        return Path(hub.hf_hub_download(repository, file, revision=revision))
    except errors.LocalEntryNotFoundError:
        raise UserError(
            f"hf:{repository} is not in the cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set).",
            f"With a network: hf download {repository}; or give a folder: hf:PATH.",
        ) from None
    except errors.EntryNotFoundError:
        raise missing from None
    except (errors.HTTPError, OSError, ValueError) as error:
        raise refusal(error, repository, file, revision) or Failure(
            f"the hub's {repository}/{file} could not be fetched: {reason(error)}."
        ) from None


def refusal(
    error: Exception, repository: str, file: str | None = None, revision: str | None = None
) -> UserError | None:
    """What an error of huggingface_hub means where asking again is useless; None where it may pass."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return UserError(f"hf:{repository} asks for an agreement: accept it on the hub, then set HF_TOKEN.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(f"there is no repository {repository} on the hub (or it is private: set HF_TOKEN).")
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"hf:{repository} has no revision {revision}.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UserError(f"hf:{repository} needs the hub, and HF_HUB_OFFLINE is set: unset it.")
    if isinstance(error, errors.HFValidationError):
        return UserError(f"hf:{repository} is no name on the hub: they look like USER/NAME.")
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status == 404 and file:
        return NoSuchFile(f"hf:{repository} has no {file}.")
    if status in (401, 403):
        return UserError(
            f"the hub does not let you have hf:{repository} ({status}): set HF_TOKEN to a token that may."
        )
    if 400 <= status < 500 and status not in MAY_PASS:
        return UserError(f"the hub does not give hf:{repository}/{file or ''}: {reason(error)}.")
    return None


def reason(error: Exception) -> str:
    """An error of the network in a few words."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"it answers {response.status_code} {response.reason_phrase}"
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


class Patience:
    """When to try again: back-off that doubles, with jitter, and as late as the hub asks for; until `seconds`
    have passed without progress."""

    def __init__(self, seconds: float, base: float = 1.0):
        self.seconds, self.base = seconds, base
        self.renew()

    def renew(self) -> None:
        """There was progress."""
        self.tries, self.deadline = 0, time.monotonic() + self.seconds

    def delay(self, error: Exception) -> float | None:
        """Seconds to wait before the next try; None when patience will be over by then."""
        wait = min(self.base * 2**self.tries, LONGEST_WAIT) * JITTER.uniform(0.5, 1) + asked_for(error)
        self.tries += 1
        return wait if time.monotonic() + wait < self.deadline else None


def asked_for(error: Exception) -> float:
    """Seconds that the hub asks to be left alone: Retry-After (a number or a date) or its own RateLimit."""
    import email.utils

    headers = getattr(getattr(error, "response", None), "headers", {})
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    if (date := email.utils.parsedate_tz(value)) is not None:
        return max(0.0, email.utils.mktime_tz(date) - time.time())
    window = re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("RateLimit", ""))  # "api";r=0;t=55
    return float(window[1]) if window else 0.0


def persist(
    attempt: Callable[[], T],
    patience: Patience,
    repository: str,
    file: str | None = None,
    revision: str | None = None,
    pause: Callable[[float, str], None] = lambda seconds, _why: time.sleep(seconds),
) -> T:
    """`attempt()`, again and again while what goes wrong may pass; `pause` waits and may say why.

    Raises UserError at once where asking again is useless, Failure when the patience is at an end.
    """
    from huggingface_hub import errors

    while True:
        try:
            return attempt()
        except (Broken, errors.HTTPError, errors.OfflineModeIsEnabled, errors.HFValidationError) as error:
            if (final := refusal(error, repository, file, revision)) is not None:
                raise final from None
            why = reason(error)
            if (asked := asked_for(error)) > 0:
                why += f" and asks to wait {duration(asked)}"
            if (delay := patience.delay(error)) is None:
                raise Failure(
                    f"the hub's {'/'.join(filter(None, (repository, file)))} could not be fetched: {why}.",
                    f"There was no progress, and patience is {duration(patience.seconds)}.",
                    "The same command goes on from where it was.",
                ) from None
        pause(delay, why)
