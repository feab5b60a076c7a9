"""The packages that numbers and runs depend on: their versions, what their own metadata asks for, and known bad pairs.

Cost: metadata on disk; nothing is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from midblock.studies.doctor.finding import CARE, Finding

PACKAGES = ("midblock", "torch", "transformers", "peft", "trl", "accelerate", "safetensors", "datasets", "bitsandbytes")
ASKING = ("midblock", "transformers", "peft", "trl", "accelerate", "datasets")  # whose requirements are looked at


@dataclass(frozen=True)
class BadPair:
    """Two packages whose metadata lets them stand together, and that do not work together.

    Attributes:
        first, second: a package and the versions of it.
        breaks: what happens.
        source: where it is told.
    """

    first: tuple[str, str]
    second: tuple[str, str]
    breaks: str
    source: str


BAD_PAIRS = (
    BadPair(
        ("transformers", ">=5.0"),
        ("peft", "<0.18"),
        "peft cannot be imported: no adapter is read or trained",
        "https://github.com/huggingface/transformers/pull/41889",
    ),
    BadPair(
        ("transformers", ">=5.0"),
        ("trl", "<0.29"),
        "trl takes optional packages to be there that are not: its trainers cannot be imported",
        "https://github.com/MakazhanAlpamys/Soup/issues/503",
    ),
    BadPair(
        ("peft", ">=0.19"),
        ("torchao", "<0.16"),
        "peft refuses to make or read a LoRA while that torchao is installed",
        "https://github.com/daydreamlive/scope/pull/1007",
    ),
    BadPair(
        ("transformers", "==5.1.0"),
        ("deepspeed", ">=0"),
        "trl asks for another transformers beside DeepSpeed",
        "https://github.com/huggingface/trl/pull/4985",
    ),
)


def versions() -> dict[str, str | None]:
    """The version of each package; None of one that is not installed."""
    return {name: installed(name) for name in PACKAGES}


def installed(name: str) -> str | None:
    """The version of a package that is installed; None where it is not."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def package_findings() -> list[Finding]:
    """What of the installed packages does not go together."""
    wishes = {name: metadata.requires(name) or [] for name in ASKING if installed(name)}
    known = {name for lines in wishes.values() for name in _names(lines)}
    known |= {name for pair in BAD_PAIRS for name, _ in (pair.first, pair.second)}
    there = {name: version for name in known if (version := installed(name)) is not None}
    return [*unmet(wishes, there), *bad_pairs(there)]


def unmet(wishes: Mapping[str, Sequence[str]], there: Mapping[str, str]) -> list[Finding]:
    """Requirements that installed packages do not meet; one that is optional counts where its package is there.

    Args:
        wishes: requirement lines as metadata has them, by the package that asks.
        there: versions of what is installed.
    """
    found = []
    for name, lines in wishes.items():
        for each in _requirements(lines):
            version = there.get(each.name)
            if version is None or each.specifier.contains(version, prereleases=True):
                continue
            what = f"{name} asks for {each.name}{each.specifier}, installed is {version}"
            found.append(Finding(CARE, what, f"pip install '{each.name}{each.specifier}'"))
    return list(dict.fromkeys(found))


def bad_pairs(there: Mapping[str, str]) -> list[Finding]:
    """Known bad pairs among what is installed."""
    return [
        Finding(CARE, f"{_said(pair.first, there)} with {_said(pair.second, there)}: {pair.breaks}", pair.source)
        for pair in BAD_PAIRS
        if all(_among(each, there) for each in (pair.first, pair.second))
    ]


def _among(asked: tuple[str, str], there: Mapping[str, str]) -> bool:
    name, versions_ = asked
    try:
        return name in there and SpecifierSet(versions_).contains(Version(there[name]).base_version)
    except InvalidVersion:
        return False


def _said(asked: tuple[str, str], there: Mapping[str, str]) -> str:
    return f"{asked[0]} {there[asked[0]]}"


def _names(lines: Sequence[str]) -> list[str]:
    return [each.name for each in _requirements(lines)]


def _requirements(lines: Sequence[str]) -> list[Requirement]:
    """Requirement lines that hold on this Python and system, those of extras included."""
    found = []
    for line in lines:
        try:
            each = Requirement(line)
        except InvalidRequirement:
            continue
        extras = ("", "train", "hub", "demo", "eval")
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras):
            found.append(each)
    return found
