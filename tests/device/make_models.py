#!/usr/bin/env python3
"""Models of random weights in the shapes that people fine-tune, and texts for them: Hugging Face folders, made on the spot.

    python make_models.py OUT [--seed 0] [--models 135m 0.6b 8b] [--layers-8b 6] [--rows-512 N] [--rows-4096 N] [--tiny]

Folders: 135m (SmolLM2-135M: llama, tied, weights in f32), 0.6b (Qwen3-0.6B: tied, bf16), 8b (Qwen3-8B: untied, bf16, fewer layers); if asked
for, 30b-a3b (Qwen3-30B-A3B: experts, fewer layers) and 3.5-4b (Qwen3.5-4B: the gated delta rule, fewer layers); each with a tokenizer. Files: rows-512.jsonl and rows-4096.jsonl, rows-parity.jsonl (lengths from 2 to 3,001, three rows with a common prefix),
models.json (sizes and operations a token, for the table). The same seed gives the same weights on the same kind of device.

The numbers should be like a trained model's where that matters for rounding:
- Matrices are N(0, 1 / inputs), so what a norm lets through keeps its size. The outputs of attention and feed-forward network are scaled
  by the number of layers, so that all of them together are about as large as the embedding.
- Queries and keys are larger by sqrt(2) each (Qwen 3: by their norms): scores have a deviation of 2, and attention picks some tokens.
- Logits have a deviation of 2. Four channels of the last norm are large, as trained models have them, so that the deviation differs from
  token to token.
- Embedding and head are the same or correlated, and the last norm's signs are chosen so that the input token gets 12 nats more on
  average: the model likes to repeat. A quarter of the words of the texts repeats the word before. So entropies lie between 0 and
  10 nats, and targets are anything from certain to hopeless.
With this the 135m shape in bf16 is as far from f32 as SmolLM2-135M is: |d ln p| of 0.013 on average (0.010).
"""

import argparse
import hashlib
import json
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file

SPREAD = 2.0  # of logits, nats
REPEAT = 12.0  # nats that the input token gets more
SHARE = 0.7  # correlation of the last hidden state with the embedding of its token
SCORES = 2.0  # deviation of the attention's scores
LARGE = 4  # channels of the last norm
WORDS = 4000  # each with and without a space before it

SHAPES = {
    "135m": dict(
        model_type="llama", like="SmolLM2-135M", hidden=576, inner=1536, layers=30, of=30, heads=9, kv_heads=3, head_dim=64, vocab=49152,
        tied=True, theta=100000.0, eps=1e-5, positions=8192, eos=0, dtype="float32",
    ),
    "0.6b": dict(
        model_type="qwen3", like="Qwen3-0.6B", hidden=1024, inner=3072, layers=28, of=28, heads=16, kv_heads=8, head_dim=128, vocab=151936,
        tied=True, theta=1000000.0, eps=1e-6, positions=40960, eos=151645, dtype="bfloat16",
    ),
    "8b": dict(
        model_type="qwen3", like="Qwen3-8B", hidden=4096, inner=12288, layers=6, of=36, heads=32, kv_heads=8, head_dim=128, vocab=151936,
        tied=False, theta=1000000.0, eps=1e-6, positions=40960, eos=151645, dtype="bfloat16",
    ),
    "30b-a3b": dict(
        model_type="qwen3_moe", like="Qwen3-30B-A3B", hidden=2048, inner=768, layers=3, of=48, heads=32, kv_heads=4, head_dim=128, vocab=151936,
        tied=False, theta=1000000.0, eps=1e-6, positions=40960, eos=151645, dtype="bfloat16", experts=128, per_token=8,
    ),
    "3.5-4b": dict(
        model_type="qwen3_5_text", like="Qwen3.5-4B", hidden=2560, inner=9216, layers=8, of=32, heads=16, kv_heads=4, head_dim=256, vocab=248320,
        tied=True, theta=10000000.0, eps=1e-6, positions=40960, eos=248044, dtype="bfloat16", key_heads=16, value_heads=32, delta_dim=128,
    ),
}
DEFAULT = ["135m", "0.6b", "8b"]
TINY = {
    "135m": dict(hidden=72, inner=104, layers=3, of=3, heads=9, kv_heads=3, head_dim=8, vocab=9000),
    "0.6b": dict(hidden=64, inner=96, layers=2, of=2, heads=4, kv_heads=2, head_dim=32, vocab=9216, eos=9100),
    "8b": dict(hidden=64, inner=96, layers=2, of=2, heads=4, kv_heads=2, head_dim=16, vocab=9216, eos=9100),
    "30b-a3b": dict(hidden=64, inner=48, layers=2, of=2, heads=4, kv_heads=2, head_dim=16, vocab=9216, eos=9100, experts=8, per_token=3),
    "3.5-4b": dict(
        hidden=64, inner=96, layers=4, of=4, heads=4, kv_heads=2, head_dim=16, vocab=9216, eos=9100, key_heads=2, value_heads=4, delta_dim=16,
    ),
}
# Of the families: Transformers' class.
CLASSES = {
    "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM", "qwen3_5_text": "Qwen3_5ForCausalLM",
}
KERNEL = 4  # tokens that the convolution before the gated delta rule reads


