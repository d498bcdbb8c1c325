//! Draws finished runs on shared axes in one figure, and measures how far each lies from the first.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::folders::names;
use super::score::{RunRecord, read_finished_report, read_record};
use super::work::{LANDSCAPES_FILE, Work, check_free};
use crate::diagnosis::Report;
use crate::diagnosis::landscape::Landscape;
use crate::error::{Context, Error, Result};
use crate::files::{write_json, write_text};
use crate::maps::density::Density;
use crate::maps::landscape::{Panel, draw};
use crate::maps::{Caption, Cuts};
use crate::report::landscape::{Side, text};
use crate::table::{Column, Quadrant, TOKENS_FILE, read_chunks};

/// A comparison of runs as the user requested it.
pub(crate) struct Job {
    /// The folders of at least two finished runs.
    pub runs: Vec<PathBuf>,
    /// `None` means `landscapes` in the last run's folder.
    pub out: Option<PathBuf>,
}

/// The content of landscapes.json.
#[derive(Serialize)]
pub(crate) struct Outcome {
    pub out: PathBuf,
    pub thresholds: String,
    pub runs: Vec<Side>,
    #[serde(skip)]
    pub text: String,
}

/// A finished run, as read from its folder.
struct Run {
    name: String,
    record: RunRecord,
    report: Report,
    tables: [PathBuf; 1],
}

pub(crate) fn run(job: &Job) -> Result<Outcome> {
    let runs: Vec<Run> = job.runs.iter().zip(names(&job.runs)).map(|(folder, name)| open(folder, name)).collect::<Result<_>>()?;
    let (Some(first), Some(last)) = (runs.first(), job.runs.last()) else {
        return Err(Error::usage("expected the folders of two runs or more"));
    };
    for (run, folder) in runs.iter().zip(&job.runs) {
        let [own, other] = [first, run].map(|run| &run.report.summary.thresholds);
        if !own.sorts_like(other) {
            return Err(Error::new(format!("the runs are sorted by different thresholds: {own}, and here {other}"))
                .at(folder)
                .cure("Sort them again with the same ones: `diagnose RUN --thresholds fixed`."));
        }
        if run.record.vocab_size != first.record.vocab_size {
            return Err(Error::new(format!(
                "the models of the runs have different vocabularies, so their entropies are not comparable: {} tokens, and here {}",
                first.record.vocab_size, run.record.vocab_size
            ))
            .at(folder)
            .cure("Name runs whose models share a tokenizer."));
        }
    }
    let out = job.out.clone().unwrap_or_else(|| last.join("landscapes"));
    check_free(&out, Work::Landscapes)?;
    let landscapes: Vec<Landscape> = runs.iter().map(|run| Landscape::read(&run.tables)).collect::<Result<_>>()?;
    let sides: Vec<Side> = runs
        .iter()
        .enumerate()
        .map(|(idx, run)| Side {
            run: run.name.clone(),
            data: run.record.data_names(),
            model: run.record.model.name.clone(),
            overall: run.report.summary.overall,
            gaps: (idx > 0).then(|| landscapes[0].gaps(&landscapes[idx])),
        })
        .collect();

    let panels: Vec<Panel> = runs.iter().map(panel).collect::<Result<_>>()?;
    let thresholds = &first.report.summary.thresholds;
    let caption = Caption {
        model: distinct(runs.iter().map(|run| run.record.model.name.as_str())).join(" beside "),
        data: runs.iter().map(|run| run.record.data_names()).collect::<Vec<_>>().join(" beside "),
        thresholds: thresholds.to_string(),
    };
    let text = text(&sides, &thresholds.to_string());
    let markdown = format!("# Runs side by side\n\n![where the tokens lie](landscapes.png)\n\n{text}");
    let outcome = Outcome { out, thresholds: thresholds.to_string(), runs: sides, text };
    std::fs::create_dir_all(&outcome.out).context_at(&outcome.out, "cannot create the folder")?;
    write_json(&outcome.out.join(LANDSCAPES_FILE), &outcome)?;
    for extension in ["png", "svg"] {
        draw(&panels, &Cuts::of(thresholds), &caption, &outcome.out.join(format!("landscapes.{extension}")))?;
    }
    write_text(&outcome.out.join("landscapes.md"), &markdown)?;
    Ok(outcome)
}

fn open(folder: &Path, name: String) -> Result<Run> {
    let (record, report) = (read_record(folder)?, read_finished_report(folder)?);
    Ok(Run { name, record, report, tables: [folder.join(TOKENS_FILE)] })
}

fn panel(run: &Run) -> Result<Panel> {
    let mut density = Density::new(run.record.vocab_size);
    for chunk in read_chunks(&run.tables, &[Column::Logprob, Column::Entropy]) {
        let chunk = chunk?;
        density.add_all(&chunk.logprob, &chunk.entropy);
    }
    let cells = &run.report.summary.overall.quadrants;
    Ok(Panel { name: run.name.clone(), density, shares: Quadrant::ALL.map(|quadrant| cells.get(quadrant).token_share) })
}

/// The distinct names, in order of first appearance.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut distinct = Vec::new();
    names.for_each(|name| {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    });
    distinct
}
