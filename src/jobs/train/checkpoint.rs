//! Saves and loads checkpoints, from which a run resumes: every trained number, both moments to the bit, and the progress.
//!
//! A checkpoint is one safetensors file, `checkpoints/step-00000120.safetensors`, which appears complete or not at all. Arrays are flat, in the
//! parameters' own order; the progress is in the metadata. The data order, dropout and schedule follow from the seed and the step, so nothing else
//! has to be stored.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::snapshot::Snapshot;
use crate::error::{Context, Error, Result};
use crate::files::{file_name, write_atomically, write_numbers};
use crate::jobs::other_run::other_run;
use crate::jobs::work::CHECKPOINTS_FOLDER;
use crate::kernels::Stored;
use crate::kernels::adamw::Moments;
use crate::model::Parameter;
use crate::model::files::{safetensors, safetensors_write};
use crate::train::adamw::AdamW;
use crate::train::keep::Lowest;
use crate::train::metrics::Standing;

/// The progress of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// A hash of everything that determines the run: [`Options::identity`](crate::train::options::Options::identity), data and model.
    pub identity: String,
    /// The SHA-256 of the model being trained, which an export loads again.
    #[serde(default)]
    pub model_sha256: String,
    /// The kernel level at which the run must resume.
    #[serde(default)]
    pub kernel_level: String,
    /// Tokens that end answers in the data but not the model's.
    #[serde(default)]
    pub new_ends: Vec<u32>,
    /// The base model's measurements before training.
    #[serde(default)]
    pub before: Standing,
    /// The lowest held-out loss, which decides which model is kept and when the run ends.
    #[serde(default)]
    pub lowest: Lowest,
    /// Updates done.
    pub step: u64,
    pub input_tokens: u64,
    pub supervised_tokens: u64,
    /// Seconds spent in training steps.
    pub seconds: f64,
    /// The snapshot that the method compares with, if it uses one and the run is in the middle of a large batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
}

impl Progress {
    /// Returns an error for the progress of another run than `identity`, found in the folder `out`.
    pub(super) fn check(&self, out: &Path, identity: &str, writes_date: bool) -> Result<()> {
        match self.identity == identity {
            true => Ok(()),
            false => Err(other_run(out, "checkpoints of another training run", Some(&self.kernel_level), writes_date)),
        }
    }
}

/// Writes a checkpoint, and removes all others but the last `keep` and that of step `best`.
pub(super) fn save(
    out: &Path,
    progress: &Progress,
    parameters: &[Parameter],
    optimizer: &AdamW,
    keep: usize,
    best: Option<u64>,
) -> Result<()> {
    let folder = out.join(CHECKPOINTS_FOLDER);
    fs::create_dir_all(&folder).context_at(&folder, "cannot create the folder for checkpoints")?;
    let path = path(out, progress.step);
    let progress = serde_json::to_string(progress).context("cannot write down the progress")?;
    let arrays = arrays(parameters, optimizer);
    let entries = arrays.iter().map(|(name, dtype, len)| (name.as_str(), *dtype, std::slice::from_ref(len)));
    let header = safetensors_write::header(serde_json::json!({ "progress": progress }), entries)?;
    write_atomically(&path, |file| {
        file.write_all(&header).context("cannot write the checkpoint")?;
        for (parameter, moments) in parameters.iter().zip(&optimizer.moments) {
            parameter.values(|values| numbers(file, values, f32::to_le_bytes))??;
            match moments {
                Moments::F32(moments) => moments.iter().try_for_each(|moment| numbers(file, moment, f32::to_le_bytes))?,
                Moments::Bf16(moments) => moments.iter().try_for_each(|moment| numbers(file, moment, u16::to_le_bytes))?,
            }
        }
        Ok(())
    })?;
    let mut all = list(out)?;
    all.truncate(all.len().saturating_sub(keep.max(1)));
    let best = best.map(|step| self::path(out, step));
    all.retain(|path| best.as_ref() != Some(path));
    for old in all {
        fs::remove_file(&old).context_at(&old, "cannot remove the old checkpoint")?;
    }
    Ok(())
}

/// The path of a step's checkpoint.
pub(super) fn path(out: &Path, step: u64) -> PathBuf {
    out.join(CHECKPOINTS_FOLDER).join(format!("step-{step:08}.safetensors"))
}

