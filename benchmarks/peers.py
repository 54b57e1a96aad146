"""The peers' own trainers behind one interface: `step(x)` on normalised rows, `sae()` as an encoder and a decoder."""

import warnings

import torch

warnings.filterwarnings("ignore")


class DictionaryLearning:
    """dictionary_learning's JumpReluTrainer or BatchTopKTrainer."""

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
        from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
        from dictionary_learning.trainers.jumprelu import JumpReluTrainer

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
            self.trainer = JumpReluTrainer(
                target_l0=l0, sparsity_warmup_steps=max(1, steps // 10), **shared
            )
        # its threshold is an average over thousands of steps by default; a short run needs a
        # shorter one, or L0 at inference is off
        else:
            self.trainer = BatchTopKTrainer(
                k=l0,
                threshold_start_step=steps // 2,
                threshold_beta=0.9 if steps < 5000 else 0.999,
                **shared,
            )
            self.trainer.dead_feature_threshold = max(20_000, steps * 20)
        self.count = 0

    def step(self, x: torch.Tensor) -> None:
        self.trainer.update(self.count, x)
        self.count += 1

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.trainer.ae.encode(x)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.trainer.ae.decode(latents)

    @property
    def decoder(self) -> torch.Tensor:
        """`[d_hidden, d_model]`"""
        ae = self.trainer.ae
        return (ae.W_dec if hasattr(ae, "W_dec") else ae.decoder.weight.T).detach()


class SAELens:
    """SAELens' trainer on its JumpReLU, steered to a target L0 by its quadratic penalty."""

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
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(seed)
        self.sae = JumpReLUTrainingSAE(
            JumpReLUTrainingSAEConfig(
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
        )
        self.trainer = SAETrainer(
            SAETrainerConfig(
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
            ),
            self.sae,
            iter(()),
        )

    def step(self, x: torch.Tensor) -> None:
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        acts, _ = self.sae.encode_with_hidden_pre(x)
        return acts

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.sae.decode(latents)

    @property
    def decoder(self) -> torch.Tensor:
        return self.sae.W_dec.detach()
