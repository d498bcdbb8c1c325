//! (ln p, H, H~) of a token -> its weight in the loss: every token loss of the literature as one pure function.
//!
//! The loss is `- sum_t w_t ln p_t`, the weight taken as a constant (no gradient through it). Plain fine-tuning is the gate
//! that returns 1. H~ is the entropy of the renormalised top K, divided by ln K, so that it lies in 0..1 (`entropy_topk`).
//!
//! | name | weight | range | sure model (H~ = 0) | clueless model (H~ = 1) |
//! |---|---|---|---|---|
//! | `sft` | 1 | 1 | 1 | 1 |
//! | `eaft`, `eaft:power:N` | H~^N | 0..1 | 0 | 1 |
//! | `eaft:sigmoid:A,B` | 1 / (1 + exp(-A (H~ - B))) | 0..1 | 0.006 (A 30, B 0.17) | 1 |
//! | `eaft:mask:Q` | 1 if H~ > its Q-quantile, else 0 | 0, 1 | 0 | 1 |
//! | `pilot` | 0 if both p and H are at or below their 15 % quantiles, else 1 | 0, 1 | 0 if p is low | 1 |
//! | `eaft:llama-factory` | H~ ln K / 3, K = 20 | 0..0.9986 | 0 | 0.9986 |
//! | `eaft:axolotl` | H~ ln K, K = 20 | 0..2.9957 | 0 | 2.9957 |
//! | `dft` | p | 0..1 | 0 at p = 0, 1 at p = 1 | as left |
//! | `talr` | max(p^(1/tau), 0.01) | 0.01..1 | 0.01 at p = 0, 1 at p = 1 | as left |
//!
//! Sources: EAFT with all its curves and the pilot mask, arXiv 2601.02151; DFT, arXiv 2508.05629; TALR, arXiv 2509.20758;
//! `use_eaft_loss` in LLaMA-Factory's `trainer_utils.py`; `use_eaft` in axolotl's `monkeypatch/loss/eaft.py`.
//! Left out: losses that need more than the token itself (a reference model's distribution, a weight per sample).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::quadrants::PILOT_SHARE;
use crate::table::{Column, quantiles, read_chunks};
use crate::{Error, Result};

/// A gate by name. [`Gate::bind`] makes the weight function of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gate {
    Sft,
    /// `eaft` is the power 1.
    EaftPower {
        exponent: f32,
    },
    EaftSigmoid {
        slope: f32,
        center: f32,
    },
    EaftMask {
        share: f64,
    },
    EaftLlamaFactory,
    EaftAxolotl,
    Pilot,
    Dft,
    Talr,
}

/// A gate with its numbers filled in: a function of one token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "function")]
pub enum Weight {
    /// 1
    One,
    /// (scale H~)^exponent
    Power { scale: f32, exponent: f32 },
    /// 1 / (1 + exp(-slope (H~ - center)))
    Sigmoid { slope: f32, center: f32 },
    /// 1 if H~ > threshold, else 0
    Above { threshold: f32 },
    /// 0 if ln p <= logprob and H <= entropy, else 1
    OutsideCorner { logprob: f32, entropy: f32 },
    /// p
    Probability,
    /// max(p^(1/tau), 0.01)
    Tempered { tau: f32 },
}

impl Weight {
    /// The weight of a token: finite and not negative for finite input with ln p <= 0 and H, H~ >= 0.
    #[inline]
    pub fn of(&self, logprob: f32, entropy: f32, entropy_topk: f32) -> f32 {
        match *self {
            Weight::One => 1.0,
            Weight::Power { scale, exponent } => {
                let x = scale * entropy_topk;
                // The usual exponents by multiplication: exact, and ten times as fast as the general power.
                match exponent {
                    1.0 => x,
                    2.0 => x * x,
                    3.0 => x * x * x,
                    _ => x.powf(exponent),
                }
            }
            Weight::Sigmoid { slope, center } => 1.0 / (1.0 + (-slope * (entropy_topk - center)).exp()),
            Weight::Above { threshold } => f32::from(u8::from(entropy_topk > threshold)),
            Weight::OutsideCorner { logprob: p, entropy: h } => f32::from(u8::from(!(logprob <= p && entropy <= h))),
            Weight::Probability => logprob.exp(),
            Weight::Tempered { tau } => (logprob / tau).exp().max(TALR_FLOOR),
        }
    }
}

