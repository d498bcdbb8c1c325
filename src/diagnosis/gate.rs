//! (ln p, H, H~) of a token -> its weight in the loss: every token loss of the literature as one pure function, in one table.
//!
//! The loss is `- sum_t w_t ln p_t`, the weight taken as a constant (no gradient through it). Plain fine-tuning is the gate
//! that returns 1. H~ is the entropy of the renormalised top K, divided by ln K, so that it lies in 0..1 (`entropy_topk`).
//!
//! | gate | weight | range | sure model (H~ = 0) | clueless model (H~ = 1) |
//! |---|---|---|---|---|
//! | `sft` | 1 | 1 | 1 | 1 |
//! | `eaft`, `eaft:power:N` | (s H~)^N | 0..s^N | 0 | s^N |
//! | `eaft:sigmoid:A,B` | 1 / (1 + exp(-A (s H~ - B))) | 0..1 | 0.006 (A 30, B 0.17) | 1 |
//! | `eaft:mask:Q` | 1 if H~ > its Q-quantile, else 0 | 0, 1 | 0 | 1 |
//! | `pilot` | 0 if both p and H are at or below their 15 % quantiles, else 1 | 0, 1 | 0 if p is low | 1 |
//! | `eaft:llama-factory` | H~ ln K / 3, K = 20 | 0..0.9986 | 0 | 0.9986 |
//! | `eaft:axolotl` | H~ ln K, K = 20 | 0..2.9957 | 0 | 2.9957 |
//! | `dft` | p | 0..1 | 0 at p = 0, 1 at p = 1 | as left |
//! | `deft` | p^a, a = sum_v p_v^2 | 0..1 | p, as `dft` (a = 1) | 1, as `sft` (a = 0) |
//! | `stm` | 0 if 1/p > 2.5 under the base model, before training, else 1 | 0, 1 | 0 if p was low | as left |
//! | `psft` | r = p / p_old if r <= 1.28, else 0 | 0..1.28 | 1 just after a snapshot | 1 just after a snapshot |
//! | `talr` | max(p^(1/tau), 0.01) | 0.01..1 | 0.01 at p = 0, 1 at p = 1 | as left |
//!
//! with s = 1 under the normaliser `ln-k`, s = ln K / 3 under `3.0` and s = ln K under `none`. A mask compares H~ with H~ of other
//! tokens, so that no normaliser changes it.
//!
//! [`METHODS`] is the one list of what `--method` takes: everything that parses, prints, previews, emits or documents a loss reads it.
//! Sources beside those in the list: `use_eaft_loss` in LLaMA-Factory's `trainer_utils.py`; `use_eaft` in axolotl's
//! `monkeypatch/loss/eaft.py`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::population::{Needs, Population, Quantity};
use super::quadrants::PILOT_SHARE;
use crate::engine::TOP_K;
use crate::kernels::TokenStatistics;
use crate::table::TokenChunk;
use crate::{Error, Result};

/// A way to train: a gate, and what else its loss consists of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Method {
    /// As for `--method`.
    pub name: &'static str,
    /// The loss of a batch for people, in the notation above [`METHODS`].
    pub loss: &'static str,
    /// What a token is weighed by, unless EAFT is told otherwise.
    pub gate: Gate,
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

/// What a token is weighed by. [`Gate::bind`] makes the weight function of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gate {
    One,
    Eaft(Eaft),
    Pilot,
    /// Masks the tokens with 1/p above this under the base model.
    Stm {
        tau: f32,
    },
    Probability,
    Deft,
    Tempered,
    /// Of the probability to an earlier one, up to this.
    Ratio {
        most: f32,
    },
}

/// EAFT's weight: a curve of the entropy of the K most probable tokens, divided by a normaliser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Eaft {
    pub curve: Curve,
    pub normaliser: Normaliser,
    pub k: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Curve {
    /// Linear is the power 1.
    Power {
        exponent: f32,
    },
    Sigmoid {
        slope: f32,
        center: f32,
    },
    /// Takes away this share of the tokens.
    Mask {
        share: f64,
    },
}

/// What the top-K entropy is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normaliser {
    /// ln K, as in the paper: H~ in 0..1.
    #[default]
    LnK,
    /// 3.0, as in LLaMA-Factory.
    #[serde(rename = "3.0")]
    Three,
    /// Nothing, as in axolotl.
    None,
}

