//! Computes EAFT's weight: a curve of the entropy of the K most probable tokens, divided by a normaliser.

use std::fmt;

use super::weight::Weight;
use crate::diagnosis::population::{Population, Quantity};
use crate::diagnosis::quadrants::PILOT_SHARE;
use crate::engine::TOP_K;
use crate::error::Result;
use crate::spelling::named;

/// EAFT's weight: a curve of the entropy of the K most probable tokens, divided by a normaliser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Eaft {
    /// The curve, a function of the normalised entropy.
    pub curve: Curve,
    /// What the top-K entropy is divided by.
    pub normaliser: Normaliser,
    /// The `K` of the top-K entropy.
    pub k: usize,
}

/// How the weight follows from the normalised entropy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Curve {
    /// `eaft:linear` has the exponent 1.
    Power {
        exponent: f32,
    },
    Sigmoid {
        slope: f32,
        center: f32,
    },
    /// Masks this share of the tokens.
    Mask {
        share: f64,
    },
}

/// What the top-K entropy is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normaliser {
    /// ln K, as in the paper: H~ in 0..1.
    #[default]
    LnK,
    /// 3.0, as in LLaMA-Factory.
    Three,
    /// Nothing, as in axolotl.
    None,
}

named! { pub Normaliser, "a normaliser": LnK = "ln-k", Three = "3.0", None = "none" }

/// `entropy_term = approx_entropy / 3.0` in LLaMA-Factory's `src/llamafactory/train/trainer_utils.py`.
const LLAMA_FACTORY_NORMALISER: f32 = 3.0;

impl Eaft {
    /// The paper's weight: the entropy of the 20 most probable tokens over ln 20.
    pub const LINEAR: Eaft = Eaft { curve: Curve::Power { exponent: 1.0 }, normaliser: Normaliser::LnK, k: TOP_K };
    const SIGMOID: Eaft = Eaft { curve: Curve::Sigmoid { slope: 30.0, center: 0.17 }, ..Eaft::LINEAR };
    const LLAMA_FACTORY: Eaft = Eaft { normaliser: Normaliser::Three, ..Eaft::LINEAR };
    const AXOLOTL: Eaft = Eaft { normaliser: Normaliser::None, ..Eaft::LINEAR };

    /// The variants shown by the preview; `mask` is a method of its own.
    pub(super) const VARIANTS: [Eaft; 6] = [
        Eaft::LINEAR,
        Eaft { curve: Curve::Power { exponent: 2.0 }, ..Eaft::LINEAR },
        Eaft { curve: Curve::Power { exponent: 3.0 }, ..Eaft::LINEAR },
        Eaft::SIGMOID,
        Eaft::LLAMA_FACTORY,
        Eaft::AXOLOTL,
    ];

    pub(super) fn bind(&self, population: &Population) -> Result<Weight> {
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

    /// The factor on `entropy_topk`, which is already divided by ln K.
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

    /// Parses what follows `eaft:`; the error says why it is no curve.
    pub(super) fn parse(text: &str) -> std::result::Result<Eaft, String> {
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

/// Parses numbers separated by commas.
fn numbers(text: &str) -> std::result::Result<Vec<f64>, String> {
    let number = |part: &str| part.trim().parse().ok().filter(|number: &f64| number.is_finite());
    text.split(',').map(|part| number(part).ok_or_else(|| format!("`{part}` is not a number"))).collect()
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
