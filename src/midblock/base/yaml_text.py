"""YAML that reads back as what was written, whatever the text in it."""

from __future__ import annotations

from typing import Any

import yaml


def yaml_text(value: Any, **layout: Any) -> str:
    """Plain values as YAML; letters stay letters where the library reads them back so (it does not with U+0085).

    Args:
        layout: options of `yaml.safe_dump`.
    """
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, **layout)
    if yaml.safe_load(text) == value:
        return text
    return yaml.safe_dump(value, sort_keys=False, **layout)
