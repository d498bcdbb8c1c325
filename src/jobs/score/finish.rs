//! Turns the parts of a run into tables, summary, figures and report. Needs no model, so that a finished run can be sorted by other thresholds.

use std::path::{Path, PathBuf};

use super::data::{find_data, read_listed};
use super::engine::Engine;
use super::in_context::{self, Conflicts};
use super::job::Job;
use super::kinds::name_kinds;
use super::part::Stages;
use super::plan::{Plan, Planted, Rollouts};
use super::record::{ReadRecord, RunRecord, ServerRecord, read_record};
use super::sorted::{named_or_own, read_report};
use crate::dataset::{Choice, Chosen, Dataset, PlantedSpan};
use crate::diagnosis::Report;
use crate::diagnosis::bounded::Bounded;
use crate::diagnosis::by_kind::Kinds;
use crate::diagnosis::fidelity::Fidelity;
use crate::diagnosis::gate::{Eaft, Gate, Token};
use crate::diagnosis::planted::{RankingQuality, ranking_quality};
use crate::diagnosis::population::Population;
use crate::diagnosis::quadrants::{Resolved, Thresholds, resolve};
use crate::diagnosis::self_check::{LEAST_ROWS, OnPolicy, SelfCheck};
use crate::diagnosis::summary::{Summary, summarise};
use crate::engine::TOP_K;
use crate::error::{Context, Error, Result};
use crate::files::{hold, read_json, write_json, write_text};
use crate::format::part_of;
use crate::jobs::served::AS_SERVED;
use crate::jobs::watch::Watch;
use crate::jobs::work::{FIDELITY_FILE, MAPS_FOLDER, PLANTED_FILE, REPORT_FILE, SUMMARY_FILE, VIEW_FILE};
use crate::jobs::{peak_memory_bytes, provenance_of, view};
use crate::kernels::cuda;
use crate::maps::density::Density;
use crate::maps::gradient::Gradient;
use crate::maps::tail::Tail;
use crate::maps::tokens::{FrequentTokens, TokenCount};
use crate::maps::{Caption, Cuts, density, fidelity, gradient, tail, tokens};
use crate::model::{Model, Placement};
use crate::provenance::RUN_FILE;
use crate::report::markdown;
use crate::report::terminal::Heading;
use crate::table::{
    CONFLICTS_FILE, Column, PAIRS_FILE, Quadrant, ROWS_FILE, TOKENS_FILE, finish as join_parts, finished_parts, read_chunks,
    read_rows,
};
use crate::tokens::Audit;

/// The result of a finished run, for the terminal.
pub(crate) struct Outcome {
    pub out: PathBuf,
    pub record: RunRecord,
    pub report: Report,
    /// Whether the run has a page.
    pub has_page: bool,
}

/// Joins the parts, if any, then sorts, summarises, draws and reports.
pub(super) fn finish(plan: &Plan, stages: Option<Stages>, watch: &dyn Watch) -> Result<Outcome> {
    let path = plan.out.join(RUN_FILE);
    let record = match stages {
        Some(seconds) if seconds.input_tokens > 0 || !path.exists() => record(plan, seconds),
        // Nothing was scored now: the earlier measurements still describe the table.
        _ => read_record(&plan.out)?,
    };
    if !plan.planted.is_empty() {
        write_json(&plan.out.join(PLANTED_FILE), &plan.planted)?;
    }
    write_json(&path, &record)?;
    // The command line refuses --in-context with another engine.
    let in_context = match &plan.engine {
        Engine::Own(model) if plan.job.in_context => Some((plan, &**model)),
        _ => None,
    };
    let sorting = Sorting {
        thresholds: named_or_own(plan.job.thresholds, &plan.out)?,
        with_page: plan.job.with_page,
        in_context,
        command: &plan.job.command,
    };
    sort(&plan.out, record, &sorting, Ok((&plan.dataset, &plan.chosen)), watch)
}

/// Sorts a finished run by other thresholds, or again by its own. `data` are its files at their current place; if empty, they are searched for.
pub(crate) fn sort_again(
    out: &Path,
    data: &[String],
    thresholds: Option<Thresholds>,
    with_page: bool,
    command: &str,
    watch: &dyn Watch,
) -> Result<Outcome> {
    let _held = hold(out).map_err(|error| {
        let out = out.display();
        error.cure(format!(
            "A read-only folder cannot be sorted again: show it with `diagnose view {out} --out FILE`, or sort a copy."
        ))
    })?;
    let record = read_record(out)?;
    let thresholds = named_or_own(thresholds, out)?;
    let data = match find_data(out, &record, data) {
        Err(error) if !data.is_empty() => return Err(error),
        found => found,
    };
    // Without its data a run gets no sentences and no kinds of conflict, so keep those that it already has under the same thresholds.
    if let (Err(error), Ok(Some(report))) = (&data, read_report(out))
        && let found = &report.summary.thresholds
        && found.preset == thresholds.to_string()
    {
        let why = format!("the run keeps its present thresholds, {found}: {}", error.reason_and_cure());
        watch.remarks(&record.model.name, &[why]);
        let has_page = out.join(VIEW_FILE).exists();
        return Ok(Outcome { out: out.to_owned(), record, report, has_page });
    }
    let at_hand = data.as_ref().map(|(dataset, chosen)| (dataset, chosen));
    sort(out, record, &Sorting { thresholds, with_page, in_context: None, command }, at_hand, watch)
}

