//! Progress on stderr: bars on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::output;
use crate::jobs::score::{Beginning, Watch};
use crate::tokens::Audit;
use crate::train::metrics::StepMetrics;

pub(super) struct Terminal {
    bar: Mutex<Option<ProgressBar>>,
    is_terminal: bool,
    /// When the last line was written to something that is not a terminal.
    last_line: Mutex<Instant>,
}

/// In a log file, one line of progress in this time is enough.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

impl Terminal {
    pub(super) fn new() -> Terminal {
        Terminal { bar: Mutex::new(None), is_terminal: std::io::stderr().is_terminal(), last_line: Mutex::new(Instant::now()) }
    }

    /// Tokens of an evaluation.
    pub(super) fn evaluating(&self, what: &str, done: u64, total: u64) {
        self.show(what, done, total, "{msg} {bar:30.cyan} {percent} %, {per_sec} tokens, {eta} left");
    }

    /// A step of training.
    pub(super) fn training(&self, metrics: &StepMetrics, total: u64) {
        let news = format!(
            "loss {:.4}, cross-entropy {:.4}, accuracy {:.1} %, {:.0} tokens/s",
            metrics.loss,
            metrics.cross_entropy,
            100.0 * metrics.accuracy,
            metrics.tokens_per_second
        );
        if self.is_terminal {
            self.show("Training", metrics.step, total, "{msg} {bar:30.cyan} {pos} of {len} steps, {eta} left  {prefix}");
            if let Ok(bar) = self.bar.lock()
                && let Some(bar) = bar.as_ref()
            {
                bar.set_prefix(news);
            }
            return;
        }
        let Ok(mut last) = self.last_line.lock() else { return };
        if last.elapsed() >= LINE_INTERVAL || metrics.step == total || metrics.step == 1 {
            *last = Instant::now();
            eprintln!("step {} of {total}: {news}", metrics.step);
        }
    }

    /// What the mask audit found.
    pub(super) fn audit(&self, audit: &Audit) {
        self.clear();
        audit.lines().iter().for_each(|line| output::say(line));
    }

    /// Shows `done` of `total` (`u64::MAX` if that is not known) under `what`; a new `what` begins a new bar.
    fn show(&self, what: &str, done: u64, total: u64, style: &str) {
        if !self.is_terminal {
            return self.line(what, done, total);
        }
        let Ok(mut bar) = self.bar.lock() else { return };
        if bar.as_ref().is_none_or(|bar| bar.message() != what) {
            let new = ProgressBar::new(total).with_message(what.to_owned());
            if let Ok(style) = ProgressStyle::with_template(style) {
                new.set_style(style.progress_chars("━━─"));
            }
            if let Some(old) = bar.replace(new) {
                old.finish_and_clear();
            }
        }
        if let Some(bar) = bar.as_ref() {
            bar.set_position(done);
            if done >= total {
                bar.finish_and_clear();
            }
        }
    }

    fn line(&self, what: &str, done: u64, total: u64) {
        let Ok(mut last) = self.last_line.lock() else { return };
        if last.elapsed() >= LINE_INTERVAL {
            *last = Instant::now();
            match total {
                u64::MAX => eprintln!("{what}: {done}"),
                _ => eprintln!("{what}: {:.0} %", 100.0 * done as f64 / total.max(1) as f64),
            }
        }
    }

    /// A line for people, in the bar's place.
    pub(super) fn say(&self, line: &str) {
        self.clear();
        output::say(line);
    }

    fn clear(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

impl Watch for Terminal {
    fn fetching(&self, what: &str, done: u64, total: u64) {
        self.show(what, done, total, "{msg} {bar:30.cyan} {bytes} of {total_bytes}, {eta} left");
    }

    fn auditing(&self, records: u64) {
        // The number of records is not known before the end: a spinner's worth of news.
        self.show("Checking the mask", records, u64::MAX, "{msg}: {pos} rows");
    }

    fn audited(&self, beginning: &Beginning) {
        self.clear();
        for file in beginning.files {
            eprintln!("Reading {} ({})", file.path.display(), file.format);
        }
        beginning.audit.lines().iter().for_each(|line| output::say(line));
        if let Some(reason) = beginning.passed_over {
            output::say(&format!("The GPU is not used: {reason}"));
        }
        for remark in beginning.remarks {
            output::say(&format!("{}: {remark}", beginning.model));
        }
        eprintln!(
            "Scoring {} supervised tokens of {} in {} rows with {} on {} -> {}",
            beginning.supervised,
            beginning.tokens,
            beginning.rows,
            beginning.model,
            beginning.device,
            beginning.out.display()
        );
    }

    fn scoring(&self, done: u64, total: u64) {
        self.show("Scoring", done, total, "{msg} {bar:30.cyan} {percent} %, {per_sec} tokens, {eta} left");
    }

    fn finishing(&self, what: &str) {
        self.clear();
        if self.is_terminal {
            self.show(what, 0, 1, "{msg} ..");
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.clear();
    }
}