/// Restores the newest checkpoint, if there is one.
pub(super) fn load(out: &Path, identity: &str, parameters: &[Parameter], optimizer: &mut AdamW) -> Result<Option<Progress>> {
    let Some(path) = list(out)?.pop() else { return Ok(None) };
    // The job has checked it when it opened the folder; what another process has put there since then is not of another day.
    progress(&path)?.check(out, identity, false)?;
    let progress = read(&path, parameters, optimizer).map_err(|error| error.at(&path))?;
    optimizer.step = progress.step;
    Ok(Some(progress))
}

/// The progress in the newest checkpoint, without loading its arrays.
pub(super) fn latest(out: &Path) -> Result<Option<Progress>> {
    list(out)?.pop().map(|path| progress(&path)).transpose()
}

/// The progress in a checkpoint, without loading its arrays.
pub(super) fn progress(path: &Path) -> Result<Progress> {
    let mut file = File::open(path).context_at(path, "cannot open the checkpoint")?;
    header(&mut file).map(|(progress, _)| progress).map_err(|error| error.at(path))
}

/// Loads a checkpoint's values into the parameters, and ignores its moments.
pub(super) fn read_values(path: &Path, parameters: &[Parameter]) -> Result<()> {
    let read = || {
        let mut file = File::open(path).context("cannot open the checkpoint")?;
        let (_, found) = header(&mut file)?;
        // Each parameter has values and two moments.
        let (arrays, rest) = found.as_chunks::<3>();
        let fits = |(parameter, [values, m, v]): (&Parameter, &[Array; 3])| {
            let expected = (array_name(parameter, "values"), "F32", parameter.len());
            expected == (values.0.clone(), values.1.as_str(), values.2) && m.2 == parameter.len() && v.2 == parameter.len()
        };
        if !rest.is_empty() || arrays.len() != parameters.len() || !parameters.iter().zip(arrays).all(fits) {
            return Err(Error::new("the checkpoint does not fit the model")
                .cure("It belongs to a run of another model or with other options."));
        }
        for (parameter, [_, m, v]) in parameters.iter().zip(arrays) {
            parameter.change(|values| read_into(&mut file, values, f32::from_le_bytes))??;
            let bytes = [m, v].iter().map(|(_, dtype, len)| len * if dtype == "F32" { 4 } else { 2 }).sum::<usize>();
            file.seek_relative(bytes as i64).context("cannot seek in the checkpoint")?;
        }
        Ok(())
    };
    read().map_err(|error| error.at(path))
}

fn read(path: &Path, parameters: &[Parameter], optimizer: &mut AdamW) -> Result<Progress> {
    let mut file = File::open(path).context("cannot open the checkpoint")?;
    let (progress, arrays_found) = header(&mut file)?;
    let wrong = || Error::new("the checkpoint does not fit the model").cure("Remove it to start over.");
    let expected = arrays(parameters, optimizer);
    let expected = expected.iter().map(|(name, dtype, len)| (name.as_str(), safetensors_write::type_name(*dtype), *len));
    let found = arrays_found.iter().map(|(name, dtype, len)| (name.as_str(), dtype.as_str(), *len));
    if !expected.eq(found) {
        return Err(wrong());
    }
    for (parameter, moments) in parameters.iter().zip(&mut optimizer.moments) {
        parameter.change(|values| read_into(&mut file, values, f32::from_le_bytes))??;
        match moments {
            Moments::F32(moments) => {
                moments.iter_mut().try_for_each(|moment| read_into(&mut file, moment, f32::from_le_bytes))?
            }
            Moments::Bf16(moments) => {
                moments.iter_mut().try_for_each(|moment| read_into(&mut file, moment, u16::from_le_bytes))?
            }
        }
    }
    Ok(progress)
}

/// Fills `to` with the next numbers of the file, `N` bytes each.
fn read_into<T, const N: usize>(file: &mut File, to: &mut [T], decode: impl Fn([u8; N]) -> T) -> Result<()> {
    let mut bytes = vec![0; 1 << 20];
    for to in to.chunks_mut(bytes.len() / N) {
        let bytes = &mut bytes[..N * to.len()];
        file.read_exact(bytes).context("the checkpoint is cut short")?;
        let (words, _) = bytes.as_chunks::<N>();
        for i in 0..to.len() {
            to[i] = decode(words[i]);
        }
    }
    Ok(())
}

/// Name, type and length of an array in the header.
type Array = (String, String, usize);

