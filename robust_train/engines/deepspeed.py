"""The DeepSpeed engine: ZeRO 0 to 3 on CPUs (gloo) and GPUs (nccl). The only page that imports deepspeed."""

from __future__ import annotations

import logging
import os
import warnings
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from robust_train.engines.engine import Engine
from robust_train.engines.optim import ELEMENTWISE, filled
from robust_train.engines.partitions import Partitions
from robust_train.engines.parts import Parts
from robust_train.engines.place import join, place_of_environment
from robust_train.nouns import Place
from robust_train.read.errors import ConfigError
from robust_train.run import Run

COUNTERS = ("step", "mu_product")
"""Optimiser state that belongs to all weights of a group alike, not to each weight."""


class DeepSpeedEngine(Engine):
    """DeepSpeed does the reducing and sharding; cutting, clipping, guarding and stepping in time are Engine's.

    Weights are float32 (bf16 is autocast inside the network). Forwards go through the plain network, at every stage
    that keeps whole weights: DeepSpeed reduces by hooks on weights and in its own backward, and what it hangs on the
    output of its own forward takes any `autograd.grad` (an attack's, a penalty's) for the update's backward.
    Its collectives an update: one all-reduce of gradients (ZeRO 2: one a micro-batch), under ZeRO 1 and 2 an all-gather
    of weights for each weight-decay group, the flat all-reduce.
    """

    def __init__(self, run: Run, place: Place | None = None) -> None:
        place = place or place_of_environment(run.cluster.gpu)
        self.stage = run.engine.zero
        refuse_unsharded(run)
        deepspeed = _imported(place)
        join(place)
        deepspeed.init_distributed(verbose=False)  # takes over the process group that is there
        super().__init__(run, place)
        self.copies = 1 if self.stage else place.world
        self._deepspeed, *_ = deepspeed.initialize(
            model=self.module.model,
            optimizer=self.optimiser,
            config=settings(run, place, self.micro_batch, sum(p.numel() for p in self.module.parameters())),
            dist_init_required=False,
        )
        self._zero = self._deepspeed.optimizer  # under ZeRO 1 and up the optimiser of flat shards, else ours
        if self.stage == 3:
            copy = run.build(self.device).to(self.dtype)
            self.holding = Partitions(self.module, place, self._zero, copy, run.engine.copy)
            if run.average is not None:
                self.averaged = self.holding.average()
        # its norm is a collective and a host read a group; ours rides in the flat all-reduce
        if self.stage == 3:
            self._zero._get_norm_groups = lambda: [torch.zeros(())]
        elif self._offloads:
            self._zero.scaled_global_norm = lambda: torch.zeros(())

    def _parts(self) -> Parts:
        """Made while DeepSpeed's hooks are off the model: a copy of it would carry them along."""
        model = self.module.model
        hooks = model._forward_pre_hooks, model._forward_hooks
        if self.stage < 3:  # there the objective is shown a copy
            model._forward_pre_hooks, model._forward_hooks = OrderedDict(), OrderedDict()
        try:
            return super()._parts()
        finally:
            model._forward_pre_hooks, model._forward_hooks = hooks

    def _backward(self, loss: Tensor, last: bool) -> None:
        if self.stage == 3:
            self._zero.clear_backward_seen_flag()  # its own forward would say that a micro-batch begins
        self._deepspeed.backward(loss)  # divides by the number of micro-batches, and reduces after the last
        if not last:
            self._deepspeed.step()  # counts the micro-batch; steps nothing before the last one

    def _reduce_gradients(self) -> None:
        """Done by the last micro-batch's backward."""

    def _gradients(self) -> list[Tensor]:
        if not self.stage:
            return filled(self.parameters.values())
        if self._offloads:
            return [shard.grad for shard in self._shards()]
        return [gradient for group in self._zero.averaged_gradients.values() for gradient in group]

    def _update(self) -> None:
        self._deepspeed.step()
        self._forget()

    def _discard(self) -> None:
        # what DeepSpeed's own step does after it, without its update
        self._deepspeed.zero_grad()
        if self.stage:
            self._zero.zero_grad(set_to_none=True)
            for group in self._zero.averaged_gradients:
                self._zero.averaged_gradients[group] = None
        if self.stage in (1, 2):
            for group in self._zero.all_grad_tensors:
                self._zero.all_grad_tensors[group] = None
            self._zero.micro_step_id = -1
        if self._offloads:
            self._zero.reset_cpu_buffers()
        self._deepspeed.micro_steps += 1
        self._forget()

    def _forget(self) -> None:
        """Zeros in buffers of gradients that outlive an update: else a weight that no loss sees keeps its last one."""
        if self.stage == 3:
            self._zero.grad_partitions_flat_buffer.zero_()
        if self._offloads:
            for shard in self._shards():
                shard.grad.zero_()

    @property
    def _offloads(self) -> bool:
        """Whether the optimiser's state, and with it the gradients that it is given, lie in the host's memory."""
        return "optimiser" in self.run.engine.offload

    def _shards(self) -> list[Any]:
        """This rank's flat float32 shards of the weights, a group each: what the optimiser steps."""
        if self.stage == 3:
            return self._zero.fp32_partitioned_groups_flat
        return self._zero.single_partition_of_fp32_groups

    # -- checkpoints: the state of a parameter lies in pieces on the ranks' flat shards ------------

    def optimiser_state(self, name: str) -> dict[str, Any]:
        if not self.stage:
            return super().optimiser_state(name)
        from deepspeed.utils import safe_get_full_optimizer_state

        parameter, shard = self._linked(name)
        found = dict(self._zero.optimizer.state.get(shard, {}))
        for key, value in found.items():
            if isinstance(value, Tensor):
                counter = key in COUNTERS  # one tensor for all parameters of a group: each gets its own
                found[key] = value.clone() if counter else safe_get_full_optimizer_state(parameter, key)
        return found

    def set_optimiser_state(self, name: str, state: dict[str, Any]) -> None:
        if not self.stage:
            super().set_optimiser_state(name, state)
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        _, shard = self._linked(name)
        held = self._zero.optimizer.state[shard]
        whole = {key: value for key, value in state.items() if key not in COUNTERS and isinstance(value, Tensor)}
        for key, value in state.items():
            if key not in whole:
                held[key] = value.clone() if isinstance(value, Tensor) else value
            elif key not in held:
                held[key] = torch.zeros_like(shard)
        parameter, _ = self._linked(name)
        for key, value in whole.items():
            if self.stage == 3:  # DeepSpeed's own setter knows no piece that is filled up
                _, first, count = self._zero.grad_position[self._zero.get_param_id(parameter)]
                self.holding.cut(value.to(shard), held[key][first : first + count])
            else:
                safe_set_full_optimizer_state(parameter, value.to(shard), key)

    def _linked(self, name: str) -> tuple[Any, Tensor]:
        """A parameter that knows its piece of the optimiser's state, and this rank's flat shard of its group.

        DeepSpeed links pieces once, after the first step of the first group, when other groups have no state yet.
        """
        parameter: Any = self.parameters[name]
        groups = self._zero.fp16_groups if self.stage == 3 else self._zero.bit16_groups
        group = next(i for i, members in enumerate(groups) if any(member is parameter for member in members))
        shard = self._shards()[group]
        if self.stage < 3 and parameter._hp_mapping is not None:
            parameter._hp_mapping.set_optim_state_fragment(shard, self._zero.optimizer.state.get(shard, {}))
        return parameter, shard

    def weights_changed(self) -> None:
        if self.stage:
            self._zero.refresh_fp32_params()  # the shards that are stepped follow the network's weights

    def close(self) -> None:
        self._deepspeed.destroy()


