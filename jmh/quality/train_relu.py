"""Trains an OPT-shaped ReLU model for real, on the Python sources found on this machine, and writes what `jmh/run quality`
tunes it on: C and C++ headers, which are text of another kind.

    train_relu.py --output DIR --tokens 101e6 --seconds 420 --device cuda

writes into DIR: model/ (Hugging Face), pretrain.jsonl (Python the model was not trained on), tune.jsonl and held.jsonl
(headers, apart by file), as {"context": [ids], "completion": [ids]}, and train.json, which says what was done.

Training ends at --tokens, or earlier where --seconds are over, which bound everything: reading, tokenizing, compiling and
training. The learning rate follows what is nearer its end, so the training ends well wherever it ends.
"""
import argparse
import glob
import hashlib
import json
import math
import os
import random
import shutil
import sysconfig
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

BEGAN = time.time()
START = 2  # OPT's </s>, which also begins a text
OFFSET = 2  # OPT's position table begins with two rows that no position uses

SHAPES = {
    "opt-125m": dict(hidden=768, ffn=3072, layers=12, heads=12),
    "tiny": dict(hidden=128, ffn=512, layers=3, heads=2),
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", required=True)
    parser.add_argument("--shape", choices=SHAPES, default="opt-125m")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--tokens", type=float, default=101e6, help="to train on")
    parser.add_argument("--seconds", type=float, default=420, help="most, for everything")
    parser.add_argument("--batch-tokens", type=int, default=65536, help="of a step")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--tokenizer", help="folder with a tokenizer.json; without it, byte-level BPE is trained")
    parser.add_argument("--vocab-size", type=int, default=16384, help="of the tokenizer that is trained")
    parser.add_argument("--megabytes", type=float, default=170, help="most Python text")
    parser.add_argument("--read-seconds", type=float, default=40, help="for reading text of each kind, where files are slow")
    parser.add_argument("--header-megabytes", type=float, default=12, help="most header text")
    parser.add_argument("--tune-samples", type=int, default=300)
    parser.add_argument("--held-samples", type=int, default=64)
    parser.add_argument("--roots", nargs="*", help="folders with Python sources; without it, those of this Python")
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


def log(message):
    print(f"{time.time() - BEGAN:6.1f}s  {message}", flush=True)


def texts(files, limit, longest, seconds):
    """Distinct readable texts, at most `limit` characters in all, as many as there is time for."""
    seen, total, end = set(), 0, time.time() + seconds
    for path in files:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(longest)
        except (OSError, UnicodeDecodeError):
            continue
        digest = hashlib.sha1(text.encode()).digest()
        if len(text) < 500 or digest in seen:
            continue
        seen.add(digest)
        total += len(text)
        yield text
        if total > limit or time.time() > end:
            return


def python_files(roots):
    paths = sysconfig.get_paths()
    roots = roots or [paths["stdlib"], paths["purelib"], paths["platlib"], "/usr/lib/python3", "/usr/lib/python3/dist-packages"]
    files = {os.path.realpath(f) for root in roots for f in glob.glob(os.path.join(root, "**/*.py"), recursive=True)}
    return shuffled(files, 0)


def header_files():
    roots = ["/usr/include", "/usr/local/include", "/usr/local/cuda/include", "/usr/lib/gcc", sysconfig.get_paths()["include"]]
    roots += glob.glob("/usr/local/cuda*/targets/*/include")
    roots += [os.path.join(sysconfig.get_paths()["purelib"], "torch/include")]
    files = {os.path.realpath(f) for root in roots for ending in ("h", "hpp", "hh", "cuh")
             for f in glob.glob(os.path.join(root, "**/*." + ending), recursive=True)}
    return shuffled(files, 1)


def shuffled(files, seed):
    files = sorted(files)
    random.Random(seed).shuffle(files)
    return files


def tokenizer_of(options, sample):
    if options.tokenizer:
        return Tokenizer.from_file(os.path.join(options.tokenizer, "tokenizer.json"))
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(sample, trainers.BpeTrainer(
        vocab_size=options.vocab_size, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def encode(tokenizer, documents):
    """All documents one after another, each with a start token before it."""
    parts = []
    for first in range(0, len(documents), 2000):
        for encoding in tokenizer.encode_batch(documents[first : first + 2000], add_special_tokens=False):
            parts.append(np.array([START] + encoding.ids, dtype=np.int32))
    return np.concatenate(parts)


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.heads = shape["heads"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(shape["hidden"], shape["hidden"]))

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.self_attn = Attention(shape)
        self.self_attn_layer_norm = nn.LayerNorm(shape["hidden"])
        self.fc1 = nn.Linear(shape["hidden"], shape["ffn"])
        self.fc2 = nn.Linear(shape["ffn"], shape["hidden"])
        self.final_layer_norm = nn.LayerNorm(shape["hidden"])

    def forward(self, x):
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        return x + self.fc2(F.relu(self.fc1(self.final_layer_norm(x))))


class Decoder(nn.Module):
    """The attributes' names are OPT's keys under model.decoder."""

    def __init__(self, shape, vocab_size, positions):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, shape["hidden"])
        self.embed_positions = nn.Embedding(positions + OFFSET, shape["hidden"])
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape["layers"]))
        self.final_layer_norm = nn.LayerNorm(shape["hidden"])
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for layer in self.layers:
            # So that the sum over the layers stays as large as one at the start.
            for last in (layer.self_attn.out_proj, layer.fc2):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * shape["layers"]))

    def forward(self, ids, targets):
        positions = torch.arange(OFFSET, OFFSET + ids.shape[1], device=ids.device)
        x = self.embed_tokens(ids) + self.embed_positions(positions)
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.final_layer_norm(x), self.embed_tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def train(options, model, data):
    """Trains until the time is over; returns the steps and the loss on rows that are not trained on."""
    held, rows = data[:32], data[32:]
    device = options.device
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=device == "cuda")
    run = model if options.no_compile or device == "cpu" else torch.compile(model)
    order = np.random.default_rng(0).permutation(len(rows))
    batch = min(max(1, options.batch_tokens // options.seq_len), len(rows))
    cursor, step, loss = 0, 0, None
    # A processor without bf16 products would only emulate them.
    half = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")

    def step_on(rows_of):
        x = torch.from_numpy(rows_of).long().to(device, non_blocking=True)
        with half:
            return run(x[:, :-1].contiguous(), x[:, 1:].contiguous())

    began = None
    while True:
        if began is None and step == 3:
            # Compiling is over; what it took is not training.
            if device == "cuda":
                torch.cuda.synchronize()
            began = time.time()
            log("training")
        # What is left of the time; the last seconds are for writing.
        left = options.seconds - 8 - (time.time() - BEGAN)
        trained = step * batch * options.seq_len
        if step > 3 and (left <= 0 or trained >= options.tokens):
            break
        passed = 0 if began is None else (time.time() - began) / max(1e-3, time.time() - began + max(0, left))
        done = min(1, max(passed, trained / options.tokens))
        rate = options.lr * min(1, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if cursor + batch > len(order):
            order, cursor = np.random.default_rng(step).permutation(len(rows)), 0
        loss = step_on(rows[order[cursor : cursor + batch]])
        cursor += batch
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 20 == 0 and device == "cuda":
            # The host must not run ahead of the clock that ends the training.
            torch.cuda.synchronize()
        if step % 200 == 0:
            log(f"step {step}, {step * batch * options.seq_len / 1e6:.0f}M tokens, loss {loss.item():.3f}")
    seconds = time.time() - (began or BEGAN)
    with torch.no_grad(), half:
        losses = []
        for i in range(0, len(held), 8):
            x = torch.from_numpy(held[i : i + 8]).long().to(device)
            losses.append(model(x[:, :-1], x[:, 1:]).item())
    tokens = step * batch * options.seq_len
    log(f"{step} steps, {tokens / 1e6:.1f}M tokens, {max(0, step - 3) * batch * options.seq_len / seconds:.0f} tokens/s, "
        f"held-out loss {sum(losses) / len(losses):.3f}")
    return step, tokens, sum(losses) / len(losses)


def write_model(options, model, tokenizer, shape, vocab_size):
    folder = os.path.join(options.output, "model")
    os.makedirs(folder, exist_ok=True)
    tensors = {"model.decoder." + k: v.detach().to(torch.bfloat16).cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(dict(
            model_type="opt", architectures=["OPTForCausalLM"], activation_function="relu", hidden_size=shape["hidden"],
            word_embed_proj_dim=shape["hidden"], ffn_dim=shape["ffn"], num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"], vocab_size=vocab_size, max_position_embeddings=options.seq_len,
            do_layer_norm_before=True, tie_word_embeddings=True, dropout=0.0, attention_dropout=0.0, bos_token_id=START,
            eos_token_id=START, pad_token_id=1), file, indent=2)
    if options.tokenizer:
        shutil.copy(os.path.join(options.tokenizer, "tokenizer.json"), folder)
    else:
        tokenizer.save(os.path.join(folder, "tokenizer.json"))


def write_samples(options, name, ids, count):
    """Rows of seq_len tokens; the first of a row is given, all others are to be predicted."""
    rows = ids[: len(ids) // options.seq_len * options.seq_len].reshape(-1, options.seq_len)[:count]
    with open(os.path.join(options.output, name), "w") as file:
        for row in rows.tolist():
            file.write(json.dumps(dict(context=row[:1], completion=row[1:])) + "\n")
    return len(rows)


def main():
    options = parse()
    os.makedirs(options.output, exist_ok=True)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    shape = SHAPES[options.shape]
    documents = list(texts(python_files(options.roots), options.megabytes * 1e6, 400_000, options.read_seconds))
    headers = list(texts(header_files(), options.header_megabytes * 1e6, 20_000, options.read_seconds))
    log(f"{len(documents)} Python files, {sum(map(len, documents)) / 1e6:.0f}M characters; {len(headers)} headers")
    if len(documents) < 10 or len(headers) < 10:
        raise SystemExit(f"expected 10 Python files and 10 headers or more, found {len(documents)} and {len(headers)}")
    tokenizer = tokenizer_of(options, documents[:: max(1, len(documents) // 3000)])
    vocab_size = -(-tokenizer.get_vocab_size() // 64) * 64
    log(f"tokenizer of {tokenizer.get_vocab_size()} tokens")
    unseen = max(1, len(documents) // 100)
    unseen_ids = encode(tokenizer, documents[:unseen])
    ids = encode(tokenizer, documents[unseen:])
    width = options.seq_len + 1
    data = ids[: len(ids) // width * width].reshape(-1, width)
    data = data[np.random.default_rng(1).permutation(len(data))]
    # A quarter of the headers is held out, by file: neighbours in a file are much alike.
    cut = max(1, len(headers) // 4)
    counts = dict(
        pretrain=write_samples(options, "pretrain.jsonl", unseen_ids, options.tune_samples),
        tune=write_samples(options, "tune.jsonl", encode(tokenizer, headers[cut:]), options.tune_samples),
        held=write_samples(options, "held.jsonl", encode(tokenizer, headers[:cut]), options.held_samples))
    log(f"{len(ids) / 1e6:.1f}M tokens in {len(data)} rows; samples {counts}")
    if len(data) < 40 or min(counts.values()) < 4:
        raise SystemExit(f"expected 40 rows to train on and 4 samples of each kind, found {len(data)} and {counts}")
    model = Decoder(shape, vocab_size, options.seq_len).to(options.device)
    step, tokens, loss = train(options, model, data)
    write_model(options, model, tokenizer, shape, vocab_size)
    with open(os.path.join(options.output, "train.json"), "w") as file:
        json.dump(dict(shape=options.shape, steps=step, tokens=tokens, distinct_tokens=len(ids), held_out_loss=round(loss, 4),
                       vocab_size=vocab_size, samples=counts, torch=torch.__version__,
                       device=torch.cuda.get_device_name() if options.device == "cuda" else "cpu"), file, indent=2)
    log("written")


if __name__ == "__main__":
    main()
