//! Joins the runs over the shards of a data set into the run that one machine would have made.
//!
//! The joined run has a folder of its own, which is read like that of any other run. It is made once: an existing folder of the same run is reused.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::finish::sort_again;
use super::part::{PartEnds, Stages};
use super::plan::{Planted, Totals};
use super::record::{RunRecord, read_record};
use super::shard::ShardRecord;
use super::sorted::sorted_by;
use super::stream::{IDENTITY_FILE, provenance};
use crate::dataset::Shard;
use crate::diagnosis::fidelity::Fidelity;
use crate::diagnosis::quadrants::Thresholds;
use crate::error::{Context, Error, Result};
use crate::files::{file_name, hold, read_json, retire, write_json};
use crate::jobs::folders;
use crate::jobs::other_run::other_run;
use crate::jobs::watch::Watch;
use crate::jobs::work::{FIDELITY_FILE, PLANTED_FILE, SUMMARY_FILE, Work, check_free};
use crate::provenance::{JOINING_FOLDER, PARTS_FOLDER, RUN_FILE};
use crate::table::{ROWS_FILE, TOKENS_FILE, join_shards, read_rows};
use crate::tokens::{Audit, EqualRows, Finding};

/// Identifies joined parts, and confirms that they are complete.
#[derive(PartialEq, Serialize, Deserialize)]
struct JoinedParts {
    identity: String,
    kernel_level: Option<String>,
    joined_shards: usize,
}

/// How to make the joined run.
pub(crate) struct Joining<'a> {
    /// The folder of the joined run; `None` means one beside the first shard.
    pub out: Option<&'a Path>,
    /// Whether to sort it by the thresholds of the shards, which must agree; otherwise the caller sorts it.
    pub sorted: bool,
    pub command: &'a str,
}

/// A run over one shard.
struct Found {
    folder: PathBuf,
    record: RunRecord,
    shard: ShardRecord,
}

/// A run that a command names.
enum Named {
    Run(PathBuf),
    /// At least one shard of one run.
    Shards(Vec<Found>),
}

/// The run folders, with the shards of each run replaced by the joined run, in the place of the first. A single shard stays as it is.
pub(crate) fn joined(folders: &[PathBuf], joining: &Joining, watch: &dyn Watch) -> Result<Vec<PathBuf>> {
    // Keep the order of the command line, so that messages do not depend on the runs' identities.
    let mut named: Vec<Named> = Vec::new();
    for folder in folders {
        let Some(found) = found(folder)? else {
            named.push(Named::Run(folder.clone()));
            continue;
        };
        let of_run = named.iter_mut().find_map(|named| match named {
            Named::Shards(shards) if shards[0].shard.whole == found.shard.whole => Some(shards),
            _ => None,
        });
        match of_run {
            Some(shards) => shards.push(found),
            None => named.push(Named::Shards(vec![found])),
        }
    }
    let shards: Vec<&[Found]> = named
        .iter()
        .filter_map(|named| match named {
            Named::Shards(shards) => Some(shards.as_slice()),
            Named::Run(_) => None,
        })
        .collect();
    let n_shards: usize = shards.iter().map(|shards| shards.len()).sum();
    if let (Some(folder), 2.., 2..) = (joining.out, n_shards, named.len()) {
        let names: Vec<String> = named
            .iter()
            .map(|named| match named {
                Named::Run(folder) => folder.display().to_string(),
                Named::Shards(shards) => format!("{} (shard {})", shards[0].folder.display(), shards[0].shard.shard),
            })
            .collect();
        return Err(Error::usage(format!("--out names one folder, but there are {} runs: {}", names.len(), names.join(", ")))
            .at(folder)
            .cure("First join the shards of each run separately, then name the joined folders."));
    }
    let folder_of = |named: &Named| match named {
        Named::Run(folder) => Ok(folder.clone()),
        // A single shard is a run over some of the rows.
        Named::Shards(of_run) if n_shards == 1 => Ok(of_run[0].folder.clone()),
        Named::Shards(of_run) => {
            check_whole(of_run, &shards)?;
            join(of_run, joining, watch)
        }
    };
    named.iter().map(folder_of).collect()
}

