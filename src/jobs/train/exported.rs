//! Exports a checkpoint as the model that the run would have left had it ended there, and merges a finished adapter into its base.

use std::path::{Path, PathBuf};

use super::checkpoint;
use super::result::Left;
use super::trainer::{load_options, stored_dtype};
use crate::error::{Context, Error, Result};
use crate::jobs::watch::{Watch, fetching};
use crate::jobs::work::{ADAPTER_FOLDER, MODEL_FOLDER, TEMPLATE_FILE};
use crate::kernels::Stored;
use crate::model::{Model, ModelName, Reference, add_end_tokens, own_end_tokens, save_merged};
use crate::provenance::OPTIONS_FILE;
use crate::train::options::Options;

/// Writes `OUT/model`, the adapter in the folder merged into its base, and returns its path. The base is the one that the adapter names, unless the
/// user names another.
pub(crate) fn merge_adapter(folder: &Path, base: Option<String>, out: &Path, watch: &dyn Watch) -> Result<PathBuf> {
    let model = out.join(MODEL_FOLDER);
    refuse_replacing(&model)?;
    let written = folder.to_str().ok_or_else(|| Error::new("expected a folder name of valid Unicode").at(folder))?;
    let adapter = Reference::resolve_named(&ModelName { written: Some(written.to_owned()), base }, &fetching(watch))?;
    watch.stage("Saving");
    save_merged(&adapter, &model, Stored::F32)?;
    let ends = own_end_tokens(&adapter.path)?;
    if !ends.is_empty() {
        add_end_tokens(&model, &ends)?;
    }
    Ok(model)
}

/// Refuses to replace a model in the folder: the files beside it would then describe another model.
fn refuse_replacing(there: &Path) -> Result<()> {
    match there.exists() {
        true => {
            Err(Error::usage("this folder already has a model, which would be replaced").at(there).cure("Give another --out."))
        }
        false => Ok(()),
    }
}

/// Writes `OUT/model`, or `OUT/adapter` for a run that trains adapters, and returns its path. Loads the original model again, by the name in the
/// run's options; the data are not needed.
pub(crate) fn export_checkpoint(path: &Path, out: &Path, watch: &dyn Watch) -> Result<PathBuf> {
    let progress = checkpoint::progress(path)?;
    let run = path.parent().and_then(Path::parent).map(|run| run.join(OPTIONS_FILE)).filter(|options| options.is_file());
    let run = run.ok_or_else(|| {
        Error::new(format!("there is no {OPTIONS_FILE} in the folder above the checkpoint's, which records how it was made"))
            .at(path)
            .cure("Name the checkpoint in the folder of its run: RUN/checkpoints/step-...")
    })?;
    [MODEL_FOLDER, ADAPTER_FOLDER].iter().try_for_each(|name| refuse_replacing(&out.join(name)))?;
    let options = Options::resolve(Some(&run), toml::Table::new())?;
    let reference = Reference::resolve_named(&options.model_name(), &fetching(watch))?;
    if reference.sha256()? != progress.model_sha256 {
        return Err(Error::new(format!("`{}` is not the model that this run trains: its weights differ", reference.written))
            .at(path)
            .cure(format!("Restore that model there, or set its current path as `model` in {}.", run.display())));
    }
    let template = options.chat_template.as_ref().map(|_| {
        let path = run.with_file_name(TEMPLATE_FILE);
        std::fs::read_to_string(&path)
            .context_at(&path, "cannot read the chat template that was trained on")
            .map_err(|error| error.cure("Restore it: the model is to be used with this template."))
    });
    let template = template.transpose()?;
    watch.stage("Loading");
    let mut model = Model::load(&reference, load_options(stored_dtype(&options)), options.max_len())?;
    let parameters = match options.lora() {
        Some(lora) => model.adapt(&lora, options.seed)?,
        None => model.train(options.dtype)?,
    };
    checkpoint::read_values(path, &parameters)?;
    watch.stage("Saving");
    let left = Left { reference: &reference, options: &options, template: template.as_deref(), new_ends: &progress.new_ends };
    left.save(out, &parameters)
}
