//! Reads the tensors of an adapter, as changes to the base's tensors.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::settings::{MERGE, Settings};
use crate::error::{Error, Result};
use crate::model::source::listed;

/// The changes to one tensor of the base, applied in this order.
#[derive(Default)]
pub(super) struct Change {
    /// A tensor that replaces the base's.
    pub whole: Option<Whole>,
    /// Rows that replace those of some tokens.
    pub rows: Option<Rows>,
    /// The low-rank update to add.
    pub low_rank: Option<LowRank>,
    /// A term to add: `scale` times the bias of `B`.
    pub added: Option<Tensor>,
}

/// A tensor that is stored in full.
pub(super) struct Whole {
    /// The values that replace the base's.
    pub tensor: Tensor,
    /// Whether this is a copy beside the base's tensor (`modules_to_save`), which tensors tied to the base's do not follow.
    pub apart: bool,
}

pub(super) struct Rows {
    /// The ids of the tokens.
    pub tokens: Vec<u32>,
    /// `[tokens, D]`
    pub values: Tensor,
}

/// `W + scale * B A`, with `A [r, in]` and `B [out, r]`.
pub(super) struct LowRank {
    a: Tensor,
    b: Tensor,
    scale: f64,
    magnitude: Option<Magnitude>,
}

/// DoRA: the norms that the rows of the sum get (the columns, for an embedding; PEFT, `tuners/lora/dora.py`).
struct Magnitude {
    lengths: Tensor,
    of_columns: bool,
}

impl Change {
    /// The shape of the changed tensor, if the change determines it.
    pub(super) fn shape(&self) -> Option<Vec<usize>> {
        let whole = self.whole.as_ref().map(|whole| whole.tensor.dims().to_vec());
        let low_rank = self.low_rank.as_ref().map(|low| vec![low.b.dims()[0], low.a.dims()[1]]);
        whole.or(low_rank).or(self.added.as_ref().map(|added| added.dims().to_vec()))
    }

    /// Applies the changes to the tensor `base`.
    pub(super) fn apply(&self, base: Tensor) -> Result<Tensor> {
        let mut tensor = self.whole.as_ref().map_or(base, |whole| whole.tensor.clone());
        if let Some(rows) = &self.rows {
            tensor = rows.apply(&tensor)?;
        }
        if let Some(low_rank) = &self.low_rank {
            tensor = low_rank.apply(&tensor)?;
        }
        match &self.added {
            Some(added) => Ok((tensor + added)?),
            None => Ok(tensor),
        }
    }
}

impl Rows {
    pub(super) fn apply(&self, tensor: &Tensor) -> Result<Tensor> {
        let (n_rows, width) = tensor.dims2()?;
        if self.values.dims() != [self.tokens.len(), width] {
            return Err(Error::new(format!(
                "the rows of {} tokens are {:?}; expected [{}, {width}]",
                self.tokens.len(),
                self.values.dims(),
                self.tokens.len()
            )));
        }
        let mut numbers = tensor.flatten_all()?.to_vec1::<f32>()?;
        let values = self.values.flatten_all()?.to_vec1::<f32>()?;
        for (&token, row) in self.tokens.iter().zip(values.chunks_exact(width.max(1))) {
            let place = (token as usize) * width;
            match numbers.get_mut(place..place + width) {
                Some(place) => place.copy_from_slice(row),
                None => return Err(Error::new(format!("the adapter has a row for the token {token}; there are {n_rows}"))),
            }
        }
        Ok(Tensor::from_vec(numbers, (n_rows, width), tensor.device())?)
    }
}

impl LowRank {
    fn apply(&self, tensor: &Tensor) -> Result<Tensor> {
        let sum = (tensor + (self.b.matmul(&self.a)? * self.scale)?)?;
        let Some(magnitude) = &self.magnitude else { return Ok(sum) };
        let along = usize::from(!magnitude.of_columns);
        let lengths = sum.sqr()?.sum_keepdim(along)?.sqrt()?;
        let factors = (magnitude.lengths.reshape(lengths.dims())? / lengths)?;
        Ok(sum.broadcast_mul(&factors)?)
    }
}

/// The tensors that the file holds for one module.
#[derive(Default)]
struct Parts {
    a: Option<Tensor>,
    b: Option<Tensor>,
    bias_of_b: Option<Tensor>,
    magnitude: Option<Tensor>,
    is_embedding: bool,
}