fn found(folder: &Path) -> Result<Option<Found>> {
    if !folder.is_dir() || !folders::holds_scores(folder) {
        return Ok(None);
    }
    let record = read_record(folder)?;
    let shard = record.shard.clone();
    Ok(shard.map(|shard| Found { folder: folder.to_owned(), record, shard }))
}

/// Checks that all shards of one run are present exactly once.
fn check_whole(shards: &[Found], runs: &[&[Found]]) -> Result<()> {
    let Some(first) = shards.first() else { return Ok(()) };
    let of = first.shard.shard.of;
    if let Some(other) = shards.iter().find(|found| found.shard.shard.of != of) {
        return Err(Error::new(format!(
            "shard {} and shard {} (in {}) belong to runs that were divided differently",
            first.shard.shard,
            other.shard.shard,
            other.folder.display()
        ))
        .at(&first.folder)
        .cure("Name shards of the same division, such as 0/2 and 1/2."));
    }
    let missing: Vec<String> = (0..of)
        .filter(|index| !shards.iter().any(|found| found.shard.shard.index == *index))
        .map(|index| Shard { index, of }.to_string())
        .collect();
    if !missing.is_empty() {
        if let Some(other) = runs.iter().copied().flatten().find(|other| other.shard.whole != first.shard.whole) {
            return Err(Error::new(format!(
                "the shards are of different runs: {} in {}, and in {} {}",
                difference(&first.record, &other.record).0,
                first.folder.display(),
                other.folder.display(),
                difference(&first.record, &other.record).1
            ))
            .cure("Score all shards of a run with the same command, program and kernel level (DIAGNOSE_KERNELS)."));
        }
        return Err(Error::new(format!("{} of {of} shards are missing: {}", missing.len(), missing.join(", ")))
            .at(&first.folder)
            .cure("Name the folders of all shards of the run."));
    }
    for (i, found) in shards.iter().enumerate() {
        if let Some(before) = shards[..i].iter().find(|before| before.shard.shard == found.shard.shard) {
            return Err(Error::new(format!("this is shard {} again; so is {}", found.shard.shard, before.folder.display()))
                .at(&found.folder)
                .cure("Name each shard once."));
        }
        // A run writes its first summary after all tables, so a run without one is unfinished.
        let is_whole = found.folder.join(TOKENS_FILE).exists()
            && !found.folder.join(PARTS_FOLDER).exists()
            && found.folder.join(SUMMARY_FILE).exists();
        if !is_whole {
            return Err(Error::new("the shard's run was killed before it was finished")
                .at(&found.folder)
                .cure("Run the command that started it again."));
        }
        let servers = [&first.record, &found.record].map(|record| record.server.as_ref().map(|server| &server.checked));
        if let [Some(of_first), Some(own)] = servers
            && let Some(apart) = own.weights_apart(of_first)
        {
            return Err(Error::new(format!(
                "the servers of shard {} and shard {} ran different models: their ln p of the same text differs by {:.3} nat on average over {} tokens",
                first.shard.shard, found.shard.shard, apart.mean, apart.tokens
            ))
            .at(&found.folder)
            .cure("Score all shards with servers of the same model in the same precision."));
        }
    }
    Ok(())
}

/// The first difference between two records, in words.
fn difference(a: &RunRecord, b: &RunRecord) -> (String, String) {
    let level = |record: &RunRecord| record.provenance.kernel_level.clone().unwrap_or_default();
    let files = |record: &RunRecord| {
        record.data.iter().map(|file| file.sha256.get(..12).unwrap_or_default().to_owned()).collect::<Vec<_>>().join(", ")
    };
    // Servers choose their own device.
    let device = |record: &RunRecord| match record.server {
        Some(_) => String::new(),
        None => record.provenance.device.clone(),
    };
    type Of<'a> = &'a dyn Fn(&RunRecord) -> String;
    let what: [(&str, Of); 10] = [
        ("model", &|record| format!("{} ({})", record.model.name, record.model.sha256.get(..12).unwrap_or_default())),
        ("template", &|record| record.template_sha256.clone().unwrap_or_default()),
        ("data", &files),
        ("kernel level", &level),
        ("device", &device),
        ("precision", &|record| record.dtype.clone()),
        ("kernels", &|record| record.kernels.clone()),
        ("program", &|record| record.provenance.build()),
        ("--max-len", &|record| record.max_len.to_string()),
        ("number of shards", &|record| record.shard.as_ref().map_or(0, |shard| shard.shard.of).to_string()),
    ];
    for (name, of) in what {
        if of(a) != of(b) {
            return (format!("the {name} is {}", of(a)), of(b));
        }
    }
    ("the options are others".to_owned(), "than here".to_owned())
}

