//! Llama: pre-norm blocks of rotary grouped-query attention and a SiLU-gated feed-forward network, RMSNorm, no learned positions.
//! Serves Llama 1 to 3, SmolLM2 and what else names itself `llama`. Reference: Transformers `models/llama/modeling_llama.py`.

use candle_core::Tensor;

use super::config::Config;
use super::layers::{Attention, Mlp, RmsNorm, select};
use super::{Batch, Decoder, LoadOptions, Source};
use crate::error::Result;
use crate::kernels::attention::AttentionShape;
use crate::kernels::gated::Activation;
use crate::kernels::matmul::Matrix;
use crate::kernels::rotary::{Rotary, RotaryStyle};

pub struct Llama {
    embedding: Matrix,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// `None` where the head is the embedding.
    head: Option<Matrix>,
    rotary: Rotary,
}

struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    mlp_norm: RmsNorm,
    mlp: Mlp,
}

impl Llama {
    pub fn load(config: &Config, source: &dyn Source, options: LoadOptions, max_positions: usize) -> Result<Llama> {
        let vocabulary = [config.vocab_size, config.hidden_size];
        let matrix = |name: &str| Matrix::new([source.tensor(name, &vocabulary)], options.dtype, options.kernels);
        let tied = config.tied || !source.has("lm_head.weight");
        let head = if tied { None } else { Some(matrix("lm_head.weight")?) };
        let frequencies = config.rope.inverse_frequencies(config.head_dim)?;
        Ok(Llama {
            embedding: matrix("model.embed_tokens.weight")?,
            blocks: (0..config.layers).map(|layer| Block::load(config, source, options, layer)).collect::<Result<_>>()?,
            norm: RmsNorm::load(source, "model.norm.weight", config.hidden_size, config.rms_norm_eps, options.kernels)?,
            head,
            rotary: Rotary::new(&frequencies, max_positions, RotaryStyle::Half, 1.0),
        })
    }
}

impl Decoder for Llama {
    fn hidden(&self, batch: &Batch, rows: &Tensor) -> Result<Tensor> {
        let mut x_td = self.embedding.rows(&batch.ids)?;
        if let Some((last, blocks)) = self.blocks.split_last() {
            for block in blocks {
                let mixed = block.attention.mix(&block.attention_norm.forward(&x_td)?, batch, &self.rotary)?;
                x_td = block.finish(&mixed, &x_td)?;
            }
            // Nothing attends to the last block's output, so only the rows that are asked for go on from its attention.
            let mixed = last.attention.mix(&last.attention_norm.forward(&x_td)?, batch, &self.rotary)?;
            x_td = last.finish(&select(&mixed, rows)?, &select(&x_td, rows)?)?;
        }
        self.norm.forward(&x_td)
    }

    fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

impl Block {
    fn load(config: &Config, source: &dyn Source, options: LoadOptions, layer: usize) -> Result<Block> {
        let prefix = format!("model.layers.{layer}");
        let width = config.hidden_size;
        let norm =
            |name: &str| RmsNorm::load(source, &format!("{prefix}.{name}.weight"), width, config.rms_norm_eps, options.kernels);
        let shape = AttentionShape {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            window: None,
            softcap: None,
        };
        Ok(Block {
            attention_norm: norm("input_layernorm")?,
            attention: Attention::load(source, &format!("{prefix}.self_attn"), width, shape, config.attention_bias, options)?,
            mlp_norm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(
                source,
                &format!("{prefix}.mlp"),
                width,
                config.intermediate_size,
                Activation::Silu,
                config.mlp_bias,
                options,
            )?,
        })
    }

    /// From the attention's heads to the block's output; `mixed [N, heads * head_dim]`, `x [N, D]`, any `N` rows of the batch.
    fn finish(&self, mixed: &Tensor, x: &Tensor) -> Result<Tensor> {
        let x = self.attention.project_add(mixed, x)?;
        self.mlp.forward_add(&self.mlp_norm.forward(&x)?, &x)
    }
}
