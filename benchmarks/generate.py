"""How fast tokens come, beside litgpt and transformers: ``python -m benchmarks.generate``.

One set of random weights goes into all three; all continue the same prompts greedily in float32 on one thread, and
their tokens are compared. Measured is the process's CPU time of whole calls (prompts included), in turns, with the
median of several rounds:

- ``one prompt``: beside ``litgpt.generate.base.generate``, which takes one prompt at a time, and transformers;
- ``eight`` and ``32 prompts`` of different lengths: beside ``transformers.generate`` with its dynamic and its static
  cache, which pads them on the left.

litgpt asks for another torch, so it goes into a folder of its own:

    pip install --no-deps --target litgpt_site litgpt lightning lightning-utilities torchmetrics
    PYTHONPATH=litgpt_site python -m benchmarks.generate
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks.results import Row, judged, output_file
from evo_core.config import ModelConfig
from evo_core.generate.continuation import generate
from evo_core.model import Decoder, build_model, count_parameters, init_weights

NEW_TOKENS = 128
QUICK = ("--shapes", "4x256", "--new-tokens", "16", "--rounds", "1")
ONE = (64,)
EIGHT = (16, 24, 40, 64, 64, 80, 100, 128)
BATCHES = {"one prompt": ONE, "eight prompts": EIGHT, "32 prompts": EIGHT * 4}
BARS = {("litgpt", 1): {}, ("transformers", 8): {"4x256": 2.0}}
"""By peer and number of prompts: how many times faster this is to be than the peer, by shape; 1.5 for those that are
not named."""

Prompts = list[list[int]]
Run = Callable[[Prompts, int], list[list[int]]]
Rows = list[dict[str, Any]]


class Shape(NamedTuple):
    """A model's size."""

    layers: int
    hidden: int
    heads: int
    vocab: int


SHAPES = {"4x256": Shape(4, 256, 4, 4096), "8x512": Shape(8, 512, 8, 8192), "8x1024": Shape(8, 1024, 16, 8192)}


def build(shape: Shape) -> Decoder:
    """The model whose weights all share."""
    cfg = ModelConfig.model_validate(
        {
            "model_type": "LLAMA2",
            "num_layers": shape.layers,
            "hidden_size": shape.hidden,
            "num_attention_heads": shape.heads,
            "vocab_size": shape.vocab,
            "multiple_of": 64,
            "no_bias": True,
            "qk_interleaved": False,
            "dtype": "torch.float32",
        }
    )
    model = build_model(cfg)
    init_weights(model, cfg, seed=0)
    return model.eval()


def evo(model: Decoder) -> Run:
    """This repository's `generate`."""

    def run(prompts: Prompts, new: int) -> list[list[int]]:
        results = generate(model, None, prompts, max_new_tokens=new, do_sample=False, batch_size=len(prompts))
        return [result.ids for result in results]

    return run


