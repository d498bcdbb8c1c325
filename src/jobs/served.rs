//! Opens a model run by servers, for every job that supports it: its tokenizer, its longest sequence, and the checks of the servers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine;
use crate::engine::generate::Sampling;
use crate::engine::remote::{Checked, Given, Options, Pool};
use crate::error::{Context, Error, Result};
use crate::files::{read_json, sha256, write_json};
use crate::jobs::watch::{Watch, fetching};
use crate::kernels::{Dtype, Kernels, TokenStatistics};
use crate::model::{LoadOptions, ModelName, Placement, Reference, Served};
use crate::tokens::{Sequence, Tokenizer};

/// Describes the servers as they were when the folder was begun.
const SERVER_FILE: &str = "server.json";
/// Stands in for the precision and kernels of our own engine.
pub(crate) const AS_SERVED: &str = "as served";

/// Opens the tokenizer and configuration, the only local parts needed if servers run the model. `option` is the option by which the user chose
/// servers; options in `load`, which say how this program would run the model, are refused.
pub(super) fn text_of(model: &ModelName, option: &str, load: &LoadOptions, watch: &dyn Watch) -> Result<(Served, Reference)> {
    let LoadOptions { dtype, kernels, device } = *load;
    let ours = [
        (dtype != Dtype::default(), "--dtype"),
        (kernels != Kernels::default(), "--kernels"),
        (device != Placement::default(), "--device"),
    ];
    if let Some((_, ours)) = ours.iter().find(|(given, _)| *given) {
        return Err(Error::usage(format!("{ours} is for running the model here, and {option} runs it elsewhere"))
            .cure(format!("Leave out {ours}, and configure the engine there.")));
    }
    if model.written.is_none() {
        return Err(Error::usage(format!("{option} needs --model, for the tokenizer and the chat template of the served model"))
            .cure("Name its folder or hub id; its weights need not be on this machine."));
    }
    let reference = Reference::resolve_text(model, &fetching(watch))?;
    let served = Served::read(&reference)?;
    Ok((served, reference))
}

/// Why a sequence must be shorter than the server's limit.
pub(super) struct Beyond {
    /// By how many tokens it must be shorter.
    pub tokens: usize,
    /// The reason, worded as the end of a sentence.
    pub why: &'static str,
}

/// The longest sequence: the user's choice, else the usual length, or less if the model and the servers take less.
fn max_len(asked: Option<usize>, served: &Served, pool: &Pool, beyond: &Beyond) -> Result<usize> {
    let longest = pool.max_len().map_or(usize::MAX, |limit| limit.saturating_sub(beyond.tokens));
    match asked {
        Some(asked) if asked > longest => Err(Error::usage(format!(
            "--max-len {asked} is more than the {longest} tokens that the server accepts: {}",
            beyond.why
        ))
        .cure(format!("Give --max-len {longest}, or start the server with --max-model-len {}.", asked + beyond.tokens))),
        Some(asked) => Ok(asked),
        None => Ok(usual_len(served, beyond.tokens).min(longest)),
    }
}

/// The longest sequence by default, `beyond` tokens less than the model supports.
pub(super) fn usual_len(served: &Served, beyond: usize) -> usize {
    served.max_len().min(served.longest.map_or(usize::MAX, |longest| longest.saturating_sub(beyond)))
}

/// A stand-in for the hash of the weights, which a server does not report: the hash of the server's name for its model and of the tokenizer with the
/// tokens that it adds around a text, which are not in tokenizer.json.
pub(super) fn hash(model: &str, tokenizer: &Tokenizer) -> Result<String> {
    let around = (tokenizer.bos(), tokenizer.eos(), tokenizer.leading());
    Ok(sha256(format!("served\n{model}\n{around:?}\n{}", tokenizer.to_json()?)))
}

/// Our own engine's scores of a sequence, if the model is here and not too large; otherwise a remark why not.
pub(super) fn own_scores(
    served: &Served,
    reference: &Reference,
    probe: &Sequence,
    remarks: &mut Vec<String>,
) -> Result<Option<Vec<TokenStatistics>>> {
    match served.load(reference, probe.ids.len()) {
        Ok(model) => {
            let scores = engine::score(&model, std::slice::from_ref(probe))?;
            Ok(scores.into_iter().next())
        }
        Err(why) => {
            remarks.push(format!("The remote engine is not compared with this program's own: {why}."));
            Ok(None)
        }
    }
}

/// The result of the comparison with our own engine, as a sentence.
pub(super) fn remark(checked: &Checked) -> Option<String> {
    checked.from_own.map(|apart| {
        format!(
            "The remote engine and this program's own engine in f32 differ in ln p by {:.4} nat on average over {} tokens, by {:.4} at most.",
            apart.mean, apart.tokens, apart.max
        )
    })
}

/// Servers that answered, before they are checked.
pub(super) struct Opened {
    /// The local parts of the model; the hash in its `info` is that of [`hash`].
    pub served: Served,
    pub reference: Reference,
    pub max_len: usize,
    pub pool: Pool,
}

/// Servers that passed the check.
pub(super) struct Servers {
    pub pool: Pool,
    pub tokenizer: Arc<Tokenizer>,
    pub checked: Checked,
}

