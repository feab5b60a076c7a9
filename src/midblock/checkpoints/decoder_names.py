"""The same part of two decoders that stand in different places: one alone, one inside a multimodal model.

`model.layers.0…` of the text model is `model.language_model.layers.0…` of the wrapper. Anatomies say where each part of
a decoder stands; all else keeps its name.
"""

from __future__ import annotations

from collections.abc import Mapping

PARTS = ("head", "embedding", "final_norm", "blocks", "backbone")  # of a decoder, the narrowest first


def name_in(ours: Mapping[str, str], theirs: Mapping[str, str], name: str) -> str:
    """What a parameter or module of one model is called in another.

    Args:
        ours: where the parts of the decoder stand in the model that is asked for (`Anatomy.names`).
        theirs: where they stand in the model that `name` is of.
    """
    if ours == theirs:
        return name
    for part in PARTS:
        here, there = ours[part], theirs[part]
        if name == there:
            return here
        rest = name.removeprefix(f"{there}." if there else "")
        if rest != name or not there:
            return f"{here}.{rest}" if here else rest
    return name
