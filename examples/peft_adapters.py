"""LoRA adapters of one transformer, trained at several sites; some have adapters that others do not.

    python peft_adapters.py model adapters.safetensors               # the adapters that round 1 starts from
    python peft_adapters.py train NODE CLIENT c_attn                 # a site with adapters of the attention alone
    python peft_adapters.py train NODE CLIENT c_attn,c_fc            # one with those of the feed-forward layers, too

The job's file has `trainable = ["*lora_*"]` in its [job] section.  The base model stays where it is: here each site
makes it from the same random numbers; in practice it comes from where your sites have it, by `from_pretrained`.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from lifl import Client

RANK = 4
ALL = ["c_attn", "c_fc"]
WORDS, LENGTH = 64, 16


def model_with(layers: list[str], rank: int = RANK) -> Any:
    """Return a transformer whose base is the same at every site, with LoRA adapters at some kinds of its layers."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=WORDS, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2)
    base = GPT2LMHeadModel(config)
    return get_peft_model(base, LoraConfig(r=rank, target_modules=layers, fan_in_fan_out=True))


def adapters_of(model: Any) -> dict[str, torch.Tensor]:
    """Return the adapters' tensors, by the names that they have in the model's state_dict."""
    return {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}


def train(model: Any, seed: int, steps: int = 5) -> float:
    """Take a few steps on a site's own text, which is random here; return the last loss."""
    texts = torch.randint(WORDS, (8, LENGTH), generator=torch.Generator().manual_seed(seed))
    optimiser = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model(input_ids=texts, labels=texts).loss
        loss.backward()
        optimiser.step()
    return float(loss.detach())


def take_part(node: str, name: str, model: Any, job: str = "adapters") -> None:
    """Train in all rounds of the job."""
    with Client(node, job=job, client=name) as client:
        for round in client.rounds():
            model.load_state_dict(round.state_dict(), strict=False)  # adapters alone; this site may not have them all
            loss = train(model, seed=zlib.crc32(f"{name}/{round.number}".encode()))
            round.submit(model, weight=8, metrics={"loss": loss})  # what is no adapter is left out


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["model", path]:
            save_file({name: each.contiguous() for name, each in adapters_of(model_with(ALL)).items()}, path)
        case ["train", node, name, layers]:
            take_part(node, name, model_with(layers.split(",")))
        case _:
            raise SystemExit(__doc__)