def settings(run: Run, place: Place, micro_batch: int, weights: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a run. What it would do beside Engine (clipping, norms, logs) is switched off.

    weights: numbers in the network.
    """
    execution, on_gpu = run.engine, place.device.startswith("cuda")
    zero: dict[str, Any] = {"stage": execution.zero}
    if execution.zero in (1, 2) and "optimiser" not in execution.offload:
        zero["compute_grad_norm"] = False  # a collective a group and a host read; ours rides in the flat all-reduce
    if execution.zero == 3:
        zero["stage3_param_persistence_threshold"] = execution.persist
        zero["reduce_bucket_size"] = min(weights, max(weights // 16, 2**22), 500_000_000)  # it is allocated whole
        # shares of the network: by numbers made for the largest ones, a ViT would be whole from forward to backward
        zero["stage3_max_live_parameters"] = max(1, weights // 4)
        zero["stage3_max_reuse_distance"] = weights // 16
        zero["stage3_prefetch_bucket_size"] = min(weights // 16, 50_000_000)
    for name, key in (("optimiser", "offload_optimizer"), ("weights", "offload_param")):
        if name in execution.offload:
            zero[key] = {"device": "cpu", "pin_memory": on_gpu}
    return {
        "train_batch_size": run.batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": run.batch // place.world // micro_batch,
        "gradient_clipping": 0.0,  # 1.0 where it is not written
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # the run's own optimiser, wherever its state lies
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def refuse_unsharded(run: Run) -> None:
    """ConfigError where ZeRO would cut an optimiser whose step of a weight depends on other weights too."""
    chosen, stage = run.optimiser, run.engine.zero
    whole = [] if chosen.name in ELEMENTWISE else [f"optimiser.name={chosen.name}"]
    whole += [f"optimiser.options.{name}" for name in ("caution", "corrected_weight_decay") if chosen.options.get(name)]
    if stage and whole:
        raise ConfigError(
            f"run.{whole[0]} may look at whole tensors, and engine.zero={stage} cuts them over the ranks: it would "
            f"train wrongly. Use engine.zero=0, or one of {', '.join(ELEMENTWISE)}."
        )


def _imported(place: Place) -> Any:
    """DeepSpeed, quiet, for the device of this process."""
    on_gpu = place.device.startswith("cuda")
    os.environ["DS_ACCELERATOR"] = "cuda" if on_gpu else "cpu"
    # DeepSpeed wants it even where the process group is there
    os.environ.setdefault("LOCAL_RANK", place.device.partition(":")[2] or "0")
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise ConfigError(
            f"DeepSpeed cannot be imported ({error}). Install the extra 'cluster', or train in one process: "
            "python -m robust_train."
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # names that DeepSpeed, which takes older versions of PyTorch too, goes on using at each gather
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if not on_gpu:
        # else init_distributed compiles it, for a minute and behind a lock that a killed job leaves for ever
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
