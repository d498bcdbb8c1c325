//! The trained tensors of a model, by the names that Transformers (or PEFT, for adapters) gives them.
//!
//! The model stores what one product reads as one matrix (for example queries, keys and values), so a [`Parameter`] holds one or
//! more tensors of the checkpoint. An optimiser sees it as a flat array of values with a gradient; [`Part`]s map its numbers to
//! the tensors when they are saved.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::kernels::cpu::lock;
use crate::kernels::matmul::Trained;

/// Tensors that are trained together.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// The checkpoint tensors that it holds.
    pub parts: Vec<Part>,
    store: Store,
}

/// One checkpoint tensor inside a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// For example `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// The dimensions in the checkpoint.
    pub shape: Vec<usize>,
    rows: Range<usize>,
    columns: Range<usize>,
}

#[derive(Debug, Clone)]
enum Store {
    Matrix(Arc<Trained>),
    Vector(Arc<Vector>),
}

/// A norm weight or a bias `[N]`, with a gradient once it is trained.
#[derive(Debug)]
pub(super) struct Vector {
    value: RwLock<Tensor>,
    /// `None` while it is frozen.
    gradient: Mutex<Option<Vec<f32>>>,
    /// What has to be added to the checkpoint's numbers: 1 if norm weights are stored as an offset from 1.
    offset: f32,
}

/// Whether weight decay applies to the tensor of this name: not to biases (`bias`), and not to norms (`layernorm`, `rmsnorm` and
/// other names).
fn decays(name: &str) -> bool {
    let name = name.to_lowercase();
    let is_norm = name.split('.').any(|word| word == "norm" || word.ends_with("_norm"));
    !is_norm && !["bias", "layernorm", "rmsnorm"].iter().any(|word| name.contains(word))
}

impl Parameter {
    pub(super) fn matrix(trained: Arc<Trained>, parts: Vec<Part>) -> Parameter {
        Parameter { parts, store: Store::Matrix(trained) }
    }

    pub(super) fn vector(vector: Arc<Vector>, parts: &[(String, usize)]) -> Parameter {
        vector.train();
        let mut first = 0;
        let part = |(name, len): &(String, usize)| {
            first += len;
            Part { name: name.clone(), shape: vec![*len], rows: 0..1, columns: first - len..first }
        };
        Parameter { parts: parts.iter().map(part).collect(), store: Store::Vector(vector) }
    }

    /// Whether weight decay applies: to all but norms and biases, by name, as in Transformers' Trainer.
    pub fn decays(&self) -> bool {
        self.parts.iter().all(|part| decays(&part.name))
    }

    /// The length of the flat arrays: slightly more than the tensors have, because rows are padded to whole panels.
    pub fn len(&self) -> usize {
        match &self.store {
            Store::Matrix(trained) => trained.len(),
            Store::Vector(vector) => vector.len(),
        }
    }

    /// Whether it has no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of elements of the tensors.
    pub fn elements(&self) -> usize {
        self.parts.iter().map(|part| part.shape.iter().product::<usize>()).sum()
    }

    /// The number of values that [`Parameter::update`] passes at a time.
    pub fn block_len(&self) -> usize {
        match &self.store {
            Store::Matrix(trained) => trained.panel_len(),
            Store::Vector(vector) => vector.len(),
        }
    }

    /// Runs `step(values, gradient, companion)` on each block of [`Parameter::block_len`] numbers, on all threads.
    pub fn update<C: Send>(&self, companions: Vec<C>, step: impl Fn(&mut [f32], &mut [f32], C) + Sync) -> Result<()> {
        match &self.store {
            Store::Matrix(trained) => trained.update(companions, step),
            Store::Vector(vector) => {
                let mut gradient = lock(&vector.gradient);
                let gradient = gradient.as_deref_mut().unwrap_or(&mut []);
                vector.change(|values| companions.into_iter().for_each(|companion| step(values, gradient, companion)))
            }
        }
    }

    /// Lets `change` modify the values, a flat array of [`Parameter::len`] numbers.
    pub fn change<R>(&self, change: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
        match &self.store {
            Store::Matrix(trained) => trained.change(change),
            Store::Vector(vector) => vector.change(change),
        }
    }

    /// Passes the values to `look`.
    pub fn values<R>(&self, look: impl FnOnce(&[f32]) -> R) -> Result<R> {
        match &self.store {
            Store::Matrix(trained) => Ok(trained.values(look)),
            Store::Vector(vector) => Ok(look(&vector.get().to_vec1::<f32>()?)),
        }
    }

