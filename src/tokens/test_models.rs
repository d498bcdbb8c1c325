//! A vocabulary small enough to read, and chat templates in the styles of the model families, for the tests of this module.

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

/// Byte-level BPE: the special tokens, the 256 bytes, and a few merges. `<s>` is the beginning token, `</s>` the end token.
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
    // In the order of their scores, followed by the characters.
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

/// SmolLM2's behaviour: a default system prompt, inserted unless the first message is one.
pub(super) const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// ChatML without support for `add_generation_prompt`.
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

/// Qwen3: reasoning is kept only after the last question, and the last answer always has a think block.
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

/// Qwen 3.5: the generation prompt opens a think block, which only the answers after the last question have.
pub(super) const QWEN35: &str = "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}\
{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}\
{% set said = m.content.split('</think>')[-1] | trim %}{% set thought = m.reasoning_content if m.reasoning_content is string else \
(m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content else '') %}{% if loop.index0 > ns.last %}\
{{ '<|im_start|>assistant\n<think>\n' }}{% generation %}{{ thought | trim + '\n</think>\n\n' + said }}{% for c in m.tool_calls or [] %}\
{{ '\n<tool_call>' + c.function.name + '</tool_call>' }}{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}{% else %}\
{{ '<|im_start|>assistant\n' }}{% generation %}{{ said }}{% for c in m.tool_calls or [] %}\
{{ '\n<tool_call>' + c.function.name + '</tool_call>' }}{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}{% endif %}{{ '\n' }}\
{% elif m.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>' + m.content + '</tool_response><|im_end|>\n' }}\
{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}";

/// gpt-oss: only the last answer has its reasoning, and it ends differently than earlier ones and than calls. A result needs its call.
pub(super) const GPT_OSS: &str = "{{ '<|start_header_id|>system<|end_header_id|>Be kind<|end|>' }}{% for m in messages %}\
{% if m.role == 'assistant' %}{{ '<|start_header_id|>assistant' }}{% generation %}\
{% if m.tool_calls %}{% set ns = namespace(final=false) %}{% for later in messages[loop.index:] %}\
{% if later.role == 'assistant' and not later.tool_calls %}{% set ns.final = true %}{% endif %}{% endfor %}\
{% set thought = m.content or m.thinking %}{% if thought and not ns.final %}\
{{ ' thinks<|end_header_id|>' + thought + '<|end|><|start_header_id|>assistant' }}{% endif %}\
{{ ' to=' + m.tool_calls[0].function.name + '<|end_header_id|>{}<|eot_id|>' }}\
{% elif loop.last and not add_generation_prompt %}{% if m.thinking %}\
{{ ' thinks<|end_header_id|>' + m.thinking + '<|end|><|start_header_id|>assistant' }}{% endif %}\
{{ ' says<|end_header_id|>' + m.content + '</s>' }}{% else %}{{ ' says<|end_header_id|>' + m.content + '<|end|>' }}{% endif %}\
{% endgeneration %}{% else %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}{{ raise_exception('no call') }}{% endif %}\
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant' }}{% endif %}";

