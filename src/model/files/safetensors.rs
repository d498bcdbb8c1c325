//! Reads safetensors files, single or sharded by an index, one tensor at a time with positioned reads.
//!
//! Reads are used rather than memory maps: a map needs `unsafe`, crashes if the file is truncated meanwhile, and saves
//! nothing here, because every tensor is converted or packed as soon as it is read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::mxfp4;
use crate::error::{Context, Error, Result};
use crate::files::refuse_pointer;
use crate::json;

pub(crate) struct Shards {
    /// Maps a tensor's name to the index of the file that contains it.
    index: HashMap<String, usize>,
    files: Vec<Shard>,
}

struct Shard {
    path: PathBuf,
    tensors: HashMap<String, TensorInfo>,
    /// The offset of the tensors' bytes.
    data_start: u64,
}

impl Shards {
    /// Opens `model.safetensors`, or every shard that `model.safetensors.index.json` lists.
    pub(crate) fn open(folder: &Path) -> Result<Shards> {
        let paths = shard_paths(folder)?;
        let files = paths.into_iter().map(Shard::open).collect::<Result<Vec<_>>>()?;
        let mut index = HashMap::new();
        for (number, shard) in files.iter().enumerate() {
            index.extend(shard.tensors.keys().map(|name| (name.clone(), number)));
        }
        Ok(Shards { index, files })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The tensor as f32 on the CPU.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.shard(name)?.tensor(name, shape)
    }

    /// The `index`th of the tensors that are stacked in `shape`.
    pub(crate) fn slice(&self, name: &str, shape: &[usize], index: usize) -> Result<Tensor> {
        self.shard(name)?.slice(name, shape, index)
    }

    /// The tensor, or the `index`th of those stacked in `shape`, if it is stored in bf16.
    pub(super) fn bf16(&self, name: &str, shape: &[usize], index: Option<usize>) -> Result<Option<Tensor>> {
        self.shard(name)?.bf16(name, shape, index)
    }

    /// The bytes of a tensor of type `U8`, or of the `index`th of those stacked in it.
    pub(super) fn bytes(&self, name: &str, shape: &[usize], index: Option<usize>) -> Result<Vec<u8>> {
        self.shard(name)?.bytes(name, shape, index)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.index.keys()
    }

    /// Whether two tensors have the same type, shape and bytes. Reads them piece by piece, up to the first difference.
    pub(crate) fn are_same(&self, left: &str, right: &str) -> Result<bool> {
        let place = |name: &str| -> Result<_> {
            let shard = self.shard(name)?;
            let info = shard.tensors.get(name).ok_or_else(|| Error::new(format!("no tensor `{name}`")).at(&shard.path))?;
            Ok((shard, info))
        };
        let ((left_shard, left), (right_shard, right)) = (place(left)?, place(right)?);
        if (left.dtype, &left.shape) != (right.dtype, &right.shape) {
            return Ok(false);
        }
        let mut left_file = left_shard.open_at(left.data_offsets.0 as u64)?;
        let mut right_file = right_shard.open_at(right.data_offsets.0 as u64)?;
        let mut remaining = left.data_offsets.1 - left.data_offsets.0;
        const PIECE: usize = 1 << 20;
        while remaining > 0 {
            let piece = remaining.min(PIECE);
            let (mut a, mut b) = (vec![0; piece], vec![0; piece]);
            left_file.read_exact(&mut a).context_at(&left_shard.path, "cannot read the weights")?;
            right_file.read_exact(&mut b).context_at(&right_shard.path, "cannot read the weights")?;
            if a != b {
                return Ok(false);
            }
            remaining -= piece;
        }
        Ok(true)
    }

    fn shard(&self, name: &str) -> Result<&Shard> {
        self.index.get(name).map(|&number| &self.files[number]).ok_or_else(|| {
            let folder = self.files.first().and_then(|shard| shard.path.parent()).unwrap_or(Path::new("."));
            Error::new(format!("the weights hold no tensor `{name}`")).at(folder)
        })
    }