fn join(shards: &[Found], joining: &Joining, watch: &dyn Watch) -> Result<PathBuf> {
    let Some(first) = shards.first() else { return Err(Error::usage("expected the shards of a run")) };
    let out = joining.out.map_or_else(|| beside(first), Path::to_owned);
    let whole = &first.shard.whole;
    let record = joined_record(shards, joining.command)?;
    check_free(&out, Work::Scores)?;
    if out.join(RUN_FILE).exists() {
        let found = read_record(&out)?;
        if found.identity != *whole {
            return Err(other_run(&out, "another run than the one whose shards are named", None, false));
        }
    } else {
        let _held = hold(&out)?;
        watch.stage("Joining the shards");
        join_parts(shards, &out, &record)?;
        write_json(&out.join(RUN_FILE), &record)?;
    }
    if joining.sorted {
        let thresholds = common_thresholds(shards)?;
        // The caller writes the page again if it is wanted.
        if sorted_by(&out)?.is_none_or(|found| found.preset != thresholds.to_string()) {
            sort_again(&out, &[], Some(thresholds), false, joining.command, watch)?;
        }
    }
    Ok(out)
}

/// Puts the parts of the joined run and the files beside them into its folder.
fn join_parts(shards: &[Found], out: &Path, record: &RunRecord) -> Result<()> {
    let identity = JoinedParts {
        identity: record.identity.clone(),
        kernel_level: record.provenance.kernel_level.clone(),
        joined_shards: shards.len(),
    };
    let final_parts = out.join(PARTS_FOLDER);
    if final_parts.exists() {
        // The process was killed before writing a record. Parts without this identity belong to a run that scores.
        if read_json::<JoinedParts>(&final_parts.join(IDENTITY_FILE)).is_ok_and(|found| found.as_ref() == Some(&identity)) {
            return Ok(());
        }
        return Err(Error::new("the folder holds a run that was not finished").at(out).cure("Choose another folder with --out."));
    }
    let mut part_ends = PartEnds::new(&record.provenance.device, record.model.parameters, 0);
    let ends = |row: &crate::table::Row| part_ends.add(if row.skipped.is_none() { row.tokens as usize } else { 0 });
    let folders: Vec<PathBuf> = shards.iter().map(|found| found.folder.clone()).collect();
    let parts = out.join(JOINING_FOLDER);
    retire(&parts)?;
    join_shards(&parts, &folders, ends, &provenance(&record.identity, &record.model))?;
    write_json(&parts.join(IDENTITY_FILE), &identity)?;
    join_others(shards, out)?;
    std::fs::rename(&parts, &final_parts).context_at(&parts, "cannot move the joined parts to their place")
}

/// `runs/data-1a2b3c4d` for `runs/data-1a2b3c4d-shard-0-of-3`, otherwise a new name beside the shard.
fn beside(first: &Found) -> PathBuf {
    let name = file_name(&first.folder);
    let name = match name.rsplit_once("-shard-") {
        Some((stem, _)) if !stem.is_empty() => stem.to_owned(),
        _ => format!("joined-{}", first.shard.whole.get(..8).unwrap_or_default()),
    };
    first.folder.with_file_name(name)
}

