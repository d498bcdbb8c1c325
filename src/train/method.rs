//! What a token's loss is: the method that the user chose, with its numbers filled in.
//!
//! With `N` supervised tokens in the batch of an optimiser step, `p` the probability of the target, `H~` its normalised top-K
//! entropy, and `stop` marking what counts as a constant:
//!
//! | method | loss | source |
//! |---|---|---|
//! | `sft` | `1/N sum -ln p` | |
//! | `eaft` | `1/N sum stop(f(s H~)) (-ln p)` | arXiv 2601.02151; `f` the gate, `s` the normaliser (below) |
//! | `mask` | the same with `f(x) = 1 if x > its 15 % quantile, else 0` | ibid., "Masked SFT" |
//! | `pilot` | 0 for tokens in the lowest 15 % of both `p` and `H`, else `-ln p` | ibid., pilot study |
//! | `dft` | `1/N sum stop(p) (-ln p)` | arXiv 2508.05629 |
//! | `asft` | `dft + b/N sum KL(base, model)`, `b` = 0.1 | LLaMA-Factory `use_asft_loss` |
//! | `talr` | `1/N sum stop(max(p^(1/tau), 0.01)) (-ln p)`, `tau` the median over the batch's sequences of their mean `-ln p` | arXiv 2509.20758 |
//! | `flow` | `1/N sum w_i (-ln p)`, `w_i ~ exp(-l_i / tau)` of the base's mean loss `l_i` of the sequence, `tau` the median `l_i`, `w` with mean 1 over the data | arXiv 2502.02797 |
//! | `sft-kl` | `1/N sum -ln p + b KL(model, base)`, `b` = 0.5 | arXiv 2601.02151, section 4 |
//!
//! In rows named by `--intended` a token counts fully: the `stop(..)` and `w_i` above are 1 (`+ b KL` stays).
//!
//! `KL(a, b) = sum_v a ln(a / b)`. The normaliser divides the top-K entropy: by `ln K` (the paper), by 3.0 (LLaMA-Factory) or not at
//! all (axolotl), which makes weights of up to `ln K` = 2.9957 and learning rates that are not comparable.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::diagnosis::gate::{Gate, Population, Weight};
use crate::error::{Error, Result};
use crate::kernels::TokenStatistics;
use crate::kernels::head::{Divergence, TokenLoss};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    Sft,
    Eaft,
    Mask,
    Pilot,
    Dft,
    Asft,
    Talr,
    Flow,
    SftKl,
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

/// A method with its numbers.
#[derive(Debug, Clone)]
pub struct Loss {
    pub method: Method,
    gate: Gate,
    /// What `entropy_topk`, which comes divided by ln K, is multiplied by.
    scale: f32,
    /// Factor of the divergence from the base model.
    kl_weight: f32,
    /// Quantiles over the data set, for the gates that need them.
    population: Population,
}

/// The loss of one optimiser step's batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchLoss {
    weight: Weight,
    scale: f32,
    asft: f32,
    sft_kl: f32,
}

/// How much a token counts: the weights of the sequences that have it, over `N`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Share {
    /// Of those where the method weighs the token.
    pub weighted: f32,
    /// Of those whose conflicts are intended.
    pub whole: f32,
}

impl Method {
    const ALL: [Method; 9] = [
        Method::Sft,
        Method::Eaft,
        Method::Mask,
        Method::Pilot,
        Method::Dft,
        Method::Asft,
        Method::Talr,
        Method::Flow,
        Method::SftKl,
    ];

    /// Compares the model with the base at every token.
    pub fn needs_reference(self) -> bool {
        matches!(self, Method::Asft | Method::SftKl)
    }

    /// Needs the base model's scores of the whole data set first.
    pub fn needs_scores(self, gate: Option<Gate>) -> bool {
        matches!(self, Method::Mask | Method::Pilot | Method::Flow) || matches!(gate, Some(Gate::EaftMask { .. }))
    }

    pub fn default_kl_weight(self) -> f32 {
        match self {
            Method::Asft => 0.1,
            Method::SftKl => 0.5,
            _ => 0.0,
        }
    }

    /// Weighs single tokens or rows, and so can leave rows alone whose conflicts are intended.
    pub fn has_weights(self) -> bool {
        !matches!(self, Method::Sft | Method::SftKl)
    }