/// The paper's smallest weight for TALR (arXiv 2509.20758, also table 1 of 2601.02151).
const TALR_FLOOR: f32 = 0.01;
/// A data set that the model predicts perfectly has tau 0, and 0 / 0 is no weight; any tau this small gives p = 1 the weight 1.
const SMALLEST_TAU: f32 = 1e-6;
/// ln 20: the K that both implementations fix.
const LN_20: f32 = 2.995_732_3;
/// `entropy_term = approx_entropy / 3.0` in LLaMA-Factory's `src/llamafactory/train/trainer_utils.py`.
const LLAMA_FACTORY_NORMALISER: f32 = 3.0;

impl Gate {
    /// Every gate of the preview, in the order of the table above.
    pub const PREVIEW: [Gate; 11] = [
        Gate::Sft,
        Gate::EaftPower { exponent: 1.0 },
        Gate::EaftPower { exponent: 2.0 },
        Gate::EaftPower { exponent: 3.0 },
        Gate::EaftSigmoid { slope: 30.0, center: 0.17 },
        Gate::EaftMask { share: PILOT_SHARE },
        Gate::Pilot,
        Gate::EaftLlamaFactory,
        Gate::EaftAxolotl,
        Gate::Dft,
        Gate::Talr,
    ];

    /// Fills in what the gate needs to know about the other tokens.
    pub fn bind(&self, population: &Population) -> Result<Weight> {
        Ok(match *self {
            Gate::Sft => Weight::One,
            Gate::EaftPower { exponent } => Weight::Power { scale: 1.0, exponent },
            Gate::EaftSigmoid { slope, center } => Weight::Sigmoid { slope, center },
            Gate::EaftMask { share } => Weight::Above { threshold: population.quantile(Column::EntropyTopk, share)? },
            Gate::EaftLlamaFactory => Weight::Power { scale: LN_20 / LLAMA_FACTORY_NORMALISER, exponent: 1.0 },
            Gate::EaftAxolotl => Weight::Power { scale: LN_20, exponent: 1.0 },
            Gate::Pilot => Weight::OutsideCorner {
                logprob: population.quantile(Column::Logprob, PILOT_SHARE)?,
                entropy: population.quantile(Column::Entropy, PILOT_SHARE)?,
            },
            Gate::Dft => Weight::Probability,
            Gate::Talr => Weight::Tempered { tau: population.tau()? },
        })
    }

    fn quantiles(&self) -> Vec<(Column, f64)> {
        match self {
            Gate::EaftMask { share } => vec![(Column::EntropyTopk, *share)],
            Gate::Pilot => vec![(Column::Logprob, PILOT_SHARE), (Column::Entropy, PILOT_SHARE)],
            _ => Vec::new(),
        }
    }
}

/// What the gates that compare a token with the others need to know about them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Population {
    quantiles: Vec<((Column, f64), f32)>,
    tau: Option<f32>,
}

impl Population {
    /// Of a whole data set: what these gates need and no more.
    pub fn of_tables(tables: &[PathBuf], gates: &[Gate]) -> Result<Population> {
        let mut wanted: Vec<(Column, f64)> = Vec::new();
        for quantile in gates.iter().flat_map(Gate::quantiles) {
            if !wanted.contains(&quantile) {
                wanted.push(quantile);
            }
        }
        let values = quantiles(tables, &wanted)?;
        let tau = if gates.contains(&Gate::Talr) { talr_tau(&mut sequence_losses(tables)?) } else { None };
        Ok(Population { quantiles: wanted.into_iter().zip(values).collect(), tau })
    }

    /// Of the paper's 15 % quantiles, known from elsewhere.
    pub fn of_thresholds(entropy_topk: f32, logprob: f32, entropy: f32) -> Population {
        let columns = [(Column::EntropyTopk, entropy_topk), (Column::Logprob, logprob), (Column::Entropy, entropy)];
        Population { quantiles: columns.map(|(column, value)| ((column, PILOT_SHARE), value)).to_vec(), tau: None }
    }

