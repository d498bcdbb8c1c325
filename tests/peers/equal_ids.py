#!/usr/bin/env python3
"""Equal text, equal ids: the ids and the mask of real rows, ours against Transformers', for every template of a folder of models.

    pip install transformers
    python tests/peers/equal_ids.py target/release/diagnose MODELS DATA [--rows 2000]

MODELS holds model folders (their weights may be missing), DATA is a folder of rows in any format. `diagnose check --json` gives the text, the
ids and the mask. Against Transformers, which reads the same conversations (messages and tools as given here):

    text   apply_chat_template of the whole conversation
    ids    the text tokenised in pieces that are cut where an answer begins and ends
    mask   an answer begins where the rendering of what stands before it with the generation prompt ends, and ends where the rendering with
           it ends, less what follows the end of the turn; where these are no prefixes of the whole, only text and ids are compared

The tokenizer is the one of tokenizer.json: AutoTokenizer (5.x) takes the class of config.json's model_type, whose own pre-tokenizer replaces the
one of the file, so that a folder that was put together by hand is tokenised otherwise than it says.

And among our own rows alone: equal texts have equal ids. The rows are messages rows of DATA and rows made of its pairs.
"""

import argparse
import collections
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerFast


def read(path):
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]
    for row in rows:
        if isinstance(row.get("messages"), list):
            messages = [{key: value for key, value in message.items() if value is not None} for message in row["messages"]]
            if all(isinstance(message.get("content", ""), str) and set(message) <= {"role", "content", "tool_calls", "tool_call_id", "name"} for message in messages):
                yield {"messages": messages, **({"tools": row["tools"]} if isinstance(row.get("tools"), list) and row["tools"] else {})}
        elif "instruction" in row and isinstance(row.get("output"), str):
            asked = "\n".join(filter(None, [row["instruction"], row.get("input")]))
            yield {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]}
        elif "question" in row and isinstance(row.get("answer"), str):
            yield {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]}
        elif isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
            yield {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}


def compare(tok, row, shown, counts):
    ids = [i for piece in shown["pieces"] for i in piece["ids"]]
    mask = [piece["supervised"] for piece in shown["pieces"] for _ in piece["ids"]]
    messages, tools = row["messages"], row.get("tools")
    render = lambda messages, **more: tok.apply_chat_template(messages, tools=tools, tokenize=False, **more)
    try:
        text = render(messages)
    except Exception:
        counts["Transformers refuses"] += 1
        return
    if tok.decode(ids) != text:
        counts["OTHER TEXT"] += 1
        return text
    # Where an answer begins and ends by the renderings of prefixes.
    cuts, known = [], True
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            before = render(messages[:i], add_generation_prompt=True) if i else None
            after = render(messages[: i + 1])
        except Exception:
            before = after = None
        if before is None or not (text.startswith(before) and text.startswith(after) and len(before) < len(after)):
            known = False
            break
        cuts.append((len(before), len(before) + len(after[len(before):].rstrip())))
    if not known:
        counts["text"] += 1
        return
    expected, expected_mask, at = [], [], 0
    for begin, end in cuts + [(len(text), len(text))]:
        for piece, learnt in ((text[at:begin], False), (text[begin:end], True)):
            found = tok.encode(piece, add_special_tokens=False)
            expected += found
            expected_mask += [learnt] * len(found)
        at = end
    if ids != expected:
        counts["OTHER IDS"] += 1
        return text
    if mask != expected_mask:
        counts["OTHER MASK"] += 1
        return text
    counts["ids and mask"] += 1


def main():
    args = argparse.ArgumentParser()
    args.add_argument("program"), args.add_argument("models", type=Path), args.add_argument("data", type=Path)
    args.add_argument("--rows", type=int, default=2000), args.add_argument("--show", type=int, default=3)
    args = args.parse_args()
    files = sorted(path for path in args.data.rglob("*") if path.suffix in (".json", ".jsonl"))
    each = [list(read(path)) for path in files]
    # As many of each file as there are, up to an equal share.
    each = [rows for rows in each if rows]
    rows, share = [], args.rows
    while sum(min(len(some), share) for some in each) > args.rows:
        share -= 1
    for some in each:
        rows += some[:share]
    worst = 0
    for folder in sorted(path for path in args.models.iterdir() if (path / "tokenizer.json").is_file()):
        tok = PreTrainedTokenizerFast.from_pretrained(folder)
        counts, by_text, n_equal = collections.Counter(), {}, 0
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            done = subprocess.run([args.program, "check", file.name, "--model", str(folder), "--json", "--format", "messages", "--show", str(len(rows)), "--max-len", "10000000"],
                                  capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout)
        for shown in found["shown"]:
            row = rows[int(shown["place"].rsplit(":", 1)[1]) - 1]
            odd = compare(tok, row, shown, counts)
            if odd is not None and args.show > 0:
                args.show -= 1
                print(f"--- {folder.name}: {json.dumps(row, ensure_ascii=False)[:600]}\n  theirs {odd[:600]!r}\n  ours   {[(p['text'], p['supervised']) for p in shown['pieces']]!r}"[:2500])
            text = "".join(piece["text"] for piece in shown["pieces"])
            ids = [i for piece in shown["pieces"] for i in piece["ids"]]
            if text in by_text:
                n_equal += 1
                counts["EQUAL TEXT, OTHER IDS"] += by_text[text] != ids
            by_text.setdefault(text, ids)
        refused = found["audit"]["findings"][-1]
        counts["we refuse"] = refused["rows"]
        worst += sum(n for name, n in counts.items() if name.isupper() or "OTHER" in name)
        print(f"{folder.name}: {len(rows)} rows, {dict((k, v) for k, v in counts.items() if v)}, {n_equal} texts again", refused["examples"][:1])
    sys.exit(worst > 0)


main()
