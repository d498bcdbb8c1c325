//! What the user asked for -> everything opened and checked before the long work, and an identity that two equal commands share.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::engine::{self, Engine, FoundModel};
use super::job::Job;
use super::shard::ShardRecord;
use crate::dataset::{Chosen, DataFile, Dataset, PlantedSpan, ReadOptions, Rollout, Shard};
use crate::diagnosis::quadrants::Thresholds;
use crate::error::{Context, Result};
use crate::files::sha256;
use crate::jobs::identity_of_files;
use crate::jobs::watch::{Beginning, Watch};
use crate::kernels::{Dtype, Kernels};
use crate::model::{Info, Placement};
use crate::provenance;
use crate::tokens::{Audit, Drawn, EqualRows, RenderOptions, Renderer, Tokenizer, rendered};

/// A job with everything opened and checked.
pub(crate) struct Plan {
    pub dataset: Dataset,
    pub engine: Engine,
    pub info: Info,
    pub tokenizer: Arc<Tokenizer>,
    pub vocab_size: usize,
    pub renderer: Renderer,
    pub audit: Audit,
    pub totals: Totals,
    pub out: PathBuf,
    /// A hash of all that decides the scores: equal identities give equal tables.
    pub identity: String,
    /// The run of which these are some of the rows; `None` for a run over all of them.
    pub shard: Option<ShardRecord>,
    pub planted: Vec<Planted>,
    pub began: Instant,
    pub started: SystemTime,
    /// Seconds to load the model.
    pub load_seconds: f64,
    /// Seconds to read and render everything for the audit.
    pub audit_seconds: f64,
    pub template_sha256: Option<String>,
    pub render: RenderOptions,
    pub dtype: Dtype,
    pub kernels: Kernels,
    pub device: Placement,
    pub chosen: Chosen,
    pub read: ReadOptions,
    pub thresholds: Option<Thresholds>,
    pub with_page: bool,
    pub in_context: bool,
    pub command: String,
}

/// What the whole data set holds, from the audit's pass.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Records read, bad ones included.
    pub records: u64,
    /// Records with something to score.
    pub scored: u64,
    /// Tokens of the records with something to score.
    pub tokens: u64,
    pub supervised: u64,
    #[serde(default)]
    pub rollouts: Rollouts,
}

impl Totals {
    /// Adds what other records hold.
    pub(super) fn add(&mut self, other: &Totals) {
        // Without `..`, so that the compiler asks for a new number.
        let Totals { records, scored, tokens, supervised, rollouts: Rollouts { rows, respelt, exact } } = other;
        self.records += records;
        self.scored += scored;
        self.tokens += tokens;
        self.supervised += supervised;
        self.rollouts.rows += rows;
        self.rollouts.respelt += respelt;
        self.rollouts.exact += exact;
    }
}

/// Records whose last answer a model has drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rollouts {
    pub rows: u64,
    /// Those of these records whose text has other tokens than were drawn.
    pub respelt: u64,
    /// Those of these records whose targets are tokens that this very model drew, in the same precision and with its own probabilities, and
    /// no others.
    pub exact: u64,
}

impl Rollouts {
    fn add(&mut self, rollout: &Rollout, drawn: Option<Drawn>, supervised: u64, reader: Reader) {
        self.rows += 1;
        self.respelt += u64::from(drawn == Some(Drawn::Respelt));
        let is_own = matches!(drawn, Some(Drawn::Same | Drawn::Respelt))
            && supervised <= rollout.ids.len() as u64
            && rollout.plain
            && rollout.model == reader.model_sha256
            && rollout.dtype == reader.dtype.to_string();
        self.exact += u64::from(is_own);
    }
}

pub(super) const PLANTED_FILE: &str = "planted.json";

/// A span that a row says was planted, for the report on rankings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Planted {
    pub row: u32,
    pub turn: u16,
    pub begin: u32,
    pub end: u32,
}

