"""The page that users read says what the tests expect, and the zoo has every decoder that transformers knows."""

from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .outcome import WRITE, read
from .page import page
from .wrappers import WRAPPERS
from .zoo import NO_DECODERS, families, nested

DOCS = Path(__file__).parents[2] / "docs" / "families.md"


def test_the_page_says_what_is_expected():
    if WRITE:
        DOCS.write_text(page(read()), encoding="utf-8")
    assert DOCS.read_text(encoding="utf-8") == page(read())


def test_every_decoder_is_expected_to_do_something_and_nothing_is_left_over():
    assert set(read()) == {*families(), *WRAPPERS}
    tried = {name.partition(":")[0] for name in families()}
    assert all(name in tried or name in NO_DECODERS or nested(name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