/// What a gate looks at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Token {
    pub logprob: f32,
    pub entropy: f32,
    pub entropy_topk: f32,
    /// `sqrt(1 - 2 p + sum_v p_v^2)`
    pub grad: f32,
    /// ln p under an earlier model: the base before training, or the last snapshot. It is `logprob` where that is the model at hand.
    pub earlier: f32,
}

/// A gate with its numbers filled in: a function of one token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "function")]
pub enum Weight {
    /// 1
    One,
    /// (scale H~)^exponent
    Power { scale: f32, exponent: f32 },
    /// 1 / (1 + exp(-slope (scale H~ - center)))
    Sigmoid {
        #[serde(default = "one", skip_serializing_if = "is_one")]
        scale: f32,
        slope: f32,
        center: f32,
    },
    /// 1 if H~ > threshold, else 0
    Above { threshold: f32 },
    /// 0 if ln p <= logprob and H <= entropy, else 1
    OutsideCorner { logprob: f32, entropy: f32 },
    /// 1 if ln p was at least this under the earlier model, else 0
    Likely { logprob: f32 },
    /// p
    Probability,
    /// p^a, a = sum_v p_v^2
    Deft,
    /// max(p^(1/tau), 0.01)
    Tempered { tau: f32 },
    /// r = p / p_old if r <= most, else 0: the gradient of -min(r, most), as the factor of that of -ln p
    Ratio { most: f32 },
}

/// The paper's smallest weight for TALR (arXiv 2509.20758, also table 1 of 2601.02151).
const TALR_FLOOR: f32 = 0.01;
/// `entropy_term = approx_entropy / 3.0` in LLaMA-Factory's `src/llamafactory/train/trainer_utils.py`.
const LLAMA_FACTORY_NORMALISER: f32 = 3.0;

impl Weight {
    /// The weight of a token, which is the factor of its gradient: finite and not negative for finite input with ln p <= 0 and
    /// H, H~ >= 0.
    #[inline]
    pub fn of(&self, token: &Token) -> f32 {
        match *self {
            Weight::One => 1.0,
            Weight::Power { scale, exponent } => {
                let x = scale * token.entropy_topk;
                // The usual exponents by multiplication: exact, and ten times as fast as the general power.
                match exponent {
                    1.0 => x,
                    2.0 => x * x,
                    3.0 => x * x * x,
                    _ => x.powf(exponent),
                }
            }
            Weight::Sigmoid { scale, slope, center } => 1.0 / (1.0 + (-slope * (scale * token.entropy_topk - center)).exp()),
            Weight::Above { threshold } => f32::from(u8::from(token.entropy_topk > threshold)),
            Weight::OutsideCorner { logprob, entropy } => {
                f32::from(u8::from(!(token.logprob <= logprob && token.entropy <= entropy)))
            }
            Weight::Likely { logprob } => f32::from(u8::from(token.earlier >= logprob)),
            Weight::Probability => token.logprob.exp(),
            Weight::Deft => (token.concentration() * f64::from(token.logprob)).exp() as f32,
            Weight::Tempered { tau } => (token.logprob / tau).exp().max(TALR_FLOOR),
            Weight::Ratio { most } => {
                let ratio = (token.logprob - token.earlier).exp();
                if ratio <= most { ratio } else { 0.0 }
            }
        }
    }

    /// The token's loss whose gradient this weight is the factor of.
    pub fn loss(&self, token: &Token) -> f64 {
        let logprob = f64::from(token.logprob);
        match *self {
            // -(p^a - 1) / a, which tends to -ln p as a tends to 0: exp_m1 keeps all its digits on the way there.
            Weight::Deft => match token.concentration() {
                0.0 => -logprob,
                a => -(a * logprob).exp_m1() / a,
            },
            Weight::Ratio { most } => -(logprob - f64::from(token.earlier)).exp().min(f64::from(most)),
            _ => f64::from(self.of(token)) * -logprob,
        }
    }
}

impl Token {
    /// `earlier` is absent where the model at hand is the earlier one.
    pub fn new(statistics: &TokenStatistics, earlier: Option<f32>) -> Token {
        let TokenStatistics { logprob, entropy, entropy_topk, grad, .. } = *statistics;
        Token { logprob, entropy, entropy_topk, grad, earlier: earlier.unwrap_or(logprob) }
    }

