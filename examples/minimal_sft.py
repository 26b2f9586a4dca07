"""The whole method on one page: teach a chat model to answer your questions, with LoRA and nothing hidden.

    python examples/minimal_sft.py MODEL_DIR data.jsonl my-adapter

MODEL_DIR is a chat model in Hugging Face layout that speaks ChatML, such as Qwen2.5-1.5B-Instruct. ``znatok train``
does the same with checkpoints, validation, less memory and good error messages; a test proves that both take the same
steps: equal losses, equal adapter. Read it from top to bottom; it runs in that order.
"""

import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from znatok.train.batches import LengthGroupedBatches  # the order of examples: shuffled, like lengths together

SYSTEM = "Ты знаток своего дела. Отвечай точно, по существу и по-русски."  # said before every question
RANK, ALPHA, DROPOUT = 8, 32, 0.1
LEARNING_RATE, EPOCHS, BATCH, MAX_LENGTH, SEED = 2e-4, 3, 4, 512, 42
WARMUP, CLIP = 0.05, 1.0
IGNORE = -100  # the label of a token that is read but not learned


def main(model_dir, data, output, dropout=DROPOUT, learning_rate=LEARNING_RATE):
    # 1. A model that predicts the next token, and the tokenizer that cuts text into its tokens.
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)

    # 2. Pairs of question and answer, as token ids. Only the answer is learned.
    pairs = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").splitlines() if line.strip()]
    examples = [encode(tokenizer, pair["prompt"], pair["response"]) for pair in pairs]

    # 3. LoRA. The base stays frozen; beside every projection W of it stands a narrow detour B·A that starts at zero:
    #        y = W x + (alpha / r) · B (A x)
    #    A has r rows and B has r columns, so there is less than one number to learn for every hundred of the base's.
    torch.manual_seed(SEED)  # A starts random; B starts at zero, so training starts exactly at the base model
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=projections, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    learned = [p for p in model.parameters() if p.requires_grad]
    print(f"{sum(p.numel() for p in learned):,} numbers to learn of {sum(p.numel() for p in model.parameters()):,}")

    # 4. The loop: predict, measure, find the direction that would have been better, take a small step that way.
    batches = LengthGroupedBatches([len(ids) for ids, _start in examples], BATCH, SEED)
    optimizer = torch.optim.AdamW(learned, lr=learning_rate, weight_decay=0.0)
    steps, losses = EPOCHS * len(batches), []
    torch.manual_seed(SEED)  # dropout
    for epoch in range(EPOCHS):
        batches.set_epoch(epoch)
        for batch in batches:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * schedule(len(losses), steps)
            ids_BT, mask_BT, labels_BT = pad([examples[i] for i in batch])
            loss = answer_loss(model(input_ids=ids_BT, attention_mask=mask_BT).logits, labels_BT)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, CLIP)  # one odd batch must not throw the adapter far away
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            print(f"step {len(losses)}/{steps}: loss {losses[-1]:.4f}")

    # 5. The adapter, some megabytes. PEFT, vLLM and «znatok chat --model_dir» load it on top of the same base.
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    print(f"the adapter is in {output}")
    return losses


def encode(tokenizer, question, answer):
    """Return the token ids of a dialogue in ChatML, and where in them the answer starts.

    ``<|im_start|>`` and ``<|im_end|>`` are single tokens that mark who speaks. They are put in by number: text is
    tokenised with control tokens switched off, so that a question can't contain one.
    """
    vocabulary = tokenizer.get_vocab()
    start, end = vocabulary["<|im_start|>"], vocabulary["<|im_end|>"]

    def text(words):
        return tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    prompt = []
    for role, words in (("system", SYSTEM), ("user", question)):
        prompt += [start, *text(f"{role}\n{words.strip()}"), end, *text("\n")]
    prompt += [start, *text("assistant\n")]
    ids = [*prompt, *text(answer.strip()), end]  # the end is learned too: a model must know when to stop
    if len(ids) > MAX_LENGTH:
        raise SystemExit(f"{len(ids)} tokens where {MAX_LENGTH} fit; shorten: {question}")
    return ids, len(prompt)


def pad(examples):
    """Return ids, attention mask and labels of a batch: B examples, T tokens of the longest one."""
    shape = len(examples), max(len(ids) for ids, _start in examples)
    ids_BT, mask_BT, labels_BT = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.full(shape, IGNORE)
    for b, (ids, start) in enumerate(examples):
        ids_BT[b, : len(ids)] = torch.tensor(ids)
        mask_BT[b, : len(ids)] = 1
        labels_BT[b, start : len(ids)] = torch.tensor(ids[start:])
    return ids_BT, mask_BT, labels_BT


def answer_loss(logits_BTV, labels_BT):
    """Return how surprised the model is by a token of the answers, on average, in nats.

    Position t predicts token t + 1. The sum over all answer tokens of the batch is divided by their number: a mean of
    each answer's mean would make a token of a short answer count more than one of a long answer.
    """
    predicted_NV = logits_BTV[:, :-1].flatten(0, 1)
    wanted_N = labels_BT[:, 1:].flatten()
    total = F.cross_entropy(predicted_NV, wanted_N, ignore_index=IGNORE, reduction="sum")
    return total / (wanted_N != IGNORE).sum()


def schedule(step, steps):
    """Return the share of the learning rate at a step: up from 0 while Adam gets its bearings, then down to 0."""
    warmup = math.ceil(WARMUP * steps)
    return step / warmup if step < warmup else (steps - step) / (steps - warmup)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("usage: minimal_sft.py MODEL_DIR DATA.jsonl OUTPUT_DIR")
    main(*sys.argv[1:])