/// The progress, and the arrays in file order.
fn header(file: &mut File) -> Result<(Progress, Vec<Array>)> {
    let cure = "Remove it to resume from an earlier one, or to start over.";
    let broken = || Error::new("this is not a checkpoint of a training run").cure(cure);
    let (header, _) =
        safetensors::header(file).context("the checkpoint is damaged or cut short").map_err(|error| error.cure(cure))?;
    let progress = header.metadata().as_ref().and_then(|metadata| metadata.get("progress")).ok_or_else(broken)?;
    let progress =
        serde_json::from_str(progress).context("the checkpoint's progress is broken").map_err(|error| error.cure(cure))?;
    let array = |name: String| {
        let info = header.info(&name)?;
        Some((name, info.dtype.to_string(), info.shape.iter().product()))
    };
    Ok((progress, header.offset_keys().into_iter().filter_map(array).collect()))
}

/// Name, type and length of each array of a checkpoint, in order.
fn arrays(parameters: &[Parameter], optimizer: &AdamW) -> Vec<(String, Stored, usize)> {
    let of_parameter = |(parameter, moments): (&Parameter, &Moments)| {
        let moments = match moments {
            Moments::F32(_) => Stored::F32,
            Moments::Bf16(_) => Stored::Bf16,
        };
        [("values", Stored::F32), ("m", moments), ("v", moments)]
            .map(|(what, dtype)| (array_name(parameter, what), dtype, parameter.len()))
    };
    parameters.iter().zip(&optimizer.moments).flat_map(of_parameter).collect()
}

fn array_name(parameter: &Parameter, what: &str) -> String {
    format!("{}/{what}", parameter.parts.first().map_or("", |part| part.name.as_str()))
}

fn numbers<T: Copy, const N: usize>(file: &mut BufWriter<File>, numbers: &[T], encode: impl Fn(T) -> [u8; N]) -> Result<()> {
    write_numbers(file, numbers, encode).context("cannot write the checkpoint")
}

/// The checkpoints, oldest first.
fn list(out: &Path) -> Result<Vec<PathBuf>> {
    let folder = out.join(CHECKPOINTS_FOLDER);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(&folder).context_at(&folder, "cannot list the checkpoints")? {
        let path = entry.context_at(&folder, "cannot list the checkpoints")?.path();
        let name = file_name(&path);
        if name.starts_with("step-") && name.ends_with(".safetensors") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::uniform;

    /// For any bytes, reading either returns what the file holds or an error that names it.
    #[test]
    fn damaged_checkpoints_are_refused_by_name() {
        let progress = Progress {
            identity: "abc".to_owned(),
            model_sha256: "def".to_owned(),
            kernel_level: "portable".to_owned(),
            new_ends: vec![2],
            lowest: Lowest { step: Some(2), cross_entropy: Some(1.5), worse_since: 1 },
            before: Standing::default(),
            step: 3,
            input_tokens: 10,
            supervised_tokens: 4,
            seconds: 0.5,
            snapshot: None,
        };
        let metadata = serde_json::json!({"progress": serde_json::to_string(&progress).unwrap()});
        let mut good =
            safetensors_write::header(metadata, [("a/values", Stored::F32, &[4][..]), ("a/m", Stored::Bf16, &[4])]).unwrap();
        good.resize(good.len() + 24, 7);
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join(CHECKPOINTS_FOLDER).join("step-00000003.safetensors");
        fs::create_dir(out.path().join(CHECKPOINTS_FOLDER)).unwrap();
        fs::write(&path, &good).unwrap();
        assert_eq!(latest(out.path()).unwrap(), Some(progress));
        let mut refused = 0;
        for round in 0..2000 {
            let random = |n: usize, of: u64| (uniform(round, of) * n as f32) as usize;
            let mut bytes = good.clone();
            match random(4, 0) {
                0 => bytes.truncate(random(bytes.len(), 1)),
                1 => bytes[random(good.len(), 1)] ^= 1 << random(8, 2),
                2 => bytes[random(8, 1)] = random(256, 2) as u8,
                _ => drop(bytes.drain(random(good.len() - 8, 1)..).take(1 + random(8, 2)).collect::<Vec<_>>()),
            }
            fs::write(&path, &bytes).unwrap();
            if let Err(error) = latest(out.path()) {
                refused += 1;
                assert!(error.to_string().contains("step-00000003.safetensors"), "round {round}: {error}");
            }
        }
        assert!(refused > 1000, "{refused}");
    }
}
