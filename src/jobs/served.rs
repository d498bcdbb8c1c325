//! A model that servers run, for every job that has it so: its texts, how long a sequence may be, and what was found out about the servers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine;
use crate::engine::generate::Sampling;
use crate::engine::remote::{Checked, Options, Pool};
use crate::error::{Context, Error, Result};
use crate::files::{read_json, sha256, write_json};
use crate::jobs::watch::{Watch, fetching};
use crate::kernels::{Dtype, Kernels, TokenStatistics};
use crate::model::{LoadOptions, ModelName, Placement, Reference, Served};
use crate::tokens::{Sequence, Tokenizer};

/// What the servers of a folder were when it was begun.
const SERVER_FILE: &str = "server.json";
/// What stands where an own engine's precision and kernels would.
pub(crate) const AS_SERVED: &str = "as served";

/// The model's texts, which is all of it that is needed here where it is run elsewhere. `option` is what the user asked that with; `load` says how
/// this program would run the model, so that whatever of it was given is refused.
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

/// Why a sequence may be less long than a server's limit.
pub(super) struct Beyond {
    /// How many tokens a sequence has to be shorter than the server's limit.
    pub tokens: usize,
    /// Why it has to be, as a sentence's end.
    pub why: &'static str,
}

/// How long a sequence may be: as the user says, else the usual length, or what model and servers take if that is less.
pub(super) fn max_len(asked: Option<usize>, served: &Served, pool: Option<&Pool>, beyond: &Beyond) -> Result<usize> {
    let limit = pool.and_then(Pool::max_len);
    let longest = limit.map_or(usize::MAX, |limit| limit.saturating_sub(beyond.tokens));
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

/// How long a sequence may be where the user does not say, so many tokens less than the model was made for.
pub(super) fn usual_len(served: &Served, beyond: usize) -> usize {
    served.max_len().min(served.longest.map_or(usize::MAX, |longest| longest.saturating_sub(beyond)))
}

/// In the place of the weights' hash, which a server does not tell: of what it calls its model, and of the tokenizer with the tokens that it puts
/// around a text, of which tokenizer.json says nothing.
pub(super) fn hash(model: &str, tokenizer: &Tokenizer) -> Result<String> {
    let around = (tokenizer.bos(), tokenizer.eos(), tokenizer.leading());
    Ok(sha256(format!("served\n{model}\n{around:?}\n{}", tokenizer.to_json()?)))
}

/// What our own engine says of a sequence, where the model is here and not too large; else a remark why not.
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

/// What the comparison with our own engine came to, for people.
pub(super) fn remark(checked: &Checked) -> Option<String> {
    checked.from_own.map(|apart| {
        format!(
            "The remote engine and this program's own engine in f32 differ in ln p by {:.4} nat on average over {} tokens, by {:.4} at most.",
            apart.mean, apart.tokens, apart.max
        )
    })
}

/// Servers that answered, before they are put to the test.
pub(super) struct Opened {
    pub served: Served,
    pub reference: Reference,
    pub max_len: usize,
    /// A hash of what is known here of the model: what the servers call it, or have it from, and its tokenizer.
    pub sha256: String,
    pool: Pool,
}

/// Servers that were put to the test.
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
        let (served, reference) = text_of(model, "--server", load, watch)?;
        let pool = Pool::open(options, served.vocab_size)?;
        let max_len = max_len(asked_len, &served, Some(&pool), beyond)?;
        let sha256 = hash(pool.model(), &served.tokenizer)?;
        Ok(Opened { served, reference, max_len, sha256, pool })
    }

    /// An error where the servers cannot draw in this way.
    pub(super) fn check_way(&self, sampling: &Sampling) -> Result<()> {
        self.pool.check_way(sampling)
    }

    /// `vllm 0.11.0`
    pub(super) fn program(&self) -> String {
        self.pool.program()
    }

    /// Puts the servers to the test, `writes` with an answer, too. The folder `out`, which is made, keeps what they were: others than those it was begun
    /// with are refused.
    pub(super) fn check(self, out: &Path, writes: bool, watch: &dyn Watch) -> Result<Servers> {
        let Opened { served, reference, pool, .. } = self;
        let (tokenizer, mut remarks) = (served.tokenizer.clone(), Vec::new());
        let probe = pool.fixed_sequence(&tokenizer)?;
        let own = |probe: &Sequence| own_scores(&served, &reference, probe, &mut remarks);
        let checked = pool.check(&probe, &tokenizer, own)?;
        if writes {
            pool.check_answers(&tokenizer)?;
        }
        remarks.extend(remark(&checked));
        watch.remarks(&served.info.name, &remarks);
        claim(&checked, out)?;
        // From now on only the targets count in what is asked for.
        Ok(Servers { pool: pool.with_top_k(1), tokenizer, checked })
    }
}

impl Servers {
    /// As [`Pool::each`]. What has come is handed on once the servers say of a text what they said at the beginning: all that `finished` gets, and
    /// may keep, is of the model that they were put to the test with. One more request is under way for that, whatever the number of the others.
    pub(super) fn each<T: Sync, R: Send>(
        &self,
        tasks: &[T],
        ask: impl Fn(&Pool, &T) -> Result<R> + Sync,
        finished: &mut dyn FnMut(usize, R) -> Result<()>,
    ) -> Result<()> {
        let Servers { pool, tokenizer, checked } = self;
        pool.each(tasks, |task| ask(pool, task), &mut |came| {
            pool.check_unchanged(checked, tokenizer)?;
            came.into_iter().try_for_each(|(at, answer)| finished(at, answer))
        })
    }
}

/// A model's hash is not to be had of a server: what it says of one text must be what it said when the folder was begun.
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

    /// tokenizer_config.json decides about the tokens around a text, of which tokenizer.json says nothing.
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
