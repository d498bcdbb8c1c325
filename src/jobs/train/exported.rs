//! A checkpoint of a run -> its model as others read it: what the run would have left had it ended there. A finished adapter -> the model that it is
//! with its base.

use std::path::{Path, PathBuf};

use super::checkpoint;
use super::result;
use super::trainer::{load_options, stored_dtype};
use crate::error::{Error, Result};
use crate::jobs::watch::{Watch, fetching};
use crate::jobs::work::OPTIONS_FILE;
use crate::kernels::Stored;
use crate::model::{Model, ModelName, Reference, save_merged};
use crate::train::options::Options;

/// Writes `OUT/model`, the adapter in the folder merged into its base, and gives its name. The base is the one that the adapter names, unless the user
/// names another.
pub(crate) fn merge_adapter(folder: &Path, base: Option<String>, out: &Path, watch: &dyn Watch) -> Result<PathBuf> {
    let model = out.join("model");
    refuse_replacing(&model)?;
    let written = folder.to_str().ok_or_else(|| Error::new("expected a folder name of valid Unicode").at(folder))?;
    let adapter = Reference::resolve_named(&ModelName { written: Some(written.to_owned()), base }, &fetching(watch))?;
    watch.stage("Saving");
    save_merged(&adapter, &model, Stored::F32)?;
    Ok(model)
}

/// A folder that holds a model already would have it replaced, and what stands beside it would speak of another.
fn refuse_replacing(there: &Path) -> Result<()> {
    match there.exists() {
        true => {
            Err(Error::usage("this folder already has a model, which would be replaced").at(there).cure("Give another --out."))
        }
        false => Ok(()),
    }
}

/// Writes `OUT/model`, or `OUT/adapter` of a run that trains adapters, and gives its name. The model that was trained is loaded again, by
/// what the run's options call it; the data are not needed.
pub(crate) fn export_checkpoint(path: &Path, out: &Path, watch: &dyn Watch) -> Result<PathBuf> {
    let progress = checkpoint::progress(path)?;
    let run = path.parent().and_then(Path::parent).map(|run| run.join(OPTIONS_FILE)).filter(|options| options.is_file());
    let run = run.ok_or_else(|| {
        Error::new(format!("there is no {OPTIONS_FILE} in the folder above the checkpoint's, which records how it was made"))
            .at(path)
            .cure("Name the checkpoint in the folder of its run: RUN/checkpoints/step-...")
    })?;
    ["model", "adapter"].iter().try_for_each(|name| refuse_replacing(&out.join(name)))?;
    let options = Options::resolve(Some(&run), toml::Table::new())?;
    let reference = Reference::resolve_named(&options.model_name(), &fetching(watch))?;
    if reference.sha256()? != progress.model_sha256 {
        return Err(Error::new(format!("`{}` is not the model that this run trains: its weights differ", reference.written))
            .at(path)
            .cure(format!("Restore that model there, or set its current path as `model` in {}.", run.display())));
    }
    watch.stage("Loading");
    let mut model = Model::load(&reference, load_options(stored_dtype(&options)), options.max_len())?;
    let parameters = match options.lora() {
        Some(lora) => model.adapt(&lora, options.seed)?,
        None => model.train(options.dtype)?,
    };
    checkpoint::read_values(path, &parameters)?;
    watch.stage("Saving");
    result::save(&reference, out, &parameters, &options, &progress.new_ends)
}
