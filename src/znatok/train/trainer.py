"""The training loop: transformers' Trainer with znatok's loss, order, validation and checkpoints, and nothing else.

The loss of an optimiser step is the sum over the answer tokens of all its batches divided by their number, so that
splitting a batch by accumulation changes nothing but rounding (transformers#24725 shows what a mean of means does).
"""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from znatok.config import TrainOptions
from znatok.errors import SystemFault, TrainingError, _, out_of_memory
from znatok.fast.memory import Holes
from znatok.tokens.collate import IGNORE, Collator, ExampleSet
from znatok.tokens.encode import Example
from znatok.train import checkpoints
from znatok.train.batches import LengthGroupedBatches
from znatok.train.callbacks import Best
from znatok.train.computation import Computation
from znatok.train.team import ALONE, Team


class AnswerTrainer(Trainer):
    """Trains an adapter on answer tokens; ``computation`` says how their loss is computed."""

    control: Any

    def __init__(
        self,
        model: nn.Module,
        computation: Computation,
        options: TrainOptions,
        examples: tuple[Sequence[Example], Sequence[Example]],
        folder: Path,
        callbacks: Sequence[TrainerCallback] = (),
        team: Team = ALONE,
    ) -> None:
        train, validation = examples
        self.computation = computation
        self.options = options
        self.team = team
        self.folder = folder
        self.validation = list(validation)
        self.write_adapter: Callable[[Path], None] = lambda _folder: None
        self._stage = folder
        self._holes = Holes()
        super().__init__(
            model=model,
            args=training_arguments(options, folder, validate=bool(validation)),
            data_collator=Collator(pad_id=0),  # any id does: padding is masked
            train_dataset=ExampleSet(train),
            eval_dataset=ExampleSet(validation) if validation else None,
            callbacks=list(callbacks),
        )
        self.model_accepts_loss_kwargs = True  # compute_loss divides by num_items_in_batch itself

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Take one forward and backward pass, part by part; a loss that is not a number ends the run.

        Returns:
            The batch's loss, divided by the answer tokens of its whole optimiser step.
        """
        model.train()
        inputs = self._prepare_inputs(inputs)
        if self.team.size > 1:  # each has dropouts of its own, and a resumed run those of the whole one
            torch.manual_seed(self._draw())
        trained = (inputs["labels"] != IGNORE).sum()
        answer_tokens = self._of_all(trained if num_items_in_batch is None else num_items_in_batch)
        loss = torch.zeros((), device=inputs["input_ids"].device)
        for part in self.computation.parts(inputs):
            share = part / answer_tokens
            self._stop_unless_finite(_("the loss"), float(share.detach()))
            self.accelerator.backward(share)
            loss += share.detach()
            self._holes.close()
        return loss if self.team.size == 1 else self._together(inputs, loss)

    def _draw(self) -> int:
        """Return a seed that only this process has in only this part of this step, whether it was resumed or not."""
        place = self.state.num_input_tokens_seen * self.team.size + self.team.rank
        return int((self.options.seed * 0x9E3779B97F4A7C15 + place) % 2**63)

    def _of_all(self, count: Any) -> Any:
        """Return a count of answer tokens, summed over the team."""
        return count if self.team.size == 1 else int(self.team.total(int(count))[0])

    def _together(self, inputs: dict[str, Any], loss: Tensor) -> Tensor:
        """Add up what the team computed: gradients before a step is taken; loss and tokens for the books."""
        if self.accelerator.sync_gradients:
            self.team.add_up(self.trained)
        own = int(inputs["attention_mask"].sum())  # the Trainer has counted these
        whole, tokens = self.team.total(float(loss), own)
        self.state.num_input_tokens_seen += int(tokens) - own
        return torch.full_like(loss, whole)

    @property
    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that are trained, in the model's order."""
        assert self.model is not None
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        self._stop_unless_finite(_("the norm of the gradient"), float(norm))
        return norm

    def _stop_unless_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                "step {step}: {what} is {value}; try a --learning_rate below {rate}",
                step=self.state.global_step + 1,
                what=what,
                value=value,
                rate=self.options.learning_rate,
            )

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Return the validation loss per answer token, in nats."""
        losses = self.computation.losses(self.team.part(self.validation))
        loss, count = self.team.total(sum(loss for loss, _ in losses), sum(count for _, count in losses))
        metrics = {"eval_loss": loss / count}
        if not math.isfinite(metrics["eval_loss"]):
            raise TrainingError(
                "step {step}: the validation loss is {value}; try a --learning_rate below {rate}",
                step=self.state.global_step,
                value=metrics["eval_loss"],
                rate=self.options.learning_rate,
            )
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of length-grouped batches."""
        assert isinstance(self.train_dataset, ExampleSet)
        lengths = [len(example.ids) for example in self.train_dataset.examples]
        order = LengthGroupedBatches(lengths, self.options.per_device_train_batch_size, self.options.seed, self.team)
        loader = DataLoader(self.train_dataset, batch_sampler=order, collate_fn=self.data_collator)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter, and only it, as PEFT does."""
        self.write_adapter(Path(output_dir or self.folder))

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._stage)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Let the Trainer write into a staging folder, then seal the result and rename it into place."""
        try:
            self._stage = checkpoints.staging(self.folder)
            super()._save_checkpoint(model, trial)
            (staged,) = self._stage.iterdir()
            if (self.folder / Best.FOLDER).is_dir():  # the best so far belongs to this moment of the run
                shutil.copytree(self.folder / Best.FOLDER, staged / Best.FOLDER)
            checkpoints.seal(staged, self.folder, self.state.global_step)
            self._stage.rmdir()
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # torch and safetensors have their own
            if out_of_memory(error):
                raise
            raise SystemFault(
                "{path}: the checkpoint of step {step} can't be written: {why}; free space, then go on with --resume",
                path=self.folder,
                step=self.state.global_step,
                why=str(error).splitlines()[0][:200],
            ) from error
        finally:
            self._stage = self.folder
        checkpoints.prune(self.folder, self.options.keep_checkpoints)


def training_arguments(options: TrainOptions, folder: Path, *, validate: bool) -> TrainingArguments:
    """Translate our options; what is not named here stays off."""
    save = ("steps", options.save_steps) if options.save_steps else ("epoch", 500)
    judge = ("steps", options.eval_steps) if options.eval_steps else ("epoch", 500)
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=options.per_device_train_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        num_train_epochs=options.num_train_epochs,
        max_steps=options.max_steps or -1,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.lr_scheduler_type,
        warmup_steps=min(options.warmup_ratio, 1 - 1e-9),  # below 1 it is a share of the real number of steps
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        seed=options.seed,
        save_strategy=save[0],
        save_steps=save[1],
        eval_strategy=judge[0] if validate else "no",
        eval_steps=judge[1],
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would put the running mean in place of a NaN
        include_num_input_tokens_seen="non_padding",
        disable_tqdm=True,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        restore_callback_states_from_checkpoint=False,
    )