fn common_thresholds(shards: &[Found]) -> Result<Thresholds> {
    let mut common: Option<(String, &Path)> = None;
    for found in shards {
        let preset = sorted_by(&found.folder)?
            .map(|thresholds| thresholds.preset)
            .ok_or_else(|| Error::new("the run of the shard was not finished: it has no summary").at(&found.folder))?;
        match &common {
            Some((other, folder)) if *other != preset => {
                return Err(Error::new(format!(
                    "the shards are sorted by different thresholds: {other} in {}, and here {preset}",
                    folder.display()
                ))
                .at(&found.folder)
                .cure("Choose one for all of them: `diagnose SHARD... --thresholds fixed`."));
            }
            Some(_) => {}
            None => common = Some((preset, &found.folder)),
        }
    }
    common.map_or(Ok(Thresholds::default()), |(preset, _)| preset.parse())
}

/// Joins the files beside the tables: the sample of entropies, and the planted spans.
fn join_others(shards: &[Found], out: &Path) -> Result<()> {
    let (mut fidelity, mut planted): (Option<Fidelity>, Vec<Planted>) = (None, Vec::new());
    for found in shards {
        if let Some(of_shard) = read_json::<Fidelity>(&found.folder.join(FIDELITY_FILE))? {
            fidelity.get_or_insert_default().merge(&of_shard);
        }
        planted.extend(read_json::<Vec<Planted>>(&found.folder.join(PLANTED_FILE))?.unwrap_or_default());
    }
    if let Some(fidelity) = fidelity {
        write_json(&out.join(FIDELITY_FILE), &fidelity)?;
    }
    planted.sort_by_key(|planted| (planted.row, planted.turn, planted.begin));
    match planted.is_empty() {
        true => Ok(()),
        false => write_json(&out.join(PLANTED_FILE), &planted),
    }
}

/// The joined record, with counts and times summed over all machines.
fn joined_record(shards: &[Found], command: &str) -> Result<RunRecord> {
    let Some(first) = shards.first() else { return Err(Error::usage("expected the shards of a run")) };
    let (mut counts, mut seconds) = (Totals::default(), Stages::default());
    for Found { record, .. } in shards {
        counts.add(&record.counts);
        seconds.add(&record.seconds);
    }
    let audit = joined_audit(shards, counts.scored)?;
    let records = || shards.iter().map(|found| &found.record);
    let server = first.record.server.clone().map(|mut server| {
        server.retries = records().filter_map(|record| record.server.as_ref()).map(|server| server.retries).sum();
        server
    });
    Ok(RunRecord {
        command: command.to_owned(),
        identity: first.shard.whole.clone(),
        counts,
        audit_lines: audit.lines(),
        audit,
        tokens_per_second: seconds.input_tokens as f64 / (seconds.audit + seconds.wall),
        seconds,
        peak_memory_bytes: records().filter_map(|record| record.peak_memory_bytes).max(),
        peak_device_memory_bytes: records().filter_map(|record| record.peak_device_memory_bytes).max(),
        server,
        shard: None,
        ..first.record.clone()
    })
}

/// The audit of all rows, of which `scored` have something to score.
fn joined_audit(shards: &[Found], scored: u64) -> Result<Audit> {
    let lacks_rows = |finding: &Finding| finding.example_rows.len() != finding.examples.len();
    if let Some(found) = shards.iter().find(|found| found.record.audit.findings.iter().any(lacks_rows)) {
        let by = found.record.provenance.build();
        return Err(Error::new(format!("the shard was scored by {by}, whose audit lacks what joining needs"))
            .at(&found.folder)
            .cure("Join the shards with the program that scored them, or score them again."));
    }
    let mut audits = shards.iter().map(|found| &found.record.audit);
    let mut audit = audits.next().cloned().unwrap_or_default();
    audits.for_each(|other| audit.merge(other));
    // Equal rows may be in different shards.
    let (mut seen, mut equal) = (HashSet::new(), 0);
    for found in shards {
        let rows = read_rows(&found.folder.join(ROWS_FILE))?;
        equal += rows.iter().filter_map(|row| row.fingerprint).filter(|fingerprint| !seen.insert(*fingerprint)).count() as u64;
    }
    audit.equal = Some(EqualRows { rows: equal, of: scored });
    Ok(audit)
}