/// The options of sorting.
struct Sorting<'a> {
    thresholds: Thresholds,
    /// Whether to write the page.
    with_page: bool,
    /// The plan and its model, which scores the conflicts again in context, if requested.
    in_context: Option<(&'a Plan, &'a Model)>,
    command: &'a str,
}

/// `data` are the data of the run, or the reason why they are not available; without them, there are no sentences.
fn sort(
    out: &Path,
    record: RunRecord,
    sorting: &Sorting,
    data: Result<(&Dataset, &Chosen), &Error>,
    watch: &dyn Watch,
) -> Result<Outcome> {
    watch.stage("Sorting");
    let parts: Vec<PathBuf> = finished_parts(out)?.into_iter().map(|part| part.tokens).collect();
    let table = out.join(TOKENS_FILE);
    let resolved = resolve(sorting.thresholds, if parts.is_empty() { std::slice::from_ref(&table) } else { &parts })?;
    join_parts(out, &resolved.key(), |logprob, entropy, tail| resolved.label(logprob, entropy, tail))?;

    watch.stage("Summing up");
    let tables = [table];
    let mut summary = summarise(&tables, &read_rows(&out.join(ROWS_FILE))?, &resolved)?;
    let remark = |what: String| watch.remarks(&record.model.name, &[what]);
    let (kinds, without_text) = match data {
        Ok(data) => {
            (Some(kinds_of(out, &tables, &mut summary, (data, &record.audit), sorting.in_context, &remark, watch)?), None)
        }
        Err(error) => {
            // The kinds of other thresholds belong to other conflicts, and so do their results in context.
            remove_old(out, &[CONFLICTS_FILE, PAIRS_FILE])?;
            in_context::put_aside(out)?;
            remark(format!("sorted without sentences and kinds of conflict: {}", error.reason_and_cure()));
            (None, Some(error.reason()))
        }
    };
    view::keep_alternatives(out, kinds.is_some(), record.shard.is_some())?;
    let planted = planted_quality(out, &tables, &resolved)?;
    let fidelity: Option<Fidelity> = read_json(&out.join(FIDELITY_FILE))?;

    let bounded = match &record.server {
        Some(server) => Bounded::of(&tables, &resolved, server.checked.top_logprobs)?,
        None => None,
    };

    watch.stage("Drawing");
    draw_maps(out, &record, &summary, fidelity.as_ref(), bounded.as_ref(), &tables)?;
    let on_policy = on_policy(&record, &tables)?;
    let report = Report {
        summary,
        kinds,
        planted,
        bounded,
        on_policy,
        topk_fidelity: fidelity.map(|fidelity| fidelity.summary()).unwrap_or_default(),
    };
    write_json(&out.join(SUMMARY_FILE), &report)?;
    let text = markdown::report(&report, &record.description(sorting.command, without_text));
    write_text(&out.join(REPORT_FILE), &text)?;
    if let Some(aside) = view::retire(out, &record, &resolved, data.is_ok())? {
        let aside = aside.display();
        remark(format!("the page for the previous thresholds, which has the texts of the rows, is kept as {aside}"));
    }
    // A shard may have nothing to show.
    if sorting.with_page && report.summary.overall.tokens > 0 {
        watch.stage("Writing the page");
        view::write_own(out, &record, data.ok())?;
    }
    let has_page = out.join(VIEW_FILE).exists();
    Ok(Outcome { out: out.to_owned(), record, report, has_page })
}

/// The remark that the --in-context results belong to other conflicts than the current ones.
const NOT_IN_CONTEXT: &str = "the --in-context results belong to other thresholds, and come back with them; for these thresholds, repeat the command that made the run \
     with these --thresholds and --in-context";

fn remove_old(out: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let path = out.join(name);
        if path.exists() {
            std::fs::remove_file(&path).context_at(&path, "cannot remove the table of the run under other thresholds")?;
        }
    }
    Ok(())
}

