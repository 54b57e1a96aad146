"""The trainers of dictionary_learning and SAELens behind one interface.

A peer takes steps with its own code: `step(x)` on normalised rows, then `encode`, `decode` and
`decoder`. Settings are those that each library recommends, scaled to the length of the run. Not a
benchmark by itself; `trainer_speed`, `quality` and `ground_truth` import it.
"""

import warnings
from typing import Any, Protocol

import torch
from torch import Tensor

warnings.filterwarnings("ignore")


class Peer(Protocol):
    """What a benchmark asks of a peer's trainer."""

    def step(self, x: Tensor) -> None:
        """One training step on a batch of rows, `[batch, d_model]`."""

    def encode(self, x: Tensor) -> Tensor:
        """Latents `[rows, d_hidden]` of rows `[rows, d_model]`."""

    def decode(self, latents: Tensor) -> Tensor:
        """Rows `[rows, d_model]` from latents `[rows, d_hidden]`."""

    @property
    def decoder(self) -> Tensor:
        """Decoder directions, `[d_hidden, d_model]`."""


class DictionaryLearning:
    """dictionary_learning's JumpReluTrainer (`kind` "jumprelu") or BatchTopKTrainer ("batchtopk").

    `l0` is the target, in active latents a row; `steps` is the length of the whole run, on which
    warm-up and decay depend; `lr` is the learning rate after warm-up.
    """

    def __init__(
        self,
        kind: str,
        d_model: int,
        d_hidden: int,
        l0: int,
        steps: int,
        lr: float,
        seed: int = 0,
        device: str = "cpu",
    ):
        torch.manual_seed(seed)
        shared = dict(
            steps=steps,
            activation_dim=d_model,
            dict_size=d_hidden,
            layer=0,
            lm_name="pocket",
            lr=lr,
            seed=seed,
            device=device,
            warmup_steps=max(1, steps // 20),
            decay_start=int(0.7 * steps),
        )
        if kind == "jumprelu":
            self.trainer = self._jumprelu(l0, steps, shared)
        else:
            self.trainer = self._batchtopk(l0, steps, shared)
        self.count = 0  # steps taken

    @staticmethod
    def _jumprelu(l0: int, steps: int, shared: dict[str, Any]) -> Any:
        """A JumpReluTrainer whose sparsity penalty warms up over a tenth of the run."""
        from dictionary_learning.trainers.jumprelu import JumpReluTrainer

        warmup = max(1, steps // 10)
        return JumpReluTrainer(target_l0=l0, sparsity_warmup_steps=warmup, **shared)

    @staticmethod
    def _batchtopk(l0: int, steps: int, shared: dict[str, Any]) -> Any:
        """A BatchTopKTrainer.

        By default its threshold is an average over thousands of steps. Short runs average over
        fewer, since L0 at inference would be off otherwise.
        """
        from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

        trainer = BatchTopKTrainer(
            k=l0,
            threshold_start_step=steps // 2,
            threshold_beta=0.9 if steps < 5000 else 0.999,
            **shared,
        )
        trainer.dead_feature_threshold = max(20_000, steps * 20)
        return trainer

    def step(self, x: Tensor) -> None:
        """One training step on a batch of rows, `[batch, d_model]`."""
        self.trainer.update(self.count, x)
        self.count += 1

    def encode(self, x: Tensor) -> Tensor:
        """Latents `[rows, d_hidden]` of rows `[rows, d_model]`."""
        return self.trainer.ae.encode(x)

    def decode(self, latents: Tensor) -> Tensor:
        """Rows `[rows, d_model]` from latents `[rows, d_hidden]`."""
        return self.trainer.ae.decode(latents)

    @property
    def decoder(self) -> Tensor:
        """Decoder directions, `[d_hidden, d_model]`."""
        sae = self.trainer.ae
        if hasattr(sae, "W_dec"):
            return sae.W_dec.detach()  # JumpReLU
        return sae.decoder.weight.T.detach()  # BatchTopK


class SAELens:
    """SAELens' trainer on its JumpReLU SAE, whose quadratic penalty steers L0 to a target.

    `l0` is the target, in active latents a row; `steps` is the length of the whole run and `batch`
    its rows a step; `lr` is the learning rate after warm-up; `coefficient` weighs the penalty.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        l0: int,
        steps: int,
        lr: float,
        batch: int,
        coefficient: float = 1.0,
        seed: int = 0,
        device: str = "cpu",
        autocast: bool = False,
    ):
        from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

        torch.manual_seed(seed)
        config = JumpReLUTrainingSAEConfig(
            d_in=d_model,
            d_sae=d_hidden,
            device=device,
            dtype="float32",
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=float(l0),
            l0_coefficient=coefficient,
            jumprelu_init_threshold=0.1,
            jumprelu_bandwidth=0.25,
            pre_act_loss_coefficient=3e-6,
            l0_warm_up_steps=steps // 10,
            apply_b_dec_to_input=True,
            decoder_init_norm=0.5,
        )
        self.sae = JumpReLUTrainingSAE(config)
        self.trainer = self._make_trainer(steps, lr, batch, device, autocast)

    def _make_trainer(self, steps: int, lr: float, batch: int, device: str, autocast: bool) -> Any:
        """An SAETrainer that never asks for data: `step` hands it the batches."""
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        config = SAETrainerConfig(
            total_training_samples=steps * batch,
            train_batch_size_samples=batch,
            lr=lr,
            lr_end=lr / 10,
            lr_warm_up_steps=max(1, steps // 20),
            lr_decay_steps=int(0.3 * steps),
            adam_beta1=0.9,
            adam_beta2=0.999,
            device=device,
            autocast=autocast,
            dead_feature_window=max(10, 20_000 // batch),
            logger=LoggingConfig(log_to_wandb=False),
        )
        return SAETrainer(config, self.sae, iter(()))

    def step(self, x: Tensor) -> None:
        """One training step on a batch of rows, `[batch, d_model]`."""
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def encode(self, x: Tensor) -> Tensor:
        """Latents `[rows, d_hidden]` of rows `[rows, d_model]`."""
        latents, _ = self.sae.encode_with_hidden_pre(x)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Rows `[rows, d_model]` from latents `[rows, d_hidden]`."""
        return self.sae.decode(latents)

    @property
    def decoder(self) -> Tensor:
        """Decoder directions, `[d_hidden, d_model]`."""
        return self.sae.W_dec.detach()


# By name

KINDS = {
    "dictionary_learning JumpReLU": "jumprelu",
    "dictionary_learning BatchTopK": "batchtopk",
}


def make_peer(name: str, batch: int, **settings: Any) -> Peer:
    """The peer that tables call `name`.

    `batch` is the number of rows a step; `settings` are those that all peers take.
    """
    if name == "SAELens JumpReLU":
        return SAELens(batch=batch, **settings)
    return DictionaryLearning(KINDS[name], **settings)


def input_scale(name: str, d_model: int) -> float:
    """What rows with a mean square of 1 are divided by before a peer gets them.

    The bandwidth of dictionary_learning's JumpReLU, 0.001, is meant for rows of length one, as its
    own loader gives them.
    """
    return d_model**0.5 if name == "dictionary_learning JumpReLU" else 1.0
