//! The one or more files of a GGUF model: the metadata of the first, the tensors of all, read one tensor or one slice at a time.
//!
//! llama.cpp's `llama-gguf-split` splits a large model into `NAME-00001-of-00003.gguf` and so on. The first file contains the
//! metadata; each file contains the tensors that it lists.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::quantized::gguf_file::Value;
use candle_core::{Device, Tensor};

use super::gguf_header::{Header, TensorInfo};
use crate::error::{Context, Error, Result};
use crate::files::refuse_pointer;
use crate::model::source::Used;

pub(crate) struct GgufFiles {
    /// The metadata of the first file.
    pub metadata: HashMap<String, Value>,
    parts: Vec<Part>,
    /// Maps a tensor's name to the index of the part that contains it.
    index: HashMap<String, usize>,
    pub used: Used,
}

struct Part {
    path: PathBuf,
    tensors: HashMap<String, TensorInfo>,
    file: Mutex<File>,
}

impl GgufFiles {
    /// Opens the file at `path`, and the other parts if it is one of several.
    pub(crate) fn open(path: &Path) -> Result<GgufFiles> {
        let mut files = GgufFiles { metadata: HashMap::new(), parts: Vec::new(), index: HashMap::new(), used: Used::default() };
        for path in paths(path) {
            let (part, metadata) = Part::open(path)?;
            let number = files.parts.len();
            check_number(&part.path, &metadata, number)?;
            files.index.extend(part.tensors.keys().map(|name| (name.clone(), number)));
            files.parts.push(part);
            if number == 0 {
                files.metadata = metadata;
            }
        }
        match split_number(&files.metadata, "split.count") {
            Some(count) if count > files.parts.len() as u64 => Err(Error::new(format!(
                "this is one of {count} files of a model, but its name does not tell the names of the others"
            ))
            .at(path)
            .cure("Restore the original file names, NAME-00001-of-00003.gguf and so on, or join them with llama-gguf-split --merge.")),
            _ => Ok(files),
        }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.index.keys()
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.parts[*self.index.get(name)?].tensors.get(name)
    }

    /// Dequantises the tensor, in the shape that the file gives it.
    pub(crate) fn read(&self, name: &str) -> Result<Tensor> {
        let (part, info) = self.find(name)?;
        part.read(name, info)
    }

    /// Reads one of the tensors that are stacked as `name`, but not the others.
    pub(crate) fn read_slice(&self, name: &str, index: usize) -> Result<Tensor> {
        let (part, info) = self.find(name)?;
        match info.shape.as_slice() {
            [count, shape @ ..] if index < *count && !shape.is_empty() => {
                let slice = TensorInfo { kind: info.kind, shape: shape.to_vec(), begin: info.begin };
                let begin = info.begin + slice.bytes() * index as u64;
                part.read(name, &TensorInfo { begin, ..slice })
            }
            shape => Err(Error::new(format!("tensor `{name}`: {shape:?} has no part {index}")).at(&part.path)),
        }
    }

    /// The raw bytes of the whole tensor.
    pub(super) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let (part, info) = self.find(name)?;
        part.bytes(name, info)
    }

    pub(crate) fn parameters(&self) -> u64 {
        self.parts.iter().flat_map(|part| part.tensors.values()).map(TensorInfo::elements).sum()
    }

    fn find(&self, name: &str) -> Result<(&Part, &TensorInfo)> {
        self.used.note(name);
        let part = self.index.get(name).map(|&number| &self.parts[number]);
        let found = part.and_then(|part| Some((part, part.tensors.get(name)?)));
        found.ok_or_else(|| Error::new(format!("the file holds no tensor `{name}`")).at(&self.parts[0].path))
    }
}

impl Part {
    fn open(path: PathBuf) -> Result<(Part, HashMap<String, Value>)> {
        let file = File::open(&path).context_at(&path, "cannot open the model file")?;
        refuse_pointer(&path)?;
        let mut reader = BufReader::new(file);
        let Header { metadata, tensors } = Header::read(&path, &mut reader)?;
        Ok((Part { path, tensors, file: Mutex::new(reader.into_inner()) }, metadata))
    }

    fn read(&self, name: &str, info: &TensorInfo) -> Result<Tensor> {
        let bytes = self.bytes(name, info)?;
        let mut values = vec![0.0; info.elements() as usize];
        info.kind.decode(&bytes, &mut values);
        Ok(Tensor::from_vec(values, info.shape.as_slice(), &Device::Cpu)?)
    }

    fn bytes(&self, name: &str, info: &TensorInfo) -> Result<Vec<u8>> {
        let mut bytes = vec![0; info.bytes() as usize];
        // The lock may be poisoned, but that leaves no inconsistent state: every read seeks first.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(info.begin)).and_then(|_| file.read_exact(&mut bytes));
        read.context_at(&self.path, format!("cannot read the tensor `{name}`"))?;
        Ok(bytes)
    }
}

/// All files of the model that `path` belongs to, in order; only `path` if its name is not that of a part.
pub(crate) fn paths(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str());
    match name.and_then(parts_of) {
        Some(parts) => parts.into_iter().map(|name| path.with_file_name(name)).collect(),
        None => vec![path.to_owned()],
    }
}