impl Plan {
    pub(crate) fn make(job: &Job, watch: &dyn Watch) -> Result<Plan> {
        let (run_began, started) = (Instant::now(), SystemTime::now());
        let dataset = Dataset::open(&job.inputs, &job.read)?;
        watch.opened(dataset.files());
        let began = Instant::now();
        let mut found = engine::find(job, watch)?;
        let render = RenderOptions { max_len: found.max_len, ..job.render.clone() };
        let renderer = Renderer::new(found.tokenizer.clone(), found.template.take(), render.clone())?;
        let template_sha256 = renderer.template_sha256().map(str::to_owned);
        let load_seconds = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let chosen = dataset.choose(job.choice)?.in_shard(job.shard);
        let reader = Reader { model_sha256: &found.info.sha256, dtype: job.load.dtype };
        let Survey { audit, totals, planted } = survey(&dataset, &renderer, &chosen, job.read.strict, reader, watch)?;
        let audit_seconds = began.elapsed().as_secs_f64();
        // A shard may have none of the rows that the others have.
        if totals.supervised == 0 && job.shard.is_none() {
            return Err(engine::nothing_to_score().cure(audit.lines().join("\n  ")));
        }
        let FoundModel { info, tokenizer, vocab_size, .. } = &found;
        let (info, tokenizer, vocab_size) = (info.clone(), tokenizer.clone(), *vocab_size);
        let (mut remarks, passed_over) = (std::mem::take(&mut found.remarks), found.passed_over.take());
        let of_all = chosen.clone().in_shard(None);
        let probed = if totals.supervised == 0 { &of_all } else { &chosen };
        let first = engine::first_sequence(&dataset, &renderer, probed)?;
        let (engine, checked) = found.engine(first, totals.supervised > 0)?;
        remarks.extend(checked);
        let made_of = MadeOf {
            files: dataset.files(),
            model_sha256: &info.sha256,
            template_sha256: template_sha256.as_deref(),
            engine: engine.identity(job),
            max_len: render.max_len,
        };
        let whole = identity(job, &made_of, None, &provenance::build())?;
        let identity = identity(job, &made_of, job.shard, &provenance::build())?;
        let out = match &job.out {
            Some(out) => out.clone(),
            None => {
                let shard = job.shard.map_or(String::new(), |shard| format!("-shard-{}-of-{}", shard.index, shard.of));
                Path::new("runs").join(format!("{}-{}{shard}", stem(&dataset), &whole[..8]))
            }
        };
        let plan = Plan {
            dataset,
            device: engine.placement(),
            engine,
            info,
            tokenizer,
            vocab_size,
            renderer,
            audit,
            totals,
            out,
            identity,
            shard: job.shard.map(|shard| ShardRecord { shard, whole }),
            planted,
            began: run_began,
            started,
            load_seconds,
            audit_seconds,
            template_sha256,
            render,
            dtype: job.load.dtype,
            kernels: job.load.kernels,
            chosen,
            read: job.read.clone(),
            thresholds: job.thresholds,
            with_page: job.with_page,
            in_context: job.in_context,
            command: job.command.clone(),
        };
        watch.audited(&plan.audit);
        watch.remarks(&plan.info.name, &remarks);
        watch.begins(&Beginning {
            supervised: plan.totals.supervised,
            tokens: plan.totals.tokens,
            rows: plan.totals.scored,
            model: &plan.info.name,
            device: plan.engine.device(),
            passed_over: passed_over.as_deref(),
            out: &plan.out,
        });
        Ok(plan)
    }
}

/// The model that is to read the rows, for telling whether it has written some of them.
#[derive(Clone, Copy)]
struct Reader<'a> {
    model_sha256: &'a str,
    dtype: Dtype,
}

/// What one pass over the rows has found.
struct Survey {
    audit: Audit,
    totals: Totals,
    planted: Vec<Planted>,
}

/// Reads and renders everything once, so that the audit comes before the long work and progress knows its end.
fn survey(
    dataset: &Dataset,
    renderer: &Renderer,
    chosen: &Chosen,
    strict: bool,
    reader: Reader,
    watch: &dyn Watch,
) -> Result<Survey> {
    let (mut audit, mut totals, mut planted) = (Audit::of(dataset), Totals::default(), Vec::new());
    let (mut seen, mut n_equal) = (HashSet::new(), 0);
    for chunk in rendered(dataset, renderer, 0, chosen) {
        for item in chunk? {
            totals.records += 1;
            let Some(rendered) = audit.take(item.row, &item.place, item.rendered, strict)? else { continue };
            let supervised = rendered.sequence.n_targets() as u64;
            if supervised > 0 {
                totals.scored += 1;
                n_equal += u64::from(!seen.insert(rendered.sequence.fingerprint()));
                totals.tokens += rendered.sequence.ids.len() as u64;
                totals.supervised += supervised;
                if let Some(rollout) = item.example.as_ref().and_then(|example| example.rollout.as_ref()) {
                    totals.rollouts.add(rollout, rendered.audit.drawn, supervised, reader);
                }
            }
            if let Some(example) = &item.example {
                let row = item.row;
                planted.extend(example.planted.iter().map(|&PlantedSpan { turn, begin, end }| Planted { row, turn, begin, end }));
            }
        }
        watch.reading(totals.records);
    }
    audit.equal = Some(EqualRows { rows: n_equal, of: totals.scored });
    Ok(Survey { audit, totals, planted })
}