    /// The same thresholds with the tau of one training batch, given the mean -ln p of each of its sequences: the original
    /// TALR takes it per batch, the preview over the whole data set.
    pub fn with_batch_tau(mut self, mean_losses: &mut [f64]) -> Population {
        self.tau = talr_tau(mean_losses);
        self
    }

    fn quantile(&self, column: Column, share: f64) -> Result<f32> {
        let found = self.quantiles.iter().find(|(wanted, _)| *wanted == (column, share));
        found.map(|(_, value)| *value).ok_or_else(|| {
            Error::new(format!("this gate needs the {share} quantile of `{}` over the data set", column.name()))
                .cure("Score the data set with the same model first.")
        })
    }

    fn tau(&self) -> Result<f32> {
        self.tau.ok_or_else(|| Error::new("this gate needs the mean loss of the sequences, and there are none"))
    }
}

/// TALR's temperature: the median of the sequences' mean -ln p (the mean of the two middle ones if they are even in number).
fn talr_tau(mean_losses: &mut [f64]) -> Option<f32> {
    mean_losses.sort_unstable_by(f64::total_cmp);
    let upper = *mean_losses.get(mean_losses.len() / 2)?;
    let lower = mean_losses[(mean_losses.len() - 1) / 2];
    Some(((lower + upper) / 2.0).max(f64::from(SMALLEST_TAU)) as f32)
}

/// Mean -ln p of each sequence, in the order of the table. The tokens of a sequence stand together.
fn sequence_losses(tables: &[PathBuf]) -> Result<Vec<f64>> {
    let mut means = Vec::new();
    let mut current: Option<(u32, f64, u32)> = None;
    for chunk in read_chunks(tables, &[Column::Row, Column::Logprob]) {
        let chunk = chunk?;
        let tokens = chunk.row.iter().zip(&chunk.logprob).filter(|(_, logprob)| logprob.is_finite());
        for (row, logprob) in tokens {
            match &mut current {
                Some((open, sum, n)) if open == row => {
                    *sum -= f64::from(*logprob);
                    *n += 1;
                }
                _ => {
                    means.extend(current.map(|(_, sum, n)| sum / f64::from(n)));
                    current = Some((*row, -f64::from(*logprob), 1));
                }
            }
        }
    }
    means.extend(current.map(|(_, sum, n)| sum / f64::from(n)));
    Ok(means)
}

impl FromStr for Gate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Gate> {
        let wrong = |what: &str| Error::usage(format!("unknown gate `{text}`: {what}")).cure(known_gates());
        let numbers = |text: &str| -> Result<Vec<f64>> {
            let number = |text: &str| text.trim().parse().ok().filter(|number: &f64| number.is_finite());
            text.split(',').map(|part| number(part).ok_or_else(|| wrong(&format!("`{part}` is not a number")))).collect()
        };
        let (name, parameters) = match text.strip_prefix("eaft:").and_then(|curve| curve.split_once(':')) {
            Some((curve, parameters)) => (curve, Some(numbers(parameters)?)),
            None => (text, None),
        };
        match (name, parameters.as_deref()) {
            ("sft", None) => Ok(Gate::Sft),
            ("eaft" | "eaft:linear", None) => Ok(Gate::EaftPower { exponent: 1.0 }),
            ("power", Some([exponent])) if *exponent >= 0.0 => Ok(Gate::EaftPower { exponent: *exponent as f32 }),
            ("power", Some(_)) => Err(wrong("a power has one exponent, 0 or more")),
            ("eaft:sigmoid", None) => Ok(Gate::EaftSigmoid { slope: 30.0, center: 0.17 }),
            ("sigmoid", Some([slope, center])) => Ok(Gate::EaftSigmoid { slope: *slope as f32, center: *center as f32 }),
            ("sigmoid", Some(_)) => Err(wrong("a sigmoid has a slope and a center")),
            ("eaft:mask", None) => Ok(Gate::EaftMask { share: PILOT_SHARE }),
            ("mask", Some([share])) if (0.0..=1.0).contains(share) => Ok(Gate::EaftMask { share: *share }),
            ("mask", Some(_)) => Err(wrong("a mask has one share of the tokens, between 0 and 1")),
            ("eaft:llama-factory", None) => Ok(Gate::EaftLlamaFactory),
            ("eaft:axolotl", None) => Ok(Gate::EaftAxolotl),
            ("pilot", None) => Ok(Gate::Pilot),
            ("dft", None) => Ok(Gate::Dft),
            ("talr", None) => Ok(Gate::Talr),
            _ => Err(wrong("no such name")),
        }
    }
}

