//! A vocabulary small enough to read, and chat templates in the styles of the families, for the tests of this room.

use std::sync::Arc;

use minijinja::Value;

use super::tokenizer::byte_of_char;
use super::{GgufVocabulary, Tokenizer};
use crate::dataset::{Example, Role, Turn};

pub(super) const SPECIALS: [&str; 16] = [
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "[INST]",
    "[/INST]",
    "<start_of_turn>",
    "<end_of_turn>",
    "<bos>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
];

/// Byte-level BPE: the special tokens, the 256 bytes, and a handful of merges. `<s>` is the beginning token, `</s>` the end token.
pub(super) fn byte_vocabulary() -> GgufVocabulary {
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ t", "Ġt he", "Ċ Ċ", ". Ċ", "Ġ Ġ", "ä ½", "ä½ ł", "1 2"];
    let mut tokens: Vec<String> = SPECIALS.map(String::from).to_vec();
    let mut token_types = vec![3; tokens.len()];
    tokens.push("<tool_call>".into());
    token_types.push(4);
    let chars = byte_of_char().into_iter().enumerate().filter(|(_, byte)| byte.is_some());
    tokens.extend(chars.filter_map(|(c, _)| Some(char::from_u32(c as u32)?.to_string())));
    tokens.extend(merges.map(|merge| merge.replace(' ', "")));
    token_types.resize(tokens.len(), 1);
    GgufVocabulary {
        model: "gpt2".into(),
        pre: Some("smollm".into()),
        tokens,
        token_types,
        merges: merges.map(String::from).to_vec(),
        bos: Some(2),
        eos: Some(3),
        ..GgufVocabulary::default()
    }
}

/// SentencePiece BPE by scores, with byte fallback and a prefix space.
pub(super) fn sentence_vocabulary() -> GgufVocabulary {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    let mut token_types = vec![2, 3, 3];
    tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    token_types.resize(tokens.len(), 6);
    // In the order of their scores; then the characters.
    let pieces = ["he", "ll", "hell", "hello", "▁t", "▁the", "▁hello", "[INST", "▁[INST"];
    tokens.extend(pieces.map(String::from));
    tokens.extend(["▁", "h", "e", "l", "o", "t", "[", "/", "]", "I", "N", "S", "T", "IN", "ST", "INST"].map(String::from));
    token_types.resize(tokens.len(), 1);
    GgufVocabulary {
        model: "llama".into(),
        scores: (0..tokens.len()).map(|id| -(id as f32)).collect(),
        tokens,
        token_types,
        bos: Some(1),
        eos: Some(2),
        ..GgufVocabulary::default()
    }
}

pub(super) fn byte_tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_gguf(byte_vocabulary()).unwrap())
}

pub(super) fn message(role: &str, content: &str) -> Value {
    minijinja::context! { role => role, content => content }
}

pub(super) fn turn(role: Role, content: &str) -> Turn {
    Turn::plain(role, content)
}

pub(super) fn user(content: &str) -> Turn {
    turn(Role::User, content)
}

pub(super) fn assistant(content: &str) -> Turn {
    turn(Role::Assistant, content)
}

pub(super) fn example(turns: Vec<Turn>) -> Example {
    Example { source: "test".into(), turns, ..Example::default() }
}

/// SmolLM2's habits: a system prompt of its own, injected unless the first message is one.
pub(super) const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// ChatML that does not look at `add_generation_prompt`.
pub(super) const UNPROMPTED: &str =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}";

/// Llama 3: beginning token, trimmed contents, a date.
pub(super) const LLAMA3: &str = "{{ bos_token }}{% for message in messages %}\n\
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}\n\
{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}";

/// Qwen2.5: tools as JSON lines, tool calls after the content, tool results inside a user's turn.
pub(super) const QWEN2: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\nTools:' }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"#;

/// Qwen3: reasoning is kept after the last question only, and the last answer always has a think block.
pub(super) const QWEN3: &str = r#"{%- set ns = namespace(last=0) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"#;

/// DeepSeek-R1: the generation prompt opens a think block, which no earlier answer shows.
pub(super) const THINK_PROMPT: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
{{ '<|assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}{% else %}{{ '<|user|>' + m.content }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}";

/// Mistral: turns must alternate, the answer follows `[/INST]` after a space, and ends with the end token.
pub(super) const MISTRAL: &str = "{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}";

/// Gemma: the assistant is called model, contents are trimmed, a system message is refused.
pub(super) const GEMMA: &str = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}\
{% endif %}{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}\
{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

/// A template that marks the answers itself.
pub(super) const GENERATION: &str = "{% for message in messages %}\n{{- '<|' + message.role + '|>' }}\n{%- if message.role == 'assistant' %}\n\
{%- generation %}{{ message.content + '<|end|>' }}{% endgeneration %}\n{%- else %}{{ message.content + '<|end|>' }}{%- endif %}\n\
{{- '\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}";
