"""Makes the PEFT parity fixtures: small random OPT checkpoints of both norm styles with LoRA adapters whose B is not zero,
and what transformers + PEFT compute with them.

usage: python make_fixtures.py OUTPUT_DIR [SEED]                 the fixtures beside the tests
       python make_fixtures.py --draw COUNT OUTPUT_DIR SEED      configurations drawn at random: each once in f32, and in bf16
                                                                 with MODELS different models and samples

An f32 fixture holds what PEFT computes in float32. ReLU's gradient jumps at zero: there two computations that differ in
their last bit differ in the gradient by one neuron's whole part of it, 1e-4 to 1e-3 in models this small. So biases of fc1
are moved until, in float64, no input of a ReLU lies within MARGIN of zero; expected.json counts the neurons that were moved.
Some models with a large alpha are chaotic to train: PEFT's own losses in float32 leave those in float64 by 1e-3 within 20
steps, and then they are nobody's measure. A drawn configuration in which they differ by more than STEADY is drawn again;
expected.json counts how often.

A bf16 fixture has weights that bf16 represents, so that arithmetic alone is judged; it holds what PEFT computes in float64,
stored as float32, and how far PEFT in bf16 is from that: the base model and its activations in bf16, the adapter in float32,
which is how PEFT puts an adapter on a bf16 model unless told otherwise. In bf16 some inputs of ReLUs always round across
zero, so the error in one model is partly luck, PEFT's as well as ours; drawn configurations have several models to tell.
With a large alpha some configurations amplify rounding so much that no arithmetic in bf16 is near: the loss in float64 moves by
as much as is asked of it once the inputs of the linear layers, and nothing else, carry bf16's rounding. So drawn configurations
in one of whose models that noise moves the loss by more than QUIET are drawn again, too.

Needs torch, transformers, peft and safetensors. Equal seeds and versions give equal fixtures.
"""

import copy
import json
import pathlib
import random
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import OPTConfig, OPTForCausalLM

STEPS = 20
LR = 3e-4
# Of the mean magnitude of a layer's ReLU inputs. Float32 moves them by less than a tenth of that.
MARGIN = 1e-4
# A tenth of what is asked of 20 losses.
STEADY = 1e-5
# A fifth of what is asked of a loss in bf16.
QUIET = 2e-4
NOISES = 2
MODELS = 9
TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
SAMPLES = dict(vocab=61, positions=40, lengths=[17, 9, 23], prompts=[5, 1, 11])
# Where errors are judged and not only bounded, more tokens and neurons make them less a matter of luck.
MORE_SAMPLES = dict(vocab=61, positions=40, lengths=[40, 33, 25, 38, 19, 29], prompts=[9, 1, 7, 12, 3, 5])
CASES = {
    "pre-norm": dict(
        model=dict(hidden_size=32, ffn_dim=72, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32, do_layer_norm_before=True),
        targets=TARGETS, r=4, alpha=8, **SAMPLES),
    "post-norm": dict(
        model=dict(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16, do_layer_norm_before=False),
        targets=TARGETS, r=3, alpha=6, **SAMPLES),
    "some-targets": dict(
        model=dict(hidden_size=24, ffn_dim=40, num_hidden_layers=3, num_attention_heads=3, word_embed_proj_dim=24, do_layer_norm_before=True),
        targets=["v_proj", "fc2"], r=2, alpha=5, **SAMPLES),
    "pre-norm-bf16": dict(
        model=dict(hidden_size=64, ffn_dim=232, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=64, do_layer_norm_before=True),
        targets=TARGETS, r=4, alpha=8, dtype="bf16", **MORE_SAMPLES),
    "post-norm-bf16": dict(
        model=dict(hidden_size=64, ffn_dim=224, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=40, do_layer_norm_before=False),
        targets=TARGETS, r=3, alpha=6, dtype="bf16", **MORE_SAMPLES),
}