/// The names of all parts: for `NAME-00002-of-00003.gguf`, three names; `None` for any other name.
pub(crate) fn parts_of(name: &str) -> Option<Vec<String>> {
    let (stem, _, count) = split_name(name)?;
    Some((1..=count).map(|number| format!("{stem}-{number:05}-of-{count:05}.gguf")).collect())
}

/// The name without the part's number and without the extension.
pub(crate) fn stem(name: &str) -> &str {
    match split_name(name) {
        Some((stem, _, _)) => stem,
        None => name.rsplit_once('.').map_or(name, |(stem, _)| stem),
    }
}

/// Splits `NAME-00002-of-00003.gguf` into NAME, 2, 3.
fn split_name(name: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let five_digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let (number, count) = (Some(number).filter(|n| five_digits(n))?, Some(count).filter(|n| five_digits(n))?);
    let (number, count) = (number.parse().ok()?, count.parse().ok()?);
    (1..=count).contains(&number).then_some((stem, number, count))
}

/// Checks the number that each part states, from 0.
fn check_number(path: &Path, metadata: &HashMap<String, Value>, expected: usize) -> Result<()> {
    match split_number(metadata, "split.no") {
        Some(found) if found != expected as u64 => Err(Error::new(format!(
            "this is part {} of the model by its name, but part {} by its metadata",
            expected + 1,
            found.saturating_add(1)
        ))
        .at(path)
        .cure("Restore the original file names, NAME-00001-of-00003.gguf and so on.")),
        _ => Ok(()),
    }
}

fn split_number(metadata: &HashMap<String, Value>, key: &str) -> Option<u64> {
    match metadata.get(key)? {
        Value::U16(number) => Some(u64::from(*number)),
        other => other.to_u64().ok(),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor, gguf_file};

    use super::*;

    #[test]
    fn names_of_parts() {
        let parts = ["m-Q4-00001-of-00002.gguf", "m-Q4-00002-of-00002.gguf"].map(str::to_owned).to_vec();
        assert_eq!(parts_of("m-Q4-00002-of-00002.gguf"), Some(parts));
        for name in ["m.gguf", "m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-1-of-2.gguf", "-of-.gguf", "m-00001-of-00002"]
        {
            assert_eq!(parts_of(name), None, "{name}");
        }
        assert_eq!((stem("m-Q4-00001-of-00002.gguf"), stem("m.Q4.gguf")), ("m-Q4", "m.Q4"));
        assert_eq!(paths(Path::new("a/m.gguf")), [Path::new("a/m.gguf")]);
        assert_eq!(paths(Path::new("a/m-00001-of-00001.gguf")), [Path::new("a/m-00001-of-00001.gguf")]);
    }

    /// Writes a file with `(split.no, tensor name, tensor)`.
    fn write(path: &Path, number: u16, name: &str, tensor: &QTensor) {
        let metadata = [("split.no", &Value::U16(number)), ("split.count", &Value::U16(2))];
        gguf_file::write(&mut File::create(path).unwrap(), &metadata, &[(name, tensor)]).unwrap();
    }

    #[test]
    fn tensors_come_from_all_parts_and_slices_from_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = |number: u32| folder.path().join(format!("m-{number:05}-of-00002.gguf"));
        let values: Vec<f32> = (0..3 * 2 * 32).map(|i| (i % 37) as f32 - 18.0).collect();
        let stacked = Tensor::from_vec(values, (3, 2, 32), &Device::Cpu).unwrap();
        // Integers up to 18 with one scale for 32 of them: close in eight bits, exact in f32.
        for dtype in [GgmlDType::F32, GgmlDType::Q8_0] {
            let tensor = QTensor::quantize(&stacked, dtype).unwrap();
            write(&path(1), 0, "a", &tensor);
            write(&path(2), 1, "b", &tensor);
            let files = GgufFiles::open(&path(2)).unwrap();
            let (a, b) = (files.read("a").unwrap(), files.read("b").unwrap());
            assert_eq!(files.parameters(), 2 * 3 * 2 * 32);
            for expert in 0..3 {
                let values = |tensor: Tensor| tensor.to_vec2::<f32>().unwrap();
                assert_eq!(values(files.read_slice("b", expert).unwrap()), values(b.get(expert).unwrap()));
                assert_eq!(values(files.read_slice("a", expert).unwrap()), values(a.get(expert).unwrap()));
            }
            assert!(files.read_slice("a", 3).is_err() && files.read("c").is_err());
        }
    }

    #[test]
    fn parts_that_are_missing_or_swapped_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let tensor =
            QTensor::quantize(&Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu).unwrap(), GgmlDType::F32).unwrap();
        let check = |name: &str, part: &str| {
            let message = GgufFiles::open(&path(name)).err().unwrap().to_string();
            assert!(message.contains(part), "{message}");
        };
        write(&path("m-00001-of-00002.gguf"), 0, "a", &tensor);
        check("m-00001-of-00002.gguf", "m-00002-of-00002.gguf");
        write(&path("m-00002-of-00002.gguf"), 0, "b", &tensor);
        check("m-00001-of-00002.gguf", "this is part 2 of the model by its name, but part 1 by its metadata");
        write(&path("renamed.gguf"), 0, "a", &tensor);
        check("renamed.gguf", "one of 2 files");
    }
}
