"""Files of models on the hub (huggingface_hub): from its cache where they are there, else downloaded."""

from pathlib import Path

from overnight.errors import Failure, UserError


class NoSuchFile(UserError):
    """A repository that is there does not have the file."""


def fetch(repository: str, file: str, revision: str | None = None) -> Path:
    """A file of a model repository, in the hub's cache. Raises UserError where it cannot be had (NoSuchFile
    if that is all that is wrong), Failure when the hub does not answer as it should."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    cached = hub.try_to_load_from_cache(repository, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None:  # the cache knows that there is none
        raise NoSuchFile(f"hf:{repository} has no {file}: it is no model that Overnight reads.")
    hub.utils.logging.set_verbosity_error()  # what goes wrong is said below
    try:
        return Path(hub.hf_hub_download(repository, file, revision=revision))
    except errors.GatedRepoError:
        raise UserError(
            f"hf:{repository} asks for an agreement: accept it on the hub, then set HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"there is no repository {repository} on the hub (or it is private: set HF_TOKEN)."
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"hf:{repository} has no revision {revision}.") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(
            f"hf:{repository} is not in the cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set).",
            f"With a network: hf download {repository}; or give a folder: hf:PATH.",
        ) from None
    except errors.EntryNotFoundError:
        raise NoSuchFile(f"hf:{repository} has no {file}: it is no model that Overnight reads.") from None
    except (OSError, ValueError) as error:
        raise Failure(
            f"the hub's {repository}/{file} could not be fetched: {str(error).splitlines()[0]}"
        ) from None
