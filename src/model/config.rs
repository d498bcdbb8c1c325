//! What the families need to know about a model, whichever file it came from.

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
    /// config.json's `model_type`, or the family that a GGUF architecture stands for.
    pub family: &'static str,
    /// Tokens of the vocabulary: rows of the embedding.
    pub vocab_size: usize,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// The inner width of the feed-forward network.
    pub intermediate_size: usize,
    /// The number of blocks.
    pub layers: usize,
    /// Query heads of an attention.
    pub heads: usize,
    /// Key and value heads; each is read by `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// The width of a head.
    pub head_dim: usize,
    /// Added to the mean of squares in norms.
    pub rms_norm_eps: f64,
    /// Norm weights are stored as an offset from 1.
    pub norm_offset: bool,
    /// The rotary embedding.
    pub rope: Rope,
    /// Another rotary embedding in layers with a window.
    pub window_rope: Option<Rope>,
    /// The first elements of a head that turn; the others stay.
    pub rotary_dim: usize,
    /// Do queries and keys turn? One entry a layer. Layers that are told nothing about positions are called NoPE.
    pub turning: Vec<bool>,
    /// How many of the last tokens a token sees, itself included; `None`: all of them. One entry a layer.
    pub windows: Vec<Option<usize>>,
    /// Multiplies the attention scores.
    pub attention_scale: f32,
    /// `cap * tanh(score / cap)` on the attention scores.
    pub attention_softcap: Option<f32>,
    /// How queries grow with their positions, in families that have it.
    pub query_growth: Option<QueryGrowth>,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// A bias on the attention's output projection.
    pub output_bias: bool,
    /// Norms on queries and keys, where that is a setting and not the family's.
    pub qk_norm: bool,
    /// Each query head comes with as many gates, which multiply what it reads.
    pub attention_gates: bool,
    /// Layers with the gated delta rule in place of attention.
    pub delta: Option<DeltaConfig>,
    /// Biases in the feed-forward network.
    pub mlp_bias: bool,
    /// The experts, in models that have some.
    pub experts: Option<ExpertsConfig>,
    /// Layers behind the last that predict further tokens at once: files may hold them, and they are not run.
    pub further_layers: usize,
    /// Multiplies the embeddings.
    pub embedding_scale: f64,
    /// Multiplies what attention and feed-forward network add to the residual stream; positive. Families that norm what is added have 1.
    pub residual_scale: f64,
    /// Divides the logits, before their cap.
    pub logit_divisor: f64,
    /// The head is the embedding matrix.
    pub tied: bool,
    /// The longest sequence that the model was made for.
    pub max_positions: usize,
    /// `cap * tanh(logit / cap)` on the logits.
    pub final_softcap: Option<f32>,
}

/// The queries at position `p` are multiplied by `1 + beta ln(1 + floor(p / original_positions))`, so that long sequences do not flatten
/// the attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryGrowth {
    /// How much queries grow.
    pub beta: f64,
    /// The length of the first training; shorter sequences have no growth.
    pub original_positions: usize,
}

/// The gated delta rule, which some layers have in place of attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaConfig {
    /// The rule's heads.
    pub shape: DeltaShape,
    /// Has the layer the rule, or attention? One entry a layer.
    pub layers: Vec<bool>,
}

/// A feed-forward network of which each token uses a part.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsConfig {
    /// How many experts a layer has.
    pub count: usize,
    /// How many of them each token uses.
    pub per_token: usize,
    /// The inner width of an expert.
    pub intermediate_size: usize,
    /// The weights of a token's experts are made to sum to 1.
    pub normalise: bool,
    /// Has the layer experts, or an ordinary feed-forward network? One entry a layer.
    pub routed: Vec<bool>,
    /// How the router's logits become weights.
    pub scoring: Scoring,
    /// Multiplies the weights of a token's experts.
    pub scale: f64,
    /// The width of a network that every token uses beside its experts; 0 for none.
    pub shared_size: usize,
    /// That network has a gate, a number for each token.
    pub shared_gate: bool,
    /// Do adapters for `gate_proj` and the like change the experts? PEFT then treats each expert of a stack as a module of its own; of other
    /// families it leaves the stacks alone.
    pub modules: bool,
    /// How gpt-oss has it: the router and the experts have biases; the experts are stacked as inputs by outputs, and gate and up alternate.
    pub transposed: bool,
    /// The stacks are stored in MXFP4.
    pub mxfp4: bool,
    /// The activation, where that is a setting and not the family's.
    pub swiglu: Option<ClampedSwiglu>,
}

impl ExpertsConfig {
    /// What holds where a family says nothing else.
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

    /// Do adapters on the modules whose names end so stand on the experts? Without a name they are on all modules.
    pub(crate) fn are_adapted(&self, targets: &[String]) -> bool {
        let is_of_expert = |target: &String| ["gate_proj", "up_proj", "down_proj"].contains(&target.as_str());
        self.modules && (targets.is_empty() || targets.iter().any(is_of_expert))
    }
}

/// What a router makes of its logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// Shares of all experts; the largest are chosen.
    Softmax,
    /// A number for each expert by itself. A correction is added to choose, and left out of the weights.
    Sigmoid,
}

impl Config {
    /// What holds where a family says nothing else; sizes that every model states are 0.
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
            tied: false,
            max_positions,
            final_softcap: None,
        }
    }

    /// Changes the number of layers before anything has been said of single ones.
    pub(super) fn set_layers(&mut self, layers: usize) {
        let plain = Config::plain(self.family, layers, self.head_dim, self.max_positions);
        (self.layers, self.turning, self.windows) = (layers, plain.turning, plain.windows);
    }

    /// Refuses numbers that no model has, before lists of such a length are made.
    pub(super) fn check_sizes(layers: usize, head_dim: usize) -> Result<()> {
        const MOST: usize = 1 << 16;
        match [("layers", layers), ("elements of a head", head_dim)].into_iter().find(|(_, n)| *n > MOST) {
            Some((what, n)) => Err(Error::new(format!("found {n} {what}; expected at most {MOST}"))),
            None => Ok(()),
        }
    }

    /// Refuses sizes that cannot belong together before any tensor is read.
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

    /// The longest sequence that the model takes.
    pub fn longest(&self) -> usize {
        let ropes = [Some(&self.rope), self.window_rope.as_ref()];
        ropes.into_iter().flatten().filter_map(Rope::longest).fold(self.max_positions, usize::min)
    }

    /// The heads of the gated delta rule in a layer that has it; `None` where there is attention.
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

    /// The way back of [`Self::read_windows`].
    pub(super) fn layer_types(&self) -> Vec<&'static str> {
        let kind = |window: &Option<usize>| if window.is_some() { "sliding_attention" } else { "full_attention" };
        self.windows.iter().map(kind).collect()
    }

    /// Reads `layer_types`, or asks `is_windowed` where the file has none; such layers get `window`.
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