    /// Passes the gradient to `look`.
    pub fn gradient<R>(&self, look: impl FnOnce(&[f32]) -> R) -> R {
        match &self.store {
            Store::Matrix(trained) => trained.gradient(look),
            Store::Vector(vector) => look(lock(&vector.gradient).as_deref().unwrap_or(&[])),
        }
    }

    /// The numbers of one tensor, row-major, taken from a flat array such as the values, the gradient or an optimiser's moments.
    pub fn tensor_of(&self, part: &Part, flat: &[f32]) -> Vec<f32> {
        match &self.store {
            Store::Matrix(trained) => trained.part_of(flat, part.rows.clone(), part.columns.clone()),
            Store::Vector(_) => flat[part.columns.clone()].to_vec(),
        }
    }

    /// The numbers of one tensor as the checkpoint stores them.
    pub fn saved(&self, part: &Part) -> Result<Vec<f32>> {
        let mut values = self.values(|values| self.tensor_of(part, values))?;
        if let Store::Vector(vector) = &self.store {
            values.iter_mut().for_each(|value| *value -= vector.offset);
        }
        Ok(values)
    }

    /// Sets the numbers of the tensor `name`, row-major and in the form that the model computes with.
    pub fn set(&self, name: &str, numbers: &[f32]) -> Result<()> {
        let part = self.parts.iter().find(|part| part.name == name);
        let part = part.filter(|part| part.shape.iter().product::<usize>() == numbers.len());
        let part = part.ok_or_else(|| Error::new(format!("no tensor `{name}` of {} numbers is trained here", numbers.len())))?;
        let width = part.columns.len();
        self.change(|values| match &self.store {
            Store::Matrix(trained) => {
                for (row, numbers) in part.rows.clone().zip(numbers.chunks_exact(width)) {
                    let places = part.columns.clone().map(|column| trained.place(row, column));
                    places.zip(numbers).for_each(|(place, &number)| values[place] = number);
                }
            }
            Store::Vector(_) => values[part.columns.clone()].copy_from_slice(numbers),
        })
    }
}

impl Part {
    /// The part that covers all inputs of the output `rows`, `[rows.len(), inputs]`.
    pub(super) fn rows(name: String, rows: Range<usize>, inputs: usize) -> Part {
        Part { name, shape: vec![rows.len(), inputs], rows, columns: 0..inputs }
    }

    /// The part that is one block of a block-diagonal matrix.
    pub(super) fn block(name: String, rows: Range<usize>, columns: Range<usize>) -> Part {
        Part { name, shape: vec![rows.len(), columns.len()], rows, columns }
    }
}

impl Vector {
    pub(super) fn new(value: Tensor, offset: f32) -> Arc<Vector> {
        Arc::new(Vector { value: RwLock::new(value), gradient: Mutex::new(None), offset })
    }

    pub(super) fn get(&self) -> Tensor {
        self.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds to the gradient if the vector is trained.
    pub(super) fn add_gradient(&self, gradient: &[f32]) {
        if let Some(sums) = lock(&self.gradient).as_mut() {
            sums.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        }
    }

    pub(super) fn is_trained(&self) -> bool {
        lock(&self.gradient).is_some()
    }

    fn len(&self) -> usize {
        self.get().elem_count()
    }

    fn train(&self) {
        lock(&self.gradient).get_or_insert_with(|| vec![0.0; self.len()]);
    }

    fn change<R>(&self, change: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
        let mut values = self.get().to_vec1::<f32>()?;
        let result = change(&mut values);
        let len = values.len();
        *self.value.write().unwrap_or_else(PoisonError::into_inner) = Tensor::from_vec(values, len, &Device::Cpu)?;
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows the pattern of `Trainer.get_decay_parameter_names` in Transformers 5.
    #[test]
    fn norms_and_biases_keep_their_size() {
        for name in [
            "model.embed_tokens.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.sinks",
            "model.layers.0.linear_attn.conv1d.weight",
            "model.layers.0.linear_attn.A_log",
            "model.layers.0.mlp.gate.weight",
        ] {
            assert!(decays(name), "{name}");
        }
        for name in [
            "model.norm.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.0.linear_attn.norm.weight",
            "model.layers.0.linear_attn.dt_bias",
            "model.layers.0.mlp.experts.gate_up_proj_bias",
        ] {
            assert!(!decays(name), "{name}");
        }
    }
}