    /// Of a table that the base model made, with the columns that this looks at.
    pub fn of_table(chunk: &TokenChunk, i: usize) -> Token {
        let logprob = chunk.logprob[i];
        let (entropy, entropy_topk, grad) = (chunk.entropy[i], chunk.entropy_topk[i], chunk.grad[i]);
        Token { logprob, entropy, entropy_topk, grad, earlier: logprob }
    }
}

impl Token {
    /// `sum_v p_v^2` out of the gradient's norm. That is rounded to f32, which makes this uncertain by 3e-7 and `p^a` by as much times
    /// `-ln p`. It is no less than the target's own share.
    fn concentration(&self) -> f64 {
        let (p, grad) = (f64::from(self.logprob).exp(), f64::from(self.grad));
        (grad * grad - 1.0 + 2.0 * p).clamp((p * p).min(1.0), 1.0)
    }
}

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
            _ if self.needs_reference() => "the base model beside the one that learns",
            _ if self.needs_scores(&self.gate) => "the base model's scores, made first",
            _ if self.gate.needs().tau => "a pass over each batch first",
            _ if matches!(self.beside, Beside::Snapshots { .. }) => "a pass over each 8 batches first",
            _ => "",
        }
    }

    /// What a token is weighed by when the method runs under these options, which are refused where they mean nothing.
    pub fn gate_under(&self, gate: Option<&str>, normaliser: Option<Normaliser>, top_k: Option<usize>) -> Result<Gate> {
        let wrong = |what: String, cure: String| Err(Error::usage(what).cure(cure));
        if let Some(gate) = gate
            && self.gate != Gate::Eaft(Eaft::LINEAR)
        {
            return wrong(
                format!("--gate {gate} is EAFT's curve, and the method is {}", self.name),
                "Leave it out, or give --method eaft.".to_owned(),
            );
        }
        let Gate::Eaft(own) = self.gate else {
            // Files of earlier runs have the defaults in them.
            if let Some(normaliser) = normaliser.filter(|normaliser| *normaliser != Normaliser::default()) {
                return wrong(
                    format!("--normaliser {normaliser} divides EAFT's entropy, and the method is {}", self.name),
                    "Leave it out, or give --method eaft or mask.".to_owned(),
                );
            }
            if let Some(k) = top_k.filter(|k| *k != TOP_K) {
                return wrong(
                    format!("--top-k {k} is of EAFT's entropy, and the method is {}", self.name),
                    "Leave it out, or give --method eaft or mask.".to_owned(),
                );
            }
            return Ok(self.gate);
        };
        let Some(text) = gate else {
            return Ok(Gate::Eaft(Eaft { normaliser: normaliser.unwrap_or(own.normaliser), k: top_k.unwrap_or(own.k), ..own }));
        };
        let curve = text.trim_start_matches("eaft:");
        let named = Eaft::parse(curve).map_err(|what| unknown(&format!("eaft:{curve}"), &what))?;
        let is_a_program = named.normaliser != Normaliser::default();
        if let Some(normaliser) = normaliser.filter(|normaliser| is_a_program && *normaliser != named.normaliser) {
            return wrong(
                format!(
                    "--gate {curve} has the normaliser {} already, and --normaliser {normaliser} is another",
                    named.normaliser
                ),
                format!("Leave --normaliser out, or give --gate linear --normaliser {normaliser}."),
            );
        }
        if let (Normaliser::Three, Some(k)) = (named.normaliser, top_k.filter(|k| *k != TOP_K)) {
            return wrong(
                format!("--gate {curve} takes the top {TOP_K}, as that program does, and --top-k is {k}"),
                format!("Leave --top-k out, or give --gate linear --normaliser {} --top-k {k}.", named.normaliser),
            );
        }
        let normaliser = normaliser.unwrap_or(named.normaliser);
        Ok(Gate::Eaft(Eaft { normaliser, k: top_k.unwrap_or(named.k), ..named }))
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

/// [`METHODS`] as the README shows them.
pub fn methods_in_markdown() -> String {
    let mut text = "| `--method` | loss | needs | source |\n|---|---|---|---|\n".to_owned();
    for method in METHODS {
        text += &format!("| `{}` | {} | {} | {} |\n", method.name, method.loss, method.needs(), method.source);
    }
    text
}

impl Gate {
    /// Every gate of the preview: of each method that is no more than a gate, and EAFT's in all their variants.
    pub fn preview() -> Vec<Gate> {
        let of_method = |method: &Method| match method.gate {
            Gate::Eaft(Eaft::LINEAR) => Eaft::VARIANTS.map(Gate::Eaft).to_vec(),
            gate => vec![gate],
        };
        METHODS.iter().filter(|method| method.beside == Beside::Nothing).flat_map(of_method).collect()
    }

    /// What the gate needs to know beside the token.
    pub fn needs(&self) -> Needs {
        let quantiles = |quantiles: Vec<(Quantity, f64)>| Needs { quantiles, ..Needs::default() };
        match *self {
            Gate::Eaft(Eaft { curve: Curve::Mask { share }, k, .. }) => quantiles(vec![(Quantity::EntropyTopk { k }, share)]),
            Gate::Pilot => quantiles(vec![(Quantity::Logprob, PILOT_SHARE), (Quantity::Entropy, PILOT_SHARE)]),
            Gate::Stm { .. } => Needs { base_logprobs: true, ..Needs::default() },
            Gate::Tempered => Needs { tau: true, ..Needs::default() },
            Gate::One | Gate::Eaft(_) | Gate::Probability | Gate::Deft | Gate::Ratio { .. } => Needs::default(),
        }
    }

    /// K of the top-K entropy that the gate looks at; the table's for those that look at none.
    pub fn top_k(&self) -> usize {
        match self {
            Gate::Eaft(eaft) => eaft.k,
            _ => TOP_K,
        }
    }

    /// Fills in what the gate needs to know about the other tokens.
    pub fn bind(&self, population: &Population) -> Result<Weight> {
        Ok(match *self {
            Gate::One => Weight::One,
            Gate::Eaft(eaft) => eaft.bind(population)?,
            Gate::Pilot => Weight::OutsideCorner {
                logprob: population.quantile(Quantity::Logprob, PILOT_SHARE)?,
                entropy: population.quantile(Quantity::Entropy, PILOT_SHARE)?,
            },
            Gate::Stm { tau } => Weight::Likely { logprob: -tau.ln() },
            Gate::Probability => Weight::Probability,
            Gate::Deft => Weight::Deft,
            Gate::Tempered => Weight::Tempered { tau: population.tau()? },
            Gate::Ratio { most } => Weight::Ratio { most },
        })
    }
}

impl Eaft {
    pub const LINEAR: Eaft = Eaft { curve: Curve::Power { exponent: 1.0 }, normaliser: Normaliser::LnK, k: TOP_K };
    const SIGMOID: Eaft = Eaft { curve: Curve::Sigmoid { slope: 30.0, center: 0.17 }, ..Eaft::LINEAR };
    const LLAMA_FACTORY: Eaft = Eaft { normaliser: Normaliser::Three, ..Eaft::LINEAR };
    const AXOLOTL: Eaft = Eaft { normaliser: Normaliser::None, ..Eaft::LINEAR };

    /// What the preview shows of it; `mask` is a method of its own.
    const VARIANTS: [Eaft; 6] = [
        Eaft::LINEAR,
        Eaft { curve: Curve::Power { exponent: 2.0 }, ..Eaft::LINEAR },
        Eaft { curve: Curve::Power { exponent: 3.0 }, ..Eaft::LINEAR },
        Eaft::SIGMOID,
        Eaft::LLAMA_FACTORY,
        Eaft::AXOLOTL,
    ];

    fn bind(&self, population: &Population) -> Result<Weight> {
        let scale = self.scale();
        Ok(match self.curve {
            Curve::Power { exponent } => Weight::Power { scale, exponent },
            Curve::Sigmoid { slope, center } => Weight::Sigmoid { scale, slope, center },
            // Both sides are H~ of the same K, so that the normaliser, a factor of both, cancels.
            Curve::Mask { share } => {
                Weight::Above { threshold: population.quantile(Quantity::EntropyTopk { k: self.k }, share)? }
            }
        })
    }

    /// What `entropy_topk`, which comes divided by ln K, is multiplied by.
    fn scale(&self) -> f32 {
        let ln_k = (self.k as f32).ln();
        match self.normaliser {
            Normaliser::LnK => 1.0,
            Normaliser::Three => ln_k / LLAMA_FACTORY_NORMALISER,
            Normaliser::None => ln_k,
        }
    }

    /// What the entropy of the top K is divided by.
    pub fn divisor(&self) -> f64 {
        match self.normaliser {
            Normaliser::LnK => (self.k as f64).ln(),
            Normaliser::Three => f64::from(LLAMA_FACTORY_NORMALISER),
            Normaliser::None => 1.0,
        }
    }

    /// What stands behind `eaft:`, or why that is no curve.
    fn parse(text: &str) -> std::result::Result<Eaft, String> {
        let (name, parameters) = match text.split_once(':') {
            Some((name, parameters)) => (name, Some(numbers(parameters)?)),
            None => (text, None),
        };
        let curve = match (name, parameters.as_deref()) {
            ("linear", None) => Curve::Power { exponent: 1.0 },
            ("power", Some([exponent])) if *exponent >= 0.0 => Curve::Power { exponent: *exponent as f32 },
            ("power", _) => return Err("a power has one exponent, 0 or more".to_owned()),
            ("sigmoid", None) => Eaft::SIGMOID.curve,
            ("sigmoid", Some([slope, center])) => Curve::Sigmoid { slope: *slope as f32, center: *center as f32 },
            ("sigmoid", Some(_)) => return Err("a sigmoid has a slope and a center".to_owned()),
            ("mask", None) => Curve::Mask { share: PILOT_SHARE },
            ("mask", Some([share])) if (0.0..=1.0).contains(share) => Curve::Mask { share: *share },
            ("mask", Some(_)) => return Err("a mask has one share of the tokens, between 0 and 1".to_owned()),
            ("llama-factory", None) => return Ok(Eaft::LLAMA_FACTORY),
            ("axolotl", None) => return Ok(Eaft::AXOLOTL),
            _ => return Err("no such name".to_owned()),
        };
        Ok(Eaft { curve, ..Eaft::LINEAR })
    }
}

/// Numbers with commas between them, or what is none.
fn numbers(text: &str) -> std::result::Result<Vec<f64>, String> {
    let number = |part: &str| part.trim().parse().ok().filter(|number: &f64| number.is_finite());
    text.split(',').map(|part| number(part).ok_or_else(|| format!("`{part}` is not a number"))).collect()
}

/// Reads what a gate prints: a method's name, and behind a colon what else there is to say of it.
impl FromStr for Gate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Gate> {
        let (name, rest) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let method = METHODS.iter().find(|method| method.name == name).ok_or_else(|| unknown(text, "no such name"))?;
        if method.beside != Beside::Nothing {
            return Err(unknown(text, "this method is more than a gate"));
        }
        match (method.gate, rest) {
            (gate, None) => Ok(gate),
            (Gate::Eaft(Eaft::LINEAR), Some(rest)) => Eaft::parse(rest).map(Gate::Eaft).map_err(|what| unknown(text, &what)),
            (_, Some(_)) => Err(unknown(text, &format!("{name} has no numbers to choose"))),
        }
    }
}

