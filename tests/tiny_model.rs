//! Creates a random Llama with a few thousand weights and a byte vocabulary, for whole runs in milliseconds without a download.

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

const WIDTH: usize = 24;
const INNER: usize = 40;
const HEADS: usize = 3;
const KV_HEADS: usize = 1;
const LAYERS: usize = 2;

/// ChatML without a default system prompt.
pub(crate) const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A template that prints reasoning and calls, as those of Qwen 3 and Hermes do.
pub(crate) const THINKS_AND_CALLS: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}\
{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}\
{{ '\n<tool_call>\n' + (c.function | tojson) + '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Writes `tiny.gguf` into `folder`. Always the same weights.
pub(crate) fn write(folder: &Path) -> PathBuf {
    write_noised(&folder.join("tiny.gguf"), 0.0)
}

/// The model with noise of a standard deviation of about `noise` in its weights, always the same.
pub(crate) fn write_noised(path: &Path, noise: f32) -> PathBuf {
    let tokens = vocabulary();
    let metadata = metadata(&tokens);
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors = tensors(tokens.len(), noise);
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = std::fs::File::create(path).unwrap();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    path.to_owned()
}

/// The model in two parts, as llama.cpp's llama-gguf-split cuts it.
pub(crate) fn write_split(folder: &Path) -> [PathBuf; 2] {
    let tokens = vocabulary();
    let tensors = tensors(tokens.len(), 0.0);
    let (first, second) = tensors.split_at(tensors.len() / 2);
    [(0, first), (1, second)].map(|(number, part)| {
        let mut metadata = if number == 0 { metadata(&tokens) } else { Vec::new() };
        metadata.extend([("split.no", Value::U16(number)), ("split.count", Value::U16(2))]);
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
        let part: Vec<(&str, &QTensor)> = part.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let path = folder.join(format!("tiny-{:05}-of-00002.gguf", number + 1));
        gguf_file::write(&mut std::fs::File::create(&path).unwrap(), &metadata, &part).unwrap();
        path
    })
}

/// GPT-2's letters for the 256 bytes, the special tokens, and what the two merges make.
fn vocabulary() -> Vec<String> {
    let printable = |byte: &u32| (33..=126).contains(byte) || (161..=172).contains(byte) || (174..=255).contains(byte);
    let mut next = 256;
    let letter = |byte: u32| {
        let code = if printable(&byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap().to_string()
    };
    let mut tokens: Vec<String> = (0..256).map(letter).collect();
    tokens.extend(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "ab", "Ġt"].map(str::to_owned));
    tokens
}

fn metadata(tokens: &[String]) -> Vec<(&'static str, Value)> {
    let text = |text: &str| Value::String(text.to_owned());
    let types = (0..tokens.len()).map(|id| Value::I32(if (256..259).contains(&id) { 3 } else { 1 })).collect();
    vec![
        ("general.architecture", text("llama")),
        ("llama.context_length", Value::U32(4096)),
        ("llama.embedding_length", Value::U32(WIDTH as u32)),
        ("llama.feed_forward_length", Value::U32(INNER as u32)),
        ("llama.block_count", Value::U32(LAYERS as u32)),
        ("llama.attention.head_count", Value::U32(HEADS as u32)),
        ("llama.attention.head_count_kv", Value::U32(KV_HEADS as u32)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.freq_base", Value::F32(10_000.0)),
        ("llama.rope.dimension_count", Value::U32((WIDTH / HEADS) as u32)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("smollm")),
        ("tokenizer.ggml.tokens", Value::Array(tokens.iter().map(|token| text(token)).collect())),
        ("tokenizer.ggml.token_type", Value::Array(types)),
        ("tokenizer.ggml.merges", Value::Array(vec![text("a b"), text("Ġ t")])),
        ("tokenizer.ggml.bos_token_id", Value::U32(257)),
        ("tokenizer.ggml.eos_token_id", Value::U32(258)),
        ("tokenizer.chat_template", text(TEMPLATE)),
    ]
}

fn tensors(vocabulary: usize, noise: f32) -> Vec<(String, QTensor)> {
    let head = WIDTH / HEADS;
    let mut shapes =
        vec![("token_embd.weight".to_owned(), vec![vocabulary, WIDTH]), ("output_norm.weight".to_owned(), vec![WIDTH])];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| shapes.push((format!("blk.{layer}.{name}.weight"), shape.to_vec()));
        add("attn_norm", &[WIDTH]);
        add("attn_q", &[HEADS * head, WIDTH]);
        add("attn_k", &[KV_HEADS * head, WIDTH]);
        add("attn_v", &[KV_HEADS * head, WIDTH]);
        add("attn_output", &[WIDTH, HEADS * head]);
        add("ffn_norm", &[WIDTH]);
        add("ffn_gate", &[INNER, WIDTH]);
        add("ffn_up", &[INNER, WIDTH]);
        add("ffn_down", &[WIDTH, INNER]);
    }
    let uniform = |seed: u64| {
        let mut state = seed;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
        }
    };
    let (mut random, mut other) = (uniform(0x2545_F491_4F6C_DD1D), uniform(0x9E37_79B9_7F4A_7C15));
    // A uniform number between -1/2 and 1/2 has a deviation of 1 / sqrt(12).
    let scale = noise * 12f32.sqrt();
    let mut tensor = |(name, shape): (String, Vec<usize>)| {
        let n = shape.iter().product();
        let around = if shape.len() == 1 { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..n).map(|_| around + random() + scale * other()).collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        (name, QTensor::quantize(&tensor, GgmlDType::F32).unwrap())
    };
    shapes.into_iter().map(&mut tensor).collect()
}
