//! Every method: its gate, and what else its loss consists of.

use super::bind::Gate;
use super::eaft::{Curve, Eaft};
use crate::diagnosis::quadrants::PILOT_SHARE;

/// A way to train: a gate, and what else its loss consists of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Method {
    /// The name of the method, as `--method` takes it.
    pub name: &'static str,
    /// The loss of a batch for people, in the notation above [`METHODS`].
    pub loss: &'static str,
    /// What a token is weighed by, unless EAFT is told otherwise.
    pub gate: Gate,
    /// What else the loss consists of.
    pub beside: Beside,
    /// An arXiv number and where to look in it, or another program's option; empty for what needs none.
    pub source: &'static str,
}

/// What a method's loss has beside weighed tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Beside {
    Nothing,
    /// `factor KL(base || model)` of each token.
    FromBase {
        factor: f32,
    },
    /// `factor KL(model || base)` of each token.
    ToBase {
        factor: f32,
    },
    /// A weight of each row, from the base model's losses.
    RowWeights,
    /// The model at the first of every so many optimiser steps, which the gate compares with.
    Snapshots {
        every: u64,
    },
}

/// The method of a run that names none.
pub const EAFT: Method = Method {
    name: "eaft",
    loss: "1/N sum stop(f(s H~)) (-ln p), f from `--gate`, s from `--normaliser`",
    gate: Gate::Eaft(Eaft::LINEAR),
    beside: Beside::Nothing,
    source: "arXiv 2601.02151",
};

/// Every method. `N` is the number of supervised tokens of an optimiser step, `p` the probability of the target, `H~` its normalised
/// top-K entropy; `stop` marks what counts as a constant, `KL(a, b) = sum_v a ln(a / b)`.
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
    /// Compares the model with the base at every token.
    pub fn needs_reference(&self) -> bool {
        matches!(self.beside, Beside::FromBase { .. } | Beside::ToBase { .. })
    }

    /// Needs the base model's scores of the whole data set first. `gate` is the method's, with what the user changed.
    pub fn needs_scores(&self, gate: &Gate) -> bool {
        let needs = gate.needs();
        let from_tables = needs.quantiles.iter().any(|(quantity, _)| quantity.is_in_tables());
        self.beside == Beside::RowWeights || needs.base_logprobs || from_tables
    }

    /// Weighs single tokens or rows, and so can leave rows alone whose conflicts are intended.
    pub fn has_weights(&self) -> bool {
        self.gate != Gate::One || self.beside == Beside::RowWeights
    }

    /// Factor of the divergence from the base model; 0 for methods without one.
    pub fn kl_weight(&self) -> f32 {
        match self.beside {
            Beside::FromBase { factor } | Beside::ToBase { factor } => factor,
            Beside::Nothing | Beside::RowWeights | Beside::Snapshots { .. } => 0.0,
        }
    }

    /// What must be known or computed beside the step itself, for people.
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
