//! Plans the main job: opens and checks everything before the long work, and computes an identity that equal commands share.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::engine::{self, Engine};
use super::job::Job;
use super::shard::ShardRecord;
use crate::dataset::{Chosen, DataFile, Dataset, PlantedSpan, ReadOptions, Rollout, Shard};
use crate::error::{Context, Result};
use crate::files::sha256;
use crate::jobs::found::FoundModel;
use crate::jobs::identity_of_files;
use crate::jobs::watch::{Beginning, Watch};
use crate::kernels::Dtype;
use crate::model::Info;
use crate::provenance;
use crate::tokens::{Audit, Drawn, EqualRows, RenderOptions, Renderer, Tokenizer, rendered};

/// A job after everything is opened and checked.
pub(crate) struct Plan {
    /// Its `render` has the length that was found.
    pub job: Job,
    pub dataset: Dataset,
    pub chosen: Chosen,
    pub engine: Engine,
    pub info: Info,
    pub tokenizer: Arc<Tokenizer>,
    pub vocab_size: usize,
    pub renderer: Renderer,
    pub audit: Audit,
    pub totals: Totals,
    pub planted: Vec<Planted>,
    pub out: PathBuf,
    /// A hash of all that determines the scores: equal identities give equal tables.
    pub identity: String,
    /// The run that this shard belongs to; `None` for a run over all rows.
    pub shard: Option<ShardRecord>,
    pub began: Instant,
    pub started: SystemTime,
    /// Seconds to load the model.
    pub load_seconds: f64,
    /// Seconds to read and render everything for the mask audit.
    pub audit_seconds: f64,
}

/// Totals of the whole data set, from the audit's pass.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Records read, including bad ones.
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
    /// Adds the totals of other records.
    pub(super) fn add(&mut self, other: &Totals) {
        // Without `..`, the compiler demands a decision for every new number.
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

/// Records whose last answer was sampled from a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rollouts {
    pub rows: u64,
    /// The number of these whose text is split into other tokens than those sampled.
    pub respelt: u64,
    /// The number of these whose targets are exactly the tokens that this very model sampled, in the same precision and from its unmodified
    /// probabilities.
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

/// A span that a row declares as planted, for the report on rankings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Planted {
    pub row: u32,
    pub turn: u16,
    pub begin: u32,
    pub end: u32,
}

impl Plan {
    pub(crate) fn make(mut job: Job, watch: &dyn Watch) -> Result<Plan> {
        let (began, started) = (Instant::now(), SystemTime::now());
        let dataset = Dataset::open(&job.inputs, &job.read)?;
        watch.opened(dataset.files());
        let loading = Instant::now();
        let (found, source) = engine::find(&job, watch)?;
        let FoundModel { reference: _, info, tokenizer, template, vocab_size, max_len, mut remarks, passed_over } = found;
        job.render.max_len = max_len;
        let renderer = Renderer::new(tokenizer.clone(), template, job.render.clone())?;
        let load_seconds = loading.elapsed().as_secs_f64();
        let auditing = Instant::now();
        let chosen = dataset.choose(job.choice)?.in_shard(job.shard);
        let reader = Reader { model_sha256: &info.sha256, dtype: job.load.dtype };
        let Survey { audit, totals, planted } = survey(&dataset, &renderer, &chosen, job.read.strict, reader, watch)?;
        let audit_seconds = auditing.elapsed().as_secs_f64();
        // A shard may have no supervised row even if other shards have some.
        if totals.supervised == 0 && job.shard.is_none() {
            return Err(engine::nothing_to_score().cure(audit.lines().join("\n  ")));
        }
        let of_all = chosen.clone().in_shard(None);
        let probed = if totals.supervised == 0 { &of_all } else { &chosen };
        let first = engine::first_sequence(&dataset, &renderer, probed)?;
        let (engine, checked) = source.engine(&first, totals.supervised > 0)?;
        remarks.extend(checked);
        let made_of = MadeOf {
            files: dataset.files(),
            model_sha256: &info.sha256,
            template_sha256: renderer.template_sha256(),
            engine: engine.identity(&job),
        };
        let whole = identity(&job, &made_of, None, &provenance::build())?;
        let identity = identity(&job, &made_of, job.shard, &provenance::build())?;
        let out = job.out.clone().unwrap_or_else(|| {
            let shard = job.shard.map_or(String::new(), |shard| format!("-shard-{}-of-{}", shard.index, shard.of));
            Path::new("runs").join(format!("{}-{}{shard}", stem(&dataset), &whole[..8]))
        });
        watch.audited(&audit);
        watch.remarks(&info.name, &remarks);
        watch.begins(&Beginning {
            supervised: totals.supervised,
            tokens: totals.tokens,
            rows: totals.scored,
            model: &info.name,
            device: engine.device(),
            passed_over: passed_over.as_deref(),
            out: &out,
        });
        Ok(Plan {
            shard: job.shard.map(|shard| ShardRecord { shard, whole }),
            job,
            dataset,
            chosen,
            engine,
            info,
            tokenizer,
            vocab_size,
            renderer,
            audit,
            totals,
            planted,
            out,
            identity,
            began,
            started,
            load_seconds,
            audit_seconds,
        })
    }
}