    /// The number of weights in the tensors whose names `counts` accepts. A byte of MXFP4 counts as two, its scales do not
    /// count.
    pub(crate) fn parameters(&self, counts: impl Fn(&str) -> bool) -> u64 {
        let tensors = self.files.iter().flat_map(|shard| &shard.tensors).filter(|(name, _)| counts(name));
        let of = |(name, info): (&String, &TensorInfo)| match info.dtype {
            Dtype::U8 if name.ends_with(mxfp4::BLOCKS) => 2 * info.shape.iter().product::<usize>() as u64,
            Dtype::U8 if name.ends_with(mxfp4::SCALES) => 0,
            _ => info.shape.iter().product::<usize>() as u64,
        };
        tensors.map(of).sum()
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Shard> {
        let mut file = File::open(&path).context_at(&path, "cannot open the weights")?;
        refuse_pointer(&path)?;
        let broken = |cause: Box<dyn std::error::Error + Send + Sync>| {
            Error::new("this is not a complete safetensors file")
                .at(&path)
                .caused_by(cause)
                .cure("Download the file again; the usual reason is an interrupted download.")
        };
        let (header, data_start) = header(&mut file).map_err(broken)?;
        let tensors = header.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        Ok(Shard { path, tensors, data_start })
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let (dtype, begin) = self.check(name, shape)?;
        self.read(name, dtype, begin, shape)
    }

    fn slice(&self, name: &str, shape: &[usize], index: usize) -> Result<Tensor> {
        let (dtype, begin) = self.check(name, shape)?;
        let (begin, shape) = self.place(name, dtype, begin, shape, Some(index))?;
        self.read(name, dtype, begin, shape)
    }

    fn bf16(&self, name: &str, shape: &[usize], index: Option<usize>) -> Result<Option<Tensor>> {
        let (dtype, begin) = self.check(name, shape)?;
        if dtype != DType::BF16 {
            return Ok(None);
        }
        let (begin, shape) = self.place(name, dtype, begin, shape, index)?;
        // Converts piece by piece, so that the raw bytes are never all in memory.
        const PIECE: usize = 1 << 20;
        let len: usize = shape.iter().product();
        let (mut file, mut numbers, mut piece) = (self.open_at(begin)?, Vec::with_capacity(len), vec![0; PIECE]);
        while numbers.len() < len {
            let bytes = &mut piece[..PIECE.min(2 * (len - numbers.len()))];
            file.read_exact(bytes).context_at(&self.path, format!("cannot read the tensor `{name}`"))?;
            let (pairs, _) = bytes.as_chunks();
            numbers.extend(pairs.iter().map(|&pair| bf16::from_le_bytes(pair)));
        }
        Ok(Some(Tensor::from_vec(numbers, shape, &Device::Cpu)?))
    }

    /// The offset and the shape of a tensor that begins at `begin`, or of the `index`th of those stacked in it.
    fn place<'a>(
        &self,
        name: &str,
        dtype: DType,
        begin: u64,
        shape: &'a [usize],
        index: Option<usize>,
    ) -> Result<(u64, &'a [usize])> {
        match (index, shape) {
            (None, _) => Ok((begin, shape)),
            (Some(index), [count, shape @ ..]) if index < *count => {
                let bytes = shape.iter().product::<usize>() * dtype.size_in_bytes();
                Ok((begin + (index * bytes) as u64, shape))
            }
            (Some(index), _) => Err(Error::new(format!("tensor `{name}`: {shape:?} has no part {index}")).at(&self.path)),
        }
    }

    fn bytes(&self, name: &str, shape: &[usize], index: Option<usize>) -> Result<Vec<u8>> {
        let info = self.info(name, shape)?;
        if info.dtype != Dtype::U8 {
            return Err(Error::new(format!("tensor `{name}` has the type {}; expected U8", info.dtype)).at(&self.path));
        }
        let (begin, len) = match (index, shape) {
            (None, _) => (0, shape.iter().product()),
            (Some(index), [count, shape @ ..]) if index < *count => {
                let len = shape.iter().product::<usize>();
                (index * len, len)
            }
            (Some(index), _) => return Err(Error::new(format!("tensor `{name}`: {shape:?} has no part {index}")).at(&self.path)),
        };
        self.read_bytes(name, (info.data_offsets.0 + begin) as u64, len)
    }

    /// The header's entry for the tensor, if it has the expected shape.
    fn info(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let info = self.tensors.get(name).ok_or_else(|| Error::new(format!("no tensor `{name}`")).at(&self.path))?;
        if info.shape != shape {
            return Err(Error::new(format!("tensor `{name}`: expected shape {shape:?}, found {:?}", info.shape)).at(&self.path));
        }
        Ok(info)
    }

