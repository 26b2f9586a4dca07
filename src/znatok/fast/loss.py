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

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 128  # positions; 78 MB of float32 logits for Qwen2.5's vocabulary


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy, differentiable in the hidden states and once."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.promote_types(hidden_ND.dtype, torch.float32), device=hidden_ND.device)
        grad_ND = torch.empty_like(hidden_ND)
        chunks = zip(hidden_ND.split(CHUNK), target_N.split(CHUNK), grad_ND.split(CHUNK), strict=True)
        for hidden_CD, target_C, grad_CD in chunks:
            logits_CV = F.linear(hidden_CD.to(weight_VD.dtype), weight_VD).to(total.dtype)
            norm_C = logits_CV.logsumexp(dim=-1)
            total += (norm_C - logits_CV.gather(1, target_C[:, None])[:, 0]).sum()
            if not ctx.needs_input_grad[0]:
                continue
            slope_CV = logits_CV.sub_(norm_C[:, None]).exp_()  # softmax, in the logits' own memory
            slope_CV[torch.arange(len(target_C), device=target_C.device), target_C] -= 1
            grad_CD.copy_(slope_CV.to(weight_VD.dtype) @ weight_VD)
        ctx.save_for_backward(grad_ND)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grad_total.to(grad_ND.dtype), None, None


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
    total: Tensor = _FrozenHeadCrossEntropy.apply(hidden_ND, weight_VD, target_N)  # type: ignore[no-untyped-call]
    return total, len(target_N)
