//! Reads GGUF files of Qwen 3.5 (`src/models/qwen35.cpp`, `qwen35moe.cpp` and `conversion/qwen.py` in llama.cpp).
//!
//! GGUF orders value heads by their index within a key head (`k0 v0, k1 v0, .., k0 v1, k1 v1, ..`), Transformers by key head
//! (`k0 v0, k0 v1, .., k1 v0, ..`). GGUF stores the decay as `-exp(A_log)`, and adds 1 to all norm weights but those of the rule's heads.

use candle_core::Tensor;

use super::family::Rule::{Honoured, Irrelevant, Only};
use super::family::Rules;
use super::hybrid::{INTERVAL, every_but};
use crate::error::{Error, Result};
use crate::kernels::delta::DeltaShape;
use crate::model::config::{Config, DeltaConfig};
use crate::model::files::gguf::Gguf;

pub(super) const NAMES: &[(&str, &str)] = &[
    ("post_attention_layernorm", "post_attention_norm"),
    ("linear_attn.norm", "ssm_norm"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.experts.gate_proj", "ffn_gate_exps"),
    ("mlp.experts.up_proj", "ffn_up_exps"),
    ("mlp.experts.down_proj", "ffn_down_exps"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
];

pub(super) const KEYS: Rules = &[
    ("ssm.conv_kernel", Honoured),
    ("ssm.state_size", Honoured),
    ("ssm.group_count", Honoured),
    ("ssm.time_step_rank", Honoured),
    ("ssm.inner_size", Honoured),
    ("attention.recurrent_layers", Honoured),
    // Read if the list is missing.
    ("full_attention_interval", Honoured),
    ("nextn_predict_layers", Honoured),
    // Concerns three-part positions, which are a single number for text.
    ("rope.dimension_sections", Irrelevant),
];

pub(super) const KEYS_WITH_EXPERTS: Rules = &[
    ("expert_count", Honoured),
    ("expert_used_count", Honoured),
    ("expert_feed_forward_length", Honoured),
    ("expert_shared_feed_forward_length", Honoured),
    ("expert_gating_func", Only(&["1"])),
    ("expert_weights_scale", Only(&["1"])),
    ("expert_weights_norm", Only(&["true"])),
    ("ssm.conv_kernel", Honoured),
    ("ssm.state_size", Honoured),
    ("ssm.group_count", Honoured),
    ("ssm.time_step_rank", Honoured),
    ("ssm.inner_size", Honoured),
    ("attention.recurrent_layers", Honoured),
    // Read if the list is missing.
    ("full_attention_interval", Honoured),
    ("nextn_predict_layers", Honoured),
    // Concerns three-part positions, which are a single number for text.
    ("rope.dimension_sections", Irrelevant),
];

pub(super) fn configure(config: &mut Config, file: &Gguf) -> Result<()> {
    // The file's block count and its list of layer kinds include the extra layers.
    let (blocks, further) = (config.layers, file.arch_count("nextn_predict_layers")?.unwrap_or(0));
    let key = format!("{}.nextn_predict_layers", file.architecture()?);
    let layers = blocks
        .checked_sub(further)
        .filter(|&layers| layers > 0)
        .ok_or_else(|| Error::new(format!("`{key}` is {further} of {blocks} blocks: no language model is left")))?;
    config.further_layers = further;
    config.set_layers(layers);
    config.attention_gates = true;
    config.qkv_bias = (0..layers).any(|layer| file.holds(&format!("blk.{layer}.attn_q.bias")));
    config.output_bias = config.qkv_bias;
    let kinds = file.arch_flags("attention.recurrent_layers")?;
    let kinds = match kinds.len() {
        0 => every_but(file.arch_count("full_attention_interval")?.unwrap_or(INTERVAL), layers)?,
        n if n == blocks => kinds[..layers].to_vec(),
        n => return Err(Error::new(format!("`attention.recurrent_layers` lists {n} blocks; expected {blocks}"))),
    };
    config.delta = Some(DeltaConfig { shape: shape(file)?, layers: kinds });
    Ok(())
}

fn shape(file: &Gguf) -> Result<DeltaShape> {
    let (value_heads, width) = (file.required_count("ssm.time_step_rank")?, file.required_count("ssm.inner_size")?);
    if value_heads == 0 || !width.is_multiple_of(value_heads) {
        return Err(Error::new(format!(
            "`ssm.inner_size` is {width}, which {value_heads} heads (`ssm.time_step_rank`) cannot share evenly"
        )));
    }
    let shape = DeltaShape {
        key_heads: file.required_count("ssm.group_count")?,
        value_heads,
        key_dim: file.required_count("ssm.state_size")?,
        value_dim: width / value_heads,
        kernel: file.required_count("ssm.conv_kernel")?,
        grouped: false,
    };
    shape.check(shape.columns())?;
    Ok(shape)
}

/// Reads the tensors of a layer with the rule in Transformers' layout.
pub(super) fn tensor(file: &Gguf, name: &str, dims: &[usize], _: Option<usize>) -> Result<Option<Tensor>> {
    let Some((layer, kind)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once(".linear_attn.")) else {
        return Ok(None);
    };
    let stored = |part: &str, dims: &[usize]| file.stored(&format!("blk.{layer}.{part}"), dims, None);
    let shape = shape(file)?;
    let by_key_heads = |tensor: Tensor, first: usize| by_key_heads(&tensor, first, &shape);
    let queries_and_keys = shape.channels() - shape.width();
    Ok(Some(match kind {
        "in_proj_qkv.weight" => by_key_heads(stored("attn_qkv.weight", dims)?, queries_and_keys)?,
        "in_proj_z.weight" => by_key_heads(stored("attn_gate.weight", dims)?, 0)?,
        "in_proj_b.weight" => by_key_heads(stored("ssm_beta.weight", dims)?, 0)?,
        "in_proj_a.weight" => by_key_heads(stored("ssm_alpha.weight", dims)?, 0)?,
        "conv1d.weight" => {
            let taps = stored("ssm_conv1d.weight", &[shape.channels(), shape.kernel])?;
            by_key_heads(taps, queries_and_keys)?.reshape(dims)?
        }
        "A_log" => by_key_heads(stored("ssm_a", dims)?.neg()?.log()?, 0)?,
        "dt_bias" => by_key_heads(stored("ssm_dt.bias", dims)?, 0)?,
        "out_proj.weight" => by_key_heads(stored("ssm_out.weight", dims)?.t()?.contiguous()?, 0)?.t()?.contiguous()?,
        _ => return Ok(None),
    }))
}

/// Reorders the rows after the first `first` ones from index-major to key-head-major order of the value heads.
fn by_key_heads(tensor: &Tensor, first: usize, shape: &DeltaShape) -> Result<Tensor> {
    let (rows, (keys, values)) = (tensor.dim(0)?, (shape.key_heads, shape.value_heads));
    let of_values = tensor.narrow(0, first, rows - first)?;
    let by_numbers = of_values.reshape((values / keys, keys, of_values.elem_count() / values))?;
    let of_values = by_numbers.transpose(0, 1)?.contiguous()?.reshape(of_values.shape())?;
    Ok(if first == 0 { of_values } else { Tensor::cat(&[tensor.narrow(0, 0, first)?, of_values], 0)? })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn value_heads_come_back_to_their_key_heads() {
        let shape = DeltaShape { key_heads: 2, value_heads: 6, key_dim: 1, value_dim: 1, kernel: 1, grouped: false };
        // Two leading rows; then the heads (key, index) in the order 00 10 01 11 02 12.
        let stored = Tensor::new(&[8f32, 9., 0., 10., 1., 11., 2., 12.], &Device::Cpu).unwrap();
        let found = by_key_heads(&stored, 2, &shape).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(found, [8., 9., 0., 1., 2., 10., 11., 12.]);
    }
}