    /// The type of the tensor and its offset, if the header gives it the expected shape.
    fn check(&self, name: &str, shape: &[usize]) -> Result<(DType, u64)> {
        let info = self.info(name, shape)?;
        let dtype = match info.dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(Error::new(format!("tensor `{name}` has the type {other}; expected F32, F16, BF16 or F64"))
                    .at(&self.path)
                    .cure("Save the model in one of these types."));
            }
        };
        Ok((dtype, info.data_offsets.0 as u64))
    }

    fn read(&self, name: &str, dtype: DType, begin: u64, shape: &[usize]) -> Result<Tensor> {
        let bytes = self.read_bytes(name, begin, shape.iter().product::<usize>() * dtype.size_in_bytes())?;
        Ok(Tensor::from_raw_buffer(&bytes, dtype, shape, &Device::Cpu)?.to_dtype(DType::F32)?)
    }

    /// Opens the file at offset `begin` of the tensors' bytes.
    fn open_at(&self, begin: u64) -> Result<File> {
        let mut file = File::open(&self.path).context_at(&self.path, "cannot open the weights")?;
        file.seek(SeekFrom::Start(self.data_start + begin)).context_at(&self.path, "cannot seek in the weights")?;
        Ok(file)
    }

    fn read_bytes(&self, name: &str, begin: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut file = self.open_at(begin)?;
        file.read_exact(&mut bytes).context_at(&self.path, format!("cannot read the tensor `{name}`"))?;
        Ok(bytes)
    }
}

/// Reads the header of a safetensors file, and the offset of the tensors' bytes.
pub(crate) fn header(file: &mut File) -> std::result::Result<(Metadata, u64), Box<dyn std::error::Error + Send + Sync>> {
    let bytes = file.metadata()?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > bytes.saturating_sub(8) {
        return Err(format!("its header should be {length} bytes long, but the file has {bytes}").into());
    }
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text)?;
    // Parsing checks that the tensors are contiguous, and that the length of each matches its shape and type.
    let header: Metadata = serde_json::from_slice(&text)?;
    let (data, data_start) = (header.data_len() as u64, 8 + length);
    if data != bytes - data_start {
        return Err(format!("{data} bytes of tensors should follow the header, but there are {}", bytes - data_start).into());
    }
    Ok((header, data_start))
}

/// The weight files of a folder, sorted by name.
pub(crate) fn shard_paths(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        return Err(Error::new("the folder holds neither model.safetensors nor model.safetensors.index.json").at(folder).cure(
            "Name a Hugging Face model folder or a .gguf file; save older .bin checkpoints again with safe_serialization=True.",
        ));
    }
    let text = std::fs::read_to_string(&index).context_at(&index, "cannot read the index of the weights")?;
    let json: serde_json::Value = json::from_str(&text).context_at(&index, "this is not JSON")?;
    let map = json
        .get("weight_map")
        .and_then(serde_json::Value::as_object)
        .ok_or_else(|| Error::new("expected an object `weight_map` from tensor names to file names").at(&index))?;
    let mut names: Vec<&str> = map.values().filter_map(serde_json::Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn what_is_stored_in_bf16_is_read_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let numbers: Vec<f32> = (0..60).map(|i| (i as f32 - 20.0) * 0.37).collect();
        let tensor = Tensor::from_vec(numbers, (3, 4, 5), &Device::Cpu).unwrap();
        let stored = HashMap::from([("half", tensor.to_dtype(DType::BF16).unwrap()), ("whole", tensor)]);
        candle_core::safetensors::save(&stored, folder.path().join("model.safetensors")).unwrap();
        let shards = Shards::open(folder.path()).unwrap();
        let shape = [3, 4, 5];
        let flat = |x: Tensor| x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let half = |index| shards.bf16("half", &shape, index).unwrap().unwrap();
        assert_eq!((half(None).dtype(), half(None).dims()), (DType::BF16, &shape[..]));
        assert_eq!(flat(half(None)), flat(shards.tensor("half", &shape).unwrap()));
        assert_eq!(half(Some(2)).dims(), [4, 5]);
        assert_eq!(flat(half(Some(2))), flat(shards.slice("half", &shape, 2).unwrap()));
        assert!(shards.bf16("half", &shape, Some(3)).unwrap_err().to_string().contains("no part 3"));
        assert!(shards.bf16("half", &[3, 5, 4], None).unwrap_err().to_string().contains("expected shape"));
        assert!(shards.bf16("whole", &shape, None).unwrap().is_none());
    }
}
