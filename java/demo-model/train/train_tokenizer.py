# SPDX-License-Identifier: Apache-2.0
"""Trains the demo checkpoint's byte-level BPE and tokenises the corpus.

    python3 train_tokenizer.py --corpus WORKDIR --out MODELDIR

reads what corpus.py wrote, writes ``tokenizer.json``, ``tokenizer_config.json`` and
``special_tokens_map.json`` to MODELDIR, and ``train.npy`` and ``heldout.npy`` (uint16, every document
preceded by ``</s>``) to WORKDIR.  The layout is that of the OPT family: ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2,
``<unk>`` 3, and one ``</s>`` in front of every text.
"""

import argparse
import json
import pathlib

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 4096
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def texts(path):
    with open(path, encoding="utf-8") as f:
        for line in f:
            yield json.loads(line)["text"]


def train(corpus):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(t, special=True, normalized=True) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(corpus / "train.jsonl"), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A $B:1", special_tokens=[("</s>", 2)]
    )
    assert tokenizer.get_vocab_size() == VOCABULARY
    assert [tokenizer.token_to_id(t) for t in SPECIAL] == [0, 1, 2, 3]
    return tokenizer


def save(tokenizer, out):
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))

    def entry(content):
        return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {
        "add_bos_token": True,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {**entry(t), "special": True} for i, t in enumerate(SPECIAL)},
        **names,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 512,
        "tokenizer_class": "GPT2Tokenizer",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    special = {name: entry(content) for name, content in names.items()}
    (out / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    tokenizer = train(args.corpus)
    save(tokenizer, args.out)
    for part in ("train", "heldout"):
        ids, batch, characters = [], [], 0

        def flush():
            for encoding in tokenizer.encode_batch(batch):  # the post-processor puts </s> in front
                ids.append(np.asarray(encoding.ids, dtype=np.uint16))
            batch.clear()

        for text in texts(args.corpus / f"{part}.jsonl"):
            batch.append(text)
            characters += len(text)
            if len(batch) == 512:
                flush()
        flush()
        stream = np.concatenate(ids)
        np.save(args.corpus / f"{part}.npy", stream)
        print(f"{part}: {len(ids)} documents, {len(stream):,} tokens, {characters / len(stream):.2f} characters a token")


if __name__ == "__main__":
    main()
