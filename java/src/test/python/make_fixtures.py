"""Makes the PEFT parity fixtures: tiny random f32 OPT checkpoints of both norm styles with LoRA adapters whose B is not
zero, and what transformers + PEFT compute with them.

usage: python make_fixtures.py OUTPUT_DIR [SEED]

Needs torch, transformers, peft and safetensors. Equal seeds and versions give equal fixtures.
"""

import json
import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import OPTConfig, OPTForCausalLM

STEPS = 20
LR = 3e-4
CASES = {
    "pre-norm": dict(
        model=dict(hidden_size=32, ffn_dim=72, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32, do_layer_norm_before=True),
        targets=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], r=4, alpha=8),
    "post-norm": dict(
        model=dict(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16, do_layer_norm_before=False),
        targets=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], r=3, alpha=6),
    "some-targets": dict(
        model=dict(hidden_size=24, ffn_dim=40, num_hidden_layers=3, num_attention_heads=3, word_embed_proj_dim=24, do_layer_norm_before=True),
        targets=["v_proj", "fc2"], r=2, alpha=5),
}


def make(folder, case, seed):
    torch.manual_seed(seed)
    config = OPTConfig(vocab_size=61, max_position_embeddings=40, dropout=0.0, attention_dropout=0.0, layerdrop=0.0, **case["model"])
    config._attn_implementation = "eager"
    model = OPTForCausalLM(config).eval().float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "layer_norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.2 * torch.randn_like(p))
            elif "embed" in name:
                p.copy_(0.3 * torch.randn_like(p))
            else:
                p.copy_(0.15 * torch.randn_like(p))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1, default=str) + "\n")
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}, folder / "model.safetensors", {"format": "pt"})

    peft = get_peft_model(model, LoraConfig(
        r=case["r"], lora_alpha=case["alpha"], lora_dropout=0.0, target_modules=case["targets"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_" in name:
                p.copy_(0.1 * torch.randn_like(p))
    peft.save_pretrained(folder / "adapter", safe_serialization=True)
    for extra in ("README.md",):
        (folder / "adapter" / extra).unlink(missing_ok=True)
    saved_config = folder / "adapter" / "adapter_config.json"
    saved = json.loads(saved_config.read_text())
    saved["base_model_name_or_path"] = "tiny-opt"
    saved_config.write_text(json.dumps(saved, indent=1) + "\n")

    lengths = [17, 9, 23]
    samples = [torch.randint(4, 61, (n,)) for n in lengths]
    prompts = [5, 1, 11]

    def losses():
        total, logits = 0.0, []
        for ids, prompt in zip(samples, prompts):
            z = peft(input_ids=ids[None]).logits[0]
            logits.append(z)
            total = total + torch.nn.functional.cross_entropy(z[prompt - 1:-1], ids[prompt:], reduction="sum")
        count = sum(len(i) - p for i, p in zip(samples, prompts))
        return total / count, logits

    peft.train()
    loss, logits = losses()
    loss.backward()
    key = lambda n: n.replace(".default", "")
    expected = {"logits": torch.cat(logits).detach()}
    trainable = {n: p for n, p in peft.named_parameters() if p.requires_grad}
    for n, p in trainable.items():
        expected["grad." + key(n)] = p.grad.clone()
    save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")

    optimizer = torch.optim.AdamW(trainable.values(), lr=LR, weight_decay=0.0)
    steps = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        step_loss, _ = losses()
        step_loss.backward()
        optimizer.step()
        steps.append(step_loss.item())
    (folder / "expected.json").write_text(json.dumps({
        "samples": [s.tolist() for s in samples], "prompts": prompts, "loss": loss.item(), "lr": LR, "losses": steps}) + "\n")


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1])
    base = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    for i, (name, case) in enumerate(CASES.items()):
        make(root / name, case, base * 1000 + i)
