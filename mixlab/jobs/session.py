"""Everything that one sitting of training holds in memory, built from a settled config."""

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from mixlab.core.cache import cache_dir
from mixlab.core.errors import ConfigError
from mixlab.core.provenance import memory_bytes, n_usable_cores
from mixlab.core.run_dir import RunDir
from mixlab.core.units import count, size
from mixlab.data.context import context_figures
from mixlab.data.loader import Loader
from mixlab.data.prepare import PreparedData, prepare
from mixlab.evals.language_modelling import evaluate
from mixlab.jobs.compiling import compile_blocks
from mixlab.jobs.config import RunConfig
from mixlab.jobs.court.preferences import loss_backend, prefer_kernels
from mixlab.jobs.device import Hardware
from mixlab.jobs.planning import plan_training
from mixlab.jobs.screen import Screen
from mixlab.nn.budget import Budget, model_budget
from mixlab.nn.language_model import LanguageModel, build_model
from mixlab.parallel import ALONE
from mixlab.training.config import TrainConfig
from mixlab.training.ema import Ema, horizon_warning
from mixlab.training.language_modelling import LanguageModelling
from mixlab.training.loop import Plan, Progress
from mixlab.training.objective import Objective, update
from mixlab.training.optimizers.base import Optimizer
from mixlab.training.sharding import drop_gathered, load_whole, shard, sharded_modules

Row = dict[str, Any]


def prepare_data(config: RunConfig, screen: Screen) -> PreparedData:
    """The run's text as shards, from the cache or built now, and checked against the model.

    Raises:
        DataError: too little text, too much overlap, no tokenizer, ...
        ConfigError: the tokenizer has more entries than the model has rows.
    """
    data = prepare(config.data, cache_dir(), screen)
    if data.tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            "model.vocab_size",
            config.model.vocab_size,
            f"at least the tokenizer's {data.tokenizer.vocab_size} entries",
            f"Set model.vocab_size={data.tokenizer.vocab_size}.",
        )
    data.require_sequences("train", config.train.batch_size)
    if config.data.chat is not None:
        return data
    for i, prompt in enumerate(config.sample.prompts):
        n_tokens = len(data.tokenizer.encode(prompt))
        if n_tokens >= config.model.max_seq_len:
            raise ConfigError(
                f"sample.prompts.{i}", prompt,
                f"fewer tokens than model.max_seq_len = {config.model.max_seq_len}, but it has "
                f"{n_tokens}",
            )  # fmt: skip
    return data


def require_memory(config: RunConfig, hardware: Hardware) -> None:
    """Refuse a model whose weights, gradients and optimizer state alone exceed the memory.

    Raises:
        ConfigError: names the sizes. Activations are left out: they depend on too much to refuse
            a run for their estimate.
    """
    n_params = model_budget(config.model, config.data.seq_len).n_params
    require_memory_for(n_params, config.train, hardware, "model.d_model, model.n_layers or "
                       "model.vocab_size")  # fmt: skip


def require_memory_for(n_params: int, train: TrainConfig, hardware: Hardware, knobs: str) -> None:
    """See `require_memory`; `knobs` names what to lower."""
    if hardware.device.type == "cuda":
        available = torch.cuda.get_device_properties(hardware.device).total_memory
    else:
        available = memory_bytes()
    needed = n_params * (8 + optimizer_bytes_per_param(train))
    if train.parallel == "fsdp":
        needed //= hardware.world.size
    if available is not None and needed > available:
        raise ConfigError(
            "model", f"{count(n_params)} parameters",
            f"a model that fits into {size(available)} of memory; training this one takes "
            f"{size(needed)} before any activation",
            f"Lower {knobs}.",
        )  # fmt: skip


