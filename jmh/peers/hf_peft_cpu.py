"""LoRA steps of an OPT model with transformers + PEFT on the CPU; prints one line of JSON.

The peer of `jmh/run steps`, with the same options: rank 4 and alpha 32 on q_proj and v_proj, no dropout, AdamW, adapters in
the dtype of the weights (faster than PEFT's default of float32).
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


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="Hugging Face model folder")
    parser.add_argument("--data", required=True, help='JSON Lines of {"context": [ids], "completion": [ids]}')
    parser.add_argument("--loss", choices=["ALL", "COMPLETION"], default="COMPLETION")
    parser.add_argument("--batch-size", type=int, default=2, help="samples a step")
    parser.add_argument("--seq-len", type=int, default=512, help="the longest sample")
    parser.add_argument("--pad", default="longest", help="none: all samples are equally long; longest: of the batch; or a length")
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--dtype", choices=["BF16", "F32"], default="BF16")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def read(options):
    with open(options.data) as file:
        samples = [json.loads(line) for line in file if line.strip()]
    samples = [s for s in samples if len(s["context"]) + len(s["completion"]) <= options.seq_len]
    if options.shuffle:
        random.Random(42).shuffle(samples)
    return samples


def batch(samples, options):
    """input_ids, attention_mask (None without padding), labels, tokens that are no padding."""
    rows = [s["context"] + s["completion"] for s in samples]
    real = sum(map(len, rows))
    longest = max(map(len, rows))
    width = longest if options.pad in ("none", "longest") else int(options.pad)
    if options.pad == "none" and real != width * len(rows):
        raise SystemExit(f"expected samples of equal length with --pad none, found {sorted(map(len, rows))}")
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED)
    for i, (sample, row) in enumerate(zip(samples, rows)):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        first = 0 if options.loss == "ALL" else len(sample["context"])
        labels[i, first : len(row)] = ids[i, first : len(row)]
    return ids, None if options.pad == "none" else mask, labels, real


def build(options):
    dtype = torch.bfloat16 if options.dtype == "BF16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    config = peft.LoraConfig(r=4, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False).train()


def peak_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def main():
    options = parse()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.manual_seed(42)
    samples = read(options)
    model = build(options)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    times, losses, real_tokens = [], [], []
    for step in range(options.warmup + options.steps):
        first = step * options.batch_size % (len(samples) - options.batch_size + 1)
        ids, mask, labels, real = batch(samples[first : first + options.batch_size], options)
        start = time.perf_counter()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        times.append((time.perf_counter() - start) * 1e3)
        real_tokens.append(real)
    times, real_tokens = times[options.warmup :], real_tokens[options.warmup :]
    print(json.dumps(dict(
        ms=round(statistics.median(times), 1),
        real_tokens_per_s=round(sum(real_tokens) / sum(times) * 1e3, 1),
        peak_mib=round(peak_mib(), 1),
        first_loss=losses[0],
        versions=dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__),
    )))


if __name__ == "__main__":
    main()