fn unknown(text: &str, what: &str) -> Error {
    let names: Vec<String> = Gate::preview().iter().map(Gate::to_string).collect();
    let known = format!("Use one of {}, with any exponent, slope, center or share.", names.join(", "));
    Error::usage(format!("unknown gate `{text}`: {what}")).cure(known)
}

/// As the user would type it.
impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gate::Eaft(eaft) => f.pad(&eaft.to_string()),
            gate => f.pad(METHODS.iter().find(|method| method.gate == *gate).map_or("", |method| method.name)),
        }
    }
}

impl fmt::Display for Eaft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Eaft::LINEAR => return f.write_str("eaft"),
            Eaft::LLAMA_FACTORY => return f.write_str("eaft:llama-factory"),
            Eaft::AXOLOTL => return f.write_str("eaft:axolotl"),
            _ => {}
        }
        match self.curve {
            Curve::Power { exponent: 1.0 } => f.write_str("eaft")?,
            Curve::Power { exponent } => write!(f, "eaft:power:{exponent}")?,
            Curve::Sigmoid { slope, center } => write!(f, "eaft:sigmoid:{slope},{center}")?,
            Curve::Mask { share } => write!(f, "eaft:mask:{share}")?,
        }
        if self.normaliser != Normaliser::default() {
            write!(f, " --normaliser {}", self.normaliser)?;
        }
        if self.k != TOP_K {
            write!(f, " --top-k {}", self.k)?;
        }
        Ok(())
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Method> {
        METHODS
            .iter()
            .find(|method| method.name == name)
            .copied()
            .ok_or_else(|| Error::usage(format!("there is no method called `{name}`")).cure(format!("Give {}.", method_names())))
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

/// By its name.
impl Serialize for Method {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Method, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for Normaliser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Normaliser::LnK => "ln-k",
            Normaliser::Three => "3.0",
            Normaliser::None => "none",
        })
    }
}