/// The kinds of the conflicts, with what they are in context if the run has looked at that. Also reads the sentences around the listed tokens.
fn kinds_of(
    out: &Path,
    tables: &[PathBuf],
    summary: &mut Summary,
    ((dataset, chosen), audit): ((&Dataset, &Chosen), &Audit),
    run: Option<(&Plan, &Model)>,
    remark: &dyn Fn(String),
    watch: &dyn Watch,
) -> Result<Kinds> {
    let (mut kinds, pairs) = name_kinds(out, tables, summary, (dataset, chosen), audit)?;
    if run.is_some() || in_context::looked(out) {
        let conflicts = Conflicts::read(out)?;
        kinds.in_context = match (in_context::kept(out, &conflicts)?, run) {
            (Some(kept), _) => Some(kept),
            (None, Some(run)) => Some(in_context::score(run, out, &conflicts, &summary.thresholds, &pairs, watch)?),
            (None, None) => {
                remark(NOT_IN_CONTEXT.to_owned());
                None
            }
        };
    }
    let mut wanted = summary.listed_rows();
    wanted.extend(kinds.groups.iter().map(|group| group.example.row));
    read_listed(tables, dataset, chosen, wanted, |row, context_of| {
        summary.read_contexts(row, context_of);
        for example in kinds.groups.iter_mut().map(|group| &mut group.example).filter(|example| example.row == row) {
            example.context = context_of(example);
        }
    })?;
    Ok(kinds)
}

fn record(plan: &Plan, seconds: Stages) -> RunRecord {
    let Job { load, render, .. } = &plan.job;
    let (limit, sample, seed) = match plan.job.choice {
        Choice::All => (None, None, None),
        Choice::First(limit) => (Some(limit), None, None),
        Choice::Random { n, seed } => (None, Some(n), Some(seed)),
    };
    let server = plan.engine.checked().map(|checked| {
        let retries = if let Engine::Servers(pool, _) = &plan.engine { pool.retries() } else { 0 };
        ServerRecord { checked: checked.clone(), retries }
    });
    RunRecord {
        provenance: provenance_of(plan.started, plan.engine.device(), server.is_some()),
        command: plan.job.command.clone(),
        identity: plan.identity.clone(),
        model: plan.info.clone(),
        data: plan.dataset.files().to_vec(),
        read: Some(ReadRecord::of(&plan.job.read)),
        template_sha256: plan.renderer.template_sha256().map(str::to_owned),
        turn_ends: Some(plan.renderer.turn_ends()),
        system: render.system.clone(),
        template_switches: render.template_switches.clone(),
        append_eos: render.append_eos,
        max_len: render.max_len,
        supervise: render.supervise,
        limit,
        sample,
        sampled_from: plan.chosen.drawn_from,
        seed,
        dtype: if server.is_some() { AS_SERVED.to_owned() } else { load.dtype.to_string() },
        kernels: server.as_ref().map_or_else(|| load.kernels.to_string(), |server| server.checked.program()),
        vocab_size: plan.vocab_size,
        counts: plan.totals,
        audit: plan.audit.clone(),
        audit_lines: plan.audit.lines(),
        tokens_per_second: seconds.input_tokens as f64 / (seconds.audit + seconds.wall),
        seconds_to_first_row: seconds.to_first_row,
        seconds,
        peak_memory_bytes: peak_memory_bytes(),
        peak_device_memory_bytes: peak_device_memory_bytes(plan.engine.placement()),
        server,
        shard: plan.shard.clone(),
    }
}

/// The peak GPU memory held by this program, excluding the driver's own; `None` on other devices.
fn peak_device_memory_bytes(device: Placement) -> Option<u64> {
    let is_gpu = device == Placement::Cuda;
    is_gpu.then(|| cuda::Device::get().ok().map(cuda::Device::peak_bytes)).flatten()
}

/// The self-check on rollouts; `None` if the data contain none.
fn on_policy(record: &RunRecord, tables: &[PathBuf]) -> Result<Option<OnPolicy>> {
    let (scored, Rollouts { rows, respelt, exact }) = (record.counts.scored, record.counts.rollouts);
    if rows == 0 {
        return Ok(None);
    }
    let why_not = if record.server.is_some() {
        Some("a server does not report the full entropy".to_owned())
    } else if rows < scored {
        Some(format!("only {} rollouts; the others are not the model's own text", part_of(rows, scored, "row", ["is", "are"])))
    } else if exact < rows {
        Some(format!(
            "{} not known to be drawn by this very model in this precision at temperature 1 from all tokens, or also with other targets",
            part_of(rows - exact, rows, "row", ["is", "are"])
        ))
    } else {
        None
    };
    let check = if why_not.is_none() { SelfCheck::of(tables)? } else { None };
    let too_few = || format!("fewer than {LEAST_ROWS} rows with targets say too little");
    let why_not = why_not.or_else(|| check.is_none().then(too_few));
    Ok(Some(OnPolicy { rows, respelt, check, why_not }))
}

