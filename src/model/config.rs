//! The shape and settings of a model, in a form that is independent of its file format.

use serde_json::Value;

use super::rope::Rope;
use crate::error::{Error, Result};
use crate::json::present;
use crate::kernels::attention::AttentionShape;
use crate::kernels::delta::DeltaShape;
use crate::kernels::gated::ClampedSwiglu;

/// A model's shape and settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// config.json's `model_type`, or the family that corresponds to a GGUF architecture.
    pub family: &'static str,
    /// The size of the vocabulary: the rows of the embedding.
    pub vocab_size: usize,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// The inner width of the feed-forward network.
    pub intermediate_size: usize,
    /// The number of blocks.
    pub layers: usize,
    /// The number of query heads of an attention layer.
    pub heads: usize,
    /// The number of key and value heads; `heads / kv_heads` query heads share each.
    pub kv_heads: usize,
    /// The width of a head.
    pub head_dim: usize,
    /// The epsilon of the norms, added to the mean of squares.
    pub rms_norm_eps: f64,
    /// Whether norm weights are stored as an offset from 1.
    pub norm_offset: bool,
    /// The rotary embedding.
    pub rope: Rope,
    /// The rotary embedding of layers with a sliding window, if they have their own.
    pub window_rope: Option<Rope>,
    /// The number of leading elements of each head that are rotated; the rest are left as they are.
    pub rotary_dim: usize,
    /// Whether queries and keys are rotated, one entry per layer. Layers without any position encoding are known as NoPE.
    pub turning: Vec<bool>,
    /// The sliding window of each layer: how many of the latest tokens a token sees, itself included. `None` for full attention.
    pub windows: Vec<Option<usize>>,
    /// Multiplies the attention scores.
    pub attention_scale: f32,
    /// The cap of the attention scores: `cap * tanh(score / cap)`.
    pub attention_softcap: Option<f32>,
    /// How queries grow with their position, in families that have this.
    pub query_growth: Option<QueryGrowth>,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether queries and keys are normalised, for families that leave this to a setting.
    pub qk_norm: bool,
    /// Whether each query head comes with a vector of gates, which multiply the head's output.
    pub attention_gates: bool,
    /// The layers with the gated delta rule in place of attention, if there are any.
    pub delta: Option<DeltaConfig>,
    /// Whether the feed-forward network has biases.
    pub mlp_bias: bool,
    /// The experts, in mixture-of-experts models.
    pub experts: Option<ExpertsConfig>,
    /// The number of extra layers after the last one that predict several tokens ahead. Files may hold them; they are not run.
    pub further_layers: usize,
    /// Multiplies the embeddings.
    pub embedding_scale: f64,
    /// Multiplies what attention and feed-forward network add to the residual stream; positive. 1 for families that normalise it.
    pub residual_scale: f64,
    /// Divides the logits, before they are capped.
    pub logit_divisor: f64,
    /// The padding token, whose input embedding is not trained, as in Transformers (`nn.Embedding(padding_idx)`). It may also be the end token.
    pub padding: Option<u32>,
    /// Whether the head is the embedding matrix.
    pub tied: bool,
    /// The longest sequence that the model was trained for.
    pub max_positions: usize,
    /// The cap of the logits: `cap * tanh(logit / cap)`.
    pub final_softcap: Option<f32>,
}

/// Multiplies the queries at position `p` by `1 + beta ln(1 + floor(p / original_positions))`, so that attention stays sharp over long
/// sequences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryGrowth {
    /// The strength of the growth.
    pub beta: f64,
    /// The sequence length of the original training; queries at earlier positions do not grow.
    pub original_positions: usize,
}

/// The settings of the gated delta rule, which some layers have in place of attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaConfig {
    /// The heads of the rule.
    pub shape: DeltaShape,
    /// Whether a layer has the rule rather than attention, one entry per layer.
    pub layers: Vec<bool>,
}