fn one() -> f32 {
    1.0
}

// Serde hands over a reference.
fn is_one(scale: &f32) -> bool {
    *scale == 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::uniform;

    fn weight(gate: &str, logprob: f32, entropy: f32, entropy_topk: f32) -> f32 {
        let population = Population::of_thresholds(0.1, -2.0, 0.5).with_batch_tau(&mut [0.5]);
        let token = Token { logprob, entropy, entropy_topk, grad: 1.0, earlier: logprob };
        gate.parse::<Gate>().unwrap().bind(&population).unwrap().of(&token)
    }

    #[test]
    fn every_formula_by_hand() {
        let half = 0.5f32.ln();
        for (gate, expected) in [
            ("sft", 1.0),
            ("eaft", 0.25),
            ("eaft:power:2", 0.0625),
            ("eaft:power:3", 0.015625),
            ("eaft:power:0.5", 0.5),
            // 1 / (1 + exp(-30 (0.25 - 0.17))) = 1 / (1 + exp(-2.4))
            ("eaft:sigmoid:30,0.17", 0.916_827_3),
            ("eaft:mask:0.15", 1.0),
            ("eaft:llama-factory", 0.249_644_36),
            ("eaft:axolotl", 0.748_933_1),
            ("pilot", 1.0),
            ("dft", 0.5),
            // 0.5^(1 / 0.5)
            ("talr", 0.25),
        ] {
            let weight = weight(gate, half, 0.8, 0.25);
            assert!((weight - expected).abs() < 1e-6, "{gate}: {weight}, expected {expected}");
        }
    }

    #[test]
    fn both_ends() {
        // A sure model that is wrong, and one that has no idea: (ln p, H, H~).
        let (sure, clueless) = ((-20.0, 0.0, 0.0), (-3.0, 3.0, 1.0));
        for (gate, at_sure, at_clueless) in [
            ("sft", 1.0, 1.0),
            ("eaft", 0.0, 1.0),
            ("eaft:power:3", 0.0, 1.0),
            ("eaft:sigmoid:30,0.17", 0.006_059_8, 1.0),
            ("eaft:mask:0.15", 0.0, 1.0),
            ("eaft:llama-factory", 0.0, 0.998_577_4),
            ("eaft:axolotl", 0.0, 2.995_732_3),
            ("pilot", 0.0, 1.0),
            ("dft", 2.061_153_6e-9, 0.049_787_07),
            ("talr", 0.01, 0.01),
        ] {
            let of = |(logprob, entropy, entropy_topk)| weight(gate, logprob, entropy, entropy_topk);
            assert!((of(sure) - at_sure).abs() < 1e-6, "{gate} sure: {}", of(sure));
            assert!((of(clueless) - at_clueless).abs() < 1e-6, "{gate} clueless: {}", of(clueless));
        }
        assert_eq!(weight("talr", 0.0, 0.0, 0.0), 1.0);
        assert_eq!(weight("dft", 0.0, 0.0, 0.0), 1.0);
    }

    #[test]
    fn deft_by_hand() {
        let of = |p: f32, squares: f32| {
            let (logprob, grad) = (p.ln(), (1.0 - 2.0 * p + squares).sqrt());
            let token = Token { logprob, entropy: 1.0, entropy_topk: 0.5, grad, earlier: logprob };
            (Weight::Deft.of(&token), Weight::Deft.loss(&token))
        };
        // One of four equal tokens: a = 1/4, p^a = sqrt(1/2), (1 - p^a) / a = 4 - 2 sqrt(2).
        let (weight, loss) = of(0.25, 0.25);
        assert!((weight - 0.5f32.sqrt()).abs() < 1e-6 && (loss - (4.0 - 8f64.sqrt())).abs() < 1e-5, "{weight} {loss}");
        // The model is sure of another token: a = 1, where deft is dft and its loss 1 - p.
        let (weight, loss) = of(0.001, 1.0);
        assert!((weight - 0.001).abs() < 1e-6 && (loss - 0.999).abs() < 1e-5, "{weight} {loss}");
        // It has no idea among a million: a = 0 but for rounding, where deft is sft.
        let (weight, loss) = of(1e-6, 1e-6);
        assert!((weight - 1.0).abs() < 2e-5 && (loss - 1e6f64.ln()).abs() < 2e-4, "{weight} {loss}");
        assert_eq!(of(1.0, 1.0), (1.0, 0.0));
    }

    #[test]
    fn psft_stops_what_has_grown_enough() {
        let weight = Gate::Ratio { most: 1.28 }.bind(&Population::default()).unwrap();
        let of = |old: f32, now: f32| {
            let (logprob, earlier) = (now.ln(), old.ln());
            let token = Token { logprob, entropy: 1.0, entropy_topk: 0.5, grad: 1.0, earlier };
            (weight.of(&token), weight.loss(&token))
        };
        // No update since: the gradient is sft's to the bit.
        assert_eq!(of(0.3, 0.3), (1.0, -1.0));
        for (old, now, ratio, value) in [(0.4, 0.5, 1.25, -1.25), (0.5, 0.25, 0.5, -0.5), (0.25, 0.5, 0.0, -1.28)] {
            let (weight, loss) = of(old, now);
            assert!((weight - ratio).abs() < 1e-6 && (loss - value).abs() < 1e-6, "{old} -> {now}: {weight} {loss}");
        }
    }

    #[test]
    fn stm_masks_by_what_the_base_model_believed() {
        let weight = "stm".parse::<Gate>().unwrap().bind(&Population::default()).unwrap();
        let of = |before: f32, now: f32| {
            let (logprob, earlier) = (now.ln(), before.ln());
            weight.of(&Token { logprob, entropy: 1.0, entropy_topk: 0.5, grad: 1.0, earlier })
        };
        // 1/p > 2.5 is p < 0.4, and the mask stays what it was, whatever is learnt.
        assert_eq!([of(0.39, 0.39), of(0.39, 0.99), of(0.41, 0.41), of(0.41, 0.01)], [0.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn masks_take_away_what_is_at_or_below() {
        assert_eq!(weight("eaft:mask:0.15", -1.0, 1.0, 0.1), 0.0);
        assert_eq!(weight("pilot", -2.0, 0.5, 0.5), 0.0);
        assert_eq!(weight("pilot", -1.9, 0.5, 0.5), 1.0, "low entropy alone is kept");
        assert_eq!(weight("pilot", -9.0, 0.6, 0.5), 1.0, "low p alone is kept");
    }

    #[test]
    fn what_is_typed_comes_back() {
        for gate in Gate::preview() {
            assert_eq!(gate.to_string().parse::<Gate>().unwrap(), gate);
        }
        assert_eq!("eaft:sigmoid".parse::<Gate>().unwrap().to_string(), "eaft:sigmoid:30,0.17");
        assert_eq!("eaft:power:1".parse::<Gate>().unwrap().to_string(), "eaft");
        for text in [
            "",
            "eaft:",
            "eaft:power",
            "eaft:power:-1",
            "eaft:power:x",
            "eaft:sigmoid:1",
            "eaft:mask:2",
            "power:2",
            "SFT",
            "dft:1",
            "asft",
        ] {
            let error = text.parse::<Gate>().unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(error.to_string().contains("eaft:axolotl"), "{error}");
        }
    }

    #[test]
    fn a_gate_without_its_population_says_what_it_needs() {
        for gate in ["pilot", "talr", "eaft:mask:0.15"] {
            let gate: Gate = gate.parse().unwrap();
            assert!(gate.bind(&Population::default()).unwrap_err().to_string().contains("this gate needs"));
        }
    }

    /// The weight as `--gate`, `--normaliser` and `--top-k` ask for it.
    fn asked(method: &str, gate: Option<&str>, normaliser: Option<Normaliser>, top_k: Option<usize>) -> Result<Gate> {
        method.parse::<Method>()?.gate_under(gate, normaliser, top_k)
    }

    const NORMALISERS: [Option<Normaliser>; 4] = [None, Some(Normaliser::LnK), Some(Normaliser::Three), Some(Normaliser::None)];

    #[test]
    fn a_mask_takes_its_share_under_every_normaliser_and_k() {
        // H~ of a thousand tokens, no two of them equal.
        let entropies: Vec<f32> = (0..1000).map(|i| uniform(3, i).powi(2)).collect();
        for k in [2, 20, 50] {
            for normaliser in NORMALISERS {
                for (method, curve, share) in
                    [("mask", None, 0.15), ("eaft", Some("mask:0.15"), 0.15), ("eaft", Some("mask:0.4"), 0.4)]
                {
                    let gate = asked(method, curve, normaliser, Some(k)).unwrap();
                    let population = Population::default().with_topk_entropies(gate.top_k(), share, &entropies);
                    let weight = gate.bind(&population).unwrap();
                    let token = |entropy_topk| Token { logprob: -1.0, entropy: 1.0, entropy_topk, grad: 1.0, earlier: -1.0 };
                    let masked = entropies.iter().filter(|&&entropy| weight.of(&token(entropy)) == 0.0).count();
                    assert_eq!(masked as f64, share * 1000.0, "{gate}");
                    // And of another K it says what it misses.
                    let other = Population::default().with_topk_entropies(k + 1, share, &entropies);
                    let error = gate.bind(&other).unwrap_err().to_string();
                    assert!(error.contains(&format!("top-{k} entropy")), "{error}");
                }
            }
        }
    }

    #[test]
    fn a_normaliser_divides_once_however_it_is_asked_for() {
        // H~ = 0.5 of the top 20: 1.4979 nats.
        let at_half = |gate: Gate| {
            let token = Token { logprob: -1.0, entropy: 1.0, entropy_topk: 0.5, grad: 1.0, earlier: -1.0 };
            gate.bind(&Population::default()).unwrap().of(&token)
        };
        let nats = 0.5 * 20f32.ln();
        for (gate, normaliser, expected) in [
            (None, None, 0.5),
            (Some("linear"), Some(Normaliser::LnK), 0.5),
            (Some("linear"), Some(Normaliser::None), nats),
            (Some("axolotl"), None, nats),
            (Some("axolotl"), Some(Normaliser::None), nats),
            (Some("eaft:axolotl"), Some(Normaliser::None), nats),
            (Some("llama-factory"), Some(Normaliser::Three), nats / 3.0),
            (Some("power:2"), Some(Normaliser::Three), (nats / 3.0) * (nats / 3.0)),
            (Some("sigmoid:30,0.17"), Some(Normaliser::None), 1.0 / (1.0 + (-30.0 * (nats - 0.17)).exp())),
        ] {
            let found = at_half(asked("eaft", gate, normaliser, None).unwrap());
            assert!((found - expected).abs() < 1e-6, "{gate:?} {normaliser:?}: {found}, expected {expected}");
        }
        // axolotl's K is free.
        let of_50 = at_half(asked("eaft", Some("axolotl"), None, Some(50)).unwrap());
        assert!((of_50 - 0.5 * 50f32.ln()).abs() < 1e-6);
        assert_eq!(20f32.ln(), 2.995_732_3, "the constant that stood here before");
    }

    #[test]
    fn what_means_nothing_together_is_refused_with_a_cure() {
        let three = Some(Normaliser::Three);
        for (method, gate, normaliser, top_k, what, cure) in [
            ("dft", Some("power:2"), None, None, "--gate power:2", "--method eaft"),
            ("mask", Some("mask:0.3"), None, None, "the method is mask", "--method eaft"),
            ("sft", None, three, None, "--normaliser 3.0", "Leave it out"),
            ("talr", None, None, Some(50), "--top-k 50", "Leave it out"),
            ("eaft", Some("axolotl"), three, None, "the normaliser none already", "--gate linear --normaliser 3.0"),
            ("eaft", Some("llama-factory"), None, Some(50), "--top-k is 50", "--gate linear --normaliser 3.0 --top-k 50"),
        ] {
            let error = asked(method, gate, normaliser, top_k).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(what) && text.contains(cure) && error.exit_code() == 2, "{text}");
        }
        // What a file of an earlier run says of every method.
        assert_eq!(asked("sft", None, Some(Normaliser::LnK), Some(20)).unwrap(), Gate::One);
    }

    #[test]
    fn the_readme_lists_the_methods() {
        let readme = include_str!("../../README.md");
        let expected = methods_in_markdown();
        assert!(readme.contains(&expected), "README.md should hold this table:\n{expected}");
    }
}