def seed_of(*what):
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:7], "big")


def config(shape):
    """As Transformers 5 writes it."""
    settings = {
        "architectures": [CLASSES[shape["model_type"]]],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dtype": shape["dtype"],
        "eos_token_id": shape["eos"],
        "head_dim": shape["head_dim"],
        "hidden_act": "silu",
        "hidden_size": shape["hidden"],
        "initializer_range": 0.02,
        "intermediate_size": shape["inner"],
        "max_position_embeddings": shape["positions"],
        "model_type": shape["model_type"],
        "num_attention_heads": shape["heads"],
        "num_hidden_layers": shape["layers"],
        "num_key_value_heads": shape["kv_heads"],
        "pad_token_id": None,
        "rms_norm_eps": shape["eps"],
        "rope_parameters": {"rope_theta": shape["theta"], "rope_type": "default"},
        "tie_word_embeddings": shape["tied"],
        "transformers_version": "5.17.0",
        "use_cache": True,
        "vocab_size": shape["vocab"],
    }
    if shape["model_type"] == "llama":
        settings |= {"mlp_bias": False, "pretraining_tp": 1}
    elif shape["model_type"] == "qwen3_5_text":
        kinds = ["linear_attention" if is_delta(shape, i) else "full_attention" for i in range(shape["layers"])]
        settings["rope_parameters"]["partial_rotary_factor"] = 0.25
        settings |= {
            "layer_types": kinds, "linear_conv_kernel_dim": KERNEL, "linear_key_head_dim": shape["delta_dim"],
            "linear_num_key_heads": shape["key_heads"], "linear_num_value_heads": shape["value_heads"],
            "linear_value_head_dim": shape["delta_dim"],
        }
    elif shape["model_type"] == "qwen3_moe":
        settings |= {
            "decoder_sparse_step": 1, "max_window_layers": shape["layers"], "mlp_only_layers": [], "moe_intermediate_size": shape["inner"],
            "norm_topk_prob": True, "num_experts": shape["experts"], "num_experts_per_tok": shape["per_token"],
            "output_router_logits": False, "router_aux_loss_coef": 0.001, "sliding_window": None, "use_sliding_window": False,
        }
    else:
        settings |= {
            "layer_types": ["full_attention"] * shape["layers"], "max_window_layers": shape["layers"], "sliding_window": None,
            "use_sliding_window": False,
        }
    return settings


def is_delta(shape, i):
    """The gated delta rule in three layers of four."""
    return shape["model_type"] == "qwen3_5_text" and (i + 1) % 4 != 0


