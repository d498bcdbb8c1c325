#!/usr/bin/env python3
"""Chat templates in the wild: the text of a handful of conversations, ours against Transformers', template by template.

    pip install transformers
    python tests/peers/templates.py target/release/diagnose TEMPLATES [--show N] [--only NAME]

TEMPLATES is a folder of .jinja files, collected from public packages and repositories: none of their text is kept here. Each is
tried with a tokenizer of single bytes whose special tokens are those that the template spells, so that the pieces of
`diagnose check --json` are the rendered text to the byte. Per template and conversation the outcome is one of

    same       the texts are equal, and where prefixes show where an answer begins, what is learnt begins there
    refused    ours says why it cannot be used; so does Transformers in `both refuse`
    lenient    ours renders what Transformers refuses
    as parts   the template knows contents as parts only, and the text is what Transformers makes of the row in that form, as TRL gives it
    named      another text, and the audit says so: a role that the template does not know; parts that it does not know, whose text is
               what Transformers makes of them joined
    OTHER      another text, without a word

A template counts by its worst outcome. The exit code is 1 if one is OTHER.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BIG = 123456789012345678901234567890
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather of a <city> & \"more\", it's 'said'", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "description": "Größe, 東京 😀"},
                                         "unit": {"type": ["string", "null"], "enum": ["C", "F"], "default": None},
                                         "days": {"type": "integer", "default": 3, "maximum": 1e16, "minimum": 0.5}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": {
        "type": "object", "properties": {"xs": {"type": "array", "items": {"type": "number"}}, "exact": {"type": "boolean", "default": True},
                                         "how": {"type": "object", "properties": {"a": {"type": "string"}}},
                                         "rest": {"type": "array"}, "items": {"type": "string", "enum": ["keys", 1.5]}, "get": {"type": "integer"}}, "required": ["xs", "exact"]},
        "return": {"type": "number"}}},
]


def user(text): return {"role": "user", "content": text}
def said(text, **more): return {"role": "assistant", "content": text, **more}
def call(name, arguments, id="call00001"): return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
def result(text, **more): return {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": text, **more}


ODD = {"xs": [1, 2.0, -0.5, 1e22, 1e-7, BIG, True, None], "exact": False, "how": {"a": "it's \"x\"\n<b>&é", "b": [], "c": {}}}
ROWS = {
    "plain": {"messages": [user("What is 2 + 3?"), said("Five.")]},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, user("Tea?"), said("Yes."), user("Warm?"), said("Warm, please.")]},
    "odd text": {"messages": [user("  {{ x }} {% y %} 'a' \"b\" <c> & é 東京 😀 \\n\n\n "), said("\n I say:\n```\n{% raw %}\n``` \n"), user("\t"), said("None True 1.0")]},
    "thought": {"messages": [user("Tea?"), said("Yes.", reasoning_content="It is cold."), user("Warm?"), said("Warm.", reasoning_content="\nHm.\nStill.\n")]},
    "thought inside": {"messages": [user("Tea?"), said("<think>\nIt is cold.\n</think>\n\nYes."), user("Warm?"), said("<think>\nHm.\n</think>\n\nWarm.")]},
    "tools": {"tools": TOOLS, "messages": [user("Oslo?"), said("", tool_calls=[call("get_weather", {"city": "Oslo", "unit": None})]), result("warm"), said("It is warm.")]},
    "tools unused": {"tools": TOOLS, "messages": [{"role": "system", "content": "Be brief."}, user("Tea?"), said("Yes.")]},
    "null content": {"tools": TOOLS, "messages": [user("Oslo?"), said(None, tool_calls=[call("get_weather", {"city": "Oslo"})]), result('{"t": 21.5}'), said("It is warm.")]},
    "text arguments": {"tools": TOOLS, "messages": [user("Oslo?"), said("", tool_calls=[call("get_weather", '{"city":"Oslo",  "n":1.0}')]), result("warm"), said("It is warm.")]},
    "odd arguments": {"tools": TOOLS, "messages": [user("Sum?"), said("I add.", tool_calls=[call("add", ODD)]), result("5"), said("Five.")]},
    "two calls": {"tools": TOOLS, "messages": [user("Both?"), said("", tool_calls=[call("get_weather", {"city": "Oslo"}), call("add", {"xs": [1, 2], "exact": True}, "call00002")]),
                  result("warm"), result("3", tool_call_id="call00002", name="add"), said("Warm, and three."), user("Thanks."), said("Welcome.")]},
    "thought and call": {"tools": TOOLS, "messages": [user("Oslo?"), said("I ask.", reasoning_content="A tool.", tool_calls=[call("get_weather", {"city": "Oslo"})]), result("warm"), said("It is warm.", reasoning_content="Done.")]},
    "no arguments": {"tools": TOOLS, "messages": [user("Time?"), said("", tool_calls=[call("now", {})]), result("9:00"), said("Nine.")]},
    "tool object": {"tools": TOOLS, "messages": [user("Oslo?"), said("", tool_calls=[call("get_weather", {"city": "Oslo"})]), result({"t": 21.5, "ok": True, "n": [BIG, None, 1e16]}), said("Warm.")]},
    "tool list": {"tools": TOOLS, "messages": [user("Oslo?"), said("", tool_calls=[call("get_weather", {"city": "Oslo"})]), result([1, "a"]), said("Warm.")]},
    "switches": {"chat_template_kwargs": {"enable_thinking": False, "thinking": False, "reasoning_effort": "low", "custom": 1}, "messages": [user("Tea?"), said("Yes.")]},
    "thinking on": {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}, "messages": [user("Tea?"), said("Yes.", reasoning_content="Cold.")]},
    "further keys": {"messages": [user("Tea?"), said("Yes.", tool_plan="I plan.", channel="final", prefix=False, recipient="all", citations=[])]},
    "assistant first": {"messages": [said("Hello."), user("Tea?"), said("Yes.")]},
    "two users": {"messages": [user("Tea?"), user("Or milk?"), said("Tea."), said("Or milk.")]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, user("Tea?"), said("Yes.")]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Which "}, {"type": "text", "text": "train?"}]}, {"role": "assistant", "content": [{"type": "text", "text": "At nine."}]}]},
}
SPELT = re.compile(r"<[｜|]?[A-Za-z_/][^<>\s'\"{}%]{0,60}>|<\|[^<>'\"{}%]{1,40}\|>|<｜[^<>'\"{}%]{1,40}｜>|\[/?[A-Z_]{2,}\]")


def tokenizer_of(template):
    """A token for every byte, and those that the template spells."""
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    marks = sorted(set(SPELT.findall(template)) - {"<s>", "</s>", "<pad>", "<unk>"} - {m for m in SPELT.findall(template) if m in ("<think>", "</think>")})
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
                                   additional_special_tokens=marks, clean_up_tokenization_spaces=False)


def theirs(tok, row):
    tools, switches = row.get("tools"), row.get("chat_template_kwargs", {})
    def text(messages, **more):
        return tok.apply_chat_template(messages, tools=tools, tokenize=False, **more, **switches)
    try:
        whole = text(row["messages"])
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    # Tags say otherwise where an answer begins, and a template without a generation prompt does not say it.
    begins, end = [], None
    if "endgeneration" in tok.chat_template:
        return whole, begins
    for i, message in enumerate(row["messages"]):
        if message["role"] == "assistant" and i:
            try:
                bare, before, after = text(row["messages"][:i]), text(row["messages"][:i], add_generation_prompt=True), text(row["messages"][: i + 1])
            except Exception:
                continue
            if before != bare and before.startswith(bare) and after[len(before):].strip() and whole.startswith(before) and whole.startswith(after):
                begins.append((len(before), len(before) == end))
            end = len(after)
    return whole, begins


def ours(program, folder, row, name):
    file = folder / "row.jsonl"
    file.write_text(json.dumps(row, ensure_ascii=False) + "\n")
    done = subprocess.run([program, "check", str(file), "--model", str(folder), "--json", "--show", "1", "--max-len", "10000000", "--format", "messages"],
                          capture_output=True, text=True, env={**os.environ, "RAYON_NUM_THREADS": "1"})
    if done.returncode != 0:
        return None, done.stderr.strip(), []
    found = json.loads(done.stdout)
    odd = [f["name"] for f in found["audit"]["findings"] if f["rows"]]
    if not found["shown"]:
        return None, found["audit"]["findings"][-1]["examples"][0], odd
    pieces = found["shown"][0]["pieces"]
    learnt = [piece["supervised"] for piece in pieces for _ in piece["text"]]
    return "".join(piece["text"] for piece in pieces), learnt, odd


def in_form(row, form):
    """The row with its contents as parts, or with those of answers, of others or of all joined to one text."""
    def content(message):
        value = message["content"]
        if form == "parts" and isinstance(value, str):
            return [{"type": "text", "text": value}]
        is_joined = form == "joined" or (form == "joined answers") == (message["role"] == "assistant")
        if form != "parts" and is_joined and isinstance(value, list):
            return "".join(part["text"] for part in value)
        return value
    return {**row, "messages": [{**message, "content": content(message)} for message in row["messages"]]}


def kind_of_difference(tok, row, expected, found, odd):
    if "renamed_roles" in odd:
        return "named"
    if "joined_parts" in odd:
        forms = ["joined", "joined answers", "joined others"]
        return "named" if any(found == theirs(tok, in_form(row, form))[0] for form in forms) else "OTHER"
    texts = [message["content"] for message in row["messages"] if isinstance(message["content"], str) and message["content"].strip()]
    is_lost = not any(text.strip() in expected for text in texts)
    return "as parts" if is_lost and found == theirs(tok, in_form(row, "parts"))[0] else "OTHER"


def survey(program, path):
    template = path.read_text()
    outcomes = {}
    tok = tokenizer_of(template)
    tok.chat_template = template
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tok.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": len(tok), "hidden_size": 8,
            "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "eos_token_id": tok.eos_token_id, "bos_token_id": tok.bos_token_id}))
        for name, row in ROWS.items():
            expected, begins = theirs(tok, row)
            found, learnt, odd = ours(program, folder, row, name)
            if expected is None:
                outcomes[name] = ("both refuse", begins, learnt, odd) if found is None else ("lenient", begins, found, odd)
            elif found is None:
                outcomes[name] = ("refused", learnt, expected, odd)
            elif found != expected:
                outcomes[name] = (kind_of_difference(tok, row, expected, found, odd), expected, found, odd)
            else:
                wrong = [at for at, follows in begins if not learnt[at] or (at and learnt[at - 1] and not follows)]
                outcomes[name] = ("OTHER", f"answers begin at {wrong} of {expected!r}", f"{[i for i, is_learnt in enumerate(learnt) if is_learnt]}", odd) if wrong else ("same", "", "", odd)
    return path, outcomes


def main():
    args = argparse.ArgumentParser()
    args.add_argument("program"), args.add_argument("templates", type=Path)
    args.add_argument("--show", type=int, default=0), args.add_argument("--only", default=""), args.add_argument("--kind", default="OTHER")
    args = args.parse_args()
    paths = sorted(path for path in args.templates.glob("*.jinja") if args.only in path.name)
    order = ["same", "both refuse", "as parts", "named", "lenient", "refused", "OTHER"]
    worst, each, n_shown = collections.Counter(), collections.defaultdict(collections.Counter), 0
    reasons = collections.Counter()
    with ThreadPoolExecutor(2) as pool:
        for path, outcomes in pool.map(lambda path: survey(args.program, path), paths):
            if all(outcome[0] == "both refuse" for outcome in outcomes.values()):
                worst["no template"] += 1
                continue
            worst[max((outcome[0] for outcome in outcomes.values()), key=order.index)] += 1
            for name, (kind, expected, found, odd) in outcomes.items():
                each[name][kind] += 1
                if kind == "refused":
                    reasons[re.sub(r"\d+", "N", expected[expected.find(": ") + 2:])[:160]] += 1
                if kind == args.kind and n_shown < args.show:
                    n_shown += 1
                    print(f"--- {path.name}: {name} {odd}\n  theirs {expected!r}\n  ours   {found!r}")
    print(f"{sum(worst.values())} texts:", dict(worst))
    for name, counts in each.items():
        print(f"  {name:18}", dict(counts))
    for reason, n in reasons.most_common(25):
        print(f"  refused {n}: {reason}")
    sys.exit(worst["OTHER"] > 0)


main()
