//! Writes metrics.jsonl, and the same metrics for TensorBoard.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use super::events::EventWriter;
use crate::error::{Context, Error, Result};
use crate::files::write_atomically;
use crate::jobs::work::{METRICS_FILE, TENSORBOARD_FOLDER};
use crate::train::metrics::StepMetrics;

/// metrics.jsonl and the TensorBoard events, truncated to the steps that the checkpoint includes.
pub(super) struct Log {
    file: fs::File,
    events: EventWriter,
}

impl Log {
    pub(super) fn open(out: &Path, step: u64) -> Result<Log> {
        let path = out.join(METRICS_FILE);
        let kept: Vec<StepMetrics> = read_metrics(&path)?.into_iter().filter(|metrics| metrics.step <= step).collect();
        write_atomically(&path, |file| {
            for metrics in &kept {
                serde_json::to_writer(&mut *file, metrics).context("cannot write the metrics")?;
                file.write_all(b"\n").context("cannot write the metrics")?;
            }
            Ok(())
        })?;
        let file = OpenOptions::new().append(true).open(&path).context_at(&path, "cannot open the metrics")?;
        Ok(Log { file, events: EventWriter::create(&out.join(TENSORBOARD_FOLDER))? })
    }

    pub(super) fn push(&mut self, metrics: &StepMetrics) -> Result<()> {
        let mut line = serde_json::to_vec(metrics).context("cannot write the metrics")?;
        line.push(b'\n');
        self.file.write_all(&line).context("cannot write the metrics")?;
        let scalars: Vec<(&str, f32)> = metrics.scalars().into_iter().map(|(tag, value)| (tag, value as f32)).collect();
        self.events.scalars(metrics.step, &scalars)
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        self.events.flush()?;
        self.file.sync_all().context("cannot write the metrics to the disk")
    }
}

/// Reads the steps in metrics.jsonl. An incomplete last line, left by a killed run, is skipped; any other unreadable line is an error, since the
/// steps after it would be lost.
pub(super) fn read_metrics(path: &Path) -> Result<Vec<StepMetrics>> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let n_lines = text.lines().count();
            let step = |(number, line): (usize, &str)| match serde_json::from_str(line) {
                Ok(step) => Some(Ok(step)),
                Err(_) if number == n_lines => None,
                Err(error) => Some(Err(Error::new(format!("line {number} of the metrics cannot be read: {error}"))
                    .at(path)
                    .cure("Correct the line or move the file away; the run continues without it."))),
            };
            (1..).zip(text.lines()).filter_map(step).collect()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context_at(path, "cannot read the metrics"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix;

    #[test]
    fn only_the_last_line_may_be_broken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(METRICS_FILE);
        let line = |step| serde_json::to_string(&StepMetrics { step, loss: f64::INFINITY, ..StepMetrics::default() }).unwrap();
        let steps = |text: String| {
            fs::write(&path, text).unwrap();
            Ok::<_, Error>(read_metrics(&path)?.iter().map(|metrics| metrics.step).collect::<Vec<_>>())
        };
        let killed = &line(3)[..40];
        assert_eq!(steps(format!("{}\n{}\n{killed}", line(1), line(2))).unwrap(), [1, 2]);
        let error = steps(format!("{}\n{killed}\n{}\n", line(1), line(2))).unwrap_err().to_string();
        assert!(error.contains("line 2 of the metrics cannot be read"), "{error}");
    }

    #[test]
    fn a_resumed_run_writes_the_floats_of_its_metrics_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(METRICS_FILE);
        let mut log = Log::open(folder.path(), 0).unwrap();
        let mut random = SplitMix(7);
        // Among a thousand such numbers, a parser that is sometimes off by one unit in the last place changes some.
        let mut share = || random.unit();
        for step in 1..=1000 {
            let metrics = StepMetrics {
                step,
                loss: share(),
                cross_entropy: 10.0 * share(),
                learning_rate: 1e-5 * share(),
                ..StepMetrics::default()
            };
            log.push(&metrics).unwrap();
        }
        let written = fs::read(&path).unwrap();
        drop(log);
        Log::open(folder.path(), 1000).unwrap();
        assert!(fs::read(&path).unwrap() == written);
    }
}
