"""How the next token is drawn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from znatok.config import SampleOptions

SHORTLIST = 1024  # tokens sorted for top_p before the whole vocabulary has to be
COLDEST = 1e-4  # logits divided by less may overflow float32

Chances = tuple[tuple[int, float], ...]
"""Tokens with the natural logarithms of their probabilities: first the one that was said, then the likeliest."""


def draw(scores_V: Tensor, sample: SampleOptions, said: Sequence[int], generator: torch.Generator) -> int:
    """Draw the next token.

    Args:
        scores_V: logits, float32, shape (V,); changed in place by the penalties.
        sample: temperature 0 takes the likeliest token; otherwise top_k, then top_p of what is left.
        said: tokens of the answer so far, which the penalties count.
        generator: the request's own.

    Returns:
        A token id.
    """
    if said and (sample.repetition_penalty != 1 or sample.frequency_penalty or sample.presence_penalty):
        _penalise(scores_V, sample, said)
    if sample.temperature < COLDEST:
        return int(scores_V.argmax())
    scaled_V = scores_V / sample.temperature
    share, ids = _nucleus(scaled_V, min(sample.top_k or len(scaled_V), len(scaled_V)), sample.top_p)
    return int(ids[torch.multinomial(share, 1, generator=generator)])


def chances(logits_V: Tensor, token: int, likeliest: int) -> Chances:
    """Tell how likely a token was, and which were the likeliest.

    Args:
        logits_V: as the model gave them, shape (V,): nothing penalised, banned or cut off.
        token: what was drawn.
        likeliest: how many others to tell; the token itself may be among them.
    """
    logprobs_V = logits_V.float().log_softmax(0)
    best = logprobs_V.topk(likeliest)
    others = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return (token, float(logprobs_V[token])), *others


def _penalise(scores_V: Tensor, sample: SampleOptions, said: Sequence[int]) -> None:
    """Make what was said less likely, in place.

    First the repetition penalty (Keskar et al. 2019, arXiv 1909.05858), then presence and frequency as the OpenAI API
    has them: llama.cpp's order.
    """
    seen, times = torch.tensor(said).unique(return_counts=True)
    old = scores_V[seen]
    new = torch.where(old > 0, old / sample.repetition_penalty, old * sample.repetition_penalty)
    scores_V[seen] = new - sample.frequency_penalty * times - sample.presence_penalty


def _nucleus(scaled_V: Tensor, size: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the shares (0 outside the nucleus) and ids of the likeliest tokens, likeliest first."""
    total = scaled_V.logsumexp(0) if size == len(scaled_V) else scaled_V.topk(size).values.logsumexp(0)
    shortlist = min(SHORTLIST, size)
    while True:
        scores, ids = scaled_V.topk(shortlist)
        share = (scores - total).exp()
        before = share.cumsum(0) - share
        if shortlist == size or float(before[-1]) >= top_p:
            share[before >= top_p] = 0  # the first always stays: nothing comes before it
            return share, ids
        shortlist = size