/// A mixture of experts: a feed-forward network of which each token uses a part.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsConfig {
    /// The number of experts in a layer.
    pub count: usize,
    /// The number of experts that each token uses.
    pub per_token: usize,
    /// The inner width of an expert.
    pub intermediate_size: usize,
    /// Whether the weights of a token's experts are normalised to sum to 1.
    pub normalise: bool,
    /// Whether a layer has experts rather than a dense feed-forward network, one entry per layer.
    pub routed: Vec<bool>,
    /// How the router's logits become weights.
    pub scoring: Scoring,
    /// Multiplies the weights of a token's experts.
    pub scale: f64,
    /// The inner width of the shared network, which every token uses in addition to its experts; 0 for none.
    pub shared_size: usize,
    /// Whether the shared network has a gate, one number per token.
    pub shared_gate: bool,
    /// Whether adapters for `gate_proj` and the like apply to the experts. PEFT then treats each expert of a stack as a separate module; it
    /// leaves the stacks of other families alone.
    pub modules: bool,
    /// Whether the layout is that of gpt-oss: router and experts have biases, stacks are inputs by outputs, and gate and up columns alternate.
    pub transposed: bool,
    /// Whether the stacks are stored in MXFP4.
    pub mxfp4: bool,
    /// The activation, for families that leave this to a setting.
    pub swiglu: Option<ClampedSwiglu>,
}

impl ExpertsConfig {
    /// The defaults of all families.
    pub(super) fn plain(count: usize, per_token: usize, intermediate_size: usize, routed: Vec<bool>) -> ExpertsConfig {
        ExpertsConfig {
            count,
            per_token,
            intermediate_size,
            normalise: true,
            routed,
            scoring: Scoring::Softmax,
            scale: 1.0,
            shared_size: 0,
            shared_gate: false,
            modules: true,
            transposed: false,
            mxfp4: false,
            swiglu: None,
        }
    }

    /// Whether adapters on the modules with these name endings apply to the experts; an empty list names all modules.
    pub(crate) fn are_adapted(&self, targets: &[String]) -> bool {
        let is_of_expert = |target: &String| ["gate_proj", "up_proj", "down_proj"].contains(&target.as_str());
        self.modules && (targets.is_empty() || targets.iter().any(is_of_expert))
    }
}

/// How a router turns its logits into scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// A softmax over all experts; the experts with the largest shares are chosen.
    Softmax,
    /// A sigmoid for each expert on its own. A learned correction is added for the choice only, not for the weights.
    Sigmoid,
}

impl Config {
    /// The defaults of all families; sizes that every model states are 0.
    pub(super) fn plain(family: &'static str, layers: usize, head_dim: usize, max_positions: usize) -> Config {
        Config {
            family,
            vocab_size: 0,
            hidden_size: 0,
            intermediate_size: 0,
            layers,
            heads: 0,
            kv_heads: 0,
            head_dim,
            rms_norm_eps: 0.0,
            norm_offset: false,
            rope: Rope { theta: 10_000.0, scaling: super::rope::RopeScaling::None },
            window_rope: None,
            rotary_dim: head_dim,
            turning: vec![true; layers],
            windows: vec![None; layers],
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            attention_softcap: None,
            query_growth: None,
            qkv_bias: false,
            output_bias: false,
            qk_norm: false,
            attention_gates: false,
            delta: None,
            mlp_bias: false,
            experts: None,
            further_layers: 0,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_divisor: 1.0,
            padding: None,
            tied: false,
            max_positions,
            final_softcap: None,
        }
    }

    /// Changes the number of layers; call it before any per-layer setting is made.
    pub(super) fn set_layers(&mut self, layers: usize) {
        let plain = Config::plain(self.family, layers, self.head_dim, self.max_positions);
        (self.layers, self.turning, self.windows) = (layers, plain.turning, plain.windows);
    }