/// The model that reads the rows, to tell whether it wrote some of them.
#[derive(Clone, Copy)]
struct Reader<'a> {
    model_sha256: &'a str,
    dtype: Dtype,
}

/// What the pass over all rows finds.
struct Survey {
    audit: Audit,
    totals: Totals,
    planted: Vec<Planted>,
}

/// Reads and renders everything once, so that the audit precedes the long work and progress has a total.
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

/// `demo` for `data/demo.jsonl`; for several files, the name of the first and the number of the others.
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

/// The inputs that a job names, as they were found.
struct MadeOf<'a> {
    files: &'a [DataFile],
    model_sha256: &'a str,
    template_sha256: Option<&'a str>,
    /// The properties of the engine that determine the scores.
    engine: serde_json::Value,
}

/// The SHA-256 of everything that the scores depend on; `build` identifies the program.
fn identity(job: &Job, made_of: &MadeOf, shard: Option<Shard>, build: &str) -> Result<String> {
    // Without `..`, the compiler demands a decision for every new option. The options ignored here either count by what was found under their names
    // ([`MadeOf`], the engine), or do not affect the scores.
    let Job {
        inputs: _,
        read: ReadOptions { format: _, mapping, roles, strict: _ },
        model: _,
        out: _,
        load: _,
        elsewhere: _,
        render: RenderOptions { system, max_len, supervise, chat_template: _, template_switches, append_eos },
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
        "max_len": max_len,
        "supervise": supervise,
    });
    if let (Some(what), Some(engine)) = (what.as_object_mut(), made_of.engine.as_object()) {
        what.extend(engine.clone());
    }
    // These are included only if used, so that runs from before these options existed keep their identity.
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
    use crate::diagnosis::quadrants::Thresholds;
    use crate::kernels::Kernels;
    use crate::model::{LoadOptions, ModelName, Placement};
    use crate::tokens::Supervise;

    fn job() -> Job {
        Job {
            inputs: vec!["rows.jsonl".to_owned()],
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
            command: "diagnose rows.jsonl".to_owned(),
        }
    }

    fn made_of(files: &[DataFile]) -> MadeOf<'_> {
        MadeOf { files, model_sha256: "abc", template_sha256: None, engine: serde_json::json!({ "device": "cpu" }) }
    }

    /// [`identity`] destructures the job without `..`: add every new option to one of the two lists here.
    #[test]
    fn what_decides_about_scores_is_in_the_identity_and_nothing_else() {
        type Change = (&'static str, fn(&mut Job, &mut MadeOf));
        let of = |change: Option<&Change>, shard: Option<Shard>| {
            let (mut job, mut made_of) = (job(), made_of(&[]));
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
            ("--max-len, as it was found", |job, _| job.render.max_len = 513),
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
        let data = Dataset::open(&[concat!(env!("CARGO_MANIFEST_DIR"), "/data/demo.jsonl").to_owned()], &job().read).unwrap();
        for (what, identity) in [
            ("the data", identity(&job(), &made_of(data.files()), None, "0.1.0 (a)")),
            ("another commit", identity(&job(), &made_of(&[]), None, "0.1.0 (b)")),
        ] {
            assert!(seen.insert(identity.unwrap(), what).is_none(), "{what}");
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
            // These count by what is found: the bytes, the kind of file, where the model runs.
            ("how files are spelt", |job, _| job.inputs = vec!["./rows.jsonl".to_owned()]),
            ("--format", |job, _| job.read.format = Some(crate::dataset::Format::Messages)),
            ("--model", |job, _| job.model.written = Some("model.gguf".to_owned())),
            ("--base", |job, _| job.model.base = Some("base".to_owned())),
            ("--chat-template", |job, _| job.render.chat_template = Some("t.jinja".into())),
            ("--max-len, as it was asked for", |job, _| job.max_len = None),
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
}