class Weights:
    def __init__(self, name, shape, seed, device):
        self.name, self.shape, self.seed, self.device = name, shape, seed, device
        self.dtype = getattr(torch, shape["dtype"])
        self.embedding_std = SPREAD / math.sqrt(shape["hidden"])

    def normal(self, name, *size):
        generator = torch.Generator(self.device).manual_seed(seed_of(self.seed, self.name, name))
        return torch.randn(size, generator=generator, device=self.device)

    def matrix(self, name, outputs, inputs, scale=1.0):
        return self.normal(name, outputs, inputs).mul_(scale / math.sqrt(inputs))

    def norm(self, name, size, around=1.0):
        return around + 0.1 * self.normal(name, size)

    def embedding(self):
        return self.normal("embedding", self.shape["vocab"], self.shape["hidden"]).mul_(self.embedding_std)

    def head(self):
        """As large as the embedding, and half of it in amplitude."""
        noise = self.normal("head", self.shape["vocab"], self.shape["hidden"]).mul_(self.embedding_std * math.sqrt(0.75))
        return noise.add_(self.embedding(), alpha=0.5)

    def last_norm(self):
        hidden = self.shape["hidden"]
        size = self.norm("norm", hidden).abs()
        size[torch.randperm(hidden, generator=torch.Generator().manual_seed(self.seed))[:LARGE].to(self.device)] = math.sqrt(hidden / 8)
        # sum of w h e = SPREAD * share * sqrt(hidden) * mean sign
        share = SHARE * (1.0 if self.shape["tied"] else 0.5)
        positive = (1 + min(1.0, REPEAT / (SPREAD * share * math.sqrt(hidden)))) / 2
        # By quantile, not by chance: few channels would miss the mean.
        order = self.normal("signs", hidden).argsort()
        signs = torch.ones(hidden, device=self.device)
        signs[order[round(positive * hidden):]] = -1
        return size * signs - self.offset()

    def offset(self):
        """Qwen 3.5 stores the weights of its norms as what they have over 1."""
        return 1.0 if self.shape["model_type"] == "qwen3_5_text" else 0.0

    def layer(self, i):
        shape = self.shape
        hidden = shape["hidden"]
        at = f"model.layers.{i}."
        # Of what attention and feed-forward network add.
        branch = self.embedding_std * math.sqrt((1 / SHARE**2 - 1) / (2 * shape["layers"]))
        made = {
            "input_layernorm.weight": self.norm(at + "1", hidden) - self.offset(),
            "post_attention_layernorm.weight": self.norm(at + "2", hidden) - self.offset(),
        }
        made |= self.delta(at, branch) if is_delta(shape, i) else self.attention(at, branch)
        if "experts" in shape:
            # As wide as a router's that is sure of some tokens; of the outputs of K experts a share of 1 / K each is added.
            made["mlp.gate.weight"] = self.matrix(at + "router", shape["experts"], hidden, 2.0)
            for expert in range(shape["experts"]):
                made |= self.network(at, f"mlp.experts.{expert}.", branch * math.sqrt(shape["per_token"]))
        else:
            made |= self.network(at, "mlp.", branch)
        return {at + key: value for key, value in made.items()}

    def network(self, at, module, branch):
        hidden, inner = self.shape["hidden"], self.shape["inner"]
        seed = at + module.removeprefix("mlp.")
        return {
            f"{module}gate_proj.weight": self.matrix(seed + "gate", inner, hidden),
            f"{module}up_proj.weight": self.matrix(seed + "up", inner, hidden),
            # SiLU(x) y is 0.6 of what it multiplies.
            f"{module}down_proj.weight": self.matrix(seed + "down", hidden, inner, branch / 0.6),
        }

    def attention(self, at, branch):
        shape = self.shape
        hidden, dim = shape["hidden"], shape["head_dim"]
        rows, kv_rows = shape["heads"] * dim, shape["kv_heads"] * dim
        normed, gates = shape["model_type"] != "llama", shape["model_type"] == "qwen3_5_text"
        sharp = 1.0 if normed else math.sqrt(SCORES)
        made = {
            "self_attn.q_proj.weight": self.matrix(at + "q", rows * (2 if gates else 1), hidden, sharp),
            "self_attn.k_proj.weight": self.matrix(at + "k", kv_rows, hidden, sharp),
            "self_attn.v_proj.weight": self.matrix(at + "v", kv_rows, hidden),
            # Attention gives half of what it averages, gates let half of that through.
            "self_attn.o_proj.weight": self.matrix(at + "o", hidden, rows, branch / (0.25 if gates else 0.5)),
        }
        if normed:
            made["self_attn.q_norm.weight"] = self.norm(at + "q_norm", dim, math.sqrt(SCORES)) - self.offset()
            made["self_attn.k_norm.weight"] = self.norm(at + "k_norm", dim, math.sqrt(SCORES)) - self.offset()
        return made

    def delta(self, at, branch):
        shape = self.shape
        hidden, dim, heads = shape["hidden"], shape["delta_dim"], shape["value_heads"]
        keys, values = shape["key_heads"] * dim, heads * dim
        return {
            "linear_attn.in_proj_qkv.weight": self.matrix(at + "qkv", 2 * keys + values, hidden),
            "linear_attn.in_proj_z.weight": self.matrix(at + "z", values, hidden),
            "linear_attn.in_proj_b.weight": self.matrix(at + "b", heads, hidden),
            "linear_attn.in_proj_a.weight": self.matrix(at + "a", heads, hidden),
            "linear_attn.conv1d.weight": self.normal(at + "conv", 2 * keys + values, 1, KERNEL).mul_(0.5),
            # Heads forget a half of the state in a few tokens to a few hundred.
            "linear_attn.A_log": self.normal(at + "A", heads) - 2.0,
            "linear_attn.dt_bias": self.normal(at + "dt", heads) - 2.0,
            "linear_attn.norm.weight": self.norm(at + "norm", dim),
            # The norm gives 1, the gates let half through.
            "linear_attn.out_proj.weight": self.matrix(at + "out", hidden, values, branch / 0.5),
        }

    def shards(self):
        yield {"model.embed_tokens.weight": self.embedding(), "model.norm.weight": self.last_norm()}
        for layers in self.layers_of_shards():
            yield {key: value for i in layers for key, value in self.layer(i).items()}
        if not self.shape["tied"]:
            yield {"lm_head.weight": self.head()}

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        count = 1 + len(self.layers_of_shards()) + (not self.shape["tied"])
        total, weight_map, jobs = 0, {}, []
        with ThreadPoolExecutor(4) as pool:
            for i, shard in enumerate(self.shards()):
                file = f"model-{i + 1:05}-of-{count:05}.safetensors"
                stored = {key: value.to(self.dtype).cpu().contiguous() for key, value in shard.items()}
                total += sum(value.numel() * value.element_size() for value in stored.values())
                weight_map |= {key: file for key in stored}
                jobs.append(pool.submit(save_file, stored, folder / file, metadata={"format": "pt"}))
            for job in jobs:
                job.result()
        assert len(jobs) == count, (len(jobs), count)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        (folder / "config.json").write_text(json.dumps(config(self.shape), indent=2) + "\n")

    def layers_of_shards(self):
        """About 200 million weights each."""
        step, layers = max(1, 200_000_000 // layer_weights(self.shape, 0)), self.shape["layers"]
        return [range(first, min(first + step, layers)) for first in range(0, layers, step)]


def layer_matrices(shape, i, all_experts=False):
    """Weights in the matrices of a layer that a token is multiplied with, or all."""
    hidden, rows, kv_rows = shape["hidden"], shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"]
    network = 3 * hidden * shape["inner"]
    if "experts" in shape:
        network = network * shape["experts" if all_experts else "per_token"] + hidden * shape["experts"]
    if is_delta(shape, i):
        keys, values = shape["key_heads"] * shape["delta_dim"], shape["value_heads"] * shape["delta_dim"]
        return hidden * (2 * keys + 3 * values + 2 * shape["value_heads"]) + network
    return hidden * ((3 if shape["model_type"] == "qwen3_5_text" else 2) * rows + 2 * kv_rows) + network


def layer_weights(shape, i):
    hidden, dim = shape["hidden"], shape["head_dim"]
    if is_delta(shape, i):
        heads, delta = shape["value_heads"], shape["delta_dim"]
        others = KERNEL * (2 * shape["key_heads"] + heads) * delta + 2 * heads + delta
    else:
        others = 0 if shape["model_type"] == "llama" else 2 * dim
    return layer_matrices(shape, i, all_experts=True) + 2 * hidden + others


def facts(shape):
    """What the table needs: weights, and operations (a product and a sum are two)."""
    table = shape["vocab"] * shape["hidden"]
    layers = range(shape["layers"])
    weights = sum(layer_weights(shape, i) for i in layers) + shape["hidden"] + table * (1 if shape["tied"] else 2)
    return {
        "like": shape["like"], "layers": shape["layers"], "of_layers": shape["of"], "weights": weights,
        "decoder_flop_per_token": 2 * sum(layer_matrices(shape, i) for i in layers),
        "head_flop_per_token": 2 * table,
        # Scores and their use, over half of the row on average: 4 * width * tokens / 2.
        "attention_flop_per_token_and_length": 2 * sum(not is_delta(shape, i) for i in layers) * shape["heads"] * shape["head_dim"],
    }


def words(seed):
    """Distinct words of two to four syllables."""
    draw = random.Random(seed_of(seed, "words"))
    syllables = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]
    found = {}
    while len(found) < WORDS:
        found["".join(draw.choices(syllables, k=draw.choice([2, 2, 3, 3, 4])))] = None
    return list(found)


