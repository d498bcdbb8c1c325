//! Lists every training method with its gate and the other terms of its loss.

use super::bind::Gate;
use super::eaft::{Curve, Eaft};
use crate::diagnosis::quadrants::PILOT_SHARE;

/// A training method: a gate, and the other terms of its loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Method {
    /// The name of the method, as `--method` takes it.
    pub name: &'static str,
    /// The loss of a batch in the notation above [`METHODS`], for people to read.
    pub loss: &'static str,
    /// The gate that weighs a token, unless options change EAFT's.
    pub gate: Gate,
    /// The other terms of the loss.
    pub beside: Beside,
    /// An arXiv number and the place in it, or another program's option; empty if no source is needed.
    pub source: &'static str,
}

/// What a method's loss has besides weighted tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Beside {
    Nothing,
    /// Adds `factor KL(base || model)` for each token.
    FromBase {
        factor: f32,
    },
    /// Adds `factor KL(model || base)` for each token.
    ToBase {
        factor: f32,
    },
    /// Weighs each row by the base model's loss on it.
    RowWeights,
    /// Keeps a snapshot of the model every `every` optimiser steps, which the gate compares with.
    Snapshots {
        every: u64,
    },
}

/// The default method of a run.
pub const EAFT: Method = Method {
    name: "eaft",
    loss: "1/N sum stop(f(s H~)) (-ln p), f from `--gate`, s from `--normaliser`",
    gate: Gate::Eaft(Eaft::LINEAR),
    beside: Beside::Nothing,
    source: "arXiv 2601.02151",
};

/// Every method. `N` is the number of supervised tokens of an optimiser step, `p` the probability of the target, `H~` its normalised top-K entropy;
/// `stop` marks what counts as a constant, and `KL(a, b) = sum_v a ln(a / b)`.
pub const METHODS: &[Method] = &[
    Method { name: "sft", loss: "1/N sum -ln p", gate: Gate::One, beside: Beside::Nothing, source: "" },
    EAFT,
    Method {
        name: "mask",
        loss: "the same with f(x) = 1 if x > its 15 % quantile, else 0",
        gate: Gate::Eaft(Eaft { curve: Curve::Mask { share: PILOT_SHARE }, ..Eaft::LINEAR }),
        beside: Beside::Nothing,
        source: "arXiv 2601.02151, Masked SFT",
    },
    Method {
        name: "pilot",
        loss: "0 for tokens in the lowest 15 % of both p and H, else -ln p",
        gate: Gate::Pilot,
        beside: Beside::Nothing,
        source: "arXiv 2601.02151, pilot study",
    },
    Method {
        name: "stm",
        loss: "0 for tokens with 1/p > 2.5 under the base model, before training, else -ln p; over N, whatever is masked",
        gate: Gate::Stm { tau: 2.5 },
        beside: Beside::Nothing,
        source: "arXiv 2501.14315",
    },
    Method {
        name: "dft",
        loss: "1/N sum stop(p) (-ln p)",
        gate: Gate::Probability,
        beside: Beside::Nothing,
        source: "arXiv 2508.05629",
    },
    Method {
        name: "deft",
        loss: "1/N sum -(p^a - 1) / a, a = stop(sum_v p_v^2); its gradient is p^a times that of -ln p",
        gate: Gate::Deft,
        beside: Beside::Nothing,
        source: "arXiv 2602.11424",
    },
    Method {
        name: "asft",
        loss: "dft + b/N sum KL(base, model), b = 0.1",
        gate: Gate::Probability,
        beside: Beside::FromBase { factor: 0.1 },
        source: "LLaMA-Factory `use_asft_loss`",
    },
    Method {
        name: "talr",
        loss: "1/N sum stop(max(p^(1/tau), 0.01)) (-ln p), tau the median over the batch's sequences of their mean -ln p",
        gate: Gate::Tempered,
        beside: Beside::Nothing,
        source: "arXiv 2509.20758",
    },
    Method {
        name: "flow",
        loss: "1/N sum w_i (-ln p), w_i ~ exp(-l_i / tau) of the base's mean loss l_i of row i, tau the median l_i, w with mean 1",
        gate: Gate::One,
        beside: Beside::RowWeights,
        source: "arXiv 2502.02797",
    },
    Method {
        name: "sft-kl",
        loss: "1/N sum -ln p + b KL(model, base), b = 0.5",
        gate: Gate::One,
        beside: Beside::ToBase { factor: 0.5 },
        source: "arXiv 2601.02151, section 4",
    },
    Method {
        name: "psft",
        loss: "1/N sum -min(r, 1 + e), r = p / p_old, e = 0.28, p_old the model at the start of every 8 steps",
        gate: Gate::Ratio { most: 1.28 },
        beside: Beside::Snapshots { every: 8 },
        source: "arXiv 2508.17784",
    },
];

impl Method {
    /// Returns whether the method compares the model with the base at every token.
    pub fn needs_reference(&self) -> bool {
        matches!(self.beside, Beside::FromBase { .. } | Beside::ToBase { .. })
    }

    /// Returns whether the method needs the base model's scores of the whole data set first. `gate` is the method's, with the user's changes.
    pub fn needs_scores(&self, gate: &Gate) -> bool {
        let needs = gate.needs();
        let from_tables = needs.quantiles.iter().any(|(quantity, _)| quantity.is_in_tables());
        self.beside == Beside::RowWeights || needs.base_logprobs || from_tables
    }

    /// Returns whether the method weighs single tokens or rows, and so can spare rows whose conflicts are intended.
    pub fn has_weights(&self) -> bool {
        self.gate != Gate::One || self.beside == Beside::RowWeights
    }

    /// The factor of the divergence from the base model; 0 for methods without one.
    pub fn kl_weight(&self) -> f32 {
        match self.beside {
            Beside::FromBase { factor } | Beside::ToBase { factor } => factor,
            Beside::Nothing | Beside::RowWeights | Beside::Snapshots { .. } => 0.0,
        }
    }

    /// What must be known or computed in addition to the step itself, for people to read.
    pub fn needs(&self) -> &'static str {
        match self {
            _ if self.needs_reference() => "the base model as a reference",
            _ if self.needs_scores(&self.gate) => "the base model's scores, computed first",
            _ if self.gate.needs().tau => "a pass over each batch first",
            _ if matches!(self.beside, Beside::Snapshots { .. }) => "a pass over each 8 batches first",
            _ => "",
        }
    }
}

/// The names of [`METHODS`], as a sentence lists them.
pub fn method_names() -> String {
    let names: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => names.concat(),
    }
}

/// [`METHODS`] as the guide shows them.
pub fn methods_in_markdown() -> String {
    let mut text = "| `--method` | loss | needs | source |\n|---|---|---|---|\n".to_owned();
    for method in METHODS {
        text += &format!("| `{}` | {} | {} | {} |\n", method.name, method.loss, method.needs(), method.source);
    }
    text
}