fn planted_quality(out: &Path, tables: &[PathBuf], resolved: &Resolved) -> Result<Option<RankingQuality>> {
    let Some(planted) = read_json::<Vec<Planted>>(&out.join(PLANTED_FILE))? else { return Ok(None) };
    let spans: Vec<(u32, PlantedSpan)> =
        planted.iter().map(|&Planted { row, turn, begin, end }| (row, PlantedSpan { turn, begin, end })).collect();
    ranking_quality(tables, &spans, resolved).map(Some)
}

/// Draws all figures from one pass over the table.
fn draw_maps(
    out: &Path,
    record: &RunRecord,
    summary: &Summary,
    topk: Option<&Fidelity>,
    bounded: Option<&Bounded>,
    tables: &[PathBuf],
) -> Result<()> {
    let gate = Gate::Eaft(Eaft::LINEAR);
    let weight = gate.bind(&Population::default())?;
    let (mut plane, mut landscape) = (Density::new(record.vocab_size), Gradient::new(record.vocab_size));
    let mut tails = Tail::default();
    for chunk in read_chunks(tables, &[Column::Logprob, Column::Entropy, Column::EntropyTopk, Column::Grad, Column::Tail]) {
        let chunk = chunk?;
        let add_gradients = || {
            for i in 0..chunk.len() {
                let (logprob, entropy) = (chunk.logprob[i], chunk.entropy[i]);
                landscape.add(logprob, entropy, chunk.grad[i], weight.of(&Token::of_table(&chunk, i)));
            }
        };
        let add_tails = || chunk.tail.iter().zip(&chunk.logprob).for_each(|(tail, logprob)| tails.add(*tail, *logprob));
        rayon::join(add_gradients, || rayon::join(add_tails, || plane.add_all(&chunk.logprob, &chunk.entropy)));
    }
    let thresholds = &summary.thresholds;
    let exact = bounded.map_or(String::new(), |bounded| format!("; {}", bounded.line()));
    let caption =
        Caption { model: record.model.name.clone(), data: record.data_names(), thresholds: format!("{thresholds}{exact}") };
    let cuts = Cuts::of(thresholds);
    let by_quadrant = |of: &dyn Fn(Quadrant) -> f64| Quadrant::ALL.map(of);
    let cells = &summary.overall.quadrants;
    let shares = by_quadrant(&|quadrant| cells.get(quadrant).token_share);
    let gradients = by_quadrant(&|quadrant| cells.get(quadrant).grad_share);
    let kept = summary.gates.iter().find(|preview| preview.gate == gate.to_string());
    let gated =
        by_quadrant(&|quadrant| cells.get(quadrant).grad_share * kept.map_or(0.0, |preview| preview.kept.get(quadrant).grad));
    let frequent = frequent_tokens(summary);

    let folder = out.join(MAPS_FOLDER);
    std::fs::create_dir_all(&folder).context_at(&folder, "cannot create the folder of the figures")?;
    for extension in ["png", "svg"] {
        let path = |name: &str| folder.join(format!("{name}.{extension}"));
        density::draw(&plane, shares, &cuts, &caption, &path("density"))?;
        gradient::draw(&landscape, "EAFT, linear", gradients, gated, &cuts, &caption, &path("gradient"))?;
        tokens::draw(&frequent, &caption, &path("tokens"))?;
        tail::draw(&tails, &cuts, &caption, &path("tail"))?;
        if let Some(topk) = topk {
            fidelity::draw(topk, TOP_K, &caption, &path("fidelity"))?;
        }
    }
    Ok(())
}

fn frequent_tokens(summary: &Summary) -> FrequentTokens {
    let tokens = |quadrant: Quadrant| {
        let list = summary.frequent_tokens.get(quadrant).iter();
        list.map(|token| TokenCount { id: token.token_id, text: token.token.clone(), count: token.count }).collect()
    };
    FrequentTokens {
        tokens: Quadrant::ALL.map(tokens),
        totals: Quadrant::ALL.map(|quadrant| summary.overall.quadrants.get(quadrant).tokens),
    }
}

impl Outcome {
    /// The heading above the numbers on the terminal.
    pub(crate) fn heading(&self) -> Heading {
        let RunRecord { model, counts, tokens_per_second, .. } = &self.record;
        Heading {
            data: self.record.data_names(),
            model: model.name.clone(),
            out: self.out.display().to_string(),
            rows: self.record.rows_read(),
            scored: counts.scored,
            records: counts.records,
            tokens_per_second: *tokens_per_second,
            has_page: self.has_page,
        }
    }
}
