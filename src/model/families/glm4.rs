//! GLM-4-0414: GLM with an additional norm on the outputs of attention and feed-forward network.
//! Reference: Transformers `models/glm4/modeling_glm4.py`.

use super::family::Family;
use super::family::Rule::Honoured;
use super::glm;
use crate::error::Result;
use crate::kernels::gated::Activation;
use crate::kernels::rotary::RotaryStyle;
use crate::model::block::{Block, FeedForward};
use crate::model::layers::{Attention, Layer, Mlp};

pub(super) const FAMILY: Family = Family {
    model_type: "glm4",
    architecture: "glm4",
    class: "Glm4ForCausalLM",
    keys: &[("attention_bias", Honoured), ("partial_rotary_factor", Honoured)],
    defaults: r#"{"head_dim": 128, "num_key_value_heads": 2, "rms_norm_eps": 0.00000015625, "pad_token_id": 151329}"#,
    rotary: RotaryStyle::Interleaved,
    configure: glm::configure,
    settings: glm::settings,
    configure_gguf: glm::configure_gguf,
    gguf_names: &[
        ("mlp.gate_up_proj", "ffn_up"),
        ("post_self_attn_layernorm", "post_attention_norm"),
        ("post_mlp_layernorm", "post_ffw_norm"),
    ],
    block,
    ..Family::PLAIN
};

fn block(layer: &Layer) -> Result<Block> {
    Ok(Block {
        attention_norm: Some(layer.norm("input_layernorm")?),
        mixer: Attention::load(layer)?.into(),
        attention_post_norm: Some(layer.norm("post_self_attn_layernorm")?),
        mlp_norm: Some(layer.norm("post_attention_layernorm")?),
        mlp: FeedForward::Dense(Mlp::load_fused(layer, Activation::Silu)?),
        mlp_post_norm: Some(layer.norm("post_mlp_layernorm")?),
    })
}