def tokenizer(folder, shape, vocabulary, seed):
    """Whole words with the space before them, at ids all over the vocabulary."""
    draw = random.Random(seed_of(seed, "ids"))
    eos, unknown = "<|endoftext|>", "<|unknown|>"
    ids = [i for i in draw.sample(range(shape["vocab"]), 2 * WORDS + 2) if i != shape["eos"]]
    vocab = {eos: shape["eos"], unknown: ids.pop()}
    for word in vocabulary:
        vocab[word], vocab["\u0120" + word] = ids.pop(), ids.pop()
    special = [
        {
            "id": vocab[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True,
        }
        for token in (eos, unknown)
    ]
    made = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "WordLevel", "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])), "unk_token": unknown},
    }
    settings = {
        "add_bos_token": False, "add_prefix_space": False, "clean_up_tokenization_spaces": False, "eos_token": eos, "unk_token": unknown,
        "model_max_length": shape["positions"], "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def text(draw, vocabulary, first, length):
    """`length` words; a quarter of them repeats the one before."""
    row = [first]
    while len(row) < length:
        row.append(row[-1] if draw.random() < 0.25 else vocabulary[int(draw.random() * WORDS)])
    return " ".join(row)


def write_rows(path, vocabulary, seed, count, length):
    """Lengths within a sixteenth of `length`; each row begins with another word, so that no two share a prefix."""
    assert count <= WORDS, f"{count} rows, but only {WORDS} words to begin with"
    draw = random.Random(seed_of(seed, path.name))
    firsts = draw.sample(vocabulary, count)
    spread = length // 16
    rows = [text(draw, vocabulary, first, draw.randint(length - spread, length + spread)) for first in firsts]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


def write_parity_rows(path, vocabulary, seed, longest):
    """All kinds of lengths; the last three rows share a prefix of 200 words."""
    draw = random.Random(seed_of(seed, path.name))
    lengths = [length for length in (2, 3, 17, 63, 64, 65, 129, 500, 1000, 3001) if length <= longest]
    firsts = draw.sample(vocabulary, len(lengths) + 1)
    rows = [text(draw, vocabulary, first, length) for first, length in zip(firsts, lengths)]
    prefix = text(draw, vocabulary, firsts[-1], 200)
    rows += [f"{prefix} {text(draw, vocabulary, draw.choice(vocabulary), length)}" for length in (1, 90, 211)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=DEFAULT)
    parser.add_argument("--layers-8b", type=int, default=6)
    parser.add_argument("--rows-512", type=int, default=1024)
    parser.add_argument("--rows-4096", type=int, default=128)
    parser.add_argument("--parity-longest", type=int, default=3001)
    parser.add_argument("--tiny", action="store_true", help="the same kinds of model with a few thousand weights a layer")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.out.mkdir(parents=True, exist_ok=True)
    vocabulary = words(arguments.seed)
    write_rows(arguments.out / "rows-512.jsonl", vocabulary, arguments.seed, arguments.rows_512, 512)
    write_rows(arguments.out / "rows-4096.jsonl", vocabulary, arguments.seed, arguments.rows_4096, 4096)
    write_parity_rows(arguments.out / "rows-parity.jsonl", vocabulary, arguments.seed, arguments.parity_longest)
    sizes = {}
    for name in arguments.models:
        began = time.perf_counter()
        shape = dict(SHAPES[name])
        if name == "8b":
            shape["layers"] = arguments.layers_8b
        if arguments.tiny:
            shape |= TINY[name]
        folder = arguments.out / name
        Weights(name, shape, arguments.seed, device).save(folder)
        tokenizer(folder, shape, vocabulary, arguments.seed)
        sizes[name] = facts(shape)
        print(f"{name}: {sizes[name]['weights'] / 1e6:.1f} M weights, {shape['layers']} layers, {shape['dtype']}, "
              f"{time.perf_counter() - began:.1f} s", flush=True)
    (arguments.out / "models.json").write_text(json.dumps(sizes, indent=2) + "\n")
    print(f"seed {arguments.seed}, {device}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
