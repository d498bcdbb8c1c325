//! Writes the sequences to score and a program that lets vLLM's own engine score them, for users without a server or with millions of rows.

use std::path::PathBuf;

use super::engine::nothing_to_score;
use super::job::Job;
use crate::dataset::Dataset;
use crate::engine::remote::more_than_all;
use crate::error::{Context, Error, Result};
use crate::files::write_text;
use crate::jobs::served::{text_of, usual_len};
use crate::jobs::watch::Watch;
use crate::jobs::work::{OFFLINE_SCRIPT_FILE, Work, check_free};
use crate::model::Served;
use crate::table::{ANSWERS_FOLDER, SEQUENCES_FILE, write_sequences};
use crate::tokens::{Audit, RenderOptions, Renderer, Sequence, rendered};

const SCRIPT: &str = include_str!("emit/vllm_offline.py");

/// The result of `emit`.
pub(crate) struct Emitted {
    pub sequences: u64,
    pub script: PathBuf,
}

/// Writes the sequences of a job, and the program that returns the `top_k` most probable tokens at each of their targets.
pub(crate) fn emit(job: &Job, top_k: usize, watch: &dyn Watch) -> Result<Emitted> {
    let out = job.out.as_deref().ok_or_else(|| Error::usage("--emit needs --out: the folder to write into"))?;
    if out.join(ANSWERS_FOLDER).exists() {
        return Err(Error::new("the folder already holds answers, which would be mistaken for those to the new sequences")
            .at(out)
            .cure("Choose another folder with --out, or remove this one."));
    }
    check_free(out, Work::Offline)?;
    let dataset = Dataset::open(&job.inputs, &job.read)?;
    watch.opened(dataset.files());
    let (mut served, _) = text_of(&job.model, "--emit", &job.load, watch)?;
    if top_k > served.vocab_size {
        return Err(more_than_all(top_k, served.vocab_size));
    }
    let render = RenderOptions { max_len: max_len(job, &served)?, ..job.render.clone() };
    let renderer = Renderer::new(served.tokenizer.clone(), served.template.take(), render)?;
    let chosen = dataset.choose(job.choice)?.in_shard(job.shard);
    std::fs::create_dir_all(out).context_at(out, "cannot create the folder")?;
    let (mut audit, mut records) = (Audit::of(&dataset), 0);
    let batches = rendered(&dataset, &renderer, 0, &chosen).map(|items| {
        let mut sequences = Vec::new();
        for item in items? {
            records += 1;
            let Some(rendered) = audit.take(item.row, &item.place, item.rendered, job.read.strict)? else { continue };
            sequences.push(rendered.sequence);
        }
        watch.reading(records);
        sequences.retain(Sequence::has_targets);
        Ok(sequences)
    });
    let path = out.join(SEQUENCES_FILE);
    let sequences = write_sequences(&path, batches)?;
    // A shard may have no supervised row even if other shards have some.
    if sequences == 0 && job.shard.is_none() {
        std::fs::remove_file(&path).context_at(&path, "cannot remove the empty file")?;
        return Err(nothing_to_score().cure(audit.lines().join("\n  ")));
    }
    watch.audited(&audit);
    let script = out.join(OFFLINE_SCRIPT_FILE);
    write_text(&script, &SCRIPT.replace("TOP_LOGPROBS", &top_k.to_string()))?;
    Ok(Emitted { sequences, script })
}

/// The longest sequence: every prompt must leave room for the one token that vLLM has to generate.
fn max_len(job: &Job, served: &Served) -> Result<usize> {
    match (job.max_len, served.longest) {
        (Some(asked), Some(longest)) if asked >= longest => Err(Error::usage(format!(
            "--max-len {asked} leaves no room for the token that vLLM must generate: the model was made for {longest}"
        ))
        .cure(format!("Give --max-len {} or less.", longest.saturating_sub(1)))),
        (Some(asked), _) => Ok(asked),
        (None, _) => Ok(usual_len(served, 1)),
    }
}
