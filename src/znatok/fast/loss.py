"""Cross-entropy of a frozen output head on answer positions only.

With a vocabulary of 151,936, logits are the largest tensors of a training step: 0.6 MB a position in float32. Two
things keep them small. Prompt and padding positions never reach the head, and the rest goes through it in chunks whose
gradient is taken at once, so that no logits outlive their chunk:

    loss = Σ logsumexp(h Wᵀ) − (h Wᵀ)[y]        ∂loss/∂h = (softmax(h Wᵀ) − onehot(y)) W

W is frozen, so this gradient is all there is, and the forward pass can compute it (Liger Kernel, arXiv 2410.10989, and
Cut Cross-Entropy, arXiv 2411.09009, do the same on GPUs). ``torch.nn.functional.linear_cross_entropy`` (2.13) is the
library's form of it; in bfloat16 it also returns and sums the loss in bfloat16, 0.8 % off at 400 tokens, which hides
what training does. Here logits and loss are float32.

Shapes: B examples, T tokens, N answer positions, C positions of a chunk, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from znatok.fast import eager
from znatok.fast.kernels import kernels
from znatok.fast.linear import Int8Weight

CHUNK = 256  # positions; 78 MB of bfloat16 logits for Qwen2.5's vocabulary


def ops(tensor: Tensor) -> Any:
    """Return the kernels for a tensor: compiled ones know float32 and bfloat16 on the CPU."""
    known = tensor.device.type == "cpu" and tensor.dtype in {torch.float32, torch.bfloat16}
    return kernels() if known else eager


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy, differentiable in the hidden states and once."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.promote_types(hidden_ND.dtype, torch.float32), device=hidden_ND.device)
        grad_ND = torch.empty_like(hidden_ND)
        chunks = zip(hidden_ND.split(CHUNK), target_N.split(CHUNK), grad_ND.split(CHUNK), strict=True)
        for hidden_CD, target_C, grad_CD in chunks:
            logits_CV = F.linear(hidden_CD.to(weight_VD.dtype), weight_VD)
            total += ops(logits_CV).slope_(logits_CV, target_C).to(total.dtype).sum()
            if ctx.needs_input_grad[0]:
                grad_CD.copy_(logits_CV @ weight_VD)  # the logits are softmax - onehot now
        ctx.save_for_backward(grad_ND)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grad_total.to(grad_ND.dtype), None, None


@dataclass(frozen=True, eq=False)
class Int8Head:
    """An output head whose backward product is int8; the forward one is float, for the loss is what is looked at.

    Attributes:
        weight: (V, D) int8, its outputs not rotated.
        rows_VD: the head in float.
    """

    weight: Int8Weight
    rows_VD: Tensor


class _Int8HeadCrossEntropy(_FrozenHeadCrossEntropy):
    """Summed cross-entropy, differentiable in the hidden states (through an int8 product) and once."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head: Int8Head, target_N: Tensor) -> Tensor:  # type: ignore[override]
        total = torch.zeros((), device=hidden_ND.device)
        grad_ND = torch.empty_like(hidden_ND)
        chunks = zip(hidden_ND.split(CHUNK), target_N.split(CHUNK), grad_ND.split(CHUNK), strict=True)
        for hidden_CD, target_C, grad_CD in chunks:
            logits_CV = F.linear(hidden_CD.to(head.rows_VD.dtype), head.rows_VD)
            if not ctx.needs_input_grad[0]:
                total += kernels().slope_(logits_CV, target_C).sum()
                continue
            seed = int(torch.randint(2**62, ()))  # like those of dropout: a resumed run draws what the whole one would
            slope = kernels().slope_rounded(logits_CV, target_C, head.weight.step, seed, head.weight.way.levels)
            total += slope.loss.sum()
            raw = head.weight.transposed(slope.rows)
            large_CD = _rows_weighted(head.rows_VD, slope.at, slope.large)
            grad_CD.copy_(kernels().finish(raw, head.weight.input_part(None), add_TN=large_CD))
        ctx.save_for_backward(grad_ND)
        return total


def _rows_weighted(rows_VD: Tensor, at_CL: Tensor, factor_CL: Tensor) -> Tensor:
    """Return the sum of chosen rows times their factors, (C, D) float32; factors of 0 cost nothing."""
    place_M, column_M = factor_CL.nonzero(as_tuple=True)
    chosen_MD = rows_VD[at_CL[place_M, column_M]].float() * factor_CL[place_M, column_M, None]
    return chosen_MD.new_zeros(len(at_CL), rows_VD.shape[1]).index_add_(0, place_M, chosen_MD)


Head = Tensor | Int8Head
"""An output head: float weights (V, D), or int8."""


def row_loss(hidden_ND: Tensor, head: Head, target_N: Tensor) -> Tensor:
    """Return the summed loss of rows that each predict one token.

    Args:
        hidden_ND: hidden states after the final norm; any float dtype with a float head, float32 with int8.
        head: frozen.
        target_N: int64 token ids.

    Returns:
        A float32 scalar in nats (float64 for float64 input).
    """
    function: Any = _Int8HeadCrossEntropy if isinstance(head, Int8Head) else _FrozenHeadCrossEntropy
    total: Tensor = function.apply(hidden_ND, head, target_N)
    return total


@torch.no_grad()
def row_losses(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Return the loss of each row, float32 nats (N,); for measuring, nothing is differentiable."""
    chunks = zip(hidden_ND.split(CHUNK), target_N.split(CHUNK), strict=True)
    losses = []
    for hidden_CD, target_C in chunks:
        logits_CV = F.linear(hidden_CD.to(weight_VD.dtype), weight_VD).float()
        losses.append(F.cross_entropy(logits_CV, target_C, reduction="none"))
    return torch.cat(losses) if losses else hidden_ND.new_zeros(0)


def answer_loss(hidden_BTD: Tensor, weight_VD: Tensor, labels_BT: Tensor, ignore: int = -100) -> tuple[Tensor, int]:
    """Return the summed next-token loss over answer positions, and their number.

    Args:
        hidden_BTD: last hidden states, after the final norm; any float dtype.
        weight_VD: output head, frozen; it receives no gradient.
        labels_BT: int64 token ids, ``ignore`` where nothing is trained; unshifted: label t is predicted at t - 1.
        ignore: the label of positions that don't count.

    Returns:
        A float32 scalar in nats (float64 for float64 input), connected to ``hidden_BTD`` even when no position
        counts, and the count.
    """
    target_BT = labels_BT[:, 1:]
    chosen_BT = target_BT != ignore
    hidden_ND = hidden_BTD[:, :-1][chosen_BT]
    target_N = target_BT[chosen_BT]
    return row_loss(hidden_ND, weight_VD, target_N), len(target_N)