def draw(rng):
    """A random configuration that computes in a moment; its sizes are rarely powers of two."""
    heads = rng.randint(1, 5)
    dims = [d for d in (5, 8, 12, 16, 20, 33, 64, 80) if 40 <= heads * d <= 320]
    hidden = heads * rng.choice(dims)
    positions = rng.randint(48, 160)
    lengths = [rng.randint(2, positions) for _ in range(rng.randint(1, 8))]
    while sum(lengths) < 300:
        lengths.append(rng.randint(positions // 2, positions))
    model = dict(
        hidden_size=hidden, num_attention_heads=heads, ffn_dim=rng.randint(40, 400), num_hidden_layers=rng.randint(1, 4),
        word_embed_proj_dim=rng.choice([hidden, hidden, rng.randint(20, 120)]), do_layer_norm_before=rng.random() < 0.5,
        _remove_final_layer_norm=rng.random() < 0.25)
    return dict(
        model=model, targets=sorted(rng.sample(TARGETS, rng.randint(1, len(TARGETS)))), r=rng.randint(1, 12),
        alpha=rng.choice([1, 4, 8, 16, 24]), rslora=rng.random() < 0.3, vocab=rng.randint(32, 300), positions=positions,
        lengths=lengths, prompts=[rng.randint(1, max(1, n // 3)) for n in lengths])


def base_model(case):
    config = OPTConfig(
        vocab_size=case["vocab"], max_position_embeddings=case["positions"], dropout=0.0, attention_dropout=0.0, layerdrop=0.0, **case["model"])
    config._attn_implementation = "eager"
    model = OPTForCausalLM(config).eval().float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "layer_norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.2 * torch.randn_like(p))
            elif "embed" in name:
                p.copy_(1.7 / p.shape[1] ** 0.5 * torch.randn_like(p))
            elif p.dim() == 2:
                p.copy_(0.85 / p.shape[1] ** 0.5 * torch.randn_like(p))
            else:
                p.copy_(0.15 * torch.randn_like(p))
            if case.get("dtype") == "bf16":
                p.copy_(p.bfloat16())
    return model


def with_adapter(model, case):
    return get_peft_model(model, LoraConfig(
        r=case["r"], lora_alpha=case["alpha"], use_rslora=case.get("rslora", False), lora_dropout=0.0, target_modules=case["targets"],
        task_type="CAUSAL_LM")).train()


def trainable(peft):
    return {n.replace(".default", ""): p for n, p in peft.named_parameters() if p.requires_grad}


def losses(peft, samples, prompts):
    """The mean loss over all supervised tokens, and the logits of all tokens."""
    total, logits = 0.0, []
    for ids, prompt in zip(samples, prompts):
        z = peft(input_ids=ids[None]).logits[0]
        z = z if z.dtype == torch.float64 else z.float()
        logits.append(z)
        total = total + torch.nn.functional.cross_entropy(z[prompt - 1:-1], ids[prompt:], reduction="sum")
    return total / sum(len(i) - p for i, p in zip(samples, prompts)), torch.cat(logits)


def loss_logits_and_gradients(peft, samples, prompts):
    loss, logits = losses(peft, samples, prompts)
    loss.backward()
    return loss.item(), {"logits": logits.detach(), **{"grad." + n: p.grad.clone() for n, p in trainable(peft).items()}}


def relative(found, expected):
    return (torch.linalg.vector_norm(found.double() - expected) / torch.linalg.vector_norm(expected)).item()


def write_model(folder, model, peft, dtype):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=1, default=str) + "\n")
    base = {k.replace("base_model.model.", "").replace(".base_layer", ""): v for k, v in model.state_dict().items() if "lora_" not in k}
    save_file({k: v.to(dtype).contiguous().clone() for k, v in base.items() if k != "lm_head.weight"}, folder / "model.safetensors", {"format": "pt"})
    peft.save_pretrained(folder / "adapter", safe_serialization=True)
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    saved_config = folder / "adapter" / "adapter_config.json"
    saved = json.loads(saved_config.read_text())
    saved["base_model_name_or_path"] = "tiny-opt"
    saved["target_modules"] = sorted(saved["target_modules"])
    saved_config.write_text(json.dumps(saved, indent=1) + "\n")


def moved_by_noise(exact, samples, prompts, loss):
    """How far, relatively, noise as large as bf16's rounding in the inputs of all linear layers moves the loss in float64: the
    most of NOISES draws."""
    linear = [m for n, m in exact.get_base_model().named_modules() if n.split(".")[-1] in TARGETS + ["project_in", "project_out", "lm_head"]]
    noisy = lambda module, given: (given[0] * (1 + 2**-9 * (2 * torch.rand_like(given[0]) - 1)), *given[1:])
    hooks = [m.register_forward_pre_hook(noisy) for m in linear]
    with torch.no_grad():
        moved = max(abs(losses(exact, samples, prompts)[0].item() / loss - 1) for _ in range(NOISES))
    for hook in hooks:
        hook.remove()
    return moved


def move_kinks_away(peft, samples):
    """Moves biases of fc1 so that no input of a ReLU lies within MARGIN of zero; tells how many, and how near the nearest is.

    From the first layer to the last, for what is moved in one moves the inputs of the next.
    """
    moved, nearest = 0, float("inf")
    for i in range(peft.config.num_hidden_layers):
        # The bias is moved in float32, as the checkpoint stores it, and seen in float64.
        fc1 = peft.get_base_model().model.decoder.layers[i].fc1
        fc1 = getattr(fc1, "base_layer", fc1)
        inputs = relu_inputs(peft, samples, i)
        margin = MARGIN * inputs.abs().mean().item()
        for j in (inputs.abs().amin(0) < margin).nonzero().flatten().tolist():
            # A step past a whole gap's width is tried on both sides, then the next.
            shift = next(s for n in range(1, 10000) for s in (2 * n * margin, -2 * n * margin)
                         if (inputs[:, j] + s).abs().min() > 1.5 * margin)
            with torch.no_grad():
                fc1.bias[j] += shift
            moved += 1
        inputs = relu_inputs(peft, samples, i)
        nearest = min(nearest, (inputs.abs().min() / inputs.abs().mean()).item())
    assert nearest > 0.9 * MARGIN, nearest
    return dict(margin=MARGIN, moved=moved, nearest=nearest)


def relu_inputs(peft, samples, layer):
    """What fc1 of one layer gives for all tokens [tokens, ffn_dim], in float64."""
    found = []
    exact = copy.deepcopy(peft).double()
    exact.get_base_model().model.decoder.layers[layer].fc1.register_forward_hook(
        lambda module, given, out: found.append(out.reshape(-1, out.shape[-1])))
    with torch.no_grad():
        for ids in samples:
            exact(input_ids=ids[None])
    return torch.cat(found)


def make(folder, case, seed):
    """Returns what was told."""
    torch.manual_seed(seed)
    bf16 = case.get("dtype") == "bf16"
    model = base_model(case)
    plain = copy.deepcopy(model)
    peft = with_adapter(model, case)
    with torch.no_grad():
        for p in trainable(peft).values():
            p.copy_(0.1 * torch.randn_like(p))
    samples = [torch.randint(4, case["vocab"], (n,)) for n in case["lengths"]]
    told = {"samples": [s.tolist() for s in samples], "prompts": case["prompts"]}
    if not bf16:
        told["kinks"] = move_kinks_away(peft, samples)
    write_model(folder, model, peft, torch.bfloat16 if bf16 else torch.float32)

    if bf16:
        half = with_adapter(plain.bfloat16(), case)
        with torch.no_grad():
            for name, p in trainable(half).items():
                assert p.dtype == torch.float32, name
                p.copy_(trainable(peft)[name])
        told["loss"], expected = loss_logits_and_gradients(peft.double(), samples, case["prompts"])
        loss, found = loss_logits_and_gradients(half, samples, case["prompts"])
        told["noise"] = moved_by_noise(peft, samples, case["prompts"], told["loss"])
        told["bf16_errors"] = {"loss": abs(loss / told["loss"] - 1), **{n: relative(found[n], t) for n, t in expected.items()}}
    else:
        exact = copy.deepcopy(peft).double()
        told["loss"], expected = loss_logits_and_gradients(peft, samples, case["prompts"])
        told.update(lr=LR, losses=adamw_losses(peft, samples, case["prompts"]))
        told["losses_error"] = max(abs(f / d - 1) for f, d in zip(told["losses"], adamw_losses(exact, samples, case["prompts"])))
    save_file({k: v.float().contiguous() for k, v in expected.items()}, folder / "expected.safetensors")
    write_told(folder, told)
    return told


def write_told(folder, told):
    (folder / "expected.json").write_text(json.dumps(told) + "\n")


def adamw_losses(peft, samples, prompts):
    optimizer = torch.optim.AdamW(trainable(peft).values(), lr=LR, weight_decay=0.0)
    steps = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss, _ = losses(peft, samples, prompts)
        loss.backward()
        optimizer.step()
        steps.append(loss.item())
    return steps


if __name__ == "__main__":
    if sys.argv[1] == "--draw":
        count, root, base = int(sys.argv[2]), pathlib.Path(sys.argv[3]), int(sys.argv[4])
        rng = random.Random(base)
        for i in range(count):
            chaotic = noisy = 0
            while True:
                case = draw(rng)
                told = make(root / f"{i:03d}-f32", dict(case, dtype="f32"), rng.randrange(2**31))
                if told["losses_error"] > STEADY:
                    chaotic += 1
                elif any(make(root / f"{i:03d}-bf16-{model}", dict(case, dtype="bf16"), rng.randrange(2**31))["noise"] > QUIET
                         for model in range(MODELS)):
                    noisy += 1
                else:
                    break
            write_told(root / f"{i:03d}-f32", dict(told, chaotic=chaotic, noisy=noisy))
    else:
        root = pathlib.Path(sys.argv[1])
        base = int(sys.argv[2]) if len(sys.argv) > 2 else 1
        for i, (name, case) in enumerate(CASES.items()):
            make(root / name, case, base * 1000 + i)