/// Collects the changes, by the name of the base's tensor. The names in the file are `base_model.model.MODULE.PART`.
pub(super) fn changes(
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    settings: &Settings,
) -> Result<BTreeMap<String, Change>> {
    let mut modules: BTreeMap<String, Parts> = BTreeMap::new();
    let mut changes: BTreeMap<String, Change> = BTreeMap::new();
    let mut unknown = Vec::new();
    for (stored, tensor) in tensors {
        let tensor = tensor.to_dtype(DType::F32)?;
        let Some(name) = stored.strip_prefix("base_model.model.") else {
            unknown.push(stored);
            continue;
        };
        let Some((module, part)) = split(name) else {
            unknown.push(stored);
            continue;
        };
        match part {
            Part::A => modules.entry(module).or_default().a = Some(tensor),
            Part::B => modules.entry(module).or_default().b = Some(tensor),
            Part::BiasOfB => modules.entry(module).or_default().bias_of_b = Some(tensor),
            Part::Magnitude => modules.entry(module).or_default().magnitude = Some(tensor),
            // An embedding has `W + (B A)^T` with `A [r, V]` and `B [D, r]`; swapped and transposed, it is like any other update.
            Part::EmbeddingA => {
                let parts = modules.entry(module).or_default();
                (parts.b, parts.is_embedding) = (Some(transposed(&tensor, name)?), true);
            }
            Part::EmbeddingB => {
                let parts = modules.entry(module).or_default();
                (parts.a, parts.is_embedding) = (Some(transposed(&tensor, name)?), true);
            }
            Part::Rows => {
                let rows = Rows { tokens: settings.tokens_of(&module)?.to_vec(), values: tensor };
                changes.entry(format!("{module}.weight")).or_default().rows = Some(rows);
            }
            Part::Whole { of, of_base } => {
                let apart = !of_base && settings.is_saved(&module);
                let whole = &mut changes.entry(format!("{module}.{of}")).or_default().whole;
                if whole.replace(Whole { tensor, apart }).is_some() {
                    return Err(Error::new(format!("the adapter holds `{module}.{of}` twice")));
                }
            }
        }
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        return Err(Error::new(format!("the adapter holds tensors that are not supported: {}", listed(&unknown))).cure(MERGE));
    }
    for (module, parts) in modules {
        let (low_rank, added) = low_rank(&module, parts, settings)?;
        changes.entry(format!("{module}.weight")).or_default().low_rank = Some(low_rank);
        if let Some(added) = added {
            changes.entry(format!("{module}.bias")).or_default().added = Some(added);
        }
    }
    Ok(changes)
}

enum Part {
    A,
    B,
    BiasOfB,
    Magnitude,
    EmbeddingA,
    EmbeddingB,
    Rows,
    /// The module's own `weight` or `bias`; `of_base` if it is stored inside an adapted module.
    Whole {
        of: &'static str,
        of_base: bool,
    },
}

/// Splits a name into the module and the kind of tensor.
fn split(name: &str) -> Option<(String, Part)> {
    let ends = [
        (".lora_A.weight", Part::A),
        (".lora_B.weight", Part::B),
        (".lora_B.bias", Part::BiasOfB),
        (".lora_magnitude_vector", Part::Magnitude),
        (".lora_magnitude_vector.weight", Part::Magnitude),
        (".lora_embedding_A", Part::EmbeddingA),
        (".lora_embedding_B", Part::EmbeddingB),
        (".token_adapter.trainable_tokens_delta", Part::Rows),
        (".base_layer.weight", Part::Whole { of: "weight", of_base: true }),
        (".base_layer.bias", Part::Whole { of: "bias", of_base: true }),
        (".weight", Part::Whole { of: "weight", of_base: false }),
        (".bias", Part::Whole { of: "bias", of_base: false }),
    ];
    let found = ends.into_iter().find_map(|(end, part)| name.strip_suffix(end).map(|module| (module.to_owned(), part)))?;
    // A part that contains further adapter tensors is not understood here.
    let is_plain = !["lora_", "base_layer", "token_adapter", "modules_to_save"].iter().any(|mark| found.0.contains(mark));
    is_plain.then_some(found)
}

fn transposed(tensor: &Tensor, name: &str) -> Result<Tensor> {
    match tensor.rank() {
        2 => Ok(tensor.t()?.contiguous()?),
        _ => Err(Error::new(format!("`{name}` is {:?}; expected a matrix", tensor.dims()))),
    }
}