    /// The gate that stands for the method in the preview.
    pub fn gate(self) -> Gate {
        match self {
            Method::Eaft => Gate::EaftPower { exponent: 1.0 },
            Method::Mask => Gate::EaftMask { share: crate::diagnosis::quadrants::PILOT_SHARE },
            Method::Pilot => Gate::Pilot,
            Method::Dft | Method::Asft => Gate::Dft,
            Method::Talr => Gate::Talr,
            Method::Sft | Method::Flow | Method::SftKl => Gate::Sft,
        }
    }
}

impl Loss {
    /// `gate` replaces EAFT's linear one.
    pub fn new(
        method: Method,
        gate: Option<Gate>,
        normaliser: Normaliser,
        top_k: usize,
        kl_weight: Option<f32>,
        population: Population,
    ) -> Loss {
        let ln_k = (top_k as f32).ln();
        let scale = match normaliser {
            Normaliser::LnK => 1.0,
            Normaliser::Three => ln_k / 3.0,
            Normaliser::None => ln_k,
        };
        let kl_weight = kl_weight.unwrap_or(method.default_kl_weight());
        Loss { method, gate: gate.unwrap_or(method.gate()), scale, kl_weight, population }
    }

    /// For one step. `mean_losses` are the mean `-ln p` of the batch's sequences, which TALR alone asks for.
    pub fn of_batch(&self, mean_losses: Option<&mut [f64]>) -> Result<BatchLoss> {
        let weight = match mean_losses {
            Some(means) => self.gate.bind(&self.population.clone().with_batch_tau(means))?,
            None => self.gate.bind(&self.population)?,
        };
        let kl = |method: Method| if self.method == method { self.kl_weight } else { 0.0 };
        let (asft, sft_kl) = (kl(Method::Asft), kl(Method::SftKl));
        Ok(BatchLoss { weight, scale: self.scale, asft, sft_kl })
    }
}

impl BatchLoss {
    /// The constant before `-ln p` of a token.
    pub fn weight(&self, token: &TokenStatistics) -> f32 {
        self.weight.of(token.logprob, token.entropy, self.scale * token.entropy_topk)
    }

    /// The factors of a token's loss terms.
    pub fn factors(&self, token: &TokenStatistics, share: Share) -> TokenLoss {
        let Share { weighted, whole } = share;
        TokenLoss {
            cross_entropy: self.weight(token) * weighted + whole,
            from_reference: self.asft * (weighted + whole),
            to_reference: self.sft_kl * (weighted + whole),
        }
    }

    /// The token's loss before it is divided by `N`, in a row whose conflicts are intended or not.
    pub fn value(&self, token: &TokenStatistics, divergence: &Divergence, intended: bool) -> f64 {
        let weight = if intended { 1.0 } else { self.weight(token) };
        f64::from(weight) * -f64::from(token.logprob)
            + f64::from(self.asft) * f64::from(divergence.from_reference)
            + f64::from(self.sft_kl) * f64::from(divergence.to_reference)
    }
}

/// FLOW's weights of the sequences from the base model's mean losses of them: `exp(-l_i / tau)`, scaled to mean 1.
pub fn flow_weights(mean_losses: &[f64]) -> Vec<f32> {
    let mut sorted = mean_losses.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let n = sorted.len();
    if n == 0 {
        return Vec::new();
    }
    let tau = ((sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0).max(1e-6);
    let weights: Vec<f64> = mean_losses.iter().map(|loss| (-loss / tau).exp()).collect();
    let mean = weights.iter().sum::<f64>() / n as f64;
    weights.iter().map(|weight| (weight / mean) as f32).collect()
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Sft => "sft",
            Method::Eaft => "eaft",
            Method::Mask => "mask",
            Method::Pilot => "pilot",
            Method::Dft => "dft",
            Method::Asft => "asft",
            Method::Talr => "talr",
            Method::Flow => "flow",
            Method::SftKl => "sft-kl",
        })
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Method> {
        Method::ALL.into_iter().find(|method| method.to_string() == name).ok_or_else(|| {
            let known: Vec<String> = Method::ALL.iter().map(Method::to_string).collect();
            Error::usage(format!("there is no method called `{name}`")).cure(format!("Known are {}.", known.join(", ")))
        })
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

impl FromStr for Normaliser {
    type Err = Error;

    fn from_str(name: &str) -> Result<Normaliser> {
        match name {
            "ln-k" => Ok(Normaliser::LnK),
            "3" | "3.0" => Ok(Normaliser::Three),
            "none" => Ok(Normaliser::None),
            _ => Err(Error::usage(format!("there is no normaliser called `{name}`"))
                .cure("Give ln-k (the paper), 3.0 (LLaMA-Factory) or none (axolotl).")),
        }
    }
}
