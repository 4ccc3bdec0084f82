# SPDX-License-Identifier: Apache-2.0
"""Trains the demo checkpoint: a 5.9-million-parameter OPT, from random weights.

    python3 train.py --data WORKDIR --tokenizer MODELDIR/tokenizer.json --out MODELDIR --steps 9000

reads ``train.npy`` and ``heldout.npy`` (or ``.npy.xz``) as written by train_tokenizer.py and writes
``config.json`` and ``model.safetensors`` (bfloat16, Hugging Face names) and, with --report FOLDER,
``report.json`` and ``samples.txt`` there.  With --seconds instead of --steps the number of steps is chosen
from the measured speed.  Master weights and the optimizer are float32; on a GPU the forward and backward
passes run in bfloat16 autocast under torch.compile.
"""

import argparse
import io
import json
import lzma
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

CONFIG = {
    "activation_function": "relu",
    "architectures": ["OPTForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "do_layer_norm_before": True,
    "dropout": 0.0,
    "enable_bias": True,
    "eos_token_id": 2,
    "ffn_dim": 1024,
    "hidden_size": 256,
    "init_std": 0.02,
    "layer_norm_elementwise_affine": True,
    "layerdrop": 0.0,
    "max_position_embeddings": 512,
    "model_type": "opt",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "pad_token_id": 1,
    "prefix": "</s>",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 4096,
    "word_embed_proj_dim": 256,
    "_remove_final_layer_norm": False,
}
D, HEADS, FFN = CONFIG["hidden_size"], CONFIG["num_attention_heads"], CONFIG["ffn_dim"]
LAYERS, CONTEXT, VOCABULARY = CONFIG["num_hidden_layers"], CONFIG["max_position_embeddings"], CONFIG["vocab_size"]
POSITION_OFFSET = 2  # OPT's learned positions start at row 2
END = 2
BLOCK = 128  # neurons a block in the sparsity figures

# ---------------------------------------------------------------- model; the attribute names give OPT's keys


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(D, D) for _ in range(4))

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (p(x).view(b, t, HEADS, D // HEADS).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(y.transpose(1, 2).reshape(b, t, D))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = Attention()
        self.self_attn_layer_norm = nn.LayerNorm(D)
        self.fc1 = nn.Linear(D, FFN)
        self.fc2 = nn.Linear(FFN, D)
        self.final_layer_norm = nn.LayerNorm(D)

    def forward(self, x, trace=None):
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        h = F.relu(self.fc1(self.final_layer_norm(x)))
        if trace is not None:
            trace.append(h)
        return x + self.fc2(h)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, D)
        self.embed_positions = nn.Embedding(CONTEXT + POSITION_OFFSET, D)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.final_layer_norm = nn.LayerNorm(D)

    def forward(self, ids, trace=None):
        positions = torch.arange(POSITION_OFFSET, POSITION_OFFSET + ids.shape[1], device=ids.device)
        x = self.embed_tokens(ids) + self.embed_positions(positions)
        for layer in self.layers:
            x = layer(x, trace)
        return F.linear(self.final_layer_norm(x), self.embed_tokens.weight)  # tied output embedding


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = Decoder()
        std = CONFIG["init_std"]
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # matrices that write to the residual stream start smaller
                scale = 1 / math.sqrt(2 * LAYERS) if ("out_proj" in name or "fc2" in name) else 1.0
                nn.init.normal_(p, std=std * scale)
            elif "bias" in name:
                nn.init.zeros_(p)

    def forward(self, ids, targets):
        logits = self.decoder(ids)
        return F.cross_entropy(logits.float().view(-1, VOCABULARY), targets.reshape(-1))


# ---------------------------------------------------------------- data


def load_stream(folder, part):
    path = folder / f"{part}.npy"
    if path.exists():
        return np.load(path)
    return np.load(io.BytesIO(lzma.decompress((folder / f"{part}.npy.xz").read_bytes())))


class Rows:
    """Training rows: ``</s>`` and the 512 tokens that follow the start of some paragraph.

    An epoch cuts the stream every 512 tokens from a random offset and moves each cut to the next start of a
    paragraph or document, so that ``</s>`` is followed by a beginning, as it is when the model is used.
    """

    def __init__(self, stream, newline, device, generator):
        self.stream = torch.from_numpy(stream.astype(np.int32)).to(device)
        starts = np.flatnonzero((stream == newline) | (stream == END)) + 1
        self.starts = torch.from_numpy(starts[starts < len(stream) - CONTEXT]).to(device)
        self.span = torch.arange(CONTEXT, device=device)
        self.generator, self.order, self.used, self.epochs = generator, None, 0, 0

    def cut(self, offset):
        cuts = torch.arange(offset, int(self.starts[-1]) + 1, CONTEXT, device=self.starts.device)
        return self.starts[torch.searchsorted(self.starts, cuts)]

    def next(self, count):
        if self.order is None or self.used + count > len(self.order):
            offset = int(torch.randint(CONTEXT, (1,), generator=self.generator))
            cuts = self.cut(offset)
            self.order = cuts[torch.randperm(len(cuts), generator=self.generator).to(cuts.device)]
            self.used, self.epochs = 0, self.epochs + 1
        picked = self.order[self.used : self.used + count]
        self.used += count
        return self.rows(picked)

    def rows(self, picked):
        tokens = self.stream[picked[:, None] + self.span].long()
        return torch.cat([torch.full_like(tokens[:, :1], END), tokens[:, :-1]], 1), tokens


# ---------------------------------------------------------------- measuring


@torch.no_grad()
def loss_of(model, rows, count=None, batch=32):
    """Mean loss in float32 over the rows cut at offset 0 (or over `count` of them, evenly spaced)."""
    cuts = rows.cut(0)
    if count is not None and count < len(cuts):
        cuts = cuts[torch.linspace(0, len(cuts) - 1, count, device=cuts.device).long()]
    total = 0.0
    for i in range(0, len(cuts), batch):
        ids, targets = rows.rows(cuts[i : i + batch])
        total += float(model(ids, targets)) * len(ids)
    return total / len(cuts), len(cuts)


@torch.no_grad()
def sparsity(model, rows, count=64, batch=16):
    """ReLU zeros of each layer over full-length held-out rows."""
    cuts = rows.cut(0)[:count]
    sums = torch.zeros(LAYERS, 4, dtype=torch.float64)
    for i in range(0, len(cuts), batch):
        ids, _ = rows.rows(cuts[i : i + batch])
        trace = []
        model.decoder(ids, trace)
        for layer, h in enumerate(trace):
            zero = h == 0
            blocks = zero.view(*zero.shape[:2], FFN // BLOCK, BLOCK).all(-1)
            figures = [zero, blocks, zero.all(1), blocks.all(1)]
            sums[layer] += torch.tensor([f.double().mean().item() for f in figures]) * len(ids)
    names = ["zero_activations", "token_blocks_zero", "neurons_dead_over_row", "blocks_dead_over_row"]
    return [dict(zip(names, [round(v, 4) for v in row])) for row in (sums / len(cuts)).tolist()]


@torch.no_grad()
def generate(model, tokenizer, prompt, length, generator, temperature=0.7, top_k=40):
    ids = tokenizer.encode(prompt).ids
    device = model.decoder.embed_tokens.weight.device
    for _ in range(length):
        logits = model.decoder(torch.tensor([ids[-CONTEXT:]], device=device))[0, -1].float().cpu() / temperature
        values, indices = logits.topk(top_k)
        token = int(indices[torch.multinomial(values.softmax(0), 1, generator=generator)])
        if token == END:
            break
        ids.append(token)
    return tokenizer.decode(ids)


PROMPTS = [
    "The",
    "The house stood near the river, and",
    "She looked at him for a moment and",
    "A tavern is a place where",
    "The best way to learn a language is",
    "To save the document, click",
    "In the morning the captain",
    "A family is",
]

# ---------------------------------------------------------------- training


def save(model, out):
    out.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{k}": v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2, sort_keys=True) + "\n")


def load(out, device):
    model = Model()
    weights = load_file(str(out / "model.safetensors"))
    model.load_state_dict({k.removeprefix("model."): v.float() for k, v in weights.items()})
    return model.to(device).eval()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--report", type=pathlib.Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seconds", type=float, help="choose the steps so that training takes about so long")
    parser.add_argument("--max-steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=128, help="rows of 512 tokens a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=400)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--probe", type=int, default=60, help="steps timed before the number of steps is chosen")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--evaluate", action="store_true", help="only measure the model already in --out")
    args = parser.parse_args()

    begun = time.time()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(17)
    torch.set_float32_matmul_precision("high")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    assert len(newline) == 1
    generator = torch.Generator().manual_seed(23)
    train_rows = Rows(load_stream(args.data, "train"), newline[0], device, generator)
    held_rows = Rows(load_stream(args.data, "heldout"), newline[0], device, generator)

    if args.evaluate:
        model = load(args.out, device)
        print("held-out loss %.4f over %d rows" % loss_of(model, held_rows))
        for layer, figures in enumerate(sparsity(model, held_rows)):
            print("layer", layer, figures)
        return

    model = Model().to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(train_rows.stream):,} training tokens, device {device}", flush=True)
    decay = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    plain = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.95), eps=1e-8, fused=device == "cuda",
    )
    fast = model if args.no_compile else torch.compile(model)
    steps = args.steps or args.max_steps

    def step_once(step, function):
        warm = min(1.0, (step + 1) / args.warmup)
        done = min(1.0, max(0, step - args.warmup) / max(1, steps - args.warmup))
        rate = args.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, targets = train_rows.next(args.batch)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = function(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    step, timed_from, training_begun = 0, None, time.time()
    curve = []
    while step < steps:
        try:
            loss = step_once(step, fast)
        except Exception as error:  # a compiler that does not work must not cost the run
            if step > 0 or args.no_compile:
                raise
            print(f"torch.compile failed, continuing without: {error!r}"[:500], flush=True)
            fast = model
            continue
        step += 1
        if step == args.probe // 2:
            float(loss)
            timed_from = (step, time.time())
            print(f"first {step} steps took {timed_from[1] - training_begun:.1f} s (compiling included)", flush=True)
        if step == args.probe and args.seconds and not args.steps:
            float(loss)
            per_step = (time.time() - timed_from[1]) / (step - timed_from[0])
            left = args.seconds - (time.time() - training_begun)
            steps = max(step + 1, min(args.max_steps, step + int(left / per_step)))
            print(f"{per_step * 1000:.2f} ms a step, {args.batch * CONTEXT / per_step:,.0f} tokens/s: {steps} steps", flush=True)
        if step % max(1, steps // 40) == 0 or step == steps:
            value = float(loss)
            held, _ = loss_of(model, held_rows, 64) if step % max(1, steps // 10) == 0 else (None, 0)
            curve.append([step, round(value, 4), held and round(held, 4)])
            print(f"step {step} epoch {train_rows.epochs} loss {value:.4f} held-out {held} {time.time() - training_begun:.0f} s", flush=True)
            if not math.isfinite(value):
                raise SystemExit("training diverged")
        if step % max(1, steps // 4) == 0:
            save(model, args.out)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.time() - training_begun
    save(model, args.out)

    final = load(args.out, device)  # what was saved: rounded to bfloat16, evaluated in float32
    torch.set_float32_matmul_precision("highest")
    held, held_count = loss_of(final, held_rows)
    master, _ = loss_of(model, held_rows)
    trained, _ = loss_of(final, train_rows, 2048)
    figures = sparsity(final, held_rows)
    report = {
        "parameters": parameters, "steps": steps, "batch_rows": args.batch, "tokens_seen": steps * args.batch * CONTEXT,
        "training_tokens": len(train_rows.stream), "epochs": round(steps * args.batch * CONTEXT / len(train_rows.stream), 2),
        "lr": args.lr, "warmup": args.warmup, "weight_decay": args.weight_decay, "training_seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__,
        "train_loss": round(trained, 4), "heldout_loss": round(held, 4), "heldout_rows": held_count,
        "heldout_loss_float32_masters": round(master, 4), "sparsity": figures, "curve": curve,
    }
    sampler = torch.Generator().manual_seed(5)
    samples = [generate(final, tokenizer, prompt, 60, sampler) for prompt in PROMPTS for _ in range(2)]
    print(json.dumps({k: v for k, v in report.items() if k != "curve"}, indent=1))
    print("\n---\n".join(samples))
    if args.report:
        args.report.mkdir(parents=True, exist_ok=True)
        (args.report / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        (args.report / "samples.txt").write_text("\n---\n".join(samples) + "\n")
    print(f"whole run {time.time() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
