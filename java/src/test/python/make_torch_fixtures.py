"""Makes files of torch.save for the reader's tests; the values of every tensor follow from its shape.

usage: python make_torch_fixtures.py OUTPUT_DIR              the committed fixtures
       python make_torch_fixtures.py OUTPUT_DIR --random SEED  pytorch_model.bin and model.safetensors of equal random tensors

Needs torch; --random needs safetensors too.
"""

import argparse
import os
import pathlib
import random

import torch


def counted(*shape, dtype=torch.float32):
    """0, 0.5, 1, 1.5, ..."""
    count = torch.Size(shape).numel()
    return (torch.arange(count) * 0.5).reshape(shape).to(dtype)


class Tied(torch.nn.Module):
    """A head that shares its embedding's storage, as language models save it; nested, so that the names have dots."""

    def __init__(self):
        super().__init__()
        self.decoder = torch.nn.Module()
        self.decoder.embed = torch.nn.Embedding(5, 4)
        self.decoder.embed.weight.data = counted(5, 4, dtype=torch.float16)
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.decoder.embed.weight


class Callable:
    def __reduce__(self):
        return os.system, ("true",)


def fixtures(folder):
    torch.save(Tied().state_dict(), folder / "state-dict.bin")
    everything = {
        "bf16": counted(3, 2, dtype=torch.bfloat16),
        "f64": counted(2, dtype=torch.float64),
        "i64": torch.arange(3),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(7.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(counted(2)),
        "rows": counted(6, 2)[2:4],
        "thin": counted(4, 1).t(),
    }
    torch.save(everything, folder / "plain-dict.bin")
    torch.save(everything, folder / "protocol-4.bin", pickle_protocol=4)
    torch.save({"a": counted(2, 3).t()}, folder / "transposed.bin")
    torch.save({"a": torch._neg_view(counted(2))}, folder / "negated.bin")
    torch.save({"a": counted(2), "hook": Callable()}, folder / "callable.bin")
    torch.save({"model": {"a": counted(2)}, "epoch": 3}, folder / "training-state.bin")
    torch.save({"a": counted(2)}, folder / "legacy.bin", _use_new_zipfile_serialization=False)


def random_pair(folder, seed):
    from safetensors.torch import save_file

    random.seed(seed)
    torch.manual_seed(seed)
    tensors = {}
    for i in range(random.randint(1, 40)):
        shape = [random.randint(0 if i % 7 == 6 else 1, 9) for _ in range(random.randint(0, 4))]
        dtype = random.choice([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32,
                               torch.int16, torch.int8, torch.uint8, torch.bool])
        tensors[f"layer.{i}.weight"] = (torch.randn(shape) * 50).to(dtype)
    torch.save(tensors, folder / "pytorch_model.bin", pickle_protocol=random.choice([2, 3, 4, 5]))
    save_file(tensors, folder / "model.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--random", type=int, metavar="SEED")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.random is None:
        fixtures(arguments.output)
    else:
        random_pair(arguments.output, arguments.random)