    /// Refuses implausibly large numbers before lists of that length are allocated.
    pub(super) fn check_sizes(layers: usize, head_dim: usize) -> Result<()> {
        const MOST: usize = 1 << 16;
        match [("layers", layers), ("elements of a head", head_dim)].into_iter().find(|(_, n)| *n > MOST) {
            Some((what, n)) => Err(Error::new(format!("found {n} {what}; expected at most {MOST}"))),
            None => Ok(()),
        }
    }

    /// Refuses sizes that contradict each other, before any tensor is read.
    pub fn check(&self) -> Result<()> {
        if self.heads == 0 || self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::new(format!(
                "{} attention heads cannot be divided evenly among {} key-value heads",
                self.heads, self.kv_heads
            )));
        }
        if self.rotary_dim == 0 || !self.rotary_dim.is_multiple_of(2) || self.rotary_dim > self.head_dim {
            return Err(Error::new(format!(
                "expected an even number of rotary dimensions, at most the head's {}, found {}",
                self.head_dim, self.rotary_dim
            )));
        }
        for (what, scale) in
            [("what is added to the residual stream", self.residual_scale), ("the logits", 1.0 / self.logit_divisor)]
        {
            if !(scale > 0.0 && scale.is_finite()) {
                return Err(Error::new(format!("{what} would be multiplied by {scale}; expected a positive number")));
            }
        }
        if let Some(DeltaConfig { shape, .. }) = &self.delta {
            shape.check(shape.columns())?;
        }
        if let Some(experts) = &self.experts
            && (experts.per_token == 0 || experts.per_token > experts.count)
        {
            return Err(Error::new(format!("{} of {} experts cannot be chosen", experts.per_token, experts.count)));
        }
        Ok(())
    }

    /// The longest sequence that the model accepts.
    pub fn longest(&self) -> usize {
        let ropes = [Some(&self.rope), self.window_rope.as_ref()];
        ropes.into_iter().flatten().filter_map(Rope::longest).fold(self.max_positions, usize::min)
    }

    /// The heads of the gated delta rule in this layer; `None` if it has attention.
    pub(crate) fn delta_shape(&self, layer: usize) -> Option<DeltaShape> {
        self.delta.as_ref().filter(|delta| delta.layers[layer]).map(|delta| delta.shape)
    }

    pub(super) fn attention_shape(&self, layer: usize) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.attention_scale,
            window: self.windows[layer],
            softcap: self.attention_softcap,
        }
    }

    /// The inverse of [`Self::read_windows`].
    pub(super) fn layer_types(&self) -> Vec<&'static str> {
        let kind = |window: &Option<usize>| if window.is_some() { "sliding_attention" } else { "full_attention" };
        self.windows.iter().map(kind).collect()
    }

    /// Reads `layer_types`, or asks `is_windowed` if the file has none; windowed layers get `window`.
    pub(super) fn read_windows(
        &mut self,
        json: &Value,
        window: Option<usize>,
        is_windowed: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let windowed = match present(json, "layer_types") {
            None => (0..self.layers).map(is_windowed).collect::<Vec<_>>(),
            Some(kinds) => {
                let kinds = kinds.as_array().ok_or_else(|| Error::new("expected a list for `layer_types`"))?;
                if kinds.len() != self.layers {
                    return Err(Error::new(format!("`layer_types` names {} of {} layers", kinds.len(), self.layers)));
                }
                let windowed = kinds.iter().map(|kind| match kind.as_str() {
                    Some("full_attention") => Ok(false),
                    Some("sliding_attention") => Ok(true),
                    _ => Err(Error::new(format!("`layer_types` holds {kind}, which is not supported"))),
                });
                windowed.collect::<Result<_>>()?
            }
        };
        if window.is_none() && present(json, "layer_types").is_some() && windowed.contains(&true) {
            return Err(Error::new("`layer_types` has layers with a window, but `sliding_window` is not set").cure(
                "Give `sliding_window` (and `use_sliding_window`, if the family has it), or name these layers full_attention.",
            ));
        }
        self.windows = windowed.into_iter().map(|windowed| window.filter(|_| windowed)).collect();
        Ok(())
    }
}