impl Opened {
    pub(super) fn open(
        options: &Options,
        model: &ModelName,
        load: &LoadOptions,
        asked_len: Option<usize>,
        beyond: &Beyond,
        watch: &dyn Watch,
    ) -> Result<Opened> {
        let (mut served, reference) = text_of(model, "--server", load, watch)?;
        let pool = Pool::open(options, served.vocab_size)?;
        let max_len = max_len(asked_len, &served, &pool, beyond)?;
        served.info.sha256 = hash(pool.model(), &served.tokenizer)?;
        Ok(Opened { served, reference, max_len, pool })
    }

    /// Returns an error if the servers cannot sample in this way.
    pub(super) fn check_way(&self, sampling: &Sampling) -> Result<()> {
        self.pool.check_way(sampling)
    }

    /// Such as `vllm 0.11.0`.
    pub(super) fn program(&self) -> String {
        self.pool.program()
    }

    /// Checks the servers on a sequence, and compares them with our own engine if that can run the model. Also returns remarks for the user.
    pub(super) fn check_on(&self, probe: &Sequence) -> Result<(Checked, Vec<String>)> {
        let mut remarks = Vec::new();
        let own = |probe: &Sequence| own_scores(&self.served, &self.reference, probe, &mut remarks);
        let checked = self.pool.check(probe, &self.served.tokenizer, own)?;
        remarks.extend(remark(&checked).into_iter().chain(self.pool.named_apart()));
        Ok((checked, remarks))
    }

    /// Checks the servers, and also an answer if `writes`. Creates the folder `out`, which records the servers' scores: servers that differ from
    /// those it was begun with are refused.
    pub(super) fn check(self, out: &Path, writes: bool, watch: &dyn Watch) -> Result<Servers> {
        let tokenizer = &self.served.tokenizer;
        let (checked, remarks) = self.check_on(&self.pool.fixed_sequence(tokenizer)?)?;
        if writes {
            self.pool.check_answers(tokenizer)?;
        }
        watch.remarks(&self.served.info.name, &remarks);
        claim(&checked, out)?;
        // From here on, only the targets' scores are needed.
        Ok(Servers { pool: self.pool.with_top_k(1), tokenizer: tokenizer.clone(), checked })
    }
}

impl Servers {
    /// Like [`Pool::each`], but passes results to `finished` only after their servers have scored a text as they did at the beginning, so that all
    /// results come from the model that was checked; those of a server that no longer answers are asked for again. This takes one additional
    /// concurrent request.
    pub(super) fn each<T: Sync, R: Send>(
        &self,
        tasks: &[T],
        ask: impl Fn(&Pool, &T) -> Result<Given<R>> + Sync,
        watch: &dyn Watch,
        finished: &mut dyn FnMut(usize, R) -> Result<()>,
    ) -> Result<()> {
        let Servers { pool, tokenizer, checked } = self;
        pool.each(tasks, |task| ask(pool, task), &mut |came: Vec<(usize, Given<R>)>| {
            let confirmed = pool.confirmed(came.iter().map(|(_, given)| given.by), checked, tokenizer)?;
            watch.remarks(&checked.model, &pool.news());
            let (kept, lost): (Vec<_>, Vec<_>) = came.into_iter().partition(|(_, given)| confirmed.contains(&given.by));
            kept.into_iter().try_for_each(|(at, given)| finished(at, given.answer))?;
            Ok(lost.into_iter().map(|(at, _)| at).collect())
        })
    }
}

/// A server does not report a hash of the model, so its scores of a fixed text must equal those when the folder was begun.
fn claim(checked: &Checked, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).context_at(out, "cannot create the folder")?;
    let path: PathBuf = out.join(SERVER_FILE);
    let Some(before) = read_json::<Checked>(&path)? else { return write_json(&path, checked) };
    match checked.weights_apart(&before) {
        None => Ok(()),
        Some(apart) => Err(Error::new(format!(
            "the servers score a text differently than when this folder was started: ln p differs by {:.3} nat on average over {} tokens",
            apart.mean, apart.tokens
        ))
        .at(path)
        .cure("A different model is served now: serve the earlier one, or choose another folder with --out.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::GgufVocabulary;

    /// tokenizer_config.json determines the tokens around a text, which are not in tokenizer.json.
    #[test]
    fn a_served_model_is_known_by_the_tokens_around_a_text() {
        let folder = tempfile::tempdir().unwrap();
        let vocabulary = GgufVocabulary {
            model: "gpt2".into(),
            pre: Some("gpt-2".into()),
            tokens: ["<s>", "</s>", "a"].map(str::to_owned).to_vec(),
            token_types: vec![3, 3, 1],
            ..GgufVocabulary::default()
        };
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, Tokenizer::from_gguf(vocabulary).unwrap().to_json().unwrap()).unwrap();
        let of = |model: &str, config: &str| {
            std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
            hash(model, &Tokenizer::from_file(&path).unwrap()).unwrap()
        };
        let configs =
            [r#"{}"#, r#"{"bos_token": "<s>"}"#, r#"{"bos_token": "<s>", "eos_token": "</s>"}"#, r#"{"eos_token": "</s>"}"#];
        let mut hashes: Vec<String> = configs.iter().map(|config| of("m", config)).collect();
        hashes.push(of("n", configs[0]));
        let distinct: std::collections::HashSet<&String> = hashes.iter().collect();
        assert_eq!(distinct.len(), hashes.len());
        assert_eq!(of("m", r#"{"bos_token": "<s>", "clean_up_tokenization_spaces": false}"#), hashes[1]);
    }
}