/// GLM 4.5: a turn ends only where the next begins; every answer has a think block, which is non-empty only after the last question.
pub(super) const GLM45: &str = "{{ '<bos>' }}{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}\
{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>' }}\
{% set said = m.content.split('</think>')[-1] | trim %}{% set thought = m.reasoning_content if m.reasoning_content is string else \
(m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content else '') %}{% generation %}\
{{ '\n<think>' + (thought | trim if loop.index0 > ns.last else '') + '</think>' }}{% if said %}{{ '\n' + said }}{% endif %}\
{% for c in m.tool_calls or [] %}{{ '\n<tool_call>' + c.function.name + '\n</tool_call>' }}{% endfor %}{% endgeneration %}\
{% elif m.role == 'tool' %}{{ '<|end|>\n' + m.content }}{% else %}{{ '<|user|>' + m.role + '\n' + m.content }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// DeepSeek-R1: the generation prompt opens a think block, which no earlier answer shows.
pub(super) const THINK_PROMPT: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
{{ '<|assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}{% else %}{{ '<|user|>' + m.content }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}";

/// Mistral: turns must alternate; the answer follows `[/INST]` after a space, and ends with the end token.
pub(super) const MISTRAL: &str = "{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}";

/// Mistral v0.3 puts the system prompt before the last question, so that a prefix of the conversation is rendered differently.
pub(super) const MISTRAL_SYSTEM: &str = "{{ bos_token }}{% if messages[0].role == 'system' %}{% set lead = messages[0].content %}{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}{% for m in turns %}{% if m.role == 'user' %}{{ '[INST] ' + (lead + '\\n\\n' if lead is defined and loop.last else '') + m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}";

/// Gemma: the assistant is called model, contents are trimmed, and a system message is refused.
pub(super) const GEMMA: &str = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}\
{% endif %}{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}\
{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

/// A template that marks its answers by tags.
pub(super) const GENERATION: &str = "{% for message in messages %}\n{{- '<|' + message.role + '|>' }}\n{%- if message.role == 'assistant' %}\n\
{%- generation %}{{ message.content + '<|end|>' }}{% endgeneration %}\n{%- else %}{{ message.content + '<|end|>' }}{%- endif %}\n\
{{- '\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}";

/// Removes the tags that mark a template's answers.
pub(super) fn untagged(source: &str) -> String {
    ["{% generation %}", "{%- generation %}", "{% endgeneration %}"]
        .iter()
        .fold(source.to_owned(), |source, tag| source.replace(tag, ""))
}

/// Returns the templates here without tags, by name, each with an equivalent that marks its answers by tags.
pub(super) fn tagged_twins() -> Vec<(&'static str, String, String)> {
    let twin = |name: &'static str, source: &str, cut: &str, twin: &str| {
        assert_eq!(source.matches(cut).count(), 1, "{name}");
        (name, source.to_owned(), source.replace(cut, twin))
    };
    let own = |name: &'static str, source: &str| (name, untagged(source), source.to_owned());
    vec![
        twin(
            "ChatML",
            CHATML,
            "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
            "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}\
             {{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}",
        ),
        twin(
            "unprompted",
            UNPROMPTED,
            "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}",
            "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}\
             {% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}",
        ),
        twin(
            "Llama 3",
            LLAMA3,
            "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}",
            "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}{% if message['role'] == 'assistant' %}{% generation %}\
             {{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}",
        ),
        twin(
            "Qwen 2.5",
            QWEN2,
            &QWEN2[QWEN2.find("    {%- if message.role == 'assistant' and").unwrap()
                ..QWEN2.find("    {%- elif message.role == 'tool'").unwrap()],
            r#"    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}{% generation %}{{- message.content }}
        {%- for tool_call in message.tool_calls or [] %}
            {{- '' if loop.first and not message.content else '\n' }}{{- '<tool_call>\n{"name": "' }}{{- tool_call.function.name }}{{- '", "arguments": ' }}
            {{- tool_call.function.arguments | tojson }}{{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}{% endgeneration %}{{- '\n' }}
"#,
        ),
        twin(
            "Qwen 3",
            QWEN3,
            &QWEN3[QWEN3.find("        {%- if loop.index0 > ns.last").unwrap()
                ..QWEN3.find("    {%- else %}\n        {{- '<|im_start|>' + message.role").unwrap()],
            r#"        {{- '<|im_start|>assistant\n' }}{% generation %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {{- '<|im_end|>' }}{% endgeneration %}{{- '\n' }}
"#,
        ),
        own("Qwen 3.5", QWEN35),
        own("gpt-oss", GPT_OSS),
        own("GLM 4.5", GLM45),
        twin(
            "DeepSeek-R1",
            THINK_PROMPT,
            "{{ '<|assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}",
            "{{ '<|assistant|>' }}{% generation %}{{ m.content.split('</think>')[-1] + '<|end|>' }}{% endgeneration %}",
        ),
        twin(
            "Mistral",
            MISTRAL,
            "{{ ' ' + message['content'] + eos_token }}",
            "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}",
        ),
        twin(
            "Mistral's system",
            MISTRAL_SYSTEM,
            "{{ ' ' + m.content + eos_token }}",
            "{% if m.role == 'assistant' %}{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}{% else %}\
             {{ ' ' + m.content + eos_token }}{% endif %}",
        ),
        twin(
            "Gemma",
            GEMMA,
            "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}",
            "{{ '<start_of_turn>' + role + '\n' }}{% if role == 'model' %}{% generation %}{{ message['content'] | trim + '<end_of_turn>' }}\
             {% endgeneration %}{% else %}{{ message['content'] | trim + '<end_of_turn>' }}{% endif %}{{ '\n' }}",
        ),
        own("marked", GENERATION),
    ]
}
