"""Whether the hub can be reached, asked once and within seconds: its clients try again and again, for half a minute."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any

ANSWER_IN = 3.0  # seconds that the hub has to take a call, and again to answer it


def hub_answers(ask: Callable[[Any, float], object]) -> bool:
    """Whether the hub says anything within some seconds: an error is an answer too.

    It is asked from a thread that may be left behind: a name server that keeps silent knows no limit of time.

    Args:
        ask: asks a `huggingface_hub.HfApi` for something small, with a limit in seconds.
    """
    heard: list[bool] = []
    caller = Thread(target=lambda: heard.append(_asked(ask)), daemon=True)
    caller.start()
    caller.join(2 * ANSWER_IN)
    return heard == [True]


def _asked(ask: Callable[[Any, float], object]) -> bool:
    from huggingface_hub import HfApi, errors

    try:
        ask(HfApi(), ANSWER_IN)
    except (errors.HfHubHTTPError, errors.HFValidationError):
        return True
    except (errors.HTTPError, OSError):
        return False
    return True
