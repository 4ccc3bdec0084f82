"""What a GPU's libraries reach on OPT's shapes: cuBLAS GEMMs, SDPA forward and backward, a copy; a line of JSON each.

    ceilings.py > ceilings.jsonl
    ceilings.py --device cpu --shapes opt-125m --tokens 256 --sequences 2x128     # that it runs
"""
import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

# hidden size, MLP width, heads
SHAPES = {"opt-125m": (768, 3072, 12), "opt-1.3b": (2048, 8192, 32), "opt-2.7b": (2560, 10240, 32), "opt-6.7b": (4096, 16384, 32)}
REPEATS = 20
# As long as JMH warms up and measures on a GPU: over seconds it is the limit of power that says how fast products run.
WARMUP_SECONDS = 0.3
SECONDS = 0.75


def milliseconds(run, device):
    """Median over runs, each long enough that starting the clock does not count."""
    run()
    if device == "cpu":
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)
    calls = 10
    times = []
    # Larger than the second-level cache: a run does not find the operands of the run before.
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device=device)
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < WARMUP_SECONDS + SECONDS:
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        torch.cuda.synchronize()
        if passed >= WARMUP_SECONDS:
            times.append(begin.elapsed_time(end) / calls)
    return statistics.median(times)


def report(what, ms, flops=0, moved=0, **more):
    line = dict(what=what, **more, ms=round(ms, 4))
    if flops:
        line["tflops"] = round(flops / ms / 1e9, 2)
    if moved:
        line["tbps"] = round(moved / ms / 1e9, 3)
    print(json.dumps(line), flush=True)


def gemms(shape, tokens, device):
    hidden, ffn, _ = SHAPES[shape]
    for layer, out, inner in (("qkv", 3 * hidden, hidden), ("out", hidden, hidden), ("fc1", ffn, hidden), ("fc2", hidden, ffn)):
        x = torch.randn(tokens, inner, device=device, dtype=torch.bfloat16)
        dy = torch.randn(tokens, out, device=device, dtype=torch.bfloat16)
        weight = torch.randn(out, inner, device=device, dtype=torch.bfloat16)
        flops = 2 * tokens * out * inner
        report("gemm.forward", milliseconds(lambda: F.linear(x, weight), device), flops, shape=shape, layer=layer, tokens=tokens)
        report("gemm.backward", milliseconds(lambda: dy @ weight, device), flops, shape=shape, layer=layer, tokens=tokens)


def attention(shape, batch, length, device):
    hidden, _, heads = SHAPES[shape]
    size = (batch, heads, length, hidden // heads)
    q, k, v = (torch.randn(size, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    d_o = torch.randn(size, device=device, dtype=torch.bfloat16)
    # Two products over the pairs that a causal mask leaves, five in backward.
    flops = 4 * hidden * batch * length * (length + 1) // 2
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    labels = dict(shape=shape, batch=batch, length=length)
    report("attention.forward",
           milliseconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), device), flops, **labels)
    report("attention.backward",
           milliseconds(lambda: torch.autograd.grad(o, (q, k, v), d_o, retain_graph=True), device), 5 * flops // 2, **labels)


def copy(device):
    source = torch.empty(2**30 if device == "cuda" else 2**26, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    report("copy", milliseconds(lambda: target.copy_(source), device), moved=2 * source.numel())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["opt-1.3b", "opt-2.7b"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048, 4096, 8192])
    parser.add_argument("--sequences", nargs="+", default=["4x512", "4x1024", "4x2048", "1x8192"], help="BATCHxLENGTH")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(json.dumps(dict(device=name, torch=torch.__version__, cuda=torch.version.cuda)), flush=True)
    copy(options.device)
    for shape in options.shapes:
        for tokens in options.tokens:
            gemms(shape, tokens, options.device)
        for sequences in options.sequences:
            attention(shape, *map(int, sequences.split("x")), options.device)


if __name__ == "__main__":
    main()
