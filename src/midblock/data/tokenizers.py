"""Whether two models read the same token ids: a comparison of their tokenizers."""

from collections.abc import Iterable

from transformers.tokenization_utils_base import PreTrainedTokenizerBase


def tokenizer_difference(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase, texts: Iterable[str]) -> str | None:
    """Describe how two tokenizers disagree about what an id means.

    Tokens that only one of them has (added for padding or chat, say) are no disagreement as long as the texts do not
    use them; neither are special tokens that only one puts around a text, since the ids are made once for both models.

    Args:
        a, b: the tokenizers.
        texts: probes, both of whose tokenisations must agree.

    Returns:
        A phrase such as "3 shared tokens have other ids, first 'the': 262 and 301", or None when they agree.
    """
    ids_a, ids_b = a.get_vocab(), b.get_vocab()
    moved = sorted((ids_a[token], token) for token in ids_a.keys() & ids_b.keys() if ids_a[token] != ids_b[token])
    if moved:
        first, token = moved[0]
        return f"{len(moved)} shared tokens have other ids, first {token!r}: {first} and {ids_b[token]}"
    for text in texts:
        tokens_a, tokens_b = (each(text, add_special_tokens=False, verbose=False)["input_ids"] for each in (a, b))
        if tokens_a != tokens_b:
            return f"{text[:40]!r} becomes other ids ({len(tokens_a)} and {len(tokens_b)} tokens)"
    return None