/// As the user would type it.
impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gate::Sft => f.pad("sft"),
            Gate::EaftPower { exponent: 1.0 } => f.pad("eaft"),
            Gate::EaftPower { exponent } => f.pad(&format!("eaft:power:{exponent}")),
            Gate::EaftSigmoid { slope, center } => f.pad(&format!("eaft:sigmoid:{slope},{center}")),
            Gate::EaftMask { share } => f.pad(&format!("eaft:mask:{share}")),
            Gate::EaftLlamaFactory => f.pad("eaft:llama-factory"),
            Gate::EaftAxolotl => f.pad("eaft:axolotl"),
            Gate::Pilot => f.pad("pilot"),
            Gate::Dft => f.pad("dft"),
            Gate::Talr => f.pad("talr"),
        }
    }
}

fn known_gates() -> String {
    let names: Vec<String> = Gate::PREVIEW.iter().map(Gate::to_string).collect();
    format!("Use one of {}, with any exponent, slope, center or share.", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::finished_parts;
    use crate::table::testing::{Example, token, write_parts};

    fn weight(gate: &str, logprob: f32, entropy: f32, entropy_topk: f32) -> f32 {
        let population = Population {
            quantiles: vec![((Column::EntropyTopk, 0.15), 0.1), ((Column::Logprob, 0.15), -2.0), ((Column::Entropy, 0.15), 0.5)],
            tau: Some(0.5),
        };
        gate.parse::<Gate>().unwrap().bind(&population).unwrap().of(logprob, entropy, entropy_topk)
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
    fn masks_take_away_what_is_at_or_below() {
        assert_eq!(weight("eaft:mask:0.15", -1.0, 1.0, 0.1), 0.0);
        assert_eq!(weight("pilot", -2.0, 0.5, 0.5), 0.0);
        assert_eq!(weight("pilot", -1.9, 0.5, 0.5), 1.0, "low entropy alone is kept");
        assert_eq!(weight("pilot", -9.0, 0.6, 0.5), 1.0, "low p alone is kept");
    }

    #[test]
    fn tau_is_a_median_of_sequence_means() {
        assert_eq!(talr_tau(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(talr_tau(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(talr_tau(&mut [0.0]), Some(SMALLEST_TAU));
        assert_eq!(talr_tau(&mut []), None);
        let run = tempfile::tempdir().unwrap();
        let row = |row, ps: &[f32]| Example { row, source: "a", tokens: ps.iter().map(|p| token(1, *p, 1.0)).collect() };
        // Mean losses ln 4 and ln 2 and ln 16; one sequence after the other in two parts.
        write_parts(run.path(), &[&[row(0, &[0.5, 0.125])], &[row(1, &[0.5]), row(2, &[0.0625, 0.0625, 0.0625])]]);
        let tables: Vec<PathBuf> = finished_parts(run.path()).unwrap().into_iter().map(|part| part.tokens).collect();
        let population = Population::of_tables(&tables, &Gate::PREVIEW).unwrap();
        assert!((population.tau.unwrap() - 4f32.ln()).abs() < 1e-6);
        assert_eq!(population.quantiles.len(), 3);
        assert_eq!(population.with_batch_tau(&mut [1.0, 5.0]).tau, Some(3.0));
    }

    #[test]
    fn what_is_typed_comes_back() {
        for gate in Gate::PREVIEW {
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
        ] {
            let error = text.parse::<Gate>().unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(error.to_string().contains("eaft:axolotl"), "{error}");
        }
    }

    #[test]
    fn a_gate_without_its_population_says_what_it_needs() {
        for gate in [Gate::Pilot, Gate::Talr, Gate::EaftMask { share: 0.15 }] {
            assert!(gate.bind(&Population::default()).unwrap_err().to_string().contains("this gate needs"));
        }
    }
}