@dataclass
class Session:
    """Model, optimizer and data of one sitting."""

    config: RunConfig  # settled: device, precision and length are decided
    data: PreparedData
    hardware: Hardware
    budget: Budget
    model: LanguageModel
    optimizer: Optimizer
    ema: Ema | None
    loader: Loader
    objective: Objective
    eval_loader: Loader
    n_eval_windows: int
    context: Row  # what to read a loss beside: ln V, unigram entropy
    notes: list[str]  # what a reader of the results must know

    def evaluate(self, split: str = "validation") -> Row:
        """A row for evals.jsonl; with an average of the parameters, that one is measured."""
        loader, n_windows = self.eval_loader, self.n_eval_windows
        if split != "validation":
            loader = Loader(self.data.split(split), self.config.data.seq_len, self.config.seed)
            n_windows = min(wanted_windows(self.config), loader.n_windows)
        world = self.hardware.world
        batches = loader.window_batches(
            n_windows, self.config.eval.batch_size, reader=world.rank, n_readers=world.size
        )
        averaged = nullcontext() if self.ema is None else self.ema.applied()
        # Blocks run uncompiled: a form of them for evaluation takes longer to make than it saves.
        with averaged, torch.compiler.set_stance("force_eager"):
            metrics = evaluate(
                self.model,
                batches,
                self.data.split(split).token_bytes,
                compute_dtype=self.hardware.compute_dtype,
                world=world,
            )
            drop_gathered(self.model)
        weights = "raw" if self.ema is None else "ema"
        return {"split": split, **metrics._asdict(), "weights": weights}

    def alone(self) -> "Session":
        """The session with the whole model, for what one rank does after training.

        Every rank must call it.
        """
        alone = self.hardware._replace(world=ALONE)
        if not sharded_modules(self.model):
            return replace(self, hardware=alone)
        model = build_model(self.config.model, self.config.seed).to(alone.device)
        load_whole(model.state_dict(), self.model.state_dict())
        ema = None
        if self.ema is not None and self.config.train.ema is not None:
            ema = Ema(model.named_parameters(), rate=self.config.train.ema.rate)
            load_whole(ema.state_tensors(), self.ema.state_tensors())
        return replace(self, hardware=alone, model=model, ema=ema)

    def save_assets(self, run: RunDir) -> None:
        """What a reader of the run needs besides its weights."""
        self.data.tokenizer.save(run.path / "tokenizer.json")

    def n_computed(self, progress: Progress) -> int:
        """Tokens that training has sent through the model, targets or not."""
        return progress.position * self.config.data.seq_len

    def plan(self, n_steps: int) -> Plan:
        """What the loop needs to know."""
        return plan_training(
            self.config,
            self.hardware,
            n_steps,
            flops_per_token=self.budget.train_flops_per_token,
            tokens_per_example=self.config.data.seq_len,
        )


def open_session(config: RunConfig, data: PreparedData, hardware: Hardware) -> Session:
    """Build model, optimizer and loaders of a settled config, as at step 0."""
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    seq_len = config.data.seq_len
    model = ready_model(config, hardware)
    loader = Loader(data.split("train"), seq_len, config.seed)
    eval_loader = Loader(data.split("validation"), seq_len, config.seed)
    wanted = wanted_windows(config)
    n_eval_windows = min(wanted, eval_loader.n_windows)
    notes = []
    if n_eval_windows < wanted:
        notes.append(
            f"Validation has only {count(n_eval_windows * seq_len)} tokens, less than "
            f"eval.n_tokens = {count(config.eval.n_tokens)}: all of them are used."
        )
    ema = None
    if config.train.ema is not None:
        rate = config.train.ema.rate
        ema = Ema(model.named_parameters(), rate=rate)
        warning = horizon_warning(rate, int(config.train.length.amount))
        notes += [warning] if warning else []
    n_steps, warmup = int(config.train.length.amount), config.train.schedule.warmup_steps
    if warmup > n_steps:
        notes.append(
            f"train.schedule.warmup_steps = {warmup} is longer than the run of {n_steps} steps: "
            "the learning rate never reaches its peak."
        )
    n_cores = n_usable_cores() or 1
    if (config.train.threads or 1) > n_cores and hardware.device.type == "cpu":
        notes.append(
            f"train.threads = {config.train.threads}: only {n_cores} cores may be used here, so "
            "threads will wait for each other."
        )
    if config.sample.max_new_tokens >= config.model.max_seq_len:
        notes.append(
            f"sample.max_new_tokens = {config.sample.max_new_tokens} does not fit "
            f"model.max_seq_len = {config.model.max_seq_len}: samples are shorter."
        )
    objective = language_modelling(config, model, loader, hardware)
    notes += idle_settings(config.train, hardware, objective.launching)
    context = context_figures(data.split("validation"), seq_len, n_eval_windows)
    return Session(
        config=config,
        data=data,
        hardware=hardware,
        budget=model_budget(config.model, seq_len),
        model=model,
        optimizer=config.train.optimizer.build(model.named_parameters()),
        ema=ema,
        loader=loader,
        objective=objective,
        eval_loader=eval_loader,
        n_eval_windows=n_eval_windows,
        context=context,
        notes=notes,
    )


