"""Removes what must not leave the machine: keys and passwords in settings, addresses and messages."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "(hidden)"
_SECRET_KEY = re.compile(
    r"(?i)(?:^|[_.\-])(?:token|secret|password|passwd|credentials?|api_?key|access_?key)(?:$|[_.\-])"
)
_USER_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def without_secrets(settings: Any, key: str = "") -> Any:
    """JSON-able data without secrets: values of keys such as `api_key` or `hub_token`, and credentials in addresses."""
    if isinstance(settings, dict):
        return {name: without_secrets(value, str(name)) for name, value in settings.items()}
    if settings is not None and _SECRET_KEY.search(key):
        return HIDDEN
    if isinstance(settings, (list, tuple)):
        return [without_secrets(value) for value in settings]
    return without_users(settings) if isinstance(settings, str) else settings


def without_users(text: str) -> str:
    """`text` with the user and the password hidden in every address: https://(hidden)@host."""
    return _USER_IN_ADDRESS.sub(HIDDEN, text)