/// The update of a module, and what is added to its bias.
fn low_rank(module: &str, parts: Parts, settings: &Settings) -> Result<(LowRank, Option<Tensor>)> {
    let (Some(a), Some(b)) = (parts.a, parts.b) else {
        return Err(Error::new(format!("the adapter holds only one of lora_A and lora_B for `{module}`")));
    };
    let ([rank, width], [out, inner]) = (a.dims(), b.dims()) else {
        return Err(Error::new(format!("`{module}`: lora_A is {:?} and lora_B {:?}; expected matrices", a.dims(), b.dims())));
    };
    if rank != inner {
        return Err(Error::new(format!("`{module}`: lora_A is {:?} and lora_B {:?}: they do not fit", a.dims(), b.dims())));
    }
    let scale = settings.scale(module, *rank)?;
    let magnitude = match (settings.dora, parts.magnitude) {
        (false, None) => None,
        (true, Some(lengths)) => {
            let expected = if parts.is_embedding { *width } else { *out };
            if lengths.elem_count() != expected {
                return Err(Error::new(format!("`{module}`: the magnitudes are {:?}; expected {expected}", lengths.dims())));
            }
            Some(Magnitude { lengths, of_columns: parts.is_embedding })
        }
        (true, None) => {
            return Err(Error::new(format!("`use_dora` is true, and the adapter holds no lora_magnitude_vector for `{module}`")));
        }
        (false, Some(_)) => {
            return Err(Error::new(format!(
                "the adapter holds a lora_magnitude_vector for `{module}`, and `use_dora` is not true"
            )));
        }
    };
    if let Some(bias) = &parts.bias_of_b
        && bias.dims() != [*out]
    {
        return Err(Error::new(format!("`{module}`: the bias of lora_B is {:?}; expected [{out}]", bias.dims())));
    }
    let added = parts.bias_of_b.map(|bias| bias * scale).transpose()?;
    if added.is_some() && magnitude.is_some() {
        return Err(Error::new(format!("`{module}`: DoRA with `lora_bias` is not supported")).cure(MERGE));
    }
    Ok((LowRank { a, b, scale, magnitude }, added))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use serde_json::json;

    use super::*;

    fn settings() -> Settings {
        let config =
            json!({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "trainable_token_indices": [1], "modules_to_save": ["head"]});
        Settings::read(&config).unwrap()
    }

    fn matrix() -> Tensor {
        Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap()
    }

    fn read(tensors: &[(&str, Tensor)]) -> Result<BTreeMap<String, Change>> {
        let named = |(name, tensor): &(&str, Tensor)| (format!("base_model.model.{name}"), tensor.clone());
        changes(tensors.iter().map(named), &settings())
    }

    #[test]
    fn tensors_are_paired_and_the_others_named() {
        let check = |tensors: &[(&str, Tensor)], expected: &str| {
            let error = read(tensors).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(expected), "{error}");
        };
        let (lora_a, lora_b) = ("m.q_proj.lora_A.weight", "m.q_proj.lora_B.weight");
        check(&[(lora_a, matrix())], "only one of lora_A and lora_B for `m.q_proj`");
        check(&[(lora_a, matrix()), ("m.e.lora_embedding_C", matrix())], "`base_model.model.m.e.lora_embedding_C`");
        check(&[("m.e.lora_A.default.weight", matrix())], "lora_A.default.weight");
        check(&[("m.q_proj.lora_magnitude_vector", matrix())], "only one of");
        check(&[(lora_a, matrix()), (lora_b, Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap())], "do not fit");
        check(&[(lora_a, matrix()), (lora_b, matrix()), ("m.q_proj.lora_magnitude_vector", matrix())], "`use_dora` is not true");
        check(&[("m.head.weight", matrix()), ("m.head.base_layer.weight", matrix())], "twice");
        let found = read(&[(lora_a, matrix()), (lora_b, matrix())]).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["m.q_proj.weight"]);
        let sum = found["m.q_proj.weight"].apply(matrix()).unwrap().to_vec2::<f32>().unwrap();
        // W + 3 W W
        assert_eq!(sum, [[22.0, 32.0], [48.0, 70.0]]);
    }

    #[test]
    fn rows_and_whole_tensors_take_the_place_of_the_base() {
        let row = Tensor::new(&[[9f32, 8.0]], &Device::Cpu).unwrap();
        let found = read(&[
            ("embed_tokens.token_adapter.trainable_tokens_delta", row),
            ("head.weight", matrix()),
            ("norm.weight", Tensor::new(&[5f32], &Device::Cpu).unwrap()),
        ]);
        let found = found.unwrap();
        let apply = |name: &str| found[name].apply(matrix()).unwrap();
        assert_eq!(apply("embed_tokens.weight").to_vec2::<f32>().unwrap(), [[1.0, 2.0], [9.0, 8.0]]);
        assert_eq!(apply("norm.weight").to_vec1::<f32>().unwrap(), [5.0]);
        assert!(found["head.weight"].whole.as_ref().unwrap().apart && !found["norm.weight"].whole.as_ref().unwrap().apart);
    }
}
