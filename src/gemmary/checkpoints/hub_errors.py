"""What went wrong on the way to the hub, in one line that says what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from gemmary import zoo
from gemmary.checkpoints import hub
from gemmary.checkpoints.hub import HubName
from gemmary.errors import GemmaryError


@contextmanager
def plain_errors(hub_name: HubName) -> Iterator[None]:
    try:
        yield
    except GemmaryError:
        raise
    except Exception as error:  # the library's errors differ from one of its versions to the next
        raise explain(error, hub_name) from error


def explain(error: Exception, hub_name: HubName) -> GemmaryError:
    """One line for what went wrong on the way to the hub."""
    from huggingface_hub import constants, errors, get_token

    page = f"{constants.ENDPOINT}/{hub_name.repo}"
    log_in = "`hf auth login` or HF_TOKEN gives it one"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        if not get_token():
            return GemmaryError(f"no token: {hub_name.repo} asks for one. Accept its licence at {page}, then {log_in}")
        if "fine-grained" in str(error):
            return GemmaryError(
                f"your token may not read gated models: allow that in its settings, then pull {hub_name} again"
            )
        return GemmaryError(
            f"licence not accepted: accept it at {page} with the account of your token, then pull again"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        if zoo.find(hub_name.repo) is not None and not get_token():
            return GemmaryError(f"no token: {hub_name.repo} asks for one. Accept its licence at {page}, then {log_in}")
        near = zoo.did_you_mean(hub_name.repo, (row.hub_id for row in zoo.ZOO))
        private = "" if get_token() else f", or it is private and there is no token: {log_in}"
        return GemmaryError(f"not found: the hub has no model {hub_name.repo!r}{private}{near}")
    if isinstance(error, errors.RevisionNotFoundError):
        return GemmaryError(f"not found: {hub_name.repo} has no revision {hub_name.revision!r}")
    if status == 401:
        return GemmaryError(f"the hub does not know your token: {log_in.replace('gives it one', 'sets another')}")
    if status == 429:
        return GemmaryError("the hub limits how often it is asked: wait some minutes and pull again")
    if status is not None:
        return GemmaryError(f"the hub answered {status} for {hub_name}: pull again later; what has arrived is kept")
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return GemmaryError(f"disk full: free some space in {hub.hub_cache()} and pull again; what has arrived is kept")
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return GemmaryError(f"no network: HF_HUB_OFFLINE is set, so {hub_name} cannot be fetched; unset it")
    names = {base.__name__ for base in type(error).__mro__}
    if names & {"ConnectionError", "TransportError", "RequestException", "TimeoutError", "LocalEntryNotFoundError"}:
        return GemmaryError(f"no network: the hub ({constants.ENDPOINT}) cannot be reached; what has arrived is kept")
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return GemmaryError(f"cannot fetch {hub_name}: {first}")
