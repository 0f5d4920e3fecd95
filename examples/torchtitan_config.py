"""A config registry for torchtitan (0.3): its debug Llama on a curriculum, with its own trainer and checkpoints.

``torchrun --nproc_per_node 8 -m torchtitan.train --module examples.torchtitan_config --config llama3_mixed_debugmodel
--hf_assets_path ASSETS --dataloader.curriculum curriculum.yaml --dataloader.journal walk.jsonl``. ``training.seq_len``
is the curriculum's ``sequence_length``, and ``training.local_batch_size`` its ``batch_rows`` divided by the ranks.
"""

from __future__ import annotations

from dataclasses import fields

from torchtitan.models.llama3.config_registry import llama3_debugmodel

from mixer.adapters.titan_trainer import MixtureDataLoader, MixtureTrainer


def llama3_mixed_debugmodel() -> MixtureTrainer.Config:
    """Return torchtitan's settings of its debug model, with our data loader and a trainer that reports losses."""
    theirs = llama3_debugmodel()
    config = MixtureTrainer.Config(**{field.name: getattr(theirs, field.name) for field in fields(theirs)})
    config.dataloader = MixtureDataLoader.Config(curriculum="curriculum.yaml")
    config.training.disable_cuda_graphs = True  # a graph would repeat the step without computing what is reported
    config.validator.enable = False
    return config
