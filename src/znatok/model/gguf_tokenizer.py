"""A tokenizer from GGUF metadata, giving the ids the publisher's own tokenizer gives.

A GGUF file holds the vocabulary, the kinds of its tokens and (for byte-level BPE) the merges; how text is split before
merging is only named. Everything is checked before it reaches the ``tokenizers`` library, whose errors for bad
vocabularies are bare ``Exception``s.
"""

import itertools
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from znatok.errors import _
from znatok.model.gguf_header import Header

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # llama.cpp's token types znatok tells apart

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _splitters() -> dict[str, list[Any]]:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return {
        "gpt-2": [gpt2],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2],
        "llama-bpe": [pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated"), byte_level],
    }


def build_tokenizer(header: Header) -> PreTrainedTokenizerBase:
    """Return the tokenizer a GGUF file describes, its chat template included."""
    tokens, kinds = _vocabulary(header)
    kind = header.text("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(header, tokens, kinds)
    elif kind == "llama":
        tokenizer = _sentencepiece(header, tokens)
    else:
        raise header.bad("tokenizer.ggml.model", kind, "gpt2, llama")
    _add_special(tokenizer, tokens, kinds)
    if "tokenizer.chat_template" in header.metadata:
        tokenizer.chat_template = header.text("tokenizer.chat_template")
    tokenizer.model_max_length = header.integer(f"{header.text('general.architecture')}.context_length", high=1 << 24)
    return tokenizer


def _vocabulary(header: Header) -> tuple[list[str], list[int]]:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise header.bad("tokenizer.ggml.tokens", tokens and type(tokens).__name__, _("a list of strings"))
    embedding = header.tensors.get("token_embd.weight")
    if embedding is not None and len(tokens) > embedding.shape[0]:
        raise header.bad("tokenizer.ggml.tokens", len(tokens), _("at most {n} tokens", n=embedding.shape[0]))
    if len(set(tokens)) != len(tokens):
        raise header.bad("tokenizer.ggml.tokens", _("a list with repetitions"), _("distinct tokens"))
    kinds = header.metadata.get("tokenizer.ggml.token_type")
    if kinds is None:
        return tokens, [1] * len(tokens)
    if not hasattr(kinds, "tolist") or kinds.dtype.kind not in "iu" or len(kinds) != len(tokens):
        raise header.bad("tokenizer.ggml.token_type", _("another list"), _("{n} whole numbers", n=len(tokens)))
    return tokens, kinds.tolist()


def _named(header: Header, tokens: list[str]) -> dict[str, Any]:
    """The special tokens the file names, under transformers' names; None where it names none."""
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    named: dict[str, Any] = dict.fromkeys(keys)
    for name, key in keys.items():
        full = f"tokenizer.ggml.{key}_token_id"
        if full in header.metadata:
            named[name] = tokens[header.integer(full, low=0, high=len(tokens) - 1)]
    return named


def _byte_level(header: Header, tokens: list[str], kinds: list[int]) -> PreTrainedTokenizerBase:
    pre = header.text("tokenizer.ggml.pre")  # files from before 2024 lack it: their split can only be guessed
    # a vocabulary is padded up to the embedding with [PAD151665] and so on: rows no text or answer means
    vocab = {t: i for i, t in enumerate(tokens) if not (kinds[i] == UNUSED and t == f"[PAD{i}]")}
    merges = _merges(header, vocab)
    named = _named(header, tokens)
    if pre == "qwen2":
        # Qwen has no beginning token; the file names one because llama.cpp wants an id there
        named["bos_token"] = None
        return Qwen2Tokenizer(vocab=vocab, merges=merges, **named)
    splitters = _splitters()
    if pre not in splitters:
        raise header.bad("tokenizer.ggml.pre", pre, ", ".join(["qwen2", *splitters]))
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Sequence(splitters[pre])
    core.decoder = decoders.ByteLevel()
    # a vocabulary of Llama 3's kind begins a text with its bos token unless the file denies it
    adds_bos = header.flag("tokenizer.ggml.add_bos_token", default=pre == "llama-bpe")
    return PreTrainedTokenizerFast(tokenizer_object=core, **named, add_bos_token=adds_bos)


def _merges(header: Header, vocab: dict[str, int]) -> list[tuple[str, str]]:
    lines = header.metadata.get("tokenizer.ggml.merges")
    if not isinstance(lines, list):
        raise header.bad("tokenizer.ggml.merges", None, _("a list of strings"))
    merges = []
    for line in lines:
        left, _between, right = line.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise header.bad("tokenizer.ggml.merges", line, _("two tokens of the vocabulary that make a third one"))
        merges.append((left, right))
    return merges


def _sentencepiece(header: Header, tokens: list[str]) -> PreTrainedTokenizerBase:
    named = _named(header, tokens)
    adds_bos = header.flag("tokenizer.ggml.add_bos_token", default=True)
    if header.text("general.architecture") == "gemma3":
        # runs of spaces are stored as spaces, while text reaches the merges with ▁ for each space
        tokens[:] = ["▁" * len(t) if t and not t.strip(" ") else t for t in tokens]
        kind: Any = GemmaTokenizer
        rank = list(range(len(tokens)))  # Gemma's scores don't follow its merges, the order of its tokens does
        more: dict[str, Any] = {"mask_token": "<mask>" if "<mask>" in tokens else None}
    else:
        scores = header.metadata.get("tokenizer.ggml.scores")
        if scores is None or not hasattr(scores, "tolist") or len(scores) != len(tokens):
            raise header.bad("tokenizer.ggml.scores", _("another list"), _("{n} numbers", n=len(tokens)))
        kind, rank = LlamaTokenizer, [-score for score in scores.tolist()]
        more = {"add_prefix_space": header.flag("tokenizer.ggml.add_space_prefix", default=True)}
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise header.bad("tokenizer.ggml.tokens", _("a list with repetitions"), _("distinct tokens"))
    if named["unk_token"] is None:
        raise header.bad("tokenizer.ggml.unknown_token_id", None, _("a token's number"))
    merges = _implied_merges(tokens, rank, vocab)
    return kind(vocab=vocab, merges=merges, add_bos_token=adds_bos, **named, **more)


def _implied_merges(tokens: list[str], rank: list[Any], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Rebuild the merges SentencePiece does not store: every way to make a token of two, best token first."""
    order = sorted(range(len(tokens)), key=rank.__getitem__)
    return [
        (tokens[index][:cut], tokens[index][cut:])
        for index in order
        for cut in range(len(tokens[index]) - 1, 0, -1)
        if tokens[index][:cut] in vocab and tokens[index][cut:] in vocab
    ]


def _add_special(tokenizer: PreTrainedTokenizerBase, tokens: list[str], kinds: list[int]) -> None:
    """Make control tokens whole and special, user-defined ones (``<tool_call>``) whole only."""
    known = tokenizer.get_vocab()
    groups = itertools.groupby(
        ((token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in {CONTROL, USER_DEFINED}),
        key=lambda pair: pair[1] == CONTROL,
    )
    for special, pairs in groups:
        added = [AddedToken(token, normalized=False, special=special) for token, _type in pairs if token in known]
        tokenizer.add_tokens(added, special_tokens=special)