def transformers(model: Decoder, cache: str) -> Run:
    """Its Llama with these weights.

    Args:
        cache: "dynamic" or "static".
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    cfg = model.cfg
    llama: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.hidden_size,
            intermediate_size=cfg.mlp_hidden_size,
            num_hidden_layers=cfg.num_layers,
            num_attention_heads=cfg.num_attention_heads,
            num_key_value_heads=cfg.num_kv_attention_heads,
            max_position_embeddings=cfg.max_position_embeddings,
            rms_norm_eps=cfg.layer_norm_epsilon,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    state: dict[str, torch.Tensor] = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    blocks: Any = model.blocks.values()
    for layer, block in enumerate(blocks):
        at = f"model.layers.{layer}."
        for name, linear in (("q", block.attention.q), ("k", block.attention.k), ("v", block.attention.v)):
            state[f"{at}self_attn.{name}_proj.weight"] = linear.weight
        state[f"{at}self_attn.o_proj.weight"] = block.attention.out.weight
        for name in ("gate", "up", "down"):
            state[f"{at}mlp.{name}_proj.weight"] = getattr(block.mlp, name).weight
        state[f"{at}input_layernorm.weight"] = block.attention_norm.weight
        state[f"{at}post_attention_layernorm.weight"] = block.mlp_norm.weight
    llama.load_state_dict({name: weight.detach() for name, weight in state.items()})
    llama.eval()

    def run(prompts: Prompts, new: int) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        options: dict[str, Any] = {} if cache == "dynamic" else {"cache_implementation": "static"}
        out = llama.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0, **options)
        return out[:, width:].tolist()

    return run


def litgpt(model: Decoder) -> Run:
    """Its GPT with these weights."""
    from litgpt import GPT, Config  # type: ignore[import-not-found]
    from litgpt.generate.base import generate as litgpt_generate  # type: ignore[import-not-found]

    cfg = model.cfg
    gpt = GPT(
        Config(
            block_size=cfg.max_position_embeddings,
            vocab_size=cfg.vocab_size,
            padded_vocab_size=cfg.vocab_size,
            n_layer=cfg.num_layers,
            n_head=cfg.num_attention_heads,
            n_embd=cfg.hidden_size,
            n_query_groups=cfg.num_kv_attention_heads,
            rotary_percentage=1.0,
            rope_base=int(cfg.rope_base),
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=cfg.layer_norm_epsilon,
            mlp_class_name="LLaMAMLP",
            intermediate_size=cfg.mlp_hidden_size,
        )
    )
    state: dict[str, torch.Tensor] = {
        "lm_head.weight": model.head.weight,
        "transformer.wte.weight": model.embedding.weight,
        "transformer.ln_f.weight": model.norm.weight,
    }
    blocks: Any = model.blocks.values()
    for layer, block in enumerate(blocks):
        at, attention = f"transformer.h.{layer}.", block.attention
        state[f"{at}attn.qkv.weight"] = torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])
        state[f"{at}attn.proj.weight"] = attention.out.weight
        state[f"{at}norm_1.weight"], state[f"{at}norm_2.weight"] = block.attention_norm.weight, block.mlp_norm.weight
        state[f"{at}mlp.fc_1.weight"], state[f"{at}mlp.fc_2.weight"] = block.mlp.gate.weight, block.mlp.up.weight
        state[f"{at}mlp.proj.weight"] = block.mlp.down.weight
    gpt.load_state_dict({name: weight.detach() for name, weight in state.items()})
    gpt.eval()

    def run(prompts: Prompts, new: int) -> list[list[int]]:
        results = []
        for prompt in prompts:
            total = len(prompt) + new
            with torch.inference_mode():
                gpt.max_seq_length = total
                gpt.set_kv_cache(batch_size=1)
            out = litgpt_generate(gpt, torch.tensor(prompt), total, temperature=0.0, include_prompt=False)
            results.append(out.tolist())
        return results

    return run


def contenders(model: Decoder, prompts: int) -> tuple[dict[str, Run], list[str]]:
    """Who continues so many prompts at a time, and what to install for those that are missing."""
    makers: dict[str, Callable[[], Run]] = {"evo": lambda: evo(model)}
    if prompts == 1:
        makers["litgpt"] = lambda: litgpt(model)
    makers["transformers, dynamic cache"] = lambda: transformers(model, "dynamic")
    makers["transformers, static cache"] = lambda: transformers(model, "static")
    runs, missing = {}, []
    for name, make in makers.items():
        try:
            runs[name] = make()
        except ImportError as error:
            missing.append(f"{name} is left out ({error}); how to install it: python -m benchmarks.generate --help")
    return runs, missing


def agreement(own: list[list[int]], other: list[list[int]]) -> str:
    """Whether the tokens are the same, else from which on they are not."""
    for row, (a, b) in enumerate(zip(own, other, strict=True)):
        for place, (x, y) in enumerate(zip(a, b, strict=True)):
            if x != y:
                return f"differ from token {place + 1} of prompt {row + 1}"
    return "the same"


def bar_of(peer: str, prompts: int, shape: str) -> float | None:
    """How many times faster than a peer this is to be; None where no figure is asked for."""
    of_shapes = BARS.get((peer.partition(",")[0], prompts))
    return None if of_shapes is None else of_shapes.get(shape, 1.5)


def measure(shape: str, model: Decoder, lengths: tuple[int, ...], new: int, rounds: int) -> tuple[Rows, list[str]]:
    """A row for each contender: tokens per CPU second, its bar, whether its tokens are ours."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, model.cfg.vocab_size, (n,), generator=generator).tolist() for n in lengths]
    runs, missing = contenders(model, len(prompts))
    outputs = {name: run(prompts, new) for name, run in runs.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.process_time()
            run(prompts, new)
            seconds[name].append(time.process_time() - began)
    rates = {name: len(prompts) * new / statistics.median(times) for name, times in seconds.items()}
    rows = []
    for name, rate in rates.items():
        row: dict[str, Any] = {"name": name, "tokens_per_cpu_second": rate}
        if name != "evo":
            row |= {
                "evo_is_faster": rates["evo"] / rate,
                "bar": bar_of(name, len(prompts), shape),
                "tokens": agreement(outputs["evo"], outputs[name]),
            }
        rows.append(row)
    return rows, missing


def table(rows: list[dict[str, Any]]) -> str:
    """The rows to read."""
    lines = [f"  {'':30}{'tokens/CPU s':>14}{'evo is':>10}{'bar':>7}  tokens"]
    for row in rows:
        line = f"  {row['name']:30}{row['tokens_per_cpu_second']:14,.0f}"
        if "bar" in row:
            bar = f"{row['bar']:.1f}x" if row["bar"] else "-"
            line += f"{row['evo_is_faster']:9.2f}x{bar:>7}  {row['tokens']}"
        lines.append(line)
    return "\n".join(lines)


def rows(report: dict[str, Any]) -> Iterator[Row]:
    """Of what is written: Evo beside each peer."""
    for shape, titles in report["shapes"].items():
        for title, found in titles.items():
            ours = next(row["tokens_per_cpu_second"] for row in found if row["name"] == "evo")
            for row in found:
                if row["name"] != "evo":
                    more = {"peer": row["name"], "peer_value": row["tokens_per_cpu_second"], "bar": row["bar"]}
                    note = f"tokens: {row['tokens']}"
                    yield judged("generate", f"{shape}, {title}", ours, "tokens/CPU-s", **more, note=note)


def main() -> None:
    """Measure, print tables, write JSON where asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["4x256", "8x512"])
    parser.add_argument("--batches", nargs="+", choices=BATCHES, default=list(BATCHES), metavar="TITLE")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    report: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "shapes": {},
    }
    for name in arguments.shapes:
        model = build(SHAPES[name])
        print(f"{name}: {count_parameters(model) / 1e6:.1f} M parameters, {SHAPES[name]}")
        for title in arguments.batches:
            lengths = BATCHES[title]
            rows, missing = measure(name, model, lengths, arguments.new_tokens, arguments.rounds)
            print(f" {title} of {', '.join(map(str, sorted(set(lengths))))} tokens, {arguments.new_tokens} more each")
            print("\n".join([table(rows), *(f"  {line}" for line in missing)]), flush=True)
            report["shapes"].setdefault(name, {})[title] = rows
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