/// `demo` for `data/demo.jsonl`; the first file's and the number of the others where there are several.
fn stem(dataset: &Dataset) -> String {
    let files = dataset.files();
    let name = files.first().and_then(|file| file.path.file_name()).map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|| "run".to_owned());
    let stem = name.split('.').find(|part| !part.is_empty() && *part != "-").unwrap_or("stdin");
    match files.len() {
        0 | 1 => stem.to_owned(),
        n => format!("{stem}-and-{}-more", n - 1),
    }
}

/// What a job names, as it was found.
struct MadeOf<'a> {
    files: &'a [DataFile],
    model_sha256: &'a str,
    template_sha256: Option<&'a str>,
    /// What of the engine decides about the scores.
    engine: serde_json::Value,
    max_len: usize,
}

/// SHA-256 over everything that the scores depend on; `build` is the program.
fn identity(job: &Job, made_of: &MadeOf, shard: Option<Shard>, build: &str) -> Result<String> {
    // Without `..`, so that the compiler asks of a new option whether it decides about the scores. What is passed over here counts by what was
    // found under its name ([`MadeOf`], the engine), or decides about no score.
    let Job {
        inputs: _,
        read: ReadOptions { format: _, mapping, roles, strict: _ },
        model: _,
        out: _,
        load: _,
        elsewhere: _,
        render: RenderOptions { system, max_len: _, supervise, chat_template: _, template_switches, append_eos },
        max_len: _,
        choice,
        shard: _,
        thresholds: _,
        with_page: _,
        in_context: _,
        command: _,
    } = job;
    let mut what = serde_json::json!({
        "program": build,
        "files": identity_of_files(made_of.files),
        "mapping": format!("{mapping:?}"),
        "choice": choice,
        "model": made_of.model_sha256,
        "template": made_of.template_sha256,
        "system": system,
        "max_len": made_of.max_len,
        "supervise": supervise,
    });
    if let (Some(what), Some(engine)) = (what.as_object_mut(), made_of.engine.as_object()) {
        what.extend(engine.clone());
    }
    // Named only where they are used, so that runs from before there were such options keep their identity.
    let options = [
        (!roles.is_empty()).then(|| ("roles", format!("{roles:?}").into())),
        template_switches.clone().map(|switches| ("template_switches", switches)),
        append_eos.then_some(("append_eos", true.into())),
        shard.map(|shard| ("shard", shard.to_string().into())),
    ];
    for (key, value) in options.into_iter().flatten() {
        what[key] = value;
    }
    let text = serde_json::to_string(&what).context("cannot write down what identifies the run")?;
    Ok(sha256(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Choice, FieldMap, RoleMap};
    use crate::model::{LoadOptions, ModelName};
    use crate::tokens::Supervise;

    fn job(path: &str) -> Job {
        Job {
            inputs: vec![path.to_owned()],
            read: ReadOptions { mapping: FieldMap::parse(&[]).unwrap(), ..ReadOptions::default() },
            model: ModelName::default(),
            max_len: Some(512),
            out: None,
            load: LoadOptions::default(),
            elsewhere: None,
            render: RenderOptions::default(),
            choice: Choice::All,
            shard: None,
            thresholds: None,
            with_page: false,
            in_context: false,
            command: format!("diagnose {path}"),
        }
    }

    fn made_of(files: &[DataFile]) -> MadeOf<'_> {
        MadeOf { files, model_sha256: "abc", template_sha256: None, engine: serde_json::json!({ "device": "cpu" }), max_len: 512 }
    }

    /// [`identity`] takes the job apart without `..`: an option that is new there is to be put into one of the two lists here.
    #[test]
    fn what_decides_about_scores_is_in_the_identity_and_nothing_else() {
        type Change = (&'static str, fn(&mut Job, &mut MadeOf));
        let of = |change: Option<&Change>, shard: Option<Shard>| {
            let (mut job, mut made_of) = (job("rows.jsonl"), made_of(&[]));
            if let Some((_, change)) = change {
                change(&mut job, &mut made_of);
            }
            identity(&job, &made_of, shard, "0.1.0 (a)").unwrap()
        };
        let deciding: &[Change] = &[
            ("--map", |job, _| job.read.mapping = FieldMap::parse(&["prompt=question".to_owned()]).unwrap()),
            ("--map of another column", |job, _| job.read.mapping = FieldMap::parse(&["prompt=text".to_owned()]).unwrap()),
            ("--role", |job, _| job.read.roles = RoleMap::parse(&["patient=user".to_owned()]).unwrap()),
            ("--role of another name", |job, _| job.read.roles = RoleMap::parse(&["doctor=user".to_owned()]).unwrap()),
            ("--limit", |job, _| job.choice = Choice::First(3)),
            ("--limit 4", |job, _| job.choice = Choice::First(4)),
            ("--sample", |job, _| job.choice = Choice::Random { n: 3, seed: 0 }),
            ("--seed", |job, _| job.choice = Choice::Random { n: 3, seed: 1 }),
            ("--system", |job, _| job.render.system = Some("Be brief.".to_owned())),
            ("--supervise last", |job, _| job.render.supervise = Supervise::Last),
            ("--supervise all", |job, _| job.render.supervise = Supervise::All),
            ("--chat-template-kwargs", |job, _| job.render.template_switches = Some(serde_json::json!({ "x": true }))),
            ("--chat-template-kwargs of another value", |job, _| {
                job.render.template_switches = Some(serde_json::json!({ "x": 1 }))
            }),
            ("--append-eos", |job, _| job.render.append_eos = true),
            ("--max-len, as it was found", |_, made_of| made_of.max_len = 513),
            ("the model", |_, made_of| made_of.model_sha256 = "abd"),
            ("the template", |_, made_of| made_of.template_sha256 = Some("def")),
            ("the engine", |_, made_of| made_of.engine = serde_json::json!({ "device": "cuda (a card)" })),
            ("the engine's precision", |_, made_of| made_of.engine = serde_json::json!({ "device": "cpu", "dtype": "bf16" })),
        ];
        let mut seen = std::collections::HashMap::from([(of(None, None), "nothing")]);
        for change in deciding {
            if let Some(other) = seen.insert(of(Some(change), None), change.0) {
                panic!("{} counts as {other}", change.0);
            }
        }
        for (index, of_shards) in [(0, 2), (1, 2), (0, 3)] {
            let shard = of(None, Some(Shard { index, of: of_shards }));
            assert!(seen.insert(shard, "a shard").is_none(), "{index}/{of_shards}");
        }
        let idle: &[Change] = &[
            ("--strict", |job, _| job.read.strict = true),
            ("--out", |job, _| job.out = Some("elsewhere".into())),
            ("--thresholds", |job, _| job.thresholds = Some(Thresholds::Groups)),
            ("--no-view", |job, _| job.with_page = true),
            ("--in-context", |job, _| job.in_context = true),
            ("the command", |job, _| job.command = "diagnose".to_owned()),
            // These count as they are found: by bytes, by what the file is, by where the model runs.
            ("how files are spelt", |job, _| job.inputs = vec!["./rows.jsonl".to_owned()]),
            ("--format", |job, _| job.read.format = Some(crate::dataset::Format::Messages)),
            ("--model", |job, _| job.model.written = Some("model.gguf".to_owned())),
            ("--base", |job, _| job.model.base = Some("base".to_owned())),
            ("--chat-template", |job, _| job.render.chat_template = Some("t.jinja".into())),
            ("--max-len, as it was asked for", |job, _| (job.max_len, job.render.max_len) = (None, 3)),
            ("--dtype", |job, _| job.load.dtype = Dtype::Bf16),
            ("--kernels", |job, _| job.load.kernels = Kernels::Reference),
            ("--device", |job, _| job.load.device = Placement::Cpu),
            ("--answers", |job, _| job.elsewhere = Some(crate::jobs::score::job::Elsewhere::Answers("answers".into()))),
            ("--shard", |job, _| job.shard = Some(Shard { index: 0, of: 2 })),
        ];
        for change in idle {
            assert_eq!(of(Some(change), None), of(None, None), "{}", change.0);
        }
    }

    #[test]
    fn the_bytes_and_the_program_make_a_run_and_paths_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_string_lossy().into_owned()
        };
        let (row, other) = (r#"{"text":"one"}"#, r#"{"text":"two"}"#);
        let path = write("rows.jsonl", row);
        let spelling = folder.path().join(".").join("rows.jsonl").to_string_lossy().into_owned();
        let (renamed, changed) = (write("renamed.jsonl", row), write("changed.jsonl", other));
        let identity_of = |path: &str, build: &str| {
            let job = job(path);
            let dataset = Dataset::open(&job.inputs, &job.read).unwrap();
            identity(&job, &made_of(dataset.files()), None, build).unwrap()
        };
        let own = identity_of(&path, "0.1.0 (a)");
        assert_eq!(own, identity_of(&spelling, "0.1.0 (a)"));
        assert_ne!(own, identity_of(&path, "0.1.0 (b)"), "another commit is another program");
        assert_ne!(own, identity_of(&changed, "0.1.0 (a)"));
        assert_ne!(own, identity_of(&renamed, "0.1.0 (a)"), "the name stands in the table as the rows' source");
    }
}
