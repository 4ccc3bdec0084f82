"""LoRA steps of an OPT model with transformers + PEFT; prints one line of JSON.

The peer of `jmh/run steps`, with the same options: rank 4 and alpha 32 on q_proj and v_proj, no dropout, AdamW. Either
--model and --data name files that Penumbra trains on too, or --shape makes random weights on the device and random tokens.

    hf_peft.py --device cuda --shape opt-1.3b --batch-size 4 --seq-len 1024 --loss ALL --pad none --steps 20 --variant compiled
"""
import argparse
import json
import random
import statistics
import time

import peft
import torch
import transformers

PAD, IGNORED = 1, -100

SHAPES = {
    "opt-125m": dict(hidden_size=768, ffn_dim=3072, num_hidden_layers=12, num_attention_heads=12, word_embed_proj_dim=768),
    "opt-1.3b": dict(hidden_size=2048, ffn_dim=8192, num_hidden_layers=24, num_attention_heads=32, word_embed_proj_dim=2048),
    "opt-2.7b": dict(hidden_size=2560, ffn_dim=10240, num_hidden_layers=32, num_attention_heads=32, word_embed_proj_dim=2560),
    "opt-6.7b": dict(hidden_size=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32, word_embed_proj_dim=4096),
}

VARIANTS = {
    "f32-adapters": "float32 adapters, as PEFT makes them",
    "tuned": "adapters in the dtype of the weights",
    "compiled": "tuned, and torch.compile with CUDA graphs (reduce-overhead); equal shapes only",
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="Hugging Face model folder")
    parser.add_argument("--shape", choices=SHAPES, help="instead of --model: random weights of this shape")
    parser.add_argument("--data", help='JSON Lines of {"context": [ids], "completion": [ids]}; without it, random tokens')
    parser.add_argument("--loss", choices=["ALL", "COMPLETION"], default="COMPLETION")
    parser.add_argument("--batch-size", type=int, default=2, help="samples a step")
    parser.add_argument("--seq-len", type=int, default=512, help="the longest sample")
    parser.add_argument("--pad", default="longest", help="none: all samples are equally long; longest: of the batch; or a length")
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them; compiling takes 5")
    parser.add_argument("--dtype", choices=["BF16", "F32"], default="BF16")
    parser.add_argument("--device", type=str.lower, choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--variant", choices=VARIANTS, default="tuned", help="; ".join(f"{k}: {v}" for k, v in VARIANTS.items()))
    options = parser.parse_args()
    if (options.model is None) == (options.shape is None):
        parser.error("expected either --model or --shape")
    return options


def read(options, vocab_size):
    if options.data is None:
        token = lambda: random.randrange(vocab_size)
        return [dict(context=[token()], completion=[token() for _ in range(options.seq_len - 1)])
                for _ in range(8 * options.batch_size)]
    with open(options.data) as file:
        samples = [json.loads(line) for line in file if line.strip()]
    longest = max(len(s["context"]) + len(s["completion"]) for s in samples)
    if longest > options.seq_len:
        raise SystemExit(f"{options.data}: expected samples of at most {options.seq_len} tokens, found {longest}")
    if options.shuffle:
        random.shuffle(samples)
    return samples


def batch(samples, options):
    """input_ids, attention_mask (None without padding), labels."""
    rows = [s["context"] + s["completion"] for s in samples]
    longest = max(map(len, rows))
    width = longest if options.pad in ("none", "longest") else int(options.pad)
    if options.pad == "none" and any(len(row) != width for row in rows):
        raise SystemExit(f"expected samples of equal length with --pad none, found {sorted(map(len, rows))}")
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED)
    for i, (sample, row) in enumerate(zip(samples, rows)):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        first = 0 if options.loss == "ALL" else len(sample["context"])
        labels[i, first : len(row)] = ids[i, first : len(row)]
    ids, mask, labels = (t.to(options.device) for t in (ids, mask, labels))
    return ids, None if options.pad == "none" else mask, labels


def build(options):
    dtype = torch.bfloat16 if options.dtype == "BF16" else torch.float32
    if options.model:
        model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, attn_implementation="sdpa")
        model = model.to(options.device)
    else:
        config = transformers.OPTConfig(
            vocab_size=50272, max_position_embeddings=max(2048, options.seq_len),
            do_layer_norm_before=True, dropout=0.0, attention_dropout=0.0,
            **SHAPES[options.shape])
        config._attn_implementation = "sdpa"
        torch.set_default_dtype(dtype)
        with torch.device(options.device):
            model = transformers.OPTForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.config.use_cache = False
    lora = peft.LoraConfig(r=4, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
    return peft.get_peft_model(model, lora, autocast_adapter_dtype=options.variant == "f32-adapters").train()


class Clock:
    """Milliseconds between start() and stop(), by CUDA events on a GPU."""

    def __init__(self, device):
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device == "cuda" else None

    def start(self):
        if self.events:
            self.events[0].record()
        else:
            self.began = time.perf_counter()

    def stop(self):
        if not self.events:
            return (time.perf_counter() - self.began) * 1e3
        self.events[1].record()
        torch.cuda.synchronize()
        return self.events[0].elapsed_time(self.events[1])


def peak_mib(device):
    """What the device's allocator had handed out at most; on the CPU, the process's largest resident size."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def main():
    options = parse()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.manual_seed(42)
    random.seed(42)
    model = build(options)
    samples = read(options, model.config.vocab_size)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=options.device == "cuda")
    forward = torch.compile(model, mode="reduce-overhead") if options.variant == "compiled" else model
    clock = Clock(options.device)
    times, losses = [], []
    for step in range(options.warmup + options.steps):
        first = step * options.batch_size % (len(samples) - options.batch_size + 1)
        ids, mask, labels = batch(samples[first : first + options.batch_size], options)
        clock.start()
        loss = forward(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(clock.stop())
        losses.append(loss.item())
    ms = statistics.median(times[options.warmup :])
    # Few batches of few samples would tell little of how many tokens a batch has.
    real_tokens = options.batch_size * statistics.fmean(len(s["context"]) + len(s["completion"]) for s in samples)
    versions = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)
    if options.device == "cuda":
        versions["gpu"] = torch.cuda.get_device_name()
    print(json.dumps(dict(
        ms=round(ms, 2),
        real_tokens_per_s=round(real_tokens / ms * 1e3, 1),
        peak_mib=round(peak_mib(options.device), 1),
        first_loss=losses[0],
        variant=options.variant,
        versions=versions,
    )))


if __name__ == "__main__":
    main()
