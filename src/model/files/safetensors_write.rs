//! Writes safetensors files one tensor at a time: first the header, for which the shapes suffice, then each tensor as it comes.
//!
//! Format: github.com/huggingface/safetensors, "Format". Weights larger than [`SHARD_BYTES`] are split into several files with an
//! index, as in Transformers.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::{DType, Tensor};
use half::bf16;
use serde_json::{Map, Value, json};

use crate::error::{Context, Error, Result};
use crate::files::{write_numbers, write_synced};
use crate::json::pretty;
use crate::kernels::Stored;

/// The shard size of Transformers, 5 GB (`max_shard_size` of `save_pretrained`, up to version 4).
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor to write.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedTensor {
    /// The name in the file.
    pub name: String,
    /// The dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// Returns the values of the tensor with this index.
pub type Fetch<'a> = &'a mut dyn FnMut(usize) -> Result<Tensor>;

/// Writes `model.safetensors`, or several files of at most `shard_bytes` (or one tensor) with an index.
pub fn write_weights(folder: &Path, tensors: &[SavedTensor], dtype: Stored, shard_bytes: u64, fetch: Fetch) -> Result<()> {
    let mut shards: Vec<std::ops::Range<usize>> = Vec::new();
    let mut open = 0;
    for (number, tensor) in tensors.iter().enumerate() {
        let size = bytes(tensor, dtype);
        match shards.last_mut() {
            Some(shard) if open + size <= shard_bytes => {
                shard.end = number + 1;
                open += size;
            }
            _ => {
                shards.push(number..number + 1);
                open = size;
            }
        }
    }
    if shards.len() <= 1 {
        return write_file(&folder.join("model.safetensors"), tensors, dtype, fetch);
    }
    let mut weight_map = Map::new();
    let n_shards = shards.len();
    for (shard, numbers) in shards.into_iter().enumerate() {
        let name = format!("model-{:05}-of-{n_shards:05}.safetensors", shard + 1);
        let first = numbers.start;
        write_file(&folder.join(&name), &tensors[numbers.clone()], dtype, &mut |number| fetch(first + number))?;
        weight_map.extend(tensors[numbers].iter().map(|tensor| (tensor.name.clone(), name.clone().into())));
    }
    let total: u64 = tensors.iter().map(|tensor| bytes(tensor, dtype)).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    write_synced(&folder.join("model.safetensors.index.json"), &pretty(&index)?)
}

/// Writes one file and syncs it to disk.
pub fn write_file(path: &Path, tensors: &[SavedTensor], dtype: Stored, fetch: Fetch) -> Result<()> {
    let failed = "cannot write the weights";
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).context_at(path, failed)?);
    let entries = tensors.iter().map(|tensor| (tensor.name.as_str(), dtype, tensor.shape.as_slice()));
    // Transformers refuses files without this entry.
    file.write_all(&header(json!({"format": "pt"}), entries)?).context_at(path, failed)?;
    for (number, tensor) in tensors.iter().enumerate() {
        let values = fetch(number)?;
        if values.dims() != tensor.shape {
            return Err(Error::new(format!(
                "tensor `{}` should be saved as {:?}; it is {:?}",
                tensor.name,
                tensor.shape,
                values.dims()
            )));
        }
        let values = values.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let written = match dtype {
            Stored::F32 => write_numbers(&mut file, &values, f32::to_le_bytes),
            Stored::Bf16 => write_numbers(&mut file, &values, |x| bf16::from_f32(x).to_le_bytes()),
        };
        written.context_at(path, failed)?;
    }
    let file = file.into_inner().map_err(|error| error.into_error()).context_at(path, failed)?;
    file.sync_all().context_at(path, "cannot write the weights to the disk")
}

fn bytes(tensor: &SavedTensor, dtype: Stored) -> u64 {
    size(dtype, &tensor.shape)
}

/// The start of a file with tensors of these names, types and shapes: the header's length and the header, padded with spaces so
/// that the tensors begin at a multiple of 8.
pub fn header<'a>(metadata: Value, tensors: impl IntoIterator<Item = (&'a str, Stored, &'a [usize])>) -> Result<Vec<u8>> {
    let mut entries: Map<String, Value> = Map::new();
    entries.insert("__metadata__".to_owned(), metadata);
    let mut begin = 0;
    for (name, dtype, shape) in tensors {
        let end = begin + size(dtype, shape);
        let entry = json!({"dtype": type_name(dtype), "shape": shape, "data_offsets": [begin, end]});
        if entries.insert(name.to_owned(), entry).is_some() {
            return Err(Error::new(format!("two tensors are called `{name}`")));
        }
        begin = end;
    }
    let mut text = serde_json::to_vec(&entries).context("cannot write the header of the weights")?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes(), text.as_slice()].concat())
}

/// The name of the type in safetensors headers.
pub fn type_name(dtype: Stored) -> &'static str {
    match dtype {
        Stored::F32 => "F32",
        Stored::Bf16 => "BF16",
    }
}

fn size(dtype: Stored, shape: &[usize]) -> u64 {
    shape.iter().product::<usize>() as u64 * dtype.size_in_bytes()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::files::safetensors::Shards;

    fn tensors() -> Vec<SavedTensor> {
        let tensor = |name: &str, shape: &[usize]| SavedTensor { name: name.to_owned(), shape: shape.to_vec() };
        vec![tensor("b.weight", &[2, 3]), tensor("a.bias", &[5]), tensor("c.weight", &[4, 1])]
    }

    /// Halfway between two bfloat16s; it rounds to the even one, 1.
    const HALFWAY: f32 = 1.0 + 1.0 / 256.0;

    fn values(number: usize) -> Result<Tensor> {
        let tensor = &tensors()[number];
        let n = tensor.shape.iter().product::<usize>();
        let values: Vec<f32> = (0..n).map(|i| HALFWAY + 10.0 * number as f32 + i as f32).collect();
        Ok(Tensor::from_vec(values, tensor.shape.clone(), &Device::Cpu)?)
    }

    #[test]
    fn what_is_written_is_read_again_in_one_file_and_in_several() {
        for (shard_bytes, dtype, files) in
            [(1 << 20, Stored::F32, 1), (40, Stored::F32, 2), (1, Stored::F32, 3), (1 << 20, Stored::Bf16, 1)]
        {
            let folder = tempfile::tempdir().unwrap();
            write_weights(folder.path(), &tensors(), dtype, shard_bytes, &mut values).unwrap();
            let names: Vec<String> = std::fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.ends_with(".safetensors"))
                .collect();
            assert_eq!(names.len(), files, "{names:?}");
            let shards = Shards::open(folder.path()).unwrap();
            for (number, tensor) in tensors().iter().enumerate() {
                let expected = values(number).unwrap();
                let expected = match dtype {
                    Stored::F32 => expected,
                    Stored::Bf16 => expected.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap(),
                };
                let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(flat(&shards.tensor(&tensor.name, &tensor.shape).unwrap()), flat(&expected), "{}", tensor.name);
            }
            assert_eq!(shards.parameters(|_| true), 15);
        }
        assert_eq!(bf16::from_f32(HALFWAY), bf16::ONE);
    }

    #[test]
    fn a_tensor_of_another_shape_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let wrong = &mut |_| values(1);
        let error = write_file(&folder.path().join("x"), &tensors(), Stored::F32, wrong).unwrap_err().to_string();
        assert!(error.contains("`b.weight` should be saved as [2, 3]; it is [5]"), "{error}");
    }
}