def idle_settings(train: TrainConfig, hardware: Hardware, launching: str | None) -> list[str]:
    """What was asked for and does nothing in this run; `launching` is the objective's."""
    notes = []
    if train.cuda_graphs is True and launching is None:
        notes.append(
            "train.cuda_graphs = true does nothing here: updates are replayed on a GPU, those of "
            "models without loops and of refiners."
        )
    if train.parallel == "fsdp" and hardware.world.size == 1:
        notes.append("train.parallel = fsdp does nothing here: torchrun started no other process.")
    return notes


def language_modelling(
    config: RunConfig, model: LanguageModel, loader: Loader, hardware: Hardware
) -> LanguageModelling:
    """What a language model is trained to do, as the config says and the hardware allows."""
    return LanguageModelling(
        model,
        loader,
        batch_size=config.train.batch_size,
        micro_batch_size=config.train.micro_batch_size,
        compute_dtype=hardware.compute_dtype,
        world=hardware.world,
        loss_backend=loss_backend(config, hardware.kernels),
        cuda_graphs=config.train.cuda_graphs,
    )


def ready_model(config: RunConfig, hardware: Hardware) -> LanguageModel:
    """The model as at step 0 on its device, its blocks compiled and its weights shared out among
    the ranks where that is settled."""
    model = build_model(config.model, config.seed).to(hardware.device)
    model.recomputes = config.train.activation_checkpointing
    prefer_kernels(model, hardware.kernels)
    if hardware.compile:
        compile_blocks(model)
    if config.train.parallel == "fsdp" and hardware.world.size > 1:
        shard(model, hardware.world, hardware.compute_dtype)
    return model


def wanted_windows(config: RunConfig) -> int:
    """Sequences that hold `eval.n_tokens` targets."""
    return -(-config.eval.n_tokens // config.data.seq_len)


def seconds_per_step(config: RunConfig, data: PreparedData, hardware: Hardware) -> float:
    """Measured time of one update with its share of the evaluations, on a model that is dropped.

    Two updates warm up, the median of the next five counts; evaluations are timed on a few
    batches and scaled.
    """
    session = open_session(config, data, hardware)
    per_update = update_seconds(session.objective, session.optimizer, config.train)
    session.objective.close()
    n_timed = min(2 * config.eval.batch_size, session.n_eval_windows)
    if hardware.device.type == "cuda":  # kernels are loaded and tuned at their first call
        _evaluation_seconds(session, n_timed)
    evaluation = _evaluation_seconds(session, n_timed) * session.n_eval_windows / n_timed
    return per_update + evaluation / config.eval.every


def _evaluation_seconds(session: Session, n_windows: int) -> float:
    start = time.perf_counter()
    with torch.compiler.set_stance("force_eager"):  # as in evaluations of a run
        evaluate(
            session.model,
            session.eval_loader.window_batches(n_windows, session.config.eval.batch_size),
            session.data.split("validation").token_bytes,
            compute_dtype=session.hardware.compute_dtype,
        )
    return time.perf_counter() - start


def update_seconds(objective: Objective, optimizer: Optimizer, train: TrainConfig) -> float:
    """The median time of five updates after two that warm up; nothing is learnt."""
    times = []
    device = next(objective.model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for i in range(7):
            start = time.perf_counter()
            metrics = update(
                objective,
                optimizer,
                i * train.batch_size,
                lr_factor=0.0,
                max_grad_norm=train.max_grad_norm,
            )
            float(metrics.loss_nats)  # waits for the device
            if i >= 2:
                times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def optimizer_bytes_per_param(train: TrainConfig) -> int:
    """Bytes of optimizer state per parameter, an upper bound: AdamW keeps two float32."""
    average = 4 if train.ema is not None else 0
    return 8 + average
